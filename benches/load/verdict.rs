//! What was aimed at, and whether it was met.

use super::table::{Table, figure};

/// On which side of a target a figure must be.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    AtLeast,
    AtMost,
}

/// Figures beside their targets.
#[derive(Default)]
pub(crate) struct Verdicts {
    rows: Vec<[String; 5]>,
    missed: usize,
}

impl Verdicts {
    /// Judges a figure; one that was not measured is not judged.
    pub(crate) fn judge(&mut self, what: &str, value: Option<f64>, side: Side, target: f64, unit: &str) {
        let Some(value) = value else { return };
        let (sign, is_met) = match side {
            Side::AtLeast => ("≥", value >= target),
            Side::AtMost => ("≤", value <= target),
        };
        self.missed += usize::from(!is_met);
        let target = format!("{sign} {}", figure(Some(target)));
        let verdict = if is_met { "met" } else { "missed" };
        self.rows.push([what.to_owned(), unit.to_owned(), figure(Some(value)), target, verdict.to_owned()]);
    }

    /// Prints what was judged.
    pub(crate) fn print(&self) {
        if self.rows.is_empty() {
            return;
        }
        let mut table = Table::new(&["figure", "unit", "measured", "target", "verdict"]);
        self.rows.iter().for_each(|row| table.row(row.clone()));
        table.print("Targets");
        println!("\n{} of {} targets met", self.rows.len() - self.missed, self.rows.len());
    }
}
