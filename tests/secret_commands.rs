//! `converger secret …` as an engineer uses it: a work tree, the built binary, the real `age`, `git` and `ssh-keygen`.

#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const ENVIRONMENT: &str =
    "format = 1\ndomain = \"web.example.internal\"\nos = \"debian-12\"\n[networks]\napp = \"10.20.0.0/16\"\n";
const ROLE: &str = r#"format = 1
[[file]]
path = "/etc/web/token"
secret = "token"
restarts = ["web.service"]
[[unit]]
name = "web.service"
template = "web.service"
"#;
const DOCUMENT: &str = "production/secrets.toml";

/// Nodes web01, web02 in cluster web, db01 in cluster db, an operator; one secret `token`, version 1, for web.
struct Fleet {
    home: tempfile::TempDir,
}

struct Said {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Said {
    fn text(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.out), self.err)
    }

    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}", self.text());
        self
    }

    #[track_caller]
    fn says(self, words: &[&str]) -> Self {
        let text = self.text();
        for word in words {
            assert!(text.contains(word), "{word:?} is not in:\n{text}");
        }
        self
    }

    #[track_caller]
    fn omits(self, word: &str) -> Self {
        assert!(!self.text().contains(word), "{word:?} is in:\n{}", self.text());
        self
    }
}

fn feed(mut command: Command, stdin: &[u8]) -> Said {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Who ends early, with an error above all, closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code().unwrap_or(-1),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Fleet {
    fn new() -> Self {
        let fleet = Self { home: tempfile::tempdir().unwrap() };
        for key in ["alice", "web01", "web02", "web03", "db01"] {
            fleet.run("age-keygen", &["-o", fleet.key(key).to_str().unwrap()]);
        }
        fleet.write("fleet.toml", "format = 1\nname = \"test\"\ndefault_environment = \"production\"\n");
        fleet.write("environments/production/environment.toml", ENVIRONMENT);
        fleet.write("roles/web/role.toml", ROLE);
        fleet.write("roles/web/web.service", "[Service]\nExecStart=/usr/bin/true\n");
        fleet.write("roles/db/role.toml", "format = 1\n");
        let node = |name: &str, address: u8| {
            let cluster = name.trim_end_matches(|c: char| c.is_ascii_digit());
            format!(
                "[nodes.{name}]\nclusters = [\"{cluster}\"]\naddresses = {{ app = \"10.20.0.{address}\" }}\n\
                 size = {{ vcpu = 1, memory_gib = 1, disk_gib = 1 }}\nrecipient = \"{}\"\n",
                fleet.public(name)
            )
        };
        let cluster = |name: &str| format!("[clusters.{name}]\ntier = \"t\"\nroles = [\"{name}\"]\n");
        let parts = [cluster("web"), cluster("db"), node("web01", 1), node("web02", 2), node("db01", 3)];
        fleet.write("environments/production/topology.toml", &format!("[tiers.t]\norder = 1\n{}", parts.concat()));
        let operators = format!("# Who runs it.\noperators = [\n  \"{}\", # alice\n]\n", fleet.public("alice"));
        fleet.write("environments/production/secrets.toml", &operators);
        fleet.secret(&["encrypt", "token", "--grant", "[{ cluster = \"web\" }]"], b"one").exits(0);
        fleet
    }

    /// All of it committed and signed, by keys that exist nowhere else.
    fn committed() -> Self {
        let fleet = Self::new();
        let key = fleet.home.path().join("sign");
        fleet.run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
        fleet.git(&["init", "--quiet", "--initial-branch", "main"]);
        for (name, value) in [
            ("user.name", "alice"),
            ("user.email", "a@example.org"),
            ("gpg.format", "ssh"),
            ("user.signingkey", key.to_str().unwrap()),
        ] {
            fleet.git(&["config", name, value]);
        }
        fleet.commit("first");
        fleet
    }

    fn commit(&self, message: &str) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "-m", message]);
    }

    fn repo(&self) -> PathBuf {
        self.home.path().join("fleet")
    }

    fn key(&self, name: &str) -> PathBuf {
        self.home.path().join(format!("{name}.key"))
    }

    fn public(&self, name: &str) -> String {
        self.run("age-keygen", &["-y", self.key(name).to_str().unwrap()]).trim().to_owned()
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        let runtime = self.home.path().join("none");
        command
            .args(args)
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", runtime)
            .env("GIT_CONFIG_NOSYSTEM", "1");
        command
    }

    #[track_caller]
    fn run(&self, program: &str, args: &[&str]) -> String {
        let said = feed(self.command(program, args), b"");
        assert_eq!(said.code, 0, "{program} {args:?}: {}", said.text());
        String::from_utf8(said.out).unwrap()
    }

    #[track_caller]
    fn git(&self, args: &[&str]) -> String {
        self.run("git", &[&["-C", self.repo().to_str().unwrap()], args].concat())
    }

    fn converger(&self, args: &[&str]) -> Command {
        let repo = self.repo();
        self.command(env!("CARGO_BIN_EXE_converger"), &[args, &["--repo", repo.to_str().unwrap()]].concat())
    }

    fn check(&self) -> Said {
        feed(self.converger(&["check"]), b"")
    }

    fn secret(&self, args: &[&str], stdin: &[u8]) -> Said {
        feed(self.converger(&[&["secret"], args].concat()), stdin)
    }

    /// With alice's key.
    fn opening(&self, args: &[&str], stdin: &[u8]) -> Said {
        self.secret(&[args, &["--identity", self.key("alice").to_str().unwrap()]].concat(), stdin)
    }

    /// At a terminal, as a person would: each line once it is asked for. What the terminal showed.
    fn typed(&self, line: &str, screen: &Path, answers: &[(&str, &str)]) -> Said {
        let mut command = self.command("script", &["-qefc", line, screen.to_str().unwrap()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        for (asked, answer) in answers {
            wait_for(screen, asked);
            child.stdin.as_mut().unwrap().write_all(format!("{answer}\n").as_bytes()).unwrap();
        }
        let code = child.wait().unwrap().code().unwrap();
        let out = std::fs::read(screen).unwrap();
        std::fs::remove_file(screen).unwrap();
        Said { code, out, err: String::new() }
    }

    fn editing(&self, name: &str, editor: &str) -> Command {
        let script = self.home.path().join("editor");
        std::fs::write(&script, format!("#!/bin/sh\n{editor}\n")).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = self.converger(&["secret", "edit", name, "--identity", self.key("alice").to_str().unwrap()]);
        command.env("EDITOR", format!("{} -w", script.display())).env_remove("VISUAL");
        command
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.repo().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.repo().join("environments").join(path)).unwrap()
    }

    #[track_caller]
    fn edit(&self, path: &str, from: &str, to: &str) {
        let text = self.read(path);
        assert!(text.contains(from), "{from:?} is not in {path}");
        self.write(&format!("environments/{path}"), &text.replacen(from, to, 1));
    }

    /// What the real `age` makes of a secret with somebody's key.
    fn age(&self, name: &str, key: &Path) -> Result<Vec<u8>, String> {
        let file = self.file(name);
        let said = feed(self.command("age", &["-d", "-i", key.to_str().unwrap(), file.to_str().unwrap()]), b"");
        if said.code == 0 { Ok(said.out) } else { Err(said.err) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.repo().join(format!("environments/production/secrets/{name}.age"))
    }

    fn entry(&self, name: &str) -> toml::Table {
        let table: toml::Table = self.read(DOCUMENT).parse().unwrap();
        table["secrets"][name].as_table().unwrap().clone()
    }

    fn version(&self, name: &str) -> i64 {
        self.entry(name)["version"].as_integer().unwrap()
    }

    /// A file made by hand, vouched for as it is.
    fn by_hand(&self, name: &str, bytes: &[u8]) {
        use sha2::{Digest as _, Sha256};
        let old = self.entry(name)["sha256"].as_str().unwrap().to_owned();
        std::fs::write(self.file(name), bytes).unwrap();
        self.edit(DOCUMENT, &old, &hex::encode(Sha256::digest(bytes)));
    }

    /// Every byte below the repository, by path.
    fn all(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.repo()];
        while let Some(at) = open.pop() {
            for entry in std::fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => open.push(path),
                    false => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
                }
            }
        }
        found
    }

    /// Another node of web, as text to put before db01.
    fn grow(&self) {
        let web03 = format!(
            "[nodes.web03]\nclusters = [\"web\"]\naddresses = {{ app = \"10.20.0.9\" }}\n\
             size = {{ vcpu = 1, memory_gib = 1, disk_gib = 1 }}\nrecipient = \"{}\"\n[nodes.db01]\n",
            self.public("web03")
        );
        self.edit("production/topology.toml", "[nodes.db01]\n", &web03);
    }

    fn retire(&self, node: &str) {
        let recipient = format!("recipient = \"{}\"\n", self.public(node));
        self.edit("production/topology.toml", &recipient, &format!("{recipient}state = \"retired\"\n"));
    }
}

#[test]
fn a_new_secret_is_for_those_who_are_granted_it_and_the_operators() {
    let fleet = Fleet::new();
    let value = b"pa\"ss\0\xff\n";
    fleet.secret(&["encrypt", "db-password", "--grant", "{ cluster = \"db\" }"], value).exits(0).says(&[
        "db-password: version 1, encrypted to 1 node and 1 operator",
        "git add environments/production/secrets/db-password.age environments/production/secrets.toml",
    ]);
    for key in ["db01", "alice"] {
        assert_eq!(fleet.age("db-password", &fleet.key(key)).as_deref(), Ok(&value[..]), "{key}");
    }
    assert!(fleet.age("db-password", &fleet.key("web01")).is_err());
    assert!(fleet.read(DOCUMENT).starts_with("# Who runs it.\noperators = [\n  \"age1"));
    assert!(fleet.read(DOCUMENT).contains("\", # alice\n"));
    assert_eq!(fleet.entry("db-password")["grant"].to_string(), "{ cluster = \"db\" }");
    fleet.check().exits(0).says(&["warning[no-root-key]", "1 warning in 1 file"]);
}

#[test]
fn a_new_value_raises_the_version_and_names_what_restarts() {
    let fleet = Fleet::new();
    fleet
        .secret(&["encrypt", "token"], b"two")
        .exits(0)
        .says(&["version 2", "restarts web.service on web01 and web02"]);
    assert_eq!((fleet.version("token"), fleet.age("token", &fleet.key("web02"))), (2, Ok(b"two".to_vec())));
    let file = fleet.home.path().join("value");
    std::fs::write(&file, "three").unwrap();
    fleet
        .secret(&["rotate", "token", "--from", file.to_str().unwrap()], b"")
        .exits(0)
        .says(&["version 3", "restarts web.service"]);
    assert_eq!((fleet.version("token"), fleet.age("token", &fleet.key("alice"))), (3, Ok(b"three".to_vec())));
    fleet.check().exits(0);
}

/// B19
#[test]
fn only_what_uses_a_secret_restarts_for_it() {
    let fleet = Fleet::new();
    let other =
        ROLE.replace("format = 1\n", "").replace("/web/token", "/other/token").replace("web.service", "other.service");
    fleet.write("roles/web/role.toml", &format!("{ROLE}{}", other.replace("\"token\"", "\"other\"")));
    fleet.write("roles/web/other.service", "[Service]\nExecStart=/usr/bin/true\n");
    fleet.secret(&["encrypt", "other", "--grant", "{ role = \"web\" }"], b"x").exits(0);
    fleet.check().exits(0);
    fleet
        .secret(&["rotate", "other"], b"y")
        .exits(0)
        .says(&["restarts other.service on web01 and web02"])
        .omits("web.service");
    fleet.opening(&["rekey", "--all"], b"").exits(0).omits("restarts");
}

#[test]
fn the_same_value_again_is_no_change() {
    let fleet = Fleet::new();
    let before = fleet.all();
    fleet.opening(&["encrypt", "token"], b"one").exits(0).says(&["token: unchanged, still version 1"]);
    assert_eq!(fleet.all(), before);
    // For others it is encrypted anew, and still no other version.
    fleet.opening(&["encrypt", "token", "--grant", "all"], b"one").exits(0).says(&["version 1", "3 nodes"]);
    assert_eq!((fleet.version("token"), fleet.age("token", &fleet.key("db01"))), (1, Ok(b"one".to_vec())));
    fleet.check().exits(0);
}

#[test]
fn what_cannot_be_encrypted_changes_nothing_and_is_told() {
    let fleet = Fleet::new();
    let before = fleet.all();
    let encrypt = |args: &[&str], value: &[u8]| fleet.secret(&[&["encrypt"], args].concat(), value);
    encrypt(&["new"], b"x").exits(2).says(&["no secret \"new\" yet", "--grant"]);
    encrypt(&["../x", "--grant", "all"], b"x").exits(2).says(&["cannot be the name of a secret"]);
    encrypt(&["new", "--grant", "{ clutser = \"web\" }"], b"x").exits(2).says(&["is no selector", "`clutser`"]);
    encrypt(&["token"], b"").exits(2).says(&["is empty"]);
    encrypt(&["token"], &vec![b'x'; 2 << 20]).exits(2).says(&["larger than 1 MiB"]);
    fleet.secret(&["rotate", "tokne"], b"x").exits(2).says(&["did you mean \"token\"?"]);
    fleet.secret(&["show", "token"], b"").exits(2).says(&["--identity FILE", ".config/converger/identity"]);
    assert_eq!(fleet.all(), before);
}

#[test]
fn a_terminal_shows_nothing_of_what_is_typed() {
    let fleet = Fleet::new();
    let line = format!("{} secret encrypt token --repo {}", env!("CARGO_BIN_EXE_converger"), fleet.repo().display());
    let screen = fleet.home.path().join("screen");
    let typed =
        |[first, again]: [&str; 2]| fleet.typed(&line, &screen, &[("not shown", first), ("the same again", again)]);
    typed(["canary-typed", "canary-typed"]).exits(0).says(&["version 2"]).omits("canary");
    assert_eq!(fleet.age("token", &fleet.key("alice")), Ok(b"canary-typed".to_vec()));
    typed(["canary", "another"]).exits(2).says(&["the two lines differ"]).omits("canary");
}

#[test]
fn the_passphrase_of_a_key_is_asked_for_and_not_shown() {
    let fleet = Fleet::new();
    let key = fleet.home.path().join("mine");
    fleet.run("ssh-keygen", &["-q", "-t", "ed25519", "-a", "1", "-N", "canary", "-f", key.to_str().unwrap()]);
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    fleet.edit(DOCUMENT, "# alice\n", &format!("# alice\n  \"{}\",\n", public.trim()));
    fleet.opening(&["rekey"], b"").exits(0);
    let (program, repo) = (env!("CARGO_BIN_EXE_converger"), fleet.repo());
    let line = format!("{program} secret show token --repo {} --identity {}", repo.display(), key.display());
    let screen = fleet.home.path().join("screen");
    let typed = |passphrase: &str| fleet.typed(&line, &screen, &[("not shown", passphrase)]);
    typed("canary").exits(0).says(&["passphrase of", "one"]).omits("canary");
    typed("wrong").exits(8).says(&["the passphrase is not the right one"]);
    // Nobody there: a session of its own has no terminal.
    let mut alone = fleet.command("setsid", &["--wait", "sh", "-c", &line]);
    alone.env("TERM", "dumb");
    feed(alone, b"").exits(8).says(&["nobody is there to type it"]);
}

#[test]
fn ssh_keys_and_armor_go_both_ways() {
    let fleet = Fleet::new();
    let mut topology = fleet.read("production/topology.toml");
    let mut private = Vec::new();
    for (node, kind, bits) in [("web01", "ed25519", "256"), ("web02", "rsa", "2048")] {
        let key = fleet.home.path().join(kind);
        fleet.run(
            "ssh-keygen",
            &["-q", "-t", kind, "-b", bits, "-N", "", "-C", "root@host", "-f", key.to_str().unwrap()],
        );
        let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
        topology = topology.replace(&fleet.public(node), public.trim());
        private.push(key);
    }
    fleet.write("environments/production/topology.toml", &topology);
    // Tags of SSH keys in the header name who lacks it.
    fleet.check().exits(3).says(&["web01 and web02 cannot open it", "`converger secret rekey token`"]);
    fleet.opening(&["rekey"], b"").exits(0).says(&["token: version 1", "because web01 and web02 cannot open it"]);
    fleet.check().exits(0);
    for key in &private {
        assert_eq!(fleet.age("token", key).as_deref(), Ok(&b"one"[..]), "age opens with {}", key.display());
        let shown = fleet.secret(&["show", "token", "--identity", key.to_str().unwrap()], b"").exits(0);
        assert_eq!(shown.out, b"one", "we open with {}", key.display());
    }
    // What age wrote, armored, to the same keys.
    let recipients: Vec<String> = [private[0].clone(), private[1].clone()]
        .iter()
        .map(|key| std::fs::read_to_string(key.with_extension("pub")).unwrap().trim().to_owned())
        .chain([fleet.public("alice")])
        .collect();
    let args: Vec<&str> = ["-a"].into_iter().chain(recipients.iter().flat_map(|key| ["-r", key.as_str()])).collect();
    fleet.by_hand("token", &feed(fleet.command("age", &args), b"from age").out);
    fleet.check().exits(0);
    assert_eq!(fleet.opening(&["show", "token"], b"").exits(0).out, b"from age");
}

#[test]
fn an_editor_sees_a_file_in_memory_that_is_gone_afterwards() {
    let fleet = Fleet::new();
    let seen = fleet.home.path().join("seen");
    let look = format!(
        "test \"$1\" = -w && f=$2; (echo \"$f\"; cat \"$f\"; stat -f -c ' %T' \"$f\"; stat -c '%a' \"$(dirname \"$f\")\" \"$f\") > {}",
        seen.display()
    );
    // A backup beside it, and another inode under the same name: as editors do.
    let change = format!("{look}; cp \"$f\" \"$f~\"; printf 'two\\n' > \"$f.new\"; mv \"$f.new\" \"$f\"");
    feed(fleet.editing("token", &change), b"").exits(0).says(&["token: version 2", "restarts web.service"]);
    let seen = std::fs::read_to_string(&seen).unwrap();
    let [file, rest] = seen.splitn(2, '\n').collect::<Vec<_>>()[..] else { panic!("{seen}") };
    assert_eq!(rest, "one tmpfs\n700\n600\n");
    assert!(file.starts_with("/dev/shm/converger-secret-"), "{file}");
    assert!(!Path::new(file).parent().unwrap().exists());
    // It had no newline at its end; editors add one.
    assert_eq!(fleet.age("token", &fleet.key("web01")), Ok(b"two".to_vec()));
    fleet.check().exits(0);
}

#[test]
fn an_edit_that_comes_to_nothing_writes_nothing() {
    let fleet = Fleet::new();
    let before = fleet.all();
    feed(fleet.editing("token", "true"), b"").exits(0).says(&["token: unchanged, still version 1"]);
    feed(fleet.editing("token", "printf 'one\\n' > $2"), b"").exits(0).says(&["unchanged"]);
    feed(fleet.editing("token", "printf two > $2; exit 3"), b"").exits(2).says(&["the editor failed", "as it was"]);
    let document = fleet.repo().join("environments").join(DOCUMENT);
    let pull = format!("sed -i s/{} {}", "^sha256.*/'sha256 = \"0\"'/", document.display());
    feed(fleet.editing("token", &format!("printf two > $2; {pull}")), b"").exits(2).says(&["changed meanwhile"]);
    std::fs::write(&document, &before[&document]).unwrap();
    feed(fleet.editing("token", ": > $2"), b"").exits(2).says(&["is empty"]);
    let mut none = fleet.editing("token", "");
    none.env("EDITOR", "/nowhere/ed");
    feed(none, b"").exits(2).says(&["cannot start the editor /nowhere/ed"]);
    assert_eq!(fleet.all(), before);
    assert_eq!(rooms_of_dead(), Vec::<PathBuf>::new());
}

/// B11: `vi` is vim on most machines, and keeps what was copied in ~/.viminfo unless it is told not to.
#[test]
fn an_editor_that_is_vim_under_another_name_is_told_to_keep_nothing() {
    let fleet = Fleet::new();
    let mut command =
        fleet.editing("token", &format!("printf '%s ' \"$@\" > {}", fleet.home.path().join("told").display()));
    let (vim, vi) = (fleet.home.path().join("vim.basic"), fleet.home.path().join("vi"));
    std::fs::rename(fleet.home.path().join("editor"), &vim).unwrap();
    std::os::unix::fs::symlink(&vim, &vi).unwrap();
    command.env("EDITOR", &vi);
    feed(command, b"").exits(0);
    let told = std::fs::read_to_string(fleet.home.path().join("told")).unwrap();
    assert!(told.contains("-n -i NONE") && told.contains("noundofile"), "{told}");
}

#[test]
fn a_signal_wipes_what_the_editor_had() {
    let fleet = Fleet::new();
    for signal in ["TERM", "HUP"] {
        let told = fleet.home.path().join("told");
        let editor = format!("echo $2 > {0}.new && mv {0}.new {0}; exec sleep 60", told.display());
        let child = fleet.editing("token", &editor).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let file = wait_for(&told, "");
        assert!(Path::new(file.trim()).exists());
        fleet.run("kill", &[&format!("-{signal}"), &child.id().to_string()]);
        let ended = Child::wait_with_output(child).unwrap();
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(text.contains(&format!("ended by SIG{signal}")), "{text}");
        assert!(!Path::new(file.trim()).parent().unwrap().exists());
        std::fs::remove_file(told).unwrap();
    }
    assert_eq!(fleet.version("token"), 1);
}

fn wait_for(path: &Path, word: &str) -> String {
    for _ in 0..300 {
        match std::fs::read_to_string(path) {
            Ok(text) if text.contains(word) => return text,
            _ => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
    panic!("{} does not say {word:?}", path.display());
}

/// Folders in memory whose process is not there any more.
fn rooms_of_dead() -> Vec<PathBuf> {
    let rooms = std::fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().path());
    rooms
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let id = name.strip_prefix("converger-secret-").and_then(|rest| rest.split('-').next()).map(str::to_owned);
            id.is_some_and(|id| !Path::new("/proc").join(id).exists())
        })
        .collect()
}

#[test]
fn show_keeps_bytes_from_a_terminal_unless_forced() {
    let fleet = Fleet::new();
    fleet.secret(&["encrypt", "blob", "--grant", "all"], b"\x1b]0;title\x07").exits(0);
    assert_eq!(fleet.opening(&["show", "blob"], b"").exits(0).out, b"\x1b]0;title\x07");
    let line = |more: &str| {
        let (repo, key) = (fleet.repo(), fleet.key("alice"));
        let binary = env!("CARGO_BIN_EXE_converger");
        format!("{binary} secret show blob --repo {} --identity {} {more}", repo.display(), key.display())
    };
    let shown = |more: &str| feed(fleet.command("script", &["-qec", &line(more), "/dev/null"]), b"");
    shown("").exits(2).says(&["is no plain text", "--force"]).omits("title");
    shown("--force").exits(0).says(&["title"]);
    // A key that it is not encrypted to.
    let key = fleet.key("db01");
    let refused = fleet.secret(&["show", "token", "--identity", key.to_str().unwrap()], b"").exits(8);
    assert!(refused.out.is_empty());
    refused.says(&["secret token is not encrypted to your key", "`converger secret rekey token`"]);
}

#[test]
fn rekey_touches_what_needs_it_and_says_why() {
    let fleet = Fleet::new();
    fleet.secret(&["encrypt", "db-password", "--grant", "{ cluster = \"db\" }"], b"x").exits(0);
    fleet.check().exits(0);
    fleet.grow();
    fleet.check().exits(3).says(&[
        "error[secret-recipients]: secret token",
        "encrypted to 3, granted to 3 nodes and 1 operator",
        "web03 cannot open it",
        "help: `converger secret rekey token`",
    ]);
    let before = fleet.all();
    fleet
        .opening(&["rekey"], b"")
        .exits(0)
        .says(&["token: version 1", "because web03 cannot open it"])
        .omits("db-password");
    let after = fleet.all();
    let changed: BTreeSet<_> =
        after.iter().filter(|(path, bytes)| before.get(*path) != Some(*bytes)).map(|(path, _)| path).collect();
    assert_eq!(changed, BTreeSet::from([&fleet.repo().join("environments").join(DOCUMENT), &fleet.file("token")]));
    assert_eq!(fleet.age("token", &fleet.key("web03")), Ok(b"one".to_vec()));
    fleet.check().exits(0);
    fleet.opening(&["rekey"], b"").exits(0).says(&["nothing to do"]);
    assert_eq!(fleet.all(), after);
    fleet.opening(&["rekey", "--all", "token"], b"").exits(0).says(&["that was asked for"]);
    assert_ne!(fleet.all()[&fleet.file("token")], after[&fleet.file("token")]);
    assert_eq!(fleet.version("token"), 1);
}

#[test]
fn one_secret_that_cannot_be_opened_keeps_rekey_from_writing_any() {
    let fleet = Fleet::new();
    fleet.secret(&["encrypt", "other", "--grant", "{ cluster = \"web\" }"], b"x").exits(0);
    let web01 = fleet.public("web01");
    fleet.by_hand("other", &feed(fleet.command("age", &["-r", &web01]), b"only for web01").out);
    fleet.grow();
    let before = fleet.all();
    fleet.opening(&["rekey"], b"").exits(8).says(&["secret other is not encrypted to your key", "nothing was written"]);
    assert_eq!(fleet.all(), before);
}

#[test]
fn rekey_commits_its_own_paths_signed_and_no_others() {
    let fleet = Fleet::committed();
    fleet.grow();
    fleet.commit("web03");
    fleet.write("roles/db/staged", "mine");
    fleet.git(&["add", "roles/db/staged"]);
    fleet.edit("production/environment.toml", "format", "# mine\nformat");
    fleet.opening(&["rekey", "--commit"], b"").exits(0).says(&["committed as "]);
    let files = fleet.git(&["show", "--name-only", "--format=%s", "HEAD"]);
    assert_eq!(
        files,
        "secrets: re-key token\n\nenvironments/production/secrets.toml\nenvironments/production/secrets/token.age\n"
    );
    assert!(fleet.git(&["cat-file", "commit", "HEAD"]).contains("-----BEGIN SSH SIGNATURE-----"));
    assert!(fleet.git(&["log", "-1", "--format=%b"]).contains("because web03 cannot open it"));
    assert_eq!(fleet.git(&["status", "--short"]), " M environments/production/environment.toml\nA  roles/db/staged\n");
}

/// B8
#[test]
fn a_node_that_left_is_named_until_its_secrets_are_rotated() {
    let fleet = Fleet::committed();
    fleet.retire("web02");
    fleet.check().exits(3).says(&[
        "error[stale-recipient]: secret token",
        "web02 (retired) can open it, without being granted it",
        "`converger secret rotate token`",
    ]);
    fleet.opening(&["rekey"], b"").exits(0);
    fleet.check().exits(0);
    assert!(fleet.age("token", &fleet.key("web02")).is_err());
    // The value is the one that it knows: a tree alone cannot say so, history can.
    fleet.secret(&["audit"], b"").exits(0).says(&["--since REV says what to rotate"]);
    fleet.secret(&["audit", "--since", "HEAD"], b"").exits(3).says(&[
        "To rotate",
        "token: web02",
        "converger secret rotate token",
    ]);
    fleet.secret(&["rotate", "token"], b"two").exits(0).says(&["version 2", "restarts web.service on web01"]);
    fleet.secret(&["audit", "--since", "HEAD"], b"").exits(0).says(&["Nothing to rotate since HEAD"]);
}

/// B7
#[test]
fn a_file_that_is_encrypted_to_one_more_is_found_although_its_digests_are_right() {
    let fleet = Fleet::new();
    let keys = ["alice", "web01", "web02", "db01"].map(|name| fleet.public(name));
    let args: Vec<&str> = keys.iter().flat_map(|key| ["-r", key.as_str()]).collect();
    fleet.by_hand("token", &feed(fleet.command("age", &args), b"one").out);
    fleet
        .check()
        .exits(3)
        .says(&["error[stale-recipient]", "token.age is encrypted to 4, granted to 2 nodes and 1 operator"]);
    fleet.opening(&["rekey"], b"").exits(0).says(&["1 more can open it than should"]);
    fleet.check().exits(0);
}

/// B4: a header tells without a key that nobody can open it, whatever secrets.toml vouches for.
#[test]
fn a_file_that_nobody_can_open_is_found_without_a_key() {
    let fleet = Fleet::new();
    let passphrase =
        "age-encryption.org/v1\n-> scrypt AAAAAAAAAAAAAAAAAAAAAA 18\nAAAA\n-> X25519 A\nA\n-> X25519 A\nA\n--- A\n";
    for file in ["age-encryption.org/v1\n", passphrase] {
        fleet.by_hand("token", file.as_bytes());
        fleet.check().exits(3);
    }
}

/// B2
#[test]
fn two_secrets_with_one_ciphertext_are_named_by_check_and_plan() {
    let fleet = Fleet::committed();
    fleet.secret(&["encrypt", "other", "--grant", "{ cluster = \"web\" }"], b"x").exits(0);
    std::fs::copy(fleet.file("token"), fleet.file("other")).unwrap();
    fleet.check().exits(3).says(&["error[secret-digest]", "other.age is not the file"]);
    fleet.by_hand("other", &std::fs::read(fleet.file("token")).unwrap());
    let found = ["error[secret-copied]", "secrets other and token are one and the same file"];
    fleet.check().exits(3).says(&found);
    feed(fleet.converger(&["plan"]), b"").exits(3).says(&found);
    fleet.secret(&["audit"], b"").exits(3).says(&["one and the same file as other"]);
    fleet.secret(&["encrypt", "other"], b"y").exits(0);
    fleet.check().exits(0);
}

/// B15
#[test]
fn a_node_opens_with_its_old_and_its_new_key_while_it_changes() {
    let fleet = Fleet::new();
    let (old, new) = (fleet.public("web01"), fleet.public("web03"));
    let both = format!("recipient = \"{new}\"\nrecipients = [\"{old}\"]\n");
    fleet.edit("production/topology.toml", &format!("recipient = \"{old}\"\n"), &both);
    fleet.check().exits(3).says(&["encrypted to 3, granted to 2 nodes and 1 operator", "web01 cannot open it"]);
    fleet.opening(&["rekey"], b"").exits(0);
    fleet.check().exits(0);
    for key in ["web01", "web03"] {
        assert_eq!(fleet.age("token", &fleet.key(key)), Ok(b"one".to_vec()), "{key}");
    }
    fleet.edit("production/topology.toml", &both, &format!("recipient = \"{new}\"\n"));
    fleet.opening(&["rekey"], b"").exits(0);
    fleet.check().exits(0);
    assert!(fleet.age("token", &fleet.key("web01")).is_err());
    assert_eq!(fleet.age("token", &fleet.key("web03")), Ok(b"one".to_vec()));
}

#[test]
fn a_node_without_a_key_can_be_granted_and_gets_it_later() {
    let fleet = Fleet::new();
    let recipient = format!("recipient = \"{}\"\n", fleet.public("web02"));
    fleet.edit("production/topology.toml", &recipient, "");
    fleet.secret(&["encrypt", "token"], b"two").exits(0).says(&["not to web02, which has no key yet"]);
    fleet.secret(&["audit"], b"").exits(3).says(&["no key yet: web02", "no recipient in topology.toml: web02"]);
    fleet.edit("production/topology.toml", "[nodes.web02]\n", &format!("[nodes.web02]\n{recipient}"));
    fleet.opening(&["rekey"], b"").exits(0).says(&["because web02 cannot open it"]);
    fleet.check().exits(0);
}

#[test]
fn the_audit_is_data_for_scripts() {
    let fleet = Fleet::new();
    fleet.secret(&["encrypt", "spare", "--grant", "{ nodes = [\"db01\"] }"], b"x").exits(0);
    fleet.secret(&["audit"], b"").exits(0).says(&["spare", "unused", "web01, web02"]);
    let said = fleet.secret(&["audit", "--json"], b"").exits(0);
    let json: serde_json::Value = serde_json::from_slice(&said.out).unwrap();
    let expected = serde_json::json!({
        "operators": [fleet.public("alice")],
        "secrets": [
            { "name": "spare", "version": 1, "readers": ["db01"], "encrypted_to": 2, "used": false, "problems": [], "rotate_because_of": [] },
            { "name": "token", "version": 1, "readers": ["web01", "web02"], "encrypted_to": 3, "used": true, "problems": [], "rotate_because_of": [] },
        ],
        "nodes_without_recipient": [],
    });
    assert_eq!(json, expected);
}

#[test]
fn the_key_of_the_client_settings_is_used() {
    let fleet = Fleet::new();
    let config = fleet.home.path().join(".config/converger");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::copy(fleet.key("alice"), config.join("identity")).unwrap();
    assert_eq!(fleet.secret(&["show", "token"], b"").exits(0).out, b"one");
    std::fs::remove_file(config.join("identity")).unwrap();
    std::fs::copy(fleet.key("alice"), config.join("mine.key")).unwrap();
    std::fs::write(config.join("client.toml"), "identity = \"mine.key\"\n").unwrap();
    assert_eq!(fleet.secret(&["show", "token"], b"").exits(0).out, b"one");
    std::fs::set_permissions(config.join("mine.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    fleet.secret(&["show", "token"], b"").exits(8).says(&["mine.key has mode 0644"]);
}
