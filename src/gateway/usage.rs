//! What tenants used, by day, key and model: counted when a request ends, kept for months, summed when somebody asks.
//!
//! Every node counts what came in at it; what all used together is the sum over nodes. The table is bounded: when it is full, the oldest day
//! goes, and where only today is left, further rows are counted as those of nobody.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use smg_base::{KeyId, ModelId, TenantId, calendar::Day};

/// Days that are kept: more than a year, so that the same month of two years can be compared.
const DAYS_MAX: u32 = 400;

/// Rows that are kept.
const ROWS_MAX: usize = 100_000;

/// Tokens and money of some requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Requests that reached a worker.
    pub(crate) requests: u64,
    /// Tokens of prompts.
    pub(crate) input_tokens: u64,
    /// Those of them that came out of a cache.
    pub(crate) cached_tokens: u64,
    /// Tokens that models wrote.
    pub(crate) output_tokens: u64,
    /// What all that costs, in millionths.
    pub(crate) money_millionths: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(other.cached_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.money_millionths = self.money_millionths.saturating_add(other.money_millionths);
    }
}

/// Who used something, and of what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct User {
    pub(crate) tenant: TenantId,
    pub(crate) key: Option<KeyId>,
    pub(crate) model: ModelId,
}

impl User {
    /// Whoever there was no room for.
    fn nobody() -> Self {
        Self { tenant: "".into(), key: None, model: "".into() }
    }
}

/// The table.
#[derive(Default)]
pub(crate) struct Usage {
    rows: Mutex<Rows>,
}

#[derive(Default)]
struct Rows {
    days: BTreeMap<Day, BTreeMap<User, Counts>>,
    count: usize,
    /// Grows with each change.
    version: u64,
}

/// One row, as it is kept in a file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    day: Day,
    tenant: TenantId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<KeyId>,
    model: ModelId,
    #[serde(flatten)]
    counts: Counts,
}

/// What is kept in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    rows: Vec<Row>,
}

/// The usage of a node at one moment, to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageImage {
    /// Equal for two images between which nothing was used.
    pub version: u64,
    /// What [`Gateway::take_usage`](crate::Gateway::take_usage) takes back.
    pub json: Vec<u8>,
}

impl Usage {
    /// Counts what was used on a day.
    pub(crate) fn add(&self, day: Day, user: User, counts: &Counts) {
        let mut rows = self.rows.lock();
        rows.version += 1;
        rows.add(day, user, counts);
    }

    /// All of it, if something has changed since `version`.
    pub(crate) fn image(&self, version: u64) -> Option<UsageImage> {
        let (rows, version) = {
            let rows = self.rows.lock();
            if rows.version == version {
                return None;
            }
            let of_day = |(&day, users): (&Day, &BTreeMap<User, Counts>)| {
                let row = |(user, counts): (&User, &Counts)| Row {
                    day,
                    tenant: user.tenant.clone(),
                    key: user.key.clone(),
                    model: user.model.clone(),
                    counts: *counts,
                };
                users.iter().map(row).collect::<Vec<_>>()
            };
            (rows.days.iter().flat_map(of_day).collect(), rows.version)
        };
        let json = serde_json::to_vec(&Kept { rows }).ok()?;
        Some(UsageImage { version, json })
    }

    /// Takes back what was kept, on top of what was counted since.
    pub(crate) fn take(&self, json: &[u8]) -> Result<(), serde_json::Error> {
        let kept: Kept = serde_json::from_slice(json)?;
        let mut rows = self.rows.lock();
        for row in kept.rows {
            rows.add(row.day, User { tenant: row.tenant, key: row.key, model: row.model }, &row.counts);
        }
        Ok(())
    }

    /// What `question` asks for.
    pub(crate) fn sums(&self, question: &Question) -> Sums {
        let rows = self.rows.lock();
        let mut sums = Sums::default();
        for (&day, users) in rows.days.range(question.since..=question.until.max(question.since)) {
            for (user, counts) in users {
                if question.tenant.as_ref().is_none_or(|tenant| *tenant == user.tenant) {
                    sums.add(Group::of(question, day, user), counts);
                }
            }
        }
        sums
    }
}

impl Rows {
    fn add(&mut self, day: Day, user: User, counts: &Counts) {
        let last = self.days.last_key_value().map_or(day, |(&last, _)| last.max(day));
        while self.days.first_key_value().is_some_and(|(&first, _)| first < last.before(DAYS_MAX)) {
            self.forget_first();
        }
        let is_known = |rows: &Self| rows.days.get(&day).is_some_and(|users| users.contains_key(&user));
        while self.count >= ROWS_MAX
            && !is_known(self)
            && self.days.first_key_value().is_some_and(|(&first, _)| first < day)
        {
            self.forget_first();
        }
        let has_room = self.count < ROWS_MAX || is_known(self);
        let user = if has_room { user } else { User::nobody() };
        let users = self.days.entry(day).or_default();
        let before = users.len();
        users.entry(user).or_default().add(counts);
        self.count += users.len() - before;
    }

    fn forget_first(&mut self) {
        self.count -= self.days.pop_first().map_or(0, |(_, users)| users.len());
    }
}

/// What rows are summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum By {
    Day,
    Tenant,
    Key,
    Model,
}

impl By {
    const ALL: [Self; 4] = [Self::Day, Self::Tenant, Self::Key, Self::Model];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Tenant => "tenant",
            Self::Key => "key",
            Self::Model => "model",
        }
    }

    /// Reads a list such as `tenant,model`.
    pub(crate) fn list(text: &str) -> Option<Vec<Self>> {
        let one = |name: &str| Self::ALL.into_iter().find(|by| by.as_str() == name.trim());
        let mut list = text.split(',').map(one).collect::<Option<Vec<_>>>()?;
        list.sort_unstable();
        list.dedup();
        Some(list)
    }
}

/// What somebody wants to know of usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) since: Day,
    pub(crate) until: Day,
    pub(crate) by: Vec<By>,
    /// Of this tenant only.
    pub(crate) tenant: Option<TenantId>,
}

/// What rows have in common that are summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Group {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    day: Option<Day>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<TenantId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<KeyId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<ModelId>,
}

impl Group {
    fn of(question: &Question, day: Day, user: &User) -> Self {
        let has = |by: By| question.by.contains(&by);
        Self {
            day: has(By::Day).then_some(day),
            tenant: has(By::Tenant).then(|| user.tenant.clone()),
            key: user.key.clone().filter(|_| has(By::Key)),
            model: has(By::Model).then(|| user.model.clone()),
        }
    }
}

/// Sums, and the total of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    groups: BTreeMap<Group, Counts>,
    total: Counts,
}

/// One line of an answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    #[serde(flatten)]
    group: Group,
    #[serde(flatten)]
    counts: Counts,
}

impl Sums {
    fn add(&mut self, group: Group, counts: &Counts) {
        self.groups.entry(group).or_default().add(counts);
        self.total.add(counts);
    }

    /// Adds what another node counted.
    pub(crate) fn take(&mut self, lines: Vec<Line>) {
        for Line { group, counts } in lines {
            self.add(group, &counts);
        }
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        self.groups.iter().map(|(group, counts)| Line { group: group.clone(), counts: *counts }).collect()
    }

    pub(crate) const fn total(&self) -> &Counts {
        &self.total
    }
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix, fuzz};

    use super::*;

    fn day(text: &str) -> Day {
        text.parse().expect("it is a day")
    }

    fn user(tenant: &str, key: Option<&str>, model: &str) -> User {
        User { tenant: tenant.into(), key: key.map(Into::into), model: model.into() }
    }

    fn used(tokens: u64) -> Counts {
        Counts { requests: 1, input_tokens: tokens, cached_tokens: tokens / 2, output_tokens: 1, money_millionths: 3 }
    }

    fn example() -> Usage {
        let usage = Usage::default();
        usage.add(day("2026-11-24"), user("acme", Some("k1"), "llama"), &used(10));
        usage.add(day("2026-11-25"), user("acme", Some("k1"), "llama"), &used(20));
        usage.add(day("2026-11-25"), user("acme", Some("k2"), "qwen"), &used(30));
        usage.add(day("2026-11-25"), user("zeta", None, "llama"), &used(40));
        usage
    }

    #[test]
    fn sums_are_by_what_was_asked_for() {
        let usage = example();
        let check = |by: &str, since: &str, tenant: Option<&str>, expected: &str| {
            let question = Question {
                since: day(since),
                until: day("2026-11-30"),
                by: By::list(by).expect("a list"),
                tenant: tenant.map(Into::into),
            };
            let lines = usage.sums(&question).lines();
            let told: Vec<String> = lines
                .iter()
                .map(|line| {
                    let text = serde_json::to_value(line).expect("it is written");
                    let names =
                        ["day", "tenant", "key", "model"].map(|name| text[name].as_str().unwrap_or("").to_owned());
                    format!("{}={}", names.concat(), line.counts.input_tokens)
                })
                .collect();
            assert_eq!(told.join(" "), expected, "{by} {since} {tenant:?}");
        };
        check("tenant", "2026-11-01", None, "acme=60 zeta=40");
        check("tenant", "2026-11-25", None, "acme=50 zeta=40");
        check("model", "2026-11-01", Some("acme"), "llama=30 qwen=30");
        check("key,tenant", "2026-11-01", None, "acmek1=30 acmek2=30 zeta=40");
        check("day", "2026-11-01", None, "2026-11-24=10 2026-11-25=90");
        check("tenant", "2026-12-01", None, "");
        assert_eq!(By::list("tenant,colour"), None);
    }

    #[test]
    fn what_is_kept_comes_back() {
        let usage = example();
        let image = usage.image(0).expect("something was used");
        assert_eq!(usage.image(image.version), None, "nothing new");
        let other = Usage::default();
        other.take(&image.json).expect("it was written here");
        let question =
            Question { since: day("2026-11-01"), until: day("2026-12-01"), by: vec![By::Key, By::Model], tenant: None };
        assert_eq!(other.sums(&question), usage.sums(&question));
        // Sums of two nodes are added.
        let mut both = usage.sums(&question);
        both.take(other.sums(&question).lines());
        assert_eq!(both.total().input_tokens, 200);
    }

    #[test]
    fn the_table_is_bounded() {
        let usage = Usage::default();
        let today = day("2026-11-25");
        usage.add(today.before(1), user("old", None, "m"), &used(1));
        for number in 0..ROWS_MAX + 10 {
            usage.add(today, user(&number.to_string(), None, "m"), &used(1));
        }
        let rows = usage.rows.lock();
        assert!(rows.count <= ROWS_MAX + 1, "{}", rows.count);
        assert_eq!(rows.days.len(), 1, "the oldest day went first");
        assert_eq!(rows.days[&today][&User::nobody()].requests, 10);
        drop(rows);
        usage.add(today, user("7", None, "m"), &used(1));
        assert_eq!(usage.rows.lock().days[&today][&user("7", None, "m")].requests, 2, "those that are known go on");
    }

    #[test]
    fn old_days_are_forgotten() {
        let usage = Usage::default();
        let today = day("2026-11-25");
        usage.add(today.before(DAYS_MAX + 1), user("a", None, "m"), &used(1));
        usage.add(today, user("a", None, "m"), &used(1));
        assert_eq!(usage.rows.lock().days.len(), 1);
    }

    #[test]
    fn no_file_makes_it_panic() {
        let image = example().image(0).expect("something was used").json;
        let random = SplitMix::new(fuzz::seed(5));
        for _ in 0..fuzz::inputs(2_000) {
            let mut bytes = image.clone();
            for _ in 0..=random.next_u64() % 3 {
                let place = usize::try_from(random.next_u64()).unwrap_or(0) % bytes.len();
                bytes[place] = random.next_u64().to_le_bytes()[0];
            }
            let usage = Usage::default();
            if usage.take(&bytes).is_ok() {
                let _image = usage.image(u64::MAX);
            }
        }
    }
}
