//! What is promised of each mode.

use std::time::Duration;

use smg_base::fuzz;
use smg_limits::{Mode, Window};

use super::{Case, Flaw, Trouble};

/// Runs of every mode with everything that goes wrong.
const SEEDS: u64 = fuzz::inputs(5);

fn case(seed: u64, mode: Mode, trouble: Trouble) -> Case {
    let window = Window::Second;
    Case { seed, nodes: 5, mode, amount: 500, window, overload: 10.0, trouble, seconds: 30, flaw: None }
}

#[test]
fn without_faults_every_mode_keeps_its_bound_and_uses_the_limit() {
    for mode in [Mode::Shared, Mode::Strict, Mode::Hybrid] {
        let case = Case { seconds: 1, ..case(1, mode, Trouble::None) };
        let figures = case.run();
        assert_eq!(figures.exceeded, None, "{mode}");
        // Requests come in portions of a step.
        let bound = case.bound(figures.staleness + Duration::from_millis(8)) + 0.01;
        assert!(figures.peak_whole <= bound, "{mode}: {} > {bound}, {figures:?}", figures.peak_whole);
        assert!(figures.mean_healed > 0.85, "{mode}: {figures:?}");
        assert!(figures.lone > 0.95, "{mode}: {figures:?}");
    }
}

#[test]
fn strict_limits_are_never_exceeded_whatever_happens() {
    for seed in 0..SEEDS {
        let case = case(seed, Mode::Strict, Trouble::Swarm);
        let figures = case.run();
        assert_eq!(figures.exceeded, None, "seed {seed}: {figures:?}");
        assert!(figures.mean_healed > 0.85, "seed {seed}: {figures:?}");
        assert!(figures.lone > 0.95, "seed {seed}: {figures:?}");
    }
}

#[test]
fn budgets_are_not_refilled_by_whoever_ends_without_a_word() {
    for seed in 0..SEEDS {
        let strict = case(seed, Mode::Strict, Trouble::Kills);
        let figures = Case { window: Window::Hour, amount: 2_000, overload: 2.0, ..strict }.run();
        assert_eq!(figures.exceeded, None, "seed {seed}: {figures:?}");
        assert!(figures.total > 0.5, "seed {seed}: {figures:?}");
    }
}

#[test]
fn budgets_are_not_refilled_by_an_empty_disk_where_others_know_better() {
    // In each a node comes back without its disk and hears from another what it had taken.
    for seed in [31, 102, 138] {
        let strict = case(seed, Mode::Strict, Trouble::Swarm);
        let figures = Case { window: Window::Hour, overload: 2.0, ..strict }.run();
        assert_eq!(figures.exceeded, None, "seed {seed}: {figures:?}");
    }
}

#[test]
fn a_bucket_that_every_node_fills_by_itself_is_found() {
    let case = Case { flaw: Some(Flaw::RefilledPerNode), ..case(3, Mode::Strict, Trouble::None) };
    assert!(case.run().exceeded.is_some());
    let case = Case { mode: Mode::Shared, ..case };
    let figures = case.run();
    // What others tell still counts there, so it is as good as any.
    assert!(figures.peak_whole < 1.5, "{figures:?}");
}

#[test]
fn a_half_that_is_cut_off_keeps_its_share() {
    for mode in [Mode::Shared, Mode::Strict, Mode::Hybrid] {
        let case = case(4, mode, Trouble::Split);
        let figures = case.run();
        assert_eq!(figures.exceeded, None, "{mode}");
        assert!(figures.peak_troubled <= 2.0 * case.bound(figures.staleness) + 0.1, "{mode}: {figures:?}");
        let known = if mode == Mode::Strict { 1.0 } else { case.bound(figures.staleness) + 0.05 };
        assert!(figures.peak_known <= known, "{mode}: {figures:?}");
        assert!((figures.mean_healed - 1.0).abs() < 0.5, "{mode}: {figures:?}");
    }
}
