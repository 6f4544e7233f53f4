//! What a package manager would do, and whether the repository asked for that much.
//!
//! PURE. Never: asks a package manager.

use std::collections::{BTreeMap, BTreeSet};

use crate::resource::PackageSpec;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Effect {
    Install,
    Upgrade,
    Downgrade,
    Reinstall,
    Remove,
}

impl Effect {
    fn verb(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Upgrade => "upgrade",
            Self::Downgrade => "downgrade",
            Self::Reinstall => "reinstall",
            Self::Remove => "remove",
        }
    }
}

/// One package of the manager's plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub name: String,
    pub effect: Effect,
    /// The new one; of a removal the one that goes.
    pub version: String,
}

/// New packages that the listed ones need may come. Whatever is there and not listed stays as it is, and a listed one
/// becomes only what the list says. Errors: what goes beyond that, in words.
pub fn judge(listed: &[&PackageSpec], changes: &[Change]) -> Result<(), String> {
    let meant = |change: &Change| {
        let spec = listed.iter().find(|spec| bare(&spec.name) == bare(&change.name));
        match change.effect {
            Effect::Install => spec.is_none_or(|spec| spec.takes(&change.version)),
            Effect::Upgrade | Effect::Reinstall => spec.is_some_and(|spec| spec.takes(&change.version)),
            Effect::Downgrade => spec.is_some_and(|spec| !spec.version.is_empty() && spec.takes(&change.version)),
            Effect::Remove => false,
        }
    };
    let mut beyond: BTreeMap<Effect, Vec<String>> = BTreeMap::new();
    for change in changes.iter().filter(|change| !meant(change)) {
        beyond.entry(change.effect).or_default().push(format!("{} {}", change.name, change.version));
    }
    if beyond.is_empty() {
        return Ok(());
    }
    let words: Vec<String> =
        beyond.iter().map(|(effect, names)| format!("{} {}", effect.verb(), names.join(", "))).collect();
    Err(words.join("; "))
}

/// The first of those that must become something else and of which the plan has nothing, as where another package takes
/// its place (`Obsoletes`).
pub fn left_out<'a>(changing: &[&'a PackageSpec], changes: &[Change]) -> Option<&'a str> {
    let planned = |spec: &PackageSpec| changes.iter().any(|change| bare(&change.name) == bare(&spec.name));
    changing.iter().find(|spec| !planned(spec)).map(|spec| spec.name.as_str())
}

/// Without the architecture that apt says of a foreign one (`libc6:i386`).
fn bare(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

/// Which of these can go without taking anything else along, and what keeps each of the others. `alone`: for each of them,
/// all that goes with it when it goes.
pub fn removable(alone: &BTreeMap<String, BTreeSet<String>>) -> (BTreeSet<String>, BTreeMap<String, Vec<String>>) {
    let mut go: BTreeSet<String> = alone.keys().cloned().collect();
    loop {
        let stays: Vec<String> = go
            .iter()
            .filter(|name| !alone[*name].iter().all(|gone| gone == *name || go.contains(gone)))
            .cloned()
            .collect();
        if stays.is_empty() {
            break;
        }
        go.retain(|name| !stays.contains(name));
    }
    let kept = alone.iter().filter(|(name, _)| !go.contains(*name));
    let kept = kept.map(|(name, gone)| (name.clone(), gone.iter().filter(|other| *other != name).cloned().collect()));
    let kept = kept.collect();
    (go, kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(effect: Effect, name: &str, version: &str) -> Change {
        Change { name: name.to_owned(), effect, version: version.to_owned() }
    }

    /// E5.
    #[test]
    fn only_what_is_listed_may_change_and_only_as_listed() {
        let spec =
            |name: &str, version: &str| PackageSpec { name: name.to_owned(), version: version.to_owned(), hold: false };
        let (app, tool) = (spec("app", "2"), spec("tool:amd64", ""));
        let listed = [&app, &tool];
        let judge = |effect, name, version| judge(&listed, &[change(effect, name, version)]);
        assert_eq!(judge(Effect::Install, "dependency", "1"), Ok(()));
        for effect in [Effect::Install, Effect::Upgrade, Effect::Downgrade, Effect::Reinstall] {
            assert_eq!(judge(effect, "app", "2"), Ok(()));
            assert!(judge(effect, "app", "3").is_err(), "{effect:?}");
        }
        assert_eq!(judge(Effect::Upgrade, "tool", "9"), Ok(()));
        assert_eq!(judge(Effect::Downgrade, "tool", "1").unwrap_err(), "downgrade tool 1", "nobody asked for that");
        for effect in [Effect::Upgrade, Effect::Downgrade, Effect::Reinstall] {
            assert_eq!(judge(effect, "etcd", "1").unwrap_err(), format!("{} etcd 1", effect.verb()));
        }
        assert_eq!(judge(Effect::Remove, "app", "1").unwrap_err(), "remove app 1", "also what is listed");
    }

    #[test]
    fn what_somebody_needs_stays_and_takes_its_own_needs_along() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        // `a` needs `b`; a stranger needs `c`, which needs `d`.
        let alone = BTreeMap::from([
            ("a".to_owned(), set(&["a"])),
            ("b".to_owned(), set(&["a", "b"])),
            ("c".to_owned(), set(&["c", "stranger"])),
            ("d".to_owned(), set(&["c", "d", "stranger"])),
        ]);
        let (go, kept) = removable(&alone);
        assert_eq!(go, set(&["a", "b"]));
        assert_eq!(kept["c"], ["stranger"]);
        assert_eq!(kept["d"], ["c", "stranger"]);
    }
}
