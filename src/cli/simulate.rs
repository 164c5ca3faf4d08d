//! `smg simulate`: clusters and fleets in virtual time.

use std::{
    io::IsTerminal,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::Subcommand;
use smg_sim::{
    Outcome, Plan, Reached, Shape, kept_plans,
    measure::{Case, Effort, Question, Sample, quantile},
};

use super::{Failure, output, replay, simulate_limits};

/// Arguments of `smg simulate`: a verb, or those of `smg simulate fleet` at once.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    fleet: Option<replay::Fleet>,
}

/// What to simulate.
#[derive(Subcommand, Debug)]
enum Verb {
    /// Replay a trace against engines and gateways, and compare ways to choose.
    Fleet(replay::Fleet),
    /// Limits of many nodes, offered far more than they may let in.
    Limits(simulate_limits::Limits),
    /// Clusters of nodes, and the network between them.
    #[command(subcommand)]
    Mesh(Mesh),
}

/// What to do with clusters.
#[derive(Subcommand, Debug)]
enum Mesh {
    /// Run seeds with faults of every kind, and check what the mesh promises.
    Check(Check),
    /// Run one seed or plan again, and make it smaller.
    Replay(Replay),
    /// Measure how soon a crash is known, a change seen and a split healed, and what idling costs.
    Tables(Tables),
}

/// Arguments of `smg simulate mesh check`.
#[derive(clap::Args, Debug)]
struct Check {
    /// How many seeds; without it, as many as fit in the time.
    #[arg(long, conflicts_with = "seconds")]
    seeds: Option<u64>,
    /// Real seconds to go on for.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    #[command(flatten)]
    size: Size,
}

/// Arguments of `smg simulate mesh replay`.
#[derive(clap::Args, Debug)]
#[group(id = "source", required = true)]
struct Replay {
    /// The seed.
    #[arg(long, group = "source")]
    seed: Option<u64>,
    /// A plan in JSON.
    #[arg(long, group = "source")]
    plan: Option<PathBuf>,
    /// Where to write the smallest plan found that still fails.
    #[arg(long)]
    shrink_to: Option<PathBuf>,
    #[command(flatten)]
    size: Size,
}

/// Arguments of `smg simulate mesh tables`.
#[derive(clap::Args, Debug)]
struct Tables {
    /// Fewer seeds, and no large clusters.
    #[arg(long)]
    quick: bool,
    /// One table: cold-start, detection, update, heal, false-verdicts or idle.
    #[arg(long)]
    only: Option<String>,
}

/// The size of a cluster and of a run.
#[derive(clap::Args, Debug)]
struct Size {
    /// Nodes.
    #[arg(long, default_value_t = 5)]
    nodes: usize,
    /// Simulated seconds of a run.
    #[arg(long, default_value_t = 120)]
    simulated_seconds: u64,
}

impl Size {
    fn shape(&self) -> Shape {
        Shape { nodes: self.nodes, seconds: self.simulated_seconds }
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    match (&args.verb, &args.fleet) {
        (Some(Verb::Mesh(Mesh::Check(args))), _) => check(args),
        (Some(Verb::Mesh(Mesh::Replay(args))), _) => replay_plan(args),
        (Some(Verb::Mesh(Mesh::Tables(args))), _) => tables(args),
        (Some(Verb::Limits(args)), _) => simulate_limits::run(args),
        (Some(Verb::Fleet(args)), _) | (None, Some(args)) => replay::run(args),
        (None, None) => Err(Failure::Usage("smg simulate takes fleet, limits or mesh".to_owned())),
    }
}

/// One of so many seeds is run twice, to see that it is one run.
const REPEAT_EVERY: u64 = 100;
/// Seeds after which every state worth getting into must have been.
const COVERED_AFTER: u64 = 400;

/// What became of many runs.
#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    traces: u64,
    reached: Reached,
    healed: Vec<f64>,
    simulated: Duration,
}

impl Tally {
    fn add(&mut self, plan: &Plan, outcome: &Outcome) {
        self.simulated += plan.length() * u32::try_from(plan.nodes).unwrap_or(u32::MAX);
        // Whichever thread is done first, the sum is the same.
        self.traces = self.traces.wrapping_add(outcome.trace);
        self.reached.add(&outcome.reached);
        self.healed.extend(outcome.healed_ms.map(|healed| Duration::from_millis(healed).as_secs_f64()));
        if outcome.violations.is_empty() { self.passed += 1 } else { self.failed += 1 }
    }

    fn join(mut self, other: Self) -> Self {
        self.passed += other.passed;
        self.failed += other.failed;
        self.traces = self.traces.wrapping_add(other.traces);
        self.reached.add(&other.reached);
        self.healed.extend(other.healed);
        self.simulated += other.simulated;
        self
    }
}

fn check(args: &Check) -> Result<(), Failure> {
    let begun = Instant::now();
    let kept = kept_plans();
    let next = AtomicU64::new(0);
    let job = |number: u64| -> Option<Plan> {
        if let Some(kept) = usize::try_from(number).ok().and_then(|number| kept.get(number)) {
            return Some(kept.clone());
        }
        let number = number - kept.len() as u64;
        let is_over = match args.seeds {
            Some(seeds) => number >= seeds,
            None => begun.elapsed() >= Duration::from_secs(args.seconds),
        };
        (!is_over).then(|| args.size.shape().plan(args.first_seed.wrapping_add(number)))
    };
    let tally = on_all_cores(|| {
        let mut tally = Tally::default();
        while let Some(plan) = job(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = try_plan(&plan);
            if let Some(violation) = outcome.violations.first() {
                let (at_ms, promise, what) = (violation.at_ms, violation.promise, &violation.what);
                output::note(&format!("seed {}: {promise:?} at {at_ms} ms: {what}", plan.seed));
            }
            tally.add(&plan, &outcome);
            progress(&format!("{} seeds, {:.0} s", next.load(Ordering::Relaxed), begun.elapsed().as_secs_f64()));
        }
        tally
    });
    let tally = tally.into_iter().reduce(Tally::join).unwrap_or_default();
    report(&tally, begun.elapsed())
}

fn report(tally: &Tally, took: Duration) -> Result<(), Failure> {
    let runs = tally.passed + tally.failed;
    let missed = if runs >= COVERED_AFTER { tally.reached.missed() } else { Vec::new() };
    if !missed.is_empty() {
        output::note(&format!("never reached: {missed:?}"));
    }
    let failed = tally.failed + u64::from(!missed.is_empty());
    let healed = |share: f64| quantile(&tally.healed, share).map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"));
    output::print(&format!(
        "{runs} seeds, {} violations, hash {:016x}\n\
         {:.0} node-seconds in {:.1} s; whole again after the last fault, seconds: p50 {}, p99 {}\n\
         Simulated: {} passed, {failed} failed, 0 skipped\n",
        tally.failed,
        tally.traces,
        tally.simulated.as_secs_f64(),
        took.as_secs_f64(),
        healed(0.5),
        healed(0.99),
        tally.passed,
    ))?;
    if failed == 0 { Ok(()) } else { Err(Failure::Launch("the mesh broke a promise".into())) }
}

/// Runs a plan, some of them twice.
fn try_plan(plan: &Plan) -> Outcome {
    let mut outcome = smg_sim::run(plan);
    if outcome.violations.is_empty()
        && plan.seed.is_multiple_of(REPEAT_EVERY)
        && let Err(violation) = smg_sim::repeat(plan, None)
    {
        outcome.violations.push(violation);
    }
    outcome
}

/// Runs that making a plan smaller may take.
const SHRINK_TRIES: usize = 400;

fn replay_plan(args: &Replay) -> Result<(), Failure> {
    let plan = match (&args.plan, args.seed) {
        (Some(path), _) => {
            let text = std::fs::read_to_string(path).map_err(Failure::system("read the plan"))?;
            let plan: Plan = serde_json::from_str(&text).map_err(|error| Failure::Usage(error.to_string()))?;
            if !plan.is_sound() {
                return Err(Failure::Usage("the plan speaks of nodes or workers that it does not have".to_owned()));
            }
            plan
        }
        (None, seed) => args.size.shape().plan(seed.unwrap_or(0)),
    };
    let outcome = smg_sim::run(&plan);
    for violation in &outcome.violations {
        output::print(&format!("{:?} at {} ms: {}\n", violation.promise, violation.at_ms, violation.what))?;
    }
    output::print(&format!("{} violations, hash {:016x}\n", outcome.violations.len(), outcome.trace))?;
    if outcome.violations.is_empty() {
        return Ok(());
    }
    if let Some(path) = &args.shrink_to {
        let small = smg_sim::shrink(&plan, None, SHRINK_TRIES);
        let text = serde_json::to_string_pretty(&small).map_err(|error| Failure::Launch(error.into()))?;
        std::fs::write(path, text).map_err(Failure::system("write the plan"))?;
        let counts = (small.nodes, small.faults.len(), small.operations.len());
        output::print(&format!("{} nodes, {} faults, {} operations still fail\n", counts.0, counts.1, counts.2))?;
    }
    Err(Failure::Launch("the mesh broke a promise".into()))
}

fn tables(args: &Tables) -> Result<(), Failure> {
    let effort = if args.quick { Effort::Quick } else { Effort::Full };
    let questions: Vec<Question> = match &args.only {
        None => Question::ALL.to_vec(),
        Some(name) => Question::ALL.into_iter().filter(|question| question.as_str() == name).collect(),
    };
    if questions.is_empty() {
        return Err(Failure::Usage("no such table".to_owned()));
    }
    for question in questions {
        let mut rows = Vec::new();
        for case in Case::all(effort).into_iter().filter(|case| case.question == question) {
            progress(&format!("{} {:?} {} nodes", question.as_str(), case.pace, case.nodes));
            rows.push(row(&case));
        }
        let mut header = vec!["TIMERS", "NODES", "LOSS %", "SEEDS", "VALUES"];
        let names: Vec<String> = question
            .columns()
            .iter()
            .flat_map(|name| {
                let shown: &[&str] = if is_total(question) { &["total"] } else { &["p50", "p99", "max"] };
                shown.iter().map(move |figure| format!("{} {figure}", name.to_uppercase()))
            })
            .collect();
        header.extend(names.iter().map(String::as_str));
        output::print(&format!("{}\n{}\n", question.as_str(), output::table(&header, &rows)))?;
    }
    Ok(())
}

fn is_total(question: Question) -> bool {
    question == Question::FalseVerdicts
}

/// One row: the quantiles of every column over all seeds.
fn row(case: &Case) -> Vec<String> {
    let next = AtomicU64::new(1);
    let samples: Vec<Sample> = on_all_cores(|| {
        let mut samples = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > case.seeds {
                return samples;
            }
            samples.push(case.sample(seed));
        }
    })
    .into_iter()
    .flatten()
    .collect();
    let columns: Vec<Vec<f64>> = (0..case.question.columns().len())
        .map(|column| samples.iter().filter_map(|sample| sample.get(column)).flatten().copied().collect())
        .collect();
    let values = columns.first().map_or(0, Vec::len);
    let timers = format!("{:?}", case.pace).to_lowercase();
    let mut cells = vec![timers, case.nodes.to_string(), case.loss_percent.to_string()];
    cells.extend([format!("1-{}", case.seeds), values.to_string()]);
    for column in &columns {
        if is_total(case.question) {
            cells.push(format!("{:.0}", column.iter().sum::<f64>()));
        } else {
            cells.extend([0.5, 0.99, 1.0].map(|share| quantile(column, share).map_or_else(dash, figure)));
        }
    }
    cells
}

fn dash() -> String {
    "-".to_owned()
}

fn figure(value: f64) -> String {
    if value.is_infinite() {
        "never".to_owned()
    } else if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Does the same on every core; seeds have nothing to do with each other.
pub(super) fn on_all_cores<T: Send>(work: impl Fn() -> T + Sync) -> Vec<T> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(&work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a panic of the mesh is a finding")).collect()
    })
}

/// Shows how far it is, where somebody looks.
pub(super) fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        output::progress(text);
    }
}
