//! `converger explain`: what a reason or a rule means and what to do about it.
//!
//! Never: a text of its own; reasons and rules bring theirs.

use super::{Done, Failure, say};
use crate::fleet::rule;
use crate::plan::show::Paint;
use crate::reason::{self, Exit};

/// Explain a reason or a rule: what it means and what to do; without one, list them all
#[derive(clap::Args)]
pub struct Args {
    /// The id, as it stands in a message, in a report or in JSON: held-by-peer, unsigned, unknown-cluster, …
    id: Option<String>,
}

pub fn run(args: Args) -> Done {
    let Paint { bold, dim, off, .. } = Paint::COLOUR;
    let Some(id) = args.id else {
        for reason in reason::ALL {
            say(format!("{bold}{:<26}{off} {} {}\n", reason.id, reason.exit.code(), reason.sentence));
        }
        for rule in rule::ALL {
            say(format!("{bold}{:<26}{off} 3 {}\n", rule.id, rule.sentence));
        }
        return Ok(Exit::Done);
    };
    let (reason, rule) = (reason::by_id(&id), rule::by_id(&id));
    if let Some(reason) = reason {
        say(format!(
            "{bold}{id}{off} (exit code {})\n{}\n\n{dim}What to do:{off} {}\n",
            reason.exit.code(),
            reason.sentence,
            reason.mend
        ));
    }
    // One word may be both: unknown-key is of a signature, and of a file.
    if let Some(rule) = rule {
        say(format!(
            "{bold}{id}{off} (a rule of `converger check`)\n{}\n\n{dim}What to do:{off} {}\n",
            rule.sentence, rule.mend
        ));
    }
    if reason.is_none() && rule.is_none() {
        return Err(Failure::usage(format!("no reason or rule is called {id}; `converger explain` lists them all")));
    }
    Ok(Exit::Done)
}
