//! A machine of its own for one test: this machine's whole root below an overlay, with the real package managers and
//! their real databases. The test runs again inside, and what it does there is forgotten.
//!
//! Needs root and `unshare`. Never: leaves a mount, a process or a file behind, also when it is killed.
#![allow(dead_code, reason = "each user takes a part")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

const INSIDE: &str = "CONVERGER_TEST_MACHINE";
/// A mount namespace and processes of its own; the outermost shell's end takes all of it.
const ENTER: &str = r#"
at=$1; exe=$2; test=$3
mount -t tmpfs machine "$at"
mkdir "$at/upper" "$at/work" "$at/root"
mount -t overlay -o "lowerdir=/,upperdir=$at/upper,workdir=$at/work" machine "$at/root"
cd "$at/root"
mount --rbind /dev dev
mount -t proc proc proc
mount -t tmpfs tmp tmp
mount -t tmpfs run run
: >test-of-converger
mount --bind "$exe" test-of-converger
exec chroot . /test-of-converger --exact "$test" --nocapture --test-threads=1
"#;

/// True: this is the inside, go on. False: the test ran inside, and went well there.
pub fn is_inside(test: &str) -> bool {
    if std::env::var(INSIDE).is_ok_and(|name| name == test) {
        return true;
    }
    assert!(nix::unistd::geteuid().is_root(), "run it as root: it makes a machine of its own to install packages in");
    let at = tempfile::tempdir().unwrap();
    // Without the terminal of whoever runs the tests.
    let mut command = Command::new("setsid");
    command.args([
        "--wait",
        "timeout",
        "-k",
        "5",
        "300",
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-euc",
        ENTER,
        "-",
    ]);
    command.arg(at.path()).arg(std::env::current_exe().unwrap()).arg(test);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root").env(INSIDE, test);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "inside its machine:\n{said}");
    false
}

pub fn write(path: &str, text: &str) {
    std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Runs it to its end; its output. Panics if it fails.
pub fn run(argv: &[&str]) -> String {
    let output = Command::new(argv[0]).args(&argv[1..]).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{argv:?}: {text}");
    text.into_owned()
}

/// A package for apt.
#[derive(Clone, Default)]
pub struct Deb<'a> {
    pub name: &'a str,
    pub version: &'a str,
    /// More lines of its control file, each with its end of line.
    pub control: &'a str,
    /// Path and text.
    pub files: &'a [(&'a str, &'a str)],
    /// A maintainer script's name (`postinst`, …) and text.
    pub scripts: &'a [(&'a str, &'a str)],
}

impl Deb<'_> {
    /// Builds it into this folder.
    pub fn build(&self, folder: &str) {
        let tree = format!("/tmp/deb/{}_{}", self.name, self.version);
        let control = format!(
            "Package: {}\nVersion: {}\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n{}Description: a test\n",
            self.name, self.version, self.control
        );
        write(&format!("{tree}/DEBIAN/control"), &control);
        for (path, text) in self.files {
            write(&format!("{tree}{path}"), text);
        }
        let conffiles: Vec<&str> =
            self.files.iter().map(|(path, _)| *path).filter(|path| path.starts_with("/etc/")).collect();
        write(
            &format!("{tree}/DEBIAN/conffiles"),
            &conffiles.iter().map(|path| format!("{path}\n")).collect::<String>(),
        );
        for (name, text) in self.scripts {
            write(&format!("{tree}/DEBIAN/{name}"), text);
            run(&["chmod", "755", &format!("{tree}/DEBIAN/{name}")]);
        }
        std::fs::create_dir_all(folder).unwrap();
        run(&["dpkg-deb", "-Znone", "--build", "--root-owner-group", &tree, folder]);
    }
}

/// What a repository says of itself.
#[derive(Clone, Copy)]
pub struct Statement<'a> {
    /// gpg's home with the key that signs; empty: not signed.
    pub home: &'a str,
    /// As `date -d` takes it.
    pub valid_until: &'a str,
}

/// Makes the folder of packages a flat apt repository.
pub fn publish_debs(folder: &str, statement: Statement<'_>) {
    let mut index = String::new();
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    for path in names.iter().filter(|path| path.extension().is_some_and(|end| end == "deb")) {
        let text = path.to_str().unwrap();
        let digest = run(&["sha256sum", text]);
        let (digest, size) = (digest.split(' ').next().unwrap(), path.metadata().unwrap().len());
        let name = path.file_name().unwrap().to_str().unwrap();
        let control = run(&["dpkg-deb", "-f", text]);
        let _ = write!(index, "{control}Filename: ./{name}\nSize: {size}\nSHA256: {digest}\n\n");
    }
    write(&format!("{folder}/Packages"), &index);
    let digest = run(&["sha256sum", &format!("{folder}/Packages")]);
    let rfc = |when: &str| run(&["date", "-u", "-R", "-d", when]).replace("+0000", "UTC");
    let release = format!(
        "Origin: Test\nSuite: test\nCodename: test\nDate: {}Valid-Until: {}SHA256:\n {} {} Packages\n",
        rfc("now - 1 minute"),
        rfc(statement.valid_until),
        digest.split(' ').next().unwrap(),
        index.len()
    );
    write(&format!("{folder}/Release"), &release);
    let signed = format!("{folder}/InRelease");
    let _ = std::fs::remove_file(&signed);
    if !statement.home.is_empty() {
        let release = format!("{folder}/Release");
        run(&["gpg", "--homedir", statement.home, "--batch", "--yes", "--clearsign", "-o", &signed, &release]);
    }
}

/// A key that signs; returns the file of its public half, which apt's own user can read.
pub fn key(home: &str) -> String {
    run(&["mkdir", "-p", "-m", "700", home]);
    run(&["mkdir", "-p", "/srv"]);
    let gpg = ["gpg", "--homedir", home, "--batch"];
    run(&[&gpg[..], &["--passphrase", "", "--quick-gen-key", "test <test@localhost>", "rsa2048", "sign", "never"]]
        .concat());
    let public = "/srv/public.asc".to_owned();
    run(&[&gpg[..], &["--yes", "--armor", "-o", &public, "--export"]].concat());
    public
}

/// apt knows this repository and no other, and has not looked at it yet.
pub fn use_apt(folder: &str, options: &str) {
    run(&[
        "sh",
        "-c",
        "rm -rf /etc/apt/sources.list* /etc/apt/apt.conf.d/* /etc/apt/preferences.d/* /var/lib/apt/lists/*",
    ]);
    write("/etc/apt/sources.list", &format!("deb [{options}] file:{folder} ./\n"));
}
