//! Units that systemd couples, tools that must act on files, units that leave: the same laws, told case by case.

use super::*;

/// Both units, a file each; `tool.service` takes along what is named.
fn coupled(node: &Node, with: &str) {
    let along = Relations { dragged: [UnitName::from(with)].into(), ..Relations::default() };
    node.machine.host.world.borrow_mut().relations.insert(UNITS[1].into(), along);
}

fn both(web: u8, tool: u8) -> Desired {
    let mut commit = simple(tool, 1);
    commit.units[0] = simple(0, 0).units[0].clone();
    let file = File { content: web, mode: 0o644, attached: Attached::Restarts(0), secret: None };
    commit.files.insert(1, file);
    commit.desired()
}

/// F7
#[test]
fn what_is_stopped_along_is_started_again_also_after_a_crash() {
    let stranger = "pool.service";
    for end in [None, Some(("stop", End::After)), Some(("swap", End::After)), Some(("start tool", End::After))] {
        let node = Node::new();
        node.converge(&simple(1, 1).desired());
        coupled(&node, stranger);
        let running = UnitState { loaded: true, active: Active::Active, ..UnitState::missing() };
        node.machine.host.world.borrow_mut().units.insert(stranger.into(), running);
        let desired = simple(2, 1).desired();
        if let Some((at, end)) = end {
            // What the run does first is the same each time: stage, stop, swap, start.
            let n = ["stage", "run", "stop", "swap", "start tool"].iter().position(|step| *step == at).unwrap();
            node.machine.end.set(Some((node.machine.steps.get() + n, end)));
            assert!(node.run(&desired).is_none(), "it was to die at {at}");
            node.machine.end.set(None);
            assert_eq!(node.known().along.len(), 1, "it is owed a start");
        }
        node.converge(&desired);
        assert_eq!(node.machine.starts(stranger), 1, "{end:?}: {:#?}", node.machine.host.world.borrow().log);
        assert!(node.known().along.is_empty());
        let steps = node.machine.host.world.borrow().log.len();
        node.converge(&desired);
        assert_eq!(node.machine.host.world.borrow().log.len(), steps);
    }
}

/// F7
#[test]
fn a_protected_unit_is_stopped_along_only_inside_its_hold() {
    let node = Node::new();
    node.converge(&both(1, 1));
    coupled(&node, UNITS[0]);
    let hold = serde_json::json!({ "taken": "by web02" }).to_string().into_bytes();
    let key = protocol::hold_key(&node.group.id, 0, &"web02".into());
    let put = Transaction { when: Vec::new(), then: vec![Write::Put(key.clone(), hold)] };
    node.store.commit(&put).unwrap();
    node.commit.set(node.commit.get() + 1);
    let outcome = node.run(&both(1, 2)).unwrap();
    assert_eq!((outcome.deferred.len(), outcome.done.len()), (1, 0), "it waits for the hold of what it takes along");
    let stops =
        |node: &Node| node.machine.host.world.borrow().log.iter().filter(|step| step.starts_with("stop")).count();
    assert_eq!(stops(&node), 0);
    node.store.commit(&Transaction { when: Vec::new(), then: vec![Write::Delete(key)] }).unwrap();
    node.converge(&both(1, 2));
    assert_eq!((node.machine.starts(UNITS[0]), node.machine.starts(UNITS[1])), (2, 2));
    // Who knows in which run it is now, and that nothing is new for it.
    let now = node.machine.host.world.borrow().units[UNITS[0]].invocation.clone();
    assert_eq!(node.known().units[UNITS[0]].invocation, now);
}

/// F7
#[test]
fn two_units_of_which_one_takes_the_other_along_restart_once_each() {
    let node = Node::new();
    node.converge(&both(1, 1));
    coupled(&node, UNITS[0]);
    node.converge(&both(2, 2));
    assert_eq!((node.machine.starts(UNITS[0]), node.machine.starts(UNITS[1])), (2, 2));
    node.nobody_runs_with_old_files(&both(2, 2));
    // The other way round nothing is taken along.
    node.converge(&both(3, 2));
    assert_eq!((node.machine.starts(UNITS[0]), node.machine.starts(UNITS[1])), (3, 2));
}

#[test]
fn a_socket_that_starts_a_unit_during_the_exchange_leaves_it_with_the_new_files() {
    let node = Node::new();
    node.converge(&simple(1, 1).desired());
    node.machine.socket.set(true);
    let desired = simple(2, 1).desired();
    node.converge(&desired);
    node.nobody_runs_with_old_files(&desired);
}

#[test]
fn a_unit_that_was_started_with_somebody_elses_file_is_started_again() {
    for unit in [0, 1] {
        let node = Node::new();
        let desired = simple(1, unit).desired();
        node.converge(&desired);
        node.machine.host.world.borrow_mut().put(&path(0), "quick fix\n");
        node.machine.start_by_hand(UNITS[unit]);
        node.converge(&desired);
        node.nobody_runs_with_old_files(&desired);
        assert_eq!(node.machine.starts(UNITS[unit]), 2);
    }
}

fn with_file_at(path: &str, content: u8) -> Desired {
    let mut desired = simple(content, 1).desired();
    let file = desired.resources.iter_mut().find_map(|placed| match &mut placed.resource {
        Resource::File(spec) => Some(spec),
        _ => None,
    });
    file.unwrap().path = path.into();
    desired
}

/// E13
#[test]
fn an_activation_is_owed_until_it_is_done() {
    let file = "/etc/tmpfiles.d/tool.conf";
    let acts = |node: &Node| {
        let line = format!("systemd-tmpfiles {file}");
        node.machine.host.world.borrow().log.iter().filter(|step| **step == line).count()
    };
    let node = Node::new();
    node.converge(&with_file_at(file, 1));
    assert_eq!(acts(&node), 1);
    // It fails: the unit runs all the same, and the next run tries it again, and that alone.
    node.machine.host.world.borrow_mut().fail.push("systemd-tmpfiles".to_owned());
    let outcome = node.run(&with_file_at(file, 2)).unwrap();
    assert_eq!(outcome.failed.len(), 1);
    assert_eq!(node.machine.starts(UNITS[1]), 2);
    node.converge(&with_file_at(file, 2));
    assert_eq!((acts(&node), node.machine.starts(UNITS[1])), (3, 2));
    // The agent dies between the write and the tool.
    let swap = node.machine.steps.get() + 2;
    node.machine.end.set(Some((swap, End::After)));
    assert!(node.run(&with_file_at(file, 3)).is_none());
    node.machine.end.set(None);
    node.converge(&with_file_at(file, 3));
    assert_eq!(acts(&node), 4);
    // What somebody else wrote is put back, and acted on.
    node.machine.host.world.borrow_mut().put(file, "vm.swappiness = 1\n");
    node.converge(&with_file_at(file, 3));
    assert_eq!(acts(&node), 5);
}

/// F12
#[test]
fn a_unit_that_leaves_is_stopped_and_disabled_before_its_file_goes() {
    let node = Node::new();
    node.converge(&with_file_at("/etc/systemd/system/tool.service", 1));
    let began = node.machine.host.world.borrow().log.len();
    node.converge(
        &Commit { files: BTreeMap::new(), units: [None, None], package: None, action: false, artifact: None }.desired(),
    );
    let log = node.machine.host.world.borrow().log[began..].join(", ");
    assert_eq!(log, "stop tool.service, disable tool.service, remove /etc/systemd/system/tool.service, daemon-reload");
}
