//! The chain rule against histories that the real git and ssh-keygen made.

#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like

mod forge;

use converger::reason::{self, Reason};
use converger::trust::{Acceptance, Signer};
use forge::{FLEET, Forge, POLICY};

/// One commit on top of an accepted one is refused: this reason, this commit.
fn refused(forge: &Forge, reason: Reason, commit: &str) -> Box<converger::trust::Refusal> {
    let root = forge.root();
    let mut node = forge.node();
    let tip = forge.head();
    forge.git(&["update-ref", "refs/heads/main", root.introduction.commit.as_str()]);
    let accepted = node.accept(&root);
    forge.git(&["update-ref", "refs/heads/main", &tip]);
    let refusal = node.refusal(&root, Some(&accepted));
    assert_eq!(refusal.reason, reason, "{refusal}");
    assert_eq!(refusal.commit.as_str(), commit, "{refusal}");
    assert_eq!(refusal.last_good.as_ref(), Some(&root.introduction.commit));
    // From nothing the same chain is refused for the same commit.
    let mut fresh = forge::Node::below(&forge.dir.path().join("fresh"));
    assert_eq!(fresh.refusal(&root, None).reason, reason);
    refusal
}

fn signer(acceptance: &Acceptance) -> Signer {
    match acceptance {
        Acceptance::Signed(signer) => signer.clone(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_linear_history_is_verified_and_then_only_what_is_new() {
    let forge = Forge::new();
    forge.write("roles/base/motd", "1");
    forge.commit(Some("bob"), "motd");
    forge.write("fleet.toml", &format!("{FLEET}# comment\n"));
    forge.commit(Some("carol"), "fleet");
    let (root, mut node) = (forge.root(), forge.node());
    let verified = node.verify(&root, None).unwrap();
    assert_eq!((verified.seq(), verified.subject(), verified.commit().as_str()), (3, "fleet", forge.head().as_str()));
    let signers: Vec<String> =
        verified.new_commits().iter().map(|commit| signer(&commit.acceptance).principal).collect();
    assert_eq!(signers, ["alice@example.org", "bob@example.org", "carol@example.org"]);
    assert_eq!(signer(verified.acceptance()).fingerprint, forge.fingerprint("carol"));

    let accepted = verified.accepted().clone();
    node.repository.admit(&verified).unwrap();
    forge.write("roles/base/motd", "2");
    forge.commit(Some("alice"), "again\n\nConverger-Allow: downgrade kafka");
    let next = node.verify(&root, Some(&accepted)).unwrap();
    assert_eq!((next.seq(), next.new_commits().len()), (4, 1));
    assert_eq!(next.allowances().map(|lifted| lifted.object.as_str()).collect::<Vec<_>>(), ["kafka"]);
}

/// A16
#[test]
fn every_kind_of_key_that_is_accepted_signs() {
    let forge = Forge::new();
    let kinds: [(&str, &[&str]); 5] = [
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa", &["-t", "rsa", "-b", "3072"]),
        ("rsa5120", &["-t", "rsa", "-b", "5120"]),
    ];
    let mut policy = POLICY.to_owned();
    for (name, kind) in kinds {
        forge.keygen(name, kind);
        policy.push_str(&format!("[principals.\"{name}@example.org\"]\nroles = [\"deploy\"]\n"));
    }
    let names: Vec<&str> = ["alice"].into_iter().chain(kinds.map(|(name, _)| name)).collect();
    forge.write("trust/allowed_signers", &forge.signers(&names));
    forge.write("trust/policy.toml", &policy);
    forge.commit(Some("alice"), "more keys");
    for (name, _) in kinds {
        forge.commit(Some(name), name);
        // The other digest that SSHSIG knows.
        forge.commit(None, "sha256");
        let payload = forge.raw("HEAD");
        let armor = forge.sign_with(&payload, name, &["-n", "git", "-O", "hashalg=sha256"]);
        forge.raw_commit(with_signature(&payload, &armor).as_bytes());
    }
    assert_eq!(forge.node().verify(&forge.root(), None).unwrap().seq(), 12);
}

/// A16
#[test]
fn a_weak_key_cannot_be_listed_and_does_not_sign() {
    let kinds: [(&[&str], &str); 3] = [
        (&["-t", "rsa", "-b", "1024"], "an RSA key of 1024 bits"),
        (&["-t", "rsa", "-b", "2048"], "an RSA key of 2048 bits"),
        (&["-t", "dsa"], "keys of type ssh-dss are not accepted"),
    ];
    for (kind, says) in kinds {
        let forge = Forge::new();
        forge.keygen("weak", kind);
        let commit = forge.commit(Some("weak"), "weak");
        let refusal = refused(&forge, reason::BAD_SIGNATURE, &commit);
        assert!(refusal.rule.contains(says), "{refusal}");

        let forge = Forge::new();
        forge.keygen("weak", kind);
        forge.write("trust/allowed_signers", &forge.signers(&["alice", "weak"]));
        let commit = forge.commit(Some("alice"), "list it");
        let refusal = refused(&forge, reason::TRUST_REMOVED, &commit);
        assert!(refusal.rule.contains(&format!("line 2: {says}")), "{refusal}");
    }
}

/// A29
#[test]
fn a_signed_merge_brings_unsigned_side_commits() {
    let forge = Forge::new();
    forge.git(&["switch", "-q", "-c", "side"]);
    forge.write("roles/base/side", "x");
    forge.commit(None, "side");
    forge.git(&["switch", "-q", "main"]);
    forge.write("roles/base/main", "x");
    forge.commit(Some("alice"), "main");
    forge.signing(Some("bob"), &["merge", "-q", "--no-ff", "-m", "merge", "side"]);
    let verified = forge.node().verify(&forge.root(), None).unwrap();
    assert_eq!((verified.seq(), signer(verified.acceptance()).principal.as_str()), (3, "bob@example.org"));
}

/// A1
#[test]
fn an_unsigned_tip_is_refused_and_says_who_could_have_signed() {
    let forge = Forge::new();
    let bad = forge.commit(None, "quick fix");
    let refusal = refused(&forge, reason::UNSIGNED, &bad);
    let (bad, good) = (&bad[..7], &forge.root().introduction.commit.as_str()[..7].to_owned());
    let expected = format!(
        "refused {bad} on main: unsigned\n  commit   {bad} \"quick fix\" by author@example.org\n  \
         rule     every commit after {good} needs a signature by a principal of its parent's trust/allowed_signers \
         (alice@example.org, bob@example.org, carol@example.org)\n  \
         effect   this node keeps enforcing {good}; drift is still repaired\n  mend     {}",
        reason::UNSIGNED.mend
    );
    assert_eq!(refusal.to_string(), expected);
}

/// A3
#[test]
fn an_unsigned_commit_below_a_signed_tip_is_found_and_a_merge_mends_it() {
    let forge = Forge::new();
    let good = forge.head();
    let bad = forge.commit(None, "middle");
    forge.commit(Some("alice"), "tip");
    refused(&forge, reason::UNSIGNED, &bad);

    forge.git(&["switch", "-q", "-C", "mend", &good]);
    forge.signing(Some("alice"), &["merge", "-q", "-s", "ours", "--no-ff", "-m", "mend", "main"]);
    forge.git(&["switch", "-q", "-C", "main"]);
    assert_eq!(forge.node().verify(&forge.root(), None).unwrap().subject(), "mend");
}

/// A2, A4
#[test]
fn a_key_that_nobody_listed_is_unknown_also_to_itself() {
    let forge = Forge::new();
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "mallory"]));
    forge.write("trust/policy.toml", &POLICY.replace("carol", "mallory"));
    let bad = forge.commit(Some("mallory"), "let me in");
    let refusal = refused(&forge, reason::UNKNOWN_KEY, &bad);
    assert_eq!(refusal.signer, Some(forge.fingerprint("mallory")));
}

/// A5
#[test]
fn a_removed_key_signs_no_more() {
    let forge = Forge::new();
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "carol"]));
    forge.commit(Some("alice"), "bob leaves");
    forge.write("roles/base/x", "x");
    let bad = forge.commit(Some("bob"), "bob was here");
    refused(&forge, reason::UNKNOWN_KEY, &bad);
}

fn ban_bob(forge: &Forge) {
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "carol"]));
    forge.write("trust/policy.toml", &format!("{POLICY}[banned]\nkeys = [\"{}\"]\n", forge.fingerprint("bob")));
    forge.commit(Some("alice"), "ban bob");
}

/// A6
#[test]
fn a_revert_does_not_bring_a_banned_key_back() {
    let forge = Forge::new();
    ban_bob(&forge);
    let revert = forge.signing(Some("alice"), &["revert", "--no-edit", "HEAD"]);
    let refusal = refused(&forge, reason::REAUTHORISES_BANNED_KEY, &revert);
    assert!(refusal.rule.contains(&forge.fingerprint("bob")));
}

/// A6
#[test]
fn a_banned_key_cannot_be_listed_again_while_the_ban_stays() {
    let forge = Forge::new();
    ban_bob(&forge);
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "bob"]));
    let bad = forge.commit(Some("alice"), "welcome back");
    refused(&forge, reason::REAUTHORISES_BANNED_KEY, &bad);
}

/// A6: nor in two steps, nor under another name.
#[test]
fn a_banned_key_that_was_taken_off_the_list_stays_off() {
    let forge = Forge::new();
    let bans = format!("{POLICY}[banned]\nkeys = [\"{}\"]\n", forge.fingerprint("bob"));
    forge.write("trust/policy.toml", &bans);
    forge.commit(Some("alice"), "ban bob, who stays listed");
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "carol"]));
    forge.commit(Some("alice"), "take him off");
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "carol", "bob"]).replace("bob@", "robert@"));
    let bad = forge.commit(Some("alice"), "robert is new here");
    refused(&forge, reason::REAUTHORISES_BANNED_KEY, &bad);
}

/// A5
#[test]
fn a_key_that_is_banned_but_still_listed_does_not_sign() {
    let forge = Forge::new();
    forge.write("trust/policy.toml", &format!("{POLICY}[banned]\nkeys = [\"{}\"]\n", forge.fingerprint("bob")));
    forge.commit(Some("alice"), "ban bob");
    forge.write("roles/base/x", "x");
    let bad = forge.commit(Some("bob"), "still here");
    refused(&forge, reason::BANNED_KEY, &bad);
}

/// A5
#[test]
fn a_node_bans_keys_by_itself() {
    let forge = Forge::new();
    let (mut root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    forge.write("roles/base/x", "x");
    forge.commit(Some("bob"), "bob");
    root.bans.push(forge.fingerprint("bob"));
    assert_eq!(node.refusal(&root, Some(&accepted)).reason, reason::BANNED_KEY);
}

/// A4
#[test]
fn trust_and_identity_change_only_with_role_root() {
    let forge = Forge::new();
    forge.write("trust/policy.toml", &POLICY.replace("roles/**", "**"));
    forge.commit(Some("alice"), "bob may more");
    forge.write("trust/policy.toml", &POLICY.replace("[\"deploy\"]", "[\"deploy\", \"root\"]"));
    let bad = forge.commit(Some("bob"), "bob may all");
    let refusal = refused(&forge, reason::ROOT_REQUIRED, &bad);
    assert!(refusal.rule.contains("(alice@example.org, carol@example.org)"), "{refusal}");

    for path in ["fleet.toml", "trust/extra", "trust/openpgp/x.asc"] {
        let forge = Forge::new();
        forge.write(path, &format!("{FLEET}# x\n"));
        let bad = forge.commit(Some("bob"), "touch");
        refused(&forge, reason::ROOT_REQUIRED, &bad);
    }
}

/// A37
#[test]
fn a_scoped_key_stays_in_its_paths() {
    let forge = Forge::new();
    forge.write("roles/base/x", "x");
    forge.write("environments/production/variables.toml", "");
    let bad = forge.commit(Some("bob"), "both");
    let refusal = refused(&forge, reason::SCOPE, &bad);
    assert!(refusal.rule.starts_with("environments/production/variables.toml is not in the paths of bob"), "{refusal}");

    // Moving a file out changes both ends.
    let forge = Forge::new();
    forge.git(&["mv", "roles/base/role.toml", "moved.toml"]);
    let bad = forge.commit(Some("bob"), "move");
    refused(&forge, reason::SCOPE, &bad);

    // Root alone is not deploy.
    let forge = Forge::new();
    forge.write("roles/base/x", "x");
    let bad = forge.commit(Some("carol"), "root deploys");
    refused(&forge, reason::SCOPE, &bad);
}

/// A7: never "no rule, so everything is allowed".
#[test]
fn trust_cannot_be_removed_emptied_or_garbled() {
    type Damage = fn(&Forge);
    let cases: [(&str, &str, Damage); 18] = [
        ("removed", "allowed_signers is missing", |forge| std::fs::remove_dir_all(forge.work.join("trust")).unwrap()),
        ("a file in its place", "allowed_signers is missing", |forge| {
            std::fs::remove_dir_all(forge.work.join("trust")).unwrap();
            forge.write("trust", "x");
        }),
        ("signers deleted", "allowed_signers is missing", |forge| {
            std::fs::remove_file(forge.work.join("trust/allowed_signers")).unwrap();
        }),
        ("signers renamed", "allowed_signers is missing", |forge| {
            _ = forge.git(&["mv", "trust/allowed_signers", "trust/Allowed_Signers"]);
        }),
        ("signers emptied", "no key", |forge| forge.write("trust/allowed_signers", "")),
        ("signers malformed", "line 1: ", |forge| forge.write("trust/allowed_signers", "alice@example.org\n")),
        ("signers no text", "not UTF-8", |forge| {
            std::fs::write(forge.work.join("trust/allowed_signers"), b"\xff\xfe").unwrap();
        }),
        ("signers of 10 MB", "larger than 1048576 bytes", |forge| {
            let signers = forge.signers(&["alice"]);
            forge.write("trust/allowed_signers", &format!("{signers}#{}\n", "x".repeat(10 << 20)));
        }),
        ("signers a folder", "allowed_signers is missing", |forge| {
            std::fs::remove_file(forge.work.join("trust/allowed_signers")).unwrap();
            forge.write("trust/allowed_signers/alice", &forge.signers(&["alice"]));
        }),
        ("signers a symlink", "not a regular file", |forge| {
            forge.git(&["mv", "trust/allowed_signers", "signers"]);
            std::os::unix::fs::symlink("../signers", forge.work.join("trust/allowed_signers")).unwrap();
        }),
        ("policy deleted", "policy.toml is missing", |forge| {
            std::fs::remove_file(forge.work.join("trust/policy.toml")).unwrap();
        }),
        ("policy emptied", "no key", |forge| forge.write("trust/policy.toml", "")),
        ("policy garbled", "trust/policy.toml: ", |forge| forge.write("trust/policy.toml", "[principals")),
        ("unknown key in policy", "trust/policy.toml: ", |forge| {
            forge.write("trust/policy.toml", &format!("{POLICY}\nx = 1\n"));
        }),
        ("no root left", "no key", |forge| {
            forge.write("trust/policy.toml", &POLICY.replace("\"root\"", "\"freshness\""));
        }),
        ("every root key banned", "no key that is not banned", |forge| {
            let keys = ["alice", "carol"].map(|name| format!("\"{}\"", forge.fingerprint(name))).join(", ");
            forge.write("trust/policy.toml", &format!("{POLICY}[banned]\nkeys = [{keys}]\n"));
        }),
        ("policy too large", "larger than 1048576 bytes", |forge| {
            forge.write("trust/policy.toml", &format!("{POLICY}#{}\n", "x".repeat(1 << 20)));
        }),
        ("policy a symlink", "not a regular file", |forge| {
            forge.git(&["mv", "trust/policy.toml", "policy.toml"]);
            std::os::unix::fs::symlink("../policy.toml", forge.work.join("trust/policy.toml")).unwrap();
        }),
    ];
    for (what, says, damage) in cases {
        let forge = Forge::new();
        damage(&forge);
        let bad = forge.commit(Some("alice"), what);
        let refusal = refused(&forge, reason::TRUST_REMOVED, &bad);
        assert!(refusal.rule.contains(says), "{what}: {refusal}");
    }
}

/// A8
#[test]
fn an_older_tip_is_a_rollback_also_when_the_cache_is_lost() {
    let forge = Forge::new();
    let old = forge.commit(Some("alice"), "old");
    forge.commit(Some("alice"), "new");
    let (root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    forge.git(&["reset", "-q", "--hard", &old]);
    let refusal = node.refusal(&root, Some(&accepted));
    assert_eq!((refusal.reason, refusal.commit.as_str()), (reason::ROLLBACK, old.as_str()));

    let (state, cache) = (node.state.clone(), node.cache.clone());
    drop(node);
    std::fs::remove_dir_all(&cache).unwrap();
    forge.git(&["-c", "gc.reflogExpire=now", "-c", "gc.pruneExpire=now", "gc", "-q", "--prune=now"]);
    let mut node = forge::Node::open(state, cache);
    assert_eq!(node.refusal(&root, Some(&accepted)).reason, reason::ROLLBACK);
}

/// A40: nothing is not a state to converge to.
#[test]
fn an_empty_repository_or_a_deleted_branch_is_no_source() {
    let forge = Forge::new();
    let (root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    forge.git(&["switch", "-q", "--detach"]);
    forge.git(&["branch", "-q", "-D", "main"]);
    let empty = forge.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    forge.git(&["init", "-q", "--bare", empty.to_str().unwrap()]);
    forge.git(&["branch", "-q", "main"]);
    let mut elsewhere = forge.root_at(&[&forge.remote_table(&format!("file://{}", empty.display()))]);
    elsewhere.introduction = root.introduction.clone();
    forge.git(&["branch", "-q", "-D", "main"]);
    for root in [&root, &elsewhere] {
        let error = node.verify(root, Some(&accepted)).unwrap_err();
        assert_eq!(error.reason(), reason::SOURCE_UNREACHABLE, "{error}");
        assert!(node.repository.resume(root, &accepted).is_some());
    }
}

/// A tag is signed for another purpose than a commit, and lifts nothing: a branch is a commit.
#[test]
fn a_branch_that_is_a_tag_is_refused_by_name() {
    let forge = Forge::new();
    let (root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    forge.write("roles/base/x", "x");
    forge.commit(Some("alice"), "two");
    let signing = format!("user.signingkey={}", forge.key("alice").display());
    let message = "v1\n\nConverger-Allow: downgrade kafka";
    forge.git(&["-c", "gpg.format=ssh", "-c", &signing, "tag", "-s", "-m", message, "v1"]);
    let commit = forge.head();
    let verified = node.verify(&root, Some(&accepted)).unwrap();
    assert_eq!((verified.commit().as_str(), verified.allowances().count()), (commit.as_str(), 0));

    // git itself keeps a branch from being a tag; a forge need not.
    let tag = forge.revision("v1^{tag}");
    std::fs::write(forge.work.join(".git/refs/heads/main"), format!("{tag}\n")).unwrap();
    let error = node.verify(&root, Some(&accepted)).unwrap_err();
    assert_eq!(error.reason(), reason::MALFORMED_COMMIT, "{error}");
    assert!(error.to_string().contains(&format!("{tag} is no commit")), "{error}");
}

/// A30: what is configured stays a name, whatever it looks like.
#[test]
fn a_branch_is_the_full_name_of_one_and_no_option() {
    let forge = Forge::new();
    let first = forge.head();
    let parse = |branch: &str| {
        let text = format!(
            "fleet = \"test\"\nref = \"{branch}\"\nintroduction = {{ commit = \"{first}\", signer = \"{}\", seq = 1 }}\n{}",
            forge.fingerprint("alice"),
            forge.remote_table(&forge.url())
        );
        converger::settings::TrustRoot::parse(&text, &forge.dir.path().join("trust.toml"))
    };
    for branch in [
        "--upload-pack=reboot",
        "refs/heads/--upload-pack=reboot",
        "refs/heads/-x",
        "refs/heads/../../config",
        "refs/heads/a b",
        "refs/heads/*",
        "refs/heads/a:refs/heads/b",
        "+refs/heads/main",
        "refs/tags/v1",
        "refs/heads/",
        "HEAD",
        &first,
    ] {
        assert!(parse(branch).is_err(), "{branch}");
    }
    // A branch that looks like a commit is asked for as a branch.
    let branch = "refs/heads/0123456789012345678901234567890123456789";
    forge.git(&["update-ref", branch, &first]);
    assert_eq!(forge.node().verify(&parse(branch).unwrap(), None).unwrap().commit().as_str(), first);
    // A file with such a name is a file.
    forge.write("roles/base/--upload-pack=reboot", "x");
    forge.commit(Some("bob"), "odd name");
    assert_eq!(forge.node().verify(&forge.root(), None).unwrap().seq(), 2);
}

/// A9, A40
#[test]
fn a_forced_sibling_and_an_orphan_do_not_descend() {
    let forge = Forge::new();
    let base = forge.head();
    forge.commit(Some("alice"), "one");
    let (root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    forge.git(&["reset", "-q", "--hard", &base]);
    forge.commit(Some("alice"), "other");
    assert_eq!(node.refusal(&root, Some(&accepted)).reason, reason::NOT_DESCENDANT);
    forge.git(&["checkout", "-q", "--orphan", "fresh"]);
    forge.commit(Some("alice"), "orphan");
    forge.git(&["branch", "-q", "-M", "fresh", "main"]);
    assert_eq!(node.refusal(&root, Some(&accepted)).reason, reason::NOT_DESCENDANT);
}

#[test]
fn a_foxtrot_merge_is_told_from_a_fork() {
    let forge = Forge::new();
    forge.git(&["switch", "-q", "-c", "feature"]);
    forge.commit(Some("alice"), "feature");
    forge.git(&["switch", "-q", "main"]);
    forge.commit(Some("alice"), "main");
    let (root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    forge.git(&["switch", "-q", "feature"]);
    forge.signing(Some("alice"), &["merge", "-q", "--no-ff", "-m", "wrong way round", "main"]);
    forge.git(&["branch", "-f", "main", "feature"]);
    assert_eq!(node.refusal(&root, Some(&accepted)).reason, reason::FOXTROT);
}

fn unsigned(raw: &str) -> String {
    let start = raw.find("gpgsig ").unwrap();
    let end = raw.find("-----END SSH SIGNATURE-----\n").unwrap() + "-----END SSH SIGNATURE-----\n".len();
    format!("{}{}", &raw[..start], &raw[end..])
}

fn with_signature(payload: &str, armor: &str) -> String {
    let header = format!("gpgsig {}", armor.trim_end().replace('\n', "\n "));
    payload.replacen("\n\n", &format!("\n{header}\n\n"), 1)
}

/// A16
#[test]
fn a_signature_for_another_purpose_or_content_is_none() {
    let forge = Forge::new();
    forge.commit(Some("alice"), "good");
    let payload = unsigned(&forge.raw("HEAD"));
    // The way of putting a signature in is right: git's own check and ours take it.
    let good = with_signature(&payload, &forge.sign(&payload, "alice", "git"));
    assert_eq!(good, forge.raw("HEAD"));

    let other = with_signature(&payload, &forge.sign(&payload, "alice", "file"));
    let id = forge.raw_commit(other.as_bytes());
    assert!(refused(&forge, reason::BAD_SIGNATURE, &id).rule.contains("\"file\""));

    let forge = Forge::new();
    forge.commit(Some("alice"), "good");
    let forged = forge.raw("HEAD").replace("\n\ngood", "\n\nevil");
    let id = forge.raw_commit(forged.as_bytes());
    refused(&forge, reason::BAD_SIGNATURE, &id);
}

#[test]
fn a_rewrapped_signature_is_refused_and_does_not_freeze_the_node() {
    let forge = Forge::new();
    let good = forge.commit(Some("alice"), "good");
    let raw = forge.raw("HEAD");
    let payload = unsigned(&raw);
    let armor = forge.sign(&payload, "alice", "git");
    let body: String = armor.lines().filter(|line| !line.starts_with("-----")).collect();
    let lines: Vec<&str> = body.as_bytes().chunks(40).map(|chunk| std::str::from_utf8(chunk).unwrap()).collect();
    let wrapped = format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"));
    let header = |armor: &str| format!("gpgsig {}", armor.trim_end_matches('\n').replace('\n', "\n "));
    let rewritten = [wrapped, armor.replace('\n', "\r\n"), format!("{armor} \n ")];
    let mut twin = String::new();
    for armor in rewritten {
        let raw = payload.replacen("\n\n", &format!("\n{}\n\n", header(&armor)), 1);
        twin = forge.raw_commit(raw.as_bytes());
        assert_ne!(good, twin);
        refused(&forge, reason::BAD_SIGNATURE, &twin);
        for node in ["node", "fresh"] {
            std::fs::remove_dir_all(forge.dir.path().join(node)).unwrap();
        }
    }

    // The twin of what was accepted is the same commit, and children of either are accepted.
    let (root, mut node) = (forge.root(), forge::Node::below(&forge.dir.path().join("third")));
    forge.git(&["update-ref", "refs/heads/main", &good]);
    let accepted = node.accept(&root);
    forge.git(&["update-ref", "refs/heads/main", &twin]);
    let same = node.verify(&root, Some(&accepted)).unwrap();
    assert_eq!((same.accepted(), same.new_commits().len()), (&accepted, 0));
    forge.commit(Some("alice"), "child of the twin");
    assert_eq!(node.verify(&root, Some(&accepted)).unwrap().seq(), accepted.seq + 1);
}

#[test]
fn a_second_signature_header_makes_a_commit_malformed() {
    let forge = Forge::new();
    forge.commit(Some("alice"), "good");
    let raw = forge.raw("HEAD");
    let payload = unsigned(&raw);
    let twice = with_signature(&raw, &forge.sign(&payload, "mallory", "git"));
    let id = forge.raw_commit(twice.as_bytes());
    refused(&forge, reason::MALFORMED_COMMIT, &id);
}

/// Another encoding would let one message be read in two ways.
#[test]
fn a_commit_in_another_encoding_is_malformed() {
    let forge = Forge::new();
    let bad = forge
        .signing(Some("alice"), &["-c", "i18n.commitEncoding=ISO-8859-1", "commit", "-q", "--allow-empty", "-m", "x"]);
    assert!(forge.raw("HEAD").contains("\nencoding ISO-8859-1\n"));
    refused(&forge, reason::MALFORMED_COMMIT, &bad);
}

/// A41
#[test]
fn another_fleet_is_refused_even_by_the_same_people() {
    let forge = Forge::new();
    let mut root = forge.root();
    root.fleet = "other".into();
    assert_eq!(forge.node().refusal(&root, None).reason, reason::FLEET_MISMATCH);

    forge.write("fleet.toml", &FLEET.replace("\"test\"", "\"other\""));
    let bad = forge.commit(Some("alice"), "renamed");
    refused(&forge, reason::FLEET_MISMATCH, &bad);
    let forge = Forge::new();
    std::fs::remove_file(forge.work.join("fleet.toml")).unwrap();
    let bad = forge.commit(Some("alice"), "no identity");
    refused(&forge, reason::FLEET_MISMATCH, &bad);
}

#[test]
fn the_introduction_must_be_there_and_signed_by_whom_trust_toml_says() {
    let forge = Forge::new();
    let other = Forge::new();
    let (mut root, mut node) = (forge.root(), forge.node());
    root.introduction.commit = other.root().introduction.commit;
    assert_eq!(node.refusal(&root, None).reason, reason::INTRODUCTION_MISSING);

    let mut root = forge.root();
    root.introduction.signer = forge.fingerprint("bob");
    let refusal = node.refusal(&root, None);
    assert_eq!(refusal.reason, reason::INTRODUCTION_MISSING);
    assert_eq!(refusal.signer, Some(forge.fingerprint("alice")));
    assert_eq!(refusal.last_good, None);
}

#[test]
fn a_new_introduction_resets_the_floor_and_a_forged_one_does_not() {
    let forge = Forge::new();
    let base = forge.head();
    forge.commit(Some("alice"), "to be rewound");
    let (root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    forge.git(&["reset", "-q", "--hard", &base]);
    let other = forge.commit(Some("alice"), "other");
    assert_eq!(node.refusal(&root, Some(&accepted)).reason, reason::NOT_DESCENDANT);
    let mut again = forge.root();
    again.introduction.commit = other.as_str().into();
    again.introduction.seq = 7;
    let verified = node.verify(&again, Some(&accepted)).unwrap();
    assert_eq!((verified.seq(), verified.commit().as_str()), (7, other.as_str()));
}

/// A13
#[test]
fn dates_decide_nothing() {
    let forge = Forge::new();
    forge.git(&["config", "user.name", "x"]);
    forge.commit_with(Some("alice"), &["--allow-empty", "-m", "long ago", "--date", "2001-01-01T00:00:00Z"]);
    assert_eq!(forge.node().verify(&forge.root(), None).unwrap().seq(), 2);
}

/// `string` of RFC 4251.
fn wire(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| [&(part.len() as u32).to_be_bytes()[..], part].concat()).collect()
}

fn openssl(args: &[&str]) -> Vec<u8> {
    let output = std::process::Command::new("openssl").args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn armored(fields: &[u8], forge: &Forge) -> String {
    let body = base64(forge, &[&b"SSHSIG"[..], &1u32.to_be_bytes(), fields].concat());
    let lines: Vec<&str> = body.as_bytes().chunks(70).map(|chunk| std::str::from_utf8(chunk).unwrap()).collect();
    format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"))
}

fn base64(forge: &Forge, bytes: &[u8]) -> String {
    let file = forge.dir.path().join("encoded");
    std::fs::write(&file, bytes).unwrap();
    String::from_utf8(openssl(&["base64", "-A", "-in", file.to_str().unwrap()])).unwrap()
}

/// A16: SHA-1 under the signature or in it.
#[test]
fn a_good_key_signs_nothing_with_sha_1() {
    let forge = Forge::new();
    forge.keygen("rsa", &["-t", "rsa", "-b", "3072", "-m", "PEM"]);
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "rsa"]));
    let policy = format!("{POLICY}[principals.\"rsa@example.org\"]\nroles = [\"deploy\"]\n");
    forge.write("trust/policy.toml", &policy);
    forge.commit(Some("alice"), "an RSA key");
    forge.commit(Some("alice"), "by hand");
    let payload = unsigned(&forge.raw("HEAD"));
    let at = |name: &str| forge.dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("public"), forge.public("rsa").split(' ').nth(1).unwrap()).unwrap();
    let public = openssl(&["base64", "-d", "-A", "-in", &at("public")]);
    let sign = |inner: &str, outer: &str, kind: &str| {
        std::fs::write(at("payload"), &payload).unwrap();
        let hashed = openssl(&["dgst", &format!("-{inner}"), "-binary", &at("payload")]);
        let to_sign = [&b"SSHSIG"[..], &wire(&[b"git", b"", inner.as_bytes(), &hashed])].concat();
        std::fs::write(at("asked"), to_sign).unwrap();
        let answer = openssl(&["dgst", &format!("-{outer}"), "-sign", &at("key-rsa"), &at("asked")]);
        let signature = wire(&[kind.as_bytes(), &answer]);
        let armor = armored(&wire(&[&public, b"git", b"", inner.as_bytes(), &signature]), &forge);
        forge.raw_commit(with_signature(&payload, &armor).as_bytes())
    };
    for (inner, outer, kind) in
        [("sha512", "sha1", "ssh-rsa"), ("sha512", "sha1", "rsa-sha2-512"), ("sha1", "sha512", "rsa-sha2-512")]
    {
        let bad = sign(inner, outer, kind);
        let refusal = forge.node().refusal(&forge.root(), None);
        assert_eq!((refusal.reason, refusal.commit.as_str()), (reason::BAD_SIGNATURE, bad.as_str()), "{refusal}");
    }
    // Made in the same way with SHA-2 it is good.
    for (digest, kind) in [("sha512", "rsa-sha2-512"), ("sha256", "rsa-sha2-256")] {
        sign("sha512", digest, kind);
        assert_eq!(forge.node().verify(&forge.root(), None).unwrap().seq(), 3);
    }
}

/// What a FIDO2 token would answer, from a key in a file: it signs the application, its flags, a counter, the message.
struct Token<'f> {
    forge: &'f Forge,
    kind: &'static str,
    /// As in `allowed_signers`.
    public: Vec<u8>,
}

impl<'f> Token<'f> {
    fn new(forge: &'f Forge, kind: &'static str) -> Self {
        let mut token = Self { forge, kind, public: Vec::new() };
        let ed25519 = kind.starts_with("sk-ssh-ed25519");
        let how: &[&str] = if ed25519 { &["ed25519"] } else { &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"] };
        let key = token.at("token.pem");
        openssl(&[&["genpkey", "-out", &key, "-algorithm"], how].concat());
        let spki = openssl(&["pkey", "-in", &key, "-pubout", "-outform", "DER"]);
        token.public = if ed25519 {
            wire(&[kind.as_bytes(), &spki[spki.len() - 32..], b"ssh:"])
        } else {
            wire(&[kind.as_bytes(), b"nistp256", &spki[spki.len() - 65..], b"ssh:"])
        };
        token
    }

    fn at(&self, name: &str) -> String {
        self.forge.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn digest(&self, algorithm: &str, bytes: &[u8]) -> Vec<u8> {
        std::fs::write(self.at("digested"), bytes).unwrap();
        openssl(&["dgst", algorithm, "-binary", &self.at("digested")])
    }

    /// The line that lists it.
    fn line(&self) -> String {
        format!("token@example.org {} {}\n", self.kind, base64(self.forge, &self.public))
    }

    fn sign(&self, payload: &str, flags: u8) -> String {
        let hashed = self.digest("-sha512", payload.as_bytes());
        let to_sign = [&b"SSHSIG"[..], &wire(&[b"git", b"", b"sha512", &hashed])].concat();
        let counted = [&[flags][..], &7u32.to_be_bytes()].concat();
        let asked = [self.digest("-sha256", b"ssh:"), counted.clone(), self.digest("-sha256", &to_sign)].concat();
        std::fs::write(self.at("asked"), asked).unwrap();
        let (key, asked) = (self.at("token.pem"), self.at("asked"));
        let answer = if self.kind.starts_with("sk-ssh-ed25519") {
            openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", &key, "-in", &asked])
        } else {
            // DER: a sequence of two integers, which SSH writes in the same way.
            let der = openssl(&["dgst", "-sha256", "-sign", &key, &asked]);
            let r = &der[4..4 + der[3] as usize];
            wire(&[r, &der[4 + r.len() + 2..]])
        };
        let signature = [wire(&[self.kind.as_bytes(), &answer]), counted].concat();
        let fields = wire(&[&self.public, b"git", b"", b"sha512", &signature]);
        armored(&fields, self.forge)
    }
}

/// A16, A39
#[test]
fn a_security_key_signs_only_when_it_was_touched() {
    for kind in ["sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"] {
        let forge = Forge::new();
        let token = Token::new(&forge, kind);
        forge.write("trust/allowed_signers", &(forge.signers(&["alice"]) + &token.line()));
        let policy = format!("{POLICY}[principals.\"token@example.org\"]\nroles = [\"deploy\"]\n");
        forge.write("trust/policy.toml", &policy);
        forge.commit(Some("alice"), "a token");
        forge.commit(Some("alice"), "by hand");
        let payload = unsigned(&forge.raw("HEAD"));
        let sign = |flags| forge.raw_commit(with_signature(&payload, &token.sign(&payload, flags)).as_bytes());
        let untouched = sign(0);
        assert!(refused(&forge, reason::BAD_SIGNATURE, &untouched).rule.contains("nobody touched"));
        sign(1);
        let allowed = format!("gpg.ssh.allowedSignersFile={}/trust/allowed_signers", forge.work.display());
        forge.git(&["-c", "gpg.format=ssh", "-c", &allowed, "verify-commit", "HEAD"]);
        let verified = forge::Node::below(&forge.dir.path().join("touched")).verify(&forge.root(), None).unwrap();
        assert_eq!(signer(verified.acceptance()).principal, "token@example.org");
    }
}
