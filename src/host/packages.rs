//! Packages of the system's own package manager, and what the unpacked artifacts say.
//!
//! A package is installed without starting anything: units are started by their own steps, under the hold where one is
//! needed. Never: removes or downgrades a package, restarts a service, waits for the package manager without end.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::HostError;
use super::command::{Command, Output, argv};
use super::root::{Directory, Root, file};
use crate::resource::artifact::ArtifactState;
use crate::resource::package::PackageState;
use crate::resource::{ArtifactSpec, PackageSpec};

const WITHIN: Duration = Duration::from_secs(30);
/// A package manager that is killed leaves work to be finished: this is for one that hangs.
const INSTALL_WITHIN: Duration = Duration::from_secs(1800);
const APT: &str = "/usr/bin/apt-get";

/// One question for all of them.
pub fn observe(specs: &[&PackageSpec]) -> BTreeMap<String, PackageState> {
    if specs.is_empty() {
        return BTreeMap::new();
    }
    let (program, arguments): (&str, &[&str]) = if Path::new("/usr/bin/dpkg-query").exists() {
        ("/usr/bin/dpkg-query", &["-W", "-f", "${Package}\t${db:Status-Status}\t${Version}\n", "--"])
    } else {
        ("/usr/bin/rpm", &["-q", "--qf", "%{NAME}\tinstalled\t%{EVR}\n", "--"])
    };
    let words =
        [program].into_iter().chain(arguments.iter().copied()).chain(specs.iter().map(|spec| spec.name.as_str()));
    let argv: Vec<String> = words.map(str::to_owned).collect();
    // Both exit with 1 when one of the packages is not there; the lines of the others are good all the same.
    let state: Box<dyn Fn(&str) -> PackageState> = match (Command { argv: &argv, user: "", within: WITHIN }.run()) {
        Ok(output) if output.exit <= 1 => {
            let installed = installed(&String::from_utf8_lossy(&output.stdout));
            Box::new(move |name| match installed.get(name) {
                Some(version) => PackageState::Installed { version: version.clone() },
                None => PackageState::Absent,
            })
        }
        Ok(output) => Box::new(move |_| PackageState::Unknown(format!("exit {}: {}", output.exit, output.tail()))),
        Err(error) => Box::new(move |_| PackageState::Unknown(error.to_string())),
    };
    specs.iter().map(|spec| (spec.name.clone(), state(&spec.name))).collect()
}

/// Version by name, of the lines `name <tab> installed <tab> version`.
fn installed(text: &str) -> BTreeMap<String, String> {
    let fields = |line: &str| {
        let mut fields = line.split('\t');
        match (fields.next(), fields.next(), fields.next()) {
            (Some(name), Some("installed"), Some(version)) => Some((name.to_owned(), version.to_owned())),
            _ => None,
        }
    };
    text.lines().filter_map(fields).collect()
}

/// As the spec says it, its dependencies too. Configuration files that are there stay as they are: those that the fleet
/// manages come with the files of the same batch.
pub fn install(root: &Root, spec: &PackageSpec) -> Result<(), HostError> {
    let Some(change) = missing(spec) else { return Ok(()) };
    if !Path::new(APT).exists() {
        return Err(HostError::Unsupported {
            what: format!("package {}: {change}", spec.name),
            hint: "install it with the system's package manager (here only apt is driven)",
        });
    }
    let wanted = apt_word(spec)?;
    let _no_starts = NoStarts::begin(root)?;
    let install = ["install", "--no-install-recommends", "--", &wanted];
    if apt(&install)?.exit != 0 {
        // What a crash left half done keeps apt from everything; lists that are old or missing, from this package.
        let _ = dpkg_configure()?;
        let _ = apt(&["update"])?;
        let again = apt(&install)?;
        if again.exit != 0 {
            return Err(failed(spec, format!("apt-get exit {}: {}", again.exit, again.tail())));
        }
    }
    missing(spec).map_or(Ok(()), |still| Err(failed(spec, format!("apt-get said that it went well, but: {still}"))))
}

fn failed(spec: &PackageSpec, why: String) -> HostError {
    HostError::Package { name: spec.name.clone(), why }
}

fn missing(spec: &PackageSpec) -> Option<String> {
    observe(&[spec]).get(&spec.name).and_then(|state| spec.diff(state))
}

/// `NAME` or `NAME=VERSION`, of characters that mean nothing else to apt (deb-control(5), deb-version(7)).
fn apt_word(spec: &PackageSpec) -> Result<String, HostError> {
    let (name, version) = (&spec.name, &spec.version);
    let plain = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    // apt takes `name-` for a wish to remove it.
    if !plain(name, "+-.:") || name.ends_with('-') || !(version.is_empty() || plain(version, "+-.:~")) {
        return Err(failed(spec, format!("\"{name}\" \"{version}\" is no name and version for apt")));
    }
    Ok(if version.is_empty() { name.clone() } else { format!("{name}={version}") })
}

fn apt(arguments: &[&str]) -> Result<Output, HostError> {
    let options = [
        APT,
        "-qq",
        "-y",
        "-o",
        "DPkg::Lock::Timeout=60",
        "-o",
        "Acquire::http::Timeout=30",
        "-o",
        "Dpkg::Options::=--force-confdef",
        "-o",
        "Dpkg::Options::=--force-confold",
    ];
    quietly(options.into_iter().chain(arguments.iter().copied()))
}

fn dpkg_configure() -> Result<Output, HostError> {
    quietly(["/usr/bin/dpkg", "--force-confdef", "--force-confold", "--configure", "-a"])
}

/// Nobody is asked anything, and needrestart, which would restart services of others, stays out of it.
fn quietly<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Output, HostError> {
    let mut argv = argv(["/usr/bin/env", "DEBIAN_FRONTEND=noninteractive", "APT_LISTCHANGES_FRONTEND=none"]);
    argv.extend(["NEEDRESTART_SUSPEND=1"].into_iter().chain(words).map(str::to_owned));
    Command { argv: &argv, user: "", within: INSTALL_WITHIN }.run()
}

const SBIN: &str = "/usr/sbin";
const POLICY: &str = "policy-rc.d";
const BEFORE: &str = "policy-rc.d.before-converger";
const FRESH: &str = ".policy-rc.d.converger";
const FORBID: &[u8] =
    b"#!/bin/sh\n# Made by converger while it installs a package: nothing is started or restarted by that.\nexit 101\n";

/// While it lives, packages start, stop and restart nothing (Debian's `policy-rc.d`, see invoke-rc.d(8)). An
/// administrator's own policy is put aside and comes back.
struct NoStarts<'a>(&'a Root);

impl<'a> NoStarts<'a> {
    fn begin(root: &'a Root) -> Result<Self, HostError> {
        clean(root)?;
        let (sbin, _) = root.make_directory(SBIN)?;
        let failed = file("write", POLICY);
        match rustix::fs::renameat(&sbin.fd, POLICY, &sbin.fd, BEFORE) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        let guard = Self(root);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fresh = rustix::fs::openat(&sbin.fd, FRESH, flags, Mode::from_raw_mode(0o700)).map_err(&failed)?;
        rustix::fs::fchmod(&fresh, Mode::from_raw_mode(0o755)).map_err(&failed)?;
        let mut out = std::fs::File::from(fresh);
        // Durable before it has its name: an empty one, after a power cut, would forbid nothing and be nobody's.
        std::io::Write::write_all(&mut out, FORBID)
            .and_then(|()| out.sync_all())
            .map_err(|source| HostError::File { operation: "write", path: POLICY.to_owned(), source })?;
        rustix::fs::renameat(&sbin.fd, FRESH, &sbin.fd, POLICY).map_err(&failed)?;
        Ok(guard)
    }
}

impl Drop for NoStarts<'_> {
    fn drop(&mut self) {
        if let Err(error) = clean(self.0) {
            tracing::error!(%error, "{SBIN}/{POLICY} is still converger's");
        }
    }
}

/// Takes back what a crash left: the administrator's policy returns, ours goes.
pub fn clean(root: &Root) -> Result<(), HostError> {
    let Some(sbin) = root.directory(SBIN)? else { return Ok(()) };
    let failed = file("restore", POLICY);
    match rustix::fs::renameat(&sbin.fd, BEFORE, &sbin.fd, POLICY) {
        Ok(()) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(failed(error)),
    }
    if is_ours(&sbin) {
        rustix::fs::unlinkat(&sbin.fd, POLICY, AtFlags::empty()).map_err(failed)?;
    }
    Ok(())
}

fn is_ours(sbin: &Directory) -> bool {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(&sbin.fd, POLICY, flags, Mode::empty()) else { return false };
    let mut text = Vec::new();
    let mut read = std::io::Read::take(std::fs::File::from(fd), FORBID.len() as u64 + 1);
    std::io::Read::read_to_end(&mut read, &mut text).is_ok() && text == FORBID
}

/// Where `into/current` points.
pub fn artifact(root: &Root, spec: &ArtifactSpec) -> ArtifactState {
    let version = || {
        let into = root.directory(spec.into.as_str()).ok()??;
        let target = rustix::fs::readlinkat(&into.fd, "current", Vec::new()).ok()?;
        Some(Path::new(target.to_str().ok()?).file_name()?.to_str()?.to_owned())
    };
    version().map_or(ArtifactState::Absent, |version| ArtifactState::Current { version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_package_with_its_configuration_left_is_not_installed() {
        let text = "chrony\tinstalled\t4.3-2+deb12u1\nntp\tconfig-files\t1:4.2\npackage foo is not installed\n";
        let expected = BTreeMap::from([("chrony".to_owned(), "4.3-2+deb12u1".to_owned())]);
        assert_eq!(installed(text), expected);
    }
    #[test]
    fn no_name_becomes_an_option_or_a_removal() {
        let word = |name: &str, version: &str| {
            apt_word(&PackageSpec { name: name.to_owned(), version: version.to_owned(), hold: false })
        };
        assert_eq!(word("g++", "").unwrap(), "g++");
        assert_eq!(word("libc6:amd64", "2:2.36-9~deb12u1").unwrap(), "libc6:amd64=2:2.36-9~deb12u1");
        for (name, version) in
            [("-o", ""), ("chrony-", ""), ("a b", ""), ("/tmp/x.deb", ""), ("", ""), ("a", "1 2"), ("a", "-")]
        {
            assert!(word(name, version).is_err(), "{name} {version}");
        }
    }

    #[test]
    fn an_administrators_policy_comes_back_also_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let read = |name: &str| std::fs::read(dir.path().join("usr/sbin").join(name)).ok();
        let guard = NoStarts::begin(&root).unwrap();
        assert_eq!(read(POLICY).as_deref(), Some(FORBID));
        drop(guard);
        assert_eq!(read(POLICY), None);

        let own: &[u8] = b"#!/bin/sh\nexit 0\n";
        crate::disk::write_atomic(&dir.path().join("usr/sbin").join(POLICY), own, 0o755).unwrap();
        std::mem::forget(NoStarts::begin(&root).unwrap());
        assert_eq!(read(POLICY).as_deref(), Some(FORBID));
        assert_eq!(read(BEFORE).as_deref(), Some(own));
        clean(&root).unwrap();
        assert_eq!((read(POLICY).as_deref(), read(BEFORE)), (Some(own), None));
        clean(&root).unwrap();
        assert_eq!(read(POLICY).as_deref(), Some(own), "what is not ours stays");
    }
}
