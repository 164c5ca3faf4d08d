//! Rules: which requests a fault befalls.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::fault::{Fault, Point};

/// Which requests a fault befalls. What is left out does not matter.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// The path, or the start of it followed by `*`.
    pub path: Option<String>,
    /// The model the request names.
    pub model: Option<String>,
    /// Text that the body contains.
    pub contains: Option<String>,
    /// Whether the connection served a request before.
    pub reused: Option<bool>,
    /// Spare this many matching requests first, less one: 3 begins with the third.
    pub nth: u64,
    /// Befall at most this many; 0 has no limit.
    pub count: u64,
    /// Befall one in so many; 0 and 1 befall each.
    pub every: u64,
    /// Flapping: be in force for so many milliseconds…
    pub on_ms: u64,
    /// … and then not for so many, in turn; 0 does not flap.
    pub off_ms: u64,
    /// What goes wrong.
    pub fault: Fault,
}

impl Rule {
    /// A rule that lets every request suffer `fault`.
    pub fn always(fault: Fault) -> Self {
        Self { fault, ..Self::default() }
    }

    /// The same rule for requests to `path` (or a start of it followed by `*`) only.
    #[must_use]
    pub fn on_path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// The same rule for `count` requests only.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.count = count;
        self
    }

    fn needs_body(&self) -> bool {
        self.model.is_some() || self.contains.is_some()
    }

    fn matches(&self, seen: &Seen<'_>) -> bool {
        let path_fits = self.path.as_deref().is_none_or(|path| match path.strip_suffix('*') {
            Some(start) => seen.path.starts_with(start),
            None => seen.path == path,
        });
        path_fits
            && self.reused.is_none_or(|reused| reused == seen.is_reused)
            && self.model.as_deref().is_none_or(|model| seen.model == Some(model))
            && self.contains.as_deref().is_none_or(|text| memchr::memmem::find(seen.body, text.as_bytes()).is_some())
    }

    fn is_on(&self, age: Duration) -> bool {
        let period_ms = self.on_ms.saturating_add(self.off_ms);
        self.off_ms == 0 || (age.as_millis() % u128::from(period_ms)) < u128::from(self.on_ms)
    }
}

/// What is known of a request, or of a connection, when rules are tried.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen<'a> {
    pub(crate) path: &'a str,
    pub(crate) model: Option<&'a str>,
    pub(crate) body: &'a [u8],
    pub(crate) is_reused: bool,
}

/// The rules in force. Clones share them.
#[derive(Clone, Debug)]
pub struct Faults {
    book: Arc<Mutex<Book>>,
    rules_max: usize,
}

#[derive(Debug, Default)]
struct Book {
    rules: Vec<Kept>,
    last_id: u64,
}

#[derive(Debug)]
struct Kept {
    id: u64,
    rule: Rule,
    since: Instant,
    matched: u64,
    befell: u64,
}

/// A rule as `GET /mock/faults` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    id: u64,
    #[serde(flatten)]
    rule: Rule,
    matched: u64,
    befell: u64,
}

impl Faults {
    pub(crate) fn new(rules: Vec<Rule>, rules_max: usize) -> Self {
        let faults = Self { book: Arc::default(), rules_max };
        for rule in rules {
            faults.add(rule);
        }
        faults
    }

    /// Puts `rule` in force and returns its id; `None` if there are too many.
    pub fn add(&self, rule: Rule) -> Option<u64> {
        let mut book = self.book.lock();
        if book.rules.len() >= self.rules_max {
            return None;
        }
        book.last_id += 1;
        let id = book.last_id;
        book.rules.push(Kept { id, rule, since: Instant::now(), matched: 0, befell: 0 });
        Some(id)
    }

    /// Takes the rule called `id` out of force; whether there was one.
    pub fn remove(&self, id: u64) -> bool {
        let mut book = self.book.lock();
        let before = book.rules.len();
        book.rules.retain(|kept| kept.id != id);
        book.rules.len() < before
    }

    /// Takes every rule out of force.
    pub fn clear(&self) {
        self.book.lock().rules.clear();
    }

    /// How many requests or connections the rule called `id` has befallen.
    pub fn befell(&self, id: u64) -> u64 {
        self.book.lock().rules.iter().find(|kept| kept.id == id).map_or(0, |kept| kept.befell)
    }

    pub(crate) fn list(&self) -> Vec<Listed> {
        let listed =
            |kept: &Kept| Listed { id: kept.id, rule: kept.rule.clone(), matched: kept.matched, befell: kept.befell };
        self.book.lock().rules.iter().map(listed).collect()
    }

    /// What befalls a connection that was just accepted.
    pub(crate) fn of_connection(&self) -> Option<Fault> {
        self.pick(&Seen::default(), |rule| rule.fault.acts_at(Point::Accept))
    }

    /// What befalls a request of which only the head has been read.
    pub(crate) fn of_head(&self, seen: &Seen<'_>) -> Option<Fault> {
        self.pick(seen, |rule| rule.fault.acts_at(Point::Request) && !rule.needs_body())
    }

    /// What befalls a request that has been read.
    pub(crate) fn of_request(&self, seen: &Seen<'_>) -> Option<Fault> {
        self.pick(seen, |rule| {
            let is_for_head = rule.fault.acts_at(Point::Request) && !rule.needs_body();
            !is_for_head && !rule.fault.acts_at(Point::Accept)
        })
    }

    /// The first rule that fits decides.
    fn pick(&self, seen: &Seen<'_>, is_of_kind: impl Fn(&Rule) -> bool) -> Option<Fault> {
        let mut book = self.book.lock();
        for kept in &mut book.rules {
            let rule = &kept.rule;
            let is_spent = rule.count > 0 && kept.befell >= rule.count;
            if is_spent || !is_of_kind(rule) || !rule.matches(seen) || !rule.is_on(kept.since.elapsed()) {
                continue;
            }
            kept.matched += 1;
            let after_spared = kept.matched.checked_sub(rule.nth.max(1));
            if after_spared.is_some_and(|place| place % rule.every.max(1) == 0) {
                kept.befell += 1;
                return Some(rule.fault.clone());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flapping_rule_is_on_and_off_in_turn() {
        let rule = Rule { on_ms: 30, off_ms: 10, ..Rule::default() };
        for (age_ms, is_on) in [(0, true), (29, true), (30, false), (39, false), (40, true), (75, false)] {
            assert_eq!(rule.is_on(Duration::from_millis(age_ms)), is_on, "{age_ms}");
        }
        assert!(Rule::default().is_on(Duration::from_secs(9)));
    }
}
