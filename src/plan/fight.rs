//! A fight: somebody else goes on writing a file that we put back, and putting it back at full speed would help nobody.
//!
//! Repairs of a file are counted. Five within ten minutes are a fight: from then on the file is left alone for 10 s after a
//! repair, twice as long after each further one, 10 minutes at most. The fight ends when half an hour goes by without a
//! repair, or with another commit. PURE. Never: concerns anything but the one file.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::lock::quorum::Because;
use crate::name::{CommitId, HostPath};
use crate::reason;
use crate::resource::FileState;

const REPAIRS_MAX: u32 = 5;
const WINDOW: SignedDuration = SignedDuration::from_mins(10);
const PAUSE: SignedDuration = SignedDuration::from_secs(10);
const PAUSE_MAX: SignedDuration = SignedDuration::from_mins(10);
/// Longer than any pause.
const QUIET: SignedDuration = SignedDuration::from_mins(30);

/// Repairs of one file, at one commit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Repairs {
    pub count: u32,
    pub since: Timestamp,
    pub last: Timestamp,
    /// What was in its place before the last one, without its content: a hint at who it may be.
    pub found: String,
}

/// Repairs of the last while, by file. The ledger keeps them over restarts of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Fights {
    commit: Option<CommitId>,
    files: BTreeMap<HostPath, Repairs>,
}

impl Repairs {
    fn first(now: Timestamp) -> Self {
        Self { count: 0, since: now, last: now, found: String::new() }
    }

    pub fn is_fight(&self) -> bool {
        self.count >= REPAIRS_MAX
    }

    /// When the file is put back again.
    fn next(&self) -> Timestamp {
        if !self.is_fight() {
            return self.last;
        }
        let pause = PAUSE.saturating_mul(2_i32.saturating_pow(self.count - REPAIRS_MAX)).min(PAUSE_MAX);
        self.last.checked_add(pause).unwrap_or(Timestamp::MAX)
    }

    /// A clock that was set back says nothing about how long it was quiet, so what was counted is forgotten.
    fn is_over(&self, now: Timestamp) -> bool {
        let (since, limit) = if self.is_fight() { (self.last, QUIET) } else { (self.since, WINDOW) };
        now < self.last || now.duration_since(since) > limit
    }

    fn because(&self, path: &HostPath) -> Because {
        let Self { count, since, last, found } = self;
        let sentence = format!(
            "{path} was put back {count} times since {since:.0}, last at {last:.0}, and somebody else goes on writing it \
             (found then: {found}); it is put back again at {:.0}",
            self.next()
        );
        Because::new(reason::DRIFT_FIGHT, None, sentence)
            .ends("It ends when nobody else has written the file for 30 minutes, or with another commit.")
    }
}

impl Fights {
    /// What still counts now, and which fights are over.
    pub fn still(self, commit: &CommitId, now: Timestamp) -> (Self, Vec<HostPath>) {
        let other = self.commit.as_ref() != Some(commit);
        let (over, files): (BTreeMap<_, Repairs>, _) =
            self.files.into_iter().partition(|(_, repairs)| other || repairs.is_over(now));
        let over = over.into_iter().filter(|(_, repairs)| repairs.is_fight()).map(|(path, _)| path);
        (Self { commit: Some(commit.clone()), files }, over.collect())
    }

    /// Files that are left as they are for now.
    pub fn resting(&self, now: Timestamp) -> BTreeSet<HostPath> {
        self.files.iter().filter(|(_, repairs)| now < repairs.next()).map(|(path, _)| path.clone()).collect()
    }

    /// When the first of the resting files rests no more.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        self.files.values().map(Repairs::next).filter(|next| now < *next).min()
    }

    /// The file was put back. True: that began a fight.
    pub fn repaired(&mut self, path: &HostPath, found: Option<&FileState>, now: Timestamp) -> bool {
        let repairs = self.files.entry(path.clone()).or_insert_with(|| Repairs::first(now));
        repairs.count = repairs.count.saturating_add(1);
        repairs.last = now;
        repairs.found = describe(found);
        repairs.count == REPAIRS_MAX
    }

    /// Fights that are on, in words.
    pub fn told(&self) -> Vec<(HostPath, Because)> {
        let fights = self.files.iter().filter(|(_, repairs)| repairs.is_fight());
        fights.map(|(path, repairs)| (path.clone(), repairs.because(path))).collect()
    }
}

fn describe(found: Option<&FileState>) -> String {
    match found {
        Some(FileState::Regular(file)) => {
            let written = i64::try_from(file.stamp.mtime_ns / 1_000_000_000).ok();
            let written = written.and_then(|secs| Timestamp::from_second(secs).ok()).unwrap_or_default();
            format!("a file of {}:{}, written at {written}", file.owner, file.group)
        }
        _ => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    /// Repairs at these seconds: how long the file rests after each (0: not at all).
    fn rests(seconds: &[i64]) -> Vec<i64> {
        let path = HostPath::from("/etc/motd");
        let commit = CommitId::from("c");
        let mut fights = Fights::default();
        let rest = |&now: &i64| {
            (fights, _) = std::mem::take(&mut fights).still(&commit, at(now));
            fights.repaired(&path, None, at(now));
            let next = fights.next(at(now)).unwrap_or(at(now));
            assert_eq!(fights.resting(at(now)).contains(&path), next > at(now));
            assert!(!fights.resting(next).contains(&path));
            next.duration_since(at(now)).as_secs()
        };
        seconds.iter().map(rest).collect()
    }

    #[test]
    fn repairs_become_a_fight_and_pauses_grow() {
        let table: &[(&str, &[i64], &[i64])] = &[
            ("now and then", &[0, 200, 400, 601, 700, 800], &[0, 0, 0, 0, 0, 0]),
            ("at full speed", &[0, 1, 2, 3, 4], &[0, 0, 0, 0, 10]),
            ("it goes on", &[0, 1, 2, 3, 4, 14, 34, 74, 154, 314], &[0, 0, 0, 0, 10, 20, 40, 80, 160, 320]),
            (
                "not for ever longer",
                &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
                &[0, 0, 0, 0, 10, 20, 40, 80, 160, 320, 600, 600, 600],
            ),
            ("quiet for half an hour", &[0, 1, 2, 3, 4, 1805, 1806], &[0, 0, 0, 0, 10, 0, 0]),
            ("not quite", &[0, 1, 2, 3, 4, 1804], &[0, 0, 0, 0, 10, 20]),
            ("the clock was set back", &[5000, 5001, 5002, 5003, 5004, 100], &[0, 0, 0, 0, 10, 0]),
        ];
        for (what, seconds, expected) in table {
            assert_eq!(rests(seconds), *expected, "{what}");
        }
    }

    #[test]
    fn a_fight_is_told_until_it_is_over_and_another_commit_ends_it() {
        let (mine, other) = (HostPath::from("/etc/motd"), HostPath::from("/etc/other"));
        let mut fights = Fights::default().still(&CommitId::from("a"), at(0)).0;
        let began: Vec<bool> = (0..6).map(|now| fights.repaired(&mine, None, at(now))).collect();
        assert_eq!(began, [false, false, false, false, true, false], "told once");
        assert!(!fights.repaired(&other, None, at(6)));
        let told = fights.told();
        assert_eq!(told.iter().map(|(path, _)| path).collect::<Vec<_>>(), [&mine], "one file only");
        assert!(told[0].1.sentence.contains("put back 6 times since 1970-01-01T00:00:00Z"), "{}", told[0].1.sentence);
        let (same, over) = fights.clone().still(&CommitId::from("a"), at(60));
        assert!(over.is_empty() && same == fights);
        let (fresh, over) = fights.still(&CommitId::from("b"), at(60));
        assert_eq!((over, fresh.told().len()), (vec![mine.clone()], 0));
        assert!(!fresh.resting(at(60)).contains(&mine));
    }
}
