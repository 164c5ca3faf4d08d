//! Days and times of day in UTC, as people and protocols write them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const SECONDS_OF_DAY: u64 = 24 * 3_600;

/// A day, counted from the first of January 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(u32);

impl Day {
    /// The last day with four figures for its year.
    const LAST: u32 = 2_932_896;

    /// The day in which a moment lies, in milliseconds since the Unix epoch.
    pub fn of_unix_ms(unix_ms: u64) -> Self {
        let days = unix_ms / 1_000 / SECONDS_OF_DAY;
        Self(u32::try_from(days).unwrap_or(Self::LAST).min(Self::LAST))
    }

    /// The day so many days before.
    #[must_use]
    pub fn before(self, days: u32) -> Self {
        Self(self.0.saturating_sub(days))
    }

    /// When it begins, in seconds since the Unix epoch.
    fn begins(self) -> u64 {
        u64::from(self.0) * SECONDS_OF_DAY
    }

    /// Year, month and day of the month (Hinnant, "chrono-compatible low-level date algorithms").
    fn civil(self) -> (u32, u32, u32) {
        let days = self.0 + 719_468;
        let era = days / 146_097;
        let of_era = days % 146_097;
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        (year_of_era + era * 400 + u32::from(month <= 2), month, day)
    }

    fn of_civil(year: u32, month: u32, day: u32) -> Option<Self> {
        if !(1_970..=9_999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        let shifted_year = year - u32::from(month <= 2);
        let era = shifted_year / 400;
        let year_of_era = shifted_year % 400;
        let shifted = if month > 2 { month - 3 } else { month + 9 };
        let of_year = (153 * shifted + 2) / 5 + day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let found = Self((era * 146_097 + of_era).checked_sub(719_468)?);
        // Else it is the 31st of a month that has fewer days.
        (found.civil() == (year, month, day)).then_some(found)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// The text is no day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a day is written as 2026-11-25")]
pub struct NotADay;

impl FromStr for Day {
    type Err = NotADay;

    fn from_str(text: &str) -> Result<Self, NotADay> {
        let parts: Vec<&str> = text.splitn(4, '-').collect();
        let &[year, month, day] = &parts[..] else { return Err(NotADay) };
        let number = |text: &str, figures: usize| {
            let is_one = text.len() == figures && text.bytes().all(|byte| byte.is_ascii_digit());
            is_one.then(|| text.parse().ok()).flatten().ok_or(NotADay)
        };
        Self::of_civil(number(year, 4)?, number(month, 2)?, number(day, 2)?).ok_or(NotADay)
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A moment as RFC 3339 writes it, to the second; rounded up, for it says when something is over.
pub fn rfc3339(unix_ms: u64) -> String {
    let seconds = unix_ms.div_ceil(1_000);
    let day = Day::of_unix_ms(seconds.saturating_mul(1_000));
    let of_day = seconds % SECONDS_OF_DAY;
    format!("{day}T{:02}:{:02}:{:02}Z", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}

/// The text is no moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a moment is written as 2026-11-25 or 2026-11-25T18:30:00Z")]
pub struct NotAMoment;

/// The seconds since the Unix epoch of what RFC 3339 writes. A day alone is its beginning, in UTC; fractions of a second are left out.
pub fn unix_seconds(text: &str) -> Result<u64, NotAMoment> {
    let Some((day, time)) = text.split_once(['T', 't', ' ']) else {
        return text.parse().map(Day::begins).map_err(|_| NotAMoment);
    };
    let day: Day = day.parse().map_err(|_| NotAMoment)?;
    let (time, east) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0),
        None => {
            let (time, offset) = time.split_at_checked(time.len().saturating_sub(6)).ok_or(NotAMoment)?;
            let (hours, minutes) = offset.get(1..).and_then(|offset| offset.split_once(':')).ok_or(NotAMoment)?;
            let seconds = i64::from(figures(hours, 23)? * 3_600 + figures(minutes, 59)? * 60);
            match offset.as_bytes().first() {
                Some(b'+') => (time, seconds),
                Some(b'-') => (time, -seconds),
                _ => return Err(NotAMoment),
            }
        }
    };
    let time = match time.split_once('.') {
        Some((time, fraction)) if !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit()) => time,
        Some(_) => return Err(NotAMoment),
        None => time,
    };
    let parts: Vec<&str> = time.splitn(4, ':').collect();
    let &[hours, minutes, seconds] = &parts[..] else { return Err(NotAMoment) };
    // A leap second counts as the one after it.
    let of_day = figures(hours, 23)? * 3_600 + figures(minutes, 59)? * 60 + figures(seconds, 60)?;
    (day.begins() + u64::from(of_day)).checked_add_signed(-east).ok_or(NotAMoment)
}

/// A number of two figures.
fn figures(text: &str, max: u32) -> Result<u32, NotAMoment> {
    let is_one = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_one.then(|| text.parse().ok()).flatten().filter(|number| *number <= max).ok_or(NotAMoment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_as_they_are_written() {
        let check = |text: &str, days: u32| {
            assert_eq!(text.parse(), Ok(Day(days)), "{text}");
            assert_eq!(Day(days).to_string(), text);
        };
        check("1970-01-01", 0);
        check("2000-02-29", 11_016);
        check("2026-11-25", 20_782);
        check("9999-12-31", Day::LAST);
        for days in (0..Day::LAST).step_by(97) {
            assert_eq!(Day(days).to_string().parse(), Ok(Day(days)));
        }
        for text in ["", "2026", "2026-13-01", "2026-02-29", "2026-00-10", "26-11-25", "2026-11-25-1", "+026-11-25"] {
            assert_eq!(text.parse::<Day>(), Err(NotADay), "{text}");
        }
    }

    #[test]
    fn moments_are_read_in_any_zone() {
        let check = |text: &str, expected: u64| assert_eq!(unix_seconds(text), Ok(expected), "{text}");
        check("1970-01-01", 0);
        check("2026-11-25", 1_795_564_800);
        check("2026-11-25T00:00:00Z", 1_795_564_800);
        check("2026-11-25t01:02:03.999z", 1_795_564_800 + 3_723);
        check("2026-11-25 02:00:00+02:00", 1_795_564_800);
        check("2026-11-24T19:30:00-04:30", 1_795_564_800);
        check("1970-01-01T00:00:00-00:01", 60);
        check("2026-11-25T23:59:60Z", 1_795_564_800 + 86_400);
        for seconds in (0..4_000_000_000).step_by(9_999_991) {
            assert_eq!(unix_seconds(&rfc3339(seconds * 1_000)), Ok(seconds));
        }
        for text in [
            "",
            "now",
            "2026-11-25T",
            "2026-11-25TZ",
            "2026-11-25T10:00Z",
            "2026-11-25T10:00:00",
            "2026-11-25T24:00:00Z",
            "2026-11-25T10:60:00Z",
            "2026-11-25T10:00:61Z",
            "2026-11-25T10:00:00.Z",
            "2026-11-25T10:00:00.xZ",
            "2026-11-25T10:00:00*01:00",
            "2026-11-25T10:00:00+0100",
            "2026-11-25T10:00:00+24:00",
            "2026-11-25T10:00:00:00Z",
            "2026-11-25T10:00:00\u{fc}1:00",
            "2026-02-30T10:00:00Z",
            "1970-01-01T00:00:00+00:01",
        ] {
            assert_eq!(unix_seconds(text), Err(NotAMoment), "{text}");
        }
    }

    #[test]
    fn moments_are_told_to_the_second() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_764_028_799_001), "2025-11-25T00:00:00Z");
        assert_eq!(rfc3339(1_764_028_799_000), "2025-11-24T23:59:59Z");
        assert_eq!(&rfc3339(u64::MAX)[..10], "9999-12-31");
    }
}
