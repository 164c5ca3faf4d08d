//! What the benchmarks that measure code (rather than processes) share: a clock for short pieces of it, and a table.
//!
//! A piece is timed in rounds of many calls and the median round is told, so that what the scheduler does to a few of
//! them does not count. Nothing here knows what is measured, or compares it with anything.

pub mod indexes;

use std::{
    fmt::{self, Write as _},
    hint::black_box,
    time::{Duration, Instant},
};

/// How long one round takes: long enough for the clock, short enough that most rounds are left alone by the scheduler.
const ROUND: Duration = Duration::from_millis(2);
/// How many rounds are taken. Their median is told.
const ROUNDS: usize = 41;

/// Nanoseconds that one call of `work` takes, as the median over rounds of many calls each.
pub fn nanos<T>(mut work: impl FnMut() -> T) -> f64 {
    let mut calls = 1_u32;
    // The search for a good number of calls also warms up.
    while round(&mut work, calls) < ROUND && calls < 1 << 24 {
        calls *= 2;
    }
    let mut rounds: Vec<f64> =
        (0..ROUNDS).map(|_| round(&mut work, calls).as_secs_f64() * 1e9 / f64::from(calls)).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// Nanoseconds per piece of `work` that can be done only once on each, as the median over parts of the pieces.
pub fn nanos_once<P>(pieces: &[P], mut work: impl FnMut(&P)) -> f64 {
    let part = (pieces.len() / ROUNDS).max(1);
    let per_piece = |pieces: &[P]| f64::from(u32::try_from(pieces.len()).unwrap_or(u32::MAX));
    let mut rounds: Vec<f64> = pieces
        .chunks(part)
        .map(|pieces| {
            let start = Instant::now();
            pieces.iter().for_each(&mut work);
            start.elapsed().as_secs_f64() * 1e9 / per_piece(pieces)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds.get(rounds.len() / 2).copied().unwrap_or(0.0)
}

fn round<T>(work: &mut impl FnMut() -> T, calls: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..calls {
        black_box(work());
    }
    start.elapsed()
}

/// A table for people: the first column to the left, the others to the right.
#[derive(Debug)]
pub struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with the names of its columns.
    pub fn new(title: &str, columns: &[&str]) -> Self {
        Self { title: title.to_owned(), rows: vec![columns.iter().map(|&name| name.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(line, "  {cell:<width$}")?,
                    _ => write!(line, "  {cell:>width$}")?,
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
