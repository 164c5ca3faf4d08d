//! Who goes first where not all can go at once.

use std::{str::FromStr, time::Duration};

use clap::Args;
use smg_admission::{Class, Classes, Preemption, Scheduler};

use super::super::value::{one_of, seconds};

/// Who goes first where not all can go at once.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Admission")]
pub struct Admission {
    /// Whether requests have classes: system, interactive, default and bulk, in this order of urgency. Callers name one in the
    /// header `X-SMG-Priority`. Without a limit of requests in progress, as many may be as the workers say they run at
    /// once. `queue_size` and `queue_timeout_secs` then give way to the terms of the classes.
    #[arg(long)]
    pub priority_scheduler_enabled: bool,
    /// The most urgent class that callers may name of whom nothing else is said; a more urgent one is taken for this.
    #[arg(long, default_value = "default", value_parser = one_of(Class::ALL, Class::as_str))]
    pub priority_scheduler_default_max_class: Class,
    /// What a class is entitled to, such as `interactive floor=128 share=0.25 queue=256 timeout=30s age=5s preempt=true`: places
    /// that come before others' (at least floor, or this share of all), how many may wait and how long, how long it may be
    /// passed over by more urgent ones before one of its own has a turn, and whether it may take the place of a less
    /// urgent request that has not been answered at all. What is not named keeps its default.
    #[arg(long, value_name = "TERMS")]
    pub priority_scheduler_classes: Vec<ClassTerms>,
}

impl Admission {
    /// The terms of all classes, if requests have any.
    pub fn scheduler(&self) -> Option<Scheduler> {
        let mut classes = Classes::default();
        for terms in &self.priority_scheduler_classes {
            terms.apply(&mut classes);
        }
        let class_max = self.priority_scheduler_default_max_class;
        self.priority_scheduler_enabled.then_some(Scheduler { classes, class_max })
    }
}

/// What differs from the default terms of one class.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassTerms {
    class: Class,
    changes: Vec<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Floor(usize),
    Share(f64),
    Queue(usize),
    Timeout(Duration),
    Age(Duration),
    Preemption(Preemption),
}

/// The text does not say what a class is entitled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a class (system, interactive, default, bulk) and what it has: floor=, share= (0 to 1), queue=, timeout=, age=, \
     preempt=true|false"
)]
pub struct NotTerms;

impl ClassTerms {
    fn apply(&self, classes: &mut Classes) {
        let terms = classes.of_mut(self.class);
        for change in &self.changes {
            match *change {
                Change::Floor(places) => terms.reserved_floor = places,
                Change::Share(share) => terms.reserved_share = share,
                Change::Queue(most) => terms.queue_max = most,
                Change::Timeout(time) => terms.queue_timeout = time,
                Change::Age(time) => terms.passed_over_max = time,
                Change::Preemption(preemption) => terms.preemption = preemption,
            }
        }
    }
}

impl FromStr for ClassTerms {
    type Err = NotTerms;

    fn from_str(text: &str) -> Result<Self, NotTerms> {
        let mut words = text.split_whitespace();
        let class = words.next().and_then(|class| class.parse().ok()).ok_or(NotTerms)?;
        let changes = words.map(|word| word.parse()).collect::<Result<Vec<Change>, NotTerms>>()?;
        if changes.is_empty() { Err(NotTerms) } else { Ok(Self { class, changes }) }
    }
}

impl FromStr for Change {
    type Err = NotTerms;

    fn from_str(text: &str) -> Result<Self, NotTerms> {
        let (name, value) = text.split_once('=').ok_or(NotTerms)?;
        let count = || value.parse().map_err(|_| NotTerms);
        let time = || seconds(value).ok().filter(|time| !time.is_zero()).ok_or(NotTerms);
        match name {
            "floor" => count().map(Self::Floor),
            "share" => {
                let share = value.parse().ok().filter(|share| (0.0..=1.0).contains(share));
                share.map(Self::Share).ok_or(NotTerms)
            }
            "queue" => count().map(Self::Queue),
            "timeout" => time().map(Self::Timeout),
            "age" => time().map(Self::Age),
            "preempt" => match value {
                "true" => Ok(Self::Preemption(Preemption::Allowed)),
                "false" => Ok(Self::Preemption(Preemption::Forbidden)),
                _ => Err(NotTerms),
            },
            _ => Err(NotTerms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_change_what_they_name() {
        let terms: ClassTerms = "bulk floor=4 share=0.5 queue=7 timeout=90 age=2m preempt=true".parse().expect("terms");
        let mut classes = Classes::default();
        terms.apply(&mut classes);
        let bulk = classes.of(Class::Bulk);
        assert_eq!((bulk.reserved_floor, bulk.queue_max, bulk.preemption), (4, 7, Preemption::Allowed));
        assert_eq!((bulk.queue_timeout, bulk.passed_over_max), (Duration::from_secs(90), Duration::from_secs(120)));
        assert_eq!(classes.of(Class::System), Classes::default().of(Class::System));
    }

    #[test]
    fn what_is_no_terms_is_refused() {
        for text in
            ["", "bulk", "urgent floor=1", "bulk floor", "bulk share=2", "bulk share=NaN", "bulk age=0", "bulk a=1"]
        {
            assert_eq!(text.parse::<ClassTerms>(), Err(NotTerms), "{text}");
        }
    }
}
