//! `converger init`: a repository that verifies itself, checks itself, and leaves nothing behind where it fails.
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]

mod forge;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use forge::{hermetic, run};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// With a key `id` and its public half.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.path().join("id")));
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn init(&self, key: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_converger"));
        hermetic(&mut command).current_dir(self.dir.path()).args(["init", "fleet", "--principal", "you@example.org"]);
        command.args(["--key", key]).stdin(Stdio::null());
        command
    }

    fn converger(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_converger"));
        hermetic(&mut command).current_dir(self.at("fleet")).args(args).output().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn toml_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(toml_files(&path));
        } else if path.extension().is_some_and(|end| end == "toml") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_new_repository_knows_where_it_begins_and_verifies_itself() {
    let place = Place::new();
    let said = place.init("id").output().unwrap();
    assert!(said.status.success(), "{}", text(&said));
    let git = |args: &[&str]| run(Command::new("git").arg("-C").arg(place.at("fleet")).args(args));
    let (head, signer) = (git(&["rev-parse", "HEAD"]), git(&["config", "converger.signer"]));
    assert_eq!(git(&["config", "converger.introduction"]), head);
    let listed = run(Command::new("ssh-keygen").arg("-lf").arg(place.at("id")));
    assert_eq!(listed.split(' ').nth(1), Some(signer.as_str()));
    for word in ["converger enroll --node NAME", &head, &signer, "git push origin main", "trust.toml"] {
        assert!(text(&said).contains(word), "{word} is not in {}", text(&said));
    }
    let verified = place.converger(&["trust", "verify"]);
    assert!(text(&verified).starts_with("1 commit verified"), "{}", text(&verified));
    let checked = place.converger(&["check", "--quiet"]);
    assert!(checked.status.success(), "{}", text(&checked));
    assert_eq!(git(&["status", "--porcelain"]), "");
    assert_eq!(place.names(), ["fleet", "id", "id.pub"]);
}

#[test]
fn every_schema_header_leads_to_a_schema_inside_the_repository() {
    let place = Place::new();
    assert!(place.init("id").status().unwrap().success());
    let fleet = place.at("fleet").canonicalize().unwrap();
    let mut headers = 0;
    for file in toml_files(&fleet) {
        let text = std::fs::read_to_string(&file).unwrap();
        let Some(schema) = text.lines().next().and_then(|line| line.strip_prefix("#:schema ")) else { continue };
        let target = file.parent().unwrap().join(schema).canonicalize();
        let target = target.unwrap_or_else(|error| panic!("{}: {schema}: {error}", file.display()));
        assert!(target.starts_with(fleet.join("schemas")), "{}", target.display());
        headers += 1;
    }
    assert!(headers > 10, "only {headers} headers");
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let place = Place::new();
    // A public key whose private half is nowhere: the commit cannot be signed.
    std::fs::remove_file(place.at("id")).unwrap();
    let said = place.init("id.pub").output().unwrap();
    assert_eq!(said.status.code(), Some(2), "{}", text(&said));
    assert_eq!(place.names(), ["id.pub"]);
    // A folder that was there, and is empty, stays as it is.
    std::fs::create_dir(place.at("fleet")).unwrap();
    assert!(!place.init("id.pub").status().unwrap().success());
    assert_eq!(std::fs::read_dir(place.at("fleet")).unwrap().count(), 0);
    std::fs::write(place.at("fleet/mine"), "precious").unwrap();
    let said = place.init("id.pub").output().unwrap();
    assert!(text(&said).contains("is not empty"), "{}", text(&said));
    assert_eq!(std::fs::read(place.at("fleet/mine")).unwrap(), b"precious");
}

/// An ssh-agent of our own.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn with(place: &Place) -> Self {
        let socket = place.at("agent");
        let mut command = Command::new("ssh-agent");
        let child = command.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        let agent = Self { child, socket };
        let add = || Command::new("ssh-add").arg("-q").arg(place.at("id")).env("SSH_AUTH_SOCK", &agent.socket).output();
        while !add().unwrap().status.success() {
            std::thread::yield_now();
        }
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_key_that_only_an_agent_holds_signs_the_first_commit() {
    let place = Place::new();
    let agent = Agent::with(&place);
    std::fs::remove_file(place.at("id")).unwrap();
    let said = place.init("id.pub").env("SSH_AUTH_SOCK", &agent.socket).output().unwrap();
    assert!(said.status.success(), "{}", text(&said));
    assert!(text(&place.converger(&["trust", "verify"])).starts_with("1 commit verified"));
}
