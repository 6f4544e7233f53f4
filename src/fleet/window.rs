//! Maintenance windows: when running members of a cluster may be taken away. `Sat 02:00-04:00`, in UTC.
//!
//! A window is a stretch of the week that comes again each week, so everything about it is arithmetic modulo a week. PURE:
//! the time is given. Never: a time zone other than UTC, whose days have 23 to 25 hours.

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const DAY: i64 = 24 * 3600;
const WEEK: i64 = 7 * DAY;

/// One window, as it is written, on one or several days.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    said: String,
    /// Seconds after Monday 00:00, one for each day on which it opens.
    opens: Vec<i64>,
    secs: i64,
}

/// When all that must be open is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    Now,
    At(Timestamp),
    /// The windows of several clusters never overlap.
    Never,
}

impl Window {
    fn is_open(&self, now: Timestamp) -> bool {
        let now = second_of_week(now);
        self.opens.iter().any(|opens| (now - opens).rem_euclid(WEEK) < self.secs)
    }

    /// When it opens after `now`, on each of its days.
    fn openings(&self, now: Timestamp) -> impl Iterator<Item = Timestamp> {
        let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let from = second_of_week(now);
        let secs = self.opens.iter().map(move |opens| (opens - from - 1).rem_euclid(WEEK) + 1);
        secs.filter_map(move |secs| whole.checked_add(SignedDuration::from_secs(secs)).ok())
    }
}

/// When a disruption that all of these bind may begin: each list is one cluster's, and an empty one binds nobody.
pub fn opening(clusters: &[&[Window]], now: Timestamp) -> Opening {
    let all_open = |at: Timestamp| {
        let open = |windows: &&[Window]| windows.is_empty() || windows.iter().any(|window| window.is_open(at));
        clusters.iter().all(open)
    };
    if all_open(now) {
        return Opening::Now;
    }
    // Whatever begins begins with the opening of one of them.
    let openings = clusters.iter().copied().flatten().flat_map(|window| window.openings(now));
    openings.filter(|at| all_open(*at)).min().map_or(Opening::Never, Opening::At)
}

/// 1970-01-01 was a Thursday; leap seconds are not counted, as everywhere in Unix time.
fn second_of_week(time: Timestamp) -> i64 {
    (time.as_second() + 3 * DAY).rem_euclid(WEEK)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl FromStr for Window {
    /// What is wrong, in words.
    type Err = String;

    fn from_str(said: &str) -> Result<Self, String> {
        let (days, times) = match said.split_once(' ') {
            Some((days, times)) => (days_of(days)?, times),
            None => ((0..7).collect(), said),
        };
        let (from, to) = times.split_once('-').ok_or_else(|| format!("{times:?} is no stretch of time"))?;
        let (from, to) = (second_of_day(from)?, second_of_day(to)?);
        if from == to || from == DAY {
            return Err(format!("{times:?} has no length; a whole day is 00:00-24:00"));
        }
        let mut opens: Vec<i64> = days.into_iter().map(|day| day * DAY + from).collect();
        opens.sort_unstable();
        opens.dedup();
        // One that ends before it begins ends on the next day.
        Ok(Self { said: said.to_owned(), opens, secs: (to - from).rem_euclid(DAY).max(to - from) })
    }
}

/// `Sat`, `Mon-Fri`, `Sat-Mon`, `Tue,Thu`.
fn days_of(said: &str) -> Result<Vec<i64>, String> {
    let day = |name: &str| {
        let known = DAYS.iter().position(|day| *day == name).and_then(|at| i64::try_from(at).ok());
        known.ok_or_else(|| format!("{name:?} is no day; the days are {}", DAYS.join(", ")))
    };
    let mut days = Vec::new();
    for part in said.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        days.extend((0..=(last - first).rem_euclid(7)).map(|after| (first + after) % 7));
    }
    Ok(days)
}

/// `00:00` to `24:00`.
fn second_of_day(said: &str) -> Result<i64, String> {
    let number = |digits: &str| {
        let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<i64>().ok().filter(|_| plain)
    };
    let parts = said.split_once(':').and_then(|(hours, minutes)| Some((number(hours)?, number(minutes)?)));
    match parts {
        Some((hours, minutes)) if minutes < 60 && hours * 60 + minutes <= 24 * 60 => Ok((hours * 60 + minutes) * 60),
        _ => Err(format!("{said:?} is no time of day; write 00:00 to 24:00")),
    }
}
