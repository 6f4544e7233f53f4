//! `converger render`: what files a node gets, masked, into a directory.
//!
//! Never: writes a secret's value, unless an identity is named.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::access::{Access, problems_failure};
use super::{Done, Failure, say};
use crate::disk;
use crate::fleet::select::{NodeSpec, select};
use crate::name::NodeName;
use crate::reason::{Exit, chain};
use crate::render::{Desired, Renderer};
use crate::resource::{Placed, Resource};
use crate::secrets::identities::Identities;
use crate::secrets::{Unsealed, unseal};

/// Render the files and resources of nodes into a directory
///
/// Writes `OUT/NODE/` plus the absolute path for each file, and `OUT/NODE.json` with every resource. Secrets are masked as
/// «secret:name» unless an identity is given.
#[derive(clap::Args)]
pub struct Args {
    /// One node; repeat for several
    #[arg(long, value_name = "NAME", required_unless_present = "all")]
    node: Vec<String>,
    /// Every node of the environment
    #[arg(long, conflicts_with = "node")]
    all: bool,
    /// Where to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A private key that opens the node's secrets: values instead of masks. Handle the output like the key
    #[arg(long, value_name = "FILE")]
    identity: Vec<PathBuf>,
}

pub fn run(args: Args, access: &Access) -> Done {
    let tree = access.work_tree()?;
    let loaded = access.load(&tree)?;
    let fleet = &loaded.fleet;
    let identities = Identities::load(&args.identity).map_err(|error| Failure::new(Exit::Secrets, chain(&error)))?;
    let renderer = Renderer::new(fleet);
    let names: Vec<NodeName> = if args.all {
        fleet.environment.nodes.iter().map(|node| node.name.clone()).collect()
    } else {
        args.node.iter().map(|name| NodeName::new(name.clone())).collect()
    };
    let mut problems = Vec::new();
    let mut files = 0;
    for name in &names {
        let spec = select(fleet, name)
            .ok_or_else(|| Failure::usage(format!("{name} is not a node of environment {}", fleet.environment.name)))?;
        let secrets = if args.identity.is_empty() { Unsealed::without_keys() } else { unseal(&spec, &identities) };
        match renderer.node(&spec, &secrets) {
            Ok(desired) => files += write(&args.out, &desired, !args.identity.is_empty(), &spec)?,
            Err(more) => problems.extend(more),
        }
    }
    if !problems.is_empty() {
        return Err(problems_failure(&problems, &tree));
    }
    say(format!("{files} files of {} nodes in {}\n", names.len(), args.out.display()));
    Ok(Exit::Done)
}

fn write(out: &Path, desired: &Desired, values: bool, spec: &NodeSpec<'_>) -> Result<usize, Failure> {
    let failed = |error: crate::disk::DiskError| Failure::new(Exit::Internal, chain(&error));
    let mut files = 0;
    let mut listed = Vec::new();
    for placed in &desired.resources {
        listed.push(describe(placed, spec));
        let Resource::File(file) = &placed.resource else { continue };
        let path = out.join(desired.node.as_str()).join(file.path.as_str().trim_start_matches('/'));
        if let Some(parent) = path.parent() {
            disk::create_dirs(parent).map_err(failed)?;
        }
        let secret = file.content.is_secret();
        let bytes = if values && secret { file.content.bytes() } else { Some(file.content.shown()) };
        let mode = if values && secret { 0o600 } else { 0o644 };
        disk::write_atomic(&path, bytes.unwrap_or_else(|| file.content.shown()), mode).map_err(failed)?;
        files += 1;
    }
    let json = serde_json::to_string_pretty(&listed).expect("plain data");
    let path = out.join(format!("{}.json", desired.node));
    disk::write_atomic(&path, format!("{json}\n").as_bytes(), 0o644).map_err(failed)?;
    Ok(files)
}

/// One resource as JSON: what others build on (names fixed in the reference).
fn describe(placed: &Placed, spec: &NodeSpec<'_>) -> serde_json::Value {
    let groups = |unit: &crate::name::UnitName| -> Vec<String> {
        spec.groups.iter().filter(|group| group.unit == *unit).map(|group| group.id.to_string()).collect()
    };
    let mut value = match &placed.resource {
        Resource::File(file) => json!({
            "kind": "file", "path": file.path, "owner": file.owner, "group": file.group,
            "mode": format!("{:04o}", file.mode), "policy": file.policy,
            "validate": file.validate.as_ref().map(|validate| &validate.run),
            "secrets": file.content.secrets(),
        }),
        Resource::Package(package) => json!({ "kind": "package", "name": package.name, "version": package.version }),
        Resource::Artifact(artifact) => json!({
            "kind": "artifact", "name": artifact.component, "version": artifact.version, "into": artifact.into,
            "sha256": artifact.sha256, "urls": artifact.urls,
        }),
        Resource::Unit(unit) => json!({
            "kind": "unit", "name": unit.name, "enabled": unit.enabled, "state": unit.state, "groups": groups(&unit.name),
        }),
        Resource::Action(action) => json!({
            "kind": "action", "name": action.name, "run": action.run, "scope": action.scope, "on": action.on,
        }),
    };
    let more = json!({
        "role": placed.origin.role, "cluster": placed.origin.cluster, "origin": format!("{}:{}", placed.origin.path, placed.origin.line),
        "restarts": placed.restarts, "reloads": placed.reloads,
    });
    if let (Some(value), Some(more)) = (value.as_object_mut(), more.as_object()) {
        value.extend(more.clone());
    }
    value
}
