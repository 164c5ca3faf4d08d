//! What came of a replay, in numbers.

use std::time::Duration;

use serde::Serialize;

use super::engine::Work;
use crate::measure::quantile;

/// The outcome of one replay. Equal for equal cases.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Requests that came.
    pub requests: u64,
    /// Of those, the ones for which no engine was chosen.
    pub rejected: u64,
    /// Those that their engine refused.
    pub failed: u64,
    /// Tokens of all prompts.
    pub input_tokens: u64,
    /// Of those, the ones found in the caches.
    pub hit_tokens: u64,
    /// The ones that one cache without end would have found.
    pub reusable_tokens: u64,
    /// Prompt tokens computed, again after a preemption included.
    pub prefilled_tokens: u64,
    /// Tokens of answers.
    pub decoded_tokens: u64,
    /// Requests that gave back their memory and started again.
    pub preemptions: u64,
    /// Prompt tokens computed by the busiest engine, as a multiple of the mean.
    pub imbalance: f64,
    /// Claims and changes that reached nobody who could make sense of them.
    pub unplaced: u64,
    /// Seconds to the first token.
    #[serde(skip)]
    pub ttft: Vec<f64>,
    /// Seconds to the last token.
    #[serde(skip)]
    pub duration: Vec<f64>,
    /// Seconds between tokens, one mean for each answer.
    #[serde(skip)]
    pub gap: Vec<f64>,
}

impl Figures {
    pub(super) fn came(&mut self, input_tokens: u32) {
        self.requests += 1;
        self.input_tokens += u64::from(input_tokens);
    }

    pub(super) fn first_token(&mut self, after: Duration, cached_tokens: u32) {
        self.ttft.push(after.as_secs_f64());
        self.hit_tokens += u64::from(cached_tokens);
    }

    pub(super) fn finished(&mut self, after: Duration, gap: Option<Duration>) {
        self.duration.push(after.as_secs_f64());
        self.gap.extend(gap.map(|gap| gap.as_secs_f64()));
    }

    pub(super) fn worked(&mut self, works: &[Work]) {
        self.prefilled_tokens = works.iter().map(|work| work.prefilled_tokens).sum();
        self.decoded_tokens = works.iter().map(|work| work.decoded_tokens).sum();
        self.preemptions = works.iter().map(|work| work.preemptions).sum();
        let busiest = works.iter().map(|work| work.prefilled_tokens).max().unwrap_or(0);
        self.imbalance = ratio(busiest, self.prefilled_tokens) * f64::from(u32::try_from(works.len()).unwrap_or(1));
    }

    /// The share of prompt tokens found in the caches.
    pub fn hit_share(&self) -> f64 {
        ratio(self.hit_tokens, self.input_tokens)
    }

    /// The share that one cache without end would have found.
    pub fn infinite_share(&self) -> f64 {
        ratio(self.reusable_tokens, self.input_tokens)
    }

    /// The first as a share of the second.
    pub fn of_infinite(&self) -> f64 {
        ratio(self.hit_tokens, self.reusable_tokens)
    }

    /// The mean time to the first token, in seconds.
    pub fn ttft_mean(&self) -> f64 {
        mean(&self.ttft)
    }

    /// A quantile of it; zero if nobody got one.
    pub fn ttft_at(&self, share: f64) -> f64 {
        quantile(&self.ttft, share).unwrap_or(0.0)
    }
}

/// The mean; zero if there are no values.
#[expect(clippy::cast_precision_loss, reason = "a count of values")]
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The standard deviation of a sample; zero if there is only one value.
#[expect(clippy::cast_precision_loss, reason = "a count of values")]
pub(super) fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
