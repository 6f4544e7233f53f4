//! `converger owned`: what on this node is ours by its ledger, and where the backups of what it replaced lie.
//!
//! Never: a content, or a digest of one; it looks beside the agent, which goes on.

use std::path::PathBuf;

use serde::Serialize;

use super::{Done, Failure, say, say_json};
use crate::host::backups;
use crate::ledger::Ledger;
use crate::name::HostPath;
use crate::paths::Paths;
use crate::plan::show::table;
use crate::reason::{self, Exit, chain};
use crate::resource::Kind;

/// List what this node owns: what it wrote, will keep as it is, and removes when it leaves the repository
///
/// To be run on the node, also while its agent runs. What is not listed is never changed and never removed. Seeds and what
/// actions did stay when they leave the repository.
#[derive(clap::Args)]
pub struct Args {
    /// The directory that an agent converges in place of this machine
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Ours {
    kind: Kind,
    name: String,
    /// When its bytes were last written, of a file.
    written: Option<jiff::Timestamp>,
    /// A secret is in it.
    secret: bool,
    /// It stays when it leaves the repository.
    keeps: bool,
    /// Its first write was begun and not finished.
    unfinished: bool,
    /// Previous contents, the oldest first.
    backups: Vec<PathBuf>,
}

pub fn run(args: Args) -> Done {
    let root = args.root.unwrap_or_else(|| PathBuf::from("/"));
    let paths = Paths::below(&root);
    let failed = |error: &dyn std::error::Error| Failure::of(reason::APPLY_FAILED, chain(error));
    let known = Ledger::look(&paths.ledger()).and_then(|ledger| ledger.known()).map_err(|error| failed(&error))?;
    let mut ours = Vec::new();
    for (id, owned) in known.owned {
        let backups = match id.kind {
            Kind::File => backups(&root, &HostPath::new(id.name.clone())).map_err(|error| failed(&error))?,
            Kind::Unit | Kind::Package | Kind::Artifact | Kind::Action => Vec::new(),
        };
        let secs = owned.stamp.and_then(|stamp| i64::try_from(stamp.mtime_ns / 1_000_000_000).ok());
        ours.push(Ours {
            kind: id.kind,
            name: id.name,
            written: secs.and_then(|secs| jiff::Timestamp::from_second(secs).ok()),
            secret: owned.secret || owned.secret_comes,
            keeps: owned.keep || id.kind == Kind::Action,
            unfinished: !owned.written,
            backups,
        });
    }
    if args.json {
        say_json(&ours);
        return Ok(Exit::Done);
    }
    if ours.is_empty() {
        say(format!("nothing here is owned ({})\n", paths.ledger().display()));
        return Ok(Exit::Done);
    }
    let rows: Vec<[String; 4]> = ours.iter().map(row).collect();
    say(table(&["kind", "name", "written", ""].map(str::to_owned), &rows, ""));
    let kept: Vec<&Ours> = ours.iter().filter(|one| !one.backups.is_empty()).collect();
    if !kept.is_empty() {
        say("\nPrevious contents:\n");
        for one in kept {
            let newest = one.backups.last().map(|path| path.display().to_string()).unwrap_or_default();
            say(format!("  {} of {}, the newest {newest}\n", one.backups.len(), one.name));
        }
    }
    Ok(Exit::Done)
}

fn row(one: &Ours) -> [String; 4] {
    let kind = format!("{:?}", one.kind).to_lowercase();
    let written = one.written.map(|at| at.to_string()).unwrap_or_default();
    let marks = [(one.secret, "secret"), (one.keeps, "stays"), (one.unfinished, "unfinished")];
    let marks: Vec<&str> = marks.into_iter().filter(|(is, _)| *is).map(|(_, mark)| mark).collect();
    [kind, one.name.clone(), written, marks.join(", ")]
}
