//! Whether the users and groups that a sysusers.d file wants with fixed numbers can have them.
//!
//! systemd-sysusers leaves an account alone that is there with another number, and takes another number where the wanted
//! one is somebody's, both without an error (sysusers.d(5)). Never: changes an account.

use nix::unistd::{Gid, Group, Uid, User};

/// In words, each account that would not be what the file says.
pub fn conflicts(text: &str) -> Vec<String> {
    wanted(text).iter().filter_map(conflict).collect()
}

#[derive(PartialEq, Eq, Debug)]
struct Account<'a> {
    kind: Kind,
    name: &'a str,
    number: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    User,
    Group,
}

/// Lines like `u kafka 2001 "Kafka"`, `u kafka 2001:2000`, `g kafka 2001`; a number of `-` or a path is of no concern.
fn wanted(text: &str) -> Vec<Account<'_>> {
    let account = |line| {
        let mut words = str::split_whitespace(line);
        let kind = match words.next()?.trim_end_matches('!') {
            "u" => Kind::User,
            "g" => Kind::Group,
            _ => return None,
        };
        let name = words.next()?;
        let number = words.next()?.split(':').next()?.parse().ok()?;
        Some(Account { kind, name, number })
    };
    text.lines().filter_map(account).collect()
}

fn conflict(account: &Account<'_>) -> Option<String> {
    let Account { kind, name, number } = *account;
    let (what, has, holder) = match kind {
        Kind::User => {
            let has = User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
            ("user", has, User::from_uid(Uid::from_raw(number)).ok().flatten().map(|user| user.name))
        }
        Kind::Group => {
            let has = Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
            ("group", has, Group::from_gid(Gid::from_raw(number)).ok().flatten().map(|group| group.name))
        }
    };
    match (has, holder) {
        (Some(has), _) if has != number => Some(format!("{what} {name} is {has} here, wanted is {number}")),
        (None, Some(holder)) => Some(format!("{what} {name} cannot be {number}: that is {holder}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_are_wanted() {
        let text = "# u no 1\nu app 2001 \"An app\" /var/lib/app\ng team 2002\nu! locked 2003:team\nu any -\nu dir /srv/x\nm app team\nr - 500-900\n";
        let names: Vec<(&str, u32)> = wanted(text).iter().map(|account| (account.name, account.number)).collect();
        assert_eq!(names, [("app", 2001), ("team", 2002), ("locked", 2003)]);
    }

    /// E12
    #[test]
    fn a_number_that_is_taken_is_named() {
        assert_eq!(conflicts("u root 0\ng root 0\nu nobody-has-this 3999999\n"), Vec::<String>::new());
        assert_eq!(conflicts("u root 5\n"), ["user root is 0 here, wanted is 5"]);
        assert_eq!(conflicts("u toor-of-mine 0\n"), ["user toor-of-mine cannot be 0: that is root"]);
        assert_eq!(conflicts("g wheel-of-mine 0\n"), ["group wheel-of-mine cannot be 0: that is root"]);
    }
}
