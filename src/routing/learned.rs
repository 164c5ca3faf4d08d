//! How long a model's tokens are.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::{PolicyConfig, Seen};

/// Bytes of text per token of one model, as a fading average over its prompts.
#[derive(Debug)]
pub(crate) struct BytesPerToken(AtomicU32);

/// What the newest prompt weighs.
const NEWEST: f64 = 0.02;
/// Shorter prompts tell more about the chat template than about the text.
const TOKENS_MIN: u64 = 64;
/// A ratio outside means that the text is not what was counted (images, reasoning).
const SANE: std::ops::RangeInclusive<f64> = 1.0..=12.0;

impl Default for BytesPerToken {
    fn default() -> Self {
        let word = Self(AtomicU32::new(0));
        word.set(PolicyConfig::BYTES_PER_TOKEN);
        word
    }
}

impl BytesPerToken {
    /// The ratio.
    pub(crate) fn ratio(&self) -> f64 {
        f64::from(f32::from_bits(self.0.load(Relaxed)))
    }

    /// Learns from an answered request. Of two at once one may be lost.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub(crate) fn learn(&self, seen: &Seen) {
        let Some(tokens) = seen.input_tokens.filter(|tokens| *tokens >= TOKENS_MIN) else { return };
        let ratio = seen.text_bytes as f64 / tokens as f64;
        if SANE.contains(&ratio) {
            self.set(self.ratio() + NEWEST * (ratio - self.ratio()));
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "an average needs no more than seven digits")]
    fn set(&self, ratio: f64) {
        self.0.store((ratio as f32).to_bits(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_follows_the_prompts_and_ignores_nonsense() {
        let learned = BytesPerToken::default();
        for _ in 0..400 {
            learned.learn(&Seen { input_tokens: Some(1_000), text_bytes: 2_500, ..Seen::default() });
            learned.learn(&Seen { input_tokens: Some(1_000), text_bytes: 0, ..Seen::default() });
            learned.learn(&Seen { input_tokens: Some(10), text_bytes: 90, ..Seen::default() });
            learned.learn(&Seen { text_bytes: 9_000, ..Seen::default() });
        }
        assert!((learned.ratio() - 2.5).abs() < 0.01, "{}", learned.ratio());
    }
}
