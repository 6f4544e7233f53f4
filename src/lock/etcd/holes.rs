//! Which etcd versions have holes that matter to us: a table, and what it says of a version.
//!
//! Only what is known is in it, with the first version of each minor that is mended. PURE. Never: a reason to stop.

/// One hole. A minor that is not listed and newer than all that are is mended; an older one is not.
struct Hole {
    id: &'static str,
    what: &'static str,
    /// First mended patch of each minor, ascending.
    mended: &'static [(u64, u64, u64)],
}

const HOLES: &[Hole] = &[
    Hole {
        id: "CVE-2026-33413",
        what: "whoever can connect may raise alarms, compact and list members",
        mended: &[(3, 4, 42), (3, 5, 28), (3, 6, 9)],
    },
    Hole {
        id: "CVE-2026-73499",
        what: "the right to read one key is a right to watch all keys after it",
        mended: &[(3, 5, 33)],
    },
];

/// One sentence for each hole of a version, as etcd's status gives it (`3.5.16`).
pub fn of_version(version: &str) -> Vec<String> {
    let Some(read) = read(version) else {
        return vec![format!("etcd says that its version is {version:?}: whether it has known holes cannot be told")];
    };
    let open = HOLES.iter().filter(|hole| !hole.is_mended_in(read));
    open.map(|hole| {
        let first = hole.mended.iter().find(|mended| (mended.0, mended.1) >= (read.0, read.1));
        let (major, minor, patch) = first.or(hole.mended.last()).copied().unwrap_or(read);
        format!("etcd {version} has {}: {}; {major}.{minor}.{patch} is mended", hole.id, hole.what)
    })
    .collect()
}

impl Hole {
    fn is_mended_in(&self, version: (u64, u64, u64)) -> bool {
        let minor = (version.0, version.1);
        match self.mended.iter().find(|mended| (mended.0, mended.1) == minor) {
            Some(mended) => version >= *mended,
            None => self.mended.iter().all(|mended| (mended.0, mended.1) < minor),
        }
    }
}

/// What comes after the patch (`-rc.1`, `+git`) does not make it older here: a candidate is nobody's store.
fn read(version: &str) -> Option<(u64, u64, u64)> {
    let core = version.trim().split(['-', '+']).next()?;
    let mut numbers = core.split('.').map(|part| part.parse().ok());
    let read = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G18, G19.
    #[test]
    fn every_version_has_the_holes_that_are_known_of_it() {
        let table = [
            ("3.3.27", &["CVE-2026-33413", "CVE-2026-73499"][..]),
            ("3.4.23", &["CVE-2026-33413", "CVE-2026-73499"]),
            ("3.4.42", &["CVE-2026-73499"]),
            ("3.5.16", &["CVE-2026-33413", "CVE-2026-73499"]),
            ("3.5.27", &["CVE-2026-33413", "CVE-2026-73499"]),
            ("3.5.28", &["CVE-2026-73499"]),
            ("3.5.32", &["CVE-2026-73499"]),
            ("3.5.33", &[]),
            ("3.6.8", &["CVE-2026-33413"]),
            ("3.6.9", &[]),
            ("3.7.0", &[]),
            ("4.0.0", &[]),
        ];
        for (version, holes) in table {
            let said = of_version(version);
            assert_eq!(said.len(), holes.len(), "{version}: {said:?}");
            assert!(holes.iter().zip(&said).all(|(id, said)| said.contains(id)), "{version}: {said:?}");
        }
    }

    #[test]
    fn the_version_to_go_to_is_named() {
        assert!(of_version("3.5.16")[0].ends_with("3.5.28 is mended"), "{:?}", of_version("3.5.16"));
        assert!(of_version("3.4.23")[1].ends_with("3.5.33 is mended"), "{:?}", of_version("3.4.23"));
    }

    #[test]
    fn a_version_that_cannot_be_read_is_told() {
        for version in ["", "three", "3.5", "3.5.16.1", "3.5.x"] {
            assert!(of_version(version)[0].contains("cannot be told"), "{version}");
        }
        assert_eq!(of_version("3.5.33-rc.1+git"), Vec::<String>::new());
    }
}
