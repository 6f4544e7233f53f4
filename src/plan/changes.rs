//! A plan as machines read it: one entry per resource, with what is there and what comes.
//!
//! `plan --json`, `agent --dry-run --json` and `diff --json` have the same entries. PURE. Never: a secret's value; where one
//! is or was, what is on a host is told by its lines, and what comes is masked.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::name::{GroupId, HostPath};
use crate::plan::batch::Unpacking;
use crate::plan::risk::Area;
use crate::plan::{Batch, FileWrite, Plan, UnitMove, Why, membership, show};
use crate::reason;
use crate::resource::content::Content;
use crate::resource::file::FileChange;
use crate::resource::{Id, Kind};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    File,
    Package,
    Artifact,
    Unit,
    Action,
    /// A file that its owner's tool must act on.
    Activation,
    /// What is ours and left the repository: a file goes, a unit is stopped and disabled.
    Removal,
    /// Of the machine, for the resources in the note.
    Reboot,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Change {
    pub kind: ChangeKind,
    /// Path, unit, package, directory of an artifact, name of an action.
    pub name: String,
    /// `create`, `write`, `set-attributes`, `install`, `unpack`, `run`, `remove`, the verb of a unit, the tool of an
    /// activation; `none` for what is only reported and `blocked` for what cannot be done.
    pub action: &'static str,
    /// What goes live together has the same one.
    pub batch: String,
    /// `intended`, `drift`, `audit`, `seed` (its template is another one by now), or a reason.
    pub why: &'static str,
    /// Text, masked. Absent: nothing is there, it is not text, or a secret may be in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// What the texts do not say: owner and mode, versions, lines that differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Groups that must be held for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hold: Vec<GroupId>,
    /// Its batch can take the node away by these, and is put back unless the node still reaches what it reached before.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub risk: BTreeSet<Area>,
}

/// What the plan was made against.
pub enum Before<'a> {
    /// A host: the plan has what was found.
    Host,
    /// Another commit, by path: masked on both sides.
    Commit(&'a BTreeMap<&'a HostPath, &'a Content>),
}

/// In the order in which they would happen, then what is left as it is.
pub fn of(plan: &Plan<'_>, before: &Before<'_>) -> Vec<Change> {
    let mut changes = Vec::new();
    for batch in &plan.batches {
        let entry = |kind, name: String, action, note: Option<String>| Change {
            kind,
            name,
            action,
            batch: batch.name.clone(),
            why: "intended",
            before: None,
            after: None,
            note,
            hold: hold(batch),
            risk: batch.risk.clone(),
        };
        let packages = batch.packages.iter();
        changes.extend(packages.map(|(package, what)| Change {
            after: Some(package.version.clone()),
            ..entry(ChangeKind::Package, package.name.clone(), "install", Some(what.clone()))
        }));
        let artifacts = batch.artifacts.iter();
        changes.extend(artifacts.map(|Unpacking { spec, what, why }| Change {
            after: Some(spec.version.clone()),
            why: word(*why),
            ..entry(ChangeKind::Artifact, spec.into.to_string(), "unpack", Some(what.clone()))
        }));
        changes.extend(batch.files.iter().map(|file| Change {
            hold: hold(batch),
            risk: batch.risk.clone(),
            ..of_file(file, &batch.name, before)
        }));
        changes.extend(batch.removals.iter().map(|(path, _)| Change {
            before: match before {
                Before::Commit(files) => files.get(path).and_then(|content| text(content.shown())),
                Before::Host => None,
            },
            ..entry(ChangeKind::Removal, path.to_string(), "remove", None)
        }));
        let tools = batch.activations.iter();
        changes
            .extend(tools.map(|(tool, file)| entry(ChangeKind::Activation, file.path.to_string(), tool.tool(), None)));
        changes.extend(batch.actions.iter().map(|act| entry(ChangeKind::Action, act.name.clone(), "run", None)));
        let changes_membership = batch.membership.iter();
        let told = membership::told(batch, plan.node);
        changes.extend(
            changes_membership.map(|(_, act)| entry(ChangeKind::Action, act.name.clone(), "run", told.clone())),
        );
        let moves = batch.moves.iter();
        changes.extend(
            moves.map(|action: &UnitMove<'_>| {
                entry(ChangeKind::Unit, action.spec().name.to_string(), action.verb(), None)
            }),
        );
        let retire = batch.retire.iter();
        changes.extend(retire.map(|unit| entry(ChangeKind::Removal, unit.to_string(), "stop", None)));
        let along = || Some("stopped along by systemd, started again".to_owned());
        changes.extend(batch.again.iter().map(|unit| entry(ChangeKind::Unit, unit.to_string(), "start", along())));
        let gone =
            batch.uninstall.iter().map(|name| entry(ChangeKind::Removal, format!("package {name}"), "uninstall", None));
        changes.extend(gone);
        let gone =
            batch.discards.iter().map(|into| entry(ChangeKind::Removal, format!("artifact {into}"), "remove", None));
        changes.extend(gone);
        let reboot = (!batch.reboot.is_empty()).then(|| batch.reboot.join(", "));
        changes.extend(reboot.map(|what| entry(ChangeKind::Reboot, "the machine".to_owned(), "reboot", Some(what))));
        changes.extend(batch.blocked.iter().map(|blocked| Change {
            why: blocked.reason.id,
            ..entry(kind(&blocked.id), blocked.id.name.clone(), "blocked", Some(blocked.why.clone()))
        }));
    }
    for (files, why) in [(&plan.audit, "audit"), (&plan.resting, reason::DRIFT_FIGHT.id)] {
        changes.extend(files.iter().map(|file| Change { action: "none", why, ..of_file(file, "", before) }));
    }
    changes.extend(plan.outgrown.iter().map(|spec| Change {
        kind: ChangeKind::File,
        name: spec.path.to_string(),
        action: "none",
        batch: String::new(),
        why: "seed",
        // What the service made of it may hold anything.
        before: match before {
            Before::Commit(files) => files.get(&spec.path).and_then(|content| text(content.shown())),
            Before::Host => None,
        },
        after: text(spec.content.shown()),
        note: None,
        hold: Vec::new(),
        risk: BTreeSet::new(),
    }));
    changes
}

fn hold(batch: &Batch<'_>) -> Vec<GroupId> {
    if batch.hold == super::HoldNeed::None { Vec::new() } else { batch.groups.iter().cloned().collect() }
}

fn word(why: Why) -> &'static str {
    match why {
        Why::Drift => "drift",
        Why::Intended => "intended",
    }
}

fn kind(id: &Id) -> ChangeKind {
    match id.kind {
        Kind::File => ChangeKind::File,
        Kind::Package => ChangeKind::Package,
        Kind::Artifact => ChangeKind::Artifact,
        Kind::Unit => ChangeKind::Unit,
        Kind::Action => ChangeKind::Action,
    }
}

fn of_file(file: &FileWrite<'_>, batch: &str, before: &Before<'_>) -> Change {
    let (mut found, mut note) = (None, None);
    match (before, &file.before) {
        (Before::Commit(files), _) => found = files.get(&file.spec.path).and_then(|content| text(content.shown())),
        // What is there may hold a secret, ours or somebody's.
        (Before::Host, Some(there)) if file.is_secret() => {
            note = Some(show::changed_lines(there.bytes(), file.spec.content.bytes().unwrap_or_default()));
        }
        (Before::Host, Some(there)) => found = text(there.bytes()),
        (Before::Host, None) => {}
    }
    let action = match &file.change {
        FileChange::Create => "create",
        FileChange::Content => "write",
        FileChange::Attributes { from, to } => {
            note = Some(format!("{from} -> {to}"));
            "set-attributes"
        }
        FileChange::Blocked(why) | FileChange::Unsafe(why) => {
            note = Some(why.clone());
            "blocked"
        }
    };
    Change {
        kind: ChangeKind::File,
        name: file.spec.path.to_string(),
        action,
        batch: batch.to_owned(),
        why: word(file.why),
        before: found,
        after: text(file.spec.content.shown()),
        note,
        hold: Vec::new(),
        risk: BTreeSet::new(),
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}
