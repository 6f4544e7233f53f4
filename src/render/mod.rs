//! From one node's part of the fleet to what the node must look like: every template rendered, every string filled in.
//!
//! Strict: `lint` looks at a template before Tera does. A template with secrets is rendered twice, with placeholders
//! for every eye and with the values for the disk; without keys only the first is done, by the same code. PURE. Never:
//! a secret in a problem; never: part of a node, all of its problems come back instead.

mod context;
mod filters;
mod functions;
mod lint;
mod role;
mod syntax;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tera::Context;
use zeroize::Zeroizing;

use self::context::Shared;
use self::functions::{Pass, placeholder};
use self::lint::{Scene, Source};
use self::role::{Compiled, folder};
use crate::fleet::check::is_protected;
use crate::fleet::problem::Problem;
use crate::fleet::select::{NodeSpec, select};
use crate::fleet::{Cluster, Declared, Fleet, Group, Role, schema};
use crate::lock::singleton;
use crate::name::{ClusterName, CommitId, HostPath, NodeName, RepoPath, RoleName, SecretName, UnitName};
use crate::probe::{Question, Tls};
use crate::resource::action::Strike;
use crate::resource::artifact::{Bucket, file_of, s3_address};
use crate::resource::content::SecretUse;
use crate::resource::file::{Policy, Validate};
use crate::resource::{
    ActionSpec, ArtifactSpec, Content, FileSpec, Id, Origin, PackageSpec, Placed, Resource, UnitSpec,
};
use crate::secrets::{self, Opened, Unsealed};

/// What a node must look like.
pub struct Desired {
    pub node: NodeName,
    /// As it is declared.
    pub state: schema::Membership,
    /// `None`: a work tree that is not committed.
    pub commit: Option<CommitId>,
    /// In order of the roles, then of their manifests.
    pub resources: Vec<Placed>,
    /// Resources that cannot be written because a secret cannot be opened: their content has no bytes.
    pub sealed: Vec<Sealed>,
    /// What this node does for members that are dead, which the repository alone does not tell.
    pub strikes: Vec<Strike>,
}

pub struct Sealed {
    pub resource: Id,
    pub secret: SecretName,
    /// Why, and what to do; in words.
    pub reason: String,
}

/// Renders the nodes of one fleet; roles are compiled when the first node needs them.
pub struct Renderer<'a> {
    fleet: &'a Fleet,
    shared: Arc<Shared>,
    /// Every secret of the environment.
    secrets: Arc<BTreeSet<SecretName>>,
    roles: BTreeMap<&'a RoleName, OnceLock<Compiled>>,
}

/// The problems of the whole environment; those that several nodes share are told once.
pub fn lint_fleet(fleet: &Fleet) -> Vec<Problem> {
    let renderer = Renderer::new(fleet);
    let mut problems: Vec<Problem> =
        fleet.environment.role_bodies.values().flat_map(|role| &renderer.role(role).problems).cloned().collect();
    let mut shared: Vec<(Problem, Vec<&str>)> = Vec::new();
    let mut known: BTreeMap<(RepoPath, Option<usize>, &str, String), usize> = BTreeMap::new();
    let keyless = Unsealed::without_keys();
    for node in &fleet.environment.nodes {
        let Some(spec) = select(fleet, &node.name) else { continue };
        for problem in renderer.render(&spec, &keyless).1 {
            let start = problem.span.as_ref().map(|span| span.start);
            let key = (problem.path.clone(), start, problem.rule, problem.title.clone());
            let at = *known.entry(key).or_insert_with(|| {
                shared.push((problem, Vec::new()));
                shared.len() - 1
            });
            shared[at].1.push(node.name.as_str());
        }
    }
    problems.extend(shared.into_iter().map(|(problem, nodes)| for_nodes(problem, &nodes)));
    problems
}

fn for_nodes(mut problem: Problem, nodes: &[&str]) -> Problem {
    problem.title = format!("{} for {}", problem.title, several(nodes));
    if nodes.len() > 2 {
        problem.title.push_str(" nodes");
    }
    problem
}

/// `a`, `a and b`, `a and 4 more`.
fn several(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [one, other] => format!("{one} and {other}"),
        [one, rest @ ..] => format!("{one} and {} more", rest.len()),
    }
}

impl<'a> Renderer<'a> {
    pub fn new(fleet: &'a Fleet) -> Self {
        Self {
            fleet,
            shared: Arc::new(Shared::new(fleet)),
            secrets: Arc::new(fleet.environment.secrets.keys().cloned().collect()),
            roles: fleet.environment.role_bodies.keys().map(|role| (role, OnceLock::new())).collect(),
        }
    }

    fn role(&self, role: &Role) -> &Compiled {
        let slot = self.roles.get(&role.name).expect("a node's roles are roles of its fleet");
        slot.get_or_init(|| Compiled::new(self.fleet, role, &self.shared))
    }

    /// What the node must look like. Errors: all problems that touch it, those of its roles included.
    pub fn node(&self, spec: &NodeSpec<'_>, unsealed: &Unsealed) -> Result<Desired, Vec<Problem>> {
        let roles: BTreeMap<&RoleName, &Role> =
            spec.roles.iter().map(|instance| (&instance.role.name, instance.role)).collect();
        let mut problems: Vec<Problem> = roles.values().flat_map(|role| &self.role(role).problems).cloned().collect();
        let (desired, own) = self.render(spec, unsealed);
        problems.extend(own.into_iter().map(|problem| for_nodes(problem, &[spec.node.name.as_str()])));
        if problems.is_empty() { Ok(desired) } else { Err(problems) }
    }

    /// The node's resources, and its problems without its name; roles with problems of their own are left out.
    fn render(&self, spec: &NodeSpec<'_>, unsealed: &Unsealed) -> (Desired, Vec<Problem>) {
        let mut stage = Stage {
            spec,
            unsealed,
            secrets: Arc::clone(&self.secrets),
            granted: Arc::new(secrets::granted(spec)),
            roles: spec.roles.iter().map(|instance| &instance.role.name).collect(),
            desired: Desired {
                node: spec.node.name.clone(),
                state: spec.node.state,
                commit: self.fleet.commit.clone(),
                resources: Vec::new(),
                sealed: Vec::new(),
                strikes: Vec::new(),
            },
            problems: Vec::new(),
        };
        let mut seen: BTreeSet<(&RoleName, Option<&ClusterName>)> = BTreeSet::new();
        for instance in &spec.roles {
            let compiled = self.role(instance.role);
            let cluster = instance.cluster.filter(|_| compiled.reads_cluster);
            let fresh = seen.insert((&instance.role.name, cluster.map(|cluster| &cluster.name)));
            if fresh && compiled.problems.is_empty() {
                Part::new(self, spec, compiled, instance.role, instance.cluster).place(&mut stage);
            }
        }
        stage.conflicts();
        (stage.desired, stage.problems)
    }

    /// A check of a group's role, made concrete for every member. Errors: the problems of its strings.
    pub fn questions(
        &self,
        spec: &NodeSpec<'_>,
        group: &Group,
        check: &str,
        unsealed: &Unsealed,
    ) -> Result<Vec<Question>, Vec<Problem>> {
        let environment = &self.fleet.environment;
        let role = environment.role_bodies.get(&group.role);
        let Some((role, body)) = role.and_then(|role| Some((role, role.checks.get(check)?))) else {
            return Ok(Vec::new());
        };
        let compiled = self.role(role);
        if !compiled.problems.is_empty() {
            return Err(compiled.problems.clone());
        }
        let part = Part::new(self, spec, compiled, role, environment.cluster(&group.id.cluster()));
        let mut problems = Vec::new();
        let question = part.check(body, group, unsealed, &mut problems);
        let mut members = Vec::new();
        for name in &group.members {
            let node = environment.node(name);
            match node.and_then(|node| context::address(environment, node, question.network.as_deref())) {
                Some(address) => members.push((name.clone(), address.to_owned())),
                None => {
                    let network = question.network.as_deref().unwrap_or("any");
                    let title = format!("check {check}: {name} has no address in network {network}");
                    problems.push(Problem::error("no-address", role.path.clone(), title));
                }
            }
        }
        if !problems.is_empty() {
            let node = [spec.node.name.as_str()];
            return Err(problems.into_iter().map(|problem| for_nodes(problem, &node)).collect());
        }
        let ids = environment.cluster(&group.id.cluster()).map(|cluster| &cluster.ids);
        let id_of = |member: &NodeName| ids.and_then(|ids| ids.get(member)).copied();
        let numbered = group.members.iter().filter_map(|member| Some((member.clone(), id_of(member)?)));
        let numbered: Vec<(NodeName, u64)> = numbered.collect();
        let is_active =
            |name: &&NodeName| environment.node(name).is_some_and(|node| node.state == schema::Membership::Active);
        let changing: Vec<NodeName> = group.members.iter().filter(|name| !is_active(name)).cloned().collect();
        let ask = |(member, address): &(NodeName, String)| Question {
            member: member.clone(),
            id: id_of(member),
            ids: numbered.clone(),
            address: address.clone(),
            own: *member == spec.node.name,
            members: members.clone(),
            changing: changing.clone(),
            ..question.question.clone()
        };
        Ok(members.iter().map(ask).collect())
    }
}

/// A check with its strings filled in, before it is addressed to anybody.
struct Prepared {
    network: Option<String>,
    question: Question,
}

/// One node while it is being put together.
struct Stage<'s> {
    spec: &'s NodeSpec<'s>,
    unsealed: &'s Unsealed,
    secrets: Arc<BTreeSet<SecretName>>,
    granted: Arc<BTreeSet<SecretName>>,
    roles: BTreeSet<&'s RoleName>,
    desired: Desired,
    problems: Vec<Problem>,
}

impl Stage<'_> {
    /// Two resources with one id on a node.
    fn conflicts(&mut self) {
        let mut owners: BTreeMap<Id, &Origin> = BTreeMap::new();
        for placed in &self.desired.resources {
            let id = placed.resource.id();
            let origin = &placed.origin;
            if let Some(first) = owners.get(&id) {
                let title = format!("{id} is declared twice");
                let problem = Problem::error("conflict", origin.path.clone(), title)
                    .note(format!("first in {}:{}{}", first.path, first.line, through(first)))
                    .note(format!("again in {}:{}{}", origin.path, origin.line, through(origin)));
                self.problems.push(problem);
            } else {
                owners.insert(id, origin);
            }
        }
    }
}

fn through(origin: &Origin) -> String {
    origin.cluster.as_ref().map_or_else(String::new, |cluster| format!(" (cluster {cluster})"))
}

/// One role on one node, through one cluster.
struct Part<'p> {
    renderer: &'p Renderer<'p>,
    compiled: &'p Compiled,
    role: &'p Role,
    /// The cluster that brings it.
    cluster: Option<&'p Cluster>,
    context: Context,
    restart_epoch: u64,
}

/// What belongs to a resource besides itself.
#[derive(Default)]
struct Ties<'d> {
    restarts: &'d [UnitName],
    reloads: &'d [UnitName],
    before: &'d [UnitName],
    reboot: bool,
}

impl<'p> Part<'p> {
    fn new(
        renderer: &'p Renderer<'p>,
        spec: &NodeSpec<'_>,
        compiled: &'p Compiled,
        role: &'p Role,
        cluster: Option<&'p Cluster>,
    ) -> Self {
        let environment = &renderer.fleet.environment;
        let node = spec.node;
        // A role that does not differ with the cluster serves all clusters of the node at once.
        let own = cluster.filter(|_| compiled.reads_cluster);
        let clusters = own.map_or_else(|| node.clusters.clone(), |cluster| vec![cluster.name.clone()]);
        let brought_by = clusters.iter().filter_map(|name| environment.cluster(name));
        let restart_epoch =
            brought_by.filter(|cluster| cluster.roles.contains(&role.name)).map(|cluster| cluster.restart_epoch).sum();
        let context = renderer.shared.context(environment, role, node, own, &clusters);
        Self { renderer, compiled, role, cluster, context, restart_epoch }
    }

    fn place(&self, stage: &mut Stage<'_>) {
        let broken = self.lint(stage);
        for declared in &self.role.packages {
            self.package(declared, stage);
        }
        for declared in &self.role.artifacts {
            self.artifact(declared, stage);
        }
        for declared in &self.role.files {
            if stage.means(&declared.body.only) && !broken.contains(&declared.line) {
                self.file(declared, stage);
            }
        }
        for declared in &self.role.units {
            if stage.means(&declared.body.only) && !broken.contains(&declared.line) {
                self.unit(declared, stage);
            }
        }
        for declared in &self.role.actions {
            if stage.means(&declared.body.only) && !broken.contains(&declared.line) {
                self.action(declared, stage);
            }
        }
    }

    /// Looks at every template of the resources that this node has. Returns the lines of those with problems.
    fn lint(&self, stage: &mut Stage<'_>) -> BTreeSet<usize> {
        let mut sources: Vec<(usize, &Arc<Source>)> = Vec::new();
        let files = |name: &Option<String>| name.as_ref().and_then(|name| self.compiled.files.get(name));
        let strings = |text: &String| self.compiled.strings.get(text);
        for declared in &self.role.files {
            let file = &declared.body;
            if stage.means(&file.only) {
                let run = file.validate.iter().flat_map(|validate| &validate.run);
                let all = std::iter::once(&file.path).chain(&file.secret).chain(run).filter_map(strings);
                sources.extend(files(&file.template).into_iter().chain(all).map(|source| (declared.line, source)));
            }
        }
        for declared in &self.role.units {
            let unit = &declared.body;
            if stage.means(&unit.only) {
                let steps = [&unit.before_stop, &unit.transfer, &unit.after_start].into_iter().flatten().flatten();
                let all = steps.filter_map(strings).chain(files(&unit.template)).chain(files(&unit.dropin));
                sources.extend(all.map(|source| (declared.line, source)));
            }
        }
        for declared in &self.role.actions {
            let action = &declared.body;
            if stage.means(&action.only) {
                let all = action.run.iter().chain(&action.creates).chain(&action.unless).filter_map(strings);
                sources.extend(all.map(|source| (declared.line, source)));
            }
        }
        let checks = self.role.checks.values().flat_map(role::strings_of);
        sources.extend(checks.filter_map(strings).map(|source| (0, source)));
        let scene = Scene {
            files: &self.compiled.files,
            shared: &self.renderer.shared,
            secrets: &stage.secrets,
            context: &self.context,
        };
        let mut looked: BTreeMap<*const Source, bool> = BTreeMap::new();
        let mut broken = BTreeSet::new();
        for (line, source) in sources {
            let bad = *looked.entry(Arc::as_ptr(source)).or_insert_with(|| {
                let problems = lint::look(source, &scene);
                let bad = !problems.is_empty();
                stage.problems.extend(problems);
                bad
            });
            if bad {
                broken.insert(line);
            }
        }
        broken
    }

    fn problem<T>(&self, rule: &'static str, declared: &Declared<T>, title: String) -> Problem {
        Problem::error(rule, self.role.path.clone(), title).at(declared.span.clone(), "declared here")
    }

    fn put<T>(&self, stage: &mut Stage<'_>, declared: &Declared<T>, resource: Resource, ties: Ties<'_>) {
        stage.desired.resources.push(Placed {
            resource,
            origin: Origin {
                role: self.role.name.clone(),
                cluster: self.cluster.map(|cluster| cluster.name.clone()),
                path: self.role.path.clone(),
                line: declared.line,
            },
            restarts: ties.restarts.to_vec(),
            reloads: ties.reloads.to_vec(),
            before: ties.before.to_vec(),
            reboot: ties.reboot,
        });
    }

    fn package(&self, declared: &Declared<schema::Package>, stage: &mut Stage<'_>) {
        let package = &declared.body;
        if !stage.means(&package.only) {
            return;
        }
        let node = stage.spec.node;
        let Some(name) = package.name.get(&node.os).or_else(|| package.name.get(node.os_family())) else {
            let names: Vec<&str> = package.name.values().map(String::as_str).collect();
            let title = format!("package {} has no name on {}", names.join("/"), node.os);
            stage.problems.push(self.problem("no-package-name", declared, title));
            return;
        };
        let spec = PackageSpec { name: name.clone(), version: package.version.clone(), hold: package.hold };
        let ties =
            Ties { restarts: &package.restarts, reloads: &package.reloads, reboot: package.reboot, ..Ties::default() };
        self.put(stage, declared, Resource::Package(spec), ties);
    }

    fn artifact(&self, declared: &Declared<schema::Artifact>, stage: &mut Stage<'_>) {
        let artifact = &declared.body;
        if !stage.means(&artifact.only) {
            return;
        }
        let version = self.renderer.fleet.environment.versions.get(&artifact.component);
        let Some(version) = version.map(|version| context::version_for(version, &stage.spec.node.os)) else {
            let title = format!("versions.toml has no component {}", artifact.component);
            stage.problems.push(self.problem("unknown-component", declared, title));
            return;
        };
        let Some(sha256) = version.sha256.filter(|_| !version.urls.is_empty()) else {
            let title = format!("versions.toml has no urls or no sha256 of component {}", artifact.component);
            stage.problems.push(self.problem("incomplete-component", declared, title));
            return;
        };
        let file = version.file.or_else(|| version.urls.first().map(|url| file_of(url).to_owned()));
        let (environment, tree) = (&self.renderer.fleet.environment, &self.renderer.fleet.tree);
        let authorities = environment.mirror_authorities.as_ref().and_then(|path| tree.get(path.as_str()));
        let spec = ArtifactSpec {
            component: artifact.component.clone(),
            version: version.version,
            sha256: sha256.to_ascii_lowercase(),
            buckets: self.buckets(&version.urls, stage),
            urls: version.urls,
            file: file.unwrap_or_default(),
            into: HostPath::new(artifact.into.clone()),
            authorities: authorities.map(|pem| Arc::from(&*String::from_utf8_lossy(pem))),
        };
        let ties = Ties { restarts: &artifact.restarts, reloads: &artifact.reloads, ..Ties::default() };
        self.put(stage, declared, Resource::Artifact(spec), ties);
    }

    /// Those that are declared; a secret that cannot be opened here makes a mirror useless, and no more.
    fn buckets(&self, urls: &[String], stage: &Stage<'_>) -> BTreeMap<String, Bucket> {
        let declared = &self.renderer.fleet.environment.s3;
        let named = urls.iter().filter_map(|url| declared.get_key_value(s3_address(url)?.0));
        let bucket = |entry: &schema::BucketEntry| {
            let bytes = match stage.unsealed.get(&entry.secret) {
                Opened::Value(secret) => Some(Zeroizing::new(secret.expose().to_vec())),
                Opened::Sealed(_) | Opened::NoKey => None,
            };
            let masked = placeholder(&entry.secret).into_bytes();
            Bucket {
                endpoint: entry.endpoint.clone(),
                region: entry.region.clone(),
                secret: entry.secret.clone(),
                credentials: Content::secret(bytes, masked, self.uses([&entry.secret])),
            }
        };
        named.map(|(name, entry)| (name.clone(), bucket(entry))).collect()
    }

    fn file(&self, declared: &Declared<schema::File>, stage: &mut Stage<'_>) {
        let file = &declared.body;
        let Some(path) = self.string(&file.path, stage) else { return };
        if !is_plain_path(&path) {
            let title = format!("{path:?} is no plain absolute path");
            stage.problems.push(self.problem("bad-path", declared, title));
            return;
        }
        if let Some(why) = is_protected(&path) {
            let title = format!("a role must not write {path}: {why}");
            stage.problems.push(self.problem("protected-path", declared, title));
            return;
        }
        let path = HostPath::new(path);
        let id = Id { kind: crate::resource::Kind::File, name: path.to_string() };
        let content = match (&file.template, &file.source, &file.secret) {
            (Some(template), None, None) => self.template(template, &id, stage),
            (None, Some(source), None) => self.static_file(source, declared, stage),
            (None, None, Some(secret)) => self.secret_file(secret, &id, declared, stage),
            _ => {
                let title = format!("{path} must have exactly one of template, source, secret");
                stage.problems.push(self.problem("one-content", declared, title));
                None
            }
        };
        let Some(content) = content else { return };
        let Some(mode) = mode(file.mode.as_deref(), &content) else {
            let title = format!("mode {:?} of {path} is not octal", file.mode.as_deref().unwrap_or_default());
            stage.problems.push(self.problem("bad-mode", declared, title));
            return;
        };
        let validate = match &file.validate {
            None => None,
            Some(validate) => {
                let Some(run) = self.strings(&validate.run, stage) else { return };
                Some(Validate {
                    run,
                    user: validate.user.clone(),
                    ok_exit: validate.ok_exit.clone(),
                    fail_on: validate.fail_on.clone(),
                    ignore: validate.ignore.clone(),
                })
            }
        };
        let (owner, group, policy) = (file.owner.clone(), file.group.clone(), file.policy);
        let spec = FileSpec { path, content, owner, group, mode, policy, validate };
        let ties = Ties { restarts: &file.restarts, reloads: &file.reloads, reboot: file.reboot, ..Ties::default() };
        self.put(stage, declared, Resource::File(spec), ties);
    }

    fn unit(&self, declared: &Declared<schema::Unit>, stage: &mut Stage<'_>) {
        let unit = &declared.body;
        let path = match (&unit.template, &unit.dropin) {
            (Some(template), None) => Some((template, format!("/etc/systemd/system/{}", unit.name))),
            (None, Some(dropin)) => Some((dropin, format!("/etc/systemd/system/{}.d/50-converger.conf", unit.name))),
            (None, None) => None,
            (Some(_), Some(_)) => {
                let title = format!("{} has both a template and a drop-in", unit.name);
                stage.problems.push(self.problem("one-content", declared, title));
                return;
            }
        };
        if let Some((template, path)) = path {
            let id = Id { kind: crate::resource::Kind::File, name: path.clone() };
            let Some(content) = self.template(template, &id, stage) else { return };
            let spec = FileSpec {
                path: HostPath::new(path),
                mode: mode(None, &content).unwrap_or(0o600),
                content,
                owner: "root".to_owned(),
                group: "root".to_owned(),
                policy: Policy::Enforce,
                validate: None,
            };
            let ties = Ties { restarts: std::slice::from_ref(&unit.name), ..Ties::default() };
            self.put(stage, declared, Resource::File(spec), ties);
        }
        if unit.singleton {
            let spec = FileSpec {
                path: HostPath::new(format!("/etc/systemd/system/{}.d/90-converger-singleton.conf", unit.name)),
                content: Content::plain(singleton::drop_in(&unit.name, unit.stop_secs_max).into_bytes()),
                owner: "root".to_owned(),
                group: "root".to_owned(),
                mode: 0o644,
                policy: Policy::Enforce,
                validate: None,
            };
            let ties = Ties { restarts: std::slice::from_ref(&unit.name), ..Ties::default() };
            self.put(stage, declared, Resource::File(spec), ties);
        }
        let mut steps = |lists: &[Vec<String>]| -> Option<Vec<Vec<String>>> {
            lists.iter().map(|list| self.strings(list, stage)).collect()
        };
        let (Some(before_stop), Some(transfer), Some(after_start)) =
            (steps(&unit.before_stop), steps(&unit.transfer), steps(&unit.after_start))
        else {
            return;
        };
        let spec = UnitSpec {
            name: unit.name.clone(),
            // The boot must not start what may run elsewhere.
            enabled: if unit.singleton { Some(false) } else { unit.enabled },
            state: unit.state,
            before_stop,
            transfer,
            after_start,
            stop_secs_max: unit.stop_secs_max,
            start_secs_max: unit.start_secs_max,
            reload_hold: unit.reload_hold,
            lease_secs: unit.lease_secs.filter(|_| unit.singleton),
            restart_epoch: self.restart_epoch,
        };
        self.put(stage, declared, Resource::Unit(spec), Ties::default());
    }

    fn action(&self, declared: &Declared<schema::Action>, stage: &mut Stage<'_>) {
        let action = &declared.body;
        let creates = match &action.creates {
            None => None,
            Some(path) => match self.string(path, stage) {
                Some(path) => Some(path),
                None => return,
            },
        };
        let (Some(run), Some(unless)) = (self.strings(&action.run, stage), self.strings(&action.unless, stage)) else {
            return;
        };
        let spec = ActionSpec {
            name: action.name.clone(),
            run,
            creates,
            unless,
            user: action.user.clone(),
            scope: action.scope,
            on: action.on.clone(),
        };
        self.put(stage, declared, Resource::Action(spec), Ties { before: &action.before, ..Ties::default() });
    }

    /// `None`: the problem is told.
    fn string(&self, text: &str, stage: &mut Stage<'_>) -> Option<String> {
        self.compiled.render_string(text, &self.context).map_err(|problem| stage.problems.push(*problem)).ok()
    }

    fn strings(&self, texts: &[String], stage: &mut Stage<'_>) -> Option<Vec<String>> {
        texts.iter().map(|text| self.string(text, stage)).collect()
    }

    fn static_file(&self, name: &str, declared: &Declared<schema::File>, stage: &mut Stage<'_>) -> Option<Content> {
        let path = format!("{}{name}", folder(self.role));
        let bytes = self.renderer.fleet.tree.get(&path);
        if bytes.is_none() {
            let title = format!("\"{name}\" is no file of this role");
            stage.problems.push(self.problem("missing-file", declared, title));
        }
        bytes.map(|bytes| Content::plain(bytes.to_vec()))
    }

    fn secret_file(
        &self,
        name: &str,
        id: &Id,
        declared: &Declared<schema::File>,
        stage: &mut Stage<'_>,
    ) -> Option<Content> {
        let name = SecretName::new(self.string(name, stage)?);
        let refused = if !stage.secrets.contains(&name) {
            Some(("unknown-secret", format!("secrets.toml has no secret {name}")))
        } else if !stage.granted.contains(&name) {
            Some(("secret-not-granted", format!("the secret {name} is not granted")))
        } else {
            None
        };
        if let Some((rule, title)) = refused {
            stage.problems.push(self.problem(rule, declared, title));
            return None;
        }
        let masked = placeholder(&name).into_bytes();
        let bytes = match stage.unsealed.get(&name) {
            Opened::Value(secret) => Some(Zeroizing::new(secret.expose().to_vec())),
            Opened::Sealed(reason) => {
                let reason = reason.to_owned();
                stage.desired.sealed.push(Sealed { resource: id.clone(), secret: name.clone(), reason });
                None
            }
            Opened::NoKey => None,
        };
        Some(Content::secret(bytes, masked, self.uses([&name])))
    }

    fn uses<'n>(&self, names: impl IntoIterator<Item = &'n SecretName>) -> Vec<SecretUse> {
        let secrets = &self.renderer.fleet.environment.secrets;
        let version = |name: &SecretName| secrets.get(name).map_or(0, |secret| secret.version);
        names.into_iter().map(|name| SecretUse { name: name.clone(), version: version(name) }).collect()
    }

    fn template(&self, name: &str, id: &Id, stage: &mut Stage<'_>) -> Option<Content> {
        let source = self.compiled.files.get(name)?;
        let pass =
            || Pass { known: Arc::clone(&stage.secrets), granted: Arc::clone(&stage.granted), ..Pass::default() };
        let (masked, pass_masked) = self.compiled.render_file(name, &self.context, pass(), source.text.len());
        let masked = match masked {
            Ok(masked) => masked.to_vec(),
            Err(problem) => {
                stage.problems.push(*problem);
                return None;
            }
        };
        if pass_masked.used.is_empty() {
            return Some(Content::plain(masked));
        }
        let mut used = pass_masked.used;
        let mut values = BTreeMap::new();
        let mut size = masked.len();
        for secret in &used {
            let sealed = match stage.unsealed.get(secret) {
                Opened::NoKey => continue,
                Opened::Sealed(reason) => reason.to_owned(),
                Opened::Value(value) => match std::str::from_utf8(value.expose()) {
                    Ok(text) => {
                        let text = Zeroizing::new(text.strip_suffix('\n').unwrap_or(text).to_owned());
                        size += 2 * text.len();
                        values.insert(secret.clone(), text);
                        continue;
                    }
                    Err(_) => format!("the secret {secret} is not text, a template cannot use it"),
                },
            };
            stage.desired.sealed.push(Sealed { resource: id.clone(), secret: secret.clone(), reason: sealed });
        }
        let mut bytes = None;
        if values.len() == used.len() {
            let pass = Pass { values: Some(values), ..pass() };
            let (valued, pass) = self.compiled.render_file(name, &self.context, pass, size);
            used.extend(pass.used);
            match valued {
                Ok(valued) => bytes = Some(valued),
                // What Tera says could quote a value.
                Err(_) => {
                    let title = "it renders with placeholders, but not with the values of its secrets".to_owned();
                    let names: Vec<&str> = used.iter().map(SecretName::as_str).collect();
                    let problem = Problem::error("render-failed", source.path.clone(), title)
                        .note(format!("secrets: {}", names.join(", ")))
                        .help("a filter may not hold the value, or a condition may ask for its content");
                    stage.problems.push(problem);
                    return None;
                }
            }
        }
        Some(Content::secret(bytes, masked, self.uses(&used)))
    }

    fn check(
        &self,
        check: &schema::Check,
        group: &Group,
        unsealed: &Unsealed,
        problems: &mut Vec<Problem>,
    ) -> Prepared {
        let mut string = |text: &String| {
            self.compiled.render_string(text, &self.context).unwrap_or_else(|problem| {
                problems.push(*problem);
                String::new()
            })
        };
        let network = check.network.as_ref().map(&mut string);
        let tls = check.tls.as_ref().map(|tls| Tls {
            ca: string(&tls.ca),
            cert: tls.cert.as_ref().map(&mut string),
            key: tls.key.as_ref().map(&mut string),
        });
        let secret = check.secret.as_ref().map(&mut string).map(SecretName::new);
        let value = secret.as_ref().and_then(|name| match unsealed.get(name) {
            Opened::Value(secret) => std::str::from_utf8(secret.expose())
                .ok()
                .map(|text| Zeroizing::new(text.strip_suffix('\n').unwrap_or(text).to_owned())),
            Opened::Sealed(_) | Opened::NoKey => None,
        });
        let question = Question {
            id: None,
            ids: Vec::new(),
            check: check.name.clone(),
            kind: check.kind,
            member: NodeName::new(""),
            address: String::new(),
            own: false,
            unit: group.unit.clone(),
            port: check.port,
            path: check.path.as_ref().map(&mut string),
            status: check.status.unwrap_or(200),
            tls,
            secret: value,
            user: check.user.as_ref().map(&mut string),
            run: check.run.iter().map(&mut string).collect(),
            timeout: Duration::from_secs(check.timeout_secs),
            members: Vec::new(),
            changing: Vec::new(),
        };
        Prepared { network, question }
    }
}

impl Stage<'_> {
    fn means(&self, only: &crate::fleet::selector::Selector) -> bool {
        context::selects(only, self.spec.node, &self.roles)
    }
}

/// Absolute, without `.`, `..`, empty parts or control characters.
fn is_plain_path(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    rest.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.chars().any(char::is_control)
}

/// `None`: what is written is no octal number of permission bits.
fn mode(written: Option<&str>, content: &Content) -> Option<u32> {
    match written {
        None => Some(if content.is_secret() { 0o600 } else { 0o644 }),
        Some(text) => u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777),
    }
}
