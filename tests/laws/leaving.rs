//! What a unit was fed with goes with it, and a step that fails half way leaves no mixture: told case by case.

use super::*;

#[test]
fn a_dropped_input_is_gone_before_its_unit_starts() {
    for unit in [0, 1] {
        let node = Node::new();
        let mut first = simple(1, unit);
        first.files.insert(1, File { content: 1, mode: 0o644, attached: Attached::Restarts(unit), secret: None });
        node.converge(&first.desired());
        let desired = simple(1, unit).desired();
        node.converge(&desired);
        let with = node.machine.runs_with.borrow()[UNITS[unit]].clone();
        assert_eq!(with.get("/etc/f1"), None, "{} runs with a file that left", UNITS[unit]);
    }
}

#[test]
fn a_dropped_input_of_a_protected_unit_waits_for_the_hold() {
    let node = Node::new();
    let mut first = simple(1, 0);
    first.files.insert(1, File { content: 1, mode: 0o644, attached: Attached::Restarts(0), secret: None });
    node.converge(&first.desired());
    let hold = serde_json::json!({ "taken": "by web02" }).to_string().into_bytes();
    let key = protocol::hold_key(&node.group.id, 0, &"web02".into());
    node.store.commit(&Transaction { when: Vec::new(), then: vec![Write::Put(key, hold)] }).unwrap();
    let desired = simple(1, 0).desired();
    node.commit.set(node.commit.get() + 1);
    node.run(&desired).unwrap();
    assert!(node.machine.contents().contains_key("/etc/f1"), "an input of a protected unit went live outside a hold");
}

#[test]
fn a_reload_that_failed_is_not_lost_when_somebody_restarted_the_unit_meanwhile() {
    for unit in [0, 1] {
        let mut commit = simple(1, unit);
        commit.files.get_mut(&0).unwrap().attached = Attached::Reloads(unit);
        let mut second = commit.clone();
        second.files.get_mut(&0).unwrap().content = 2;
        let node = Node::new();
        node.converge(&commit.desired());
        // It fell and came back after the plan looked, before the exchange.
        *node.machine.restart_at_stage.borrow_mut() = Some(UNITS[unit].to_owned());
        node.machine.host.world.borrow_mut().fail.push(format!("reload {}", UNITS[unit]));
        node.commit.set(node.commit.get() + 1);
        let out = node.run(&second.desired()).unwrap();
        assert!(!out.is_converged());
        node.machine.host.world.borrow_mut().fail.clear();
        node.converge(&second.desired());
        node.nobody_runs_with_old_files(&second.desired());
    }
}

#[test]
fn a_failed_exchange_leaves_the_old_version_with_the_old_files() {
    let node = Node::new();
    let with = |version, content| Commit { artifact: Some(version), ..simple(content, 0) }.desired();
    node.converge(&with(1, 1));
    node.machine.host.world.borrow_mut().fail.push("swap".to_owned());
    node.commit.set(node.commit.get() + 1);
    let out = node.run(&with(2, 2)).unwrap();
    assert!(!out.is_converged());
    let runs = node.machine.runs_with.borrow()[UNITS[0]].clone();
    let text = |p: &str| String::from_utf8_lossy(&runs[p].0).into_owned();
    assert_eq!((text("/opt/app").as_str(), text("/etc/f0").as_str()), ("1", "content 1\n\n"), "a mixture runs");
}
