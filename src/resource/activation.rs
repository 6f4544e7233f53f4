//! Files that one of systemd's tools, or nft, must act on before they mean anything.
//!
//! PURE. Never: runs the tool.

use crate::name::HostPath;

/// By which tool a file is activated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Activation {
    Sysusers,
    Tmpfiles,
    Modules,
    Sysctl,
    Nftables,
}

/// The rules that `nftables.service` loads: Debian and Ubuntu, then the RHEL family.
const RULES: [&str; 2] = ["/etc/nftables.conf", "/etc/sysconfig/nftables.conf"];

impl Activation {
    /// The tool that a file at this path is for; `None`: nobody's.
    pub fn of(path: &HostPath) -> Option<Self> {
        if RULES.contains(&path.as_str()) {
            return Some(Self::Nftables);
        }
        let (directory, name) = path.as_str().rsplit_once('/')?;
        if !name.ends_with(".conf") {
            return None;
        }
        // Where the tools look (sysusers.d(5), tmpfiles.d(5), …): below /etc, /run and /usr/lib.
        match directory.rsplit_once('/')? {
            ("/etc" | "/run" | "/usr/lib" | "/usr/local/lib", "sysusers.d") => Some(Self::Sysusers),
            ("/etc" | "/run" | "/usr/lib" | "/usr/local/lib", "tmpfiles.d") => Some(Self::Tmpfiles),
            ("/etc" | "/run" | "/usr/lib" | "/usr/local/lib", "modules-load.d") => Some(Self::Modules),
            ("/etc" | "/run" | "/usr/lib" | "/usr/local/lib", "sysctl.d") => Some(Self::Sysctl),
            _ => None,
        }
    }

    /// The name of the tool, for people.
    pub fn tool(self) -> &'static str {
        match self {
            Self::Sysusers => "systemd-sysusers",
            Self::Tmpfiles => "systemd-tmpfiles",
            Self::Modules => "systemd-modules-load",
            Self::Sysctl => "systemd-sysctl",
            Self::Nftables => "nft",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_owners_by_where_it_lies() {
        let of = |path: &str| Activation::of(&HostPath::from(path));
        assert_eq!(of("/etc/sysusers.d/app.conf"), Some(Activation::Sysusers));
        assert_eq!(of("/usr/lib/tmpfiles.d/app.conf"), Some(Activation::Tmpfiles));
        assert_eq!(of("/run/modules-load.d/app.conf"), Some(Activation::Modules));
        assert_eq!(of("/etc/sysctl.d/60-app.conf"), Some(Activation::Sysctl));
        assert_eq!(of("/etc/nftables.conf"), Some(Activation::Nftables));
        assert_eq!(of("/etc/sysconfig/nftables.conf"), Some(Activation::Nftables));
        for nobodys in ["/etc/sysctl.d/README", "/srv/sysctl.d/x.conf", "/etc/sysctl.d/sub/x.conf", "/etc/app.conf"] {
            assert_eq!(of(nobodys), None, "{nobodys}");
        }
    }
}
