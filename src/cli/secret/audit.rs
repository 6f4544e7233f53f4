//! `converger secret audit`: who can read what, and what is amiss, without a key. Never: opens a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::draft::{Draft, fleet_of};
use crate::cli::access::Access;
use crate::cli::{Done, Failure, say, say_json};
use crate::fleet::select::select;
use crate::fleet::{Fleet, Secret as Entry};
use crate::git::Workspace;
use crate::name::{NodeName, SecretName};
use crate::plan::show::{names, plural, table};
use crate::reason::{Exit, chain};
use crate::render::Renderer;
use crate::resource::Resource;
use crate::secrets::Unsealed;
use crate::secrets::cover::{Cover, leavers};
use crate::secrets::header::Header;
use crate::secrets::order::authority_of;

/// List secrets: who reads them, what they are encrypted to, which must be re-keyed or rotated
///
/// Needs no key. One tree cannot tell who could read a value earlier and may not now: --since compares with an older commit and
/// lists the secrets to rotate. Ends with 3 if a secret has a problem or must be rotated.
#[derive(clap::Args)]
pub struct Args {
    /// Compare who may read what with an older revision
    #[arg(long, value_name = "REV")]
    since: Option<String>,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    /// Public keys that every secret is encrypted to besides its readers'.
    operators: Vec<String>,
    secrets: Vec<Row>,
    nodes_without_recipient: Vec<NodeName>,
}

#[derive(Serialize)]
struct Row {
    name: SecretName,
    version: u64,
    readers: Vec<NodeName>,
    /// As the file's header counts them.
    encrypted_to: Option<usize>,
    /// `null`: some node cannot be rendered, `converger check` says why.
    used: Option<bool>,
    problems: Vec<String>,
    /// Who knew the value at the older revision and may not now. Empty without --since.
    rotate_because_of: Vec<String>,
}

pub fn run(args: Args, access: &Access) -> Done {
    let draft = Draft::open(access)?;
    let fleet = &draft.fleet;
    let older = args.since.as_deref().map(|revision| older(&draft, revision)).transpose()?;
    let report = report(fleet, older.as_ref());
    let amiss = report.secrets.iter().any(|row| !row.problems.is_empty() || !row.rotate_because_of.is_empty());
    if args.json {
        say_json(&report);
    } else {
        say(text(&report, args.since.as_deref()));
    }
    Ok(if amiss { Exit::Repository } else { Exit::Done })
}

fn older(draft: &Draft, revision: &str) -> Result<Fleet, Failure> {
    let tree = Workspace::open(&draft.folder).and_then(|workspace| workspace.tree_at(revision));
    let tree = Arc::new(tree.map_err(|error| Failure::usage(chain(&error)))?);
    fleet_of(&tree, Some(&draft.fleet.environment.name))
}

fn report(fleet: &Fleet, older: Option<&Fleet>) -> Report {
    let environment = &fleet.environment;
    let cover = Cover::of(environment);
    let then = older.map(|fleet| (fleet, Cover::of(&fleet.environment)));
    let used = used(fleet);
    let mut files: BTreeMap<&[u8], &SecretName> = BTreeMap::new();
    let rows = environment.secrets.values().map(|entry| {
        let wanted = cover.wanted(&entry.grant);
        let file = fleet.tree.get(entry.path.as_str());
        let copied = file.and_then(|file| files.insert(file, &entry.name));
        let before =
            then.as_ref().and_then(|(fleet, cover)| Some((cover, fleet.environment.secrets.get(&entry.name)?)));
        let left = before.map(|(then, before)| leavers(then, before, &cover, entry)).unwrap_or_default();
        Row {
            name: entry.name.clone(),
            version: entry.version,
            readers: wanted.readers.iter().map(|node| node.name.clone()).collect(),
            encrypted_to: file.and_then(|file| Some(Header::read(file).ok()?.recipients)),
            used: used.as_ref().map(|used| used.contains(&entry.name)),
            problems: problems(entry, &cover, file.map(AsRef::as_ref), copied),
            rotate_because_of: left.iter().map(ToString::to_string).collect(),
        }
    });
    let secrets = rows.collect();
    let keyless = environment.nodes.iter().filter(|node| node.recipients().next().is_none());
    let operators = environment.operators.clone();
    Report { operators, secrets, nodes_without_recipient: keyless.map(|node| node.name.clone()).collect() }
}

fn problems(entry: &Entry, cover: &Cover<'_>, file: Option<&[u8]>, copied: Option<&SecretName>) -> Vec<String> {
    let Some(file) = file else { return vec![format!("{} is not there", entry.path)] };
    let mut problems = Vec::new();
    if hex::encode(Sha256::digest(file)) != entry.sha256 {
        problems.push("the file is not the one that secrets.toml vouches for".to_owned());
    }
    if let Some(other) = copied {
        problems.push(format!("one and the same file as {other}"));
    }
    if let Some(gap) = cover.gap(entry, file) {
        problems.push(format!("to re-key: {}", gap.counts()));
        problems.extend(gap.sentences());
    }
    let keyless: Vec<_> = cover.wanted(&entry.grant).keyless().map(|node| node.name.to_string()).collect();
    if !keyless.is_empty() {
        problems.push(format!("no key yet: {}", keyless.join(", ")));
    }
    problems
}

/// Secrets that some resource or check of some node, or another secret, is made from. `None`: not every node can be rendered.
fn used(fleet: &Fleet) -> Option<BTreeSet<SecretName>> {
    let renderer = Renderer::new(fleet);
    let authorities = fleet.environment.secrets.values().filter_map(authority_of);
    let mut used: BTreeSet<SecretName> = authorities.cloned().collect();
    for node in &fleet.environment.nodes {
        let spec = select(fleet, &node.name)?;
        let desired = renderer.node(&spec, &Unsealed::without_keys()).ok()?;
        for placed in &desired.resources {
            if let Resource::File(file) = &placed.resource {
                used.extend(file.content.secrets().iter().map(|secret| secret.name.clone()));
            }
        }
        // A name with an expression in it cannot be matched here: everything that begins like it counts as used.
        let checks = spec.roles.iter().flat_map(|instance| instance.role.checks.values());
        for said in checks.filter_map(|check| check.secret.as_deref()) {
            let (start, whole) = said.split_once("{{").map_or((said, true), |(start, _)| (start, false));
            let names = fleet.environment.secrets.keys();
            let fits =
                |name: &&SecretName| if whole { name.as_str() == start } else { name.as_str().starts_with(start) };
            used.extend(names.filter(fits).cloned());
        }
    }
    Some(used)
}

fn text(report: &Report, since: Option<&str>) -> String {
    let head = ["SECRET", "VERSION", "READERS", "KEYS", ""].map(str::to_owned);
    let rows: Vec<[String; 5]> = report.secrets.iter().map(row).collect();
    let mut out = if rows.is_empty() { "no secrets\n".to_owned() } else { table(&head, &rows, "") };
    for row in report.secrets.iter().filter(|row| !row.problems.is_empty()) {
        out += &format!("\n{}\n", row.name);
        out.extend(row.problems.iter().map(|problem| format!("  {problem}\n")));
    }
    if !report.nodes_without_recipient.is_empty() {
        out += &format!("\nno recipient in topology.toml: {}\n", names(&report.nodes_without_recipient));
    }
    let rotate: Vec<&Row> = report.secrets.iter().filter(|row| !row.rotate_because_of.is_empty()).collect();
    match since {
        None => {
            out += "\nWho could read a value earlier is not known from one tree: --since REV says what to rotate.\n"
        }
        Some(revision) if rotate.is_empty() => out += &format!("\nNothing to rotate since {revision}.\n"),
        Some(revision) => {
            out += &format!("\nTo rotate: known since {revision} to somebody who is not granted it any more\n");
            for row in &rotate {
                out += &format!("  {}: {}\n", row.name, row.rotate_because_of.join(", "));
            }
            let names: Vec<&str> = rotate.iter().map(|row| row.name.as_str()).collect();
            out += &format!("  converger secret rotate {}\n", names.join(" "));
        }
    }
    out
}

fn row(row: &Row) -> [String; 5] {
    const NAMED: usize = 3;
    let readers = match &row.readers[..] {
        few if few.len() <= NAMED => few.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", "),
        many => plural(many.len(), "node"),
    };
    let unused = if row.used == Some(false) { "unused" } else { "" };
    let amiss = if row.problems.is_empty() { "" } else { "see below" };
    let notes = [unused, amiss].into_iter().filter(|note| !note.is_empty()).collect::<Vec<_>>().join(", ");
    let keys = row.encrypted_to.map_or_else(|| "?".to_owned(), |count| count.to_string());
    [row.name.to_string(), row.version.to_string(), readers, keys, notes]
}
