//! A bed to lay a node in: a small signed fleet, a root directory per node, and the built binary as its agent.
//!
//! Three nodes `web01..03` in one group (`web.web`, `web.service`), a secret, a file that nobody restarts for, and a unit
//! outside of any group. The fleet and one converged node are made once and copied for each test.

#![allow(dead_code)] // each test file uses its own part
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use age::secrecy::ExposeSecret as _;
use converger::secrets::cover::recipients_digest;
use converger::secrets::encrypt;
use sha2::{Digest as _, Sha256};

use crate::forge::{Forge, hermetic, run};

const ENVIRONMENT: &str = r#"format = 1
domain = "web.example.internal"
os = "debian-12"
roles = ["base"]

[networks]
app = "10.20.0.0/16"
"#;

const BASE: &str = r#"format = 1

[[file]]
path = "/etc/motd"
template = "motd"

[[file]]
path = "/etc/tool/a.conf"
template = "a.conf"

[[file]]
path = "/etc/tool/b.conf"
template = "a.conf"

[[unit]]
name = "tool.service"
template = "tool.service"
enabled = true
"#;

const WEB: &str = r#"format = 1

[groups.web]
unit = "web.service"
gate = "up"
settle_secs = 30

[[file]]
path = "/etc/web/web.conf"
template = "web.conf"
restarts = ["web.service"]

[[file]]
path = "/etc/web/token"
secret = "token"
restarts = ["web.service"]

[[unit]]
name = "web.service"
template = "web.service"
enabled = true

[[check]]
name = "up"
kind = "http"
port = 80
"#;

const SERVICE: &str = "[Service]\nExecStart=/usr/bin/true {{ node.name }}\n[Install]\nWantedBy=multi-user.target\n";

pub const NODES: [&str; 3] = ["web01", "web02", "web03"];

pub struct Bed {
    pub forge: Forge,
}

/// What one run of the binary said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Both streams.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        let all = self.all();
        for word in words {
            assert!(all.contains(word), "{word:?} is not in:\n{all}");
        }
        self
    }
}

static FIRST: OnceLock<Bed> = OnceLock::new();

impl Bed {
    /// A copy of the fleet, its keys, and of web01 as it converged on the first commit.
    pub fn new() -> Self {
        let first = FIRST.get_or_init(|| {
            let bed = Self::make();
            bed.node("web01").once().exits(0);
            bed
        });
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("cp").arg("-a").arg(format!("{}/.", first.dir().display())).arg(dir.path()));
        let work = dir.path().join(first.forge.work.strip_prefix(first.dir()).unwrap());
        let bed = Self { forge: Forge { dir, work } };
        bed.node("web01");
        bed
    }

    fn make() -> Self {
        let bed = Self { forge: Forge::new() };
        bed.forge.write("environments/production/environment.toml", ENVIRONMENT);
        let mut topology = "[tiers.front]\norder = 10\n\n[clusters.web]\ntier = \"front\"\nroles = [\"web\"]\n\n\
             [clusters.web.groups.web]\nmembers = \"all\"\nquorum = \"majority\"\nmax_unavailable = 1\n"
            .to_owned();
        std::fs::create_dir(bed.dir().join("identities")).unwrap();
        for (n, node) in NODES.iter().enumerate() {
            let key = age::x25519::Identity::generate();
            let path = bed.dir().join("identities").join(node);
            std::fs::write(&path, format!("{}\n", key.to_string().expose_secret())).unwrap();
            let (address, recipient) = (n + 1, key.to_public());
            topology.push_str(&format!(
                "\n[nodes.{node}]\nclusters = [\"web\"]\naddresses = {{ app = \"10.20.1.{address}\" }}\n\
                 size = {{ vcpu = 2, memory_gib = 4, disk_gib = 20 }}\nrecipient = \"{recipient}\"\n"
            ));
        }
        bed.forge.write("environments/production/topology.toml", &topology);
        bed.seal("token", 1, "open sesame", &NODES);
        bed.forge.write("roles/base/role.toml", BASE);
        bed.forge.write("roles/base/motd", "{{ node.name }} of {{ environment.name }}\n");
        bed.forge.write("roles/base/a.conf", "{% if node.name == \"web01\" %}first = yes\n{% endif %}a = 1\n");
        bed.forge.write("roles/base/tool.service", SERVICE);
        bed.forge.write("roles/web/role.toml", WEB);
        bed.forge.write("roles/web/web.conf", "listen = {{ node.addresses.app }}\nworkers = {{ vars.workers }}\n");
        bed.forge.write("roles/web/web.service", SERVICE);
        bed.forge.write("roles/web/defaults.toml", "workers = 4\n");
        bed.commit("the fleet");
        bed
    }

    pub fn dir(&self) -> &Path {
        self.forge.dir.path()
    }

    /// Encrypts a secret to nodes and writes its entry, the only one: as if it were encrypted to all nodes, so that `check`
    /// has nothing to say of it.
    pub fn seal(&self, name: &str, version: u64, value: &str, to: &[&str]) {
        self.seal_as(name, version, value, to, &NODES);
    }

    /// With an entry that names these nodes' recipients.
    pub fn seal_as(&self, name: &str, version: u64, value: &str, to: &[&str], named: &[&str]) {
        let recipients: Vec<String> = to.iter().map(|node| self.recipient(node)).collect();
        let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
        let file = encrypt(value.as_bytes(), recipients.clone()).unwrap();
        let path = self.forge.work.join("environments/production/secrets");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(format!("{name}.age")), &file).unwrap();
        let all: Vec<String> = named.iter().map(|node| self.recipient(node)).collect();
        self.forge.write(
            "environments/production/secrets.toml",
            &format!(
                "[secrets.{name}]\nversion = {version}\nsha256 = \"{}\"\ngrant = [{{ cluster = \"web\" }}]\nrecipients = \"{}\"\n",
                hex::encode(Sha256::digest(&file)),
                recipients_digest(all.iter().map(String::as_str)),
            ),
        );
    }

    fn recipient(&self, node: &str) -> String {
        let key = std::fs::read_to_string(self.dir().join("identities").join(node)).unwrap();
        key.trim().parse::<age::x25519::Identity>().unwrap().to_public().to_string()
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.forge.work.join(path)).unwrap()
    }

    /// Replaces a text in a file of the repository; it must be there.
    #[track_caller]
    pub fn edit(&self, path: &str, from: &str, to: &str) {
        let text = self.read(path);
        assert!(text.contains(from), "{path} has no {from:?}");
        self.forge.write(path, &text.replacen(from, to, 1));
    }

    /// Signed by alice, who may do anything.
    pub fn commit(&self, message: &str) -> String {
        self.forge.commit(Some("alice"), message)
    }

    /// The node's settings, trust root and identity are written anew; its root stays as it is.
    pub fn node(&self, name: &str) -> NodeBed {
        let node = NodeBed { root: self.dir().join("nodes").join(name), name: name.to_owned() };
        let etc = node.etc();
        std::fs::create_dir_all(&etc).unwrap();
        let store = self.dir().join("store.db");
        node.settings(&format!("kind = \"local\"\npath = \"{}\"", store.display()));
        node.put("etc/converger/trust.toml", &self.trust(&self.forge.url()));
        let key = etc.join("age.key");
        let _ = std::fs::remove_file(&key);
        std::fs::copy(self.dir().join("identities").join(name), &key).unwrap();
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
        node
    }

    pub fn trust(&self, url: &str) -> String {
        let first = self.forge.git(&["rev-list", "--max-parents=0", "main"]);
        format!(
            "fleet = \"test\"\nref = \"refs/heads/main\"\npolicy = \"standard\"\n\
             introduction = {{ commit = \"{first}\", signer = \"{}\", seq = 1 }}\n\n[[remotes]]\nurl = \"{url}\"\n",
            self.forge.fingerprint("alice"),
        )
    }

    /// An engineer's command in the fleet repository.
    pub fn converger(&self, args: &[&str]) -> Said {
        let client = self.dir().join("client.toml");
        let store = self.dir().join("store.db");
        let text = format!("[store]\nkind = \"local\"\npath = \"{}\"\n", store.display());
        std::fs::write(&client, text).unwrap();
        let mut command = converger();
        command.current_dir(&self.forge.work).arg("--client").arg(&client).args(args);
        Said::of(command.output().unwrap())
    }
}

/// The binary under test, shut off from the machine's own configuration.
pub fn converger() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_converger"));
    hermetic(&mut command);
    command
}

pub struct NodeBed {
    pub root: PathBuf,
    pub name: String,
}

/// What is at a path: type and mode, and the bytes.
pub type Host = BTreeMap<PathBuf, (u32, Vec<u8>)>;

impl NodeBed {
    fn etc(&self) -> PathBuf {
        self.root.join("etc/converger")
    }

    /// Writes agent.toml with this store.
    pub fn settings(&self, store: &str) {
        let text = format!(
            "node = \"{}\"\nenvironment = \"production\"\ntrust = \"trust.toml\"\nidentities = [\"age.key\"]\n\n\
             [store]\n{store}\n\n[sandbox]\nroots = \"../{{node}}\"\nsettle_secs = 0\n",
            self.name
        );
        self.put("etc/converger/agent.toml", &text);
    }

    pub fn put(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub fn agent(&self, args: &[&str]) -> Said {
        let mut command = converger();
        let settings = self.etc().join("agent.toml");
        command.arg("agent").arg("--root").arg(&self.root).arg("--settings").arg(settings).args(args);
        Said::of(command.output().unwrap())
    }

    pub fn once(&self) -> Said {
        self.agent(&["--once"])
    }

    /// Everything on the host but the agent's own folders and what it was told locally.
    pub fn host(&self) -> Host {
        let mut host = Host::new();
        let mut open = vec![self.root.clone()];
        while let Some(at) = open.pop() {
            for entry in std::fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&self.root).unwrap().to_owned();
                let ours = ["var/lib/converger", "var/cache/converger", "run/converger", "etc/converger"];
                if ours.iter().any(|ours| name.starts_with(ours)) {
                    continue;
                }
                let meta = std::fs::symlink_metadata(&path).unwrap();
                let bytes = if meta.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
                if meta.is_dir() {
                    open.push(path);
                }
                host.insert(name, (meta.mode(), bytes));
            }
        }
        // What the "machine" runs is part of it too.
        let units = self.root.join("run/converger/units.json");
        host.insert(units.clone(), (0, std::fs::read(units).unwrap_or_default()));
        host
    }

    pub fn report(&self) -> serde_json::Value {
        serde_json::from_str(&self.text("run/converger/status.json")).unwrap()
    }

    /// Id of the commit that is wholly live.
    pub fn applied(&self) -> String {
        self.report()["applied"]["commit"].as_str().unwrap_or_default().to_owned()
    }

    /// How often a unit was started, as the recorder counts.
    pub fn starts(&self, unit: &str) -> u64 {
        let units: serde_json::Value = serde_json::from_str(&self.text("run/converger/units.json")).unwrap();
        units[unit]["starts"].as_u64().unwrap_or(0)
    }

    /// What the recorder has of a unit, changed by somebody else.
    pub fn meddle(&self, unit: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let mut units: serde_json::Value = serde_json::from_str(&self.text("run/converger/units.json")).unwrap();
        change(&mut units[unit]);
        self.put("run/converger/units.json", &serde_json::to_string(&units).unwrap());
    }
}
