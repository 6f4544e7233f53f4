//! `converger secret generate`: values that nobody types, of the shapes that secrets.toml declares.
//!
//! Touches: the system's randomness, the clock, the work tree through its draft. Never: prints a value.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Keys;
use super::draft::{Draft, commit_yourself};
use crate::cli::access::Access;
use crate::cli::{Done, Failure, say};
use crate::clock::{Clock as _, SystemClock};
use crate::fleet::public_path;
use crate::fleet::schema::ShapeKind;
use crate::name::SecretName;
use crate::reason::{Exit, chain};
use crate::secrets::cover::Cover;
use crate::secrets::document::Grant;
use crate::secrets::order::{self, Which};
use crate::secrets::shape::{self, Made};
use crate::secrets::tls::{self, Authority, Life};

/// Make the values that secrets.toml describes with `generate`: passwords, keys, certificates
///
/// Without a name every secret that has none yet is made, authorities first: a new environment gets all its secrets at once.
/// A secret that there is already gets another value and its version raised; what uses it restarts, under its holds, once this
/// is merged. Certificates of an authority that is replaced wait for the next commit: until then nobody would believe them.
#[derive(clap::Args)]
pub struct Args {
    /// Make these, also where there is a value already
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Make certificates anew that expire within so many days
    #[arg(long, value_name = "DAYS", conflicts_with = "names")]
    due: Option<u32>,
    /// How long certificates are valid, whatever their `generate` says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: Option<u32>,
    /// Declare one secret for each of these nodes first: '{ cluster = "kafka" }'
    #[arg(long, value_name = "SELECTOR", requires_all = ["name", "kind"], conflicts_with_all = ["names", "due"])]
    each: Option<String>,
    /// What to call the secret of a node: 'tls-{node}'
    #[arg(long, value_name = "PATTERN", requires = "each")]
    name: Option<String>,
    /// What to make for each node: tls, password, hex, base64, ssh
    #[arg(long, value_name = "KIND", requires = "each")]
    kind: Option<String>,
    /// The authority that signs what is made for each node
    #[arg(long, value_name = "NAME", requires = "each")]
    ca: Option<String>,
    #[command(flatten)]
    keys: Keys,
}

pub fn run(args: Args, access: &Access) -> Done {
    let mut draft = Draft::open(access)?;
    let mut names: Vec<SecretName> = args.names.into_iter().map(SecretName::new).collect();
    if let (Some(each), Some(pattern), Some(kind)) = (args.each, args.name, args.kind) {
        (draft, names) = declare(draft, &each, &pattern, &kind, args.ca.as_deref())?;
        if names.is_empty() {
            say("each of these nodes has its secret\n");
            return Ok(Exit::Done);
        }
    }
    let which = match args.due {
        Some(days) => Which::Due { days },
        None if names.is_empty() => Which::Missing,
        None => Which::Named(&names),
    };
    make(draft, which, args.days, &args.keys, access)
}

/// Makes what is chosen, writes it, and says what was made and what was not.
pub fn make(mut draft: Draft, which: Which<'_>, days: Option<u32>, keys: &Keys, access: &Access) -> Done {
    let now = SystemClock.now();
    let order = order::order(&draft.fleet, which, now).map_err(|error| Failure::usage(error.to_string()))?;
    let [make, later, by_hand] = [order.make, order.later, order.by_hand]
        .map(|secrets| secrets.into_iter().map(|secret| secret.name.clone()).collect::<Vec<SecretName>>());
    let mut maker = Maker { now, days, keys, access, authorities: BTreeMap::new() };
    let mut text = String::new();
    for name in &make {
        let made = maker.made(&draft, name)?;
        let version = draft.entry(name)?.version + 1;
        text += &put(&mut draft, name, &made, version, None, now)?;
    }
    if !later.is_empty() {
        let names = listed(&later, " ");
        text += &format!(
            "not {names}: the authority is new\n  once every node has this commit: converger secret generate {names}\n"
        );
    }
    for name in &by_hand {
        text += &format!("not {name}: it does not say how it is made\n  converger secret import {name}\n");
    }
    if make.is_empty() {
        say(format!("{text}nothing to generate\n"));
        return Ok(Exit::Done);
    }
    text += &draft.restarts().unwrap_or_default();
    let paths = draft.write()?;
    let subject = match &make[..] {
        [one] => format!("secrets: generate {one}"),
        [one, other] => format!("secrets: generate {one} and {other}"),
        [one, rest @ ..] => format!("secrets: generate {one} and {} more", rest.len()),
        [] => String::new(),
    };
    say(text + &commit_yourself(&paths, &subject));
    Ok(Exit::Done)
}

/// Puts what was made into the draft, its public half too. What people should know of it.
pub fn put(
    draft: &mut Draft,
    name: &SecretName,
    made: &Made,
    version: u64,
    grant: Option<&Grant>,
    now: Timestamp,
) -> Result<String, Failure> {
    let mut said = draft.put(name, &made.value, version, grant)?;
    if let Some(at) = tls::expiry(&made.value) {
        said += &format!("\n  expires {}", at.strftime("%Y-%m-%d"));
    }
    if let Some(public) = &made.public {
        let path = public_path(&draft.fleet.environment.name, name, public.extension);
        let former = draft.fleet.tree.get(path.as_str()).map(|bytes| &**bytes).unwrap_or_default();
        let text = match public.extension {
            "crt" => tls::beside(&public.text, former, now),
            _ => public.text.clone(),
        };
        said += &format!("\n  for everybody: {path}");
        draft.publish(path, text.into_bytes());
    }
    Ok(said + "\n")
}

struct Maker<'a> {
    now: Timestamp,
    /// Instead of what the shapes say.
    days: Option<u32>,
    keys: &'a Keys,
    access: &'a Access,
    /// Made or opened in this run.
    authorities: BTreeMap<SecretName, Authority>,
}

impl Maker<'_> {
    fn made(&mut self, draft: &Draft, name: &SecretName) -> Result<Made, Failure> {
        let fleet = &draft.fleet;
        let secret = draft.entry(name)?;
        let shape = secret.generate.as_ref().expect("only secrets with a shape are chosen");
        let failed = |error: &dyn std::error::Error| Failure::usage(format!("secret {name}: {}", chain(error)));
        let life = |default| Life { now: self.now, days: self.days.or(shape.days).unwrap_or(default) };
        let subject = || order::subject(fleet, secret);
        let random = &mut system_random;
        match shape.kind {
            ShapeKind::Password => Ok(shape::password(shape, random)),
            ShapeKind::Hex | ShapeKind::Base64 => Ok(shape::bytes(shape, random)),
            ShapeKind::Ssh => {
                let comment = format!("{name}@{}", fleet.environment.name);
                shape::ssh_key(&comment, random).map_err(|error| failed(&error))
            }
            ShapeKind::Ca => {
                let made = tls::authority(&subject(), life(tls::AUTHORITY_DAYS), random);
                let made = made.map_err(|error| failed(&error))?;
                let authority = Authority::open(&made.value).map_err(|error| failed(&error))?;
                self.authorities.insert(name.clone(), authority);
                Ok(made)
            }
            ShapeKind::Tls => {
                let life = life(tls::CERTIFICATE_DAYS);
                let ca = shape.ca.as_ref().expect("a certificate's shape names its authority, or does not load");
                if !self.authorities.contains_key(ca) {
                    let authority = self.open(draft, ca)?;
                    self.authorities.insert(ca.clone(), authority);
                }
                self.authorities[ca].issue(&subject(), life, random).map_err(|error| failed(&error))
            }
        }
    }

    /// An authority that was there before this run.
    fn open(&self, draft: &Draft, ca: &SecretName) -> Result<Authority, Failure> {
        let failed = |what: &str| Failure::usage(format!("authority {ca}: {what}"));
        if draft.fleet.tree.get(draft.entry(ca)?.path.as_str()).is_none() {
            return Err(failed(&format!(
                "it has no file yet; bring it with `converger secret import {ca}`, or let generate = {{ kind = \"ca\" }} in its entry make one"
            )));
        }
        let value = draft.value(ca, &self.keys.load(self.access)?)?;
        Authority::open(value.expose()).map_err(|error| failed(&chain(&error)))
    }
}

fn system_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("a running system has randomness (getrandom(2) fails only without the system call)");
}

/// Declares a secret for each node of a selector; the names of those that were not declared yet.
fn declare(
    mut draft: Draft,
    each: &str,
    pattern: &str,
    kind: &str,
    ca: Option<&str>,
) -> Result<(Draft, Vec<SecretName>), Failure> {
    let each = Grant::parse(each).map_err(|error| Failure::usage(error.to_string()))?;
    if !pattern.contains("{node}") {
        return Err(Failure::usage(format!("--name {pattern:?} is the same for every node: write {{node}} in it")));
    }
    let mut shape = toml_edit::InlineTable::new();
    shape.insert("kind", kind.into());
    if let Some(ca) = ca {
        shape.insert("ca", ca.into());
    }
    let environment = &draft.fleet.environment;
    let readers = Cover::of(environment).wanted(&each.selector).readers;
    let named = readers.iter().map(|node| (SecretName::new(pattern.replace("{node}", node.name.as_str())), node));
    let fresh = named.filter(|(name, _)| !environment.secrets.contains_key(name));
    let fresh = fresh.map(|(name, node)| (name, node.name.clone())).collect::<Vec<_>>();
    for (name, node) in &fresh {
        draft.declare(name, Some(&Grant::to_node(node)), Some(shape.clone().into()))?;
    }
    Ok((draft.reloaded()?, fresh.into_iter().map(|(name, _)| name).collect()))
}

fn listed(names: &[SecretName], between: &str) -> String {
    names.iter().map(SecretName::as_str).collect::<Vec<_>>().join(between)
}
