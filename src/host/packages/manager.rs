//! Which package manager this machine has, and the one interface to it.
//!
//! Never: a decision about a package; that is the repository's, and `transaction`'s.

use std::collections::BTreeMap;
use std::path::Path;

use super::transaction::Change;
use super::{Operation, apt, dnf};
use crate::resource::PackageSpec;
use crate::resource::package::PackageState;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manager {
    Apt,
    Dnf,
}

impl Manager {
    /// By what os-release(5) says of the machine; where that says nothing, by what is installed.
    pub fn of_this_machine() -> Self {
        let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        Self::of(&text).unwrap_or(if Path::new(dnf::PROGRAM).exists() { Self::Dnf } else { Self::Apt })
    }

    fn of(os_release: &str) -> Option<Self> {
        let mut values = os_release.lines().filter_map(|line| line.split_once('='));
        let mut families = values
            .by_ref()
            .filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"))
            .flat_map(|(_, value)| value.trim_matches(['"', '\'']).split(' '));
        families.find_map(|family| match family {
            "debian" | "ubuntu" => Some(Self::Apt),
            "rhel" | "fedora" | "centos" | "rocky" | "almalinux" => Some(Self::Dnf),
            _ => None,
        })
    }

    pub fn program(self) -> &'static str {
        match self {
            Self::Apt => apt::PROGRAM,
            Self::Dnf => dnf::PROGRAM,
        }
    }

    pub fn query(self) -> [&'static str; 4] {
        match self {
            Self::Apt => apt::QUERY,
            Self::Dnf => dnf::QUERY,
        }
    }

    pub fn states(self, text: &str) -> BTreeMap<String, PackageState> {
        match self {
            Self::Apt => apt::states(text),
            Self::Dnf => dnf::states(text, &std::fs::read_to_string(dnf::HOLDS).unwrap_or_default()),
        }
    }

    pub fn locks(self) -> &'static [&'static str] {
        match self {
            Self::Apt => &apt::LOCKS,
            Self::Dnf => &dnf::LOCKS,
        }
    }

    /// The name and version as the manager takes them. Errors: something in them means something else to it.
    pub fn word(self, spec: &PackageSpec) -> Result<String, String> {
        is_plain(&spec.name, &spec.version)?;
        Ok(match self {
            Self::Apt => apt::word(spec),
            Self::Dnf => dnf::word(spec),
        })
    }

    pub fn refresh(self) -> Vec<&'static str> {
        match self {
            Self::Apt => apt::refresh(),
            Self::Dnf => dnf::refresh(),
        }
    }

    pub fn simulate(self, operation: &Operation) -> Vec<&str> {
        match self {
            Self::Apt => apt::simulate(operation),
            Self::Dnf => dnf::simulate(operation),
        }
    }

    /// What a simulation says. Errors: it cannot be read, or it says that it cannot be done.
    pub fn changes(self, exit: i32, text: &str) -> Result<Vec<Change>, String> {
        match self {
            Self::Apt if exit == 0 => Ok(apt::changes(text)),
            // dnf ends with 1 when it is told no.
            Self::Dnf if exit == 0 || text.contains("Operation aborted.") => {
                dnf::changes(text).map_err(|heading| format!("dnf plans something that is not known here: {heading}"))
            }
            Self::Apt | Self::Dnf => Err(format!("exit {exit}: {}", super::told(text))),
        }
    }

    pub fn act(self, operation: &Operation) -> Vec<&str> {
        match self {
            Self::Apt => apt::act(operation),
            Self::Dnf => dnf::act(operation),
        }
    }

    pub fn hold<'a>(self, names: &[&'a str]) -> Vec<&'a str> {
        match self {
            Self::Apt => apt::mark("hold", names),
            Self::Dnf => dnf::mark("add", names),
        }
    }

    pub fn release<'a>(self, names: &[&'a str]) -> Vec<&'a str> {
        match self {
            Self::Apt => apt::mark("unhold", names),
            Self::Dnf => dnf::mark("delete", names),
        }
    }

    /// Somebody else has it, by its own words.
    pub fn is_busy(self, exit: i32, text: &str) -> bool {
        match self {
            Self::Apt => {
                exit != 0 && (text.contains("Could not get lock") || text.contains("locked by another process"))
            }
            Self::Dnf => exit == dnf::EXIT_LOCKED,
        }
    }
}

/// Of characters that mean nothing else to apt or dnf (deb-control(5), deb-version(7), rpm-version(7)): no option, file,
/// group, pattern or removal.
fn is_plain(name: &str, version: &str) -> Result<(), String> {
    let plain = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    // apt takes `name-` for a wish to remove it, and `name+` for one to install it where no package has that name.
    if !plain(name, "+-._:") || name.ends_with('-') || !(version.is_empty() || plain(version, "+-._:~^")) {
        return Err(format!("\"{name}\" \"{version}\" is no name and version of a package"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_becomes_an_option_or_a_removal() {
        let word = |name: &str, version: &str| {
            Manager::Apt.word(&PackageSpec { name: name.to_owned(), version: version.to_owned(), hold: false })
        };
        assert_eq!(word("g++", "").unwrap(), "g++");
        assert_eq!(word("libc6:amd64", "2:2.36-9~deb12u1").unwrap(), "libc6:amd64=2:2.36-9~deb12u1");
        for (name, version) in [
            ("-o", ""),
            ("chrony-", ""),
            ("a b", ""),
            ("/tmp/x.deb", ""),
            ("@core", ""),
            ("kern*", ""),
            ("", ""),
            ("a", "1 2"),
            ("a", "-"),
        ] {
            assert!(word(name, version).is_err(), "{name} {version}");
        }
    }

    #[test]
    fn the_family_decides_also_where_both_are_installed() {
        assert_eq!(Manager::of("NAME=\"Debian\"\nID=debian\n"), Some(Manager::Apt));
        assert_eq!(Manager::of("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), Some(Manager::Apt));
        assert_eq!(Manager::of("ID=\"ol\"\nID_LIKE=\"fedora\"\n"), Some(Manager::Dnf));
        assert_eq!(Manager::of("ID=nixos\n"), None);
    }
}
