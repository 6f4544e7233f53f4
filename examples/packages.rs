//! Installs packages on the machine that it runs on, and looks at what its systemd made of them.
//!
//! Run by `tests/fleet/packages.sh` inside a test machine. Never: for a machine of anybody's.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use converger::clock::SystemClock;
use converger::host::linux::LinuxHost;
use converger::host::packages::Order;
use converger::host::{Host, Query, Step, Words};
use converger::name::UnitName;
use converger::resource::PackageSpec;
use converger::resource::package::PackageState;

const UNIT: &str = "/run/systemd/transient/converger-packages.service";
const POLICY: &str = "/usr/sbin/policy-rc.d";

fn main() {
    if std::env::args().nth(1).as_deref() == Some("install") {
        return install(&std::env::args().nth(2).unwrap());
    }
    let mut bad = 0;
    let mut expect = |what: &str, good: bool| {
        println!("{} {what}", if good { "ok  " } else { "FAIL" });
        bad += u32::from(!good);
    };
    repository();
    // A daemon that runs, as one of a group would, with the package's first version.
    sh("apt-get install -qq -y conv-daemon=1 >/dev/null && systemctl start conv-daemon");
    let before = invocation();
    expect("the daemon runs", !before.is_empty());
    install("2");
    expect("E4: an upgrade whose scripts restart the daemon in four ways leaves it alone", invocation() == before);
    expect("it is the new version", state() == installed("2"));
    expect("nobody's policy stays", !Path::new(POLICY).exists());
    expect("systemd knows the new unit file", sh("systemctl show -P Description conv-daemon").trim() == "version 2");
    expect("the script did run", std::fs::read_to_string("/tmp/ran").unwrap().contains("configure 1"));
    sh("apt-get install -qq -y --allow-downgrades conv-daemon=1 >/dev/null");
    expect("without us it would have restarted", invocation() != before);

    // F14: the agent is killed with all that is its own, as the kernel or systemd would.
    let mut agent = agent("3");
    wait("the package manager is at work", || Path::new("/tmp/slow").exists());
    expect("a policy is there", Path::new(POLICY).exists());
    sh("systemctl kill --signal=KILL agent.service; systemctl stop agent.service 2>/dev/null || true");
    let _ = agent.wait();
    expect("F14: the manager outlives the agent", Path::new(UNIT).exists() && state() != installed("3"));
    let clock = SystemClock;
    let next = LinuxHost::machine(&clock).unwrap();
    expect("an agent that comes meanwhile leaves the policy", Path::new(POLICY).exists());
    perform(&next, "3");
    expect("and waits: there is one manager, and its end is good", state() == installed("3"));
    expect("one script ran", std::fs::read_to_string("/tmp/slow").unwrap().lines().count() == 1);
    wait("the unit is gone", || !Path::new(UNIT).exists());
    expect("and so is the policy", !Path::new(POLICY).exists());

    // Nobody comes afterwards.
    std::fs::remove_file("/tmp/slow").unwrap();
    std::fs::write(POLICY, "#!/bin/sh\n# an administrator's\nexit 0\n").unwrap();
    let mut last = self::agent("4");
    wait("the package manager is at work", || Path::new("/tmp/slow").exists());
    sh("systemctl kill --signal=KILL agent.service; systemctl stop agent.service 2>/dev/null || true");
    let _ = last.wait();
    wait("it ends by itself", || !Path::new(UNIT).exists());
    expect("F14: finished without any agent", state() == installed("4"));
    expect(
        "an administrator's policy is back",
        std::fs::read_to_string(POLICY).unwrap().contains("an administrator's"),
    );
    if bad > 0 {
        println!("{bad} wrong");
        std::process::exit(1);
    }
}

/// An agent that installs this version, as a service of its own.
fn agent(version: &str) -> Child {
    let me = std::env::current_exe().unwrap();
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--wait", "--collect", "--unit=agent.service", "--"]).arg(me).args(["install", version]);
    command.stdin(Stdio::null()).spawn().unwrap()
}

fn install(version: &str) {
    let clock = SystemClock;
    perform(&LinuxHost::machine(&clock).unwrap(), version);
}

fn perform(host: &LinuxHost<'_>, version: &str) {
    let spec = PackageSpec { name: "conv-daemon".to_owned(), version: version.to_owned(), hold: false };
    host.perform(&Step::Install(Order { wanted: &[&spec], listed: &[&spec], words: Words::Told })).unwrap();
}

fn state() -> PackageState {
    let clock = SystemClock;
    let host = LinuxHost::machine(&clock).unwrap();
    let query = Query { packages: vec!["conv-daemon"], ..Query::default() };
    host.observe(&query).unwrap().packages.remove("conv-daemon").unwrap()
}

fn installed(version: &str) -> PackageState {
    PackageState::Installed { version: version.to_owned(), held: false }
}

fn invocation() -> String {
    let clock = SystemClock;
    let unit = UnitName::from("conv-daemon.service");
    let query = Query { units: vec![&unit], ..Query::default() };
    let observed = LinuxHost::machine(&clock).unwrap().observe(&query).unwrap();
    observed.units[&unit].invocation.clone()
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(90), "not within 90 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Four versions of a daemon whose scripts restart it in every way that packages know; from the third on they are slow.
fn repository() {
    sh("rm -rf /etc/apt/sources.list* /var/lib/apt/lists/*; mkdir -p /srv/repo; rm -f /usr/sbin/policy-rc.d");
    for version in 1..=4 {
        let tree = format!("/tmp/deb{version}");
        let write = |path: &str, text: &str| {
            let path = format!("{tree}/{path}");
            std::fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "DEBIAN/control",
            &format!(
                "Package: conv-daemon\nVersion: {version}\nArchitecture: all\nMaintainer: n <n@localhost>\nDescription: x\n"
            ),
        );
        write(
            "lib/systemd/system/conv-daemon.service",
            &format!(
                "[Unit]\nDescription=version {version}\n[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
            ),
        );
        let slow = if version >= 3 { "echo begin >>/tmp/slow\nsleep 6\n" } else { "" };
        write(
            "DEBIAN/postinst",
            &format!(
                "#!/bin/sh\nset -e\necho \"$1 $2\" >>/tmp/ran\n\
                 systemctl --system daemon-reload\ndeb-systemd-invoke restart conv-daemon.service\n\
                 invoke-rc.d conv-daemon restart || true\nsystemctl restart conv-daemon.service\n\
                 systemctl try-restart conv-daemon.service\n{slow}"
            ),
        );
        sh(&format!("chmod 755 {tree}/DEBIAN/postinst; dpkg-deb -Znone -b {tree} /srv/repo >/dev/null"));
    }
    sh("cd /srv/repo; for deb in *.deb; do dpkg-deb -f $deb; echo \"Filename: ./$deb\"; \
        echo \"Size: $(stat -c %s $deb)\"; echo \"SHA256: $(sha256sum $deb | cut -d' ' -f1)\"; echo; done >Packages; \
        echo 'deb [trusted=yes] file:/srv/repo ./' >/etc/apt/sources.list; apt-get update -qq");
}
