//! Drives the host's unit control against the systemd of the machine it runs on, and compares with what must come out.
//!
//! Run by `tests/fleet/units.sh` inside a test machine, whose unit files it makes. Never: for a machine of anybody's.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use converger::clock::SystemClock;
use converger::host::linux::LinuxHost;
use converger::host::{Host, HostError, Query, Step, Words};
use converger::name::UnitName;
use converger::resource::UnitState;
use converger::resource::unit::Active;

struct Machine<'a> {
    host: LinuxHost<'a>,
    bad: u32,
}

impl Machine<'_> {
    fn state(&self, unit: &str) -> UnitState {
        let unit = UnitName::from(unit);
        let query = Query { units: vec![&unit], ..Query::default() };
        self.host.observe(&query).unwrap().units.remove(&unit).unwrap()
    }

    fn run(&self, step: &Step<'_>) -> Result<Duration, HostError> {
        self.host.perform(step).map(|done| done.took)
    }

    fn expect(&mut self, what: &str, good: bool, seen: impl std::fmt::Debug) {
        println!("{} {what}: {seen:?}", if good { "ok  " } else { "FAIL" });
        self.bad += u32::from(!good);
    }

    fn expect_error(&mut self, what: &str, result: Result<Duration, HostError>, words: &[&str]) {
        let said = result.map_or_else(|error| error.to_string(), |_| "no error".to_owned());
        self.expect(what, words.iter().all(|word| said.contains(word)), said);
    }
}

fn write(unit: &str, text: &str) {
    std::fs::write(format!("/etc/systemd/system/{unit}"), text).unwrap();
}

/// Units without an own file, with another's, or that are made while the machine runs.
fn kinds(machine: &mut Machine<'_>) {
    let (within, words) = (Duration::from_secs(20), Words::Told);
    write("many@.service", "[Service]\nExecStart=/bin/sleep infinity\n");
    write("timed.service", "[Service]\nType=oneshot\nExecStart=/bin/true\n");
    write("timed.timer", "[Timer]\nOnCalendar=2099-01-01\n[Install]\nWantedBy=timers.target\n");
    write(
        "named.service",
        "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nAlias=alias.service\nWantedBy=multi-user.target\n",
    );
    std::fs::create_dir_all("/opt/linked").unwrap();
    std::fs::write("/opt/linked/linked.service", "[Service]\nExecStart=/bin/sleep infinity\n").unwrap();
    let _ = std::os::unix::fs::symlink("/opt/linked/linked.service", "/etc/systemd/system/linked.service");
    std::fs::create_dir_all("/run/systemd/generator").unwrap();
    machine.run(&Step::DaemonReload).unwrap();
    for unit in ["many@1.service", "timed.timer", "named.service", "linked.service"] {
        let unit = UnitName::from(unit);
        machine.run(&Step::Start { unit: &unit, within, words }).unwrap();
        let state = machine.state(unit.as_str());
        machine.expect(&format!("{unit} starts"), state.active == Active::Active && state.loaded, state.active);
        machine.run(&Step::Stop { unit: &unit, within, words }).unwrap();
        let state = machine.state(unit.as_str());
        machine.expect(&format!("{unit} stops"), state.active == Active::Inactive, state.active);
    }
    let named = UnitName::from("named.service");
    machine.run(&Step::Enable(&named)).unwrap();
    machine.run(&Step::DaemonReload).unwrap();
    let alias = machine.state("alias.service");
    machine.expect("an alias is the unit itself", alias.loaded && alias.enabled, &alias);
    machine.run(&Step::Disable(&named)).unwrap();
    machine.run(&Step::DaemonReload).unwrap();
    let left = std::fs::symlink_metadata("/etc/systemd/system/alias.service").is_ok();
    machine.expect("its links go with it", !left, left);
    let made = std::process::Command::new("systemd-run").args(["--unit=made", "-q", "/bin/sleep", "infinity"]).status();
    assert!(made.unwrap().success());
    let state = machine.state("made.service");
    machine.expect(
        "a transient unit is seen",
        state.loaded && state.active == Active::Active && !state.enabled,
        &state,
    );
    let result = machine.run(&Step::Enable(&UnitName::from("made.service"))).map(drop);
    machine.expect("and cannot be enabled", result.is_err(), result.map_err(|error| error.to_string()));
    machine.run(&Step::Stop { unit: &UnitName::from("made.service"), within, words }).unwrap();
}

/// F2, F4, F10, F13, and limits that a service hits by itself.
fn limits(machine: &mut Machine<'_>) {
    let (within, words) = (Duration::from_secs(60), Words::Told);
    write(
        "loops.service",
        "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n[Service]\nExecStart=/bin/sh -c 'echo out of luck; exit 3'\nRestart=always\nRestartSec=0\n",
    );
    write("steady.service", "[Service]\nExecStart=/bin/sleep infinity\n");
    machine.run(&Step::DaemonReload).unwrap();
    let loops = UnitName::from("loops.service");
    let _ = machine.run(&Step::Start { unit: &loops, within, words });
    let failed = |machine: &Machine<'_>| machine.state("loops.service").active == Active::Failed;
    let mut looks = 0;
    while !failed(machine) && looks < 600 {
        std::thread::sleep(Duration::from_millis(100));
        looks += 1;
    }
    machine.expect("a service meets its start limit", failed(machine), looks);
    write(
        "loops.service",
        "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n[Service]\nExecStart=/bin/sleep infinity\n",
    );
    machine.run(&Step::DaemonReload).unwrap();
    let result = machine.run(&Step::Start { unit: &loops, within, words }).map(drop);
    machine.expect("a good version starts in spite of it", result.is_ok(), result);

    for manager in ["daemon-reload", "daemon-reexec"] {
        let noise = std::process::Command::new("sh")
            .args(["-c", &format!("while :; do systemctl {manager} || :; sleep 0.2; done")])
            .spawn();
        let mut noise = noise.unwrap();
        let unit = UnitName::from("steady.service");
        let rounds = if manager == "daemon-reload" { 60 } else { 20 };
        let good = (0..rounds).filter(|_| {
            let stopped = machine.run(&Step::Stop { unit: &unit, within, words });
            let started = stopped.and_then(|_| machine.run(&Step::Start { unit: &unit, within, words }));
            if let Err(error) = &started {
                println!("     {error}");
            }
            started.is_ok() && machine.state("steady.service").active == Active::Active
        });
        let good = good.count();
        noise.kill().unwrap();
        noise.wait().unwrap();
        machine.expect(&format!("every restart beside {manager} ends, and well"), good == rounds, good);
    }
}

/// F9
fn dead_bus(machine: &mut Machine<'_>) {
    let (within, words) = (Duration::from_secs(5), Words::Told);
    let unit = UnitName::from("steady.service");
    let before = machine.state("steady.service");
    let shown =
        std::process::Command::new("systemctl").args(["show", "-P", "MainPID", "dbus.service"]).output().unwrap();
    let bus: i32 = String::from_utf8(shown.stdout).unwrap().trim().parse().unwrap();
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(bus), signal).unwrap();
    signal(nix::sys::signal::Signal::SIGSTOP);
    let result = machine.run(&Step::Stop { unit: &unit, within, words });
    signal(nix::sys::signal::Signal::SIGCONT);
    machine.expect_error("a bus that hangs ends the attempt", result, &["does not answer"]);
    let mut after = Err(());
    for _ in 0..600 {
        let query = Query { units: vec![&unit], ..Query::default() };
        if let Ok(seen) = machine.host.observe(&query) {
            after = Ok(seen.units[&unit].clone());
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    machine.expect("afterwards it answers, and nothing was stopped", after.as_ref() == Ok(&before), &after);
}

fn main() {
    let clock = SystemClock;
    let mut machine = Machine { host: LinuxHost::machine(&clock).unwrap(), bad: 0 };
    let within = Duration::from_secs(20);
    let service = |body: &str| format!("[Service]\n{body}\n[Install]\nWantedBy=multi-user.target\n");
    write("good.service", &service("ExecStart=/bin/sleep infinity\nExecReload=/bin/true"));
    write(
        "bad.service",
        &service("Type=exec\nExecStart=/bin/sh -c 'echo cannot bind port 9092; exit 7'\nType=oneshot"),
    );
    write("hangs.service", &service("Type=notify\nExecStart=/bin/sleep infinity"));
    write(
        "stubborn.service",
        &service("ExecStart=/bin/sh -c 'trap \"\" TERM; sleep infinity & wait; sleep infinity'\nTimeoutStopSec=2"),
    );
    write("once.service", &service("Type=oneshot\nExecStart=/bin/true"));
    write("skipped.service", "[Unit]\nConditionPathExists=/no/such/path\n[Service]\nExecStart=/bin/sleep infinity\n");
    write("static.service", "[Service]\nExecStart=/bin/sleep infinity\n");
    write(
        "needy.service",
        "[Unit]\nRequires=bad.service\nAfter=bad.service\n[Service]\nExecStart=/bin/sleep infinity\n",
    );

    let name = |unit: &'static str| UnitName::from(unit);
    let (good, bad, hangs, stubborn) =
        (name("good.service"), name("bad.service"), name("hangs.service"), name("stubborn.service"));
    let (once, skipped, fixed, needy) =
        (name("once.service"), name("skipped.service"), name("static.service"), name("needy.service"));
    let (none, odd) = (name("none.service"), name("not a unit"));
    machine.run(&Step::DaemonReload).unwrap();

    let words = Words::Told;
    let start = |unit| Step::Start { unit, within, words };
    let stop = |unit| Step::Stop { unit, within, words };
    let took = machine.run(&start(&good)).unwrap();
    let first = machine.state("good.service");
    machine.expect(
        "start",
        first.active == Active::Active && first.loaded && first.invocation.len() == 32,
        (&first, took),
    );
    machine.run(&start(&good)).unwrap();
    let again = machine.state("good.service");
    machine.expect("start of what runs changes nothing", again == first, &again.invocation);
    machine.run(&Step::Reload { unit: &good, within, words }).unwrap();
    let reloaded = machine.state("good.service").invocation;
    machine.expect("reload keeps the invocation", reloaded == first.invocation, &reloaded);
    let took = machine.run(&stop(&good)).unwrap();
    let stopped = machine.state("good.service");
    machine.expect("stop", stopped.active == Active::Inactive, (stopped.active, took));
    machine.run(&start(&good)).unwrap();
    let second = machine.state("good.service").invocation;
    machine.expect("stop and start make a new invocation", second != first.invocation, &second);

    write("good.service", &service("ExecStart=/bin/sleep 86400"));
    let stale = machine.state("good.service").needs_daemon_reload;
    machine.run(&Step::DaemonReload).unwrap();
    let fresh = machine.state("good.service").needs_daemon_reload;
    machine.expect("daemon-reload is needed until it is done", stale && !fresh, (stale, fresh));
    let result = machine.run(&Step::Reload { unit: &good, within, words });
    machine.expect_error("reload of what cannot reload", result, &["cannot reload good.service"]);

    let result = machine.run(&start(&bad));
    machine.expect_error("failed start", result, &["failed", "exit-code", "status 7", "cannot bind port 9092"]);
    let result = machine.run(&Step::Start { unit: &bad, within, words: Words::Kept });
    let kept = result.as_ref().is_err_and(|error| !error.to_string().contains("cannot bind"));
    machine.expect_error("failed start with secrets near", result, &["status 7", "journalctl _SYSTEMD_INVOCATION_ID="]);
    machine.expect("its journal is not repeated", kept, "");
    let failed = machine.state("bad.service").active;
    machine.expect("failed start leaves a failed unit", failed == Active::Failed, failed);
    for _ in 0..6 {
        let _ = machine.run(&start(&bad));
    }
    let result = machine.run(&start(&bad));
    machine.expect_error("a start limit does not hide why", result, &["status 7"]);
    let result = machine.run(&start(&needy));
    machine.expect_error("failed dependency", result, &["dependency"]);

    let began = Instant::now();
    let result = machine.run(&Step::Start { unit: &hangs, within: Duration::from_millis(700), words });
    let waited = began.elapsed();
    machine.expect_error("start that does not end", result, &["longer than 0.7 s"]);
    machine.expect("its wait is bounded", waited < Duration::from_secs(2), waited);
    machine.run(&stop(&hangs)).unwrap();

    machine.run(&start(&stubborn)).unwrap();
    let took = machine.run(&stop(&stubborn)).unwrap();
    let state = machine.state("stubborn.service").active;
    machine.expect(
        "stop of one that has to be killed",
        matches!(state, Active::Failed | Active::Inactive),
        (state, took),
    );

    machine.run(&start(&once)).unwrap();
    let state = machine.state("once.service").active;
    machine.expect("a oneshot that ended well is no failed start", state == Active::Inactive, state);
    let result = machine.run(&start(&skipped));
    machine.expect_error("unmet condition", result, &["cannot start skipped.service", "a condition"]);

    let state = machine.state("none.service");
    machine.expect("missing unit", state == UnitState::missing(), &state);
    let result = machine.run(&start(&none));
    machine.expect_error("start of a missing unit", result, &["none.service", "not found"]);
    let result = machine.run(&stop(&none)).map(|_| ());
    machine.expect("stop of a missing unit is nothing to do", result.is_ok(), result);
    let result = machine.run(&start(&odd));
    machine.expect_error("bad name", result, &["cannot start not a unit"]);

    machine.run(&Step::Enable(&good)).unwrap();
    machine.run(&Step::DaemonReload).unwrap();
    let enabled = machine.state("good.service").enabled;
    machine.run(&Step::Disable(&good)).unwrap();
    machine.run(&Step::DaemonReload).unwrap();
    let disabled = !machine.state("good.service").enabled;
    machine.expect("enable and disable", enabled && disabled, (enabled, disabled));
    let result = machine.run(&Step::Enable(&fixed));
    machine.expect_error("enable without [Install]", result, &["[Install]"]);

    let vendor = name("systemd-logind.service");
    machine.run(&Step::Mask(&vendor)).unwrap();
    machine.run(&Step::DaemonReload).unwrap();
    let masked = machine.state("systemd-logind.service");
    machine.run(&stop(&vendor)).unwrap();
    let result = machine.run(&start(&vendor));
    machine.expect_error("start of a masked unit", result, &["masked"]);
    machine.run(&Step::Unmask(&vendor)).unwrap();
    machine.run(&Step::DaemonReload).unwrap();
    let unmasked = machine.state("systemd-logind.service").masked;
    machine.expect("mask and unmask", masked.masked && !unmasked, (masked.masked, unmasked));

    kinds(&mut machine);
    limits(&mut machine);
    dead_bus(&mut machine);

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let inside = runtime.block_on(async { machine.state("good.service").active });
    machine.expect("asked from inside another runtime", inside == Active::Active, inside);
    let units: Vec<UnitName> = (0..20).map(|n| UnitName::new(format!("u{n}.service"))).collect();
    let began = Instant::now();
    machine.host.observe(&Query { units: units.iter().collect(), ..Query::default() }).unwrap();
    println!("     20 units observed in {:?}", began.elapsed());

    println!("{} of the expectations were not met", machine.bad);
    std::process::exit(i32::from(machine.bad > 0));
}
