//! What the package manager and the unpacked artifacts say.
//!
//! Never: installs or removes anything, or waits for the package manager's lock.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::command::Command;
use super::root::Root;
use crate::resource::artifact::ArtifactState;
use crate::resource::package::PackageState;
use crate::resource::{ArtifactSpec, PackageSpec};

const WITHIN: Duration = Duration::from_secs(30);

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
}
