//! `converger enroll` below a root directory, and the agent that runs with nothing but what it wrote.
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]

mod forge;
mod sshd;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use converger::secrets::cover::recipients_digest;
use converger::secrets::encrypt;
use forge::{Forge, hermetic, run};
use sha2::{Digest as _, Sha256};
use sshd::Sshd;

const ROLE: &str = "format = 1\n\n[[file]]\npath = \"/etc/motd\"\ntemplate = \"motd\"\n\n[[file]]\npath = \"/etc/token\"\nsecret = \"token\"\n";

struct Said {
    code: i32,
    out: String,
    all: String,
}

impl Said {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        Self { code: output.status.code().unwrap_or(-1), all: format!("{out}{err}"), out }
    }

    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}", self.all);
        self
    }

    #[track_caller]
    fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.all.contains(word), "{word:?} is not in:\n{}", self.all);
        }
        self
    }

    /// The value behind `recipient = `.
    fn recipient(&self) -> String {
        let line = self.out.lines().find_map(|line| line.strip_prefix("recipient = \"")).unwrap();
        line.trim_end_matches('"').to_owned()
    }
}

/// A fleet of one node `n1`, which the topology does not name yet, and the directory that is that node.
struct Scene {
    forge: Forge,
    root: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let forge = Forge::new();
        let root = forge.dir.path().join("n1");
        let scene = Self { forge, root };
        let environment = "format = 1\ndomain = \"example.internal\"\nos = \"debian-12\"\nroles = [\"base\"]\n[networks]\napp = \"10.20.0.0/16\"\n";
        scene.forge.write("environments/production/environment.toml", environment);
        scene.forge.write("roles/base/role.toml", ROLE);
        scene.forge.write("roles/base/motd", "{{ node.name }} of {{ environment.name }}\n");
        let stranger = age::x25519::Identity::generate().to_public().to_string();
        scene.merge("n0", &stranger);
        scene
    }

    /// What people do with what enroll prints: the topology, and the secret encrypted to the node.
    fn merge(&self, node: &str, recipient: &str) -> String {
        self.forge.write(
            "environments/production/topology.toml",
            &format!(
                "[tiers.front]\norder = 10\n[clusters.app]\ntier = \"front\"\nroles = [\"base\"]\n\
                 [nodes.{node}]\nclusters = [\"app\"]\naddresses = {{ app = \"10.20.1.1\" }}\n\
                 size = {{ vcpu = 2, memory_gib = 4, disk_gib = 20 }}\nrecipient = \"{recipient}\"\n"
            ),
        );
        let file = encrypt(b"open sesame", [recipient]).unwrap();
        let secrets = self.forge.work.join("environments/production/secrets");
        std::fs::create_dir_all(&secrets).unwrap();
        std::fs::write(secrets.join("token.age"), &file).unwrap();
        self.forge.write(
            "environments/production/secrets.toml",
            &format!(
                "[secrets.token]\nversion = 1\nsha256 = \"{}\"\ngrant = [{{ cluster = \"app\" }}]\nrecipients = \"{}\"\n",
                hex::encode(Sha256::digest(&file)),
                recipients_digest([recipient]),
            ),
        );
        // Whoever was there before is not: that needs a word.
        self.forge.commit(Some("alice"), &format!("{node} is here\n\nConverger-Allow: node-removal n0"))
    }

    fn introduction(&self) -> String {
        self.forge.git(&["rev-list", "--max-parents=0", "main"])
    }

    /// Every argument that has to be there; `more` may say one again, which then replaces it.
    fn command(&self, more: &[&str]) -> Command {
        let mut said: Vec<(String, String)> = [
            ("--node", "n1".to_owned()),
            ("--env", "production".to_owned()),
            ("--fleet", "test".to_owned()),
            ("--remote", self.forge.url()),
            ("--introduction", self.introduction()),
            ("--signer", self.forge.fingerprint("alice")),
            ("--store-file", self.forge.dir.path().join("store.db").display().to_string()),
            ("--root", self.root.display().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        let mut flags = Vec::new();
        let mut words = more.iter();
        while let Some(word) = words.next() {
            match said.iter_mut().find(|(name, _)| name == word) {
                Some((_, value)) => *value = (*words.next().unwrap()).to_owned(),
                None => flags.push((*word).to_owned()),
            }
        }
        if flags.iter().any(|flag| flag == "--store-endpoint") {
            said.retain(|(name, _)| name != "--store-file");
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_converger"));
        hermetic(&mut command).arg("enroll").args(said.into_iter().flat_map(|(name, value)| [name, value])).args(flags);
        command
    }

    fn enroll(&self, more: &[&str]) -> Said {
        Said::of(&mut self.command(more))
    }

    fn etc(&self, name: &str) -> PathBuf {
        self.root.join("etc/converger").join(name)
    }

    fn once(&self) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_converger"));
        let settings = self.etc("agent.toml");
        Said::of(
            hermetic(&mut command).args(["agent", "--once", "--root"]).arg(&self.root).arg("--settings").arg(settings),
        )
    }

    fn host(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok()
    }

    /// Name, mode, inode and content of every settings file and key.
    fn settings(&self) -> BTreeMap<String, (u32, u64, Vec<u8>)> {
        let entries = std::fs::read_dir(self.etc("")).into_iter().flatten().map(Result::unwrap);
        let file = |entry: std::fs::DirEntry| {
            let meta = entry.metadata().unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, (meta.mode() & 0o7777, meta.ino(), std::fs::read(entry.path()).unwrap()))
        };
        entries.map(file).collect()
    }
}

#[test]
fn it_writes_what_an_agent_needs_and_only_root_reads_it() {
    let scene = Scene::new();
    let head = scene.forge.head();
    let said = scene.enroll(&[]).exits(0).says(&[
        "n1 is enrolled in fleet test, environment production",
        &format!("verified  {} \"n0 is here\" on main, number 2, signed by alice@example.org (SHA256:", &head[..7]),
        "environments/production/topology.toml, in [nodes.n1]",
    ]);
    let settings = scene.settings();
    let files: Vec<&str> = settings.keys().map(String::as_str).collect();
    assert_eq!(files, ["age.key", "agent.toml", "trust.toml"]);
    assert!(settings.values().all(|(mode, ..)| *mode == 0o600), "{settings:?}");
    assert_eq!(std::fs::metadata(scene.etc("")).unwrap().permissions().mode() & 0o7777, 0o700);
    // age itself agrees which recipient that is.
    assert_eq!(run(Command::new("age-keygen").arg("-y").arg(scene.etc("age.key"))), said.recipient());
    assert!(!scene.root.join("var/cache/converger/enroll").exists(), "what was fetched to look at it is gone");
}

#[test]
fn the_second_run_changes_nothing_and_prints_the_same() {
    let scene = Scene::new();
    let first = scene.enroll(&[]).exits(0);
    let before = scene.settings();
    let second = scene.enroll(&[]).exits(0);
    assert_eq!(second.out, first.out);
    assert_eq!(second.all, second.out, "nothing was done, so nothing is told");
    assert_eq!(scene.settings(), before);
    let json: serde_json::Value = serde_json::from_str(&scene.enroll(&["--json"]).exits(0).out).unwrap();
    assert_eq!((json["recipient"].as_str(), json["head"]["seq"].as_u64()), (Some(&*first.recipient()), Some(2)));
}

/// N5, N6
#[test]
fn a_node_converges_with_what_enroll_wrote_and_gets_its_secrets_once_its_recipient_is_merged() {
    let scene = Scene::new();
    let recipient = scene.enroll(&[]).exits(0).recipient();
    scene.once().exits(3).says(&["not-in-topology"]);
    // Named, but the secret is still encrypted to somebody else: the rest goes on.
    let other = age::x25519::Identity::generate().to_public().to_string();
    scene.merge("n1", &other);
    scene.once().exits(8).says(&["secret-unreadable", "token"]);
    assert_eq!(scene.host("etc/motd").as_deref(), Some("n1 of production\n"));
    assert_eq!(scene.host("etc/token"), None);
    scene.merge("n1", &recipient);
    scene.once().exits(0).says(&["n1 converged"]);
    assert_eq!(scene.host("etc/token").as_deref(), Some("open sesame"));

    // The machine is rebuilt under its old name: another key, which nobody has encrypted to.
    std::fs::remove_dir_all(&scene.root).unwrap();
    let rebuilt = scene.enroll(&[]).exits(0).recipient();
    assert_ne!(rebuilt, recipient);
    scene.once().exits(8).says(&["secret-unreadable"]);
    scene.merge("n1", &rebuilt);
    scene.once().exits(0);
}

#[test]
fn settings_that_say_something_else_are_replaced_only_by_force_and_kept() {
    let scene = Scene::new();
    scene.enroll(&[]).exits(0);
    // What the agent accepted under the old introduction is no floor under the new one, and not in its way.
    scene.once().exits(3);
    let before = scene.settings();
    let (head, key) = (scene.forge.head(), scene.forge.fingerprint("alice"));
    let again = ["--introduction", &head, "--signer", &key];
    scene.enroll(&again).exits(2).says(&["trust.toml is there and says something else", "--force"]);
    assert_eq!(scene.settings(), before);
    scene.enroll(&[&again[..], &["--force"]].concat()).exits(0).says(&["introduced anew", &head, "number 1"]);
    let after = scene.settings();
    let (kept, (mode, _, text)) = after.iter().find(|(name, _)| name.starts_with("trust.toml.")).unwrap();
    assert_eq!((kept.len(), *mode), ("trust.toml.20260101T000000Z".len(), 0o600));
    assert_eq!(*text, before["trust.toml"].2);
    assert_eq!(after["age.key"], before["age.key"]);
    assert_eq!(after["agent.toml"], before["agent.toml"]);
}

#[test]
fn an_accepted_head_is_a_floor_for_enrolment_too() {
    let scene = Scene::new();
    scene.enroll(&[]).exits(0);
    let recipient = scene.enroll(&[]).recipient();
    scene.merge("n1", &recipient);
    scene.once().exits(0);
    scene.forge.git(&["reset", "-q", "--hard", "HEAD~1"]);
    scene.enroll(&[]).exits(4).says(&["rollback"]);
}

/// N2
#[test]
fn what_cannot_be_verified_leaves_no_settings_behind() {
    let scene = Scene::new();
    let strange = "0123456789012345678901234567890123456789";
    let bob = scene.forge.fingerprint("bob");
    for (argument, value, said) in [
        ("--introduction", strange, "introduction-missing"),
        ("--signer", &bob, "introduction-missing"),
        ("--fleet", "another", "fleet-mismatch"),
    ] {
        scene.enroll(&[argument, value]).exits(4).says(&[said]);
        assert_eq!(scene.settings().into_keys().collect::<Vec<_>>(), ["age.key"], "{argument}");
    }
    scene.forge.commit(None, "nobody signed this");
    scene.enroll(&[]).exits(4).says(&["unsigned"]);
    scene.enroll(&["--remote", "file:///nonexistent"]).exits(7).says(&["source-unreachable", "the same command again"]);
    assert_eq!(scene.settings().into_keys().collect::<Vec<_>>(), ["age.key"]);
}

#[test]
fn what_is_wrong_with_the_arguments_is_said_before_anything_is_written() {
    let scene = Scene::new();
    for (arguments, said) in [
        (&["--introduction", "abc"][..], "no commit id"),
        (&["--signer", "alice"], "no fingerprint"),
        (&["--node", "../n1"], "is no name"),
        (&["--branch", "a b"], "is no branch"),
        (&["--remote", "http://forge/fleet.git"], "is not fetched from"),
        (&["--remote", "https://me:token@forge/fleet.git"], "user in it"),
        (&["--store-endpoint", "http://etcd01:2379", "--store-ca", "ca.crt"], "not https"),
        (&["--node", "n1\"\n[sandbox]\nroots = \"x"], "is no name"),
    ] {
        scene.enroll(arguments).exits(2).says(&[said]);
        assert!(!scene.etc("").exists(), "{arguments:?}");
    }
}

/// N1: the first answer is not believed because it came first.
#[test]
fn ssh_without_a_host_key_is_refused() {
    let scene = Scene::new();
    let ssh = ["--remote", "ssh://git@forge.example.internal/fleet.git"];
    scene.enroll(&ssh).exits(2).says(&["--host-key is missing", "ssh-keyscan"]);
    assert!(!scene.etc("").exists());
}

/// N1
#[test]
fn a_trust_root_that_others_can_write_is_not_believed() {
    let scene = Scene::new();
    scene.enroll(&[]).exits(0);
    std::fs::set_permissions(scene.etc("trust.toml"), std::fs::Permissions::from_mode(0o666)).unwrap();
    scene.once().exits(2).says(&["trust.toml", "writable by nobody else"]);
    std::fs::remove_file(scene.etc("trust.toml")).unwrap();
    scene.once().exits(2).says(&["trust.toml", "no such file"]);
}

/// N8
#[test]
fn without_root_it_says_what_it_needs_and_reading_commands_work() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    // A copy where nobody may go: the build folder may be closed.
    let public = tempfile::tempdir().unwrap();
    std::fs::set_permissions(public.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let binary = public.path().join("converger");
    std::fs::copy(env!("CARGO_BIN_EXE_converger"), &binary).unwrap();
    let nobody = |args: &[&str]| {
        let mut command = Command::new(&binary);
        Said::of(hermetic(&mut command).current_dir("/").args(args).uid(65534).gid(65534))
    };
    let (introduction, signer) = (scene.introduction(), scene.forge.fingerprint("alice"));
    nobody(&[
        "enroll",
        "--node",
        "n1",
        "--env",
        "production",
        "--fleet",
        "test",
        "--remote",
        "file:///x",
        "--introduction",
        &introduction,
        "--signer",
        &signer,
        "--store-file",
        "/x",
    ])
    .exits(2)
    .says(&["run it as root on the node", "--root DIR"]);
    nobody(&["explain", "unsigned"]).exits(0);
}

/// N8
#[test]
fn without_systemd_it_writes_nothing_unless_it_is_told_not_to_start_anything() {
    if !nix::unistd::geteuid().is_root() || Path::new("/run/systemd/system").exists() {
        return;
    }
    let scene = Scene::new();
    let before = Path::new("/etc/converger").exists();
    let below = scene.command(&[]);
    let arguments: Vec<&std::ffi::OsStr> = below.get_args().take_while(|word| *word != "--root").collect();
    let mut on_the_machine = Command::new(env!("CARGO_BIN_EXE_converger"));
    let said = Said::of(hermetic(&mut on_the_machine).args(arguments)).exits(2);
    said.says(&["systemd does not run here", "--no-start"]);
    assert_eq!(Path::new("/etc/converger").exists(), before);
}

#[test]
fn the_store_gets_a_key_and_a_request_that_openssl_accepts() {
    let scene = Scene::new();
    let ca = scene.forge.dir.path().join("ca.crt");
    std::fs::write(&ca, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let etcd = ["--store-endpoint", "https://etcd01:2379", "--store-ca", ca.to_str().unwrap()];
    let said = scene.enroll(&etcd).exits(0);
    let request = scene.etc("node.csr");
    assert!(said.out.contains(std::fs::read_to_string(&request).unwrap().trim()));
    let openssl = |args: &[&str], file: &Path| run(Command::new("openssl").args(args).arg("-in").arg(file));
    let text = openssl(&["req", "-noout", "-verify", "-text"], &request);
    assert!(text.contains("CN = n1") && text.contains("prime256v1") && text.contains("DNS:n1"), "{text}");
    let public = openssl(&["req", "-noout", "-pubkey"], &request);
    assert_eq!(openssl(&["pkey", "-pubout"], &scene.etc("node.key")), public);
    let before = scene.settings();
    assert!(before.values().all(|(mode, ..)| *mode == 0o600), "{before:?}");
    assert_eq!(scene.enroll(&etcd).exits(0).out, said.out);
    assert_eq!(scene.settings(), before);
    let agent = String::from_utf8(before["agent.toml"].2.clone()).unwrap();
    assert!(
        agent.contains("endpoints = [\"https://etcd01:2379\"]\nca = \"store-ca.crt\"\ncert = \"node.crt\""),
        "{agent}"
    );
}

#[test]
fn over_ssh_it_makes_a_deploy_key_that_works_once_the_forge_knows_it() {
    let scene = Scene::new();
    let sshd = Sshd::serve(&scene.forge);
    let user = run(Command::new("id").arg("-un"));
    let url = format!("ssh://{user}@127.0.0.1:{}{}/.git", sshd.port, scene.forge.work.display());
    let host_key = scene.forge.public("host");
    let ssh = ["--remote", &url, "--host-key", &host_key];
    let json = scene.enroll(&[&ssh[..], &["--json"]].concat()).exits(7).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["head"].is_null() && json["deploy_key"].is_string(), "{json}");
    let first = scene.enroll(&ssh).exits(7).says(&[
        "Nothing is started yet",
        "Permission denied",
        "deploy key that may only read",
    ]);
    let public = first.out.lines().find(|line| line.starts_with("ssh-ed25519 ")).unwrap();
    assert!(public.ends_with(" converger@n1"), "{public}");
    let key = scene.etc("deploy.key");
    assert_eq!(run(Command::new("ssh-keygen").arg("-y").arg("-f").arg(&key)), public);
    assert_eq!(scene.settings().into_keys().collect::<Vec<_>>(), ["age.key", "deploy.key"]);
    std::fs::write(scene.forge.dir.path().join("authorized"), public).unwrap();
    let second = scene.enroll(&ssh).exits(0).says(&["n1 is enrolled", public]);
    scene.once().exits(3).says(&["not-in-topology"]);

    // Another key, handed over, takes the place of the one that was made.
    scene.forge.keygen("handed", &["-t", "ed25519"]);
    std::fs::write(scene.forge.dir.path().join("authorized"), scene.forge.public("handed")).unwrap();
    let handed = scene.forge.key("handed");
    let third = scene.enroll(&[&ssh[..], &["--key-file", handed.to_str().unwrap()]].concat()).exits(0);
    assert!(third.out.contains(&scene.forge.public("handed")));
    assert_ne!(third.out, second.out);
    scene.forge.keygen("locked", &["-t", "ed25519"]);
    run(Command::new("ssh-keygen").args(["-q", "-p", "-N", "secret", "-f"]).arg(scene.forge.key("locked")));
    let locked = scene.forge.key("locked");
    scene.enroll(&[&ssh[..], &["--key-file", locked.to_str().unwrap()]].concat()).exits(2).says(&["has a passphrase"]);
}
