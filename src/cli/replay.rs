//! `smg simulate fleet`: a trace replayed against engines and gateways in virtual time.

use std::{
    io::Read,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use clap::ValueEnum;
use serde_json::json;
use smg_sim::fleet::{
    self, Answers, Case, Chooser, EngineConfig, Family, Figures, Model, Ownership, PolicyConfig, PolicyKind, Report,
    Row, Rule, Trace, Workload,
};

use super::{
    Failure, output,
    simulate::{on_all_cores, progress},
};

/// Arguments of `smg simulate fleet`.
#[derive(clap::Args, Debug)]
pub(super) struct Fleet {
    /// The trace: a JSON object a line with `timestamp` (milliseconds), `input_length`, `output_length` and `hash_ids`, one for
    /// each 512 tokens of the prompt (the form of the Mooncake traces).
    #[arg(long)]
    trace: PathBuf,
    /// Gateways, each of which gets its part of the requests. Several numbers, separated by commas, are compared.
    #[arg(long, value_delimiter = ',', default_values_t = [16])]
    gateways: Vec<usize>,
    /// Engines.
    #[arg(long, default_value_t = 64)]
    workers: usize,
    /// Who chooses: policies (`cache_aware`, `round_robin` …), models of other routers' rules (`model:smg1-events` …), or
    /// `all` to compare.
    #[arg(long, value_delimiter = ',', default_values_t = ["all".to_owned()])]
    policy: Vec<String>,
    /// How gateways know what caches hold.
    #[arg(long, value_enum, default_value_t = Knowledge::Events)]
    knowledge: Knowledge,
    /// How engines work.
    #[arg(long, value_enum, default_value_t = Engines::Full)]
    engines: Engines,
    /// How much faster than in the trace requests come.
    #[arg(long, default_value_t = 7.0)]
    rate: f64,
    /// How many seeds, from 1 on.
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// How old what a gateway knows of the others' load is, in milliseconds.
    #[arg(long, default_value_t = 200)]
    load_delay: u64,
    /// How old what a gateway knows of caches is, in milliseconds.
    #[arg(long, default_value_t = 1_000)]
    ownership_delay: u64,
    /// Tokens that an engine's KV cache holds.
    #[arg(long, default_value_t = 524_288, value_parser = clap::value_parser!(u64).range(1_024..))]
    capacity: u64,
    /// Prompt tokens that an engine computes in a second.
    #[arg(long, default_value_t = 8_000.0)]
    prefill_rate: f64,
    /// Take only so many requests from the beginning of the trace.
    #[arg(long)]
    requests: Option<usize>,
    /// One seed, and a quarter of the requests.
    #[arg(long)]
    quick: bool,
    /// Where to write the pictures: NAME.svg and NAME.html.
    #[arg(long, value_name = "NAME", default_value = "fleet")]
    plot: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value_t = output::Form::Table)]
    output: output::Form,
}

/// How gateways know what caches hold.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// Engines report it.
    Events,
    /// A home predicts it from what all gateways sent.
    Predicted,
    /// Each gateway predicts it from what it sent itself.
    Alone,
}

/// How engines work.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Engines {
    /// Steps of prompts and streams together, in a limited memory.
    Full,
    /// One prompt after the other, and nothing else.
    Prefill,
}

/// The largest trace that is read.
const TRACE_BYTES_MAX: u64 = 512 << 20;

/// A case with its name.
struct Entry {
    name: String,
    family: Family,
    case: Case,
}

pub(super) fn run(args: &Fleet) -> Result<(), Failure> {
    let trace = read(args)?;
    let entries = entries(args)?;
    let answers = if args.engines == Engines::Full { Answers::Inferred } else { Answers::Dropped };
    let workload = Workload::new(&trace, answers);
    let seeds = if args.quick { 1 } else { args.seeds.max(1) };
    let runs = replay(&workload, &entries, seeds);
    let rows = entries
        .iter()
        .zip(&runs)
        .map(|(entry, runs)| Row::new(entry.name.clone(), entry.family, entry.case.gateways, runs))
        .collect();
    let report = Report { title: title(args, &trace), conditions: conditions(args, &workload, seeds), rows };
    show(args, &report)
}

fn read(args: &Fleet) -> Result<Trace, Failure> {
    let file = std::fs::File::open(&args.trace).map_err(Failure::system("open the trace"))?;
    let mut text = String::new();
    file.take(TRACE_BYTES_MAX + 1).read_to_string(&mut text).map_err(Failure::system("read the trace"))?;
    if text.len() as u64 > TRACE_BYTES_MAX {
        return Err(Failure::Usage(format!("the trace is larger than {} MiB", TRACE_BYTES_MAX >> 20)));
    }
    let trace = Trace::parse(&text).map_err(|error| Failure::Usage(error.to_string()))?;
    let count = args.requests.unwrap_or(if args.quick { trace.requests.len() / 4 } else { usize::MAX });
    Ok(trace.first(count.max(1)))
}

/// What is to be compared: the perfect router first, then everybody asked for, by the number of gateways.
fn entries(args: &Fleet) -> Result<Vec<Entry>, Failure> {
    let in_range = |name: &str, number: usize, most: usize| {
        if (1..=most).contains(&number) {
            return Ok(());
        }
        Err(Failure::Usage(format!("--{name} takes 1 to {most}")))
    };
    in_range("workers", args.workers, Case::ENGINES_MAX)?;
    for gateways in &args.gateways {
        in_range("gateways", *gateways, Case::GATEWAYS_MAX)?;
    }
    if !(args.rate > 0.0 && args.rate.is_finite() && args.prefill_rate > 0.0 && args.prefill_rate.is_finite()) {
        return Err(Failure::Usage("--rate and --prefill-rate take numbers above 0".to_owned()));
    }
    let base = Case {
        seed: 1,
        chooser: Chooser::Policy(PolicyKind::CacheAware),
        gateways: 1,
        engines: args.workers,
        model: if args.engines == Engines::Full { Model::Full } else { Model::Prefill },
        engine: EngineConfig {
            capacity_tokens: args.capacity,
            prefill_tokens_per_second: args.prefill_rate,
            ..EngineConfig::default()
        },
        rate: args.rate,
        load_delay: Duration::from_millis(args.load_delay),
        ownership_delay: Duration::from_millis(args.ownership_delay),
        ownership: match args.knowledge {
            Knowledge::Events => Ownership::Events,
            Knowledge::Predicted => Ownership::Predicted,
            Knowledge::Alone => Ownership::Alone,
        },
        poll: Duration::from_secs(10),
        config: PolicyConfig::default(),
    };
    let mut entries =
        vec![Entry { name: "one perfect router".to_owned(), family: Family::Perfect, case: base.perfect() }];
    for gateways in &args.gateways {
        let base = Case { gateways: *gateways, ..base.clone() };
        for name in &args.policy {
            if name == "all" {
                entries.extend(everybody(&base));
            } else {
                let chooser: Chooser = name.parse().map_err(|error| {
                    let known: Vec<&str> = choosers().map(Chooser::as_str).collect();
                    Failure::Usage(format!("'{name}': {error}; there are {} and all", known.join(", ")))
                })?;
                entries.push(entry(chooser, &base));
            }
        }
    }
    Ok(entries)
}

fn choosers() -> impl Iterator<Item = Chooser> {
    PolicyKind::ALL.into_iter().map(Chooser::Policy).chain(Rule::ALL.into_iter().map(Chooser::Rule))
}

fn entry(chooser: Chooser, base: &Case) -> Entry {
    let family = if matches!(chooser, Chooser::Policy(_)) { Family::Policy } else { Family::Model };
    Entry { name: chooser.as_str().to_owned(), family, case: Case { chooser, ..base.clone() } }
}

/// `cache_aware` in all ways of knowing, some simple policies, and every rule.
fn everybody(base: &Case) -> Vec<Entry> {
    let known = |ownership, name: &str| Entry {
        name: format!("cache_aware, {name}"),
        family: Family::Policy,
        case: Case { ownership, ..base.clone() },
    };
    let mut entries = vec![
        known(Ownership::Events, "events"),
        known(Ownership::Predicted, "predicted"),
        known(Ownership::Alone, "alone"),
    ];
    let simple = [PolicyKind::PrefixHash, PolicyKind::LeastLoad, PolicyKind::RoundRobin];
    entries.extend(simple.map(|kind| entry(Chooser::Policy(kind), base)));
    entries.extend(
        Rule::ALL.into_iter().filter(|rule| *rule != Rule::RoundRobin).map(|rule| entry(Chooser::Rule(rule), base)),
    );
    entries
}

/// Replays every case with every seed, on all cores.
fn replay(workload: &Workload, entries: &[Entry], seeds: u64) -> Vec<Vec<Figures>> {
    let jobs: Vec<(usize, u64)> =
        (0..entries.len()).flat_map(|entry| (1..=seeds).map(move |seed| (entry, seed))).collect();
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let mut results: Vec<(usize, u64, Figures)> = on_all_cores(|| {
        let mut results = Vec::new();
        while let Some(&(number, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let entry = &entries[number];
            let case = Case { seed, ..entry.case.clone() };
            let figures = fleet::run(workload, &case, &mut |came| {
                let percent = 100 * came / workload.len().max(1);
                progress(&format!(
                    "{} of {} replays done; {} with {} gateways, seed {seed}: {percent} %",
                    done.load(Ordering::Relaxed),
                    jobs.len(),
                    entry.name,
                    case.gateways,
                ));
            });
            done.fetch_add(1, Ordering::Relaxed);
            results.push((number, seed, figures));
        }
        results
    })
    .into_iter()
    .flatten()
    .collect();
    progress("");
    results.sort_by_key(|(number, seed, _)| (*number, *seed));
    let mut runs: Vec<Vec<Figures>> = entries.iter().map(|_| Vec::new()).collect();
    for (number, _, figures) in results {
        runs[number].push(figures);
    }
    runs
}

fn title(args: &Fleet, trace: &Trace) -> String {
    let name = args.trace.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{name}: {} requests on {} engines", trace.requests.len(), args.workers)
}

fn conditions(args: &Fleet, workload: &Workload, seeds: u64) -> Vec<String> {
    let model = match args.engines {
        Engines::Full => "chunked prefill beside decoding, in a limited memory",
        Engines::Prefill => "prefill only, one prompt after the other",
    };
    vec![
        format!(
            "{} x the trace's rate, seeds 1-{seeds}; engines: {model}, {} tokens of KV cache, {} prompt tokens/s",
            args.rate, args.capacity, args.prefill_rate
        ),
        format!(
            "load known after {} ms, caches after {} ms; {} requests go on from another's answer",
            args.load_delay, args.ownership_delay, workload.continued
        ),
    ]
}

fn show(args: &Fleet, report: &Report) -> Result<(), Failure> {
    let (svg, html) = (args.plot.with_extension("svg"), args.plot.with_extension("html"));
    std::fs::write(&svg, report.svg()).map_err(Failure::system("write the picture"))?;
    std::fs::write(&html, report.html()).map_err(Failure::system("write the page"))?;
    if args.output == output::Form::Json {
        return output::print_json(&json!(report));
    }
    output::print(&format!("{}\n", report.title))?;
    for condition in &report.conditions {
        output::print(&format!("{condition}\n"))?;
    }
    let rows: Vec<Vec<String>> = report.rows.iter().map(Report::cells).collect();
    output::print(&format!("\n{}\n", output::table(&Report::COLUMNS, &rows)))?;
    output::print(&verdicts(report))?;
    output::note(&format!("pictures: {} and {}", svg.display(), html.display()));
    Ok(())
}

/// The share of what a cache without end would find that `cache_aware` is to find, and the time to the first token it may
/// take, as a multiple of one perfect router's.
const FOUND_MIN: f64 = 0.85;
const TTFT_RATIO_MAX: f64 = 1.15;
/// What a prediction is to find, as a share of what is found by events.
const PREDICTED_MIN: f64 = 0.9;

/// How `cache_aware` does beside one perfect router.
fn verdicts(report: &Report) -> String {
    let Some(perfect) = report.rows.iter().find(|row| row.family == Family::Perfect) else { return String::new() };
    let met = |is_met: bool| if is_met { "met" } else { "missed" };
    let mut text = String::new();
    for row in report.rows.iter().filter(|row| row.family == Family::Policy && row.name.starts_with("cache_aware")) {
        let ratio = row.ttft_mean.mean / perfect.ttft_mean.mean;
        text.push_str(&format!(
            "{} with {} gateways: {:.1} % of what a cache without end finds (>= {:.0}: {}), mean TTFT {ratio:.3} x one perfect router's (<= {TTFT_RATIO_MAX}: {})\n",
            row.name,
            row.gateways,
            100.0 * row.of_infinite.mean,
            100.0 * FOUND_MIN,
            met(row.of_infinite.mean >= FOUND_MIN),
            met(ratio <= TTFT_RATIO_MAX),
        ));
        let by_events =
            report.rows.iter().find(|other| other.name == "cache_aware, events" && other.gateways == row.gateways);
        if let Some(by_events) = by_events.filter(|_| row.name == "cache_aware, predicted") {
            let share = row.hit_share.mean / by_events.hit_share.mean;
            text.push_str(&format!(
                "    {share:.3} of what events find (>= {PREDICTED_MIN}: {})\n",
                met(share >= PREDICTED_MIN)
            ));
        }
    }
    text
}
