//! `converger secret import`: an authority or a certificate that was made elsewhere.
//!
//! Touches: the files it is given, the work tree through its draft. Never: takes a key that is not the certificate's.

use std::path::{Path, PathBuf};

use super::draft::{Draft, commit_yourself};
use super::{Keys, generate, value};
use crate::cli::access::Access;
use crate::cli::{Done, Failure, say};
use crate::clock::{Clock as _, SystemClock};
use crate::disk;
use crate::name::SecretName;
use crate::reason::{Exit, chain};
use crate::secrets::cover::Cover;
use crate::secrets::document::Grant;
use crate::secrets::tls::{self, Given, GivenKind};

/// Bring a certificate that was made elsewhere, or a whole authority
///
/// The key must be the certificate's, the chain must lead from one to the next, no date may have passed. A certificate becomes
/// key, certificate and chain in one PEM, as `generate` makes it. An authority's key is granted to nobody, its certificates
/// go to public/NAME.crt; it can then sign: generate = { kind = "tls", ca = "NAME" }.
#[derive(clap::Args)]
pub struct Args {
    /// Lowercase letters, digits and dashes; the file is secrets/NAME.age
    name: String,
    /// The certificate, as PEM; its chain may follow in the same file
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key, as PEM (PKCS#8) without a passphrase. Default: the one in the secret, as after `secret request`
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The certificates above it, in any order
    #[arg(long, value_name = "FILE")]
    chain: Option<PathBuf>,
    /// Who may read it, as in secrets.toml; needed for a certificate that secrets.toml does not have yet
    #[arg(long, value_name = "SELECTOR")]
    grant: Option<String>,
    #[command(flatten)]
    keys: Keys,
}

pub fn run(args: Args, access: &Access) -> Done {
    let mut draft = Draft::open(access)?;
    let name = SecretName::new(args.name);
    let now = SystemClock.now();
    let certificate = read(&args.cert)?;
    let chained = args.chain.as_deref().map(read).transpose()?.unwrap_or_default();
    let given = match &args.key {
        Some(path) => tls::given(&certificate, &value::read(Some(path), "the key")?, &chained, now),
        None => tls::given(&certificate, draft.value(&name, &args.keys.load(access)?)?.expose(), &chained, now),
    };
    let given = given.map_err(|error| Failure::usage(format!("{}: {}", args.cert.display(), chain(&error))))?;
    let entry = draft.fleet.environment.secrets.get(&name);
    let version = entry.map_or(1, |entry| entry.version + 1);
    let grant = match (&given.kind, args.grant.as_deref()) {
        // Whoever has its key signs for everybody.
        (GivenKind::Authority, None) => Some("[]"),
        (GivenKind::Authority, Some(_)) => {
            return Err(Failure::usage("an authority's key is granted to nobody; take --grant away"));
        }
        (GivenKind::Certificate, None) if entry.is_none() => {
            return Err(Failure::usage(format!(
                "secrets.toml has no secret {name} yet: say who may read it, --grant '{{ nodes = [\"NAME\"] }}'"
            )));
        }
        (GivenKind::Certificate, grant) => grant,
    };
    let grant = grant.map(Grant::parse).transpose().map_err(|error| Failure::usage(error.to_string()))?;
    let made_here = entry.is_some_and(|entry| entry.generate.is_some());
    let mut text = generate::put(&mut draft, &name, &given.made, version, grant.as_ref(), now)?;
    text += &whom(&draft, &name, &given, grant.as_ref());
    if made_here {
        draft.declare(&name, None, None)?;
        text += "  `generate` is taken out of its entry: it is made elsewhere now\n";
    }
    text += &draft.restarts().unwrap_or_default();
    let paths = draft.write()?;
    say(text + &commit_yourself(&paths, &format!("secrets: import {name}")));
    Ok(Exit::Done)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = disk::read_bounded(path, 1 << 20).map_err(|error| Failure::usage(chain(&error)))?;
    bytes.ok_or_else(|| Failure::usage(format!("{}: no such file", path.display())))
}

/// For which names it is good, and whether the only node that gets it is among them.
fn whom(draft: &Draft, name: &SecretName, given: &Given, grant: Option<&Grant>) -> String {
    if given.kind == GivenKind::Authority {
        return String::new();
    }
    let environment = &draft.fleet.environment;
    let names: Vec<String> = given.names.iter().cloned().chain(given.ips.iter().map(ToString::to_string)).collect();
    let mut text = format!("  for {}\n", if names.is_empty() { "no name".to_owned() } else { names.join(", ") });
    let selector = grant.map(|grant| &grant.selector);
    let selector = selector.or_else(|| environment.secrets.get(name).map(|entry| &entry.grant));
    let readers = selector.map(|selector| Cover::of(environment).wanted(selector).readers).unwrap_or_default();
    if let [node] = &readers[..] {
        let fqdn = format!("{}.{}", node.name, environment.domain);
        let is_it = |name: &String| {
            let wild = name
                .strip_prefix("*.")
                .is_some_and(|parent| fqdn.split_once('.').is_some_and(|(_, rest)| rest == parent));
            *name == fqdn || *name == node.name.as_str() || wild
        };
        if !given.names.iter().any(is_it) {
            text +=
                &format!("  not for {fqdn}, the only node that gets it: those who call it by that name refuse it\n");
        }
    }
    text
}
