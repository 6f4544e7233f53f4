//! dnf and rpm: how they are asked, and what their answers mean.
//!
//! A hold is a line of the plugin `versionlock`. Never: a shell, a question to a person, a package that is not signed
//! (unless its repository's own file says `gpgcheck=0`).

use std::collections::BTreeMap;

use super::Operation;
use super::transaction::{Change, Effect};
use crate::resource::PackageSpec;
use crate::resource::package::PackageState;
use crate::resource::version_order::VersionOrder;

pub const PROGRAM: &str = "/usr/bin/dnf";
pub const QUERY: [&str; 4] = ["/usr/bin/rpm", "-q", "--qf", "%{NAME}\\t%{ARCH}\\t%{EVR}\\n"];
/// Of rpm's transactions; dnf's own are files with a process in them, and it says by its exit code that it met one.
pub const LOCKS: [&str; 2] = ["/var/lib/rpm/.rpm.lock", "/usr/lib/sysimage/rpm/.rpm.lock"];
/// "Another process has the lock" (dnf(8), Exit codes).
pub const EXIT_LOCKED: i32 = 200;
/// Where the plugin that holds packages has its settings, where it is installed; and the holds.
pub const LOCK_PLUGIN: &str = "/etc/dnf/plugins/versionlock.conf";
pub const HOLDS: &str = "/etc/dnf/plugins/versionlock.list";

const OPTIONS: [&str; 10] = [
    "--color=never",
    "--setopt=exit_on_lock=1",
    "--setopt=gpgcheck=1",
    "--setopt=best=1",
    "--setopt=strict=1",
    "--setopt=install_weak_deps=0",
    "--setopt=clean_requirements_on_remove=0",
    "--setopt=timeout=30",
    "--setopt=retries=2",
    "--setopt=minrate=1000",
];

fn with_options<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    [PROGRAM].into_iter().chain(OPTIONS).chain(words).collect()
}

pub fn refresh() -> Vec<&'static str> {
    with_options(["-y", "-q", "--refresh", "makecache"])
}

pub fn simulate(operation: &Operation) -> Vec<&str> {
    with_options(["--assumeno"].into_iter().chain(words(operation)))
}

pub fn act(operation: &Operation) -> Vec<&str> {
    with_options(["-y"].into_iter().chain(words(operation)))
}

/// `install` also goes to an older version (dnf(8)); `-n` forms keep a name from being taken for a group or a file.
fn words(operation: &Operation) -> Vec<&str> {
    [operation.verb(), "--"].into_iter().chain(operation.names.iter().map(String::as_str)).collect()
}

/// From what is known already: nothing is fetched for a hold.
pub fn mark<'a>(verb: &'static str, names: &[&'a str]) -> Vec<&'a str> {
    [PROGRAM, "-q", "-y", "-C", "versionlock", verb, "--"].into_iter().chain(names.iter().copied()).collect()
}

/// Takes back one of two versions that an interrupted upgrade left side by side: its scriptlets run as they would have.
pub fn erase(package: &str) -> Vec<&str> {
    vec!["/usr/bin/rpm", "-e", "--nodeps", "--", package]
}

/// `NAME` or `NAME-VERSION-RELEASE`.
pub fn word(spec: &PackageSpec) -> String {
    if spec.version.is_empty() { spec.name.clone() } else { format!("{}-{}", spec.name, spec.version) }
}

/// Of the lines of [`QUERY`]; `holds` is the text of the plugin's list.
pub fn states(text: &str, holds: &str) -> BTreeMap<String, PackageState> {
    let held: Vec<&str> = holds.lines().filter_map(held_name).collect();
    let state = |(name, versions): (&str, Vec<&str>)| {
        let state = match versions.as_slice() {
            [version] => PackageState::Installed { version: (*version).to_owned(), held: held.contains(&name) },
            more => PackageState::Half(format!("installed as {}", more.join(" and "))),
        };
        (name.to_owned(), state)
    };
    versions(text).into_iter().map(state).collect()
}

/// From the oldest to the newest. Kernels are installed side by side on purpose: of those the newest counts.
fn versions(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text.lines() {
        // "package x is not installed" has no tabs.
        let mut fields = line.split('\t');
        let (Some(name), Some(_), Some(version)) = (fields.next(), fields.next(), fields.next()) else { continue };
        versions.entry(name).or_default().push(version);
    }
    for (name, list) in &mut versions {
        list.sort_by(|a, b| VersionOrder::Rpm.compare(a, b));
        list.dedup();
        if name.starts_with("kernel") {
            list.drain(..list.len() - 1);
        }
    }
    versions
}

/// What an interrupted upgrade or downgrade of these left beside what was to take its place: `NAME-EVR`.
pub fn leftovers(text: &str, wanted: &[&PackageSpec]) -> Vec<String> {
    let of = |(name, list): (&str, Vec<&str>)| {
        let spec = wanted.iter().find(|spec| spec.name == name);
        let keep = list.iter().rposition(|version| spec.is_some_and(|spec| spec.takes(version)));
        let keep = keep.unwrap_or(list.len() - 1);
        let others = list.iter().enumerate().filter(move |(at, _)| *at != keep);
        others.map(|(_, version)| format!("{name}-{version}")).collect::<Vec<_>>()
    };
    versions(text).into_iter().flat_map(of).collect()
}

/// `NAME-EPOCH:VERSION-RELEASE.ARCH`; `!` excludes a version and holds nothing.
fn held_name(line: &str) -> Option<&str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with(['#', '!']) {
        return None;
    }
    let mut parts = line.rsplitn(3, '-');
    let (_, _, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some(name)
}

/// Of the table that dnf shows before it asks. Errors: a heading that we do not know the meaning of.
pub fn changes(text: &str) -> Result<Vec<Change>, String> {
    let mut changes = Vec::new();
    let mut effect = None;
    let table = text.lines().skip_while(|line| *line != "Dependencies resolved.");
    for line in table.take_while(|line| *line != "Transaction Summary") {
        if let Some(heading) = line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            effect = Some(match heading.split(' ').next() {
                Some("Installing") => Some(Effect::Install),
                Some("Upgrading") => Some(Effect::Upgrade),
                Some("Downgrading") => Some(Effect::Downgrade),
                Some("Reinstalling") => Some(Effect::Reinstall),
                Some("Removing") => Some(Effect::Remove),
                // Not touched; `best` and `strict` let none of ours be among them.
                Some("Skipping") => None,
                _ => return Err(format!("\"{heading}\"")),
            });
            continue;
        }
        let mut words = line.split_whitespace();
        let (indent, first) = (line.len() - line.trim_start().len(), words.next());
        match (effect, first) {
            (Some(Some(effect)), Some(name)) if indent == 1 => {
                let version = words.nth(1).unwrap_or_default().to_owned();
                changes.push(Change { name: name.to_owned(), effect, version });
            }
            // `replacing  NAME.ARCH EVR`, below what obsoletes it. Other such lines are the rest of a long one.
            (Some(Some(_)), Some("replacing")) => {
                let name = words.next().unwrap_or_default();
                let name = name.rsplit_once('.').map_or(name, |(name, _)| name).to_owned();
                let version = words.next().unwrap_or_default().to_owned();
                changes.push(Change { name, effect: Effect::Remove, version });
            }
            _ => {}
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_versions_of_one_package_are_half_of_each() {
        let text = "foo\tnoarch\t1.0-1\nfoo\tnoarch\t2.0-1\nbar\tx86_64\t1:1.10-1\nkernel\tx86_64\t5-2\nkernel\tx86_64\t5-10\n";
        let states = states(text, "# Added lock\nbar-1:1.10-1.*\n!kernel-0:5-1.*\n");
        assert_eq!(states["foo"], PackageState::Half("installed as 1.0-1 and 2.0-1".to_owned()));
        assert_eq!(states["bar"], PackageState::Installed { version: "1:1.10-1".to_owned(), held: true });
        assert_eq!(states["kernel"], PackageState::Installed { version: "5-10".to_owned(), held: false });
        let foo = |version: &str| PackageSpec { name: "foo".to_owned(), version: version.to_owned(), hold: false };
        assert_eq!(leftovers(text, &[&foo("2.0-1")]), ["foo-1.0-1"]);
        assert_eq!(leftovers(text, &[&foo("1.0-1")]), ["foo-2.0-1"], "a downgrade goes on as one");
        assert_eq!(leftovers(text, &[]), ["foo-1.0-1"]);
    }

    #[test]
    fn the_table_is_read_also_where_a_name_breaks_it() {
        let text = "Last metadata expiration check: 0:00:04 ago.\nDependencies resolved.\n====\n Package  Arch  Version\n====\n\
            Installing:\n a-very-long-package-name   noarch  1:1.0-1 t  6.1 k\n     replacing  old-app.noarch 1.0-1\n\
            Installing dependencies:\n foo   noarch  2.0-1\n                   repository   5 k\n\
            Removing dependent packages:\n bar   noarch   1.0-1   @t   4  \n\nTransaction Summary\n====\nRemove  2 Packages\n";
        let change =
            |name: &str, effect, version: &str| Change { name: name.to_owned(), effect, version: version.to_owned() };
        let expected = [
            change("a-very-long-package-name", Effect::Install, "1:1.0-1"),
            change("old-app", Effect::Remove, "1.0-1"),
            change("foo", Effect::Install, "2.0-1"),
            change("bar", Effect::Remove, "1.0-1"),
        ];
        assert_eq!(changes(text), Ok(expected.to_vec()));
        let switch = text.replace("Installing:", "Switching module streams:");
        assert_eq!(changes(&switch), Err("\"Switching module streams\"".to_owned()));
    }
}
