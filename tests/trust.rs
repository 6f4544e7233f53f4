//! The chain rule against histories that the real git and ssh-keygen made.

#![allow(clippy::unwrap_used, clippy::panic)] // what fails here fails the test
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like

mod forge;

use converger::reason::{self, Reason};
use converger::trust::Acceptance;
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
    let signers: Vec<String> = verified
        .new_commits()
        .iter()
        .map(|commit| match &commit.acceptance {
            Acceptance::Signed(signer) => signer.principal.clone(),
        })
        .collect();
    assert_eq!(signers, ["alice@example.org", "bob@example.org", "carol@example.org"]);
    assert_eq!(verified.signer().fingerprint, forge.fingerprint("carol"));

    let accepted = verified.accepted().clone();
    node.repository.admit(&verified).unwrap();
    forge.write("roles/base/motd", "2");
    forge.commit(Some("alice"), "again\n\nConverger-Allow: downgrade kafka");
    let next = node.verify(&root, Some(&accepted)).unwrap();
    assert_eq!((next.seq(), next.new_commits().len()), (4, 1));
    assert_eq!(next.allowances().map(|lifted| lifted.object.as_str()).collect::<Vec<_>>(), ["kafka"]);
}

#[test]
fn every_kind_of_key_that_is_accepted_signs() {
    let forge = Forge::new();
    let kinds: [(&str, &[&str]); 4] = [
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa", &["-t", "rsa", "-b", "3072"]),
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
    }
    assert_eq!(forge.node().verify(&forge.root(), None).unwrap().seq(), 6);
}

#[test]
fn a_weak_key_cannot_be_listed_and_does_not_sign() {
    let forge = Forge::new();
    forge.keygen("weak", &["-t", "rsa", "-b", "2048"]);
    let commit = forge.commit(Some("weak"), "weak");
    let refusal = refused(&forge, reason::BAD_SIGNATURE, &commit);
    assert!(refusal.rule.contains("2048 bits"), "{refusal}");

    let forge = Forge::new();
    forge.keygen("weak", &["-t", "rsa", "-b", "2048"]);
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "weak"]));
    let commit = forge.commit(Some("alice"), "list it");
    let refusal = refused(&forge, reason::TRUST_REMOVED, &commit);
    assert!(refusal.rule.contains("line 2: an RSA key of 2048 bits"), "{refusal}");
}

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
    assert_eq!((verified.seq(), verified.signer().principal.as_str()), (3, "bob@example.org"));
}

#[test]
fn an_unsigned_merge_is_unsigned() {
    let forge = Forge::new();
    forge.git(&["switch", "-q", "-c", "side"]);
    forge.commit(Some("alice"), "side");
    forge.git(&["switch", "-q", "main"]);
    let merge = forge.signing(None, &["merge", "-q", "--no-ff", "-m", "button", "side"]);
    refused(&forge, reason::UNSIGNED, &merge);
}

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

#[test]
fn a_key_that_nobody_listed_is_unknown_also_to_itself() {
    let forge = Forge::new();
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "mallory"]));
    forge.write("trust/policy.toml", &POLICY.replace("carol", "mallory"));
    let bad = forge.commit(Some("mallory"), "let me in");
    let refusal = refused(&forge, reason::UNKNOWN_KEY, &bad);
    assert_eq!(refusal.signer, Some(forge.fingerprint("mallory")));
}

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

#[test]
fn a_revert_does_not_bring_a_banned_key_back() {
    let forge = Forge::new();
    ban_bob(&forge);
    let revert = forge.signing(Some("alice"), &["revert", "--no-edit", "HEAD"]);
    let refusal = refused(&forge, reason::REAUTHORISES_BANNED_KEY, &revert);
    assert!(refusal.rule.contains(&forge.fingerprint("bob")));
}

#[test]
fn a_banned_key_cannot_be_listed_again_while_the_ban_stays() {
    let forge = Forge::new();
    ban_bob(&forge);
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "bob"]));
    let bad = forge.commit(Some("alice"), "welcome back");
    refused(&forge, reason::REAUTHORISES_BANNED_KEY, &bad);
}

#[test]
fn a_key_that_is_banned_but_still_listed_does_not_sign() {
    let forge = Forge::new();
    forge.write("trust/policy.toml", &format!("{POLICY}[banned]\nkeys = [\"{}\"]\n", forge.fingerprint("bob")));
    forge.commit(Some("alice"), "ban bob");
    forge.write("roles/base/x", "x");
    let bad = forge.commit(Some("bob"), "still here");
    refused(&forge, reason::BANNED_KEY, &bad);
}

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

#[test]
fn trust_cannot_be_removed_emptied_or_garbled() {
    type Damage = fn(&Forge);
    let cases: [(&str, Damage); 8] = [
        ("removed", |forge| std::fs::remove_dir_all(forge.work.join("trust")).unwrap()),
        ("signers emptied", |forge| forge.write("trust/allowed_signers", "")),
        ("policy emptied", |forge| forge.write("trust/policy.toml", "")),
        ("policy garbled", |forge| forge.write("trust/policy.toml", "[principals")),
        ("unknown key in policy", |forge| forge.write("trust/policy.toml", &format!("{POLICY}\nx = 1\n"))),
        ("no root left", |forge| forge.write("trust/policy.toml", &POLICY.replace("\"root\"", "\"freshness\""))),
        ("too large", |forge| forge.write("trust/policy.toml", &format!("{POLICY}#{}\n", "x".repeat(1 << 20)))),
        ("symlink", |forge| {
            forge.git(&["mv", "trust/policy.toml", "policy.toml"]);
            std::os::unix::fs::symlink("../policy.toml", forge.work.join("trust/policy.toml")).unwrap();
        }),
    ];
    for (what, damage) in cases {
        let forge = Forge::new();
        damage(&forge);
        let bad = forge.commit(Some("alice"), what);
        refused(&forge, reason::TRUST_REMOVED, &bad);
    }
}

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
    let repository = converger::git::Repository::open(&state, &cache).unwrap();
    let mut node = forge::Node { repository, state, cache };
    assert_eq!(node.refusal(&root, Some(&accepted)).reason, reason::ROLLBACK);
}

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

/// What a FIDO2 token would answer, from a key in a file: it signs the application, its flags, a counter, the message.
#[test]
fn a_security_key_signs_only_when_it_was_touched() {
    const KIND: &[u8] = b"sk-ssh-ed25519@openssh.com";
    let forge = Forge::new();
    let at = |name: &str| forge.dir.path().join(name).to_str().unwrap().to_owned();
    let digest = |algorithm: &str, bytes: &[u8]| {
        std::fs::write(at("digested"), bytes).unwrap();
        openssl(&["dgst", algorithm, "-binary", &at("digested")])
    };
    let base64 = |bytes: &[u8]| {
        std::fs::write(at("encoded"), bytes).unwrap();
        String::from_utf8(openssl(&["base64", "-A", "-in", &at("encoded")])).unwrap()
    };
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", &at("token.pem")]);
    let spki = openssl(&["pkey", "-in", &at("token.pem"), "-pubout", "-outform", "DER"]);
    let public = wire(&[KIND, &spki[spki.len() - 32..], b"ssh:"]);
    let line = format!("token@example.org sk-ssh-ed25519@openssh.com {}\n", base64(&public));
    forge.write("trust/allowed_signers", &(forge.signers(&["alice"]) + &line));
    forge.write("trust/policy.toml", &format!("{POLICY}[principals.\"token@example.org\"]\nroles = [\"deploy\"]\n"));
    forge.commit(Some("alice"), "a token");
    forge.commit(Some("alice"), "by hand");
    let payload = unsigned(&forge.raw("HEAD"));

    let sign = |flags: u8| {
        let hashed = digest("-sha512", payload.as_bytes());
        let to_sign = [&b"SSHSIG"[..], &wire(&[b"git", b"", b"sha512", &hashed])].concat();
        let counted = [&[flags][..], &7u32.to_be_bytes()].concat();
        let asked = [digest("-sha256", b"ssh:"), counted.clone(), digest("-sha256", &to_sign)].concat();
        std::fs::write(at("asked"), asked).unwrap();
        let answer = openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", &at("token.pem"), "-in", &at("asked")]);
        let signature = [wire(&[KIND, &answer]), counted].concat();
        let fields = wire(&[&public, b"git", b"", b"sha512", &signature]);
        let body = base64(&[&b"SSHSIG"[..], &1u32.to_be_bytes(), &fields].concat());
        let lines: Vec<&str> = body.as_bytes().chunks(70).map(|chunk| std::str::from_utf8(chunk).unwrap()).collect();
        let armor = format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"));
        forge.raw_commit(with_signature(&payload, &armor).as_bytes())
    };
    let untouched = sign(0);
    assert!(refused(&forge, reason::BAD_SIGNATURE, &untouched).rule.contains("nobody touched"));
    sign(1);
    let allowed = format!("gpg.ssh.allowedSignersFile={}/trust/allowed_signers", forge.work.display());
    forge.git(&["-c", "gpg.format=ssh", "-c", &allowed, "verify-commit", "HEAD"]);
    let verified = forge::Node::below(&forge.dir.path().join("touched")).verify(&forge.root(), None).unwrap();
    assert_eq!(verified.signer().principal, "token@example.org");
}
