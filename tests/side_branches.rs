//! What side branches hide: merges on them that leave something out, work that was taken back, commits signed again. Each of
//! these comes in by a merge button that nobody signed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests write files as they like")]

mod forge;

use converger::reason::{self, Reason};
use forge::Forge;

/// Outside of bob's paths.
const FIX: &str = "environments/production/fix";

fn button(forge: &Forge, side: &str) -> String {
    forge.git(&["switch", "-q", "main"]);
    forge.signing(None, &["merge", "-q", "--no-ff", "-m", "merge", side])
}

#[track_caller]
fn refused(forge: &Forge, reason: Reason, commit: &str) {
    let refusal = forge.node().refusal(&forge.root(), None);
    assert_eq!((refusal.reason, refusal.commit.as_str()), (reason, commit), "{refusal}");
}

fn change(forge: &Forge, text: &str) -> String {
    forge.write(FIX, text);
    forge.commit(Some("alice"), text)
}

/// A merge that bob signs, with whatever tree he likes.
fn bobs_merge(forge: &Forge, tree_of: &str, parents: [&str; 2]) -> String {
    let tree = format!("{tree_of}^{{tree}}");
    let made = ["commit-tree", "-S", &tree, "-m", "bob's", "-p", parents[0], "-p", parents[1]];
    let key = format!("user.signingkey={}", forge.key("bob").display());
    forge.git(&[&["-c", "gpg.format=ssh", "-c", &key][..], &made[..]].concat())
}

/// A37: bob may change roles/** only. Which side of a merge wins is a change too.
#[test]
fn a_signed_merge_on_the_side_answers_for_all_that_it_leaves_out() {
    // He drops what main fixed, under a proposal of alice's.
    let forge = Forge::new();
    change(&forge, "v1");
    forge.git(&["switch", "-q", "-c", "side"]);
    let proposal = change(&forge, "v2");
    forge.git(&["switch", "-q", "main"]);
    let fix = change(&forge, "v9");
    let merge = bobs_merge(&forge, &proposal, [&proposal, &fix]);
    button(&forge, &merge);
    refused(&forge, reason::SCOPE, &merge);
    // He turns a proposal on top of the fix into a way back behind it.
    let forge = Forge::new();
    let (old, fix) = (change(&forge, "v1"), change(&forge, "v9"));
    forge.git(&["switch", "-q", "-c", "side"]);
    let proposal = change(&forge, "v10");
    let merge = bobs_merge(&forge, &old, [&old, &proposal]);
    assert_ne!(fix, proposal);
    button(&forge, &merge);
    refused(&forge, reason::SCOPE, &merge);
    // He leaves out alice's own revert.
    let forge = Forge::new();
    change(&forge, "v1");
    forge.git(&["switch", "-q", "-c", "side"]);
    let (bad, revert) = (change(&forge, "bad"), change(&forge, "v1"));
    let merge = bobs_merge(&forge, &bad, [&bad, &revert]);
    button(&forge, &merge);
    refused(&forge, reason::SCOPE, &merge);
}

/// A37: alice touched that path on the side and took it back; it is bob's change that a rename carries there.
#[test]
fn a_change_that_was_taken_back_covers_nobody() {
    let forge = Forge::new();
    let list: String = (0..20).map(|n| format!("line {n} of a list that is long enough\n")).collect();
    forge.write("roles/base/list", &list);
    forge.commit(Some("alice"), "a list");
    forge.git(&["switch", "-q", "-c", "side"]);
    change(&forge, "draft");
    std::fs::remove_file(forge.work.join(FIX)).unwrap();
    forge.commit(Some("alice"), "not needed");
    forge.write("roles/base/list", &format!("{list}bob was here\n"));
    forge.commit(Some("bob"), "in his paths");
    forge.git(&["switch", "-q", "main"]);
    std::fs::create_dir_all(forge.work.join("environments/production")).unwrap();
    forge.git(&["mv", "roles/base/list", FIX]);
    forge.commit(Some("alice"), "renamed");
    let merge = button(&forge, "side");
    assert!(std::fs::read_to_string(forge.work.join(FIX)).unwrap().contains("bob was here"));
    refused(&forge, reason::SCOPE, &merge);
}

/// A8: what was merged and reverted does not come back under another signature, which somebody without the key can make of an
/// ECDSA signature.
#[test]
fn a_commit_signed_again_is_no_new_work() {
    let forge = Forge::new();
    forge.keygen("dave", &["-t", "ecdsa"]);
    forge.write("trust/allowed_signers", &forge.signers(&["alice", "bob", "carol", "dave"]));
    let dave = "[principals.\"dave@example.org\"]\nroles = [\"deploy\"]\npaths = [\"roles/**\"]\n";
    forge.write("trust/policy.toml", &format!("{}{dave}", forge::POLICY));
    forge.commit(Some("alice"), "dave");
    forge.git(&["switch", "-q", "-c", "side"]);
    forge.write("roles/base/bad", "bad\n");
    let work = forge.commit(Some("dave"), "dave's");
    forge.git(&["switch", "-q", "main"]);
    forge.write("roles/base/x", "x");
    forge.commit(Some("alice"), "main moves");
    button(&forge, "side");
    forge.signing(Some("alice"), &["revert", "--no-edit", "-m", "1", "HEAD"]);
    assert!(!forge.work.join("roles/base/bad").exists());
    let raw = forge.raw(&work);
    let (before, rest) = raw.split_once("gpgsig ").unwrap();
    let (_, message) = rest.split_once("\n\n").unwrap();
    let armor = forge.sign(&format!("{before}\n{message}"), "dave", "git").trim_end().replace('\n', "\n ");
    let twin = format!("{before}gpgsig {armor}\n\n{message}");
    let twin = forge.git_with(&["hash-object", "-t", "commit", "-w", "--stdin"], twin.as_bytes());
    assert_ne!(twin, work);
    button(&forge, &twin);
    assert!(forge.work.join("roles/base/bad").exists());
    refused(&forge, reason::STALE_MERGE, &twin);
}
