//! `smg simulate limits`: limits of many nodes in virtual time, under faults.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use smg_sim::{
    limits::{Case, Figures, Mode, Trouble, Window},
    measure::quantile,
};

use super::{Failure, output, simulate::on_all_cores};

/// Arguments of `smg simulate limits`.
#[derive(clap::Args, Debug)]
pub(super) struct Limits {
    /// How many seeds of each mode and kind of trouble.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Nodes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=64))]
    nodes: u64,
    /// How many times the limit is offered.
    #[arg(long, default_value_t = 10.0)]
    overload: f64,
    /// The limit, in requests within a second.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    limit: u64,
    /// Simulated seconds of trouble.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    trouble_seconds: u64,
}

/// What is run. The last is a budget: it is used up once, twice of it is asked for, and nobody may refill it.
const KINDS: [(Mode, Window, Trouble); 7] = [
    (Mode::Shared, Window::Second, Trouble::Split),
    (Mode::Shared, Window::Second, Trouble::Swarm),
    (Mode::Hybrid, Window::Second, Trouble::Split),
    (Mode::Hybrid, Window::Second, Trouble::Swarm),
    (Mode::Strict, Window::Second, Trouble::Split),
    (Mode::Strict, Window::Second, Trouble::Swarm),
    (Mode::Strict, Window::Hour, Trouble::Kills),
];
const BUDGET_OVERLOAD: f64 = 2.0;

pub(super) fn run(args: &Limits) -> Result<(), Failure> {
    let mut cases = Vec::new();
    for (mode, window, trouble) in KINDS {
        let nodes = usize::try_from(args.nodes).unwrap_or(usize::MAX);
        let (amount, seconds) = (args.limit, args.trouble_seconds);
        let overload = if window == Window::Second { args.overload } else { BUDGET_OVERLOAD };
        let seeds = (0..args.seeds).map(|number| args.first_seed.wrapping_add(number));
        let case = |seed| Case { seed, nodes, mode, amount, window, overload, trouble, seconds, flaw: None };
        cases.extend(seeds.map(case));
    }
    let next = AtomicU64::new(0);
    let done = on_all_cores(|| {
        let mut done = Vec::new();
        while let Some(case) =
            usize::try_from(next.fetch_add(1, Ordering::Relaxed)).ok().and_then(|number| cases.get(number))
        {
            done.push((*case, case.run()));
        }
        done
    });
    let done: Vec<(Case, Figures)> = done.into_iter().flatten().collect();
    let mut exceeded = 0;
    for (case, figures) in &done {
        if let Some(what) = &figures.exceeded {
            exceeded += 1;
            let (seed, window, trouble) = (case.seed, case.window, case.trouble);
            output::note(&format!("seed {seed}, by the {window}, {trouble:?}: a strict limit was exceeded: {what}"));
        }
    }
    let header = [
        "mode",
        "per",
        "trouble",
        "runs",
        "whole p50",
        "max",
        "bound",
        "during max",
        "known max",
        "healed max",
        "used",
        "lone min",
        "total min",
        "staleness ms",
        "B/s",
    ];
    let rows: Vec<Vec<String>> = KINDS
        .into_iter()
        .map(|kind| {
            row(&done.iter().filter(|(case, _)| (case.mode, case.window, case.trouble) == kind).collect::<Vec<_>>())
        })
        .collect();
    output::print(&output::table(&header, &rows))?;
    output::print(
        "Peaks are the most that all nodes together let in within one window, in parts of the limit: while nothing was wrong (whole), \
         while something was, from 12 s after that (known), and after healing. Used is the mean after healing, lone what one node let in \
         that had all the load, total what all let in of a limit by the hour at least, which is used up once, staleness how late the others' counts were heard at most, B/s what a node wrote.\n",
    )?;
    match exceeded {
        0 => Ok(()),
        _ => Err(Failure::Launch(format!("{exceeded} runs exceeded a strict limit").into())),
    }
}

fn row(runs: &[&(Case, Figures)]) -> Vec<String> {
    let Some((case, _)) = runs.first() else { return Vec::new() };
    let all = |read: &dyn Fn(&Figures) -> f64| runs.iter().map(|(_, figures)| read(figures)).collect::<Vec<f64>>();
    let most = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
    let least = |values: Vec<f64>| values.into_iter().fold(f64::MAX, f64::min);
    let middle = |values: &[f64]| quantile(values, 0.5).unwrap_or_default();
    let late = most(all(&|figures| figures.staleness.as_secs_f64()));
    let parts = |value: f64| format!("{value:.3}");
    let trouble = match case.trouble {
        Trouble::None => "none",
        Trouble::Split => "split",
        Trouble::Swarm => "swarm",
        Trouble::Kills => "kills",
    };
    vec![
        case.mode.as_str().to_owned(),
        case.window.as_str().to_owned(),
        trouble.to_owned(),
        runs.len().to_string(),
        parts(middle(&all(&|figures| figures.peak_whole))),
        parts(most(all(&|figures| figures.peak_whole))),
        parts(case.bound(Duration::from_secs_f64(late))),
        parts(most(all(&|figures| figures.peak_troubled))),
        parts(most(all(&|figures| figures.peak_known))),
        parts(most(all(&|figures| figures.peak_healed))),
        parts(middle(&all(&|figures| figures.mean_healed))),
        parts(least(all(&|figures| figures.lone))),
        match case.window {
            Window::Second => "-".to_owned(),
            _ => parts(least(all(&|figures| figures.total))),
        },
        format!("{:.0}", late * 1_000.0),
        format!("{:.0}", middle(&all(&|figures| figures.bytes_per_second))),
    ]
}
