//! What an operator allows: one rule is one amount of one thing, in one window of time, for each of those it is about.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use smg_base::hash;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// Requests.
    Requests,
    /// Tokens of prompts.
    InputTokens,
    /// Tokens that models wrote.
    OutputTokens,
    /// Both kinds of tokens together.
    Tokens,
    /// Requests that run at one time: the only dimension without a window.
    Concurrency,
    /// Money, in millionths of whatever currency the prices are in.
    Money,
}

impl Dimension {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Requests, Self::InputTokens, Self::OutputTokens, Self::Tokens, Self::Concurrency, Self::Money];

    /// The name in settings, metrics and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::Tokens => "tokens",
            Self::Concurrency => "concurrency",
            Self::Money => "money",
        }
    }
}

/// How long what was taken counts. A window slides: no interval of its length holds more than the amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// One second.
    Second,
    /// Sixty seconds.
    Minute,
    /// Sixty minutes.
    Hour,
    /// Twenty-four hours.
    Day,
    /// Thirty days.
    Month,
}

impl Window {
    /// All of them, the shortest first.
    pub const ALL: [Self; 5] = [Self::Second, Self::Minute, Self::Hour, Self::Day, Self::Month];

    /// How long it is.
    pub const fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 60 * 60,
            Self::Day => 24 * 60 * 60,
            Self::Month => 30 * 24 * 60 * 60,
        })
    }

    /// The name in settings and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

/// How nodes divide an amount between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every node may take all of it and debits what it hears of the others: as fast as the mesh, above the amount by what
    /// was not heard yet.
    Shared,
    /// Every node holds rights to a part and spends nothing else: never above the amount.
    Strict,
    /// Seven tenths are divided as rights, the rest is shared.
    #[default]
    Hybrid,
}

impl Mode {
    /// The name in settings and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Strict => "strict",
            Self::Hybrid => "hybrid",
        }
    }
}

/// What becomes of the shared part of an amount while nodes are cut off from each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnSplit {
    /// The nodes that still hear each other take the part that belongs to their number.
    #[default]
    KeepShare,
    /// Nothing of it is given out.
    FailClosed,
    /// All of it is given out on either side.
    FailOpen,
}

impl OnSplit {
    /// The name in settings and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeepShare => "keep_share",
            Self::FailClosed => "fail_closed",
            Self::FailOpen => "fail_open",
        }
    }
}

/// Who shares one counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everybody: one counter.
    Global,
    /// One counter for each tenant.
    Tenant,
    /// One counter for each key. Requests without a key are not counted.
    Key,
    /// One counter for each model.
    Model,
    /// One counter for each model of each tenant.
    TenantModel,
}

impl Scope {
    /// The name in settings and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Tenant => "tenant",
            Self::Key => "key",
            Self::Model => "model",
            Self::TenantModel => "tenant_model",
        }
    }
}

/// The text names none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("one of {0} is meant")]
pub struct Unnamed(&'static str);

/// `Display` and `FromStr` by the names of [`as_str`](Dimension::as_str).
macro_rules! named {
    ($name:ident, [$($value:ident),+], $list:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = Unnamed;

            fn from_str(text: &str) -> Result<Self, Unnamed> {
                [$(Self::$value),+].into_iter().find(|value| value.as_str() == text).ok_or(Unnamed($list))
            }
        }
    };
}

named!(
    Dimension,
    [Requests, InputTokens, OutputTokens, Tokens, Concurrency, Money],
    "requests, input_tokens, output_tokens, tokens, concurrency, money"
);
named!(Window, [Second, Minute, Hour, Day, Month], "second, minute, hour, day, month");
named!(Mode, [Shared, Strict, Hybrid], "shared, strict, hybrid");
named!(OnSplit, [KeepShare, FailClosed, FailOpen], "keep_share, fail_closed, fail_open");
named!(Scope, [Global, Tenant, Key, Model, TenantModel], "global, tenant, key, model, tenant_model");

/// Identifies what a rule is about, equal on all nodes: a hash of its scope, names, dimension and window. Its name, amount and mode are
/// not in it, so that a change of these refills nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u64);

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Given by [`Rules::new`](crate::Rules::new).
    pub id: RuleId,
    /// What refusals and people call it.
    pub name: Arc<str>,
    /// Who shares a counter.
    pub scope: Scope,
    /// Counts only this value of the scope (for [`Scope::TenantModel`]: of the tenant): exactly, or all that begin so if it
    /// ends in `*`.
    pub only: Option<Box<str>>,
    /// Counts only requests for this model, likewise.
    pub model_only: Option<Box<str>>,
    /// What is counted.
    pub dimension: Dimension,
    /// How long it counts. None for [`Dimension::Concurrency`] and for nothing else.
    pub window: Option<Window>,
    /// How much is allowed.
    pub amount: u64,
    /// How nodes divide it.
    pub mode: Mode,
    /// What happens to the shared part while they are cut off from each other.
    pub on_split: OnSplit,
}

impl Rule {
    /// A rule for every value of `scope`, in the default mode, without a window yet.
    pub fn new(name: &str, scope: Scope, dimension: Dimension, amount: u64) -> Self {
        Self {
            id: RuleId::default(),
            name: name.into(),
            scope,
            only: None,
            model_only: None,
            dimension,
            window: None,
            amount,
            mode: Mode::default(),
            on_split: OnSplit::default(),
        }
    }

    /// The same, in this window.
    #[must_use]
    pub fn per(self, window: Window) -> Self {
        Self { window: Some(window), ..self }
    }

    /// The same, for this value of the scope only.
    #[must_use]
    pub fn only(self, value: &str) -> Self {
        Self { only: Some(value.into()), ..self }
    }

    /// The same, for this model only.
    #[must_use]
    pub fn model(self, model: &str) -> Self {
        Self { model_only: Some(model.into()), ..self }
    }

    /// The same, divided in this way.
    #[must_use]
    pub fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// The same, with this done in a split.
    #[must_use]
    pub fn on_split(self, on_split: OnSplit) -> Self {
        Self { on_split, ..self }
    }

    /// Whether what it counts has to survive a restart.
    pub const fn is_durable(&self) -> bool {
        matches!(self.dimension, Dimension::Money)
            || matches!(self.window, Some(Window::Hour | Window::Day | Window::Month))
    }

    /// How much of the amount is divided as rights. The rest is shared.
    pub const fn rights(&self) -> u64 {
        match self.mode {
            Mode::Shared => 0,
            Mode::Strict => self.amount,
            Mode::Hybrid => self.amount / 10 * 7 + self.amount % 10 * 7 / 10,
        }
    }

    /// How much of the amount is shared.
    pub const fn shared(&self) -> u64 {
        self.amount - self.rights()
    }

    /// What its id is a hash of.
    pub(crate) fn identity(&self) -> RuleId {
        let window = self.window.map_or("", Window::as_str);
        let [only, model] = [&self.only, &self.model_only].map(|name| name.as_deref().unwrap_or_default());
        let [has_only, has_model] = [&self.only, &self.model_only].map(Option::is_some);
        let text = format!(
            "{}\0{}\0{window}\0{has_only}\0{only}\0{has_model}\0{model}",
            self.scope.as_str(),
            self.dimension.as_str()
        );
        RuleId(hash::stable64(text.as_bytes()))
    }
}
