//! Which of two package versions is the older one, as dpkg and as rpm order them.
//!
//! Sources: deb-version(7) and dpkg's lib/dpkg/version.c; rpm-version(7) and rpm's rpmio/rpmvercmp.c. PURE. Never: fails on
//! a version that no packager would write; both orders are total.

use std::cmp::Ordering;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VersionOrder {
    /// `[EPOCH:]UPSTREAM[-REVISION]`
    Dpkg,
    /// `[EPOCH:]VERSION[-RELEASE]`
    Rpm,
}

impl VersionOrder {
    /// Of an OS family as the fleet names it (`debian`, `rhel`).
    pub fn of_family(family: &str) -> Option<Self> {
        match family {
            "debian" => Some(Self::Dpkg),
            "rhel" => Some(Self::Rpm),
            _ => None,
        }
    }

    pub fn compare(self, a: &str, b: &str) -> Ordering {
        let (a, b) = (Parts::of(a), Parts::of(b));
        match self {
            Self::Dpkg => number(a.epoch, b.epoch)
                .then_with(|| dpkg(a.version, b.version))
                // No revision is the revision 0, which `dpkg` below takes an empty one for.
                .then_with(|| dpkg(a.release.unwrap_or_default(), b.release.unwrap_or_default())),
            Self::Rpm => number(a.epoch, b.epoch).then_with(|| rpm(a.version, b.version)).then_with(|| {
                match (a.release, b.release) {
                    (Some(a), Some(b)) => rpm(a, b),
                    (a, b) => a.is_some().cmp(&b.is_some()),
                }
            }),
        }
    }

    /// Whether going from the one to the other goes back.
    pub fn is_downgrade(self, from: &str, to: &str) -> bool {
        self.compare(from, to) == Ordering::Greater
    }
}

struct Parts<'a> {
    /// Digits; empty: 0.
    epoch: &'a str,
    version: &'a str,
    release: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Self {
        let (epoch, rest) = match text.split_once(':') {
            Some((epoch, rest)) if epoch.bytes().all(|byte| byte.is_ascii_digit()) => (epoch, rest),
            _ => ("", text),
        };
        match rest.rsplit_once('-') {
            Some((version, release)) => Self { epoch, version, release: Some(release) },
            None => Self { epoch, version: rest, release: None },
        }
    }
}

/// Numbers of any length.
fn number(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Splits what the predicate takes off the front.
fn take(text: &str, what: impl Fn(u8) -> bool) -> (&str, &str) {
    // Bytes that are not ASCII are never taken, so this is between two characters.
    text.split_at(text.bytes().position(|byte| !what(byte)).unwrap_or(text.len()))
}

/// Runs of anything else and runs of digits in turn; `~` is before the end, letters are before the rest.
fn dpkg(mut a: &str, mut b: &str) -> Ordering {
    let weight = |byte: Option<u8>| match byte {
        None => 0,
        Some(b'~') => -1,
        Some(byte) if byte.is_ascii_digit() => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(byte),
        Some(byte) => i32::from(byte) + 256,
    };
    let other = |text: &str| text.bytes().position(|byte| byte.is_ascii_digit()).unwrap_or(text.len());
    while !a.is_empty() || !b.is_empty() {
        let ((one, after_one), (two, after_two)) = (a.split_at(other(a)), b.split_at(other(b)));
        for at in 0..one.len().max(two.len()) {
            let order = weight(one.as_bytes().get(at).copied()).cmp(&weight(two.as_bytes().get(at).copied()));
            if order != Ordering::Equal {
                return order;
            }
        }
        let ((one, rest_one), (two, rest_two)) =
            (take(after_one, |byte| byte.is_ascii_digit()), take(after_two, |byte| byte.is_ascii_digit()));
        let order = number(one, two);
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_one, rest_two);
    }
    Ordering::Equal
}

/// Runs of letters and runs of digits, whatever is between them; a number is newer than letters, `~` is before the end, `^`
/// after it and before everything else.
fn rpm(mut a: &str, mut b: &str) -> Ordering {
    if a == b {
        return Ordering::Equal;
    }
    loop {
        let counts = |c: char| c.is_ascii_alphanumeric() || c == '~' || c == '^';
        a = a.trim_start_matches(|c| !counts(c));
        b = b.trim_start_matches(|c| !counts(c));
        match (a.strip_prefix('~'), b.strip_prefix('~')) {
            (Some(one), Some(two)) => {
                (a, b) = (one, two);
                continue;
            }
            (Some(_), None) => return Ordering::Less,
            (None, Some(_)) => return Ordering::Greater,
            (None, None) => {}
        }
        match (a.strip_prefix('^'), b.strip_prefix('^')) {
            (Some(one), Some(two)) => {
                (a, b) = (one, two);
                continue;
            }
            (Some(_), None) => return if b.is_empty() { Ordering::Greater } else { Ordering::Less },
            (None, Some(_)) => return if a.is_empty() { Ordering::Less } else { Ordering::Greater },
            (None, None) => {}
        }
        if a.is_empty() || b.is_empty() {
            return a.len().min(1).cmp(&b.len().min(1));
        }
        let digits = a.starts_with(|c: char| c.is_ascii_digit());
        let run = |byte: u8| if digits { byte.is_ascii_digit() } else { byte.is_ascii_alphabetic() };
        let ((one, rest_one), (two, rest_two)) = (take(a, run), take(b, run));
        if two.is_empty() {
            return if digits { Ordering::Greater } else { Ordering::Less };
        }
        let order = if digits { number(one, two) } else { one.cmp(two) };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_one, rest_two);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_is_said_as_packagers_mean_it() {
        for (from, to) in [("1.10-1", "1.9-1"), ("1:0.1", "2.0"), ("1.0", "1.0~rc1"), ("2.0-1+b1", "2.0-1")] {
            for order in [VersionOrder::Dpkg, VersionOrder::Rpm] {
                assert!(order.is_downgrade(from, to), "{order:?} {from} {to}");
                assert!(!order.is_downgrade(to, from), "{order:?} {to} {from}");
            }
        }
        assert!(!VersionOrder::Dpkg.is_downgrade("0:1.0", "1.0-0"), "the same");
        assert!(!VersionOrder::Rpm.is_downgrade("1.0-1", "0:1.0-1"), "the same");
        assert!(
            VersionOrder::Rpm.is_downgrade("1.0^git1", "1.0") && VersionOrder::Rpm.is_downgrade("1.0.1", "1.0^git1")
        );
        assert_eq!(VersionOrder::Rpm.compare("é", "ü"), Ordering::Equal, "total, whatever is in it");
    }
}
