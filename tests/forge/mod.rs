//! A fleet repository made with the real git and ssh-keygen, shut off from the machine's own configuration.

#![allow(dead_code)] // each test file uses its own part
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use converger::git::{Children, GitError, Repository};
use converger::settings::TrustRoot;
use converger::trust::{Accepted, Refusal, Verified};

pub struct Forge {
    pub dir: tempfile::TempDir,
    /// Where commits are made; also what `file://` serves.
    pub work: PathBuf,
}

pub const FLEET: &str = "format = 1\nname = \"test\"\ndefault_environment = \"production\"\n";

impl Forge {
    /// Keys: alice is root and deploy, bob deploys `roles/**` only, carol is root only, mallory is nobody.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("fleet");
        std::fs::create_dir(&work).unwrap();
        let forge = Self { dir, work };
        forge.git(&["init", "-q", "-b", "main", "."]);
        for name in ["alice", "bob", "carol", "mallory"] {
            forge.keygen(name, &["-t", "ed25519"]);
        }
        forge.write("fleet.toml", FLEET);
        forge.write("trust/allowed_signers", &forge.signers(&["alice", "bob", "carol"]));
        forge.write("trust/policy.toml", POLICY);
        forge.write("roles/base/role.toml", "format = 1\n");
        forge.commit(Some("alice"), "a fleet");
        forge
    }

    pub fn keygen(&self, name: &str, kind: &[&str]) {
        let mut args = kind.to_vec();
        let path = self.key(name);
        args.extend(["-q", "-N", "", "-C", name, "-f", path.to_str().unwrap()]);
        run(Command::new("ssh-keygen").args(&args));
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("key-{name}"))
    }

    pub fn public(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("key-{name}.pub"))).unwrap().trim().to_owned()
    }

    pub fn fingerprint(&self, name: &str) -> String {
        let said = run(Command::new("ssh-keygen").arg("-lf").arg(self.key(name)));
        said.split(' ').nth(1).unwrap().to_owned()
    }

    pub fn signers(&self, names: &[&str]) -> String {
        names.iter().map(|name| format!("{name}@example.org {}\n", self.public(name))).collect()
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.work.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn git(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    /// Whether it succeeds.
    pub fn tries(&self, args: &[&str]) -> bool {
        self.command(args).output().unwrap().status.success()
    }

    pub fn git_with(&self, args: &[&str], input: &[u8]) -> String {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        hermetic(&mut command).current_dir(&self.work).args(args);
        command
    }

    /// Everything in the work tree, signed by a key or by none. Returns the id.
    pub fn commit(&self, key: Option<&str>, message: &str) -> String {
        self.git(&["add", "-A"]);
        self.commit_with(key, &["--allow-empty", "-m", message])
    }

    pub fn commit_with(&self, key: Option<&str>, args: &[&str]) -> String {
        self.signing(key, &[&["commit", "-q"], args].concat())
    }

    /// A command that makes a commit (`commit`, `merge`, `revert`).
    pub fn signing(&self, key: Option<&str>, args: &[&str]) -> String {
        let signing = match key {
            Some(name) => {
                let key = format!("user.signingkey={}", self.key(name).display());
                vec![
                    "-c".to_owned(),
                    "gpg.format=ssh".to_owned(),
                    "-c".to_owned(),
                    key,
                    "-c".to_owned(),
                    "commit.gpgsign=true".to_owned(),
                ]
            }
            None => Vec::new(),
        };
        let signing: Vec<&str> = signing.iter().map(String::as_str).collect();
        self.git(&[&signing, args].concat());
        self.head()
    }

    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    pub fn revision(&self, name: &str) -> String {
        self.git(&["rev-parse", name])
    }

    /// Puts a commit object on the branch as it is.
    pub fn raw_commit(&self, bytes: &[u8]) -> String {
        let id = self.git_with(&["hash-object", "-t", "commit", "-w", "--literally", "--stdin"], bytes);
        self.git(&["update-ref", "refs/heads/main", &id]);
        id
    }

    /// The tip's bytes.
    pub fn raw(&self, revision: &str) -> String {
        let mut command = self.command(&["cat-file", "commit", revision]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// A work tree's commit signed over whatever `payload` is, by `key`, in `namespace`.
    pub fn sign(&self, payload: &str, key: &str, namespace: &str) -> String {
        self.sign_with(payload, key, &["-n", namespace])
    }

    pub fn sign_with(&self, payload: &str, key: &str, how: &[&str]) -> String {
        let file = self.dir.path().join("payload");
        std::fs::write(&file, payload).unwrap();
        let _ = std::fs::remove_file(self.dir.path().join("payload.sig"));
        run(Command::new("ssh-keygen").args(["-q", "-Y", "sign"]).args(how).arg("-f").arg(self.key(key)).arg(&file));
        std::fs::read_to_string(self.dir.path().join("payload.sig")).unwrap()
    }

    pub fn url(&self) -> String {
        format!("file://{}/.git", self.work.display())
    }

    /// Introduced by the first commit on main, signed by alice.
    pub fn root(&self) -> TrustRoot {
        self.root_at(&[&self.remote_table(&self.url())])
    }

    pub fn remote_table(&self, url: &str) -> String {
        format!("[[remotes]]\nurl = \"{url}\"\n")
    }

    pub fn root_at(&self, remotes: &[&str]) -> TrustRoot {
        let first = self.git(&["rev-list", "--max-parents=0", "--first-parent", "main"]);
        let text = format!(
            "fleet = \"test\"\nref = \"refs/heads/main\"\nintroduction = {{ commit = \"{first}\", signer = \"{}\", seq = 1 }}\n{}",
            self.fingerprint("alice"),
            remotes.concat()
        );
        TrustRoot::parse(&text, &self.dir.path().join("trust.toml")).unwrap()
    }

    pub fn node(&self) -> Node {
        Node::below(&self.dir.path().join("node"))
    }
}

pub const POLICY: &str = r#"
[principals."alice@example.org"]
roles = ["root", "deploy"]
[principals."bob@example.org"]
roles = ["deploy"]
paths = ["roles/**"]
[principals."carol@example.org"]
roles = ["root"]
"#;

/// One node's two stores.
pub struct Node {
    pub repository: Repository,
    pub state: PathBuf,
    pub cache: PathBuf,
}

impl Node {
    pub fn below(dir: &Path) -> Self {
        let (state, cache) = (dir.join("state"), dir.join("cache"));
        Self::open(state, cache)
    }

    pub fn open(state: PathBuf, cache: PathBuf) -> Self {
        Self { repository: Repository::open(&state, &cache, &children()).unwrap(), state, cache }
    }

    pub fn verify(&mut self, root: &TrustRoot, accepted: Option<&Accepted>) -> Result<Verified, GitError> {
        self.repository.fetch(root, accepted)?.verify(root, accepted)
    }

    pub fn accept(&mut self, root: &TrustRoot) -> Accepted {
        let verified = self.verify(root, None).unwrap();
        self.repository.admit(&verified).unwrap();
        verified.accepted().clone()
    }

    pub fn refusal(&mut self, root: &TrustRoot, accepted: Option<&Accepted>) -> Box<Refusal> {
        match self.verify(root, accepted) {
            Err(GitError::Refused(refusal)) => refusal,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
}

/// The real program, as whoever runs the tests.
pub fn children() -> Children {
    Children { program: PathBuf::from(env!("CARGO_BIN_EXE_converger")), user: None }
}

/// No configuration of the machine, the user or the environment.
pub fn hermetic(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("HOME", "/nonexistent")
        .env("GIT_AUTHOR_NAME", "A U Thor")
        .env("GIT_AUTHOR_EMAIL", "author@example.org")
        .env("GIT_COMMITTER_NAME", "A U Thor")
        .env("GIT_COMMITTER_EMAIL", "author@example.org")
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
