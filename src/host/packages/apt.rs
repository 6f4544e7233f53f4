//! apt and dpkg: how they are asked, and what their answers mean.
//!
//! Never: a shell, a question to a person, a repository that is not signed or whose statement has expired (unless its own
//! entry in sources.list says `trusted=yes`, which apt lets nobody overrule).

use std::collections::BTreeMap;

use super::transaction::{Change, Effect};
use super::{Operation, Verb};
use crate::resource::PackageSpec;
use crate::resource::package::PackageState;
use crate::resource::version_order::VersionOrder;

pub const PROGRAM: &str = "/usr/bin/apt-get";
pub const QUERY: [&str; 4] = [
    "/usr/bin/dpkg-query",
    "-W",
    "-f",
    "${Package}\\t${Architecture}\\t${db:Status-Want}\\t${db:Status-Status}\\t${Version}\\n",
];
/// Of dpkg, of apt's lists and of its downloads (apt waits for none of the latter two).
pub const LOCKS: [&str; 4] =
    ["/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"];
/// What an interrupted dpkg left to be done. Configuration files that are there stay as they are: those that the fleet
/// manages come with the files of the same batch.
pub const RECOVER: [&str; 5] = ["/usr/bin/dpkg", "--force-confdef", "--force-confold", "--configure", "-a"];

const OPTIONS: [&str; 17] = [
    "DPkg::Lock::Timeout=60",
    "Dpkg::Use-Pty=0",
    "Dpkg::Options::=--force-confdef",
    "Dpkg::Options::=--force-confold",
    "Acquire::Retries=2",
    "Acquire::http::Timeout=30",
    "Acquire::https::Timeout=30",
    "Acquire::Check-Valid-Until=true",
    "Acquire::AllowInsecureRepositories=false",
    "Acquire::AllowWeakRepositories=false",
    "Acquire::AllowDowngradeToInsecureRepositories=false",
    "APT::Get::AllowUnauthenticated=false",
    "APT::Get::AutomaticRemove=false",
    "APT::Get::Purge=false",
    "APT::Install-Recommends=false",
    "APT::Update::Error-Mode=any",
    "APT::Color=false",
];

fn with_options<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let options = OPTIONS.iter().flat_map(|option| ["-o", option]);
    [PROGRAM, "-q", "-y"].into_iter().chain(options).chain(words).collect()
}

pub fn refresh() -> Vec<&'static str> {
    with_options(["update"])
}

pub fn simulate(operation: &Operation) -> Vec<&str> {
    with_options(["-s"].into_iter().chain(words(operation)))
}

/// What would remove something is not begun, also if the world changed since it was simulated.
pub fn act(operation: &Operation) -> Vec<&str> {
    let guard = (operation.verb == Verb::Install).then_some("--no-remove");
    with_options(guard.into_iter().chain(words(operation)))
}

fn words(operation: &Operation) -> Vec<&str> {
    let again = (!operation.half.is_empty()).then_some("--reinstall");
    let half = operation.half.iter().filter(|name| !operation.names.contains(*name));
    let options = ["--allow-downgrades", "--allow-change-held-packages", operation.verb()];
    let options = options.into_iter().chain(again).chain(["--"]);
    options.chain(operation.names.iter().chain(half).map(String::as_str)).collect()
}

pub fn mark<'a>(verb: &'static str, names: &[&'a str]) -> Vec<&'a str> {
    ["/usr/bin/apt-mark", verb, "--"].into_iter().chain(names.iter().copied()).collect()
}

/// `NAME` or `NAME=VERSION`.
pub fn word(spec: &PackageSpec) -> String {
    if spec.version.is_empty() { spec.name.clone() } else { format!("{}={}", spec.name, spec.version) }
}

/// Of the lines of [`QUERY`]: by name, and by name and architecture.
pub fn states(text: &str) -> BTreeMap<String, PackageState> {
    let mut states = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.split('\t');
        let mut next = || fields.next().unwrap_or_default();
        let (name, architecture, want, status, version) = (next(), next(), next(), next(), next());
        let state = match status {
            "installed" => PackageState::Installed { version: version.to_owned(), held: want == "hold" },
            "not-installed" | "config-files" => continue,
            "triggers-awaited" | "triggers-pending" | "half-installed" | "half-configured" | "unpacked" => {
                PackageState::Half(status.to_owned())
            }
            _ => continue,
        };
        states.insert(format!("{name}:{architecture}"), state.clone());
        // The machine's own architecture is listed first.
        states.entry(name.to_owned()).or_insert(state);
    }
    states
}

/// Names of the packages that are not wholly unpacked, of the lines of [`QUERY`].
pub fn half_unpacked(text: &str) -> Vec<String> {
    let half = states(text).into_iter().filter(|(_, state)| *state == PackageState::Half("half-installed".to_owned()));
    half.map(|(name, _)| name).filter(|name| !name.contains(':')).collect()
}

/// Of the lines `Inst NAME [OLD] (NEW …)` and `Remv NAME [OLD]` of a simulation.
pub fn changes(text: &str) -> Vec<Change> {
    text.lines().filter_map(change).collect()
}

fn change(line: &str) -> Option<Change> {
    let mut words = line.split_whitespace();
    let what = words.next()?;
    let name = words.next()?.to_owned();
    let mut words = words.peekable();
    let old = words.next_if(|word| word.starts_with('[')).map(|word| word.trim_matches(['[', ']']));
    match what {
        "Remv" | "Purg" => Some(Change { name, effect: Effect::Remove, version: old.unwrap_or_default().to_owned() }),
        "Inst" => {
            let new = words.find(|word| word.starts_with('('))?.trim_start_matches('(').to_owned();
            let effect = match old.map(|old| VersionOrder::Dpkg.compare(old, &new)) {
                None => Effect::Install,
                Some(std::cmp::Ordering::Less) => Effect::Upgrade,
                Some(std::cmp::Ordering::Equal) => Effect::Reinstall,
                Some(std::cmp::Ordering::Greater) => Effect::Downgrade,
            };
            Some(Change { name, effect, version: new })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_package_is_neither_there_nor_absent() {
        let text = "chrony\tamd64\tinstall\tinstalled\t4.3-2+deb12u1\nntp\tamd64\tdeinstall\tconfig-files\t1:4.2\n\
                    libc6\tamd64\thold\tinstalled\t2.36\nlibc6\ti386\tinstall\tunpacked\t2.35\n\
                    package foo is not installed\n";
        let states = states(text);
        let installed = |version: &str, held| PackageState::Installed { version: version.to_owned(), held };
        assert_eq!(states["chrony"], installed("4.3-2+deb12u1", false));
        assert_eq!(states["libc6"], installed("2.36", true));
        assert_eq!(states["libc6:i386"], PackageState::Half("unpacked".to_owned()));
        assert!(!states.contains_key("ntp") && !states.contains_key("package foo is not installed"));
    }

    #[test]
    fn a_simulation_says_what_happens_to_whom() {
        let text = "Reading package lists...\nRemv etcd [3.4.23-4]\nInst app [2.0-1] (1.0-1 Fleet:1/stable [amd64]) []\n\
                    Inst libc6:i386 (2.36 Debian:12/stable [i386])\nConf app (1.0-1 Fleet:1/stable [amd64])\n";
        let change =
            |name: &str, effect, version: &str| Change { name: name.to_owned(), effect, version: version.to_owned() };
        let expected = [
            change("etcd", Effect::Remove, "3.4.23-4"),
            change("app", Effect::Downgrade, "1.0-1"),
            change("libc6:i386", Effect::Install, "2.36"),
        ];
        assert_eq!(changes(text), expected);
    }
}
