//! The forge's merge button, made with the real git: what is recomputed, and what is refused and why.

#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like

mod forge;

use std::process::Command;

use converger::clock::{Clock, SystemClock};
use converger::git::accepted::AcceptedFiles;
use converger::git::merge::recompute;
use converger::ledger::Ledger;
use converger::reason::{self, Reason};
use converger::report::At;
use converger::trust::{Acceptance, Refusal, Verified};
use forge::{FLEET, Forge, Node, POLICY, run};
use git2::Oid;

/// What both sides of a merge do to `base/`, where every file has twenty lines.
type Sides = (&'static str, fn(&Forge), fn(&Forge));

fn lines(from: u32, to: u32) -> String {
    (from..=to).map(|n| format!("line {n} of a file that is long enough to be known again\n")).collect()
}

fn edit(forge: &Forge, path: &str, line: u32, to: &str) {
    let text = std::fs::read_to_string(forge.work.join(path)).unwrap();
    let edited: Vec<String> = text
        .split_inclusive('\n')
        .zip(1..)
        .map(|(old, n)| if n == line { format!("{to}\n") } else { old.to_owned() })
        .collect();
    forge.write(path, &edited.concat());
}

fn rename(forge: &Forge, from: &str, to: &str) {
    std::fs::create_dir_all(forge.work.join(to).parent().unwrap()).unwrap();
    std::fs::rename(forge.work.join(from), forge.work.join(to)).unwrap();
}

fn remove(forge: &Forge, path: &str) {
    std::fs::remove_file(forge.work.join(path)).unwrap();
}

fn executable(forge: &Forge, path: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(forge.work.join(path), std::fs::Permissions::from_mode(0o755)).unwrap();
}

const SIDES: &[Sides] = &[
    ("different files", |f| f.write("base/new", "n\n"), |f| f.write("base/other", "o\n")),
    ("different lines of one file", |f| edit(f, "base/a", 2, "ours"), |f| edit(f, "base/a", 18, "theirs")),
    ("lines that touch", |f| edit(f, "base/a", 9, "ours"), |f| edit(f, "base/a", 10, "theirs")),
    ("one line", |f| edit(f, "base/a", 9, "ours"), |f| edit(f, "base/a", 9, "theirs")),
    ("the same edit", |f| edit(f, "base/a", 9, "same"), |f| edit(f, "base/a", 9, "same")),
    ("the same file added", |f| f.write("base/new", "n\n"), |f| f.write("base/new", "n\n")),
    ("two files of one name added", |f| f.write("base/new", "n\n"), |f| f.write("base/new", "o\n")),
    ("renamed here, edited there", |f| rename(f, "base/a", "base/z"), |f| edit(f, "base/a", 18, "theirs")),
    ("edited here, renamed there", |f| edit(f, "base/a", 2, "ours"), |f| rename(f, "base/a", "moved/z")),
    (
        "renamed and edited here, edited there",
        |f| {
            rename(f, "base/a", "base/z");
            edit(f, "base/z", 2, "ours");
        },
        |f| edit(f, "base/a", 18, "theirs"),
    ),
    ("renamed to two names", |f| rename(f, "base/a", "base/y"), |f| rename(f, "base/a", "base/z")),
    ("renamed to one name", |f| rename(f, "base/a", "base/z"), |f| rename(f, "base/a", "base/z")),
    ("two files renamed to one name", |f| rename(f, "base/a", "base/z"), |f| rename(f, "base/b", "base/z")),
    ("renamed here, removed there", |f| rename(f, "base/a", "base/z"), |f| remove(f, "base/a")),
    ("edited here, removed there", |f| edit(f, "base/a", 2, "ours"), |f| remove(f, "base/a")),
    ("removed by both", |f| remove(f, "base/a"), |f| remove(f, "base/a")),
    ("removed here, something else there", |f| remove(f, "base/a"), |f| edit(f, "base/b", 2, "theirs")),
    ("executable here, edited there", |f| executable(f, "base/a"), |f| edit(f, "base/a", 18, "theirs")),
    ("executable here, renamed there", |f| executable(f, "base/a"), |f| rename(f, "base/a", "base/z")),
    ("executable by both", |f| executable(f, "base/a"), |f| executable(f, "base/a")),
    (
        "a folder in place of a file, the file edited",
        |f| {
            remove(f, "base/a");
            f.write("base/a/inner", "x\n");
        },
        |f| edit(f, "base/a", 2, "theirs"),
    ),
    (
        "a folder in place of a file, something else",
        |f| {
            remove(f, "base/a");
            f.write("base/a/inner", "x\n");
        },
        |f| edit(f, "base/b", 2, "theirs"),
    ),
    (
        "a file in place of a folder",
        |f| {
            std::fs::remove_dir_all(f.work.join("base/deep")).unwrap();
            f.write("base/deep", "x\n");
        },
        |f| edit(f, "base/b", 2, "theirs"),
    ),
    (
        "line ends here, an edit there",
        |f| f.write("base/a", &lines(1, 20).replace('\n', "\r\n")),
        |f| edit(f, "base/b", 2, "x"),
    ),
    ("CRLF in two places", |f| edit(f, "base/crlf", 2, "ours\r"), |f| edit(f, "base/crlf", 18, "theirs\r")),
    ("no newline at the end", |f| f.write("base/a", lines(1, 20).trim_end()), |f| edit(f, "base/a", 2, "theirs")),
    ("bytes that are no text", |f| f.write("base/bytes", "\0one\n"), |f| f.write("base/bytes", "\0two\n")),
    ("bytes changed on one side", |f| f.write("base/bytes", "\0one\n"), |f| edit(f, "base/b", 2, "x")),
    ("emptied here, edited there", |f| f.write("base/a", ""), |f| edit(f, "base/b", 2, "x")),
    (
        "a link in place of a file",
        |f| {
            remove(f, "base/a");
            std::os::unix::fs::symlink("b", f.work.join("base/a")).unwrap();
        },
        |f| edit(f, "base/b", 2, "x"),
    ),
    (
        "attributes that ask for another merge",
        |f| {
            f.write(".gitattributes", "* merge=binary\n");
            edit(f, "base/a", 2, "ours");
        },
        |f| edit(f, "base/b", 18, "theirs"),
    ),
    ("moved lines", |f| f.write("base/a", &(lines(11, 20) + &lines(1, 10))), |f| edit(f, "base/b", 3, "theirs")),
    (
        "added in front, edited behind",
        |f| f.write("base/a", &(lines(30, 40) + &lines(1, 20))),
        |f| edit(f, "base/a", 15, "theirs"),
    ),
];

/// A29: the merge that git makes is the merge that is made again; where git asks people, there is none.
#[test]
fn a_recomputed_merge_is_the_one_that_git_makes() {
    let forge = Forge::new();
    for name in ["a", "b", "deep/c"] {
        forge.write(&format!("base/{name}"), &lines(1, 20).replace("line", name));
    }
    forge.write("base/crlf", &lines(1, 20).replace('\n', "\r\n"));
    forge.write("base/bytes", "\0zero\n");
    let base = forge.commit(None, "base");
    let repository = git2::Repository::open(&forge.work).unwrap();
    let (mut clean, mut asked) = (0, 0);
    for (what, ours, theirs) in SIDES {
        for (ours, theirs) in [(ours, theirs), (theirs, ours)] {
            let side = |change: &fn(&Forge)| {
                forge.git(&["reset", "-q", "--hard", &base]);
                forge.git(&["clean", "-qfdx"]);
                change(&forge);
                forge.commit(None, what)
            };
            let (ours, theirs) = (side(ours), side(theirs));
            let id = |text: &str| Oid::from_str(text).unwrap();
            let before = objects(&forge);
            let made = recompute(&repository, id(&ours), id(&theirs), id(&base)).unwrap();
            assert_eq!(objects(&forge), before, "{what}: something was written");
            forge.git(&["reset", "-q", "--hard", &ours]);
            forge.git(&["clean", "-qfdx"]);
            let merged = forge.tries(&["merge", "-q", "--no-ff", "-m", "button", &theirs]);
            let git = merged.then(|| forge.revision("HEAD^{tree}"));
            assert_eq!(made.map(|id| id.to_string()), git, "{what}");
            if merged { clean += 1 } else { asked += 1 }
        }
    }
    assert!(clean > 30 && asked > 10, "{clean} merges, {asked} conflicts");
}

fn objects(forge: &Forge) -> String {
    forge.git(&["count-objects", "-v"])
}

/// A pull request's branch, begun where HEAD is; the work tree is on it afterwards.
fn branch(forge: &Forge, name: &str) {
    forge.git(&["switch", "-q", "-c", name]);
}

/// The merge button: git merges `name` into main, and nobody signs.
fn button(forge: &Forge, name: &str) -> String {
    forge.git(&["switch", "-q", "main"]);
    forge.signing(None, &["merge", "-q", "--no-ff", "-m", &format!("Merge branch '{name}'"), name])
}

/// One file on a new branch from where HEAD is, signed by `key` or by nobody.
fn work(forge: &Forge, name: &str, key: Option<&str>) -> String {
    branch(forge, name);
    forge.write(&format!("roles/base/{name}"), name);
    forge.commit(key, name)
}

/// One more signed commit on main, so that a merge is more than a fast-forward.
fn main_moves(forge: &Forge, path: &str) -> String {
    forge.git(&["switch", "-q", "main"]);
    forge.write(path, "moved on");
    forge.commit(Some("alice"), "main moves on")
}

/// A commit object of this tree and these parents, as the forge likes to make it; main is put on it.
fn forged(forge: &Forge, tree: &str, parents: &[&str]) -> String {
    let mut args = vec!["commit-tree", tree, "-m", "as the forge likes"];
    args.extend(parents.iter().flat_map(|parent| ["-p", *parent]));
    let id = forge.git(&args);
    forge.git(&["switch", "-q", "main"]);
    forge.git(&["reset", "-q", "--hard", &id]);
    id
}

fn verified(forge: &Forge) -> Verified {
    forge.node().verify(&forge.root(), None).unwrap()
}

/// The branch is refused from nothing: this reason, this commit.
fn refused(forge: &Forge, reason: Reason, commit: &str) -> Box<Refusal> {
    let refusal = forge.node().refusal(&forge.root(), None);
    assert_eq!((refusal.reason, refusal.commit.as_str()), (reason, commit), "{refusal}");
    refusal
}

fn signers(verified: &Verified) -> Vec<&str> {
    match verified.acceptance() {
        Acceptance::Recomputed { signers, .. } => signers.iter().map(|signer| signer.principal.as_str()).collect(),
        other => panic!("{other}"),
    }
}

fn lifted(verified: &Verified) -> Vec<&str> {
    verified.allowances().map(|lifted| lifted.object.as_str()).collect()
}

/// A29
#[test]
fn the_merge_button_needs_no_signature_where_everything_it_brings_has_one() {
    let forge = Forge::new();
    work(&forge, "feature", Some("bob"));
    forge.write("roles/base/more", "x");
    forge.commit(Some("alice"), "more");
    forge.write("roles/base/more", "y");
    let head = forge.commit(Some("bob"), "and more");
    main_moves(&forge, "roles/base/main");
    let merge = button(&forge, "feature");
    let verified = verified(&forge);
    assert_eq!((verified.commit().as_str(), verified.seq()), (merge.as_str(), 3));
    assert_eq!(signers(&verified), ["bob@example.org", "alice@example.org"]);
    assert_eq!(verified.acceptance().to_string(), "merged by the forge, signed by bob@example.org, alice@example.org");
    assert!(matches!(verified.acceptance(), Acceptance::Recomputed { merged, .. } if merged.as_str() == head));

    // The chain goes on from it, and what was accepted is found again after it.
    let (root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    let mut files = AcceptedFiles::open(&node.state).unwrap();
    files.keep(&accepted).unwrap();
    assert_eq!(AcceptedFiles::open(&node.state).unwrap().accepted(), Some(&accepted));
    work(&forge, "next", Some("bob"));
    button(&forge, "next");
    forge.commit(Some("alice"), "signed");
    let next = node.verify(&root, Some(&accepted)).unwrap();
    assert_eq!((next.seq(), next.new_commits().len()), (5, 2));
    assert!(node.repository.tree(&next, &root.limits).unwrap().get("roles/base/next").is_some());
}

/// A1, A2, A3, A37: a commit that the merge brings is judged like one of the branch, and named.
#[test]
fn the_first_commit_of_the_side_branch_that_is_not_good_is_the_one_refused() {
    type Side = fn(&Forge) -> String;
    let cases: [(&str, Reason, Side); 6] = [
        ("unsigned", reason::UNSIGNED, |forge| work(forge, "bad", None)),
        ("unknown key", reason::UNKNOWN_KEY, |forge| work(forge, "bad", Some("mallory"))),
        ("out of scope", reason::SCOPE, |forge| {
            branch(forge, "bad");
            forge.write("environments/production/variables.toml", "");
            forge.commit(Some("bob"), "not his")
        }),
        ("trust by a key without root, taken back later", reason::ROOT_REQUIRED, |forge| {
            branch(forge, "bad");
            forge.write("trust/extra", "x");
            let bad = forge.commit(Some("bob"), "not his");
            forge.signing(Some("alice"), &["revert", "--no-edit", "HEAD"]);
            bad
        }),
        ("of another content's signature", reason::BAD_SIGNATURE, |forge| {
            branch(forge, "bad");
            forge.commit(Some("alice"), "signed");
            let raw = forge.raw("HEAD").replace("\n\nsigned", "\n\nchanged");
            let id = forge.git_with(&["hash-object", "-t", "commit", "-w", "--stdin"], raw.as_bytes());
            forge.git(&["reset", "-q", "--hard", &id]);
            id
        }),
        ("of an encoding", reason::MALFORMED_COMMIT, |forge| {
            branch(forge, "bad");
            forge.git(&["-c", "i18n.commitEncoding=ISO-8859-1", "commit", "-q", "--allow-empty", "-m", "latin"]);
            forge.head()
        }),
    ];
    for (what, reason, side) in cases {
        let forge = Forge::new();
        let bad = side(&forge);
        // What comes later does not hide it.
        forge.write("roles/base/later", "x");
        forge.commit(Some("alice"), "later");
        forge.commit(None, "unsigned, later still");
        main_moves(&forge, "roles/base/main");
        button(&forge, "bad");
        let refusal = refused(&forge, reason, &bad);
        assert!(refusal.to_string().contains("\n  mend     "), "{what}");
    }
}

/// A5, A6: on the repository's list and on the node's own.
#[test]
fn a_banned_key_signs_nothing_that_a_merge_brings_and_no_merge() {
    for on_node in [false, true] {
        let forge = Forge::new();
        let bad = work(&forge, "feature", Some("bob"));
        forge.git(&["switch", "-q", "main"]);
        if !on_node {
            let bans = format!("{POLICY}[banned]\nkeys = [\"{}\"]\n", forge.fingerprint("bob"));
            forge.write("trust/policy.toml", &bans);
            forge.commit(Some("alice"), "ban bob");
        }
        button(&forge, "feature");
        let mut root = forge.root();
        if on_node {
            root.bans.push(forge.fingerprint("bob"));
        }
        let refusal = forge.node().refusal(&root, None);
        assert_eq!((refusal.reason, refusal.commit.as_str()), (reason::BANNED_KEY, bad.as_str()));
    }
    let forge = Forge::new();
    work(&forge, "feature", Some("bob"));
    forge.git(&["switch", "-q", "main"]);
    let merge = forge.signing(Some("mallory"), &["merge", "-q", "--no-ff", "-m", "button", "feature"]);
    let mut root = forge.root();
    assert_eq!(forge.node().verify(&root, None).unwrap().commit().as_str(), merge);
    root.bans.push(forge.fingerprint("mallory"));
    assert_eq!(forge.node().refusal(&root, None).reason, reason::BANNED_KEY);
}

/// A5: keys live from the commit that adds them to the one that removes them, on the tracked branch.
#[test]
fn the_side_branch_is_judged_by_the_trust_folder_that_it_is_merged_into() {
    let forge = Forge::new();
    let bad = work(&forge, "feature", Some("bob"));
    forge.git(&["switch", "-q", "main"]);
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "carol"]));
    forge.commit(Some("alice"), "bob leaves");
    button(&forge, "feature");
    refused(&forge, reason::UNKNOWN_KEY, &bad);

    let forge = Forge::new();
    forge.keygen("dave", &["-t", "ed25519"]);
    work(&forge, "feature", Some("dave"));
    forge.git(&["switch", "-q", "main"]);
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "bob", "carol", "dave"]));
    forge.write("trust/policy.toml", &POLICY.replace("bob@", "dave@"));
    forge.commit(Some("alice"), "dave comes");
    button(&forge, "feature");
    assert_eq!(signers(&verified(&forge)), ["dave@example.org"]);
}

/// A4: who decides is decided by a commit that root itself signed, never by the forge.
#[test]
fn trust_and_identity_never_change_by_a_merge_button() {
    for path in ["trust/extra", "trust/policy.toml", "fleet.toml"] {
        let forge = Forge::new();
        branch(&forge, "feature");
        let text = if path == "fleet.toml" { FLEET } else { POLICY };
        forge.write(path, &format!("{text}# x\n"));
        forge.commit(Some("alice"), "signed by root itself");
        let bad = button(&forge, "feature");
        let refusal = refused(&forge, reason::ROOT_REQUIRED, &bad);
        assert!(refusal.rule.starts_with(&format!("{path} changes only in a commit")), "{refusal}");
        assert!(refusal.rule.contains("alice@example.org, carol@example.org"), "{refusal}");
    }
}

/// A8: signed work can be merged late, but not at any time.
#[test]
fn a_merge_of_work_that_is_too_old_is_stale() {
    let forge = Forge::new();
    let base = forge.head();
    work(&forge, "feature", Some("bob"));
    // Older than the introduction is nobody's business here: the chain begins after these.
    let commits: String = (0..199)
        .map(|n| {
            let from = if n == 0 { format!("from {base}\n") } else { String::new() };
            format!(
                "commit refs/heads/main\ncommitter A <a@example.org> {} +0000\ndata 1\nx\n{from}\n",
                1_700_000_000 - n
            )
        })
        .collect();
    forge.git_with(&["fast-import", "--quiet"], commits.as_bytes());
    forge.git(&["switch", "-q", "main"]);
    forge.git(&["reset", "-q", "--hard"]);
    let at_200 = forge.commit(Some("alice"), "introduced here");
    let mut root = forge.root();
    root.introduction.commit = at_200.as_str().into();
    button(&forge, "feature");
    assert_eq!(forge.node().verify(&root, None).unwrap().seq(), 2);
    forge.git(&["reset", "-q", "--hard", &at_200]);
    let main = forge.commit(Some("alice"), "one more");
    let bad = button(&forge, "feature");
    let refusal = forge.node().refusal(&root, None);
    assert_eq!((refusal.reason, refusal.commit.as_str()), (reason::STALE_MERGE, bad.as_str()), "{refusal}");
    assert!(refusal.rule.contains(&base[..7]) && refusal.rule.contains("201 commits"), "{refusal}");

    // The forge's "update branch" makes it young again.
    forge.git(&["reset", "-q", "--hard", &main]);
    forge.git(&["switch", "-q", "feature"]);
    forge.signing(None, &["merge", "-q", "--no-ff", "-m", "Update branch", "main"]);
    button(&forge, "feature");
    assert_eq!(signers(&forge.node().verify(&root, None).unwrap()), ["bob@example.org"]);
}

#[test]
fn a_merge_with_several_bases_or_none_or_one_beside_the_branch_is_stale() {
    // Criss-cross: each side has merged the other's first commit.
    let forge = Forge::new();
    let a = work(&forge, "feature", Some("alice"));
    let b = main_moves(&forge, "roles/base/main");
    forge.signing(Some("alice"), &["merge", "-q", "--no-ff", "-m", "a into main", &a]);
    forge.git(&["switch", "-q", "feature"]);
    forge.signing(Some("alice"), &["merge", "-q", "--no-ff", "-m", "b into feature", &b]);
    forge.write("roles/base/late", "x");
    forge.commit(Some("alice"), "late");
    let bad = button(&forge, "feature");
    assert_eq!(forge.git(&["merge-base", "--all", "main^1", "main^2"]).lines().count(), 2);
    let refusal = refused(&forge, reason::STALE_MERGE, &bad);
    assert!(refusal.rule.contains("2 merge bases"), "{refusal}");

    // Histories that have nothing in common.
    let forge = Forge::new();
    forge.git(&["switch", "-q", "--orphan", "feature"]);
    forge.write("roles/base/feature", "x");
    forge.commit(Some("alice"), "feature");
    forge.git(&["switch", "-q", "main"]);
    let bad = forge.signing(None, &["merge", "-q", "--allow-unrelated-histories", "-m", "button", "feature"]);
    let refusal = refused(&forge, reason::STALE_MERGE, &bad);
    assert!(refusal.rule.contains("no common ancestor"), "{refusal}");

    // Begun on another branch that was merged: the base is beside the first-parent chain.
    let forge = Forge::new();
    work(&forge, "one", Some("bob"));
    work(&forge, "two", Some("bob"));
    main_moves(&forge, "roles/base/main");
    button(&forge, "one");
    let bad = button(&forge, "two");
    let refusal = refused(&forge, reason::STALE_MERGE, &bad);
    assert!(refusal.rule.contains("not on the branch's first-parent chain"), "{refusal}");
}

/// A8, A9: an old state that is signed is no new work.
#[test]
fn a_merge_that_brings_nothing_is_what_it_is_unsigned() {
    let forge = Forge::new();
    let old = forge.head();
    forge.write("roles/base/x", "x");
    let tip = forge.commit(Some("alice"), "x");
    // Same tree as before, or that of the old commit: there is nothing in it that anybody signed.
    for tree in [&tip, &old] {
        let bad = forged(&forge, &format!("{tree}^{{tree}}"), &[&tip, &old]);
        refused(&forge, reason::UNSIGNED, &bad);
    }
}

#[test]
fn the_forge_chooses_which_signed_work_is_merged_and_nothing_more() {
    let forge = Forge::new();
    let first = work(&forge, "feature", Some("bob"));
    forge.write("roles/base/second", "x");
    forge.commit(Some("bob"), "second");
    let main = main_moves(&forge, "roles/base/main");
    forge.git(&["merge", "-q", "--no-ff", "-m", "the first only", &first]);
    assert_eq!(signers(&verified(&forge)), ["bob@example.org"]);

    // Not its tree, not a tree with a file more, a file less or one byte changed, not its own way out of a conflict.
    forge.git(&["reset", "-q", "--hard", &main]);
    let merge = button(&forge, "feature");
    let changed: [fn(&Forge); 4] = [
        |forge| forge.write("roles/base/evil", "x"),
        |forge| remove(forge, "roles/base/second"),
        |forge| forge.write("roles/base/second", "y"),
        |forge| executable(forge, "roles/base/second"),
    ];
    for change in changed {
        forge.git(&["reset", "-q", "--hard", &merge]);
        change(&forge);
        forge.git(&["add", "-A"]);
        let tree = forge.git(&["write-tree"]);
        let bad = forged(&forge, &tree, &[&main, "feature"]);
        let refusal = refused(&forge, reason::MERGE_ALTERED, &bad);
        assert!(refusal.rule.contains("another tree"), "{refusal}");
    }
    let bad = forged(&forge, "feature^{tree}", &[&main, "feature"]);
    refused(&forge, reason::MERGE_ALTERED, &bad);
    let bad = forged(&forge, &format!("{main}^{{tree}}"), &[&main, "feature"]);
    refused(&forge, reason::MERGE_ALTERED, &bad);

    let forge = Forge::new();
    work(&forge, "feature", Some("bob"));
    let main = main_moves(&forge, "roles/base/feature");
    let bad = forged(&forge, "feature^{tree}", &[&main, "feature"]);
    let refusal = refused(&forge, reason::MERGE_ALTERED, &bad);
    assert!(refusal.rule.contains("conflict"), "{refusal}");
}

/// A37: where the branch renamed a file, merging carries a change of its old path along; whose key may not change the new
/// path does not get there in this way.
#[test]
fn a_rename_carries_no_change_out_of_its_signers_paths() {
    for (to, good) in [("environments/production/carried", false), ("roles/base/carried", true)] {
        let forge = Forge::new();
        forge.write("roles/base/list", &lines(1, 20));
        forge.commit(Some("alice"), "a list");
        branch(&forge, "feature");
        edit(&forge, "roles/base/list", 18, "bob's");
        forge.commit(Some("bob"), "in his paths");
        forge.git(&["switch", "-q", "main"]);
        rename(&forge, "roles/base/list", to);
        forge.commit(Some("alice"), "renamed");
        let merge = button(&forge, "feature");
        assert!(std::fs::read_to_string(forge.work.join(to)).unwrap().contains("bob's"));
        if good {
            assert_eq!(signers(&verified(&forge)), ["bob@example.org"]);
        } else {
            let refusal = refused(&forge, reason::SCOPE, &merge);
            assert!(refusal.rule.starts_with(&format!("{to} is not in the paths of bob")), "{refusal}");
        }
    }
}

/// What a forge's own signature says does not count, and does not harm.
#[test]
fn a_forge_may_sign_its_merges_with_any_key_of_its_own() {
    // An SSH key that nobody listed.
    let forge = Forge::new();
    work(&forge, "feature", Some("bob"));
    main_moves(&forge, "roles/base/main");
    forge.signing(Some("mallory"), &["merge", "-q", "--no-ff", "-m", "button", "feature"]);
    assert_eq!(signers(&verified(&forge)), ["bob@example.org"]);
    // It vouches for nothing: what is brought must be signed all the same.
    let bad = work(&forge, "unsigned", None);
    forge.git(&["switch", "-q", "main"]);
    forge.signing(Some("mallory"), &["merge", "-q", "--no-ff", "-m", "button", "unsigned"]);
    refused(&forge, reason::UNSIGNED, &bad);

    // OpenPGP, as the large forges sign: a canonical armor, an empty line and a checksum in it.
    let forge = Forge::new();
    let home = forge.dir.path().join("gnupg");
    std::fs::create_dir(&home).unwrap();
    let gpg = forge.dir.path().join("gpg");
    std::fs::write(
        &gpg,
        format!("#!/bin/sh\nexec gpg --homedir '{}' --batch --passphrase '' \"$@\"\n", home.display()),
    )
    .unwrap();
    run(Command::new("chmod").args(["700"]).args([&gpg, &home]));
    run(Command::new(&gpg).args(["--quiet", "--quick-gen-key", "forge@example.org", "ed25519", "sign"]));
    work(&forge, "feature", Some("bob"));
    main_moves(&forge, "roles/base/main");
    let program = format!("gpg.program={}", gpg.display());
    let with = ["-c", "gpg.format=openpgp", "-c", &program, "-c", "user.signingkey=forge@example.org"];
    let merge = forge.git(&[&with[..], &["merge", "-q", "--no-ff", "-S", "-m", "button", "feature"]].concat());
    assert!(forge.raw("HEAD").contains("gpgsig -----BEGIN PGP SIGNATURE-----"), "{merge}");
    assert_eq!(signers(&verified(&forge)), ["bob@example.org"]);
    // Of one parent it is no signature that counts, as before.
    let squashed = forge.git(&[&with[..], &["commit", "-q", "-S", "--allow-empty", "-m", "squashed"]].concat());
    let refusal = forge.node().refusal(&forge.root(), None);
    assert_eq!((refusal.reason, refusal.commit.as_str()), (reason::BAD_SIGNATURE, forge.head().as_str()), "{squashed}");
    let _ = Command::new("gpgconf").arg("--homedir").arg(&home).args(["--kill", "all"]).status();
}

/// A37: the other way round. The side branch moves a file, and what somebody changed on the branch under the old name goes
/// along to where he may not change anything; with the merge button, and with "update branch".
#[test]
fn a_rename_on_the_side_takes_no_change_of_the_branch_along() {
    let forge = Forge::new();
    let to = "environments/production/carried";
    forge.write("roles/base/list", &lines(1, 20));
    forge.commit(Some("alice"), "a list");
    branch(&forge, "feature");
    rename(&forge, "roles/base/list", to);
    forge.commit(Some("alice"), "renamed");
    forge.git(&["switch", "-q", "main"]);
    let before = forge.head();
    edit(&forge, "roles/base/list", 18, "bob's");
    let main = forge.commit(Some("bob"), "in his paths");
    let merge = button(&forge, "feature");
    assert!(std::fs::read_to_string(forge.work.join(to)).unwrap().contains("bob's"));
    let refusal = refused(&forge, reason::SCOPE, &merge);
    assert!(refusal.rule.starts_with(&format!("a rename carries a change of the branch to {to}")), "{refusal}");
    forge.git(&["reset", "-q", "--hard", &main]);
    forge.git(&["switch", "-q", "feature"]);
    forge.signing(None, &["merge", "-q", "--no-ff", "-m", "update branch", "main"]);
    let update = forge.head();
    forge.git(&["switch", "-q", "main"]);
    button(&forge, "feature");
    refused(&forge, reason::SCOPE, &update);
    // Without that change it is good.
    forge.git(&["reset", "-q", "--hard", &before]);
    forge.git(&["switch", "-q", "feature"]);
    forge.git(&["reset", "-q", "--hard", "HEAD~1"]);
    forge.git(&["switch", "-q", "main"]);
    forge.write("roles/base/other", "x\n");
    forge.commit(Some("bob"), "elsewhere");
    button(&forge, "feature");
    verified(&forge);
}

/// A1: the squash and rebase buttons make new commits, of one parent.
#[test]
fn squash_and_rebase_buttons_need_a_signature() {
    let forge = Forge::new();
    work(&forge, "feature", Some("bob"));
    main_moves(&forge, "roles/base/main");
    forge.git(&["merge", "-q", "--squash", "feature"]);
    let bad = forge.commit(None, "squashed");
    refused(&forge, reason::UNSIGNED, &bad);
    forge.git(&["reset", "-q", "--hard", "HEAD^"]);
    forge.git(&["cherry-pick", "feature"]);
    refused(&forge, reason::UNSIGNED, &forge.head());
    // Nor is an octopus one of the merges that are made again.
    forge.git(&["reset", "-q", "--hard", "HEAD^"]);
    work(&forge, "second", Some("bob"));
    forge.git(&["switch", "-q", "main"]);
    forge.git(&["merge", "-q", "--no-ff", "-m", "octopus", "feature", "second"]);
    assert_eq!(forge.raw("HEAD").matches("\nparent ").count(), 3);
    refused(&forge, reason::UNSIGNED, &forge.head());
}

/// A listed key vouches for the tree that it signs, and gets no second chance.
#[test]
fn a_merge_by_a_listed_key_is_judged_by_its_signature_alone() {
    let forge = Forge::new();
    branch(&forge, "feature");
    forge.write("environments/production/variables.toml", "");
    forge.commit(Some("alice"), "all good");
    forge.git(&["switch", "-q", "main"]);
    let bad = forge.signing(Some("bob"), &["merge", "-q", "--no-ff", "-m", "signed", "feature"]);
    refused(&forge, reason::SCOPE, &bad);

    // The other way round: what it brings need not be signed.
    let forge = Forge::new();
    work(&forge, "feature", None);
    forge.git(&["switch", "-q", "main"]);
    forge.signing(Some("bob"), &["merge", "-q", "--no-ff", "-m", "signed", "feature"]);
    assert!(
        matches!(verified(&forge).acceptance(), Acceptance::Signed(signer) if signer.principal == "bob@example.org")
    );
}

#[test]
fn update_branch_needs_no_signature_as_long_as_it_adds_nothing() {
    let forge = Forge::new();
    work(&forge, "feature", Some("bob"));
    main_moves(&forge, "environments/production/variables.toml");
    forge.git(&["switch", "-q", "feature"]);
    let update = forge.signing(None, &["merge", "-q", "--no-ff", "-m", "Update branch", "main"]);
    forge.write("roles/base/more", "x");
    forge.commit(Some("bob"), "more");
    button(&forge, "feature");
    assert_eq!(signers(&verified(&forge)), ["bob@example.org"]);

    // Bob may sign such an update, though what it brings of main is not in his scope.
    let again = |change: &dyn Fn(), key: Option<&str>, parents: [&str; 2]| {
        forge.git(&["switch", "-q", "-C", "feature", &update]);
        change();
        forge.git(&["add", "-A"]);
        let tree = forge.git(&["write-tree"]);
        let mut args = vec!["commit-tree", &tree, "-m", "Update branch", "-p", parents[0], "-p", parents[1]];
        args.extend(key.map(|_| "-S"));
        let key = format!("user.signingkey={}", forge.key(key.unwrap_or("bob")).display());
        let id = forge.git(&[&["-c", "gpg.format=ssh", "-c", &key], &args[..]].concat());
        forge.git(&["reset", "-q", "--hard", &id]);
        forge.git(&["switch", "-q", "-C", "main", "main^1"]);
        button(&forge, "feature");
        id
    };
    let (side, main) = (forge.revision(&format!("{update}^1")), forge.revision(&format!("{update}^2")));
    again(&|| {}, Some("bob"), [&side, &main]);
    assert!(signers(&verified(&forge)).contains(&"bob@example.org"));

    // With a byte more it is somebody's work: unsigned, or out of its signer's scope.
    let more = || forge.write("roles/base/evil", "x");
    let bad = again(&more, None, [&side, &main]);
    refused(&forge, reason::UNSIGNED, &bad);
    let bad = again(&more, Some("bob"), [&side, &main]);
    refused(&forge, reason::SCOPE, &bad);
    // Nor may the sides be swapped: then main would be what is merged into.
    let bad = again(&|| {}, None, [&main, &side]);
    refused(&forge, reason::UNSIGNED, &bad);
}

#[test]
fn another_branch_merged_into_the_side_branch_needs_a_signature() {
    let forge = Forge::new();
    work(&forge, "one", Some("bob"));
    forge.git(&["switch", "-q", "main"]);
    work(&forge, "two", Some("bob"));
    let merge = forge.signing(None, &["merge", "-q", "--no-ff", "-m", "one into two", "one"]);
    let main = main_moves(&forge, "roles/base/main");
    button(&forge, "two");
    refused(&forge, reason::UNSIGNED, &merge);
    forge.git(&["reset", "-q", "--hard", &main]);
    forge.git(&["switch", "-q", "-C", "two", &format!("{merge}^1")]);
    forge.signing(Some("bob"), &["merge", "-q", "--no-ff", "-m", "one into two", "one"]);
    button(&forge, "two");
    assert_eq!(signers(&verified(&forge)), ["bob@example.org"]);
}

/// A40: what began elsewhere does not come in by way of an update.
#[test]
fn a_side_commit_without_a_parent_is_refused() {
    let forge = Forge::new();
    let first = forge.head();
    forge.git(&["switch", "-q", "--orphan", "island"]);
    forge.write("roles/base/island", "x");
    let root = forge.commit(Some("alice"), "island");
    forge.signing(Some("alice"), &["merge", "-q", "--allow-unrelated-histories", "-m", "join", &first]);
    main_moves(&forge, "roles/base/main");
    button(&forge, "island");
    // The introduction is the branch's first commit, not whichever has no parent.
    let mut trust = forge.root();
    trust.introduction.commit = first.as_str().into();
    let refusal = forge.node().refusal(&trust, None);
    assert_eq!((refusal.reason, refusal.commit.as_str()), (reason::NOT_DESCENDANT, root.as_str()), "{refusal}");
}

/// Only what an authorised key signed lifts a guard.
#[test]
fn a_merge_lifts_what_its_signed_commits_lift() {
    let forge = Forge::new();
    branch(&forge, "feature");
    forge.write("roles/base/x", "x");
    forge.commit(Some("bob"), "down\n\nConverger-Allow: downgrade kafka");
    main_moves(&forge, "roles/base/main");
    forge.git(&["switch", "-q", "feature"]);
    let update = "update\n\nConverger-Allow: downgrade update";
    forge.signing(None, &["merge", "-q", "--no-ff", "-m", update, "main"]);
    forge.git(&["switch", "-q", "main"]);
    let message = "button\n\nConverger-Allow: downgrade merge";
    forge.signing(None, &["merge", "-q", "--no-ff", "-m", message, "feature"]);
    assert_eq!(lifted(&verified(&forge)), ["kafka"]);
    // Signed, the merge itself speaks, and its unsigned parts do not.
    let forge = Forge::new();
    branch(&forge, "feature");
    forge.commit(None, "down\n\nConverger-Allow: downgrade kafka");
    forge.git(&["switch", "-q", "main"]);
    forge.signing(Some("alice"), &["merge", "-q", "--no-ff", "-m", message, "feature"]);
    assert_eq!(lifted(&verified(&forge)), ["merge"]);
}

#[test]
fn what_is_lifted_is_remembered_until_it_is_applied_and_no_longer() {
    let forge = Forge::new();
    let path = forge.dir.path().join("ledger.db");
    let mut ledger = Ledger::open(&path).unwrap();
    forge.commit(Some("alice"), "two\n\nConverger-Allow: downgrade kafka");
    forge.commit(Some("alice"), "three\n\nConverger-Allow: mass-removal web01");
    let (root, mut node) = (forge.root(), forge.node());
    let first = node.verify(&root, None).unwrap();
    node.repository.admit(&first).unwrap();
    ledger.lift(0, first.new_commits()).unwrap();
    let objects = |ledger: &Ledger, seq| -> Vec<String> {
        ledger.lifted(seq).unwrap().into_iter().map(|lifted| lifted.object).collect()
    };
    assert_eq!(objects(&ledger, 3), ["kafka", "web01"]);
    assert_eq!(objects(&ledger, 2), ["kafka"], "of commits that are in force");

    // It died before the floor moved: the same commits are verified again, or others in their place.
    ledger.lift(0, first.new_commits()).unwrap();
    assert_eq!(objects(&ledger, 3), ["kafka", "web01"]);
    drop(ledger);
    let mut ledger = Ledger::open(&path).unwrap();
    forge.commit(Some("alice"), "four\n\nConverger-Allow: downgrade etcd");
    let next = node.verify(&root, Some(first.accepted())).unwrap();
    ledger.lift(first.seq(), next.new_commits()).unwrap();
    assert_eq!(objects(&ledger, 4), ["kafka", "web01", "etcd"]);
    ledger.lift(first.seq(), &[]).unwrap();
    assert_eq!(objects(&ledger, 4), ["kafka", "web01"]);
    ledger.lift(first.seq(), next.new_commits()).unwrap();

    let applied = At { commit: first.commit().clone(), seq: first.seq(), subject: String::new() };
    ledger.set_applied(&applied, SystemClock.now(), "applied").unwrap();
    assert_eq!(objects(&ledger, 4), ["etcd"]);
    // All of the chain once more, after the floor was lost: what is applied lifts nothing any more.
    ledger.lift(0, Node::below(&forge.dir.path().join("fresh")).verify(&root, None).unwrap().new_commits()).unwrap();
    assert_eq!(objects(&ledger, 4), ["etcd"]);
    std::fs::remove_file(&path).unwrap();
    assert!(objects(&Ledger::open(&forge.dir.path().join("lost.db")).unwrap(), 4).is_empty());
}

/// `converger trust mend` puts a refused merge to the second parent's side, like any other commit.
#[test]
fn a_refused_merge_is_mended_by_a_signed_one() {
    let forge = Forge::new();
    let good = forge.head();
    work(&forge, "feature", None);
    button(&forge, "feature");
    forge.git(&["switch", "-q", "-C", "mend", &good]);
    forge.signing(Some("alice"), &["merge", "-q", "-s", "ours", "--no-ff", "-m", "mend", "main"]);
    forge.git(&["switch", "-q", "-C", "main"]);
    work(&forge, "next", Some("bob"));
    button(&forge, "next");
    assert_eq!((verified(&forge).seq(), signers(&verified(&forge))), (3, vec!["bob@example.org"]));
}

#[test]
fn an_introduction_is_signed_itself() {
    let forge = Forge::new();
    work(&forge, "feature", Some("alice"));
    let merge = button(&forge, "feature");
    let mut root = forge.root();
    root.introduction.commit = merge.as_str().into();
    assert_eq!(forge.node().refusal(&root, None).reason, reason::UNSIGNED);
}
