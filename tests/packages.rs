//! Packages by the real apt, dpkg, dnf and rpm, each test on a machine of its own (`machine`).
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "in tests")]

mod machine;

use std::os::unix::process::CommandExt as _;

use converger::host::packages::{Order, Packages, Parent};
use converger::host::{HostError, Words};
use converger::resource::PackageSpec;
use converger::resource::package::PackageState;
use converger::resource::version_order::VersionOrder;
use machine::{Deb, Statement, is_inside, key, publish_debs, run, use_apt, write};
use nix::unistd::Pid;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

const REPO: &str = "/srv/repo";
const HOME: &str = "/tmp/gnupg";

fn spec(name: &str, version: &str) -> PackageSpec {
    PackageSpec { name: name.to_owned(), version: version.to_owned(), hold: false }
}

fn held(name: &str, version: &str) -> PackageSpec {
    PackageSpec { hold: true, ..spec(name, version) }
}

fn packages() -> Packages {
    Packages::new(Parent::Agent).unwrap()
}

fn install(specs: &[PackageSpec]) -> Result<(), HostError> {
    install_with(&packages(), specs)
}

fn install_with(packages: &Packages, specs: &[PackageSpec]) -> Result<(), HostError> {
    let specs: Vec<&PackageSpec> = specs.iter().collect();
    packages.install(&Order { wanted: &specs, listed: &specs, words: Words::Told })
}

fn state(name: &str) -> PackageState {
    packages().observe(&[name]).remove(name).unwrap()
}

fn installed(version: &str) -> PackageState {
    PackageState::Installed { version: version.to_owned(), held: false }
}

fn on_hold(version: &str) -> PackageState {
    PackageState::Installed { version: version.to_owned(), held: true }
}

/// A signed repository with these, which apt has not looked at.
fn apt_repository(debs: &[Deb<'_>]) {
    let public = key(HOME);
    debs.iter().for_each(|deb| deb.build(REPO));
    publish_debs(REPO, Statement { home: HOME, valid_until: "now + 1 day" });
    use_apt(REPO, &format!("signed-by={public}"));
}

fn deb<'a>(name: &'a str, version: &'a str) -> Deb<'a> {
    Deb { name, version, ..Deb::default() }
}

#[test]
fn apt_installs_pins_holds_upgrades_and_goes_back() {
    if !is_inside("apt_installs_pins_holds_upgrades_and_goes_back") {
        return;
    }
    let needs = |version| Deb { control: "Depends: conv-library\n", ..deb("conv-app", version) };
    apt_repository(&[needs("1.0-1"), needs("2.0-1"), deb("conv-library", "1"), deb("conv-tool", "1")]);
    let one = packages();
    install_with(&one, &[held("conv-app", "1.0-1"), spec("conv-tool", "")]).unwrap();
    assert_eq!(state("conv-app"), on_hold("1.0-1"));
    assert_eq!((state("conv-library"), state("conv-tool")), (installed("1"), installed("1")));

    install(&[held("conv-app", "2.0-1")]).unwrap();
    assert_eq!(state("conv-app"), on_hold("2.0-1"));
    install(&[spec("conv-app", "2.0-1")]).unwrap();
    assert_eq!(state("conv-app"), installed("2.0-1"), "the hold is released");
    install(&[spec("conv-app", "1.0-1")]).unwrap();
    assert_eq!(state("conv-app"), installed("1.0-1"), "a revert goes back");

    // A version that came after the lists were fetched.
    needs("3.0-1").build(REPO);
    publish_debs(REPO, Statement { home: HOME, valid_until: "now + 1 day" });
    install(&[spec("conv-app", "3.0-1")]).unwrap();
    assert_eq!(state("conv-app"), installed("3.0-1"));
    let error = install(&[spec("conv-app", "9")]).unwrap_err().to_string();
    assert!(error.contains("conv-app=9") && error.contains("Version '9' for 'conv-app' was not found"), "{error}");
}

/// E5.
#[test]
fn a_plan_that_goes_beyond_the_list_is_refused_with_the_names_and_nothing_is_touched() {
    if !is_inside("a_plan_that_goes_beyond_the_list_is_refused_with_the_names_and_nothing_is_touched") {
        return;
    }
    let with = |name, version, control| Deb { control, ..deb(name, version) };
    apt_repository(&[
        deb("conv-etcd", "3"),
        deb("conv-library", "1"),
        deb("conv-library", "2"),
        with("conv-rude", "1", "Conflicts: conv-etcd\n"),
        with("conv-greedy", "1", "Depends: conv-library (>= 2)\n"),
        with("conv-old", "1", "Depends: conv-library (<< 2)\n"),
    ]);
    install(&[spec("conv-etcd", ""), spec("conv-library", "1")]).unwrap();
    let refused = |specs: &[PackageSpec], words: &[&str]| {
        let error = install(specs).unwrap_err();
        assert!(matches!(error, HostError::PackagePlan { .. }), "{error:?}");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    };
    refused(&[spec("conv-rude", "")], &["remove conv-etcd 3"]);
    refused(&[spec("conv-rude", ""), spec("conv-etcd", "")], &["remove conv-etcd 3"]);
    refused(&[spec("conv-greedy", "")], &["upgrade conv-library 2"]);
    assert_eq!((state("conv-rude"), state("conv-greedy")), (PackageState::Absent, PackageState::Absent));
    assert_eq!((state("conv-etcd"), state("conv-library")), (installed("3"), installed("1")));

    // Listed, it is meant: in one transaction.
    install(&[spec("conv-greedy", ""), spec("conv-library", "2")]).unwrap();
    assert_eq!((state("conv-greedy"), state("conv-library")), (installed("1"), installed("2")));
    let error = install(&[spec("conv-old", "")]).unwrap_err().to_string();
    assert!(error.contains("conv-old : Depends: conv-library (< 2)"), "{error}");
    assert_eq!(state("conv-library"), installed("2"));
}

/// E6.
#[test]
fn nothing_comes_from_a_repository_that_is_not_signed_or_has_expired() {
    if !is_inside("nothing_comes_from_a_repository_that_is_not_signed_or_has_expired") {
        return;
    }
    let public = key(HOME);
    deb("conv-app", "1").build(REPO);
    // What an administrator's own settings allow does not count.
    let lax = "APT::Get::AllowUnauthenticated \"true\";\nAcquire::AllowInsecureRepositories \"true\";\n\
               Acquire::Check-Valid-Until \"false\";\n";
    let refused = |signed_by: &str, statement: Statement<'_>, words: &str| {
        publish_debs(REPO, statement);
        use_apt(REPO, &format!("signed-by={signed_by}"));
        write("/etc/apt/apt.conf.d/lax", lax);
        let error = install(&[spec("conv-app", "")]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(state("conv-app"), PackageState::Absent);
    };
    let day = "now + 1 day";
    refused(&public, Statement { home: "", valid_until: day }, "is not signed");
    refused(&public, Statement { home: HOME, valid_until: "now - 1 day" }, "is expired");
    refused("/usr/share/keyrings/debian-archive-keyring.gpg", Statement { home: HOME, valid_until: day }, "NO_PUBKEY");
    publish_debs(REPO, Statement { home: HOME, valid_until: day });
    use_apt(REPO, &format!("signed-by={public}"));
    // A package that is not what the signed index says.
    run(&["sh", "-c", "apt-get update -qq && printf x >>/srv/repo/conv-app_1_all.deb"]);
    let error = install(&[spec("conv-app", "")]).unwrap_err().to_string();
    assert!(error.contains("File has unexpected size") || error.contains("Hash Sum mismatch"), "{error}");
    assert_eq!(state("conv-app"), PackageState::Absent);
}

/// E3.
#[test]
fn nobody_is_asked_and_a_changed_configuration_file_stays() {
    if !is_inside("nobody_is_asked_and_a_changed_configuration_file_stays") {
        return;
    }
    let files = |text| [("/etc/conv-app.conf", text)];
    // Of a person at a terminal, of stdin, and of debconf (which makes stdin its own).
    let asks = "#!/bin/sh\n! (exec </dev/tty) 2>/dev/null || exit 8\n[ -n \"$DEBIAN_HAS_FRONTEND\" ] || ! read answer || exit 9\n\
                . /usr/share/debconf/confmodule\ndb_input critical debconf/priority || true\ndb_go || true\n";
    let scripts = [("postinst", asks)];
    let (old, new) = (files("from the package 1\n"), files("from the package 2\n"));
    apt_repository(&[
        Deb { files: &old, scripts: &scripts, ..deb("conv-app", "1") },
        Deb { files: &new, scripts: &scripts, ..deb("conv-app", "2") },
    ]);
    install(&[spec("conv-app", "1")]).unwrap();
    write("/etc/conv-app.conf", "from the fleet\n");
    install(&[spec("conv-app", "2")]).unwrap();
    assert_eq!(std::fs::read_to_string("/etc/conv-app.conf").unwrap(), "from the fleet\n");
    // One that nobody changed goes along.
    write("/etc/conv-app.conf", "from the package 2\n");
    install(&[spec("conv-app", "1")]).unwrap();
    assert_eq!(std::fs::read_to_string("/etc/conv-app.conf").unwrap(), "from the package 1\n");
}

/// E1.
#[test]
fn a_lock_of_somebody_else_is_waited_for() {
    if !is_inside("a_lock_of_somebody_else_is_waited_for") {
        return;
    }
    apt_repository(&[deb("conv-app", "1")]);
    // POSIX locks are between processes: another one holds it until its stdin ends.
    let hold = "import fcntl, sys\nf = open('/var/lib/dpkg/lock-frontend', 'w')\nfcntl.lockf(f, fcntl.LOCK_EX)\n\
                print('locked', flush=True)\nsys.stdin.read()\n";
    let mut other = std::process::Command::new("python3")
        .args(["-c", hold])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(other.stdout.take().unwrap()), &mut line).unwrap();
    let waits = std::thread::spawn(|| install(&[spec("conv-app", "")]));
    // Long enough for all that it does without a lock.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(!waits.is_finished(), "it waits");
    drop(other.stdin.take());
    other.wait().unwrap();
    waits.join().unwrap().unwrap();
    assert_eq!(state("conv-app"), installed("1"));
}

/// E2.
#[test]
fn wherever_dpkg_is_killed_the_next_run_ends_as_an_undisturbed_one() {
    if !is_inside("wherever_dpkg_is_killed_the_next_run_ends_as_an_undisturbed_one") {
        return;
    }
    let script = "#!/bin/sh\nsleep 0.02\n";
    let scripts = ["preinst", "postinst", "prerm", "postrm"].map(|name| (name, script));
    let files = [("/opt/conv/one", "1\n"), ("/opt/conv/two", "2\n"), ("/etc/conv/three", "3\n")];
    let app = |version| Deb {
        control: "Depends: conv-library\n",
        files: &files,
        scripts: &scripts,
        ..deb("conv-app", version)
    };
    let library = Deb { files: &[("/opt/conv-library", "x\n")], scripts: &scripts, ..deb("conv-library", "1") };
    apt_repository(&[app("1"), app("2"), library]);
    let everything = || {
        run(&[
            "sh",
            "-c",
            "dpkg-query -W -f '${Package} ${Status} ${Version}\n' 'conv-*'; dpkg --audit; dpkg --verify conv-app; \
            find /opt/conv* /etc/conv* -type f | sort | xargs sha256sum; cd /var/lib/dpkg; ls updates; ls info | grep conv-",
        ])
    };
    let debs = "/srv/repo/conv-library_1_all.deb /srv/repo/conv-app_1_all.deb";
    let purge = || run(&["sh", "-c", "dpkg --purge conv-app conv-library 2>&1; rm -rf /opt/conv* /etc/conv"]);
    let start = || {
        purge();
        run(&["sh", "-c", &format!("dpkg -i {debs}")])
    };
    start();
    install(&[spec("conv-app", "2")]).unwrap();
    let undisturbed = everything();
    assert!(undisturbed.contains("conv-app install ok installed 2"), "{undisturbed}");
    let mut killed = 0;
    for point in 0..12 {
        // The upgrade, or the first installation.
        if point % 2 == 0 {
            start()
        } else {
            purge()
        };
        let _ = std::fs::remove_file("/var/log/dpkg.log");
        let mut manager = std::process::Command::new("sh");
        manager.args(["-c", "exec apt-get install -qq -y -o Dpkg::Use-Pty=0 conv-app=2 </dev/null >/dev/null 2>&1"]);
        let mut manager = manager.process_group(0).spawn().unwrap();
        // Each line is a step of dpkg's: all of it dies at once there, as by a power cut, and nobody cleans up.
        let steps = || std::fs::read_to_string("/var/log/dpkg.log").unwrap_or_default().lines().count();
        while steps() < 1 + point + point / 2 && manager.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let group = Pid::from_raw(manager.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        killed += u32::from(!manager.wait().unwrap().success());
        install(&[spec("conv-app", "2")]).unwrap_or_else(|error| panic!("killed at point {point}: {error}"));
        assert_eq!(everything(), undisturbed, "killed at point {point}");
    }
    assert!(killed >= 5, "killed in the middle {killed} times only");
}

#[test]
fn a_package_goes_when_nothing_else_needs_it_and_its_configuration_stays() {
    if !is_inside("a_package_goes_when_nothing_else_needs_it_and_its_configuration_stays") {
        return;
    }
    let files = [("/etc/conv-app.conf", "x\n")];
    let app = Deb { files: &files, control: "Depends: conv-library\n", ..deb("conv-app", "1") };
    let stranger = Deb { control: "Depends: conv-needed\n", ..deb("conv-stranger", "1") };
    apt_repository(&[app, stranger, deb("conv-library", "1"), deb("conv-needed", "1")]);
    install(&[held("conv-app", ""), spec("conv-library", ""), spec("conv-needed", "")]).unwrap();
    run(&["apt-get", "install", "-qq", "-y", "conv-stranger"]);
    let stays = packages().remove(&["conv-app", "conv-library", "conv-needed", "conv-not-there"], Words::Told).unwrap();
    assert_eq!(stays, ["package conv-needed stays: conv-stranger would go too"]);
    assert_eq!((state("conv-app"), state("conv-library")), (PackageState::Absent, PackageState::Absent));
    assert_eq!((state("conv-needed"), state("conv-stranger")), (installed("1"), installed("1")));
    assert!(std::path::Path::new("/etc/conv-app.conf").exists(), "nothing is purged");
    assert!(packages().remove(&["conv-needed"], Words::Told).unwrap().len() == 1, "alone too");
}

/// E4: what asks `policy-rc.d` or systemctl; the rest of it, on a running systemd, is `tests/fleet/packages.sh`.
#[test]
fn a_maintainer_script_starts_nothing() {
    if !is_inside("a_maintainer_script_starts_nothing") {
        return;
    }
    let postinst = "#!/bin/sh\nset -e\npolicy=0\n/usr/sbin/policy-rc.d conv-app start || policy=$?\n\
                    echo $policy $SYSTEMD_OFFLINE $NEEDRESTART_SUSPEND >/tmp/environment\n";
    apt_repository(&[Deb { scripts: &[("postinst", postinst)], ..deb("conv-app", "1") }]);
    // Of this machine's own, if it is a container.
    let _ = std::fs::remove_file("/usr/sbin/policy-rc.d");
    install(&[spec("conv-app", "")]).unwrap();
    assert_eq!(std::fs::read_to_string("/tmp/environment").unwrap(), "101 1 1\n");
    assert!(!std::path::Path::new("/usr/sbin/policy-rc.d").exists(), "it goes again");
}

/// What createrepo_c and rpmbuild make of these: name, version, more lines of the spec, and scriptlets.
fn rpm_repository(rpms: &[(&str, &str, &str, &str)]) {
    for (name, version, lines, scriptlets) in rpms {
        let (version, release) = version.rsplit_once('-').unwrap();
        let text = format!(
            "Name: {name}\nVersion: {version}\nRelease: {release}\nSummary: x\nLicense: x\nBuildArch: noarch\nAutoReqProv: no\n\
             {lines}\n%description\nx\n%install\nmkdir -p %{{buildroot}}/opt/conv\necho {version} >%{{buildroot}}/opt/conv/{name}\n\
             {scriptlets}\n%files\n/opt/conv/{name}\n"
        );
        let path = format!("/tmp/rpm/{name}-{version}.spec");
        write(&path, &text);
        run(&["rpmbuild", "-bb", "--quiet", "--define", "_topdir /tmp/rpm", "--define", "_rpmdir /srv/repo", &path]);
    }
    run(&["createrepo_c", "-q", "--compatibility", REPO]);
}

/// This machine is of the other family from now on: dnf knows this repository and no other.
fn use_dnf(options: &str) {
    write("/etc/os-release", "ID=rocky\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=9.4\n");
    write("/etc/rpm/macros", "%_dbpath /var/lib/rpm\n");
    run(&[
        "sh",
        "-c",
        "rm -rf /var/lib/rpm /etc/yum.repos.d /etc/dnf/plugins/local.conf /var/cache/dnf; mkdir -p /var/lib/rpm; rpm --initdb",
    ]);
    write("/etc/dnf/plugins/local.conf", "[main]\nenabled=0\n");
    write("/etc/yum.repos.d/test.repo", &format!("[test]\nname=test\nbaseurl=file://{REPO}\n{options}\n"));
}

#[test]
fn dnf_installs_pins_holds_upgrades_and_goes_back() {
    if !is_inside("dnf_installs_pins_holds_upgrades_and_goes_back") {
        return;
    }
    let needs = "Requires: conv-library\nEpoch: 1";
    rpm_repository(&[
        ("conv-app", "1.0-1", needs, ""),
        ("conv-app", "2.0-1", needs, ""),
        ("conv-library", "1-1", "", ""),
        ("conv-tool", "1-1", "", ""),
    ]);
    use_dnf("gpgcheck=0");
    install(&[held("conv-app", "1:1.0-1"), spec("conv-tool", "")]).unwrap();
    assert_eq!(state("conv-app"), on_hold("1:1.0-1"));
    assert_eq!((state("conv-library"), state("conv-tool")), (installed("1-1"), installed("1-1")));
    // Others are held to it.
    run(&["dnf", "-q", "-y", "upgrade"]);
    assert_eq!(state("conv-app"), on_hold("1:1.0-1"));

    install(&[held("conv-app", "1:2.0-1")]).unwrap();
    assert_eq!(state("conv-app"), on_hold("1:2.0-1"));
    install(&[spec("conv-app", "1:2.0-1")]).unwrap();
    assert_eq!(state("conv-app"), installed("1:2.0-1"), "the hold is released");
    install(&[spec("conv-app", "1:1.0-1")]).unwrap();
    assert_eq!(state("conv-app"), installed("1:1.0-1"), "a revert goes back");

    rpm_repository(&[("conv-app", "3.0-1", needs, "")]);
    install(&[spec("conv-app", "1:3.0-1")]).unwrap();
    assert_eq!(state("conv-app"), installed("1:3.0-1"), "its lists are fetched when they are old");
    let error = install(&[spec("conv-app", "9-1")]).unwrap_err().to_string();
    assert!(error.contains("conv-app-9-1"), "{error}");

    run(&["mv", "/etc/dnf/plugins/versionlock.conf", "/tmp"]);
    let error = install(&[held("conv-tool", "")]).unwrap_err().to_string();
    assert!(error.contains("versionlock"), "{error}");
}

/// E5, E6.
#[test]
fn dnf_is_refused_what_goes_beyond_the_list_and_what_is_not_signed() {
    if !is_inside("dnf_is_refused_what_goes_beyond_the_list_and_what_is_not_signed") {
        return;
    }
    rpm_repository(&[
        ("conv-etcd", "3-1", "", ""),
        ("conv-library", "1-1", "", ""),
        ("conv-library", "2-1", "", ""),
        ("conv-greedy", "1-1", "Requires: conv-library >= 2", ""),
    ]);
    use_dnf("gpgcheck=0");
    install(&[spec("conv-etcd", ""), spec("conv-library", "1-1")]).unwrap();
    rpm_repository(&[("conv-rude", "1-1", "Obsoletes: conv-etcd", "")]);
    run(&["dnf", "-q", "clean", "all"]);
    let refused = |name: &str, words: &str| {
        let error = install(&[spec(name, "")]).unwrap_err();
        assert!(matches!(error, HostError::PackagePlan { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(state(name), PackageState::Absent);
    };
    refused("conv-rude", "remove conv-etcd 3-1");
    refused("conv-greedy", "upgrade conv-library 2-1");
    assert_eq!((state("conv-etcd"), state("conv-library")), (installed("3-1"), installed("1-1")));

    let stays = packages().remove(&["conv-etcd", "conv-not-there"], Words::Told).unwrap();
    assert_eq!((stays.len(), state("conv-etcd")), (0, PackageState::Absent));
    let error = install(&[spec("conv-etcd", "")]).unwrap_err().to_string();
    assert!(error.contains("nothing for conv-etcd, only for: conv-rude"), "{error}");
    install(&[spec("conv-greedy", ""), spec("conv-library", "2-1")]).unwrap();
    let stays = packages().remove(&["conv-library"], Words::Told).unwrap();
    assert_eq!(stays, ["package conv-library stays: conv-greedy would go too"]);

    // A repository that does not say that its packages are not signed.
    use_dnf("");
    let error = install(&[spec("conv-rude", "")]).unwrap_err().to_string();
    assert!(error.contains("GPG"), "{error}");
    assert_eq!(state("conv-rude"), PackageState::Absent);
}

/// E4, of rpm: `SYSTEMD_OFFLINE` is what systemctl goes by, and a scriptlet has it. On this machine systemd does not run:
/// with the variable systemctl says that it leaves it out, without it that there is no systemd.
#[test]
fn a_scriptlet_of_rpm_starts_nothing() {
    if !is_inside("a_scriptlet_of_rpm_starts_nothing") {
        return;
    }
    let restart = "%post -p /usr/bin/bash\nsystemctl try-restart conv-app.service >/opt/conv/said 2>&1\n\
                   echo \"exit $?\" >>/opt/conv/said\ntrue";
    rpm_repository(&[("conv-app", "1-1", "", restart), ("conv-bash", "1-1", "Provides: /usr/bin/bash", "")]);
    use_dnf("gpgcheck=0");
    install(&[spec("conv-app", "")]).unwrap();
    let said = std::fs::read_to_string("/opt/conv/said").unwrap();
    assert!(said.contains("ignoring command 'try-restart'") && said.ends_with("exit 0\n"), "{said}");
    run(&["dnf", "-q", "-y", "reinstall", "conv-app"]);
    let said = std::fs::read_to_string("/opt/conv/said").unwrap();
    assert!(!said.contains("ignoring"), "without us it would have tried: {said}");
}

/// E2, of rpm: what an upgrade leaves that is killed between the new version and the old one.
#[test]
fn an_interrupted_rpm_upgrade_is_finished() {
    if !is_inside("an_interrupted_rpm_upgrade_is_finished") {
        return;
    }
    rpm_repository(&[("conv-app", "1-1", "", ""), ("conv-app", "2-1", "", "")]);
    use_dnf("gpgcheck=0");
    install(&[spec("conv-app", "1-1")]).unwrap();
    run(&["rpm", "-i", "--force", "/srv/repo/noarch/conv-app-2-1.noarch.rpm"]);
    assert_eq!(state("conv-app"), PackageState::Half("installed as 1-1 and 2-1".to_owned()));
    install(&[spec("conv-app", "2-1")]).unwrap();
    assert_eq!(state("conv-app"), installed("2-1"));
    assert_eq!(run(&["rpm", "-qa"]).trim(), "conv-app-2-1.noarch");
    assert_eq!(std::fs::read_to_string("/opt/conv/conv-app").unwrap(), "2\n");
}

/// Numbers, letters and everything that either order treats in its own way.
fn version() -> impl Strategy<Value = String> {
    let part = "[0-9a-c.+~]{1,6}";
    (prop::option::of("[0-9]{1,2}"), "[0-9]", part, prop::option::of("[0-9a-c.+~]{1,4}")).prop_map(
        |(epoch, first, rest, release)| {
            let epoch = epoch.map(|epoch| format!("{epoch}:")).unwrap_or_default();
            let release = release.map(|release| format!("-{release}")).unwrap_or_default();
            format!("{epoch}{first}{rest}{release}")
        },
    )
}

fn samples(caret: bool) -> Vec<(String, String)> {
    let mut runner = TestRunner::deterministic();
    let pair = (version(), version(), prop::bool::ANY);
    (0..400)
        .map(|_| {
            let (a, b, near) = pair.new_tree(&mut runner).unwrap().current();
            // Half of them differ in one place only.
            let near = a.rfind(['.', '1', 'a']).filter(|at| near && *at > a.find(':').map_or(0, |colon| colon + 1));
            let mark = if caret { "^" } else { "~" };
            let b = near.map_or(b, |at| format!("{}{mark}{}", &a[..at], &a[at + 1..]));
            (a, b)
        })
        .collect()
}

#[test]
fn versions_are_ordered_as_dpkg_orders_them() {
    for (a, b) in samples(false) {
        let says = |relation: &str| {
            let status = std::process::Command::new("dpkg").args(["--compare-versions", &a, relation, &b]).status();
            status.unwrap().success()
        };
        let order = VersionOrder::Dpkg.compare(&a, &b);
        let relation = ["lt", "eq", "gt"][usize::try_from(order as i8 + 1).unwrap()];
        assert!(says(relation), "{a} {relation} {b}");
        assert_eq!(VersionOrder::Dpkg.is_downgrade(&a, &b), order.is_gt());
    }
}

#[test]
fn versions_are_ordered_as_rpm_orders_them() {
    let samples = samples(true);
    let pairs: Vec<String> = samples.iter().map(|(a, b)| format!("print(rpm.vercmp('{a}', '{b}'))")).collect();
    let said = run(&["rpm", "--eval", &format!("%{{lua:{}}}", pairs.join("; ").replace("))", ") .. '\\n')"))]);
    let said: Vec<i8> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(said.len(), samples.len());
    for ((a, b), said) in samples.iter().zip(said) {
        assert_eq!(VersionOrder::Rpm.compare(a, b) as i8, said, "{a} {b}");
    }
}
