//! Drives validators, steps, actions and guards on the machine it runs on, and compares with what must come out.
//!
//! Run by `tests/fleet/programs.sh` inside a test machine. `act` is an agent that is killed in the middle of an action.
//! Never: for a machine of anybody's.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use converger::clock::SystemClock;
use converger::host::command::argv;
use converger::host::linux::LinuxHost;
use converger::host::{Host, HostError, Query, Step, Words};
use converger::name::UnitName;
use converger::resource::action::{ActionState, Scope};
use converger::resource::file::{Policy, Previous, Validate};
use converger::resource::{ActionSpec, Content, FileSpec};

struct Machine<'a> {
    host: LinuxHost<'a>,
    bad: u32,
}

/// The longest that anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

impl Machine<'_> {
    fn expect(&mut self, what: &str, good: bool, seen: impl std::fmt::Debug) {
        println!("{} {what}: {seen:?}", if good { "ok  " } else { "FAIL" });
        self.bad += u32::from(!good);
    }

    fn good(&mut self, what: &str, result: Result<(), HostError>) {
        let said = result.map_err(|error| error.to_string());
        self.expect(what, said.is_ok(), said);
    }

    fn refused(&mut self, what: &str, result: Result<(), HostError>, words: &[&str]) {
        let said = result.map_or_else(|error| error.to_string(), |()| "no error".to_owned());
        self.expect(what, said != "no error" && words.iter().all(|word| said.contains(word)), said);
    }

    fn step(&self, script: &str, user: &str, within: Duration) -> Result<(), HostError> {
        let argv = argv(["sh", "-c", script]);
        self.host.perform(&Step::Run { argv: &argv, user, within, words: Words::Told }).map(drop)
    }

    fn stage(&self, specs: &[FileSpec]) -> Result<(), HostError> {
        let staged = self
            .host
            .perform(&Step::Stage(specs.iter().map(|spec| (spec, Previous::Kept)).collect(), Words::Told))
            .map(drop);
        self.host.perform(&Step::Unstage).unwrap();
        staged
    }

    /// Validates one plain file that says `text` with a script; `$0` is the candidate.
    fn check(&self, text: &str, script: &str) -> Result<(), HostError> {
        self.stage(&[validated(file("/etc/app/app.conf", text), script)])
    }
}

fn file(path: &str, text: &str) -> FileSpec {
    FileSpec {
        path: path.into(),
        content: Content::plain(text.as_bytes().to_vec()),
        owner: "root".into(),
        group: "root".into(),
        mode: 0o640,
        policy: Policy::Enforce,
        validate: None,
    }
}

fn secret(path: &str, value: &str, owner: &str) -> FileSpec {
    let content = Content::secret(Some(value.as_bytes().to_vec().into()), b"masked".to_vec(), Vec::new());
    FileSpec { content, owner: owner.into(), mode: 0o600, ..file(path, "") }
}

fn validated(spec: FileSpec, script: &str) -> FileSpec {
    let run = argv(["sh", "-c", script, "{}"]);
    let rules = Validate { run, user: String::new(), ok_exit: Vec::new(), fail_on: Vec::new(), ignore: Vec::new() };
    FileSpec { validate: Some(rules), ..spec }
}

fn checked_by(user: &str, spec: FileSpec) -> FileSpec {
    let rules = spec.validate.clone().map(|rules| Validate { user: user.to_owned(), ..rules });
    FileSpec { validate: rules, ..spec }
}

fn action(name: &str, script: &str) -> ActionSpec {
    ActionSpec {
        name: name.to_owned(),
        run: argv(["sh", "-c", script]),
        creates: None,
        unless: argv(["test", "-e", "/root/acted"]),
        user: String::new(),
        scope: Scope::Node,
        on: String::new(),
    }
}

/// Counts its runs, and how many of them go on at once; takes its time; says much.
const SLOW: &str = "mkdir /root/acting || echo twice >>/root/runs; echo run >>/root/runs; sleep 5; \
                    head -c 300000 /dev/zero; echo said >&2 || exit 9; rmdir /root/acting; touch /root/acted";

fn write(path: &str, text: &str, mode: u32) {
    let path = Path::new(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn until(what: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if what() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

fn running(pattern: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let mut line = Vec::new();
        let opened = std::fs::File::open(entry.path().join("cmdline"));
        let _ = opened.map(|mut file| file.read_to_end(&mut line));
        String::from_utf8_lossy(&line).replace('\0', " ").starts_with(pattern)
    })
}

fn units() -> String {
    let listed = Process::new("systemctl").args(["list-units", "--all", "--no-legend", "converger-*"]).output();
    String::from_utf8(listed.unwrap().stdout).unwrap()
}

fn another(what: &str) -> Child {
    Process::new(std::env::current_exe().unwrap()).arg(what).stdout(Stdio::null()).spawn().unwrap()
}

fn main() {
    let clock = SystemClock;
    let mut machine = Machine { host: LinuxHost::machine(&clock).unwrap(), bad: 0 };
    match std::env::args().nth(1).as_deref() {
        Some("act") => {
            let acted = machine.host.perform(&Step::Act(&action("slow", SLOW), Words::Told));
            std::process::exit(i32::from(acted.is_err()));
        }
        Some("step") => drop(machine.step("echo x >>/root/steps; exec sleep 5977", "", PATIENCE * 10)),
        Some("check") => drop(machine.check("x", "touch /tmp/x; exec sleep 5978")),
        _ => {
            write("/etc/systemd/system/app.service", "[Service]\nExecStart=/bin/sleep infinity\n", 0o644);
            machine.host.perform(&Step::DaemonReload).unwrap();
            let app = UnitName::from("app.service");
            machine.host.perform(&Step::Start { unit: &app, within: PATIENCE, words: Words::Told }).unwrap();
            steps(&mut machine);
            out_of_reach(&mut machine, &app);
            candidates(&mut machine);
            hostile_validators(&mut machine);
            secrets(&mut machine);
            deaths(&mut machine);
            costs(&mut machine);
            println!("{} of the expectations were not met", machine.bad);
            std::process::exit(i32::from(machine.bad > 0));
        }
    }
}

/// C10: argument lists, environment, descriptors, users, exit codes, time.
fn steps(machine: &mut Machine<'_>) {
    let exact = "a b; $(id) `id` $HOME ${HOME} $$ %n %% \"q\" \\x {}";
    let list = argv(["sh", "-c", "test \"$1\" = \"$(cat /root/exact)\" && test $# = 1", "sh", exact]);
    write("/root/exact", exact, 0o600);
    let step = Step::Run { argv: &list, user: "", within: PATIENCE, words: Words::Told };
    let result = machine.host.perform(&step).map(drop);
    machine.good("an argument arrives as it is", result);
    let script = "test \"$(env | cut -d= -f1 | grep -v -x -e PWD -e _ -e SHLVL | sort | tr '\\n' ' ')\" = 'LANG PATH '";
    let result = machine.step(script, "", PATIENCE);
    machine.good("the environment is PATH and LANG", result);
    let result = machine.step("env >&2; exit 1", "daemon", PATIENCE);
    machine.refused("also of another user", result, &["exit 1", "LANG=C.UTF-8"]);
    let held = std::fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty()).unwrap();
    let result = machine.step("test \"$(ls /proc/self/fd | tr '\\n' ' ')\" = '0 1 2 3 '", "", PATIENCE);
    machine.good("no descriptor is inherited", result);
    let result = machine.step("id -un; exit 3", "daemon", PATIENCE);
    machine.refused("exit code and user", result, &["exit 3: daemon"]);
    let result = machine.step("kill -TERM $$", "", PATIENCE);
    machine.refused("a signal", result, &["exit 143"]);
    let result = machine.step("echo", "no-such-user", PATIENCE);
    machine.refused("a user that is not there", result, &["no user no-such-user"]);
    let missing = argv(["/no/such/program"]);
    let step = Step::Run { argv: &missing, user: "", within: PATIENCE, words: Words::Told };
    let result = machine.host.perform(&step).map(drop);
    machine.refused("a program that is not there", result, &["cannot be started"]);
    let script = "setsid sleep 5971 & (setsid sh -c 'sleep 5972 & sleep 5973' &) ; exec sleep 5974";
    let result = machine.step(script, "", Duration::from_secs(2));
    machine.refused("its time is over", result, &["did not end within 2 s and was killed"]);
    let gone = until(|| !running("sleep 597"));
    machine.expect("with it dies what left its process group", gone, "");
    let result = machine.step("setsid sleep 5975 >/dev/null 2>&1 & echo", "", PATIENCE);
    machine.good("a step that leaves something behind", result);
    machine.expect("what it left is gone when it ends", !running("sleep 5975"), "");
    let result = machine.step("head -c 10000000 /dev/zero; echo end >&2; exit 4", "", PATIENCE);
    machine.refused("a flood of words is cut", result, &["exit 4", "end"]);
    let result = machine.step("ulimit -c; exit 5", "", PATIENCE);
    machine.refused("no core dump", result, &["exit 5: 0"]);
    machine.expect("no unit is left", until(|| units().is_empty()), units());
}

/// A step reaches neither systemd nor the bus, also as root.
fn out_of_reach(machine: &mut Machine<'_>, app: &UnitName) {
    for script in [
        "systemctl stop app.service",
        "systemctl --no-block kill app.service",
        "SYSTEMCTL_FORCE_BUS=1 systemctl stop app.service",
        "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager StopUnit ss app.service replace",
        "systemd-run true",
        "NOTIFY_SOCKET=/run/systemd/notify systemd-notify STOPPING=1",
        "rm /run/systemd/private",
        "umount /run/dbus && systemctl stop app.service",
        "umount -l /run/systemd/private && systemctl stop app.service",
        "nsenter -t 1 -m systemctl stop app.service",
        "chroot /proc/1/root systemctl stop app.service",
        "unshare -m true",
        "echo $$ >/sys/fs/cgroup/cgroup.procs",
    ] {
        let result = machine.step(script, "", PATIENCE);
        machine.refused(script, result, &["exit "]);
    }
    let state = machine.host.observe(&Query { units: vec![app], ..Query::default() }).unwrap();
    let active = state.units.values().all(converger::resource::UnitState::is_running);
    machine.expect("the service runs", active && Path::new("/run/systemd/private").exists(), "");
    let guard = ActionSpec { unless: argv(["systemctl", "is-active", "app.service"]), ..action("asks", "true") };
    let seen = machine.host.observe(&Query { actions: vec![&guard], ..Query::default() }).unwrap();
    machine.expect("nor does a guard", seen.actions["asks"] == ActionState::Needed, &seen.actions["asks"]);
    let guard = ActionSpec { unless: argv(["/no/such/guard"]), ..guard };
    let seen = machine.host.observe(&Query { actions: vec![&guard], ..Query::default() }).unwrap();
    let unknown = matches!(seen.actions["asks"], ActionState::Unknown(_));
    machine.expect("a guard that cannot be asked says nothing", unknown, &seen.actions["asks"]);
}

/// Candidates are seen where they will be, all of a batch together, and nowhere else.
fn candidates(machine: &mut Machine<'_>) {
    write("/etc/app/app.conf", "old", 0o644);
    write("/etc/app/stays.conf", "stays", 0o644);
    write("/etc/app/conf.d/10-old.conf", "ten", 0o644);
    let script = "cd / && test \"$0\" = /etc/app/app.conf && test \"$(cat \"$0\")\" = new && \
        test \"$(cat /etc/app/conf.d/*.conf | tr '\\n' ' ')\" = 'ten twenty ' && \
        cd \"${0%/*}\" && test \"$(cat conf.d/20-new.conf)\" = twenty && test \"$(cat stays.conf)\" = stays && \
        test \"$(cat ../app-other/deep/er/x.conf)\" = other && id -un | grep -x nobody";
    let batch = [
        validated(file("/etc/app/app.conf", "new"), script),
        file("/etc/app/conf.d/20-new.conf", "twenty\n"),
        file("/etc/app-other/deep/er/x.conf", "other"),
    ];
    write("/etc/app/conf.d/10-old.conf", "ten\n", 0o644);
    let result = machine.stage(&batch);
    machine.good("includes of the batch and of what stays, absolute, relative, by pattern", result);
    let untouched = read("/etc/app/app.conf") == "old"
        && !Path::new("/etc/app/conf.d/20-new.conf").exists()
        && !Path::new("/etc/app-other/deep/er/x.conf").exists();
    machine.expect("nothing is live", untouched, read("/etc/app/app.conf"));
    let as_root =
        checked_by("root", validated(file("/etc/app/app.conf", "new"), "test \"$(stat -c %a%U \"$0\")\" = 640root"));
    let result = machine.stage(&[as_root]);
    machine.good("root sees owner and mode as they will be", result);
    write("/srv/closed/in.conf", "beside", 0o644);
    std::fs::set_permissions("/srv/closed", std::fs::Permissions::from_mode(0o700)).unwrap();
    let script = "test \"$(cat \"$0\")\" = new && cd \"${0%/*}\" && test \"$(cat twin.conf)\" = twin && ! cat in.conf";
    let closed = [validated(file("/srv/closed/app.conf", "new"), script), file("/srv/closed/twin.conf", "twin")];
    let result = machine.stage(&closed);
    machine.good("where its user does not come, a copy with the batch beside it", result);
    let mounts = read("/proc/self/mountinfo");
    machine.expect("nothing stays mounted", !mounts.contains("converger-validate"), "");
    let left = std::fs::read_dir("/run/converger-validate").unwrap().count();
    machine.expect("nothing stays in memory", left == 0, left);
    std::fs::create_dir_all("/srv/real").unwrap();
    std::os::unix::fs::symlink("/srv/real", "/srv/link").unwrap();
    let script =
        "test \"$(cat \"$0\")\" = new && cmp \"$0\" /srv/real/app.conf && cmp /srv/link/b.conf /srv/real/b.conf";
    let linked = [validated(file("/srv/link/app.conf", "new"), script), file("/srv/real/b.conf", "b")];
    let result = machine.stage(&linked);
    machine.good("through a link of root's", result);
    let comma = validated(file("/srv/a, b:c/d.conf", "new"), "test \"$(cat \"$0\")\" = new");
    std::fs::create_dir_all("/srv/a, b:c").unwrap();
    let result = machine.stage(&[comma]);
    machine.good("a directory with a comma, a blank and a colon", result);
}

/// C9: hangs, forks, writes, connects, says yes and means no.
fn hostile_validators(machine: &mut Machine<'_>) {
    let result = machine.check("x", "echo ok; exit 0");
    machine.good("a validator that is content", result);
    let result = machine.check("x", "echo bad line 3 of $0 >&2; exit 1");
    machine.refused("one that is not", result, &["/etc/app/app.conf", "exit 1", "bad line 3"]);
    std::fs::create_dir_all("/srv/apart").unwrap();
    rustix::mount::mount("apart", "/srv/apart", "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    for script in [
        "echo y >/etc/app/stays.conf",
        "echo y >\"$0\"",
        "touch /var/tmp/../lib/y",
        "touch /run/y",
        "touch /root/y",
        "touch /srv/apart/y",
        "systemctl stop app.service",
        "mount -t tmpfs x /mnt",
        "unshare -rm true",
        "cat /root/exact",
    ] {
        let as_nobody = validated(file("/etc/app/app.conf", "x"), script);
        let result = machine.stage(std::slice::from_ref(&as_nobody));
        machine.refused(&format!("nobody: {script}"), result, &["exit "]);
        if script != "cat /root/exact" {
            let result = machine.stage(&[checked_by("root", as_nobody)]);
            machine.refused(&format!("root: {script}"), result, &["exit "]);
        }
    }
    let result = machine.check("x", "touch /tmp/mine && ls /tmp | grep -qx mine");
    machine.good("it has a /tmp", result);
    machine.expect("of its own", !Path::new("/tmp/mine").exists(), "");
    let result = machine.check("x", "touch /dev/shm/mine");
    machine.good("and a /dev/shm", result);
    machine.expect("of its own too", !Path::new("/dev/shm/mine").exists(), "");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect =
        format!("bash -c 'exec 3<>/dev/tcp/{}'", listener.local_addr().unwrap().to_string().replace(':', "/"));
    let result = machine.step(&connect, "", PATIENCE);
    machine.good("a step reaches the network", result);
    let result = machine.check("x", &connect);
    machine.refused("a validator does not", result, &["exit "]);
    let bind = "perl -MIO::Socket -e 'IO::Socket::INET->new(Listen=>1,LocalPort=>80) or die \"no: $!\"'";
    let result = machine.check("x", bind);
    machine.good("but may ask whether it could listen", result);
    let rules = Validate {
        run: argv(["sh", "-c", "(setsid sleep 5976 &); exec sleep 5979"]),
        user: String::new(),
        ok_exit: Vec::new(),
        fail_on: Vec::new(),
        ignore: Vec::new(),
    };
    let hangs = FileSpec { validate: Some(rules), ..file("/etc/app/app.conf", "x") };
    let result = machine.stage(&[hangs]);
    machine.refused("one that hangs", result, &["did not end within 30 s and was killed"]);
    let gone = until(|| !running("sleep 5976") && !running("sleep 5979"));
    machine.expect("is dead with what it forked", gone, "");
}

fn secrets(machine: &mut Machine<'_>) {
    let script = "id -un; cat \"$0\"; cat /etc/app/other.key && exit 2; exit 1";
    let batch = [
        validated(secret("/etc/app/own.key", "hunter2", "daemon"), script),
        secret("/etc/app/other.key", "swordfish", "root"),
    ];
    let result = machine.stage(&batch);
    let silent = result.as_ref().is_err_and(|error| !error.to_string().contains("hunter2"));
    machine.refused("a secret's validator is its owner and reads no other", result, &["exit 1", "on the node only"]);
    machine.expect("and its words are not told", silent, "");
    let kept = read("/run/converger/said/validate--etc-app-own.key");
    machine.expect("they are kept", kept.starts_with("daemon\nhunter2") && !kept.contains("swordfish"), &kept);
    let plain = validated(file("/etc/app/app.conf", "x"), "! cat /etc/app/own.key /etc/app/other.key");
    let result = machine.stage(
        &[plain, batch[0].clone(), batch[1].clone()]
            .map(|spec| FileSpec { validate: spec.validate.filter(|_| !spec.content.is_secret()), ..spec }),
    );
    machine.good("nobody reads neither", result);
}

/// The agent is killed in the middle.
fn deaths(machine: &mut Machine<'_>) {
    let mut agent = another("act");
    let began = until(|| read("/root/runs").contains("run"));
    machine.expect("an action begins", began, units());
    agent.kill().unwrap();
    agent.wait().unwrap();
    let result = machine.host.perform(&Step::Act(&action("slow", SLOW), Words::Told)).map(drop);
    machine.good("the next run waits for the action of a dead agent", result);
    machine.expect(
        "which came to its end, once",
        read("/root/runs") == "run\n" && Path::new("/root/acted").exists(),
        read("/root/runs"),
    );
    std::fs::remove_file("/root/acted").unwrap();
    let [mut one, mut two] = [another("act"), another("act")];
    let done = [one.wait().unwrap().success(), two.wait().unwrap().success()];
    let once =
        done.contains(&true) && !read("/root/runs").contains("twice") && read("/root/runs").contains("run\nrun\n");
    machine.expect("of two at once one is refused, or waits", once, (done, read("/root/runs")));

    let mut agent = another("step");
    let began = until(|| running("sleep 5977"));
    agent.kill().unwrap();
    agent.wait().unwrap();
    machine.expect("a step outlives its agent for a while", began && running("sleep 5977"), units());
    let mut agent = another("check");
    machine.expect("but not the start of the next", until(|| !running("sleep 5977")), units());
    let began = until(|| running("sleep 5978"));
    agent.kill().unwrap();
    agent.wait().unwrap();
    let mounted = || read("/proc/self/mountinfo").contains("converger-validate");
    machine.expect("a validator with its view", began && mounted(), units());
    machine.host = LinuxHost::machine(&SystemClock).unwrap();
    let gone = !mounted() && !running("sleep 5978");
    machine.expect("is gone with its view when the next agent starts", gone, units());
}

fn costs(machine: &mut Machine<'_>) {
    let began = Instant::now();
    for _ in 0..20 {
        machine.step("exit 0", "", PATIENCE).unwrap();
    }
    println!("     a step: {:?}", began.elapsed() / 20);
    let began = Instant::now();
    for _ in 0..20 {
        machine.check("x", "exit 0").unwrap();
    }
    println!("     a validator: {:?}", began.elapsed() / 20);
    let guard = action("g", "true");
    let began = Instant::now();
    for _ in 0..20 {
        machine.host.observe(&Query { actions: vec![&guard], ..Query::default() }).unwrap();
    }
    println!("     a guard: {:?}", began.elapsed() / 20);
}
