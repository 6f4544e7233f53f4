//! `converger schema`: JSON Schemas of the files people write.
//!
//! Never: a schema that is not made from the types that read the files.

use super::{Done, Failure, say};
use crate::fleet::schemas::schemas;
use crate::reason::Exit;

/// Print the JSON Schema of a file that people write; without a kind, list the kinds
#[derive(clap::Args)]
pub struct Args {
    /// fleet, topology, role, …
    kind: Option<String>,
}

pub fn run(args: Args) -> Done {
    let all = schemas();
    let Some(kind) = args.kind else {
        for (name, _) in &all {
            say(format!("{}\n", name.trim_end_matches(".json")));
        }
        return Ok(Exit::Done);
    };
    match all.iter().find(|(name, _)| name.trim_end_matches(".json") == kind) {
        Some((_, schema)) => {
            super::say_json(schema);
            Ok(Exit::Done)
        }
        None => Err(Failure::usage(format!("no file kind is called {kind}; `converger schema` lists them"))),
    }
}
