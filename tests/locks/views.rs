//! Members, quorum and lanes change by a commit while others still know the old ones.

use super::*;

fn spec_of(store: &dyn LockStore, group: &str) -> Option<u64> {
    let read = store.read(&[&format!("spec/{group}")]).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&read.entries.first()?.value).unwrap();
    value["seq"].as_u64()
}

fn grown() -> Group {
    group("c.g", &["n1", "n2", "n3", "n4"], Quorum::Majority, 1)
}

/// Leaves the member as it is: for tests that only ask who may.
fn gives_back(session: &Session<'_>) {
    session.nothing_to_settle().unwrap();
}

#[test]
fn a_group_that_changes_is_agreed_on_before_anybody_of_it_goes() {
    let probe = FakeProbe::healthy(["n1", "n2", "n3", "n4"]);
    let (store, old, new) = (fake(), three()[0].clone(), grown());
    let (lagging, first) = (Agent::new("n2", &[&old]), Agent::new("n1", &[&new]));
    let before = lagging.session(&store, &probe, 4);
    let after = first.session(&store, &probe, 5);
    assert_eq!(why(&before.enter(&lagging.intent(true)).unwrap()), "act");
    assert_eq!(spec_of(&store, "c.g"), Some(4));
    assert_eq!(why(&after.enter(&first.intent(true)).unwrap()), "held-by-peer");
    assert_eq!(spec_of(&store, "c.g"), Some(4), "while somebody has it, it stays");
    gives_back(&before);
    assert_eq!(why(&after.enter(&first.intent(true)).unwrap()), "act");
    assert_eq!(spec_of(&store, "c.g"), Some(5));
    gives_back(&after);
    let Entry::Deferred(because) = before.enter(&lagging.intent(true)).unwrap() else { panic!("it counts three") };
    assert_eq!(because.reason, "behind-spec");
    assert_eq!(
        because.sentence,
        format!("g is declared by {} (place 5), this node has {} (place 4)", commit(5).short(), commit(4).short())
    );
    // Another commit that declares the same changes nothing.
    let third = Agent::new("n3", &[&new]);
    assert_eq!(why(&third.session(&store, &probe, 6).enter(&third.intent(true)).unwrap()), "act");
    assert_eq!(spec_of(&store, "c.g"), Some(5));
}

#[test]
fn free_lanes_are_not_taken_by_two_declarations() {
    let probe = FakeProbe::healthy(["n1", "n2", "n3", "n4"]);
    let wide = group("c.g", &["n1", "n2", "n3", "n4"], Quorum::None, 2);
    let wider = group("c.g", &["n1", "n2", "n3", "n4"], Quorum::None, 3);
    let (store, one, two) = (fake(), Agent::new("n1", &[&wide]), Agent::new("n2", &[&wider]));
    for node in ["n3", "n4"] {
        put(&store, &format!("n/{node}/report"), &report(node, 5, &[("c.g", 4), ("c.g", 5)]));
    }
    assert_eq!(why(&one.session(&store, &probe, 4).enter(&one.intent(true)).unwrap()), "act");
    assert_eq!(why(&two.session(&store, &probe, 5).enter(&two.intent(true)).unwrap()), "held-by-peer");
}

#[test]
fn a_renamed_group_is_agreed_on_under_each_of_its_names() {
    let probe = FakeProbe::healthy(["n1", "n2", "n3"]);
    let (store, old) = (fake(), group("c.old", &["n1", "n2", "n3"], Quorum::Majority, 1));
    let renamed = Group { aliases: vec!["c.old".into()], ..three()[0].clone() };
    let (lagging, first) = (Agent::new("n2", &[&old]), Agent::new("n1", &[&renamed]));
    let session = first.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&first.intent(true)).unwrap()), "act");
    gives_back(&session);
    assert_eq!((spec_of(&store, "c.g"), spec_of(&store, "c.old")), (Some(5), Some(5)));
    assert_eq!(why(&lagging.session(&store, &probe, 4).enter(&lagging.intent(true)).unwrap()), "behind-spec");
}

#[test]
fn a_declaration_that_changes_between_the_look_and_the_claim_is_a_lost_race() {
    let probe = FakeProbe::healthy(["n1", "n2", "n3"]);
    let groups = three();
    let agent = Agent::new("n1", &[&groups[0]]);
    let theirs = r#"{"seq":9,"commit":"c9","digest":"another"}"#;
    let meddle: fn(&FakeStore) = |store| put(store, "spec/c.g", r#"{"seq":9,"commit":"c9","digest":"another"}"#);
    let store = Meddled { store: fake(), at: AtomicUsize::new(1), then: Box::new(meddle) };
    assert_eq!(why(&agent.session(&store, &probe, 5).enter(&agent.intent(true)).unwrap()), "lost-race");
    assert_eq!(why(&agent.session(&store, &probe, 5).enter(&agent.intent(true)).unwrap()), "behind-spec", "{theirs}");
    put(&store, "spec/c.g", "not JSON");
    assert_eq!(why(&agent.session(&store, &probe, 5).enter(&agent.intent(true)).unwrap()), "behind-spec");
    delete(&store, "spec/c.g");
    assert_eq!(why(&agent.session(&store, &probe, 5).enter(&agent.intent(true)).unwrap()), "act");
}

#[test]
fn a_failed_holder_takes_a_fix_that_changes_its_group_under_its_own_hold() {
    let probe = FakeProbe::healthy(["n1", "n2", "n3", "n4"]);
    let (store, old, new) = (fake(), three()[0].clone(), grown());
    let mut agent = Agent::new("n1", &[&old]);
    let session = agent.session(&store, &probe, 4);
    assert_eq!(why(&session.enter(&agent.intent(true)).unwrap()), "act");
    session.broken("it does not start").unwrap();
    probe.say("n1", Evidence::unhealthy("down"));
    agent.groups = vec![new];
    let session = agent.session(&store, &probe, 5);
    assert_eq!(why(&session.enter(&agent.intent(false)).unwrap()), "act");
}

/// A commit that lets two of them go at a time, and that changes what they run with: what made room for two is live
/// nowhere yet.
#[test]
fn more_lanes_count_on_a_node_when_they_are_live_there() {
    let bed = Bed::new();
    assert!(bed.run_all(&conf("good-1"), 2));
    let wider =
        |text: String| text.replace("max_unavailable = 1", "max_unavailable = 2").replace("\"majority\"", "\"none\"");
    let lanes = |fleet: &Fleet| {
        let n1 = &bed.machines[0];
        let known = Ledger::open(&n1.dir.path().join("ledger.db")).unwrap().known().unwrap();
        let spec = spec(fleet, "n1");
        let renderer = Renderer::new(fleet);
        let circles = pipeline::circles(&renderer, &spec, &Unsealed::without_keys(), &known).unwrap();
        circles.iter().map(|circle| circle.group.max_unavailable).collect::<BTreeSet<usize>>()
    };
    let changed = fleet_with("good-2", "", wider);
    assert_eq!(lanes(&changed), BTreeSet::from([1]), "as it runs now, one may be away");
    assert!(bed.run_all(&changed, 3));
    assert_eq!(lanes(&changed), BTreeSet::from([2]));
    // Where nothing must restart, it is live as soon as it was taken.
    let back = fleet_with("good-2", "", |text| text);
    assert_eq!(lanes(&back), BTreeSet::from([1]), "fewer count at once");
}
