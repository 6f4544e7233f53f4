//! The parsers that meet foreign bytes never panic and keep their laws: on any bytes, and on good input that was damaged.
//!
//! The laws are those of the fuzz targets (`make fuzz` runs them for longer).
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]

#[path = "../fuzz/src/lib.rs"]
mod laws;

use std::path::Path;

use proptest::prelude::*;

/// Files of `fuzz/seeds/<target>`: inputs from which a parser's inside is reached.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Something happens to a few places.
#[derive(Clone, Debug)]
enum Damage {
    Put(u8),
    Flip(u8),
    Cut(u8),
    /// These bytes again, there.
    Repeat(u8),
}

fn damage() -> impl Strategy<Value = Damage> {
    let telling = prop::sample::select(&b"\n\0 \t\"'=,.*/<>[]-+#\x1b\x7f\xff\xc3"[..]);
    prop_oneof![
        telling.prop_map(Damage::Put),
        any::<u8>().prop_map(Damage::Put),
        (0..8u8).prop_map(|bit| Damage::Flip(1 << bit)),
        (1..80u8).prop_map(Damage::Cut),
        (1..80u8).prop_map(Damage::Repeat),
    ]
}

/// Any bytes, or a seed with at most six damages.
fn input(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let damaged =
        (prop::sample::select(seeds(target)), prop::collection::vec((any::<prop::sample::Index>(), damage()), 0..6));
    let damaged = damaged.prop_map(|(mut bytes, damages)| {
        for (index, damage) in damages {
            let at = index.index(bytes.len() + 1);
            let until = |count: u8| (at + usize::from(count)).min(bytes.len());
            match damage {
                Damage::Put(byte) => bytes.insert(at, byte),
                Damage::Flip(bit) => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bit),
                Damage::Cut(count) => drop(bytes.drain(at..until(count))),
                Damage::Repeat(count) => {
                    let again = bytes[at..until(count)].to_vec();
                    bytes.splice(at..at, again);
                }
            }
        }
        bytes
    });
    prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..300), 4 => damaged]
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(2000))]

    /// A7
    #[test]
    fn allowed_signers_are_read_with_one_meaning(bytes in input("allowed_signers")) {
        laws::allowed_signers(&bytes);
    }

    /// A7
    #[test]
    fn a_policy_permits_no_more_than_its_roles(bytes in input("policy")) {
        laws::policy(&bytes);
    }

    #[test]
    fn a_commit_is_its_payload_and_its_signature(bytes in input("commit")) {
        laws::commit(&bytes);
    }

    /// A19
    #[test]
    fn a_tree_that_is_read_has_only_names_that_are_names(bytes in input("tree")) {
        laws::tree(&bytes);
    }
}

proptest! {
    #![proptest_config(config(500))] // curves and TOML documents are slow without optimisation

    /// A16
    #[test]
    fn a_signature_has_one_spelling_and_one_content(bytes in input("signature")) {
        laws::signature(&bytes);
    }

    /// E8
    #[test]
    fn an_archive_is_inside_or_refused(bytes in input("archive")) {
        laws::archive(&bytes);
    }

    #[test]
    fn what_a_server_answers_is_judged_or_proves_nothing(bytes in input("replies")) {
        laws::replies(&bytes);
    }

    #[test]
    fn every_problem_of_secrets_can_be_shown(bytes in input("secrets")) {
        laws::secrets(&bytes);
    }
}

/// Without it the tests above might never get past a parser's first line.
#[test]
fn the_seeds_are_read() {
    use converger::fleet::schema::CheckKind;
    use converger::probe::{Health, of_reply};
    use converger::trust::{commit::Commit, signature, signers::Signers};
    let text = |target: &str, name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target).join(name))
            .unwrap()
    };
    assert_eq!(Signers::parse(&text("allowed_signers", "people")).unwrap().iter().count(), 2);
    for name in ["signed", "merge"] {
        let commit = Commit::parse(text("commit", name).as_bytes()).unwrap();
        assert_eq!(commit.signature.as_deref(), Some(text("signature", "ed25519").as_str()));
    }
    for kind in [CheckKind::Keeper, CheckKind::Patroni, CheckKind::KafkaQuorum, CheckKind::KafkaIsr, CheckKind::Redis] {
        let name = format!("{kind:?}").to_lowercase();
        let reply = text("replies", &name);
        let evidence = of_reply(kind, reply.split_once('\n').unwrap().1.as_bytes());
        assert_eq!(evidence.health, Health::Healthy, "{name}");
    }
    signature::verify(&text("signature", "ed25519"), text("commit", "unsigned").as_bytes()).unwrap();
    for target in ["allowed_signers", "policy", "signature", "commit", "secrets", "tree", "archive", "replies"] {
        assert!(!seeds(target).is_empty(), "{target}");
    }
}

/// Found by the fuzz target: ssh-key reads past a wrong length before the innermost signature.
#[test]
fn a_wrong_length_inside_is_another_spelling() {
    laws::signature(&seeds("signature")[1]);
}
