//! Brings the machine that it runs on to what a directory says, by the agent's own hops from looking to applying.
//!
//! `apply WANT [before|after STEP]`: `WANT/files/…` are files of root's; `WANT/units` has `UNIT STATE [enabled]` a line;
//! `WANT/restarts` and `WANT/reloads` have `PATH UNIT`; `WANT/groups` has the units of one group each, and if `WANT/held`
//! is there, another member has them. It ends itself, as by SIGKILL, before or after the first step that begins with STEP.
//! Run by `tests/fleet/units.sh` in a test machine. Never: for a machine of anybody's.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use converger::apply::{self, Reach, Tools};
use converger::clock::SystemClock;
use converger::fleet::Group;
use converger::fleet::schema::{Membership, Quorum};
use converger::host::confirm;
use converger::host::linux::LinuxHost;
use converger::host::{Done, Host, HostError, Observed, Query, Step};
use converger::ledger::Ledger;
use converger::lock::fake::FakeStore;
use converger::lock::protocol;
use converger::lock::session::{Circle, Record, RecordPhase, Session};
use converger::lock::store::{LockStore, Transaction, Write};
use converger::name::{CommitId, GroupId, NodeName, UnitName};
use converger::pipeline::observe;
use converger::plan::{self, risk};
use converger::probe::fake::{self, FakeProbe};
use converger::render::Desired;
use converger::resource::file::{FileSpec, Policy};
use converger::resource::unit::Wanted;
use converger::resource::{Content, Digest, Origin, Placed, Resource, UnitSpec};

const STATE: &str = "/var/lib/converger-test";
/// Where the host keeps what can be put back.
const CONFIRM: &str = "/var/lib/converger";
const ME: &str = "me";

fn lines(want: &Path, name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(want.join(name)).unwrap_or_default();
    text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

fn files(at: &Path, found: &mut Vec<std::path::PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(at).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn desired(want: &Path) -> Desired {
    let mut resources = Vec::new();
    let mut place = |resource: Resource, restarts: Vec<UnitName>, reloads: Vec<UnitName>| {
        let role = resource.id().name.as_str().into();
        let origin = Origin { role, cluster: None, path: "roles/x/role.toml".into(), line: 1 };
        resources.push(Placed { resource, origin, restarts, reloads, before: Vec::new(), reboot: false });
    };
    let units = lines(want, "units");
    let mut found = Vec::new();
    files(&want.join("files"), &mut found);
    for file in found {
        let path = format!("/{}", file.strip_prefix(want.join("files")).unwrap().display());
        let named = |name: &str| -> Vec<UnitName> {
            let lines = lines(want, name).into_iter().filter(|line| line[0] == path);
            lines.map(|line| UnitName::new(line[1].clone())).collect()
        };
        let inside = path.strip_prefix("/etc/systemd/system/").unwrap_or_default();
        let own = inside.split_once(".d/").map_or(inside, |(unit, _)| unit);
        let own = units.iter().filter(|unit| unit[0] == own).map(|unit| UnitName::new(unit[0].clone()));
        let (restarts, reloads) = (named("restarts").into_iter().chain(own).collect(), named("reloads"));
        let spec = FileSpec {
            path: path.as_str().into(),
            content: Content::plain(std::fs::read(&file).unwrap()),
            owner: "root".to_owned(),
            group: "root".to_owned(),
            mode: std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            policy: Policy::Enforce,
            validate: None,
        };
        place(Resource::File(spec), restarts, reloads);
    }
    for unit in &units {
        let spec = UnitSpec {
            name: UnitName::new(unit[0].clone()),
            enabled: unit.get(2).map(|word| word == "enabled"),
            state: match unit[1].as_str() {
                "stopped" => Wanted::Stopped,
                "masked" => Wanted::Masked,
                _ => Wanted::Running,
            },
            before_stop: Vec::new(),
            transfer: Vec::new(),
            after_start: Vec::new(),
            stop_secs_max: 30,
            start_secs_max: 10,
            reload_hold: true,
            restart_epoch: 0,
            lease_secs: None,
        };
        place(Resource::Unit(spec), Vec::new(), Vec::new());
    }
    Desired {
        node: ME.into(),
        state: Membership::Active,
        commit: None,
        resources,
        sealed: Vec::new(),
        strikes: Vec::new(),
    }
}

fn group(unit: &str) -> Group {
    Group {
        id: GroupId::new(unit.replace(".service", ".members")),
        members: [ME, "other"].map(NodeName::from).to_vec(),
        changing: std::collections::BTreeMap::new(),
        quorum: Quorum::None,
        max_unavailable: 1,
        rank: Vec::new(),
        conflicts: Vec::new(),
        aliases: Vec::new(),
        unit: unit.into(),
        gate: Some("up".to_owned()),
        leader: None,
        settle_secs: 0,
        role: "x".into(),
    }
}

fn circle(group: &Group) -> Circle<'_> {
    let question = |member: &NodeName| fake::question(&ME.into(), member, &group.unit);
    Circle {
        group: std::borrow::Cow::Borrowed(group),
        view: None,
        conflicts: Vec::new(),
        gate: group.members.iter().map(question).collect(),
        leader: Vec::new(),
        after: Vec::new(),
    }
}

/// The machine, and the step at which the agent dies.
struct Dying<'a> {
    host: LinuxHost<'a>,
    before: Option<String>,
    after: Option<String>,
}

fn name_of(step: &Step<'_>) -> String {
    match step {
        Step::Stage(..) => "stage".to_owned(),
        Step::Swap => "swap".to_owned(),
        Step::Remove(path, _) => format!("remove {path}"),
        Step::Activate(what, spec, _) => format!("{} {}", what.tool(), spec.path),
        Step::DaemonReload => "daemon-reload".to_owned(),
        Step::Disable(unit) => format!("disable {unit}"),
        Step::Start { unit, .. } => format!("start {unit}"),
        Step::Stop { unit, .. } => format!("stop {unit}"),
        _ => String::new(),
    }
}

impl Host for Dying<'_> {
    fn observe(&self, query: &Query<'_>) -> Result<Observed, HostError> {
        self.host.observe(query)
    }

    fn perform(&self, step: &Step<'_>) -> Result<Done, HostError> {
        let name = name_of(step);
        let is = |at: &Option<String>| at.as_ref().is_some_and(|at| name.starts_with(at.as_str()));
        let die = || nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
        if is(&self.before) {
            die();
        }
        let done = self.host.perform(step);
        if is(&self.after) {
            die();
        }
        done
    }
}

/// As the agent does first: a change that nobody confirmed is put back. True: there was one.
fn undo(host: &dyn Host, ledger: &mut Ledger) -> bool {
    let state = Path::new(CONFIRM);
    if confirm::is_open(state) {
        host.perform(&Step::RollBack("it was killed")).unwrap();
    }
    let Some(undone) = confirm::undone(state) else { return false };
    ledger.interrupted(&undone.undo, &undone.why).unwrap();
    host.perform(&Step::Noted).unwrap();
    true
}

/// Another one whenever something else is wanted.
fn commit(desired: &Desired, want: &Path) -> CommitId {
    let resources = desired.resources.iter().map(|placed| placed.resource.inputs());
    let lists = ["restarts", "reloads", "groups"].map(|name| format!("{:?}", lines(want, name)));
    let parts: Vec<Digest> = resources.chain(lists.iter().map(|list| Digest::of(list.as_bytes()))).collect();
    let digest = Digest::of_parts(parts.iter().map(|part| part.bytes().as_slice()));
    CommitId::new(digest.to_string().chars().take(40).collect::<String>())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let want = Path::new(&arguments[0]);
    let at = |word: &str| (arguments.get(1).map(String::as_str) == Some(word)).then(|| arguments[2].clone());
    let clock = SystemClock;
    let host = Dying { host: LinuxHost::machine(&clock).unwrap(), before: at("before"), after: at("after") };
    std::fs::create_dir_all(STATE).unwrap();
    let mut ledger = Ledger::open(&Path::new(STATE).join("ledger.db")).unwrap();

    let undone = undo(&host, &mut ledger);
    let desired = desired(want);
    let groups: Vec<Group> = lines(want, "groups").iter().map(|line| group(&line[0])).collect();
    let groups: Vec<&Group> = groups.iter().collect();
    let known = ledger.known().unwrap();
    // A change that can take the node away is one for every group that anything here ever ran under.
    let live = known.units.values().flat_map(|ran| &ran.groups);
    let live: BTreeSet<&GroupId> = live.filter(|id| groups.iter().all(|declared| declared.id != **id)).collect();
    let live: Vec<Group> = live.into_iter().map(|id| group(&id.as_str().replace(".members", ".service"))).collect();
    let observed = observe(&host, &desired, &known, ledger.fingerprints()).unwrap();
    let plan = plan::plan(&desired, &observed, &known, &groups);
    ledger.keep_rolled_back(&risk::wanted(&plan, &desired)).unwrap();
    for id in &plan.strangers {
        println!("audit {id}");
    }

    // Another store in each run, and as good.
    let _ = std::fs::remove_file(Path::new(STATE).join("store.json"));
    let store = FakeStore::new("one", Arc::new(SystemClock));
    if want.join("held").exists() {
        for group in &groups {
            let hold = br#"{ "taken": "by other" }"#.to_vec();
            let put = Write::Put(protocol::hold_key(&group.id, 0, &"other".into()), hold);
            store.commit(&Transaction { when: Vec::new(), then: vec![put] }).unwrap();
        }
    }
    let probe = FakeProbe::healthy([ME, "other"]);
    let me = NodeName::from(ME);
    let session = Session {
        me: &me,
        store: Ok(&store),
        probe: &probe,
        clock: &clock,
        boot_id: observed.boot_id.clone(),
        state_is_old: true,
        record_path: Path::new(STATE).join("hold.json"),
        pin_path: Path::new(STATE).join("store.json"),
        circles: groups.iter().copied().chain(&live).map(circle).collect(),
        commit: commit(&desired, want),
        seq: 1,
        windows: Vec::new(),
        clusters: Vec::new(),
    };
    // Every gate is healthy: with another commit, what had failed has settled.
    let healed = |record: &Record| record.phase == RecordPhase::Failed && record.commit != session.commit;
    if undone || session.record().as_ref().is_some_and(healed) {
        session.settled().unwrap();
    }
    let stop = AtomicBool::new(false);
    let mut tools = Tools {
        host: &host,
        ledger: &mut ledger,
        session: &session,
        stop: &stop,
        observed: &observed,
        reach: &Reach::NOTHING,
    };
    let outcome = apply::apply(&plan, &mut tools).unwrap();
    for line in outcome.done.iter().flat_map(|acted| &acted.lines) {
        println!("{line}");
    }
    for (batch, because) in &outcome.deferred {
        println!("deferred {batch}: {}", because.sentence);
    }
    for (batch, because) in &outcome.failed {
        println!("failed {batch}: {} {}", because.reason, because.sentence);
    }
    // Every gate is healthy: what has acted has settled.
    if session.record().is_some() && outcome.is_converged() {
        session.settled().unwrap();
    }
    if outcome.is_converged() {
        let settled = ledger.units().unwrap().into_iter().map(|(unit, mut ran)| {
            ran.settled = true;
            (unit, ran)
        });
        let settled: Vec<_> = settled.collect();
        ledger.ran(&settled).unwrap();
    }
    std::process::exit(i32::from(!outcome.is_converged()));
}
