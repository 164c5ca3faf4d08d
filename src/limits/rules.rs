//! All rules of a node, and which of them a request meets.

use smallvec::SmallVec;
use smg_base::{hash, map::StableMap};

use crate::rule::{Dimension, Rule, RuleId, Scope, Window};

/// More rules than this are refused.
pub const RULES_MAX: usize = 4_096;
/// A name in a rule may not be longer than this.
const NAME_BYTES_MAX: usize = 256;

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The tenant.
    pub tenant: &'a str,
    /// The key it showed, if it showed one.
    pub key: Option<&'a str>,
    /// The model it asks for.
    pub model: &'a str,
}

/// Identifies a counter, equal on all nodes: a hash of the rule and the values of its scope, whose lowest bits tell the window
/// and whether it is durable, so that a node that has not met the subject yet can keep what it hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterId(pub u64);

impl CounterId {
    const WINDOW_BITS: u64 = 0b111;
    const DURABLE: u64 = 0b1000;
    const HOUR: u64 = Window::Hour as u64;
    const DAY: u64 = Window::Day as u64;
    const MONTH: u64 = Window::Month as u64;
    const TAIL: u64 = Self::WINDOW_BITS | Self::DURABLE;

    fn of(rule: &Rule, subject: &Subject<'_>) -> Option<Self> {
        let seed = rule.id.0;
        let hash = match rule.scope {
            Scope::Global => seed,
            Scope::Tenant => hash::stable64_seeded(subject.tenant.as_bytes(), seed),
            Scope::Key => hash::stable64_seeded(subject.key?.as_bytes(), seed),
            Scope::Model => hash::stable64_seeded(subject.model.as_bytes(), seed),
            Scope::TenantModel => {
                let tenant = hash::stable64_seeded(subject.tenant.as_bytes(), seed);
                hash::stable64_seeded(subject.model.as_bytes(), tenant)
            }
        };
        let window = rule.window.map_or(Self::WINDOW_BITS, |window| window as u64);
        let durable = if rule.is_durable() { Self::DURABLE } else { 0 };
        Some(Self(hash & !Self::TAIL | window | durable))
    }

    /// The window it counts in; none if it counts what runs now.
    pub fn window(self) -> Option<Window> {
        let index = usize::try_from(self.0 & Self::WINDOW_BITS).unwrap_or(usize::MAX);
        Window::ALL.get(index).copied()
    }

    /// Whether it counts for so long that what is taken of it has to be known to the next run of a node as well.
    #[inline]
    pub const fn outlives_runs(self) -> bool {
        matches!(self.0 & Self::WINDOW_BITS, Self::HOUR | Self::DAY | Self::MONTH)
    }

    /// Whether it has to survive a restart.
    pub const fn is_durable(self) -> bool {
        self.0 & Self::DURABLE != 0
    }
}

/// A rule that a request meets, and the counter it takes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The rule's place in [`Rules::all`].
    pub rule: u16,
    /// The counter.
    pub counter: CounterId,
}

/// Why rules were not taken. What was in force stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// More than the greatest number.
    #[error("there are {0} rules, more than {RULES_MAX}")]
    TooMany(usize),
    /// Concurrency has no window, everything else needs one.
    #[error("rule {0}: {1} {2}")]
    Window(Box<str>, Dimension, &'static str),
    /// A name that cannot narrow anything.
    #[error("rule {0}: {1}")]
    Narrowed(Box<str>, &'static str),
    /// Two rules about the same.
    #[error("rules {0} and {1} are about the same")]
    Twice(Box<str>, Box<str>),
}

/// All rules of a node.
///
/// Rules with one scope, dimension and window form a group, of which a request meets one: the one that names the scope's value
/// exactly, else the one with the longest beginning of it, else the one for all; among several, the one that names the model
/// more narrowly.
#[derive(Debug, Default)]
pub struct Rules {
    all: Vec<Rule>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    scope: Scope,
    dimension: Dimension,
    window: Option<Window>,
    exact: StableMap<Box<str>, Vec<u16>>,
    /// Beginnings without their `*`, the longest first.
    beginnings: Vec<(Box<str>, Vec<u16>)>,
    any: Vec<u16>,
}

impl Rules {
    /// The rules, with their ids; or what is wrong with one.
    pub fn new(mut rules: Vec<Rule>) -> Result<Self, RulesError> {
        if rules.len() > RULES_MAX {
            return Err(RulesError::TooMany(rules.len()));
        }
        let mut known: StableMap<RuleId, usize> = StableMap::default();
        for index in 0..rules.len() {
            check(&rules[index])?;
            rules[index].id = rules[index].identity();
            if let Some(before) = known.insert(rules[index].id, index) {
                return Err(RulesError::Twice((&*rules[before].name).into(), (&*rules[index].name).into()));
            }
        }
        let groups = groups(&rules);
        Ok(Self { all: rules, groups })
    }

    /// The rules in the order given.
    pub fn all(&self) -> &[Rule] {
        &self.all
    }

    /// The rule at this place.
    pub fn get(&self, index: u16) -> Option<&Rule> {
        self.all.get(usize::from(index))
    }

    /// Whether there are none, and nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The rules that a request of `subject` meets, narrow scopes first: a request that its own key's limit refuses
    /// never touches a counter that others share.
    pub fn of(&self, subject: &Subject<'_>) -> SmallVec<[Applied; 8]> {
        let mut applied = SmallVec::new();
        for group in &self.groups {
            let rule = group.rule(&self.all, subject);
            let counter = rule.and_then(|rule| CounterId::of(&self.all[usize::from(rule)], subject));
            if let (Some(rule), Some(counter)) = (rule, counter) {
                applied.push(Applied { rule, counter });
            }
        }
        applied
    }
}

impl Group {
    fn rule(&self, all: &[Rule], subject: &Subject<'_>) -> Option<u16> {
        let value = match self.scope {
            Scope::Global => "",
            Scope::Tenant | Scope::TenantModel => subject.tenant,
            Scope::Key => subject.key?,
            Scope::Model => subject.model,
        };
        let for_model = |rules: &[u16]| {
            rules.iter().copied().find(|&rule| match all[usize::from(rule)].model_only.as_deref() {
                None => true,
                Some(pattern) => matches(pattern, subject.model),
            })
        };
        if !self.exact.is_empty()
            && let Some(rule) = self.exact.get(value).and_then(|rules| for_model(rules))
        {
            return Some(rule);
        }
        let beginning = self.beginnings.iter().filter(|(beginning, _)| value.starts_with(&**beginning));
        beginning.filter_map(|(_, rules)| for_model(rules)).next().or_else(|| for_model(&self.any))
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

/// Orders patterns: exact ones first, then longer beginnings, then no pattern at all.
fn narrowness(pattern: Option<&str>) -> (u8, usize) {
    match pattern {
        Some(pattern) if !pattern.ends_with('*') => (0, 0),
        Some(pattern) => (1, NAME_BYTES_MAX - pattern.len().min(NAME_BYTES_MAX)),
        None => (2, 0),
    }
}

fn check(rule: &Rule) -> Result<(), RulesError> {
    let name = || Box::from(&*rule.name);
    match (rule.dimension, rule.window) {
        (Dimension::Concurrency, Some(_)) => {
            return Err(RulesError::Window(name(), rule.dimension, "counts what runs now and has no window"));
        }
        (Dimension::Concurrency, None) | (_, Some(_)) => {}
        (_, None) => return Err(RulesError::Window(name(), rule.dimension, "needs a window")),
    }
    if rule.scope == Scope::Global && rule.only.is_some() {
        return Err(RulesError::Narrowed(name(), "a global rule has no value to narrow it to"));
    }
    for pattern in [&rule.only, &rule.model_only].into_iter().flatten() {
        if pattern.len() > NAME_BYTES_MAX || pattern.is_empty() {
            return Err(RulesError::Narrowed(name(), "a name is empty or longer than 256 bytes"));
        }
    }
    Ok(())
}

fn groups(rules: &[Rule]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, rule) in (0_u16..).zip(rules) {
        let of = |group: &&mut Group| {
            (group.scope, group.dimension, group.window) == (rule.scope, rule.dimension, rule.window)
        };
        let group = match groups.iter_mut().find(of) {
            Some(group) => group,
            None => {
                groups.push(Group {
                    scope: rule.scope,
                    dimension: rule.dimension,
                    window: rule.window,
                    exact: StableMap::default(),
                    beginnings: Vec::new(),
                    any: Vec::new(),
                });
                let last = groups.len() - 1;
                &mut groups[last]
            }
        };
        match rule.only.as_deref().map(|only| (only, only.strip_suffix('*'))) {
            None => group.any.push(index),
            Some((only, None)) => group.exact.entry(only.into()).or_default().push(index),
            Some((_, Some(beginning))) => match group.beginnings.iter_mut().find(|(known, _)| **known == *beginning) {
                Some((_, rules)) => rules.push(index),
                None => group.beginnings.push((beginning.into(), vec![index])),
            },
        }
    }
    for group in &mut groups {
        let by_model = |index: &u16| narrowness(rules[usize::from(*index)].model_only.as_deref());
        group.any.sort_by_key(by_model);
        group.exact.values_mut().for_each(|rules| rules.sort_by_key(by_model));
        group.beginnings.iter_mut().for_each(|(_, rules)| rules.sort_by_key(by_model));
        group.beginnings.sort_by_key(|(beginning, _)| std::cmp::Reverse(beginning.len()));
    }
    groups.sort_by_key(|group| {
        let breadth = match group.scope {
            Scope::Key => 0,
            Scope::TenantModel => 1,
            Scope::Tenant => 2,
            Scope::Model => 3,
            Scope::Global => 4,
        };
        (breadth, group.dimension, group.window)
    });
    groups
}
