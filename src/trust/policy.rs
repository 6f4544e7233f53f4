//! Who may change what: the `trust/` folder of one commit, read and sound, or not at all.
//!
//! PURE. Never: an empty or unreadable rule that means "allowed".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use super::signers::Signers;
use crate::fleet::schema::{PolicyFile, Principal, PrincipalRole, TrustPolicy};
use crate::name::RepoPath;

/// The files of one commit that decide about its children. `None`: missing, not a regular file, or too large.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TrustFiles {
    /// `trust/allowed_signers`
    pub allowed_signers: Option<Arc<[u8]>>,
    /// `trust/policy.toml`
    pub policy: Option<Arc<[u8]>>,
    /// `fleet.toml`
    pub fleet: Option<Arc<[u8]>>,
}

/// Largest of the files above; more is as good as missing.
pub const TRUST_FILE_MAX: u64 = 1 << 20;

/// What `trust/` of one commit says.
#[derive(Clone, Debug)]
pub struct Authority {
    signers: Signers,
    policy: PolicyFile,
    banned: BTreeSet<String>,
}

/// Which signature a change needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Denied {
    /// This path changes only with role root.
    RootRequired(RepoPath),
    /// Not covered by the principal's paths, or by no role of it (`None`).
    Scope(Option<RepoPath>),
}

impl Authority {
    /// The error says what is unsound, without a full stop.
    pub fn parse(files: &TrustFiles) -> Result<Self, String> {
        let text = |file: &Option<Arc<[u8]>>, path: &str| match file {
            Some(bytes) => String::from_utf8(bytes.to_vec()).map_err(|_| format!("{path} is not UTF-8")),
            None => Err(format!("{path} is missing, not a regular file, or larger than {TRUST_FILE_MAX} bytes")),
        };
        let signers = Signers::parse(&text(&files.allowed_signers, "trust/allowed_signers")?).map_err(|problems| {
            let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
            format!("trust/allowed_signers, {}", said.join("; "))
        })?;
        let policy: PolicyFile = toml::from_str(&text(&files.policy, "trust/policy.toml")?)
            .map_err(|error| format!("trust/policy.toml: {}", error.message().replace('\n', " ")))?;
        for (name, principal) in &policy.principals {
            if let Some(glob) = principal.paths.iter().find(|glob| !is_glob(glob)) {
                return Err(format!("trust/policy.toml: \"{glob}\" of {name} is no path pattern"));
            }
        }
        if let Some(key) = policy.banned.keys.iter().find(|key| key.parse::<ssh_key::Fingerprint>().is_err()) {
            return Err(format!("trust/policy.toml: banned key \"{key}\" is no fingerprint (SHA256:…)"));
        }
        let banned = policy.banned.keys.iter().cloned().collect();
        let authority = Self { signers, policy, banned };
        if authority.principals_with(PrincipalRole::Root).is_empty() {
            return Err("no key that is not banned belongs to a principal with role root".to_owned());
        }
        Ok(authority)
    }

    pub fn principal(&self, fingerprint: &str) -> Option<&str> {
        self.signers.principal(fingerprint)
    }

    pub fn bans(&self, fingerprint: &str) -> bool {
        self.banned.contains(fingerprint)
    }

    /// A banned key that `next` takes off the list or lists anew: bans only grow.
    pub fn forgiven_by<'a>(&'a self, next: &'a Self) -> Option<&'a str> {
        let unbanned = self.banned.iter().find(|key| !next.bans(key)).map(String::as_str);
        let relisted = || {
            let new = next.signers.iter().map(|(key, _)| key).filter(|key| self.principal(key).is_none());
            new.into_iter().find(|key| next.bans(key))
        };
        unbanned.or_else(relisted)
    }

    /// Whether this principal may make this change by its signature.
    pub fn permits(&self, principal: &str, changed: &[RepoPath]) -> Result<(), Denied> {
        let known = self.policy.principals.get(principal);
        let has = |role| known.is_some_and(|principal| principal.roles.contains(&role));
        let (root, deploy) = (has(PrincipalRole::Root), has(PrincipalRole::Deploy));
        if !root && let Some(path) = changed.iter().find(|path| needs_root(path)) {
            return Err(Denied::RootRequired(path.clone()));
        }
        if !root && !deploy {
            return Err(Denied::Scope(None));
        }
        let globs = known.map(|principal| principal.paths.as_slice()).unwrap_or_default();
        let covered = |path: &&RepoPath| deploy && globs.iter().any(|glob| matches(glob, path.as_str()));
        match changed.iter().filter(|path| !needs_root(path)).find(|path| !covered(path)) {
            Some(path) => Err(Denied::Scope(Some(path.clone()))),
            None => Ok(()),
        }
    }

    /// What it says of every principal.
    pub fn principals(&self) -> &BTreeMap<String, Principal> {
        &self.policy.principals
    }

    /// Every key that may sign something, banned ones included.
    pub fn signers(&self) -> &Signers {
        &self.signers
    }

    /// Fingerprints of keys that never sign validly again.
    pub fn banned(&self) -> &BTreeSet<String> {
        &self.banned
    }

    /// Principals that can sign with this role, sorted.
    pub fn principals_with(&self, role: PrincipalRole) -> Vec<&str> {
        let usable = self.signers.iter().filter(|(key, _)| !self.bans(key)).map(|(_, principal)| principal);
        let names: BTreeSet<&str> = usable
            .filter(|name| self.policy.principals.get(*name).is_some_and(|known| known.roles.contains(&role)))
            .collect();
        names.into_iter().collect()
    }

    /// Principals that can sign a change of this path.
    pub fn principals_for(&self, path: Option<&RepoPath>) -> Vec<&str> {
        match path {
            Some(path) if needs_root(path) => self.principals_with(PrincipalRole::Root),
            Some(path) => {
                let mut names = self.principals_with(PrincipalRole::Deploy);
                names.retain(|name| self.permits(name, std::slice::from_ref(path)).is_ok());
                names
            }
            None => {
                let mut names = self.principals_with(PrincipalRole::Deploy);
                names.extend(self.principals_with(PrincipalRole::Root));
                names.sort_unstable();
                names.dedup();
                names
            }
        }
    }
}

/// Whose change decides who decides.
pub fn needs_root(path: &RepoPath) -> bool {
    let path = path.as_str();
    path == "fleet.toml" || path == "trust" || path.starts_with("trust/")
}

/// Name and trust policy that `fleet.toml` states; the rest of it is for `fleet` to judge.
pub fn fleet_of(files: &TrustFiles) -> Option<(String, TrustPolicy)> {
    #[derive(Deserialize)]
    struct Identity {
        name: String,
        #[serde(default)]
        trust: TrustPolicy,
    }
    let text = str::from_utf8(files.fleet.as_deref()?).ok()?;
    toml::from_str::<Identity>(text).ok().map(|identity| (identity.name, identity.trust))
}

/// Whether it can be one of a principal's `paths`.
pub fn is_glob(glob: &str) -> bool {
    !glob.is_empty() && glob.split('/').all(|part| !part.is_empty() && (part == "**" || !part.contains("**")))
}

/// `*` and `?` inside one folder's or file's name, `**` for any number of folders.
pub fn matches(glob: &str, path: &str) -> bool {
    let globs: Vec<&str> = glob.split('/').collect();
    let parts: Vec<&str> = path.split('/').collect();
    wild(
        &globs,
        &parts,
        |glob| *glob == "**",
        |glob, part| {
            let glob: Vec<char> = glob.chars().collect();
            let part: Vec<char> = part.chars().collect();
            wild(&glob, &part, |c| *c == '*', |glob, c| *glob == '?' || glob == c)
        },
    )
}

/// Wildcard matching in which only the last star is ever gone back to: at most pattern times text steps.
fn wild<P, T>(pattern: &[P], text: &[T], star: impl Fn(&P) -> bool, fits: impl Fn(&P, &T) -> bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && star(&pattern[p]) {
            back = Some((p, t));
            p += 1;
        } else if p < pattern.len() && fits(&pattern[p], &text[t]) {
            p += 1;
            t += 1;
        } else if let Some((starred, at)) = back {
            back = Some((starred, at + 1));
            p = starred + 1;
            t = at + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(star)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_mean_folders_and_names() {
        for (glob, path, expected) in [
            ("**", "roles/kafka/role.toml", true),
            ("roles/**", "roles/kafka/role.toml", true),
            ("roles/**", "rolesx/kafka", false),
            ("roles/*", "roles/kafka/role.toml", false),
            ("roles/*/role.toml", "roles/kafka/role.toml", true),
            ("environments/*/secrets/**", "environments/dr/secrets/a.age", true),
            ("**/secrets/*.age", "environments/dr/secrets/a.age", true),
            ("**/secrets/*.age", "environments/dr/secrets/x/a.age", false),
            ("roles/k?fka/**", "roles/kafka/a/b/c", true),
            ("roles/kafka", "roles/kafka/role.toml", false),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
        ] {
            assert_eq!(matches(glob, path), expected, "{glob} {path}");
        }
    }

    #[test]
    fn a_glob_of_many_stars_is_quick() {
        let path = "a".repeat(4000);
        assert!(!matches(&format!("{}b", "*a".repeat(200)), &path));
        assert!(!matches(&format!("{}/b", vec!["**"; 200].join("/")), &"a/".repeat(2000)));
    }

    #[test]
    fn patterns_that_mean_nothing_are_refused() {
        for glob in ["", "/roles/**", "roles//x", "roles/", "roles**"] {
            assert!(!is_glob(glob), "{glob}");
        }
    }
}
