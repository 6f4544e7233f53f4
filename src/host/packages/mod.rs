//! Packages of the system's own package manager.
//!
//! One order is one transaction: what an interrupted one left is finished first, the manager's plan is looked at before
//! anything is touched, and what it did is looked at afterwards. Nothing is started, stopped or restarted by it: units have
//! their own steps, under the hold where one is needed. Never: more than the repository lists, a purge, a package without a
//! good signature, a wait for the package manager without end.

mod apt;
mod busy;
mod child;
mod dnf;
mod manager;
mod no_starts;
mod transaction;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use manager::Manager;
use transaction::{Change, Effect};

pub use child::Parent;

use super::HostError;
use super::command::{Command, Output};
use super::root::Root;
use super::said::{self, Words};
use crate::clock::{Clock, SystemClock};
use crate::resource::PackageSpec;
use crate::resource::package::PackageState;

const OBSERVE_WITHIN: Duration = Duration::from_secs(30);
/// Lists of packages that are younger are not fetched again.
const REFRESH_AFTER: Duration = Duration::from_secs(300);

/// What the manager is asked for.
pub struct Operation {
    verb: Verb,
    /// As the manager takes them, with their version where one is wanted.
    names: Vec<String>,
    /// Names of packages that an interrupted manager left half unpacked: unpacked again.
    half: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Install,
    /// Configuration files stay.
    Remove,
}

impl Operation {
    fn verb(&self) -> &'static str {
        match self.verb {
            Verb::Install => "install",
            Verb::Remove => "remove",
        }
    }

    fn failed(&self, why: String) -> HostError {
        HostError::Package { operation: self.verb(), names: self.names.join(", "), why }
    }
}

/// What the repository wants of the packages of one batch.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// What is not as it must be.
    pub wanted: &'a [&'a PackageSpec],
    /// All that the batch lists: these may change, as they are listed, and no others.
    pub listed: &'a [&'a PackageSpec],
    pub words: Words,
}

pub struct Packages {
    manager: Manager,
    parent: Parent,
    root: Root,
    /// When the lists were last fetched, in awake time.
    refreshed: Cell<Option<Duration>>,
}

impl Packages {
    /// Of this machine.
    pub fn new(parent: Parent) -> Result<Self, HostError> {
        let root = Root::open(Path::new("/"))?;
        Ok(Self { manager: Manager::of_this_machine(), parent, root, refreshed: Cell::new(None) })
    }

    /// Takes back what a crash left, if nothing of ours runs any more; what runs takes it back itself.
    pub fn clean(&self) -> Result<(), HostError> {
        if child::is_running() { Ok(()) } else { no_starts::clean(&self.root) }
    }

    /// One question for all of them.
    pub fn observe(&self, names: &[&str]) -> BTreeMap<String, PackageState> {
        if names.is_empty() {
            return BTreeMap::new();
        }
        let state: Box<dyn Fn(&str) -> PackageState> = match self.query(names) {
            Ok(states) => Box::new(move |name| states.get(name).cloned().unwrap_or(PackageState::Absent)),
            Err(why) => Box::new(move |_| PackageState::Unknown(why.clone())),
        };
        names.iter().map(|name| ((*name).to_owned(), state(name))).collect()
    }

    fn query(&self, names: &[&str]) -> Result<BTreeMap<String, PackageState>, String> {
        self.query_text(names).map(|text| self.manager.states(&text))
    }

    fn query_text(&self, names: &[&str]) -> Result<String, String> {
        let words = self.manager.query().into_iter().chain(["--"]).chain(names.iter().copied());
        let argv: Vec<String> = words.map(str::to_owned).collect();
        match (Command { argv: &argv, user: "", within: OBSERVE_WITHIN }.run()) {
            // dpkg-query exits with 1, rpm with their number, when some are not there; the other lines are good.
            Ok(output) if output.exit <= 1 || self.manager == Manager::Dnf && output.exit <= 255 => {
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            }
            Ok(output) => Err(format!("exit {}: {}", output.exit, output.tail())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// In one transaction, with what they need. As nobody is there to be asked, configuration files that were changed
    /// stay.
    pub fn install(&self, order: &Order<'_>) -> Result<(), HostError> {
        if self.missing(order.wanted).is_empty() {
            return Ok(());
        }
        self.prepare()?;
        self.recover(order)?;
        let changing = self.missing(order.wanted).into_iter().filter(|(spec, state)| !is_another_hold(spec, state));
        let changing: Vec<&PackageSpec> = changing.map(|(spec, _)| spec).collect();
        if !changing.is_empty() {
            let operation =
                Operation { verb: Verb::Install, names: self.words(&changing)?, half: self.half_unpacked() };
            if let Err(error) = self.transact(order, &changing, &operation) {
                // Versions that are not known here may be known out there; lists that are old name files that are gone.
                let because_of_lists = matches!(error, HostError::Package { .. });
                let Some(complaint) = because_of_lists.then(|| self.refresh()).flatten() else { return Err(error) };
                self.recover(order)?;
                self.transact(order, &changing, &operation).map_err(|error| with_complaint(error, &complaint))?;
            }
        }
        self.set_holds(order)?;
        match self.missing(order.wanted).first() {
            None => Ok(()),
            Some((spec, state)) => {
                let (program, still) = (self.manager.program(), spec.diff(state).unwrap_or_default());
                let why = format!("{program} said that it went well, but there is still to do: {still}");
                Err(HostError::Package { operation: "install", names: spec.name.clone(), why })
            }
        }
    }

    fn transact(&self, order: &Order<'_>, changing: &[&PackageSpec], operation: &Operation) -> Result<(), HostError> {
        if self.manager == Manager::Dnf {
            // dnf sees no other version of what is held. A crash here leaves a hold that is missing, which is seen.
            self.set(Hold::Lifted, &self.states_of(order.wanted), order.words)?;
        }
        let changes = self.solve(operation)?;
        let half =
            operation.half.iter().map(|name| PackageSpec { name: name.clone(), version: String::new(), hold: false });
        let half: Vec<PackageSpec> = half.collect();
        let listed: Vec<&PackageSpec> = order.listed.iter().copied().chain(&half).collect();
        transaction::judge(&listed, &changes).map_err(|why| HostError::PackagePlan { why })?;
        // Of half a package the other half may come without being new.
        let whole = self.missing(changing).into_iter().filter(|(_, state)| !matches!(state, PackageState::Half(_)));
        let whole: Vec<&PackageSpec> = whole.map(|(spec, _)| spec).collect();
        if let Some(name) = transaction::left_out(&whole, &changes) {
            let others: Vec<&str> = changes.iter().map(|change| change.name.as_str()).collect();
            let why = format!("its plan has nothing for {name}, only for: {}", others.join(", "));
            return Err(operation.failed(why));
        }
        self.act(operation, order.words)
    }

    /// Those of them that nothing else needs, in one transaction; nothing else goes with them, their configuration stays.
    /// Returns what stays, and why.
    pub fn remove(&self, names: &[&str], words: Words) -> Result<Vec<String>, HostError> {
        let states = self.observe(names);
        let there = states.iter().filter(|(_, state)| **state != PackageState::Absent);
        let there: Vec<String> = there.map(|(name, _)| name.clone()).collect();
        if there.is_empty() {
            return Ok(Vec::new());
        }
        self.prepare()?;
        // Also where it stays: the repository holds it no more.
        self.set(Hold::Lifted, &states, words)?;
        let solve =
            |names: &[String]| self.solve(&Operation { verb: Verb::Remove, names: names.to_vec(), half: Vec::new() });
        let beyond = |changes: &[Change], names: &[String]| {
            changes.iter().any(|change| change.effect != Effect::Remove || !names.contains(&change.name))
        };
        let mut stays = Vec::new();
        let mut go = there.clone();
        if beyond(&solve(&there)?, &there) {
            let mut alone = BTreeMap::new();
            for name in &there {
                let all = solve(std::slice::from_ref(name))?.into_iter().map(|change| change.name);
                alone.insert(name.clone(), all.collect::<BTreeSet<String>>());
            }
            let (removable, kept) = transaction::removable(&alone);
            go = removable.into_iter().collect();
            stays.extend(
                kept.iter().map(|(name, others)| format!("package {name} stays: {} would go too", others.join(", "))),
            );
        }
        if !go.is_empty() {
            self.act(&Operation { verb: Verb::Remove, names: go, half: Vec::new() }, words)?;
        }
        Ok(stays)
    }

    fn states_of(&self, specs: &[&PackageSpec]) -> BTreeMap<String, PackageState> {
        self.observe(&specs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>())
    }

    fn missing<'a>(&self, wanted: &[&'a PackageSpec]) -> Vec<(&'a PackageSpec, PackageState)> {
        let states = self.states_of(wanted);
        let with = wanted.iter().filter_map(|spec| Some((*spec, states.get(&spec.name)?.clone())));
        with.filter(|(spec, state)| spec.diff(state).is_some()).collect()
    }

    /// Nothing of ours and of others works on packages any more.
    fn prepare(&self) -> Result<(), HostError> {
        if !Path::new(self.manager.program()).exists() {
            return Err(HostError::Unsupported {
                what: format!("packages without {}", self.manager.program()),
                hint: "install it, or take the packages out of the role",
            });
        }
        child::wait_for_left_behind()?;
        child::wait_while(|| busy::holder(self.manager.locks()))
    }

    /// Finishes what an interrupted manager left. What cannot be finished is the transaction's to complain about.
    fn recover(&self, order: &Order<'_>) -> Result<(), HostError> {
        match self.manager {
            Manager::Apt => drop(child::act(&self.root, self.parent, &apt::RECOVER)?),
            Manager::Dnf => {
                let names: Vec<&str> = order.listed.iter().map(|spec| spec.name.as_str()).collect();
                let text = self.query_text(&names).unwrap_or_default();
                for package in dnf::leftovers(&text, order.listed) {
                    drop(child::act(&self.root, self.parent, &dnf::erase(&package))?);
                }
            }
        }
        Ok(())
    }

    /// Errors: something in a name or a version means something else to the manager.
    fn words(&self, specs: &[&PackageSpec]) -> Result<Vec<String>, HostError> {
        let failed =
            |spec: &PackageSpec, why| HostError::Package { operation: "install", names: spec.name.clone(), why };
        specs.iter().map(|spec| self.manager.word(spec).map_err(|why| failed(spec, why))).collect()
    }

    /// Whatever dpkg was killed in the middle of, whose ever it is: `--configure -a` does not finish that.
    fn half_unpacked(&self) -> Vec<String> {
        let Ok(text) = (match self.manager {
            Manager::Apt => self.query_text(&[]),
            Manager::Dnf => return Vec::new(),
        }) else {
            return Vec::new();
        };
        apt::half_unpacked(&text)
    }

    /// The manager's plan.
    fn solve(&self, operation: &Operation) -> Result<Vec<Change>, HostError> {
        let output = self.unlocked(|| child::ask(&self.manager.simulate(operation)))?;
        self.manager.changes(output.exit, &output.text()).map_err(|why| operation.failed(why))
    }

    fn act(&self, operation: &Operation, words: Words) -> Result<(), HostError> {
        self.run(&self.manager.act(operation), operation.verb(), &operation.names.join(", "), words)
    }

    fn run(&self, argv: &[&str], operation: &'static str, names: &str, words: Words) -> Result<(), HostError> {
        let output = self.unlocked(|| child::act(&self.root, self.parent, argv))?;
        if output.exit == 0 {
            said::forget(&self.root, "packages");
            return Ok(());
        }
        let said = match words {
            Words::Told => told(&output.text()),
            Words::Kept => said::keep(&self.root, "packages", &output),
        };
        let why = format!("{}: exit {}: {said}", argv.first().copied().unwrap_or_default(), output.exit);
        Err(HostError::Package { operation, names: names.to_owned(), why })
    }

    /// Runs it again and again while it says that somebody else has the lock. Errors: for more than a minute.
    fn unlocked(&self, run: impl Fn() -> Result<Output, HostError>) -> Result<Output, HostError> {
        let mut last = run()?;
        let mut failed = None;
        child::wait_while(|| {
            let text = last.text();
            if !self.manager.is_busy(last.exit, &text) {
                return None;
            }
            match run() {
                Ok(output) => last = output,
                Err(error) => {
                    failed = Some(error);
                    return None;
                }
            }
            Some(told(&text))
        })?;
        failed.map_or(Ok(last), Err)
    }

    /// Each as the repository says.
    fn set_holds(&self, order: &Order<'_>) -> Result<(), HostError> {
        let (hold, release): (Vec<&PackageSpec>, Vec<&PackageSpec>) = order.wanted.iter().partition(|spec| spec.hold);
        self.set(Hold::Set, &self.states_of(&hold), order.words)?;
        self.set(Hold::Lifted, &self.states_of(&release), order.words)
    }

    fn set(&self, hold: Hold, states: &BTreeMap<String, PackageState>, words: Words) -> Result<(), HostError> {
        let other =
            |state: &PackageState| matches!(state, PackageState::Installed { held, .. } if *held != hold.is_held());
        let names: Vec<&str> = states.iter().filter(|(_, state)| other(state)).map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        if self.manager == Manager::Dnf && !Path::new(dnf::LOCK_PLUGIN).exists() {
            return Err(HostError::Unsupported {
                what: format!("to hold package {}", names.join(", ")),
                hint: "dnf holds packages by its plugin versionlock: let the role have python3-dnf-plugin-versionlock too",
            });
        }
        match hold {
            Hold::Set => self.run(&self.manager.hold(&names), "hold", &names.join(", "), words),
            Hold::Lifted => self.run(&self.manager.release(&names), "release", &names.join(", "), words),
        }
    }

    /// Fetches the lists of what there is. `None`: that was done a moment ago. Else what the manager complains of, if
    /// anything: what was fetched may do all the same.
    fn refresh(&self) -> Option<String> {
        let now = SystemClock.awake();
        if self.refreshed.get().is_some_and(|last| now.saturating_sub(last) < REFRESH_AFTER) {
            return None;
        }
        self.refreshed.set(Some(now));
        Some(match self.unlocked(|| child::ask(&self.manager.refresh())) {
            Ok(output) if output.exit == 0 => String::new(),
            Ok(output) => told(&output.text()),
            Err(error) => error.to_string(),
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Set,
    Lifted,
}

impl Hold {
    fn is_held(self) -> bool {
        self == Self::Set
    }
}

fn is_another_hold(spec: &PackageSpec, state: &PackageState) -> bool {
    matches!(state, PackageState::Installed { version, .. } if spec.takes(version))
}

/// A repository that could not be asked may be the reason.
fn with_complaint(error: HostError, complaint: &str) -> HostError {
    match error {
        HostError::Package { operation, names, why } if !complaint.is_empty() => {
            let why = format!("{why}; and the lists of packages could not all be fetched: {complaint}");
            HostError::Package { operation, names, why }
        }
        other => other,
    }
}

/// The last lines of what a manager said on one line, enough of them to act on, without what it says of its progress and
/// without the credentials in an address.
fn told(text: &str) -> String {
    const PROGRESS: [&str; 9] =
        ["Reading ", "Building ", "Get:", "Hit:", "Ign:", "Selecting ", "(Reading ", "Preparing ", "Last metadata "];
    // dnf adds all settings of the repository that it is not content with.
    let text = text.split("Problem repository:").next().unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<&str> = lines.filter(|line| !PROGRESS.iter().any(|start| line.starts_with(start))).collect();
    let last: Vec<String> =
        lines[lines.len().saturating_sub(12)..].iter().map(|line| without_credentials(line)).collect();
    let last = last.join("; ");
    let start = last.char_indices().rev().nth(1499).map_or(0, |(at, _)| at);
    last[start..].to_owned()
}

/// `https://user:password@host` as `https://host`.
fn without_credentials(line: &str) -> String {
    let hide = |word: &str| match word.split_once("://") {
        Some((scheme, rest)) => {
            let authority = rest.find('/').unwrap_or(rest.len());
            let start = rest[..authority].rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}://{}", &rest[start..])
        }
        None => word.to_owned(),
    };
    line.split(' ').map(hide).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_manager_says_is_told_without_its_progress_and_without_passwords() {
        let text = "Reading package lists...\nGet:1 http://a/ x\nE: Failed to fetch https://me:pass@word@mirror/x.deb 404\n\
                    E: Unable to fetch some archives\n";
        assert_eq!(told(text), "E: Failed to fetch https://mirror/x.deb 404; E: Unable to fetch some archives");
        assert!(told(&"long words\n".repeat(1000)).len() <= 1500);
    }
}
