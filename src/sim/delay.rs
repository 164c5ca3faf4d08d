//! How long a small frame takes on an open QUIC connection, as measured with real quinn in virtual time.
//!
//! The table is of 5 nodes on links of 0.5 to 1.5 ms (`chaos.md` §3.3 of the project's notes): under loss most frames arrive as
//! if nothing were, and the tail is made of probe timeouts that double. At 50 % QUIC itself collapses, so that 30 % is the most
//! a plan asks for.

use std::time::Duration;

use crate::dice::Dice;

/// Loss each way, and what is beyond the fastest delivery at these shares of all deliveries, in milliseconds.
const TABLE: [(f64, [f64; 6]); 4] = [
    (0.00, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
    (0.10, [0.0, 1.0, 1.0, 70.0, 203.0, 628.0]),
    (0.20, [0.0, 1.0, 35.0, 205.0, 429.0, 1_246.0]),
    (0.30, [0.0, 1.0, 126.0, 603.0, 1_663.0, 5_841.0]),
];

/// The shares of [`TABLE`], as what is left above them.
const ABOVE: [f64; 6] = [1.0, 0.5, 0.1, 0.01, 0.001, 0.0001];

/// The round trip of the links on which the table was measured.
const MEASURED_RTT_MS: f64 = 2.0;

/// Probe timeouts of QUIC grow with the round trip, from a floor made of timer granularity and delayed acknowledgement.
const TIMEOUT_FLOOR_MS: f64 = 30.0;

/// The part of a delivery that loss adds: zero for most.
pub(crate) fn recovery(loss: f64, rtt: Duration, dice: &mut Dice) -> Duration {
    if loss <= 0.0 {
        return Duration::ZERO;
    }
    let above = (1.0 - dice.unit()).max(ABOVE[5]);
    let upper = TABLE.iter().position(|(of, _)| *of >= loss).unwrap_or(TABLE.len() - 1).max(1);
    let (low, high) = (&TABLE[upper - 1], &TABLE[upper]);
    let weight = ((loss - low.0) / (high.0 - low.0)).clamp(0.0, 1.0);
    let millis = at(&low.1, above) * (1.0 - weight) + at(&high.1, above) * weight;
    let rtt_ms = rtt.as_secs_f64() * 1_000.0;
    let scale = (TIMEOUT_FLOOR_MS + rtt_ms) / (TIMEOUT_FLOOR_MS + MEASURED_RTT_MS);
    Duration::from_secs_f64(millis * scale / 1_000.0)
}

/// Reads a row where `above` of all deliveries are slower, on a straight line in the logarithm of that share.
fn at(row: &[f64; 6], above: f64) -> f64 {
    let next = ABOVE.iter().position(|share| *share <= above).unwrap_or(ABOVE.len() - 1).max(1);
    let (from, to) = (ABOVE[next - 1].ln(), ABOVE[next].ln());
    let weight = ((above.ln() - from) / (to - from)).clamp(0.0, 1.0);
    row[next - 1] * (1.0 - weight) + row[next] * weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_meet_the_measured_table() {
        for (loss, p99_ms, p999_ms) in [(0.1, 70.0, 203.0), (0.2, 205.0, 429.0), (0.3, 603.0, 1_663.0)] {
            let mut dice = Dice::new(1, 1);
            let mut drawn: Vec<f64> = (0..200_000)
                .map(|_| recovery(loss, Duration::from_millis(2), &mut dice).as_secs_f64() * 1_000.0)
                .collect();
            drawn.sort_by(f64::total_cmp);
            let at = |share: f64| drawn[(share * 200_000.0) as usize];
            assert!((at(0.99) / p99_ms - 1.0).abs() < 0.1, "p99 at {loss}: {}", at(0.99));
            assert!((at(0.999) / p999_ms - 1.0).abs() < 0.2, "p99.9 at {loss}: {}", at(0.999));
            assert!(at(0.5) <= 1.1, "p50 at {loss}: {}", at(0.5));
        }
    }
}
