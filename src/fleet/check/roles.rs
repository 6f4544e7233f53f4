//! Rules of `roles/*/role.toml` and `versions.toml`: each role by itself, then all of a node's roles together.
//!
//! What only rendering can tell (paths made of expressions) the renderer checks again, by the same rules.
//! PURE. Never: reports once per node what stands once in a file.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::{Check, Within, some_of};
use crate::fleet::load::{Document, Documents};
use crate::fleet::schema::{self, CheckKind};
use crate::fleet::selector::Selector;
use crate::fleet::{Node, Role, agents, rule};
use crate::lock::singleton::Lease;
use crate::name::{NodeName, RoleName, SecretName, UnitName};
use crate::resource::action::Scope;
use crate::resource::{Id, Kind};

/// An entry of a role: `[[table]]` number `index`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place<'a> {
    role: &'a RoleName,
    table: &'static str,
    index: usize,
}

/// What a node has, and what it asks for: each with where it is said.
#[derive(Default)]
struct Together<'a> {
    conflicts: BTreeMap<(Place<'a>, Place<'a>, Id), Vec<&'a Node>>,
    /// By place, key and position in its list.
    units: BTreeMap<(Place<'a>, &'static str, usize, &'a UnitName), Vec<&'a Node>>,
    group_units: BTreeMap<(&'a RoleName, &'a str, &'a UnitName), Vec<&'a Node>>,
    packages: BTreeMap<(Place<'a>, &'a str), Vec<&'a Node>>,
    artifacts: super::artifacts::Wanted<'a>,
    secrets: BTreeMap<(Place<'a>, Lack), Vec<(&'a Node, SecretName)>>,
}

/// What is left of a shorter one is no time for three questions to the store.
const LEASE_SECS_MIN: u64 = 15;

/// Where a unit is named, and for whom.
type Asked<'n> = (std::ops::Range<usize>, &'n [&'n Node]);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lack {
    Secret,
    Grant,
}

impl<'a, 't> Check<'a, 't> {
    pub(super) fn roles(&mut self) {
        let documents = self.documents;
        for (name, role) in &self.fleet.environment.role_bodies {
            if let Some(document) = documents.roles.get(name) {
                self.role(document, role);
            }
        }
        self.versions();
        self.together();
    }

    fn role(&mut self, document: &Document<'_>, role: &Role) {
        if let Some(why) = super::mistake_in_name(role.name.as_str()) {
            let title = format!("{:?} cannot be the name of a role", role.name.as_str());
            self.problems.push(document.error(rule::BAD_NAME, title).note(why));
        }
        for (name, group) in &role.groups {
            self.name(document, &["groups", name], "group", name);
            self.unit_name(document, &["groups", name, "unit"], &group.unit);
            for (key, check) in [("gate", &group.gate), ("leader", &group.leader)] {
                if let Some(check) = check
                    && !role.checks.contains_key(check)
                {
                    let problem = document
                        .error(rule::UNKNOWN_CHECK, format!("\"{check}\" is not a check of role {}", role.name))
                        .at(document.value(&["groups", name, key]), "no [[check]] has this name");
                    self.unknown(problem, "checks", check, role.checks.keys().map(String::as_str));
                }
            }
        }
        for (index, entry) in role.packages.iter().enumerate() {
            let index = index.to_string();
            self.entry(
                document,
                "package",
                &index,
                &entry.body.only,
                &[("restarts", &entry.body.restarts), ("reloads", &entry.body.reloads)],
            );
            for os in entry.body.name.keys() {
                self.os(document, &["package", &index, "name", os], os, super::Precision::Family);
            }
        }
        for (index, entry) in role.artifacts.iter().enumerate() {
            let index = index.to_string();
            self.entry(
                document,
                "artifact",
                &index,
                &entry.body.only,
                &[("restarts", &entry.body.restarts), ("reloads", &entry.body.reloads)],
            );
            self.path(document, &["artifact", &index, "into"], &entry.body.into);
        }
        for (index, entry) in role.files.iter().enumerate() {
            self.file(document, role, &index.to_string(), &entry.body);
        }
        for (index, entry) in role.units.iter().enumerate() {
            self.unit(document, role, &index.to_string(), &entry.body);
        }
        for (index, entry) in role.actions.iter().enumerate() {
            self.action(document, &index.to_string(), &entry.body);
        }
        self.checks(document, role);
    }

    fn entry(
        &mut self,
        document: &Document<'_>,
        table: &str,
        index: &str,
        only: &Selector,
        units: &[(&str, &[UnitName])],
    ) {
        self.selector(document, &[table, index, "only"], only, Within::Role);
        for (key, names) in units {
            for (position, unit) in names.iter().enumerate() {
                self.unit_name(document, &[table, index, key, &position.to_string()], unit);
            }
        }
    }

    fn file(&mut self, document: &Document<'_>, role: &Role, index: &str, file: &schema::File) {
        let place = |key: &'static str| ["file", index, key];
        self.entry(document, "file", index, &file.only, &[("restarts", &file.restarts), ("reloads", &file.reloads)]);
        self.path(document, &place("path"), &file.path);
        let sources = [("template", &file.template), ("source", &file.source), ("secret", &file.secret)];
        let said: Vec<&str> = sources.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| *key).collect();
        if said.len() != 1 {
            let label = match &said[..] {
                [] => "none of template, source, secret".to_owned(),
                keys => format!("says {}", keys.join(" and ")),
            };
            let problem = document.error(rule::FILE_SOURCE, format!("{} needs exactly one source", file.path));
            self.problems.push(problem.at(document.value(&place("path")), label));
        }
        self.in_role(document, role, &place("template"), file.template.as_deref());
        self.in_role(document, role, &place("source"), file.source.as_deref());
        if let Some(mode) = &file.mode
            && !(matches!(mode.len(), 3 | 4) && mode.bytes().all(|byte| (b'0'..=b'7').contains(&byte)))
        {
            let problem = document.error(rule::BAD_MODE, format!("{mode:?} is not a mode"));
            self.problems
                .push(problem.at(document.value(&place("mode")), "three or four octal digits, as in \"0640\""));
        }
        if let Some(validate) = &file.validate {
            self.command(document, &["file", index, "validate", "run"], &validate.run);
        }
    }

    fn unit(&mut self, document: &Document<'_>, role: &Role, index: &str, unit: &schema::Unit) {
        let place = |key: &'static str| ["unit", index, key];
        self.entry(document, "unit", index, &unit.only, &[]);
        self.unit_name(document, &place("name"), &unit.name);
        if agents::is_own_unit(unit.name.as_str()) {
            let problem = document.error(rule::OWN_UNIT, format!("{} is not a role's to manage", unit.name));
            self.problems.push(problem.at(document.value(&place("name")), "the agent's own"));
        }
        self.in_role(document, role, &place("template"), unit.template.as_deref());
        self.in_role(document, role, &place("dropin"), unit.dropin.as_deref());
        if unit.template.is_some() && unit.dropin.is_some() {
            let problem = document.error(rule::FILE_SOURCE, format!("{} has a template and a dropin", unit.name));
            self.problems.push(problem.at(document.value(&place("dropin")), "a dropin is for a vendor's unit"));
        }
        let steps =
            [("before_stop", &unit.before_stop), ("transfer", &unit.transfer), ("after_start", &unit.after_start)];
        for (key, commands) in steps {
            for (position, command) in commands.iter().enumerate() {
                self.command(document, &["unit", index, key, &position.to_string()], command);
            }
        }
        let (name, stop) = (&unit.name, unit.stop_secs_max);
        let mistake = match (unit.singleton, unit.lease_secs) {
            (true, None) => Some(("name", format!("singleton {name} has no lease"), "needs lease_secs".to_owned())),
            (false, Some(_)) => {
                Some(("lease_secs", format!("{name} is no singleton but has a lease"), "singletons only".to_owned()))
            }
            // The lease's last third is for the stop and the SIGKILL after it.
            (true, Some(lease)) if stop > lease / 3 => {
                let title = format!("{name} may take {stop} s to stop, which is more than a third of its lease");
                Some(("lease_secs", title, format!("must be {} or more", stop.saturating_mul(3))))
            }
            // A store's answer may take seconds, and some may be lost.
            (true, Some(lease)) if lease < LEASE_SECS_MIN => {
                let title = format!("a lease of {lease} s is too short for {name} to be renewed in time");
                Some(("lease_secs", title, format!("must be {LEASE_SECS_MIN} or more")))
            }
            (true, Some(lease)) if lease > Lease::SECS_MAX => {
                let title = format!("a lease of {lease} s: so long would nobody run {name} after a failure");
                Some(("lease_secs", title, format!("must be {} or less", Lease::SECS_MAX)))
            }
            _ => None,
        };
        if let Some((key, title, label)) = mistake {
            let problem = document.error(rule::SINGLETON_LEASE, title);
            self.problems.push(problem.at(document.value(&place(key)), label));
        }
        let steps = [&unit.before_stop, &unit.transfer, &unit.after_start];
        let wrong = [
            (!name.as_str().ends_with(".service"), "name", "only services can be singletons"),
            (unit.enabled == Some(true), "enabled", "the boot would start it; its agent does, if it has the key"),
            (role.groups.values().any(|group| group.unit == *name), "name", "the members of its group would all run"),
            (
                steps.iter().any(|steps| !steps.is_empty()),
                "name",
                "its stop cannot wait for steps: use ExecStop= and the like",
            ),
        ];
        for (_, key, label) in wrong.into_iter().filter(|(wrong, ..)| unit.singleton && *wrong) {
            let problem = document.error(rule::SINGLETON, format!("{name} cannot be a singleton"));
            self.problems.push(problem.at(document.value(&place(key)), label));
        }
    }

    fn action(&mut self, document: &Document<'_>, index: &str, action: &schema::Action) {
        let place = |key: &'static str| ["action", index, key];
        self.entry(document, "action", index, &action.only, &[("before", &action.before)]);
        self.command(document, &place("run"), &action.run);
        if let Some(creates) = &action.creates {
            self.plain_path(document, &place("creates"), creates);
        }
        if !["", "join", "drain", "leave"].contains(&action.on.as_str()) {
            let problem = document.error(rule::BAD_VALUE, format!("\"{}\" is no value of this key", action.on));
            let label = "expected one of `join`, `drain`, `leave`";
            self.problems.push(problem.at(document.value(&place("on")), label));
        }
        if action.creates.is_none() && action.unless.is_empty() {
            let title = format!("action {} does not say how to tell that it is done", action.name);
            let problem = document.error(rule::ACTION_WITHOUT_GUARD, title);
            self.problems.push(problem.at(document.value(&place("name")), "neither creates nor unless"));
        }
        if action.scope == Scope::Cluster && action.on.is_empty() {
            let wrong = [
                (action.creates.is_some(), "creates", "a path on one node says nothing of the cluster"),
                (!action.before.is_empty(), "before", "it runs when the members run"),
                (action.unless.is_empty() && action.creates.is_none(), "name", "no `unless` that asks the cluster"),
            ];
            for (_, key, label) in wrong.into_iter().filter(|(wrong, ..)| *wrong) {
                let title = format!("action {} cannot be one for the whole cluster", action.name);
                let problem = document.error(rule::CLUSTER_ACTION, title);
                self.problems.push(problem.at(document.value(&place(key)), label));
            }
        }
    }

    fn checks(&mut self, document: &Document<'_>, role: &Role) {
        let mut seen = BTreeSet::new();
        // `role.checks` has one of each name; the file may say more.
        for index in 0.. {
            let index = index.to_string();
            let Some(name) = document.text_at(&["check", &index, "name"]) else { break };
            if !seen.insert(name.clone()) {
                let problem = document.error(rule::CONFLICT, format!("role {} has two checks {name}", role.name));
                self.problems.push(problem.at(document.value(&["check", &index, "name"]), "the second"));
                continue;
            }
            let Some(check) = role.checks.get(&name) else { continue };
            let wants = match check.kind {
                CheckKind::Http | CheckKind::Tcp if check.port.is_none() => Some("port"),
                CheckKind::Command if check.run.is_empty() => Some("run"),
                CheckKind::Sentinel | CheckKind::VipHolder if check.path.is_none() => Some("path"),
                _ if check.timeout_secs == 0 => Some("timeout_secs above 0"),
                _ => None,
            };
            if let Some(wants) = wants {
                let title = format!("check {name} needs {wants}");
                let problem = document.error(rule::CHECK_INCOMPLETE, title);
                self.problems.push(problem.at(document.value(&["check", &index, "name"]), ""));
            }
            let networks = &self.fleet.environment.networks;
            if let Some(network) = check.network.as_ref().filter(|name| !networks.contains_key(*name)) {
                let title = format!("\"{network}\" is not a network of environment {}", self.fleet.environment.name);
                let problem = document.error(rule::UNKNOWN_NETWORK, title);
                let problem =
                    problem.at(document.value(&["check", &index, "network"]), "not declared in environment.toml");
                self.unknown(problem, "networks", network, networks.keys().map(String::as_str));
            }
        }
    }

    fn command(&mut self, document: &Document<'_>, path: &[&str], command: &[String]) {
        if command.first().is_none_or(String::is_empty) {
            let problem = document.error(rule::EMPTY_COMMAND, "a command without a program");
            self.problems.push(problem.at(document.value(path), "as in [\"program\", \"argument\"]"));
        }
    }

    /// A template or source must be a file of the role's own folder.
    fn in_role(&mut self, document: &Document<'_>, role: &Role, path: &[&str], name: Option<&str>) {
        let Some(name) = name else { return };
        let folder = format!("roles/{}", role.name);
        if self.fleet.tree.get(&format!("{folder}/{name}")).is_none() {
            let problem = document
                .error(rule::UNKNOWN_TEMPLATE, format!("role {} has no file \"{name}\"", role.name))
                .at(document.value(path), format!("no {folder}/{name}"));
            let files: Vec<&str> = self
                .fleet
                .tree
                .below(&folder)
                .filter_map(|(path, _)| path.as_str().strip_prefix(&folder)?.strip_prefix('/'))
                .collect();
            self.unknown(problem, "its files", name, files.iter().copied());
        }
    }

    /// A path that a role writes.
    fn path(&mut self, document: &Document<'_>, path: &[&str], text: &str) {
        self.plain_path(document, path, text);
        if let Some(why) = is_protected(text) {
            let problem = document.error(rule::PROTECTED_PATH, format!("a role must not write {text}"));
            self.problems.push(problem.at(document.value(path), why));
        }
    }

    fn plain_path(&mut self, document: &Document<'_>, path: &[&str], text: &str) {
        // What an expression makes of it the renderer sees.
        if let Some(why) = mistake_in_path(text).filter(|_| is_literal(text)) {
            let shown: String = text.chars().take(80).collect();
            let problem = document.error(rule::BAD_PATH, format!("{shown:?} is not an absolute, plain path"));
            self.problems.push(problem.at(document.value(path), why));
        }
    }

    /// What is wrong only because of who has it with what else.
    fn together(&mut self) {
        let mut found = Together::default();
        let granted: BTreeMap<&SecretName, BTreeSet<&NodeName>> = self
            .fleet
            .environment
            .secrets
            .iter()
            .map(|(name, secret)| (name, self.cover.granted(&secret.grant).iter().map(|node| &node.name).collect()))
            .collect();
        for node in &self.fleet.environment.nodes {
            self.of_node(node, &granted, &mut found);
        }
        self.tell(found);
    }

    fn of_node(&self, node: &'a Node, granted: &BTreeMap<&SecretName, BTreeSet<&NodeName>>, found: &mut Together<'a>) {
        let environment = &self.fleet.environment;
        let clusters: Vec<_> = node.clusters.iter().filter_map(|name| environment.cluster(name)).collect();
        // A role that several clusters bring is there once, as far as can be told without rendering.
        let names: BTreeSet<&RoleName> =
            environment.roles.iter().chain(clusters.iter().flat_map(|cluster| &cluster.roles)).collect();
        let roles: Vec<&Role> = names.iter().filter_map(|name| environment.role_bodies.get(*name)).collect();
        let has = |only: &Selector| only.selects(node, &|role| names.contains(role));
        let units: BTreeSet<&UnitName> = roles
            .iter()
            .flat_map(|role| &role.units)
            .filter(|unit| has(&unit.body.only))
            .map(|unit| &unit.body.name)
            .collect();

        let mut owner: BTreeMap<Id, Place<'_>> = BTreeMap::new();
        let mut own = |kind: Kind, name: Cow<'_, str>, place: Place<'a>, found: &mut Together<'a>| {
            let id = Id { kind, name: name.into_owned() };
            if let Some(first) = owner.insert(id.clone(), place) {
                found.conflicts.entry((first, place, id)).or_default().push(node);
            }
        };
        let ask = |place: Place<'a>, key: &'static str, names: &'a [UnitName], found: &mut Together<'a>| {
            for (position, unit) in names.iter().enumerate().filter(|(_, unit)| !units.contains(unit)) {
                found.units.entry((place, key, position, unit)).or_default().push(node);
            }
        };
        for role in &roles {
            let at = |table, index| Place { role: &role.name, table, index };
            for (index, entry) in role.packages.iter().enumerate().filter(|(_, entry)| has(&entry.body.only)) {
                let place = at("package", index);
                match entry.body.name_on(&node.os) {
                    Some(name) => own(Kind::Package, name.into(), place, found),
                    None => found.packages.entry((place, &node.os)).or_default().push(node),
                }
                ask(place, "restarts", &entry.body.restarts, found);
                ask(place, "reloads", &entry.body.reloads, found);
            }
            for (index, entry) in role.artifacts.iter().enumerate().filter(|(_, entry)| has(&entry.body.only)) {
                let place = at("artifact", index);
                own(Kind::Artifact, entry.body.into.as_str().into(), place, found);
                found.artifacts.entry((place, &entry.body.component, &node.os)).or_default().push(node);
                ask(place, "restarts", &entry.body.restarts, found);
                ask(place, "reloads", &entry.body.reloads, found);
            }
            for (index, entry) in role.files.iter().enumerate().filter(|(_, entry)| has(&entry.body.only)) {
                let place = at("file", index);
                if let Some(path) = on_node(&entry.body.path, node) {
                    own(Kind::File, path, place, found);
                }
                self.wants_secret(node, place, entry.body.secret.as_deref(), granted, found);
                ask(place, "restarts", &entry.body.restarts, found);
                ask(place, "reloads", &entry.body.reloads, found);
            }
            for (index, entry) in role.units.iter().enumerate().filter(|(_, entry)| has(&entry.body.only)) {
                own(Kind::Unit, entry.body.name.as_str().into(), at("unit", index), found);
            }
            for (index, entry) in role.actions.iter().enumerate().filter(|(_, entry)| has(&entry.body.only)) {
                let place = at("action", index);
                own(Kind::Action, entry.body.name.as_str().into(), place, found);
                ask(place, "before", &entry.body.before, found);
            }
        }
        for group in clusters.iter().flat_map(|cluster| &cluster.groups) {
            if group.members.contains(&node.name) && !units.contains(&group.unit) {
                found.group_units.entry((&group.role, group.id.short(), &group.unit)).or_default().push(node);
            }
        }
    }

    fn wants_secret(
        &self,
        node: &'a Node,
        place: Place<'a>,
        secret: Option<&str>,
        granted: &BTreeMap<&SecretName, BTreeSet<&NodeName>>,
        found: &mut Together<'a>,
    ) {
        if node.state == schema::Membership::Retired {
            return;
        }
        let Some(name) = secret.and_then(|secret| on_node(secret, node)).map(SecretName::new) else { return };
        let lack = match granted.get(&name) {
            None => Lack::Secret,
            Some(nodes) if !nodes.contains(&node.name) => Lack::Grant,
            Some(_) => return,
        };
        found.secrets.entry((place, lack)).or_default().push((node, name));
    }

    fn tell(&mut self, found: Together<'a>) {
        let documents: &'a Documents<'t> = self.documents;
        let document = |role: &RoleName| -> &'a Document<'t> { &documents.roles[role] };
        let span = |place: &Place<'_>, rest: &[&str]| {
            let index = place.index.to_string();
            document(place.role).value(&[&[place.table, &index], rest].concat())
        };
        for ((first, second, id), nodes) in &found.conflicts {
            let key = match id.kind {
                Kind::File => "path",
                Kind::Artifact => "into",
                Kind::Package | Kind::Unit | Kind::Action => "name",
            };
            let title = format!("{id} is declared twice for {}", some_of(nodes));
            let there = document(first.role);
            let line = there.line(span(first, &[key]).start);
            let problem = document(second.role).error(rule::CONFLICT, title).at(span(second, &[key]), "the second");
            self.problems.push(problem.note(format!("the first: {}:{line}", there.path)));
        }
        // A unit that is missing is missing everywhere: told once per role.
        let mut missing: BTreeMap<(&RoleName, &UnitName), Vec<Asked<'_>>> = BTreeMap::new();
        for ((place, key, position, unit), nodes) in &found.units {
            let at = span(place, &[key, &position.to_string()]);
            missing.entry((place.role, unit)).or_default().push((at, nodes));
        }
        for ((role, group, unit), nodes) in &found.group_units {
            let at = document(role).value(&["groups", group, "unit"]);
            missing.entry((role, unit)).or_default().push((at, nodes));
        }
        for ((role, unit), mut places) in missing {
            places.sort_by_key(|(at, _)| at.start);
            self.unknown_unit(document(role), unit, &places);
        }
        for ((place, os), nodes) in &found.packages {
            let title = format!("a package of {} has no name on {os}", some_of(nodes));
            let problem = document(place.role).error(rule::PACKAGE_WITHOUT_NAME, title);
            let label = format!("neither {os} nor {}", crate::fleet::os_family(os));
            self.problems.push(problem.at(span(place, &["name"]), label));
        }
        self.artifacts(&found.artifacts, |place| (document(place.role), span(place, &["component"])));
        self.buckets(&found.artifacts);
        for ((place, lack), wants) in &found.secrets {
            let Some((_, name)) = wants.first() else { continue };
            let nodes: Vec<&Node> = wants.iter().map(|(node, _)| *node).collect();
            let (rule, title, label) = match lack {
                Lack::Secret => (
                    rule::UNKNOWN_SECRET,
                    format!("there is no secret \"{name}\" for {}", some_of(&nodes)),
                    format!("not in {}", self.documents.secrets.path),
                ),
                Lack::Grant => (
                    rule::SECRET_NOT_GRANTED,
                    format!("secret \"{name}\" is not granted to {}", some_of(&nodes)),
                    "needed here".to_owned(),
                ),
            };
            let problem = document(place.role).error(rule, title).at(span(place, &["secret"]), label);
            match lack {
                Lack::Secret => {
                    let known = self.fleet.environment.secrets.keys().map(SecretName::as_str);
                    self.unknown(problem, "secrets", name.as_str(), known);
                }
                Lack::Grant => {
                    let document = &self.documents.secrets;
                    let line = document.line(document.value(&["secrets", name.as_str(), "grant"]).start);
                    let help =
                        format!("widen the grant in {}:{line}, then encrypt {name} again with `age`", document.path);
                    self.problems.push(problem.help(help));
                }
            }
        }
    }

    fn unknown_unit(&mut self, document: &Document<'_>, unit: &UnitName, places: &[Asked<'_>]) {
        let [(span, nodes), others @ ..] = places else { return };
        let known: BTreeSet<&str> = self
            .fleet
            .environment
            .role_bodies
            .values()
            .flat_map(|role| &role.units)
            .map(|unit| unit.body.name.as_str())
            .collect();
        let problem = document
            .error(rule::UNKNOWN_UNIT, format!("no role of {} declares {unit}", some_of(nodes)))
            .at(span.clone(), "no [[unit]] there has this name");
        let lines: BTreeSet<usize> = others.iter().map(|(at, _)| document.line(at.start)).collect();
        let problem = match lines.is_empty() {
            true => problem,
            false => problem.note(format!(
                "also named in line {}",
                lines.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            )),
        };
        // The unit may be another role's, which these nodes do not have: the name is right then.
        match known.contains(unit.as_str()) {
            true => self.problems.push(problem.help("another role declares it, which these nodes do not have")),
            false => self.unknown(problem, "units", unit.as_str(), known.iter().copied()),
        }
    }
}

/// Whether the text is what it says: no Tera in it.
fn is_literal(text: &str) -> bool {
    !["{{", "{%", "{#"].iter().any(|open| text.contains(open))
}

/// What the text says on this node, as far as that can be told without rendering.
fn on_node<'t>(text: &'t str, node: &Node) -> Option<Cow<'t, str>> {
    if is_literal(text) {
        return Some(Cow::Borrowed(text));
    }
    let text = text.replace("{{ node.name }}", node.name.as_str()).replace("{{node.name}}", node.name.as_str());
    is_literal(&text).then_some(Cow::Owned(text))
}

/// Why this is no path that a role may name; also for the renderer, once expressions are gone.
pub fn mistake_in_path(path: &str) -> Option<&'static str> {
    const PATH_MAX: usize = 4096;
    const NAME_MAX: usize = 255;
    if !path.starts_with('/') {
        Some("not absolute")
    } else if path.len() >= PATH_MAX || path.split('/').any(|part| part.len() > NAME_MAX) {
        Some("too long")
    } else if path.contains(|c: char| c.is_control()) {
        Some("has a control character")
    } else if path.split('/').any(|part| matches!(part, "." | "..")) {
        Some("has . or .. in it")
    } else if path.contains("//") || path.ends_with('/') {
        Some("has an empty part")
    } else {
        None
    }
}

/// Why no role may write here. Asked of what a role says, of what its expressions make of it, and by the host of where a
/// path leads in the end.
pub fn is_protected(path: &str) -> Option<&'static str> {
    let below = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if below("/etc/converger") {
        Some("the node's trust root, settings and keys are not the repository's to change")
    } else if OWN.into_iter().any(below) || path.starts_with("/.converger-") {
        Some("converger's own state")
    } else if path == "/usr/bin/converger" || unit_file_of(path).is_some_and(agents::is_own_unit) {
        Some("the agent's own; another version of it is the component converger of versions.toml")
    } else if ["/proc", "/sys", "/dev", "/boot"].into_iter().any(below) {
        Some("not a place for files of roles")
    } else {
        None
    }
}

/// The unit that a unit file or drop-in belongs to, wherever systemd looks for them.
fn unit_file_of(path: &str) -> Option<&str> {
    let folders = ["/etc/systemd/system/", "/run/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/"];
    let inside = folders.into_iter().find_map(|folder| path.strip_prefix(folder))?;
    let name = inside.split('/').next().unwrap_or(inside);
    Some(name.strip_suffix(".d").unwrap_or(name))
}

const OWN: [&str; 5] =
    ["/var/lib/converger", "/run/converger", "/var/run/converger", "/run/converger-validate", "/var/cache/converger"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_own_is_nobodys_to_write() {
        for own in [
            "/usr/bin/converger",
            "/etc/systemd/system/converger.service",
            "/etc/systemd/system/converger.service.d/x.conf",
            "/usr/lib/systemd/system/converger-roll-back.service",
            "/var/lib/converger/agent/state.json",
        ] {
            assert!(is_protected(own).is_some(), "{own}");
        }
        for other in
            ["/usr/bin/convergerd", "/etc/systemd/system/kafka.service", "/etc/systemd/system/kafka.service.d/a.conf"]
        {
            assert!(is_protected(other).is_none(), "{other}");
        }
    }

    #[test]
    fn paths_are_absolute_and_plain() {
        for good in ["/etc/kafka/server.properties", "/a", "/etc/x..y/.hidden"] {
            assert_eq!(mistake_in_path(good), None, "{good}");
        }
        let long = format!("/{}", "a/".repeat(2100));
        for bad in ["", "etc/x", "/", "/etc/", "/etc//x", "/etc/../x", "/etc/./x", "/a\0b", "/a\nb", &long] {
            assert!(mistake_in_path(bad).is_some(), "{bad}");
        }
        for bad in ["/etc/converger/trust.toml", "/etc/converger/trust", "/var/lib/converger/x", "/proc/1", "/boot"]
            .into_iter()
            .chain([
                "/etc/converger/agent.toml",
                "/etc/converger/age.key",
                "/var/run/converger/x",
                "/.converger-stage/x",
            ])
        {
            assert!(is_protected(bad).is_some(), "{bad}");
        }
        for good in ["/etc/convergers/x", "/var/lib/convergers", "/device", "/etc/systemd/system/x.service"] {
            assert_eq!(is_protected(good), None, "{good}");
        }
    }
}
