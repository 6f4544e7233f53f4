//! `converger enroll`: one command makes this machine a node of a fleet.
//!
//! Keys come first, then a look at the remote with them; what the agent reads is written only once a head was verified,
//! and the unit is started last. Never: trust on first use, a key or a setting replaced in silence.

mod keys;
mod machine;
mod texts;

use std::path::{Path, PathBuf};

use super::access::Access;
use super::{Done, Failure, say, say_json, tell};
use crate::clock::{Clock as _, SystemClock};
use crate::disk::{self, DiskError};
use crate::git::accepted::AcceptedFiles;
use crate::git::{Children, GitError, Repository};
use crate::log::To;
use crate::name::{CommitId, EnvironmentName, NodeName};
use crate::paths::Paths;
use crate::reason::{self, Exit, chain};
use crate::settings::{Access as Remote, Rooted, Settings, TrustRoot};
use crate::trust::Verified;

/// Make this machine a node of a fleet: keys, settings, the agent's unit
///
/// Runs as root on the node. It makes what is missing, fetches once and verifies the branch from the introduction, and only
/// then writes the settings and starts the agent. It ends with what is to be merged: the node's recipient and, for a store
/// with certificates, the request to sign. Run again it changes nothing and prints the same.
#[derive(clap::Args)]
pub struct Args {
    /// Who this machine is in the topology
    #[arg(long, value_name = "NAME")]
    node: NodeName,
    /// Fleet id, as fleet.toml says it
    #[arg(long, value_name = "NAME", help_heading = "What it believes")]
    fleet: String,
    /// Full id of the commit where the chain begins; `converger init` printed it
    #[arg(long, value_name = "COMMIT", help_heading = "What it believes")]
    introduction: CommitId,
    /// Fingerprint of the key that signed the introduction
    #[arg(long, value_name = "SHA256:…", help_heading = "What it believes")]
    signer: String,
    /// Number of the introduction on the branch
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "What it believes")]
    seq: u64,
    /// The branch that it follows
    #[arg(long, value_name = "NAME", default_value = "main", help_heading = "What it believes")]
    branch: String,
    /// Where to fetch from: ssh://user@host/path, https://host/path or file:///path
    #[arg(long, value_name = "URL", help_heading = "Where it fetches")]
    remote: String,
    /// For ssh: the host's key (`ssh-ed25519 AAAA…`), from somebody who knows it
    #[arg(long, value_name = "KEY", help_heading = "Where it fetches")]
    host_key: Option<String>,
    /// For https: the forge's own CA. Default: the machine's roots
    #[arg(long, value_name = "FILE", help_heading = "Where it fetches")]
    ca: Option<PathBuf>,
    /// For ssh: a deploy key. Default: one is made, and its public half printed
    #[arg(long, value_name = "FILE", help_heading = "Where it fetches", conflicts_with = "token_file")]
    key_file: Option<PathBuf>,
    /// For https: `user:token`, or a bare token
    #[arg(long, value_name = "FILE", help_heading = "Where it fetches")]
    token_file: Option<PathBuf>,
    /// An etcd member, https://host:2379; say it once for each
    #[arg(long, value_name = "URL", help_heading = "Where it coordinates", requires = "store_ca")]
    store_endpoint: Vec<String>,
    /// The CA of etcd's certificates
    #[arg(long, value_name = "FILE", help_heading = "Where it coordinates", requires = "store_endpoint")]
    store_ca: Option<PathBuf>,
    /// No etcd: the nodes of this fleet are all on this machine, and share a file
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Where it coordinates",
        conflicts_with = "store_endpoint",
        required_unless_present = "store_endpoint"
    )]
    store_file: Option<PathBuf>,
    /// Write below this directory, and install no user and no unit
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Replace settings that say something else; what they said is kept beside them, and the journal has it
    #[arg(long)]
    force: bool,
    /// Neither install nor start the unit
    #[arg(long)]
    no_start: bool,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What has to be merged, signed or registered elsewhere.
struct Merge {
    environment: EnvironmentName,
    recipient: String,
    deploy_key: Option<String>,
    certificate_request: Option<String>,
}

pub fn run(args: &Args, access: &Access) -> Done {
    crate::log::start(0, To::Record);
    let environment = access.env.clone().map(EnvironmentName::new);
    let environment = environment.ok_or_else(|| Failure::usage("name the node's environment with --env"))?;
    if args.root.is_none() {
        machine::is_fit()?;
        if !args.no_start {
            machine::can_start()?;
        }
    }
    let top = top(args)?;
    let etc = top.join("etc/converger");
    // Whatever is wrong with them is told before anything is written.
    let wanted = Wanted::of(args, &etc, &environment)?;
    let paths = Paths::below(&top);
    disk::create_dirs(&paths.cache()).map_err(failed)?;
    if args.root.is_none() {
        machine::let_enter(&paths.cache())?;
    }
    let merge = credentials(args, &etc, environment, &wanted.root)?;
    let verified = look(args, &paths, &wanted.root).map_err(|error| unverified(args, &merge, &error))?;
    wanted.write()?;
    if wanted.trust.state == State::Other {
        let (commit, signer) = (&args.introduction, &args.signer);
        tracing::warn!(node = %args.node, %commit, %signer, "this node was introduced anew: trust.toml was replaced by hand");
    }
    let started = match (args.root.is_some(), args.no_start) {
        (true, _) => "below --root: no user and no unit",
        (_, true) => "not started: systemctl enable --now converger",
        _ => {
            machine::start(wanted.seen_by_a_running_agent())?;
            "converger.service is enabled and runs"
        }
    };
    match args.json {
        true => say_json(&merge.json(args, Some(&verified))),
        false => say(format!(
            "{} is enrolled in fleet {}, environment {}\n  \
             verified  {} \"{}\" on {}, number {}, {}\n  \
             agent     {started}\n{}",
            args.node,
            args.fleet,
            merge.environment,
            verified.commit().short(),
            verified.subject(),
            args.branch,
            verified.seq(),
            verified.acceptance(),
            merge.text(args),
        )),
    }
    Ok(Exit::Done)
}

/// The directory that is `/` to the node.
fn top(args: &Args) -> Result<PathBuf, Failure> {
    let Some(root) = &args.root else { return Ok(PathBuf::from("/")) };
    disk::create_dirs(root).map_err(failed)?;
    root.canonicalize().map_err(|error| Failure::usage(format!("{}: {error}", root.display())))
}

/// Says what to merge all the same: a forge that does not know the deploy key yet lets nobody in.
fn unverified(args: &Args, merge: &Merge, error: &GitError) -> Failure {
    match args.json {
        true => say_json(&merge.json(args, None)),
        false => say(format!("Nothing is started yet.\n{}", merge.text(args))),
    }
    let what = format!("{}\n  Nothing was written but keys; mend it and run the same command again", chain(error));
    Failure::of(error.reason(), what)
}

/// Makes what is missing of users and keys, and puts what was handed over where the settings say.
fn credentials(args: &Args, etc: &Path, environment: EnvironmentName, root: &TrustRoot) -> Result<Merge, Failure> {
    disk::create_dirs(etc).map_err(failed)?;
    let on_host = args.root.is_none();
    if on_host {
        machine::fetch_user()?;
        machine::let_enter(etc)?;
    }
    let recipient = keys::recipient(&etc.join("age.key"))?;
    for (given, name) in [
        (&args.key_file, texts::DEPLOY_KEY),
        (&args.token_file, texts::TOKEN),
        (&args.ca, texts::FORGE_CA),
        (&args.store_ca, texts::STORE_CA),
    ] {
        if let Some(given) = given {
            copy(given, &etc.join(name))?;
        }
    }
    let over_ssh = root.remotes.iter().any(|remote| matches!(remote.access, Remote::Ssh { .. }));
    let deploy_key = etc.join(texts::DEPLOY_KEY);
    let deploy_key = if over_ssh { Some(keys::deploy_key(&deploy_key, &args.node)?) } else { None };
    if on_host {
        for name in [texts::DEPLOY_KEY, texts::TOKEN, texts::FORGE_CA] {
            let file = etc.join(name);
            if file.exists() {
                machine::give_to_fetch_user(&file)?;
            }
        }
    }
    let certificate_request = match args.store_endpoint.is_empty() {
        true => None,
        false => Some(keys::certificate_request(&etc.join("node.key"), &etc.join("node.csr"), &args.node)?),
    };
    Ok(Merge { environment, recipient, deploy_key, certificate_request })
}

/// What a remote shows, verified as the agent does it. What was fetched is forgotten: the agent may run meanwhile.
fn look(args: &Args, paths: &Paths, root: &TrustRoot) -> Result<Verified, GitError> {
    let accepted = AcceptedFiles::open(&paths.state())?;
    // Of another introduction: nothing of it is a floor, and nothing of it need be there.
    let accepted = accepted.accepted().filter(|accepted| accepted.binds(root));
    let children = match args.root {
        None => Children::of_the_machine()?,
        Some(_) => Children::as_we_are(),
    };
    let scratch = paths.cache().join("enroll");
    disk::remove(&scratch)?;
    let looked = Repository::open(&paths.state(), &scratch, &children)
        .and_then(|mut repository| repository.fetch(root, accepted)?.verify(root, accepted));
    disk::remove(&scratch)?;
    looked
}

/// What the agent is to read.
struct Wanted {
    agent: File,
    trust: File,
    /// What `trust` says.
    root: TrustRoot,
}

impl Wanted {
    /// Errors: they make no sense, or something else is there that nobody said may be replaced.
    fn of(args: &Args, etc: &Path, environment: &EnvironmentName) -> Result<Self, Failure> {
        let agent = File::of(etc.join("agent.toml"), texts::agent(args, environment)?)?;
        let trust = File::of(etc.join("trust.toml"), texts::trust(args)?)?;
        let rooted = if args.root.is_some() { Rooted::Below } else { Rooted::Host };
        Settings::parse(&agent.text, &agent.path, rooted).map_err(|error| Failure::usage(error.to_string()))?;
        let root = TrustRoot::parse(&trust.text, &trust.path).map_err(|error| Failure::usage(error.to_string()))?;
        if let Some(File { path, .. }) =
            [&agent, &trust].into_iter().find(|file| file.state == State::Other && !args.force)
        {
            let path = path.display();
            return Err(Failure::usage(format!(
                "{path} is there and says something else; with --force it is replaced and kept as {path}.DATE"
            )));
        }
        Ok(Self { agent, trust, root })
    }

    fn write(&self) -> Result<(), Failure> {
        self.agent.put()?;
        self.trust.put()
    }

    fn seen_by_a_running_agent(&self) -> machine::Settings {
        match [&self.agent, &self.trust].iter().any(|file| file.state == State::Other) {
            true => machine::Settings::Replaced,
            false => machine::Settings::AsTheyWere,
        }
    }
}

/// A settings file as it is wanted, and what is there.
struct File {
    path: PathBuf,
    text: String,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    Same,
    Other,
}

const SETTINGS_BYTES_MAX: u64 = 1 << 20;

impl File {
    fn of(path: PathBuf, text: String) -> Result<Self, Failure> {
        let state = match disk::read_bounded(&path, SETTINGS_BYTES_MAX).map_err(failed)? {
            None => State::Missing,
            Some(bytes) if bytes == text.as_bytes() => State::Same,
            Some(_) => State::Other,
        };
        Ok(Self { path, text, state })
    }

    fn put(&self) -> Result<(), Failure> {
        if self.state == State::Same {
            return Ok(());
        }
        if self.state == State::Other {
            let mut kept = self.path.clone().into_os_string();
            kept.push(SystemClock.now().strftime(".%Y%m%dT%H%M%SZ").to_string());
            let old = disk::read_bounded(&self.path, SETTINGS_BYTES_MAX).map_err(failed)?.unwrap_or_default();
            disk::write_atomic(Path::new(&kept), &old, 0o600).map_err(failed)?;
        }
        disk::write_atomic(&self.path, self.text.as_bytes(), 0o600).map_err(failed)?;
        tell(format!("wrote {}", self.path.display()));
        Ok(())
    }
}

/// A file that was handed over, into the node's own folder, if it is not that file already.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let bytes = disk::read_bounded(from, SETTINGS_BYTES_MAX).map_err(failed)?;
    let bytes =
        zeroize::Zeroizing::new(bytes.ok_or_else(|| Failure::usage(format!("{}: no such file", from.display())))?);
    if disk::read_bounded(to, SETTINGS_BYTES_MAX).map_err(failed)?.as_ref() == Some(&*bytes) {
        return Ok(());
    }
    disk::write_atomic(to, &bytes, 0o600).map_err(failed)
}

fn failed(error: DiskError) -> Failure {
    match error {
        DiskError::NotPrivate { .. } => Failure::of(reason::SETTINGS, chain(&error)),
        _ => Failure::new(Exit::Host, chain(&error)),
    }
}
