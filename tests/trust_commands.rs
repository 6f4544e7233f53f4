//! `converger trust` as people and CI run it, over histories made with the real git and ssh-keygen.
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]

mod forge;

use std::process::Command;

use forge::{Forge, POLICY, hermetic};

struct Said {
    code: i32,
    out: String,
    all: String,
}

impl Said {
    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}", self.all);
        self
    }

    #[track_caller]
    fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.all.contains(word), "{word:?} is not in:\n{}", self.all);
        }
        self
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

fn trust(forge: &Forge, args: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_converger"));
    let output = hermetic(&mut command).current_dir(&forge.work).arg("trust").args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    Said { code: output.status.code().unwrap_or(-1), all: format!("{out}{err}"), out }
}

/// The arguments that name the first commit, signed by alice, and those of `more`.
fn begun<'a>(forge: &Forge, verb: &'a str, more: &[&'a str]) -> Vec<String> {
    let first = forge.git(&["rev-list", "--max-parents=0", "HEAD"]);
    let signer = forge.fingerprint("alice");
    let mut args = vec![verb.to_owned(), "--introduction".to_owned(), first, "--signer".to_owned(), signer];
    args.extend(more.iter().map(|word| (*word).to_owned()));
    args
}

fn verify(forge: &Forge, more: &[&str]) -> Said {
    let args = begun(forge, "verify", more);
    trust(forge, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn short(id: &str) -> &str {
    &id[..7]
}

#[test]
fn verify_counts_what_it_verified_and_from_where() {
    let forge = Forge::new();
    let first = forge.head();
    forge.write("roles/base/motd", "hello\n");
    let second = forge.commit(Some("bob"), "a motd");
    let line = format!(
        "2 commits verified, from {} (alice@example.org) to {} (bob@example.org), seq 2\n",
        short(&first),
        short(&second)
    );
    assert_eq!(verify(&forge, &[]).exits(0).out, line);
    verify(&forge, &[&first]).exits(0).says(&["1 commit verified", "seq 1"]);
    let said = verify(&forge, &["--json"]).exits(0).json();
    assert_eq!(said["verified"], 2);
    assert_eq!((said["fleet"].as_str(), said["seq"].as_u64()), (Some("test"), Some(2)));
    assert_eq!(said["tip"]["commit"], second);
    assert_eq!(said["tip"]["acceptance"]["principal"], "bob@example.org");
    assert!(said["refused"].is_null());
}

#[test]
fn a_refusal_names_the_commit_the_rule_and_the_last_good_one() {
    let forge = Forge::new();
    let good = forge.commit(Some("alice"), "good");
    let bad = forge.commit(None, "quick fix");
    forge.commit(Some("alice"), "on top");
    let keeps = format!("keeps enforcing {}", short(&good));
    verify(&forge, &[]).exits(4).says(&[
        "error[unsigned]",
        &format!("refused {} on main", short(&bad)),
        "\"quick fix\"",
        "alice@example.org, bob@example.org, carol@example.org",
        &keeps,
        "converger trust mend",
    ]);
    let said = verify(&forge, &["--json"]).exits(4).json();
    assert!(said["verified"].is_null());
    assert_eq!(said["refused"]["reason"], "unsigned");
    assert_eq!(said["refused"]["commit"], bad);
    assert_eq!(said["refused"]["last_good"], good);
}

#[test]
fn since_verifies_only_what_is_new() {
    let forge = Forge::new();
    forge.commit(None, "nobody signed this");
    let since = forge.commit(Some("alice"), "trusted all the same");
    let tip = forge.commit(Some("alice"), "new");
    verify(&forge, &[]).exits(4);
    let line = format!("1 commit verified, from {} to {} (alice@example.org)\n", short(&since), short(&tip));
    assert_eq!(verify(&forge, &["--since", &since]).exits(0).out, line);
    verify(&forge, &["--since", &tip]).exits(0).says(&["nothing new since"]);
    verify(&forge, &["--since", &tip, &since]).exits(4).says(&["rollback"]);
    forge.git(&["switch", "-q", "-c", "other", &since]);
    forge.commit(Some("alice"), "a fork");
    verify(&forge, &["--since", &tip]).exits(4).says(&["not-descendant"]);
    let merge = ["merge", "-q", "--no-ff", "-m", "the wrong way round", "main"];
    forge.signing(Some("alice"), &merge);
    verify(&forge, &["--since", &tip]).exits(4).says(&["foxtrot"]);
}

/// N2
#[test]
fn an_introduction_that_is_not_there_or_signed_by_another_is_refused() {
    let forge = Forge::new();
    let first = forge.head();
    let (alice, bob) = (forge.fingerprint("alice"), forge.fingerprint("bob"));
    let strange = "0123456789012345678901234567890123456789";
    trust(&forge, &["verify", "--introduction", strange, "--signer", &alice]).exits(4).says(&["introduction-missing"]);
    trust(&forge, &["verify", "--introduction", &first, "--signer", &bob]).exits(4).says(&[
        "introduction-missing",
        "signed by",
        &bob,
    ]);
    trust(&forge, &["verify", "--introduction", &first, "--signer", &alice, "--fleet", "other"])
        .exits(4)
        .says(&["fleet-mismatch"]);
    trust(&forge, &["verify", "--introduction", short(&first), "--signer", &alice])
        .exits(2)
        .says(&["40 lower-case hex"]);
    trust(&forge, &["verify", "--introduction", &first, "--signer", "alice"]).exits(2).says(&["no fingerprint"]);
}

/// N1: without a beginning nothing is believed, and the message says the ways to name one.
#[test]
fn the_beginning_comes_from_outside_and_can_be_said_in_four_ways() {
    let forge = Forge::new();
    let first = forge.head();
    let alice = forge.fingerprint("alice");
    trust(&forge, &["verify"]).exits(2).says(&["--trust FILE", "--introduction", "client.toml", "converger init"]);

    let file = forge.dir.path().join("trust.toml");
    let text = |bans: &str| {
        format!(
            "fleet = \"test\"\nref = \"refs/heads/main\"\nbans = [{bans}]\n\
             introduction = {{ commit = \"{first}\", signer = \"{alice}\", seq = 41 }}\n{}",
            forge.remote_table("https://forge.example.internal/fleet.git")
        )
    };
    std::fs::write(&file, text("")).unwrap();
    trust(&forge, &["verify", "--trust", file.to_str().unwrap()]).exits(0).says(&["seq 41"]);
    forge.commit(Some("bob"), "bob's");
    std::fs::write(&file, text(&format!("\"{}\"", forge.fingerprint("bob")))).unwrap();
    trust(&forge, &["verify", "--trust", file.to_str().unwrap()]).exits(4).says(&["banned-key", "trust.toml"]);
    std::fs::write(&file, text("")).unwrap();

    let client = forge.dir.path().join("client.toml");
    std::fs::write(&client, "trust = \"trust.toml\"\n").unwrap();
    trust(&forge, &["verify", "--client", client.to_str().unwrap()]).exits(0).says(&["seq 42"]);

    forge.git(&["config", "converger.introduction", &first]);
    forge.git(&["config", "converger.signer", &alice]);
    trust(&forge, &["verify"]).exits(0).says(&["2 commits verified", "seq 2"]);
}

#[test]
fn a_shallow_clone_says_what_it_lacks() {
    let forge = Forge::new();
    let introduction = forge.head();
    for n in 0..3 {
        forge.commit(Some("alice"), &format!("{n}"));
    }
    let clone = forge.dir.path().join("clone");
    forge.git(&["clone", "-q", "--depth", "2", &forge.url(), clone.to_str().unwrap()]);
    let alice = forge.fingerprint("alice");
    let repo = clone.to_str().unwrap();
    let args = ["verify", "--repo", repo, "--fleet", "test", "--introduction", &introduction, "--signer", &alice];
    let said = trust(&forge, &args);
    assert_ne!(said.code, 0);
    said.says(&["this clone is shallow", "--unshallow", "--since"]);
    trust(&forge, &[&args[..], &["--since", "HEAD~1"]].concat()).exits(0).says(&["1 commit verified"]);
}

#[test]
fn show_lists_principals_keys_roles_paths_and_bans() {
    let forge = Forge::new();
    let ban = forge.fingerprint("mallory");
    forge.write("trust/policy.toml", &format!("{POLICY}\n[banned]\nkeys = [\"{ban}\"]\n"));
    trust(&forge, &["show"]).exits(0).says(&[
        "fleet test, policy standard, in the work tree",
        "alice@example.org  root, deploy",
        "paths  **",
        &forge.fingerprint("alice"),
        "ssh-ed25519",
        "bob@example.org  deploy",
        "roles/**",
        "banned",
        &ban,
    ]);
    let then = trust(&forge, &["show", "HEAD"]).exits(0).says(&[&format!("policy standard, {}", short(&forge.head()))]);
    assert!(!then.all.contains(&ban), "as of the commit, not of the work tree");
    let said = trust(&forge, &["show", "--json"]).exits(0).json();
    assert_eq!(said["trust"]["principals"]["bob@example.org"]["roles"], serde_json::json!(["deploy"]));
    assert_eq!(said["trust"]["principals"]["alice@example.org"]["keys"][0]["kind"], "ssh-ed25519");
    assert_eq!(said["trust"]["banned"][0], ban);
    assert_eq!(said["problems"], serde_json::json!([]));
}

#[test]
fn show_lists_every_problem_of_the_folder_with_its_line() {
    let forge = Forge::new();
    forge.write(
        "trust/allowed_signers",
        &format!("# people\nalice@example.org valid-before=\"2030\" {}\n", forge.public("alice")),
    );
    forge.write("trust/policy.toml", "[principals.\"alice@example.org\"]\nroles = [\"root\"]\npaths = [\"/x\"]\n");
    trust(&forge, &["show"]).exits(3).says(&[
        "trust/allowed_signers:2:1",
        "dates decide nothing",
        "trust/policy.toml:3:10",
        "error[bad-pattern]",
    ]);
}

#[test]
fn explain_says_who_signed_by_whose_list_and_which_pattern_covers_each_path() {
    let forge = Forge::new();
    let first = forge.head();
    forge.write("roles/base/motd", "hello\n");
    let commit =
        forge.commit(Some("bob"), "a motd\n\nConverger-Allow: downgrade kafka\nSigned-off-by: bob <b@example.org>");
    // No beginning is needed: the parent stands for what was accepted.
    trust(&forge, &["explain", &commit]).exits(0).says(&[
        &format!("accepted {} \"a motd\"", short(&commit)),
        "bob@example.org",
        &forge.fingerprint("bob"),
        "ssh-ed25519, role deploy",
        &format!("trust/ of {}, its first parent", short(&first)),
        "roles/base/motd  covered by roles/**",
        "lifts    downgrade kafka",
    ]);
    let args = begun(&forge, "explain", &[&first]);
    trust(&forge, &args.iter().map(String::as_str).collect::<Vec<_>>()).exits(0).says(&["it is the introduction"]);
    trust(&forge, &["explain", &first]).exits(2).says(&["where does the chain begin"]);
    let said = trust(&forge, &["explain", "--json"]).exits(0).json();
    assert_eq!(said["accepted"]["signers"][0]["principal"], "bob@example.org");
    assert_eq!(said["accepted"]["parent"], first);
    assert_eq!(said["changes"][0]["covered_by"], "roles/**");
}

#[test]
fn explain_shows_what_a_commit_makes_of_the_trust_folder() {
    let forge = Forge::new();
    forge.keygen("dave", &["-t", "ecdsa"]);
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "bob", "dave"]));
    let bob = POLICY.replace("paths = [\"roles/**\"]", "paths = [\"**\"]");
    let ban = forge.fingerprint("carol");
    forge.write(
        "trust/policy.toml",
        &format!("{bob}[principals.\"dave@example.org\"]\nroles = [\"deploy\"]\n[banned]\nkeys = [\"{ban}\"]\n"),
    );
    forge.commit(Some("alice"), "dave for carol");
    trust(&forge, &["explain"]).exits(0).says(&[
        "trust/allowed_signers  covered by role root",
        &format!("+ key of dave@example.org: {} ecdsa-sha2-nistp256", forge.fingerprint("dave")),
        &format!("- key of carol@example.org: {ban} ssh-ed25519"),
        &format!("! banned: {ban}"),
        "~ bob@example.org: deploy on roles/** -> deploy on **",
        "+ dave@example.org: deploy on **",
    ]);
}

#[test]
fn explain_refuses_in_the_words_of_a_node() {
    let forge = Forge::new();
    let good = forge.head();
    forge.write("environments/production/variables.toml", "[all]\n");
    let commit = forge.commit(Some("bob"), "beyond his paths");
    trust(&forge, &["explain"]).exits(4).says(&[
        "error[scope]",
        &format!("refused {}", short(&commit)),
        "environments/production/variables.toml is not in the paths of bob@example.org",
        &format!("keeps enforcing {}", short(&good)),
        "changes  environments/production/variables.toml",
    ]);
    let said = trust(&forge, &["explain", "--json"]).exits(4).json();
    assert_eq!(said["refused"]["reason"], "scope");
    assert!(said["accepted"].is_null());
    // A good commit on a bad one is good by itself; the chain is for `verify`.
    forge.write("roles/base/motd", "hello\n");
    forge.commit(Some("bob"), "on top");
    trust(&forge, &["explain"]).exits(0);
    verify(&forge, &[]).exits(4).says(&["scope"]);
}

#[test]
fn a_merge_of_the_forge_is_explained_by_what_it_brings() {
    let forge = Forge::new();
    let first = forge.head();
    forge.git(&["switch", "-q", "-c", "topic"]);
    forge.write("roles/base/motd", "hello\n");
    let side = forge.commit(Some("bob"), "a motd");
    forge.git(&["switch", "-q", "main"]);
    forge.write("roles/web/role.toml", "format = 1\n");
    let ours = forge.commit(Some("alice"), "meanwhile");
    // Nobody on the list signs what the button makes.
    forge.signing(None, &["merge", "-q", "--no-ff", "-m", "Merge pull request 1", "topic"]);
    trust(&forge, &["explain"]).exits(0).says(&[
        "accepted",
        &format!("merge    of {}", short(&side)),
        "signer   bob@example.org",
        "role deploy",
        &format!("trust/ of {}, its first parent", short(&ours)),
        "roles/base/motd  covered by roles/**",
    ]);
    let json = trust(&forge, &["explain", "--json"]).exits(0).json();
    assert_eq!(json["accepted"]["merged"], side);
    verify(&forge, &[])
        .exits(0)
        .says(&["3 commits verified", "(merged by the forge, signed by bob@example.org), seq 3"]);

    forge.git(&["switch", "-q", "-c", "unsigned", &first]);
    forge.write("roles/base/other", "x\n");
    let bad = forge.commit(None, "nobody signed this");
    forge.git(&["switch", "-q", "main"]);
    forge.signing(None, &["merge", "-q", "--no-ff", "-m", "Merge pull request 2", "unsigned"]);
    trust(&forge, &["explain"]).exits(4).says(&["unsigned", short(&bad)]);
    let good = forge.revision("HEAD~1");
    verify(&forge, &[]).exits(4).says(&[short(&bad), &format!("keeps enforcing {}", short(&good))]);
}

#[test]
fn mend_leaves_everything_as_it_was_unless_it_can_mend() {
    let forge = Forge::new();
    let good = forge.head();
    let bad = forge.commit(None, "quick fix");
    let untouched = || {
        assert_eq!(forge.git(&["symbolic-ref", "--short", "HEAD"]), "main");
        assert_eq!(forge.head(), bad);
        assert_eq!(forge.git(&["status", "--porcelain"]), "");
    };
    trust(&forge, &["mend", "--good", "HEAD"]).exits(2).says(&["--good and --bad are the same commit"]);
    untouched();
    // Nobody to sign.
    assert_ne!(trust(&forge, &["mend", "--good", &good]).code, 0);
    untouched();
    // From another branch main would lose what is on it.
    forge.git(&["switch", "-q", "-c", "other", &good]);
    forge.commit(None, "elsewhere");
    trust(&forge, &["mend", "--good", &good]).exits(2).says(&["main has commits that", "switch to main first"]);
    assert_eq!(forge.revision("main"), bad);
    forge.git(&["switch", "-q", "main"]);
    forge.git(&["config", "gpg.format", "ssh"]);
    forge.git(&["config", "user.signingkey", forge.key("alice").to_str().unwrap()]);
    trust(&forge, &["mend", "--good", &good]).exits(0).says(&["Push it (no force needed)"]);
    forge.node().verify(&forge.root(), None).unwrap();
}
