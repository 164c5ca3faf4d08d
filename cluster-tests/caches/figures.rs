//! What a play came to, by what clients saw and what engines say of themselves.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::agents::Turn;
use crate::harness::{Engine, caller_id, serving};

/// Tokens of an engine's block: what a cache cannot tell apart.
pub(crate) const BLOCK_TOKENS: u32 = 16;

/// What the conversations came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) turns: usize,
    /// Turns without an answer, and tries that failed before another one was answered.
    pub(crate) unanswered: usize,
    pub(crate) failed_tries: usize,
    /// Why, of the first ones.
    pub(crate) reasons: Vec<String>,
    pub(crate) follow_ups: usize,
    /// Follow-up turns that found most of their conversation where they were sent.
    pub(crate) warm: usize,
    /// Those that did not although they came to the engine of the turn before: it had let go of it.
    pub(crate) let_go: usize,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) first_event_mean: Duration,
    pub(crate) first_event_p99: Duration,
    /// The busiest engine's time of computing prompts, over the mean of all.
    pub(crate) busiest: f64,
}

impl Figures {
    /// The figures of `turns`, which `engines` served, whose prompts they compute at `rates` tokens per second.
    pub(crate) fn of(turns: &[Turn], engines: &[Engine], rates: &[f64]) -> Self {
        let mut served = BTreeMap::new();
        let mut seconds = vec![0.0; engines.len()];
        for (number, engine) in engines.iter().enumerate() {
            for entry in engine.ledger.select(serving) {
                let Some(id) = caller_id(&entry) else { continue };
                seconds[number] += (entry.prompt_tokens - entry.cached_tokens) as f64 / rates[number];
                served.insert(id.to_owned(), (number, entry.prompt_tokens, entry.cached_tokens));
            }
        }
        let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
        let mut figures = Self {
            turns: turns.len(),
            busiest: seconds.iter().copied().fold(0.0, f64::max) / mean.max(f64::MIN_POSITIVE),
            ..Self::default()
        };
        let mut first_events: Vec<Duration> = Vec::new();
        for turn in turns {
            figures.failed_tries += turn.failures.len();
            figures.reasons.extend(turn.failures.iter().take(8 - figures.reasons.len().min(8)).cloned());
            if !turn.is_answered {
                figures.unanswered += 1;
                continue;
            }
            first_events.push(turn.first_event);
            let Some(&(engine, prompt, cached)) = served.get(&turn.id) else { continue };
            figures.prompt_tokens += prompt;
            figures.cached_tokens += cached;
            if let Some(inherited) = turn.inherited {
                figures.follow_ups += 1;
                let is_warm = is_warm(turn, inherited, cached);
                let before = turn.parent.as_ref().and_then(|parent| served.get(parent));
                let is_back = before.is_some_and(|(before, ..)| *before == engine);
                figures.warm += usize::from(is_warm);
                figures.let_go += usize::from(!is_warm && is_back);
            }
        }
        first_events.sort_unstable();
        let count = u32::try_from(first_events.len()).unwrap();
        figures.first_event_mean = first_events.iter().sum::<Duration>() / count.max(1);
        figures.first_event_p99 = first_events.get(first_events.len() * 99 / 100).copied().unwrap_or_default();
        figures
    }

    /// The share of follow-up turns that found most of their conversation.
    pub(crate) fn warm_share(&self) -> f64 {
        self.warm as f64 / self.follow_ups.max(1) as f64
    }

    /// The share of the prompts' tokens that was cached.
    pub(crate) fn hit_share(&self) -> f64 {
        self.cached_tokens as f64 / self.prompt_tokens.max(1) as f64
    }
}

/// Whether a turn found at least four fifths of what its conversation had beyond the system prompt, which anybody may have.
fn is_warm(turn: &Turn, inherited: u64, cached: u64) -> bool {
    let own = inherited.saturating_sub(turn.shared);
    cached + u64::from(BLOCK_TOKENS) >= turn.shared + own * 4 / 5
}

/// The head of a table of [`Figures`].
pub(crate) const HEAD: &str = "| run | turns | unanswered | failed tries | warm follow-ups | let go | hit share | first event, mean | p99 | busiest / mean |\n\
     |---|---|---|---|---|---|---|---|---|---|";

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} | {} | {} | {:.3} of {} | {} | {:.3} | {:.3} s | {:.3} s | {:.2} |",
            self.turns,
            self.unanswered,
            self.failed_tries,
            self.warm_share(),
            self.follow_ups,
            self.let_go,
            self.hit_share(),
            self.first_event_mean.as_secs_f64(),
            self.first_event_p99.as_secs_f64(),
            self.busiest,
        )
    }
}

/// Prints a row of the table, and why requests failed if any did.
pub(crate) fn print(name: &str, figures: &Figures) {
    println!("| {name} | {figures}");
    for reason in &figures.reasons {
        println!("    failed: {reason}");
    }
}
