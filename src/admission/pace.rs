//! How fast requests leave while there is no room: what a promise about waiting can be based on.

use std::time::Duration;

use smg_base::Timestamp;

/// The weight of the newest interval in the mean.
const WEIGHT: f64 = 0.1;

/// The mean time between two departures, measured only while the gate was full: otherwise it would say how often
/// requests come, not how fast they can be served.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    mean: Option<Duration>,
    /// When the present interval began: the last departure, or the moment the gate became full. `None` while there is
    /// room.
    mark: Option<Timestamp>,
}

impl Pace {
    /// There is no room as of `now`; says nothing new if there was none before.
    pub(crate) fn full(&mut self, now: Timestamp) {
        self.mark.get_or_insert(now);
    }

    /// There is room.
    pub(crate) fn roomy(&mut self) {
        self.mark = None;
    }

    /// A request left at `now`.
    pub(crate) fn departed(&mut self, now: Timestamp) {
        let Some(mark) = self.mark.replace(now) else { return };
        let interval = now.since(mark);
        self.mean = Some(self.mean.map_or(interval, |mean| mean.mul_f64(1.0 - WEIGHT) + interval.mul_f64(WEIGHT)));
    }

    /// The time to the next departure that can be expected at `now`. A wait already longer than the mean counts as it
    /// is, so a standstill is not passed off as the pace of better times.
    pub(crate) fn interval(&self, now: Timestamp) -> Option<Duration> {
        let waited = self.mark.map(|mark| now.since(mark));
        match (self.mean, waited) {
            (Some(mean), Some(waited)) => Some(mean.max(waited)),
            (mean, waited) => mean.or(waited),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::ORIGIN + Duration::from_millis(ms)
    }

    #[test]
    fn only_full_times_are_measured() {
        let mut pace = Pace::default();
        assert_eq!(pace.interval(at(0)), None);
        pace.departed(at(5_000));
        assert_eq!(pace.mean, None, "the first departure has no interval before it");
        pace.roomy();
        pace.full(at(10_000));
        pace.full(at(10_050));
        pace.departed(at(10_100));
        assert_eq!(pace.mean, Some(Duration::from_millis(100)));
        pace.roomy();
        pace.full(at(99_000));
        pace.departed(at(99_200));
        assert_eq!(pace.mean, Some(Duration::from_millis(110)));
    }

    #[test]
    fn a_standstill_is_told() {
        let mut pace = Pace::default();
        pace.full(at(0));
        pace.departed(at(100));
        assert_eq!(pace.interval(at(150)), Some(Duration::from_millis(100)));
        assert_eq!(pace.interval(at(5_100)), Some(Duration::from_secs(5)));
    }
}
