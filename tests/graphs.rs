//! The histories by which others test their verifiers, rebuilt with our own keys and the real git: those of Guix's
//! `tests/git-authenticate.scm` and of Argo CD's tests of source integrity. Where our verdict is another one, the test says
//! why.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and write files as they like")]

mod forge;

use converger::reason::{self, Reason};
use converger::trust::{Acceptance, Refusal, Verified};
use forge::{Forge, Node, POLICY};

/// Alice alone is listed: the one signer with whom those histories begin.
fn alice_alone() -> Forge {
    let forge = Forge::new();
    forge.write("trust/allowed_signers", &forge.signers(&["alice"]));
    forge.commit(Some("alice"), "zeroth commit");
    forge
}

fn add(forge: &Forge, key: Option<&str>, path: &str, subject: &str) -> String {
    forge.write(path, subject);
    forge.commit(key, subject)
}

/// What a node that begins anew says of main.
fn judged(forge: &Forge) -> Result<Verified, Box<Refusal>> {
    let dir = tempfile::tempdir().unwrap();
    match Node::below(dir.path()).verify(&forge.root(), None) {
        Err(converger::git::GitError::Refused(refusal)) => Err(refusal),
        other => Ok(other.unwrap()),
    }
}

#[track_caller]
fn refused(forge: &Forge, reason: Reason, subject: &str) {
    let refusal = judged(forge).unwrap_err();
    assert_eq!((refusal.reason, refusal.subject.as_str()), (reason, subject), "{refusal}");
}

#[track_caller]
fn accepted(forge: &Forge, subject: &str) -> Verified {
    let verified = judged(forge).unwrap();
    assert_eq!(verified.subject(), subject);
    verified
}

/// Main merged with a branch, signed by somebody or made by a button.
fn merge(forge: &Forge, key: Option<&str>, branch: &str) {
    forge.git(&["switch", "-q", "main"]);
    forge.signing(key, &["merge", "-q", "--no-ff", "-m", "merge", branch]);
}

/// A1
#[test]
fn guix_unsigned_commits_the_first_is_named() {
    let forge = Forge::new();
    add(&forge, None, "roles/a.txt", "first commit");
    add(&forge, None, "roles/b.txt", "second commit");
    refused(&forge, reason::UNSIGNED, "first commit");
}

/// A16
#[test]
fn guix_a_signature_over_sha1_is_none() {
    let forge = Forge::new();
    forge.keygen("rsa", &["-t", "rsa", "-b", "3072", "-m", "PEM"]);
    let line = format!("rsa@example.org {}\n", forge.public("rsa"));
    forge.write("trust/allowed_signers", &(forge.signers(&["alice"]) + &line));
    forge.write("trust/policy.toml", &format!("{POLICY}[principals.\"rsa@example.org\"]\nroles = [\"deploy\"]\n"));
    let listed = forge.commit(Some("alice"), "zeroth commit");

    let file = |name: &str, bytes: &[u8]| {
        let path = forge.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let openssl = |args: &[&str]| {
        let output = std::process::Command::new("openssl").args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let public = forge.public("rsa");
    let public = file("public", format!("{}\n", public.split(' ').nth(1).unwrap()).as_bytes());
    let public = openssl(&["base64", "-d", "-A", "-in", &public]);
    let key = forge.key("rsa");
    // The right one proves that the others are wrong in nothing but their hash.
    let cases: [(&str, &str, &str, bool); 4] = [
        ("sha512", "rsa-sha2-512", "-sha512", true),
        ("sha512", "ssh-rsa", "-sha1", false),
        ("sha1", "rsa-sha2-512", "-sha512", false),
        ("sha1", "ssh-rsa", "-sha1", false),
    ];
    for (hash, algorithm, digest, good) in cases {
        forge.git(&["reset", "-q", "--hard", &listed]);
        add(&forge, None, "roles/a.txt", "first commit");
        let payload = forge.raw("HEAD");
        let sum = openssl(&["dgst", &format!("-{hash}"), "-binary", &file("payload", payload.as_bytes())]);
        let to_sign = [&b"SSHSIG"[..], &wire(&[b"git", b"", hash.as_bytes(), &sum])].concat();
        let made = openssl(&["dgst", digest, "-sign", key.to_str().unwrap(), &file("to-sign", &to_sign)]);
        let fields = wire(&[&public, b"git", b"", hash.as_bytes(), &wire(&[algorithm.as_bytes(), &made])]);
        let blob = [&b"SSHSIG\0\0\0\x01"[..], &fields].concat();
        let body = String::from_utf8(openssl(&["base64", "-A", "-in", &file("blob", &blob)])).unwrap();
        let lines: Vec<&str> = body.as_bytes().chunks(70).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let armor = format!("-----BEGIN SSH SIGNATURE-----\n {}\n -----END SSH SIGNATURE-----", lines.join("\n "));
        forge.raw_commit(payload.replacen("\n\n", &format!("\ngpgsig {armor}\n\n"), 1).as_bytes());
        match good {
            true => drop(accepted(&forge, "first commit")),
            false => refused(&forge, reason::BAD_SIGNATURE, "first commit"),
        }
    }
}

/// `string` of RFC 4251.
fn wire(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| [&(part.len() as u32).to_be_bytes()[..], part].concat()).collect()
}

/// Guix takes the default authorisations from its caller. Here the introduction is where authority begins: what is older
/// needs no trust/ and is not looked at, and an introduction without one is none.
#[test]
fn guix_default_authorizations_begin_with_the_introduction() {
    let forge = Forge::new();
    let first = forge.head();
    forge.git(&["rm", "-rq", "trust"]);
    let bare = forge.commit(Some("alice"), "no authorisations");
    forge.git(&["checkout", "-q", &first, "--", "trust"]);
    let listed = forge.commit(Some("alice"), "authorisations");
    add(&forge, Some("bob"), "roles/a.txt", "first commit");
    let mut root = forge.root();
    root.introduction.commit = listed.as_str().into();
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Node::below(&dir.path().join("a")).verify(&root, None).unwrap().subject(), "first commit");
    root.introduction.commit = bare.as_str().into();
    assert_eq!(Node::below(&dir.path().join("b")).refusal(&root, None).reason, reason::TRUST_REMOVED);
}

/// A7. Guix accepts the commit that empties the file and refuses what follows; we refuse the commit itself.
#[test]
fn guix_authorizations_emptied() {
    let forge = alice_alone();
    add(&forge, Some("alice"), "roles/a.txt", "first commit");
    accepted(&forge, "first commit");
    forge.write("trust/allowed_signers", "");
    forge.commit(Some("alice"), "second commit");
    add(&forge, Some("alice"), "roles/b.txt", "third commit");
    refused(&forge, reason::TRUST_REMOVED, "second commit");
}

/// A7
#[test]
fn guix_authorizations_removed() {
    let forge = alice_alone();
    add(&forge, Some("alice"), "roles/a.txt", "first commit");
    accepted(&forge, "first commit");
    forge.git(&["rm", "-rq", "trust"]);
    forge.commit(Some("alice"), "second commit");
    add(&forge, Some("alice"), "roles/b.txt", "third commit");
    refused(&forge, reason::TRUST_REMOVED, "second commit");
}

/// A29. In Guix whoever signs a merge cannot vouch for a side branch; here he does, for the whole of the tree. What nobody
/// signed himself, a forge's merge, needs every commit of the branch signed by a key that is listed.
#[test]
fn guix_unauthorized_merge() {
    let forge = alice_alone();
    add(&forge, Some("alice"), "roles/a.txt", "first commit");
    forge.git(&["switch", "-q", "-c", "devel"]);
    add(&forge, Some("bob"), "roles/devel/1.txt", "first devel commit");
    forge.git(&["switch", "-q", "main"]);
    let second = add(&forge, Some("alice"), "roles/b.txt", "second commit");
    accepted(&forge, "second commit");

    merge(&forge, None, "devel");
    refused(&forge, reason::UNKNOWN_KEY, "first devel commit");

    forge.git(&["reset", "-q", "--hard", &second]);
    merge(&forge, Some("alice"), "devel");
    accepted(&forge, "merge");

    forge.git(&["switch", "-q", "-C", "main", "devel"]);
    refused(&forge, reason::UNKNOWN_KEY, "first devel commit");
}

/// A4
#[test]
fn guix_authorized_merge_brings_a_second_signer() {
    let forge = alice_alone();
    add(&forge, Some("alice"), "roles/a.txt", "first commit");
    forge.git(&["switch", "-q", "-c", "devel"]);
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "bob"]));
    forge.commit(Some("alice"), "first devel commit");
    add(&forge, Some("bob"), "roles/devel/2.txt", "second devel commit");
    forge.git(&["switch", "-q", "main"]);
    let second = add(&forge, Some("alice"), "roles/b.txt", "second commit");

    merge(&forge, Some("alice"), "devel");
    add(&forge, Some("bob"), "roles/c.txt", "third commit");
    let verified = accepted(&forge, "third commit");
    let by = verified.new_commits().iter().map(|commit| match &commit.acceptance {
        Acceptance::Signed(signer) => signer.principal.as_str(),
        Acceptance::Recomputed { .. } => "nobody",
    });
    let [alice, bob] = ["alice@example.org", "bob@example.org"];
    assert_eq!(by.collect::<Vec<_>>(), [alice, alice, alice, alice, alice, bob]);

    // The new signer cannot merge himself in, and a forge cannot do it for him.
    for (key, reason) in [(Some("bob"), reason::ROOT_REQUIRED), (None, reason::ROOT_REQUIRED)] {
        forge.git(&["reset", "-q", "--hard", &second]);
        merge(&forge, key, "devel");
        refused(&forge, reason, "merge");
    }
}

/// A3. Argo CD's "head" mode looks at T only; "strict" at everything below it.
#[test]
fn argo_the_tip_does_not_speak_for_what_is_below_it() {
    let forge = Forge::new();
    add(&forge, Some("alice"), "roles/1", "signed");
    add(&forge, None, "roles/2", "unsigned");
    add(&forge, Some("alice"), "roles/3", "T");
    refused(&forge, reason::UNSIGNED, "unsigned");
}

/// Root, one commit left, one right by another key, their merge, one on top: all of it by keys that are listed.
fn signed_and_merged(button: bool) -> Forge {
    let forge = Forge::new();
    forge.git(&["switch", "-q", "-c", "left"]);
    add(&forge, Some("bob"), "roles/left", "left");
    forge.git(&["switch", "-q", "main"]);
    add(&forge, Some("alice"), "roles/right", "right");
    merge(&forge, (!button).then_some("alice"), "left");
    add(&forge, Some("alice"), "roles/main", "main");
    forge
}

#[test]
fn argo_signed_and_merged() {
    accepted(&signed_and_merged(false), "main");
    accepted(&signed_and_merged(true), "main");
}

/// A5. Argo CD then refuses all that the key ever signed. Here a key ends with the commit that bans it, and what a node
/// accepted before stays good; a node that bans a key by itself takes nothing more of it, however old.
#[test]
fn argo_a_revoked_key_ends() {
    let forge = signed_and_merged(true);
    let (root, mut node) = (forge.root(), forge.node());
    let before = node.accept(&root);
    let banned = format!("{POLICY}[banned]\nkeys = [\"{}\"]\n", forge.fingerprint("bob"));
    forge.write("trust/policy.toml", &banned);
    forge.commit(Some("alice"), "ban");
    accepted(&forge, "ban");
    add(&forge, Some("bob"), "roles/late", "late");
    refused(&forge, reason::BANNED_KEY, "late");

    forge.git(&["reset", "-q", "--hard", "HEAD~1"]);
    let mut stricter = root.clone();
    stricter.bans.push(forge.fingerprint("bob"));
    assert_eq!(node.verify(&stricter, Some(&before)).unwrap().subject(), "ban");
    let dir = tempfile::tempdir().unwrap();
    let refusal = Node::below(dir.path()).refusal(&stricter, None);
    assert_eq!((refusal.reason, refusal.subject.as_str()), (reason::BANNED_KEY, "left"));
}

/// Argo CD lets a signed commit with a trailer vouch for all history before it. Here a trailer vouches for nothing; what
/// mends is a signed merge that leaves the bad part on its second parent, or a new introduction.
#[test]
fn argo_a_seal_vouches_for_nothing_here() {
    let forge = Forge::new();
    let signed = add(&forge, Some("alice"), "roles/1", "signed");
    add(&forge, None, "roles/2", "unsigned");
    add(&forge, Some("alice"), "roles/3", "again signed");
    let seal = forge.commit(Some("alice"), "seal\n\nreviewed\n\nArgocd-gpg-seal: reviewed");
    add(&forge, Some("alice"), "roles/4", "after");
    refused(&forge, reason::UNSIGNED, "unsigned");

    let mut root = forge.root();
    root.introduction.commit = seal.as_str().into();
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Node::below(dir.path()).verify(&root, None).unwrap().subject(), "after");

    forge.git(&["switch", "-q", "-c", "mend", &signed]);
    forge.signing(Some("alice"), &["merge", "-q", "-s", "ours", "--no-ff", "-m", "mended", "main"]);
    forge.git(&["branch", "-q", "-f", "main", "mend"]);
    accepted(&forge, "mended");
}

#[test]
fn argo_an_unsigned_seal_vouches_for_nothing_anywhere() {
    let forge = Forge::new();
    add(&forge, None, "roles/1", "unsigned past");
    forge.commit(None, "unsigned seal\n\nreviewed\n\nArgocd-gpg-seal: reviewed");
    add(&forge, Some("alice"), "roles/2", "signed");
    refused(&forge, reason::UNSIGNED, "unsigned past");
}

/// In Argo CD a signed tag stands for its commit. Here a branch is followed, and a tag on it says nothing, whoever made it.
#[test]
fn argo_a_signed_tag_does_not_sign_its_commit() {
    let forge = Forge::new();
    add(&forge, None, "roles/1", "unsigned");
    let key = format!("user.signingkey={}", forge.key("alice").display());
    forge.git(&["-c", "gpg.format=ssh", "-c", &key, "tag", "-s", "-m", "signed tag", "1.0"]);
    refused(&forge, reason::UNSIGNED, "unsigned");
    // An unsigned one does no harm either.
    forge.git(&["reset", "-q", "--hard", "HEAD~1"]);
    add(&forge, Some("alice"), "roles/1", "signed");
    forge.git(&["tag", "-a", "-m", "unsigned tag", "2.0"]);
    accepted(&forge, "signed");
}

/// A37. A rename carries an edit to where its author may change nothing, by way of a forge's "update branch"; that somebody
/// else edits the same file there afterwards does not make it his.
#[test]
fn an_update_carries_no_edit_out_of_its_signers_scope() {
    let forge = Forge::new();
    let text = |edits: &[usize]| -> String {
        let line = |n| if edits.contains(&n) { format!("edited {n}\n") } else { format!("line {n} of a long file\n") };
        (0..40).map(line).collect()
    };
    forge.write("roles/base/big", &text(&[]));
    forge.commit(Some("alice"), "a file");
    forge.git(&["switch", "-q", "-c", "side"]);
    forge.write("roles/base/big", &text(&[5]));
    forge.commit(Some("bob"), "within roles/");
    forge.git(&["switch", "-q", "main"]);
    std::fs::create_dir_all(forge.work.join("environments")).unwrap();
    forge.git(&["mv", "roles/base/big", "environments/big"]);
    forge.commit(Some("alice"), "move");
    forge.git(&["switch", "-q", "side"]);
    forge.signing(None, &["merge", "-q", "--no-ff", "-m", "update branch", "main"]);
    assert_eq!(std::fs::read_to_string(forge.work.join("environments/big")).unwrap(), text(&[5]));
    forge.write("environments/big", &text(&[5, 30]));
    forge.commit(Some("alice"), "edit there");
    merge(&forge, None, "side");
    refused(&forge, reason::SCOPE, "update branch");
}
