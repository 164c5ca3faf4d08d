//! Replays with several seeds as one row, and rows as one report.

use serde::Serialize;

use super::figures::{Figures, deviation, mean};

/// A mean over seeds, and how far they are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub deviation: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        Self { mean: mean(values), deviation: deviation(values) }
    }
}

/// What came of one case, over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Who chose.
    pub name: String,
    /// Whether it is a policy of this project, a model of another's rule, or what both are measured against.
    pub family: Family,
    /// How many gateways there were.
    pub gateways: usize,
    /// How many seeds.
    pub seeds: usize,
    /// Requests of all seeds, and those that came to nothing.
    pub requests: u64,
    /// No engine was chosen for them.
    pub rejected: u64,
    /// Their engine refused them.
    pub failed: u64,
    /// The share of prompt tokens found in caches.
    pub hit_share: Spread,
    /// The same as a share of what a cache without end would have found.
    pub of_infinite: Spread,
    /// What it would have found.
    pub infinite_share: f64,
    /// Seconds to the first token: mean, and means over seeds of quantiles.
    pub ttft_mean: Spread,
    /// The median.
    pub ttft_p50: f64,
    /// Of nine in ten requests.
    pub ttft_p90: f64,
    /// Of ninety-nine in a hundred.
    pub ttft_p99: f64,
    /// Seconds between two tokens of an answer.
    pub gap_mean: f64,
    /// Seconds to the last token.
    pub duration_mean: f64,
    /// Prompt tokens computed by the busiest engine, as a multiple of the mean.
    pub imbalance: f64,
    /// Requests that gave back their memory and started again, of all seeds.
    pub preemptions: u64,
    /// Claims and changes that made no sense, of all seeds.
    pub unplaced: u64,
}

/// Of what kind a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// A policy of this project.
    Policy,
    /// A model of another router's rule.
    Model,
    /// One gateway that knows everything at once.
    Perfect,
}

impl Row {
    /// Sums up.
    pub fn new(name: String, family: Family, gateways: usize, runs: &[Figures]) -> Self {
        let over = |value: &dyn Fn(&Figures) -> f64| runs.iter().map(value).collect::<Vec<_>>();
        let sum = |value: &dyn Fn(&Figures) -> u64| runs.iter().map(value).sum();
        Self {
            name,
            family,
            gateways,
            seeds: runs.len(),
            requests: sum(&|run| run.requests),
            rejected: sum(&|run| run.rejected),
            failed: sum(&|run| run.failed),
            hit_share: Spread::of(&over(&Figures::hit_share)),
            of_infinite: Spread::of(&over(&Figures::of_infinite)),
            infinite_share: mean(&over(&Figures::infinite_share)),
            ttft_mean: Spread::of(&over(&Figures::ttft_mean)),
            ttft_p50: mean(&over(&|run| run.ttft_at(0.5))),
            ttft_p90: mean(&over(&|run| run.ttft_at(0.9))),
            ttft_p99: mean(&over(&|run| run.ttft_at(0.99))),
            gap_mean: mean(&over(&|run| mean(&run.gap))),
            duration_mean: mean(&over(&|run| mean(&run.duration))),
            imbalance: mean(&over(&|run| run.imbalance)),
            preemptions: sum(&|run| run.preemptions),
            unplaced: sum(&|run| run.unplaced),
        }
    }
}

/// Rows that belong together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was simulated, in a line.
    pub title: String,
    /// The conditions, in a few more.
    pub conditions: Vec<String>,
    /// What came of it.
    pub rows: Vec<Row>,
}

impl Report {
    /// Names of the figures.
    pub const COLUMNS: [&'static str; 14] = [
        "chooser",
        "gateways",
        "seeds",
        "found %",
        "of infinite %",
        "TTFT mean s",
        "p50",
        "p90",
        "p99",
        "gap ms",
        "imbalance",
        "preempted",
        "rejected",
        "failed",
    ];

    /// Those of a row, in that order.
    pub fn cells(row: &Row) -> Vec<String> {
        vec![
            row.name.clone(),
            row.gateways.to_string(),
            row.seeds.to_string(),
            format!("{:.1}", row.hit_share.mean * 100.0),
            format!("{:.1} \u{b1} {:.1}", row.of_infinite.mean * 100.0, row.of_infinite.deviation * 100.0),
            format!("{:.3} \u{b1} {:.3}", row.ttft_mean.mean, row.ttft_mean.deviation),
            format!("{:.2}", row.ttft_p50),
            format!("{:.2}", row.ttft_p90),
            format!("{:.2}", row.ttft_p99),
            format!("{:.1}", row.gap_mean * 1_000.0),
            format!("{:.2}", row.imbalance),
            row.preemptions.to_string(),
            row.rejected.to_string(),
            row.failed.to_string(),
        ]
    }
}
