//! `agent.toml`, `trust.toml`, `client.toml`: what a node is told locally.
//!
//! Fragments are what the files say, key by key; [`Settings`], [`TrustRoot`] and [`ClientSettings`] are defaulted, with
//! paths made absolute, and valid. PURE: somebody else read the files. Never: a value from the environment, a secret.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fleet::schema::TrustPolicy;
use crate::name::{CommitId, EnvironmentName, NodeName};

/// What is wrong with a settings file: where, what, and how to put it right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SettingsError {
    pub file: PathBuf,
    /// 1-based.
    pub line: Option<usize>,
    /// As it is written: `store.endpoints`.
    pub key: Option<String>,
    pub what: String,
    pub fix: String,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": `{key}`")?;
        }
        write!(f, ": {}; {}", self.what, self.fix)
    }
}

/// Whether the agent acts on the machine itself or below a directory (`--root DIR`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rooted {
    Host,
    Below,
}

/// `agent.toml`, merged and valid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub node: NodeName,
    pub environment: EnvironmentName,
    /// Absolute, or relative to the working directory as the settings file was.
    pub trust: PathBuf,
    /// Private keys (age or OpenSSH) of this node.
    pub identities: Vec<PathBuf>,
    pub store: Store,
    pub poll: Poll,
    /// Where others who reboot this machine ask first; `None`: nowhere.
    pub fleetlock: Option<FleetLock>,
    /// Where the last report is for Prometheus; `None`: beside the last report.
    pub textfile: Option<PathBuf>,
    pub sandbox: Option<Sandbox>,
}

/// An address that only this machine reaches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FleetLock {
    Loopback(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for FleetLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Store {
    Etcd {
        endpoints: Vec<String>,
        ca: PathBuf,
        cert: PathBuf,
        key: PathBuf,
    },
    /// One machine, several processes.
    Local {
        path: PathBuf,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Poll {
    pub secs: u64,
    /// At most this much is added to each wait.
    pub jitter_secs: u64,
}

/// Several nodes on one machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sandbox {
    /// Where the other nodes' roots are; `{node}` is the node's name. Relative to `--root`.
    pub roots: String,
    /// Replaces the groups' own settle times.
    pub settle_secs: Option<u64>,
}

/// `trust.toml`: what this node believes before it has read anything; the repository cannot change it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrustRoot {
    /// Fleet id, equal to `name` in the fleet.toml of every accepted commit.
    pub fleet: String,
    /// The one branch that is followed: `refs/heads/main`.
    pub reference: String,
    pub policy: TrustPolicy,
    pub introduction: Introduction,
    /// Fingerprints (`SHA256:…`) that never sign validly here.
    pub bans: Vec<String>,
    pub remotes: Vec<Remote>,
    pub limits: Limits,
}

/// Where the chain of this node begins.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introduction {
    /// Full id of a directly signed commit; its own `trust/` is taken as it is.
    pub commit: CommitId,
    /// Fingerprint (`SHA256:…`) of the key that signed it.
    pub signer: String,
    /// Its sequence number; those of later commits go on from here.
    pub seq: u64,
}

/// One place to fetch from; any of them may be hostile.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Remote {
    pub url: String,
    pub access: Access,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Access {
    File {
        path: PathBuf,
    },
    Ssh {
        user: String,
        host: String,
        port: u16,
        path: String,
        /// `ssh-ed25519 AAAA…`: the only key that the host may show.
        host_key: String,
        key_file: PathBuf,
    },
    Https {
        /// `None`: the machine's own roots.
        ca: Option<PathBuf>,
        credential: Option<Credential>,
    },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Credential {
    /// A file with `user:token` (sent as Basic) or a bare token (sent as Bearer).
    Token(PathBuf),
    Certificate {
        cert: PathBuf,
        key: PathBuf,
    },
}

impl Access {
    /// Every local file or folder that fetching reads.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::File { path } => vec![path.clone()],
            Self::Ssh { key_file, .. } => vec![key_file.clone()],
            Self::Https { ca, credential } => {
                let credential = match credential {
                    Some(Credential::Token(token)) => vec![token.clone()],
                    Some(Credential::Certificate { cert, key }) => vec![cert.clone(), key.clone()],
                    None => Vec::new(),
                };
                ca.iter().cloned().chain(credential).collect()
            }
        }
    }
}

/// What one fetch may cost; more is `limit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes from one remote, and the content of one commit.
    pub pack_mib: u64,
    pub objects: u64,
    pub blob_mib: u64,
    /// Entries of one commit's trees, and paths that one commit changes.
    pub entries: usize,
    /// Folders inside folders.
    pub depth: usize,
    /// Commits that are new at once.
    pub commits: usize,
    /// For one remote, from connecting to the last byte.
    pub time_secs: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pack_mib: 512,
            objects: 2_000_000,
            blob_mib: 64,
            entries: 100_000,
            depth: 32,
            commits: 100_000,
            time_secs: 300,
        }
    }
}

/// An engineer's own access: `~/.config/converger/client.toml`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientSettings {
    pub store: Option<Store>,
    /// Directory or URL of the fleet repository.
    pub repo: Option<String>,
    pub environment: Option<EnvironmentName>,
    /// The private key that the `secret` commands open secrets with.
    pub identity: Option<PathBuf>,
    /// A node's trust.toml, for `converger trust`.
    pub trust: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentFragment {
    node: NodeName,
    environment: EnvironmentName,
    trust: PathBuf,
    #[serde(default)]
    identities: Vec<PathBuf>,
    store: StoreFragment,
    #[serde(default)]
    poll: PollFragment,
    fleetlock: Option<FleetLockFragment>,
    #[serde(default)]
    metrics: MetricsFragment,
    sandbox: Option<SandboxFragment>,
}

/// One table for both kinds: serde's tagged enums lose the line of a mistake.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreFragment {
    kind: StoreKind,
    endpoints: Option<Vec<String>>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    path: Option<PathBuf>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum StoreKind {
    Etcd,
    Local,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct PollFragment {
    secs: Option<u64>,
    jitter_secs: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FleetLockFragment {
    listen: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct MetricsFragment {
    textfile: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SandboxFragment {
    roots: String,
    settle_secs: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustFragment {
    fleet: String,
    #[serde(rename = "ref")]
    reference: String,
    #[serde(default)]
    policy: TrustPolicy,
    introduction: Introduction,
    #[serde(default)]
    bans: Vec<String>,
    remotes: Vec<RemoteFragment>,
    #[serde(default)]
    limits: Limits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoteFragment {
    url: String,
    host_key: Option<String>,
    ca: Option<PathBuf>,
    key_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientFragment {
    store: Option<StoreFragment>,
    repo: Option<String>,
    environment: Option<EnvironmentName>,
    identity: Option<PathBuf>,
    trust: Option<PathBuf>,
}

impl Introduction {
    /// Key, what is wrong with its value, and how to put it right.
    fn fault(&self) -> Option<(&'static str, String, &'static str)> {
        let Self { commit, signer, seq } = self;
        if commit.as_str().len() != 40 || !commit.as_str().bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            let fix = "write the full id, 40 lower-case hex digits (`git rev-parse HEAD`)";
            Some(("commit", format!("\"{commit}\" is no commit id"), fix))
        } else if *seq == 0 {
            Some(("seq", "is 0".to_owned(), "the first commit of a fleet has seq = 1"))
        } else if !is_fingerprint(signer) {
            Some(("signer", format!("\"{signer}\" is no fingerprint"), FINGERPRINT_FIX))
        } else {
            None
        }
    }
}

const FINGERPRINT_FIX: &str = "write it as `ssh-keygen -lf KEY.pub` shows it: SHA256:…";

impl Settings {
    /// Reads `agent.toml`. `file` is where `text` came from; relative paths in it start there.
    pub fn parse(text: &str, file: &Path, rooted: Rooted) -> Result<Self, SettingsError> {
        let page = Page { text, file };
        let said: AgentFragment = page.read()?;
        page.plain_name("node", said.node.as_str())?;
        page.plain_name("environment", said.environment.as_str())?;
        if said.sandbox.is_some() && rooted == Rooted::Host {
            return Err(page.wrong(
                "sandbox",
                "is for trying things out below a directory",
                "give --root, or remove it",
            ));
        }
        let poll = Poll { secs: said.poll.secs.unwrap_or(60), jitter_secs: said.poll.jitter_secs.unwrap_or(15) };
        if poll.secs == 0 {
            return Err(page.wrong("secs", "is 0", "say how many seconds lie between two looks at the source"));
        }
        let textfile = said.metrics.textfile;
        if textfile.as_ref().is_some_and(|path| path.extension().is_none_or(|end| end != "prom")) {
            return Err(page.wrong(
                "textfile",
                "does not end in .prom",
                "node_exporter reads DIRECTORY/NAME.prom only",
            ));
        }
        Ok(Self {
            node: said.node,
            environment: said.environment,
            trust: page.path(&said.trust),
            identities: said.identities.iter().map(|path| page.path(path)).collect(),
            store: page.store(said.store)?,
            poll,
            fleetlock: said.fleetlock.map(|said| page.fleetlock(&said.listen)).transpose()?,
            textfile: textfile.map(|path| page.path(&path)),
            sandbox: said.sandbox.map(|said| Sandbox { roots: said.roots, settle_secs: said.settle_secs }),
        })
    }
}

impl TrustRoot {
    /// For looking at a repository that is here already: no remote, no ban. `branch` as people call it. Errors: what is
    /// wrong with the introduction, and how to put it right.
    pub fn of_introduction(fleet: String, branch: &str, introduction: Introduction) -> Result<Self, String> {
        if let Some((_, what, fix)) = introduction.fault() {
            return Err(format!("{what}; {fix}"));
        }
        Ok(Self {
            fleet,
            reference: format!("refs/heads/{branch}"),
            policy: TrustPolicy::Standard,
            introduction,
            bans: Vec::new(),
            remotes: Vec::new(),
            limits: Limits::default(),
        })
    }

    /// Reads `trust.toml`. `file` is where `text` came from; relative paths in it start there.
    pub fn parse(text: &str, file: &Path) -> Result<Self, SettingsError> {
        let page = Page { text, file };
        let said: TrustFragment = page.read()?;
        page.plain_name("fleet", &said.fleet)?;
        let branch = said.reference.strip_prefix("refs/heads/").unwrap_or_default();
        if branch.is_empty() || branch.split('/').any(|part| !is_plain_name(part)) {
            let fix = "write the full name of the branch, such as refs/heads/main";
            return Err(page.wrong("ref", format!("\"{}\" is no branch", said.reference), fix));
        }
        if said.policy == TrustPolicy::Strict {
            return Err(page.wrong("policy", "\"strict\" is not in this version", "use \"standard\""));
        }
        if let Some((key, what, fix)) = said.introduction.fault() {
            return Err(page.wrong(key, what, fix));
        }
        if let Some(ban) = said.bans.iter().find(|ban| !is_fingerprint(ban)) {
            return Err(page.wrong("bans", format!("\"{ban}\" is no fingerprint"), FINGERPRINT_FIX));
        }
        for (key, mib) in [("pack_mib", said.limits.pack_mib), ("blob_mib", said.limits.blob_mib)] {
            if mib > 1 << 20 {
                return Err(page.wrong(key, format!("{mib} is more than a terabyte"), "count in MiB"));
            }
        }
        if said.remotes.is_empty() {
            return Err(page.wrong("remotes", "is empty", "add a [[remotes]] table with a url"));
        }
        Ok(Self {
            fleet: said.fleet,
            reference: said.reference,
            policy: said.policy,
            introduction: said.introduction,
            bans: said.bans,
            remotes: said.remotes.into_iter().map(|remote| page.remote(remote)).collect::<Result<_, _>>()?,
            limits: said.limits,
        })
    }
}

impl ClientSettings {
    /// Reads `client.toml`. `file` is where `text` came from; relative paths in it start there.
    pub fn parse(text: &str, file: &Path) -> Result<Self, SettingsError> {
        let page = Page { text, file };
        let said: ClientFragment = page.read()?;
        let store = said.store.map(|store| page.store(store)).transpose()?;
        let [identity, trust] = [said.identity, said.trust].map(|path| path.map(|path| page.path(&path)));
        Ok(Self { store, repo: said.repo, environment: said.environment, identity, trust })
    }
}

/// A settings file that is being read.
struct Page<'a> {
    text: &'a str,
    file: &'a Path,
}

impl Page<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, SettingsError> {
        toml::from_str(self.text).map_err(|error| {
            let line = error.span().map(|span| 1 + self.text[..span.start].matches('\n').count());
            let key = line.and_then(|line| self.key_on(line));
            let what = error.message().replace('\n', " ");
            let fix = "docs/settings.md lists every key".to_owned();
            SettingsError { file: self.file.to_owned(), line, key, what, fix }
        })
    }

    /// The key or table that a line begins with.
    fn key_on(&self, line: usize) -> Option<String> {
        let text = self.text.lines().nth(line.checked_sub(1)?)?.trim();
        let name = match text.strip_prefix('[') {
            Some(table) => table.trim_start_matches('[').split(']').next()?,
            None => text.split('=').next()?,
        };
        Some(name.trim().to_owned()).filter(|name| !name.is_empty())
    }

    fn wrong(&self, key: &str, what: impl Into<String>, fix: impl Into<String>) -> SettingsError {
        let names = |line: &str| {
            line.split(['=', ',', '{', '}', '[', ']']).map(str::trim).any(|word| word == key)
                && !line.trim_start().starts_with('#')
        };
        SettingsError {
            file: self.file.to_owned(),
            line: self.text.lines().position(names).map(|index| index + 1),
            key: Some(key.to_owned()),
            what: what.into(),
            fix: fix.into(),
        }
    }

    fn path(&self, path: &Path) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }

    fn plain_name(&self, key: &str, name: &str) -> Result<(), SettingsError> {
        if is_plain_name(name) {
            return Ok(());
        }
        Err(self.wrong(key, format!("\"{name}\" is no name"), "use letters, digits, '-', '_' and '.', a letter first"))
    }

    /// `127.0.0.1:9292`, `[::1]:9292`, or the path of a socket.
    fn fleetlock(&self, listen: &str) -> Result<FleetLock, SettingsError> {
        if listen.contains('/') {
            return Ok(FleetLock::Unix(self.path(Path::new(listen))));
        }
        let fix = "write 127.0.0.1:9292, [::1]:9292, or the path of a socket; only this machine may ask";
        let address: SocketAddr = listen.parse().map_err(|_| {
            self.wrong("listen", format!("\"{listen}\" is neither an address with a port nor a path"), fix)
        })?;
        match address.ip().is_loopback() && address.port() != 0 {
            true => Ok(FleetLock::Loopback(address)),
            false => Err(self.wrong("listen", format!("{address} is no port on loopback"), fix)),
        }
    }

    fn store(&self, said: StoreFragment) -> Result<Store, SettingsError> {
        let kind = if said.kind == StoreKind::Etcd { "etcd" } else { "local" };
        let unwanted = match said.kind {
            StoreKind::Etcd => said.path.is_some().then_some("path"),
            StoreKind::Local => [
                ("endpoints", said.endpoints.is_some()),
                ("ca", said.ca.is_some()),
                ("cert", said.cert.is_some()),
                ("key", said.key.is_some()),
            ]
            .into_iter()
            .find_map(|(key, there)| there.then_some(key)),
        };
        if let Some(key) = unwanted {
            return Err(self.wrong(key, format!("means nothing for kind = \"{kind}\""), "remove it"));
        }
        let file = |key: &str, path: Option<PathBuf>| match path {
            Some(path) => Ok(self.path(&path)),
            None => Err(SettingsError {
                key: Some(format!("store.{key}")),
                ..self.wrong("store", format!("is missing for kind = \"{kind}\""), format!("add `{key} = \"…\"`"))
            }),
        };
        match said.kind {
            StoreKind::Local => Ok(Store::Local { path: file("path", said.path)? }),
            StoreKind::Etcd => {
                let endpoints = said.endpoints.unwrap_or_default();
                if endpoints.is_empty() || endpoints.iter().any(|endpoint| !endpoint.starts_with("https://")) {
                    let fix = "list every member as https://host:2379: nodes and etcd know each other by certificate";
                    return Err(self.wrong("endpoints", "is empty or not https", fix));
                }
                Ok(Store::Etcd {
                    endpoints,
                    ca: file("ca", said.ca)?,
                    cert: file("cert", said.cert)?,
                    key: file("key", said.key)?,
                })
            }
        }
    }

    fn remote(&self, said: RemoteFragment) -> Result<Remote, SettingsError> {
        let url = said.url;
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(self.wrong("url", format!("\"{url}\" has no scheme"), "use https://, ssh:// or file://"));
        };
        let allowed: &[&str] = match scheme {
            "file" => &[],
            "ssh" => &["host_key", "key_file"],
            "https" => &["ca", "token_file", "cert_file", "key_file"],
            _ => {
                let fix = "use https://, ssh:// or file://";
                return Err(self.wrong("url", format!("{scheme}:// is not fetched from"), fix));
            }
        };
        let given = [
            ("host_key", said.host_key.is_some()),
            ("ca", said.ca.is_some()),
            ("key_file", said.key_file.is_some()),
            ("token_file", said.token_file.is_some()),
            ("cert_file", said.cert_file.is_some()),
        ];
        for (key, there) in given {
            if there && !allowed.contains(&key) {
                return Err(self.wrong(key, format!("means nothing for {scheme}://"), "remove it"));
            }
        }
        let access = match scheme {
            "file" => {
                // libgit2 would decode a percent sign.
                if !rest.starts_with('/') || rest.contains('%') {
                    return Err(self.wrong("url", "is no absolute plain path", "write file:///path/to/fleet.git"));
                }
                Access::File { path: PathBuf::from(rest) }
            }
            "ssh" => {
                let (user, host, port, path) = ssh_parts(rest).ok_or_else(|| {
                    let fix = "write ssh://user@host[:port]/path with letters, digits and -._~+/ only";
                    self.wrong("url", format!("\"{url}\" is not an ssh remote"), fix)
                })?;
                let Some(host_key) = said.host_key.filter(|key| is_public_key(key)) else {
                    let fix = "add the line of `ssh-keyscan`, checked: host_key = \"ssh-ed25519 AAAA…\"";
                    return Err(self.wrong("host_key", "is missing, or no public key", fix));
                };
                let Some(key_file) = said.key_file else {
                    return Err(self.wrong("key_file", "is missing for ssh://", "add the deploy key's file"));
                };
                Access::Ssh { user, host, port, path, host_key, key_file: self.path(&key_file) }
            }
            _ => {
                let host = rest.split('/').next().unwrap_or_default();
                if host.is_empty() || host.contains('@') {
                    let fix = "write https://host/path.git, and put the token into token_file";
                    return Err(self.wrong("url", "has no host, or a user in it", fix));
                }
                let credential = match (said.token_file, said.cert_file, said.key_file) {
                    (None, None, None) => None,
                    (Some(token), None, None) => Some(Credential::Token(self.path(&token))),
                    (None, Some(cert), Some(key)) => {
                        Some(Credential::Certificate { cert: self.path(&cert), key: self.path(&key) })
                    }
                    _ => {
                        let fix = "give token_file, or cert_file together with key_file";
                        return Err(self.wrong("remotes", "says half of two ways to log in", fix));
                    }
                };
                Access::Https { ca: said.ca.map(|ca| self.path(&ca)), credential }
            }
        };
        Ok(Remote { url, access })
    }
}

/// `user@host[:port]/path`, of characters that mean nothing to a shell or to ssh's own options.
fn ssh_parts(rest: &str) -> Option<(String, String, u16, String)> {
    let (authority, path) = rest.split_once('/')?;
    let (user, host) = authority.split_once('@')?;
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (host, 22),
    };
    let path_is_plain = path.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._~+/".contains(&c));
    let plain = is_plain_name(user) && is_plain_name(host) && !path.is_empty() && path_is_plain && port != 0;
    plain.then(|| (user.to_owned(), host.to_owned(), port, format!("/{path}")))
}

fn is_plain_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
        && !name.contains("..")
        && name.len() <= 253
}

fn is_fingerprint(text: &str) -> bool {
    text.parse::<ssh_key::Fingerprint>().is_ok_and(|fingerprint| fingerprint.is_sha256())
}

fn is_public_key(text: &str) -> bool {
    !text.contains('\n') && ssh_key::PublicKey::from_openssh(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str = r#"
node = "kafka01"
environment = "production"
trust = "trust.toml"
identities = ["age.key", "/etc/ssh/ssh_host_ed25519_key"]
[store]
kind = "etcd"
endpoints = ["https://etcd01:2379"]
ca = "ca.crt"
cert = "node.crt"
key = "node.key"
"#;

    const TRUST: &str = r#"
fleet = "datalyptica"
ref = "refs/heads/main"
introduction = { commit = "0123456789012345678901234567890123456789", signer = "SHA256:W0HWqo6dmAPnbTQ0sGgCR6dk/3qEnvpRmAyRVwJ6QJE", seq = 1 }
[[remotes]]
url = "ssh://git@forge.example.internal/fleet.git"
host_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti"
key_file = "deploy.key"
"#;

    fn agent(text: &str) -> Result<Settings, SettingsError> {
        Settings::parse(text, Path::new("/etc/converger/agent.toml"), Rooted::Host)
    }

    fn trust(text: &str) -> Result<TrustRoot, SettingsError> {
        TrustRoot::parse(text, Path::new("/etc/converger/trust.toml"))
    }

    #[test]
    fn paths_start_at_the_settings_file() {
        let settings = agent(AGENT).unwrap();
        assert_eq!(settings.trust, Path::new("/etc/converger/trust.toml"));
        assert_eq!(settings.identities[1], Path::new("/etc/ssh/ssh_host_ed25519_key"));
        assert!(matches!(settings.store, Store::Etcd { ca, .. } if ca == Path::new("/etc/converger/ca.crt")));
        assert_eq!(settings.poll, Poll { secs: 60, jitter_secs: 15 });
        let root = trust(TRUST).unwrap();
        assert!(matches!(&root.remotes[0].access, Access::Ssh { port: 22, path, .. } if path == "/fleet.git"));
        assert_eq!(root.limits, Limits::default());
    }

    #[test]
    fn a_sandbox_needs_a_root() {
        let text = format!("{AGENT}[sandbox]\nroots = \"../{{node}}\"\nsettle_secs = 1\n");
        let error = agent(&text).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/etc/converger/agent.toml:12: `sandbox`: is for trying things out below a directory; give --root, or remove it"
        );
        assert!(Settings::parse(&text, Path::new("agent.toml"), Rooted::Below).unwrap().sandbox.is_some());
    }

    #[test]
    fn only_this_machine_may_ask_for_a_reboot() {
        let at = |listen: &str| agent(&format!("{AGENT}[fleetlock]\nlisten = \"{listen}\"\n"));
        assert_eq!(agent(AGENT).unwrap().fleetlock, None);
        for good in ["127.0.0.1:9292", "[::1]:9292", "127.8.8.8:80"] {
            assert_eq!(at(good).unwrap().fleetlock, Some(FleetLock::Loopback(good.parse().unwrap())));
        }
        let socket = FleetLock::Unix(PathBuf::from("/run/converger/fleetlock.sock"));
        assert_eq!(at("/run/converger/fleetlock.sock").unwrap().fleetlock, Some(socket));
        for bad in ["0.0.0.0:80", "10.20.0.1:80", "[::]:80", "127.0.0.1:0", "127.0.0.1", "localhost:80", ":80", ""] {
            let error = at(bad).unwrap_err();
            assert_eq!((error.line, error.key.as_deref()), (Some(13), Some("listen")), "{error}");
        }
    }

    #[test]
    fn metrics_go_where_node_exporter_looks() {
        let at = |path: &str| agent(&format!("{AGENT}[metrics]\ntextfile = \"{path}\"\n"));
        assert_eq!(agent(AGENT).unwrap().textfile, None);
        let textfile = |path: &str| at(path).unwrap().textfile.unwrap();
        assert_eq!(textfile("/var/lib/textfiles/converger.prom"), Path::new("/var/lib/textfiles/converger.prom"));
        assert_eq!(textfile("converger.prom"), Path::new("/etc/converger/converger.prom"));
        for bad in ["/var/lib/textfiles", "/var/lib/textfiles/converger.txt", ""] {
            let error = at(bad).unwrap_err();
            assert_eq!((error.line, error.key.as_deref()), (Some(13), Some("textfile")), "{error}");
        }
    }

    #[test]
    fn mistakes_name_file_line_key_and_fix() {
        let cases = [
            (agent(&AGENT.replace("ca =", "cafile =")).unwrap_err(), Some(9), "cafile"),
            (agent(&AGENT.replace("\"kafka01\"", "7")).unwrap_err(), Some(2), "node"),
            (agent(&AGENT.replace("kafka01", "../kafka01")).unwrap_err(), Some(2), "node"),
            (agent(&AGENT.replace("cert = \"node.crt\"\n", "")).unwrap_err(), Some(6), "store.cert"),
            (agent(&AGENT.replace("https://etcd01", "http://etcd01")).unwrap_err(), Some(8), "endpoints"),
            (agent(&AGENT.replace("\"etcd\"", "\"local\"")).unwrap_err(), Some(8), "endpoints"),
            (trust(&TRUST.replace("refs/heads/main", "main")).unwrap_err(), Some(3), "ref"),
            (trust(&TRUST.replace("0123456789", "012345678")).unwrap_err(), Some(4), "commit"),
            (trust(&TRUST.replace("SHA256:W0", "SHA256:")).unwrap_err(), Some(4), "signer"),
            (trust(&TRUST.replace("seq = 1", "seq = 0")).unwrap_err(), Some(4), "seq"),
            (trust(&format!("{TRUST}[limits]\npack_mib = 536870912\n")).unwrap_err(), Some(10), "pack_mib"),
            (trust(&TRUST.replace("ssh-ed25519", "ssh-nothing")).unwrap_err(), Some(7), "host_key"),
        ];
        for (error, line, key) in cases {
            assert_eq!((error.line, error.key.as_deref()), (line, Some(key)), "{error}");
            assert!(!error.fix.is_empty());
        }
    }

    #[test]
    fn remotes_that_could_become_a_command_or_leak_a_token_are_refused() {
        for url in [
            "ssh://-oProxyCommand=x@h/p",
            "ssh://git@-oProxyCommand=x/p",
            "ssh://git@host/p;reboot",
            "ssh://git@host/$(reboot)",
            "ssh://git@host/a'b",
            "ssh://host/no-user",
            "ext::sh -c reboot",
            "ext://sh",
            "git://host/p",
            "http://host/p",
            "file://relative",
            "file:///a%2fb",
            "/plain/path",
        ] {
            let error = trust(&TRUST.replace("ssh://git@forge.example.internal/fleet.git", url)).unwrap_err();
            assert!(error.key.is_some(), "{url}: {error}");
        }
        let https = "fleet = \"f\"\nref = \"refs/heads/main\"\nintroduction = { commit = \"0123456789012345678901234567890123456789\", signer = \"SHA256:W0HWqo6dmAPnbTQ0sGgCR6dk/3qEnvpRmAyRVwJ6QJE\", seq = 1 }\n[[remotes]]\n";
        assert!(trust(&format!("{https}url = \"https://user:token@host/p\"\n")).is_err());
        assert!(trust(&format!("{https}url = \"https://host/p\"\nhost_key = \"ssh-ed25519 AAAA\"\n")).is_err());
        assert!(trust(&format!("{https}url = \"https://host/p\"\ntoken_file = \"t\"\n")).is_ok());
    }

    #[test]
    fn a_client_may_say_as_little_as_nothing() {
        let client = ClientSettings::parse("", Path::new("client.toml")).unwrap();
        assert_eq!(client, ClientSettings::default());
        let text = "repo = \"/fleet\"\nenvironment = \"staging\"\ntrust = \"trust.toml\"\n[store]\nkind = \"local\"\npath = \"holds.db\"\n";
        let client = ClientSettings::parse(text, Path::new("/home/a/client.toml")).unwrap();
        assert_eq!(client.store, Some(Store::Local { path: PathBuf::from("/home/a/holds.db") }));
        assert_eq!(client.trust, Some(PathBuf::from("/home/a/trust.toml")));
    }
}
