//! What the commands of operators have in common: who does it, why, until when, and that it is on record.
//!
//! Never: an end that nobody will see; never: a reason that is empty.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo, Timestamp, Unit};

use super::Failure;
use super::access::Access;
use crate::clock::{Clock as _, SystemClock};
use crate::fleet::Fleet;
use crate::fleet::check::suggest;
use crate::lock::operator::Statement;
use crate::lock::store::{LockStore, Outcome, StoreError, Transaction};
use crate::name::NodeName;
use crate::reason::{self, chain};

/// When something ends that must have an end.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Ends {
    /// How long it lasts: `90m`, `4h`, `2d`
    #[arg(long = "for", value_name = "DURATION")]
    lasts: Option<String>,
    /// When it ends: `2026-12-01T06:00Z`, or with an offset, `2026-12-01T07:00+01:00`
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

/// Whoever wants it longer says so again.
const LASTS_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

impl Ends {
    pub fn lasts(&self, now: Timestamp) -> Result<Duration, Failure> {
        let lasts = match (&self.lasts, &self.until) {
            (Some(text), _) => {
                let span = text
                    .parse::<Span>()
                    .map_err(|_| Failure::usage(format!("--for {text:?} is no duration: write `90m`, `4h` or `2d`")))?;
                let secs = span.total((Unit::Second, SpanRelativeTo::days_are_24_hours()));
                let secs = secs.map_err(|_| Failure::usage(format!("--for {text:?}: use days, hours and minutes")))?;
                Duration::try_from_secs_f64(secs).unwrap_or(Duration::ZERO)
            }
            (None, Some(text)) => {
                let until = text.parse::<Timestamp>().map_err(|_| {
                    Failure::usage(format!(
                        "--until {text:?} is no time with its offset: write `2026-12-01T06:00Z` or `2026-12-01T07:00+01:00`"
                    ))
                })?;
                Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO)
            }
            (None, None) => Duration::ZERO,
        };
        if lasts < Duration::from_secs(1) {
            return Err(Failure::usage("its end is not in the future"));
        }
        if lasts > LASTS_MAX {
            return Err(Failure::usage("it would last for more than a year; say so again when the time comes"));
        }
        // Whole seconds: what is said is what its lease can be.
        Ok(Duration::from_secs(lasts.as_secs_f64().ceil() as u64))
    }
}

/// A reason that somebody can read later.
pub fn reason_of(text: &str) -> Result<String, Failure> {
    let text = text.trim();
    if text.is_empty() || text.chars().any(char::is_control) || text.len() > 1000 {
        return Err(Failure::usage("--reason: say why, in one line that others will understand"));
    }
    Ok(text.to_owned())
}

/// The login name of whoever runs this.
pub fn who() -> String {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    user.map_or_else(|| format!("uid {uid}"), |user| user.name)
}

/// A fleet and its store, and what this operator does to it.
pub struct Operation {
    pub fleet: Fleet,
    pub store: Box<dyn LockStore>,
    pub said: Statement,
    /// For its entry in the audit.
    pub id: String,
}

impl Operation {
    pub fn begin(access: &Access, what: &str, object: String, reason: &str) -> Result<Self, Failure> {
        let reason = reason_of(reason)?;
        let tree = access.work_tree()?;
        let fleet = access.load(&tree)?.fleet;
        let store = access.store(&fleet.name, &fleet.environment.name)?;
        let said = Statement { what: what.to_owned(), object, reason, by: who(), at: SystemClock.now() };
        Ok(Self { fleet, store, said, id: ulid::Ulid::generate().to_string() })
    }

    /// The revision at which it was done.
    pub fn commit(&self, transaction: &Transaction) -> Result<i64, Failure> {
        match self.store.commit(transaction).map_err(unreachable)? {
            Outcome::Committed(revision) => Ok(revision),
            Outcome::Refused => {
                let what = "it changed meanwhile; look again with `converger holds list`";
                Err(Failure::of(reason::LOST_RACE, what))
            }
        }
    }

    /// A name that the topology has.
    pub fn known_node(&self, node: &NodeName) -> Result<(), Failure> {
        let environment = &self.fleet.environment;
        if environment.node(node).is_some() {
            return Ok(());
        }
        let near = suggest(node.as_str(), environment.nodes.iter().map(|node| node.name.as_str()));
        let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        Err(Failure::usage(format!("{node} is not a node of environment {}{near}", environment.name)))
    }
}

pub fn unreachable(error: StoreError) -> Failure {
    Failure::of(crate::lock::session::because_of(&error).reason(), chain(&error))
}
