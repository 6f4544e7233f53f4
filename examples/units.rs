//! Drives the host's unit control against the systemd of the machine it runs on, and compares with what must come out.
//!
//! Run by `tests/fleet/units.sh` inside a test machine, whose unit files it makes. Never: for a machine of anybody's.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use converger::clock::SystemClock;
use converger::host::linux::LinuxHost;
use converger::host::{Host, HostError, Query, Step};
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

    let start = |unit| Step::Start { unit, within };
    let stop = |unit| Step::Stop { unit, within };
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
    machine.run(&Step::Reload { unit: &good, within }).unwrap();
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
    let result = machine.run(&Step::Reload { unit: &good, within });
    machine.expect_error("reload of what cannot reload", result, &["cannot reload good.service"]);

    let result = machine.run(&start(&bad));
    machine.expect_error("failed start", result, &["failed", "exit-code", "status 7", "cannot bind port 9092"]);
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
    let result = machine.run(&Step::Start { unit: &hangs, within: Duration::from_millis(700) });
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
    let enabled = machine.state("good.service").enabled;
    machine.run(&Step::Disable(&good)).unwrap();
    let disabled = !machine.state("good.service").enabled;
    machine.expect("enable and disable", enabled && disabled, (enabled, disabled));
    let result = machine.run(&Step::Enable(&fixed));
    machine.expect_error("enable without [Install]", result, &["[Install]"]);

    let vendor = name("systemd-logind.service");
    machine.run(&Step::Mask(&vendor)).unwrap();
    let masked = machine.state("systemd-logind.service");
    machine.run(&stop(&vendor)).unwrap();
    let result = machine.run(&start(&vendor));
    machine.expect_error("start of a masked unit", result, &["masked"]);
    machine.run(&Step::Unmask(&vendor)).unwrap();
    let unmasked = machine.state("systemd-logind.service").masked;
    machine.expect("mask and unmask", masked.masked && !unmasked, (masked.masked, unmasked));

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
