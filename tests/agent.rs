//! Agents as processes: killed at the worst moment, told to stop, started twice; and what the next run makes of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs, write files and look at the clock")]

mod bed;
mod forge;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use converger::clock::SystemClock;
use converger::lock::local::LocalStore;
use converger::lock::store::{LockStore as _, Transaction, Write};

use bed::{Bed, NodeBed, converger};

/// The three members of the group, converged.
fn members(bed: &Bed) -> [NodeBed; 3] {
    bed::NODES.map(|name| {
        let node = bed.node(name);
        node.once().exits(0);
        node
    })
}

fn spawn(node: &NodeBed, args: &[&str]) -> Child {
    let mut command = converger();
    let settings = node.root.join("etc/converger/agent.toml");
    command.arg("agent").arg("--root").arg(&node.root).arg("--settings").arg(settings).args(args);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[track_caller]
fn until(what: &str, happened: impl Fn() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < Duration::from_secs(120), "{what} did not happen within 120 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn events(node: &NodeBed) -> Vec<String> {
    let log = node.text("run/converger/units.log");
    let event = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(format!("{} {}", event["event"].as_str()?, event["unit"].as_str()?))
    };
    log.lines().filter_map(event).collect()
}

fn more_workers(bed: &Bed) {
    bed.edit("roles/web/defaults.toml", "4", "8");
    bed.commit("more workers");
}

#[track_caller]
fn nobody_holds(bed: &Bed) {
    let listed = bed.converger(&["holds", "list"]).exits(0).out;
    assert!(listed.starts_with("no holds\n"), "{listed}");
}

#[test]
fn a_protected_restart_is_one_restart_under_a_hold() {
    let bed = Bed::new();
    let [first, ..] = members(&bed);
    more_workers(&bed);
    let starts = first.starts("web.service");
    first.once().exits(0).says(&["hold web.web: claimed, asked, armed", "restart web.service"]);
    assert_eq!(first.starts("web.service"), starts + 1);
    assert!(first.text("etc/web/web.conf").contains("workers = 8"));
    nobody_holds(&bed);
    first.once().exits(0).says(&["nothing to do"]);
}

/// G22
#[test]
fn a_machine_of_which_a_copy_lives_restarts_nothing() {
    let bed = Bed::new();
    let [first, ..] = members(&bed);
    more_workers(&bed);
    let starts = first.starts("web.service");
    let store =
        LocalStore::open(&bed.dir().join("store.db"), "/converger/test/production/".to_owned(), Arc::new(SystemClock));
    let other = Write::Put("n/web01/instance".to_owned(), br#"{"boot_id":"another","nonce":"x"}"#.to_vec());
    store.unwrap().commit(&Transaction { when: vec![], then: vec![other] }).unwrap();
    first.once().exits(6).says(&["cloned", "another machine says that it is web01 (boot another)"]);
    assert_eq!(first.starts("web.service"), starts);
    nobody_holds(&bed);
    // Nobody else signed since.
    first.once().exits(0).says(&["restart web.service"]);
}

/// What a machine settled with says nothing under a name that two machines have; also where nothing else moves.
#[test]
fn a_machine_of_which_a_copy_lives_proves_nothing() {
    let bed = Bed::new();
    let [first, ..] = members(&bed);
    more_workers(&bed);
    first.once().exits(0).says(&["restart web.service"]);
    first.once().exits(0).says(&["nothing to do"]);
    let store =
        LocalStore::open(&bed.dir().join("store.db"), "/converger/test/production/".to_owned(), Arc::new(SystemClock));
    let store = store.unwrap();
    let proven = || -> serde_json::Value {
        let read = store.read(&["n/web01/report"]).unwrap();
        serde_json::from_slice::<serde_json::Value>(&read.entries[0].value).unwrap()["proven"].clone()
    };
    let before = proven();
    assert!(before["web.web"]["seq"].is_u64(), "{before}");
    let copy = || {
        let other = Write::Put("n/web01/instance".to_owned(), br#"{"boot_id":"another","nonce":"x"}"#.to_vec());
        store.commit(&Transaction { when: vec![], then: vec![other] }).unwrap();
    };
    copy();
    first.once();
    assert_eq!(proven(), serde_json::json!({}));
    // Alone again.
    first.once().exits(0);
    assert_eq!(proven(), before);
    // Also after a run that ended in the middle.
    copy();
    let pause = first.root.join("var/lib/converger/pause.json");
    std::fs::create_dir(&pause).unwrap();
    first.once().exits(5);
    assert_eq!(proven(), serde_json::json!({}));
    std::fs::remove_dir(&pause).unwrap();
    first.once().exits(0);
    assert_eq!(proven(), before);
}

#[test]
fn a_report_that_the_store_did_not_get_is_told_by_the_next_run() {
    let bed = Bed::new();
    let node = bed.node("web01");
    node.once().exits(0);
    bed.edit("roles/base/motd", "of", "in");
    let head = bed.commit("another motd");
    let store = bed.dir().join("store.db");
    node.settings("kind = \"local\"\npath = \"/nonexistent/store.db\"");
    node.once();
    assert_eq!(node.applied(), head);
    node.settings(&format!("kind = \"local\"\npath = \"{}\"", store.display()));
    let told = || {
        let reports = bed.converger(&["status", "--json"]).out;
        serde_json::from_str::<serde_json::Value>(&reports).unwrap()["web01"]["applied"]["commit"].clone()
    };
    assert_ne!(told(), head.as_str());
    node.once().exits(0);
    assert_eq!(told(), head.as_str());
}

/// Killed in the middle of a stop (files are old), and in the middle of the start (files are new).
#[test]
fn an_agent_that_was_killed_in_a_restart_is_followed_by_one_that_finishes_it() {
    for (moment, unit) in [("stopping", "web.service"), ("starting", "web.service"), ("starting", "tool.service")] {
        let bed = Bed::new();
        let [first, ..] = members(&bed);
        more_workers(&bed);
        bed.edit("roles/base/tool.service", "true", "false");
        bed.commit("and another tool");
        let (now, starts) = (format!("{moment} {unit}"), events(&first).len());
        let mut agent = spawn(&first, &["--once"]);
        until(&now, || events(&first).iter().skip(starts).any(|event| *event == now));
        agent.kill().unwrap();
        agent.wait().unwrap();
        first.once().exits(0);
        assert!(first.text("etc/web/web.conf").contains("workers = 8"));
        assert!(first.text("etc/systemd/system/tool.service").contains("false"));
        for unit in ["web.service", "tool.service"] {
            assert_eq!(first.report()["units"][unit]["active"], "active", "{now}");
        }
        assert_eq!(first.applied(), bed.forge.head());
        nobody_holds(&bed);
    }
}

/// `kill -9` at ever later moments of a whole run: the next run ends where an undisturbed one would.
#[test]
fn an_agent_that_was_killed_at_any_time_leaves_nothing_that_lasts() {
    let bed = Bed::new();
    let [first, ..] = members(&bed);
    for round in 0..8_u64 {
        let (from, to) = (format!("workers: {round}"), format!("workers: {}", round + 1));
        if round == 0 {
            bed.forge.write("roles/web/defaults.toml", "note = \"workers: 0\"\nworkers = 4\n");
            bed.edit("roles/web/web.conf", "workers", "# {{ vars.note }}\nworkers");
        }
        bed.edit("roles/web/defaults.toml", &from, &to);
        bed.commit(&to);
        let mut agent = spawn(&first, &["--once"]);
        std::thread::sleep(Duration::from_millis(round * 45));
        agent.kill().unwrap();
        agent.wait().unwrap();
        first.once().exits(0);
        assert!(first.text("etc/web/web.conf").contains(&to), "{to}");
        assert_eq!(first.report()["units"]["web.service"]["active"], "active");
        nobody_holds(&bed);
    }
}

#[test]
fn a_machine_that_somebody_meddles_with() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let starts = node.starts("web.service");
    // Restarted by hand: another run of the same files.
    node.meddle("web.service", |unit| unit["invocation"] = "0123456789abcdef0123456789abcdef".into());
    node.once().exits(0);
    assert_eq!(node.starts("web.service"), starts);
    // Stopped by hand: a unit that must run is started.
    node.meddle("web.service", |unit| unit["state"] = "inactive".into());
    node.once().exits(0).says(&["start web.service"]);
    assert_eq!(node.starts("web.service"), starts + 1);
    // A file: put back, and nothing restarts.
    node.put("etc/web/web.conf", "workers = 1000\n");
    node.once().exits(0).says(&["~ /etc/web/web.conf (drift, put back)"]);
    assert_eq!(node.starts("web.service"), starts + 1);
    assert_eq!(node.report()["drift_repaired"], 1);
    nobody_holds(&bed);
}

#[test]
fn there_is_one_agent_per_node_and_it_stops_when_told() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let mut agent = spawn(&node, &[]);
    more_workers(&bed);
    bed.edit("roles/base/motd", "of", "in");
    let head = bed.commit("a push");
    until("the push wakes it", || node.text("etc/motd").contains("in production"));
    assert!(node.report()["target"]["commit"] == head.as_str() || node.report()["target"].is_object());
    node.once().exits(2).says(&["error[settings]", "another agent works on"]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(0));
}

/// I6: nobody reads what the agent says (a pipe that is full, as of a log that stands still), and it goes on converging.
#[test]
fn an_agent_whose_words_nobody_takes_goes_on() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let (unread, full) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&full, true).unwrap();
    while std::io::Write::write(&mut &full, &[b'.'; 4096]).is_ok() {}
    while std::io::Write::write(&mut &full, b".").is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).unwrap();
    let mut command = converger();
    command.arg("agent").arg("-vv").arg("--root").arg(&node.root).arg("--settings");
    command.arg(node.root.join("etc/converger/agent.toml")).stdout(Stdio::null()).stderr(full);
    let mut agent = command.spawn().unwrap();
    bed.edit("roles/base/motd", "of", "in");
    bed.commit("a push");
    until("the push arrives", || node.text("etc/motd").contains("in production"));
    agent.kill().unwrap();
    agent.wait().unwrap();
    drop(unread);
}

/// What a bed's secrets.toml says of the file is made to fit what is in it now, as whoever signs would do.
fn vouch(bed: &Bed, file: &[u8]) {
    use sha2::Digest as _;
    std::fs::write(bed.forge.work.join("environments/production/secrets/token.age"), file).unwrap();
    let entry = bed.read("environments/production/secrets.toml");
    let old = entry.split("sha256 = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    bed.edit("environments/production/secrets.toml", &old, &hex::encode(sha2::Sha256::digest(file)));
}

/// B4: flipped, cut off, a stanza taken out. The file stays, its service is not touched, the rest goes on.
#[test]
fn a_damaged_secret_blocks_its_own_batch_and_nothing_else() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let (token, starts) = (node.text("etc/web/token"), node.starts("web.service"));
    bed.seal("token", 2, "a canary of twenty-four letters", &bed::NODES);
    let intact = std::fs::read(bed.forge.work.join("environments/production/secrets/token.age")).unwrap();
    let ours = intact.windows(4).rposition(|window| window == b"\n-> ").unwrap();
    let rest = ours + 4 + intact[ours + 4..].windows(4).position(|window| window == b"\n---").unwrap();
    let damages = [
        ("flipped", {
            let mut bytes = intact.clone();
            *bytes.last_mut().unwrap() ^= 1;
            bytes
        }),
        ("truncated", intact[..intact.len() - 20].to_vec()),
        ("stripped", [&intact[..ours], &intact[rest..]].concat()),
    ];
    for (how, file) in damages {
        vouch(&bed, &file);
        bed.forge.write("roles/base/motd", &format!("{how}\n"));
        bed.commit(how);
        let said = node.once().exits(8).says(&["secret-unreadable", "secret token"]);
        assert!(!said.all().contains("canary"), "{how}: {}", said.all());
        assert_eq!(node.text("etc/motd"), format!("{how}\n"), "what needs no secret goes on");
        assert_eq!((node.text("etc/web/token"), node.starts("web.service")), (token.clone(), starts), "{how}");
        assert_ne!(node.applied(), bed.forge.head());
    }
}

/// B1: anybody can encrypt to a node. What nobody signed is not opened: not in a commit, not in the agent's own cache.
#[test]
fn a_forged_secret_is_never_opened() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let token = node.text("etc/web/token");
    bed.seal("token", 2, "forged", &bed::NODES);
    bed.forge.commit(None, "from nobody");
    node.once().exits(4).says(&["unsigned"]);
    assert_eq!(node.text("etc/web/token"), token);
    // Signed entry, another file than it vouches for.
    bed.forge.git(&["reset", "-q", "--hard", "HEAD~1"]);
    let entry = bed.read("environments/production/secrets.toml");
    bed.seal("token", 1, "forged", &bed::NODES);
    bed.forge.write("environments/production/secrets.toml", &entry);
    bed.commit("the file alone");
    node.once().exits(3).says(&["secret-digest"]);
    assert_eq!(node.text("etc/web/token"), token);
}

/// B16: what `check` finds keeps the agent from it too; the path is named, and the key is not.
#[test]
fn a_private_key_in_the_repository_is_refused_by_the_agent() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let before = node.applied();
    bed.forge.write("roles/web/old.key", &format!("AGE-SECRET-KEY-1{}\n", "Q7".repeat(29)));
    bed.edit("roles/base/motd", "of", "in");
    bed.commit("oops");
    for said in [bed.converger(&["check"]).exits(3), node.once().exits(3)] {
        let said = said.says(&["plaintext-secret", "roles/web/old.key"]);
        assert!(!said.all().contains("Q7Q7"), "{}", said.all());
    }
    assert!(!node.text("run/converger/status.json").contains("Q7Q7"));
    assert_eq!((node.applied(), node.report()["state"].as_str()), (before, Some("refused")));
}

/// B17: a template of a role that was not granted the secret; the key is not even tried.
#[test]
fn a_template_cannot_name_a_secret_of_another_role() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.edit("environments/production/secrets.toml", "{ cluster = \"web\" }", "{ nodes = [\"web02\"] }");
    let granted = converger::secrets::cover::recipients_digest([bed_recipient(&bed, "web02").as_str()]);
    let entry = bed.read("environments/production/secrets.toml");
    let old = entry.split("recipients = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    bed.edit("environments/production/secrets.toml", &old, &granted);
    bed.edit("roles/web/role.toml", "secret = \"token\"", "template = \"web.conf\"");
    bed.edit("roles/base/motd", "of", "{{ secret(name=\"token\") }}");
    bed.commit("everybody's password");
    let motd = node.text("etc/motd");
    node.once().exits(3).says(&["secret-not-granted", "token", "roles/base/motd"]);
    assert_eq!(node.text("etc/motd"), motd);
}

fn bed_recipient(bed: &Bed, node: &str) -> String {
    let key = std::fs::read_to_string(bed.dir().join("identities").join(node)).unwrap();
    key.trim().parse::<age::x25519::Identity>().unwrap().to_public().to_string()
}

/// B3: a plain `git revert` of a rotation. Nobody's word lifts the guard but a signed trailer's, for this very secret.
#[test]
fn a_revert_of_a_rotation_needs_a_signed_word() {
    let bed = Bed::new();
    let [node, ..] = members(&bed);
    bed.seal("token", 2, "rotated", &bed::NODES);
    bed.commit("rotate");
    node.once().exits(0);
    assert_eq!(node.text("etc/web/token"), "rotated");
    bed.forge.signing(Some("alice"), &["revert", "--no-edit", "HEAD"]);
    let trailer = "Converger-Allow: secret-rollback token";
    bed.converger(&["plan", "HEAD~1..HEAD"]).says(&["secret token: version 2 -> 1", trailer]);
    let said = node.once().exits(3).says(&["guarded", "secret token goes back from version 2 to version 1", trailer]);
    assert!(!said.all().contains("sesame"), "{}", said.all());
    bed.commit("for another one\n\nConverger-Allow: secret_rollback other");
    node.once().exits(3);
    assert_eq!(node.text("etc/web/token"), "rotated");
    bed.commit("it is meant\n\nConverger-Allow: secret_rollback token");
    node.once().exits(0);
    assert_eq!(node.text("etc/web/token"), "open sesame");
    assert_eq!(node.applied(), bed.forge.head());
}

/// The same word in a commit that nobody signed: refused before anybody reads it.
#[test]
fn an_unsigned_word_lifts_no_guard() {
    let bed = Bed::new();
    let [node, ..] = members(&bed);
    bed.seal("token", 2, "rotated", &bed::NODES);
    bed.commit("rotate");
    node.once().exits(0);
    bed.seal("token", 1, "open sesame", &bed::NODES);
    bed.forge.commit(None, "mine\n\nConverger-Allow: secret_rollback token");
    node.once().exits(4).says(&["unsigned"]);
    assert_eq!(node.text("etc/web/token"), "rotated");
}

/// The flag in the ledger: the template is plain now, and what is on disk is not.
#[test]
fn what_was_a_secret_file_is_shown_by_line_numbers_when_it_turns_plain() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.edit("roles/web/role.toml", "secret = \"token\"", "template = \"plain\"");
    bed.forge.write("roles/web/plain", "nothing to hide\n");
    bed.commit("plain");
    let said = node.agent(&["--once", "--dry-run"]).exits(5).says(&["~ /etc/web/token", "has secrets: lines 1 of 1"]);
    assert!(!said.all().contains("sesame"), "{}", said.all());
}

/// Somebody put a file there before us, by hand: with the same password, for all we know.
#[test]
fn what_a_secret_file_replaces_is_shown_by_line_numbers() {
    let bed = Bed::new();
    let node = bed.node("web01");
    node.put("etc/web/extra", "user = web\npassword = by hand\nport = 1\n");
    let role = bed.read("roles/web/role.toml");
    bed.forge
        .write("roles/web/role.toml", &format!("{role}\n[[file]]\npath = \"/etc/web/extra\"\ntemplate = \"extra\"\n"));
    bed.forge.write("roles/web/extra", "user = web\npassword = {{ secret(name=\"token\") }}\nport = 1\n");
    bed.commit("managed now");
    let said = node.agent(&["--once", "--dry-run"]).exits(5).says(&["~ /etc/web/extra", "lines 2 of 3 differ"]);
    assert!(!said.all().contains("by hand") && !said.all().contains("sesame"), "{}", said.all());
    node.once().exits(0);
    let backups = node.root.join("var/lib/converger/backups/etc/web/extra");
    let kept: Vec<_> = std::fs::read_dir(backups).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "a stranger's work is kept once");
    assert!(std::fs::read_to_string(&kept[0]).unwrap().contains("by hand"));
}

/// Killed while its unit stops, before the first file is exchanged: what is going to be written is in the ledger already,
/// as not written, and the unit as one whose files are old.
#[test]
fn the_ledger_knows_of_a_write_before_it_happens() {
    let bed = Bed::new();
    let [first, ..] = members(&bed);
    let role = bed.read("roles/web/role.toml");
    let file = "[[file]]\npath = \"/etc/web/new.conf\"\ntemplate = \"web.conf\"\nrestarts = [\"web.service\"]\n";
    bed.forge.write("roles/web/role.toml", &format!("{role}\n{file}"));
    bed.commit("one more file");
    let starts = events(&first).len();
    let mut agent = spawn(&first, &["--once"]);
    until("the stop", || events(&first).iter().skip(starts).any(|event| event == "stopping web.service"));
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(!first.root.join("etc/web/new.conf").exists(), "killed too late to prove anything");
    let ledger = rusqlite::Connection::open(first.root.join("var/lib/converger/ledger.db")).unwrap();
    let row = |sql: &str| -> serde_json::Value {
        let text: String = ledger.query_row(sql, [], |row| row.get(0)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(row("SELECT json FROM owned WHERE id LIKE '%/etc/web/new.conf%'")["written"], false);
    assert_eq!(row("SELECT json FROM pending WHERE name = 'web.service'")["swapped"], false);
    drop(ledger);
    first.once().exits(0);
    assert!(first.root.join("etc/web/new.conf").exists());
}

/// K8: the program is on its way out (an upgrade of its package) while the agent runs.
#[test]
fn an_agent_whose_program_was_deleted_goes_on() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let program = bed.dir().join("converger");
    std::fs::copy(env!("CARGO_BIN_EXE_converger"), &program).unwrap();
    let mut command = Command::new(&program);
    forge::hermetic(&mut command);
    let settings = node.root.join("etc/converger/agent.toml");
    command.arg("agent").arg("--root").arg(&node.root).arg("--settings").arg(settings);
    let mut agent = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let good = node.text("etc/motd");
    node.put("etc/motd", "damaged\n");
    until("it works", || node.text("etc/motd") == good);
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, "not a program").unwrap();
    bed.forge.write("roles/base/motd", "news\n");
    let head = bed.commit("news");
    until("the commit without a program on disk", || node.applied() == head);
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert_eq!(node.text("etc/motd"), "news\n");
}

/// What a seed's template has become concerns nobody who has the seed, and what is only audited nobody at all.
#[test]
fn a_seed_or_an_audited_file_restarts_and_reboots_nothing() {
    let bed = Bed::new();
    let node = bed.node("web01");
    for policy in ["seed", "audit"] {
        let path = format!("/etc/tool/{policy}.conf");
        let file = format!(
            "\n[[file]]\npath = \"{path}\"\ntemplate = \"{policy}\"\npolicy = \"{policy}\"\nreboot = true\n\
             restarts = [\"tool.service\"]\n"
        );
        bed.forge.write("roles/base/role.toml", &format!("{}{file}", bed.read("roles/base/role.toml")));
        bed.forge.write(&format!("roles/base/{policy}"), "one\n");
    }
    bed.commit("two files");
    node.once().exits(0);
    let starts = node.starts("tool.service");
    for policy in ["seed", "audit"] {
        bed.forge.write(&format!("roles/base/{policy}"), "two\n");
    }
    bed.commit("their templates move on");
    let said = node.once().exits(0);
    assert!(!said.all().contains("reboot") && !said.all().contains("restart"), "{said:?}");
    assert_eq!((node.starts("tool.service"), node.text("etc/tool/seed.conf")), (starts, "one\n".to_owned()));
}

/// It speaks for a member that is as its commit says.
#[test]
fn an_action_of_the_cluster_waits_for_the_units_of_its_node() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let action = "\n[[action]]\nname = \"topics\"\nrun = [\"topics\"]\nunless = [\"there\"]\nscope = \"cluster\"\n";
    bed.forge.write("roles/web/role.toml", &format!("{}{action}", bed.read("roles/web/role.toml")));
    bed.commit("topics");
    std::fs::remove_file(node.root.join("etc/web/web.conf")).unwrap();
    std::fs::create_dir(node.root.join("etc/web/web.conf")).unwrap();
    assert!(!node.once().exits(5).all().contains("action topics for web"));
    std::fs::remove_dir(node.root.join("etc/web/web.conf")).unwrap();
    node.once().exits(0).says(&["action topics for web"]);
}

/// D14: what the old role had goes when the new role is live, and its member leaves its group under a hold.
#[test]
fn a_node_that_moves_to_another_role_leaves_the_old_one_whole() {
    let bed = Bed::new();
    let [first, second, third] = members(&bed);
    bed.edit("environments/production/topology.toml", "clusters = [\"web\"]", "clusters = [\"spare\"]");
    let topology = bed.read("environments/production/topology.toml");
    let spare = "[clusters.spare]\ntier = \"front\"\nroles = [\"spare\"]\n\n";
    bed.forge
        .write("environments/production/topology.toml", &topology.replacen("[nodes.", &format!("{spare}[nodes."), 1));
    let role = "format = 1\n[[file]]\npath = \"/etc/spare.conf\"\ntemplate = \"spare.conf\"\n";
    bed.forge.write("roles/spare/role.toml", role);
    bed.forge.write("roles/spare/spare.conf", "spare\n");
    bed.seal_as("token", 1, "open sesame", &bed::NODES[1..], &bed::NODES[1..]);
    bed.commit("web01 becomes a spare");
    let before = events(&first).len();
    first.once().exits(6).says(&["order"]);
    assert!(first.root.join("etc/web/web.conf").exists());
    second.once().exits(0);
    third.once().exits(0);
    let said = first.once().exits(0);
    assert_eq!(first.text("etc/spare.conf"), "spare\n");
    let leaving = events(&first).split_off(before);
    assert_eq!(
        leaving,
        ["stopping web.service", "stopped web.service", "disabled web.service", "daemon-reload "],
        "{said:?}"
    );
    assert!(
        !first.root.join("etc/web/web.conf").exists() && !first.root.join("etc/systemd/system/web.service").exists()
    );
    nobody_holds(&bed);
}
