//! What a limit decision costs, and what a counter takes.
//!
//! ```sh
//! cargo bench -p smg-benches --bench limits
//! ```
//!
//! Medians over rounds. Keys come in a random order, so that the processor's caches hold no more of the counters than they would of as
//! many callers. A decision is the charge before a request is sent and its settlement afterwards.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use smg_base::{Random, SplitMix, Timestamp};
use smg_benches::{Table, nanos};
use smg_limits::{Demand, Dimension, Limiter, LimiterConfig, Mode, Rule, Rules, Scope, Slot, Subject, Window};

const KEYS: usize = 100_000;
const TENANTS: usize = 1_000;
const BATCH: usize = 100;
const BATCHES: usize = 1_000;
const BEGIN: Timestamp = Timestamp::from_nanos(1_000_000_000_000_000);
const DEMAND: Demand = Demand { requests: 1, input_tokens: 2_000, output_tokens: 4_000, money: 900 };
const ACTUAL: Demand = Demand { requests: 1, input_tokens: 2_000, output_tokens: 300, money: 200 };

fn main() {
    println!("limits: medians\n");
    println!("{}", decisions());
    println!("{}", under_threads());
    println!("{}", background());
    println!("{}", memory());
    println!("{}", bounded());
}

/// Callers by number.
struct Callers {
    tenants: Vec<String>,
    keys: Vec<String>,
    order: Vec<usize>,
}

impl Callers {
    fn new(keys: usize) -> Self {
        let random = SplitMix::new(7);
        let mut order: Vec<usize> = (0..keys).collect();
        for at in (1..keys).rev() {
            order.swap(at, usize::try_from(random.below(at as u64 + 1)).unwrap_or(0));
        }
        Self {
            tenants: (0..TENANTS).map(|number| format!("tenant-{number}")).collect(),
            keys: (0..keys).map(|number| format!("key-{number:08x}")).collect(),
            order,
        }
    }

    /// The caller who comes at this place, over and over.
    fn at(&self, turn: usize) -> Subject<'_> {
        let number = self.order[turn % self.order.len()];
        Subject { tenant: &self.tenants[number % TENANTS], key: Some(&self.keys[number]), model: "llama-3.3-70b" }
    }
}

fn key(dimension: Dimension) -> Rule {
    Rule::new("key", Scope::Key, dimension, 1 << 40).per(Window::Minute)
}

/// Rules that many an installation has: two for a key, two for a tenant, one for all.
fn five() -> Vec<Rule> {
    vec![
        key(Dimension::Requests),
        key(Dimension::Tokens),
        Rule::new("tenant's money", Scope::Tenant, Dimension::Money, 1 << 50).per(Window::Month),
        Rule::new("tenant's requests", Scope::Tenant, Dimension::Concurrency, 1 << 20),
        Rule::new("all", Scope::Global, Dimension::Tokens, 1 << 50).per(Window::Second),
    ]
}

fn limiter(rules: Vec<Rule>, config: LimiterConfig) -> Limiter {
    let limiter = Limiter::new(config);
    limiter.reconfigure(Arc::new(Rules::new(rules).expect("sound rules")));
    limiter
}

/// Every key has asked once.
fn fill(limiter: &Limiter, callers: &Callers) {
    for turn in 0..callers.order.len() {
        if let Ok(reservation) = limiter.reserve(&callers.at(turn), &DEMAND, BEGIN) {
            limiter.settle(reservation, &ACTUAL, BEGIN);
        }
    }
}

/// Lets time pass as it would at a few thousand requests a second.
fn time(turn: usize) -> Timestamp {
    BEGIN + Duration::from_micros(200) * u32::try_from(turn).unwrap_or(u32::MAX)
}

/// Nanoseconds of each turn, as the median over batches. The names of whom a batch is about are read before its time is taken: a request
/// brings them along.
fn each_turn(callers: &Callers, turn: &mut usize, mut work: impl FnMut(&Subject<'_>, Timestamp)) -> f64 {
    let mut batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let subjects: Vec<Subject<'_>> = (0..BATCH).map(|more| callers.at(*turn + more)).collect();
            let bytes: usize = subjects.iter().flat_map(|subject| subject.key).map(|key| hash(key) + key.len()).sum();
            black_box(bytes);
            let start = Instant::now();
            for (more, subject) in subjects.iter().enumerate() {
                work(subject, time(*turn + more));
            }
            *turn += BATCH;
            #[expect(clippy::cast_precision_loss, reason = "a mean")]
            let each = start.elapsed().as_secs_f64() * 1e9 / BATCH as f64;
            each
        })
        .collect();
    batches.sort_by(f64::total_cmp);
    batches[BATCHES / 2]
}

fn hash(name: &str) -> usize {
    name.bytes().map(usize::from).sum()
}

fn decisions() -> Table {
    let callers = Callers::new(KEYS);
    let meshed = LimiterConfig { is_meshed: true, ..LimiterConfig::default() };
    let hybrid = vec![key(Dimension::Requests)];
    let shared = vec![key(Dimension::Requests).mode(Mode::Shared)];
    let mut table = Table::new(
        "a decision with 100 000 active keys, ns",
        &["rules met", "charge", "charge and settle", "allocations"],
    );
    for (name, rules, config, others) in [
        ("none", Vec::new(), LimiterConfig::default(), Others::Silent),
        ("one, on one node", hybrid, LimiterConfig::default(), Others::Silent),
        ("one, shared, four others heard", shared, meshed, Others::Heard),
        ("five, on one node", five(), LimiterConfig::default(), Others::Silent),
        ("five, in a mesh", five(), meshed, Others::Silent),
    ] {
        let limiter = limiter(rules, config);
        fill(&limiter, &callers);
        if others == Others::Heard {
            hear_four(&limiter, &callers);
        }
        let decide = |subject: &Subject<'_>, now| {
            if let Ok(reservation) = limiter.reserve(subject, &DEMAND, now) {
                limiter.settle(reservation, &ACTUAL, now);
            }
        };
        let mut turn = 0;
        let both = each_turn(&callers, &mut turn, decide);
        let charge = each_turn(&callers, &mut turn, |subject, now| {
            black_box(limiter.reserve(subject, &DEMAND, now)).ok();
        });
        let allocations = allocation_counter::measure(|| decide(&callers.at(3), time(turn)));
        table.row(vec![
            name.to_owned(),
            format!("{charge:.0}"),
            format!("{both:.0}"),
            allocations.count_total.to_string(),
        ]);
    }
    table.row(refusals(&callers));
    table
}

/// Whether other nodes have said anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    Silent,
    Heard,
}

fn refusals(callers: &Callers) -> Vec<String> {
    let rule = Rule::new("key", Scope::Key, Dimension::Requests, 1).per(Window::Month);
    let limiter = limiter(vec![rule], LimiterConfig::default());
    fill(&limiter, callers);
    let refusal = each_turn(callers, &mut 0, |subject, now| {
        black_box(limiter.reserve(subject, &DEMAND, now)).ok();
    });
    vec!["one, which refuses".to_owned(), format!("{refusal:.0}"), "-".to_owned(), "-".to_owned()]
}

/// Four other nodes have something running for every key.
fn hear_four(limiter: &Limiter, callers: &Callers) {
    let rules = limiter.rules();
    let slot = Slot { used: 20, shared: 20, lasting: 10, wants: 0 };
    for turn in 0..callers.order.len() {
        for applied in rules.of(&callers.at(turn)) {
            (0..4).for_each(|node| limiter.hear(node, applied.counter, slot, BEGIN));
        }
    }
}

/// The same while another thread decides too.
fn under_threads() -> Table {
    let callers = Callers::new(KEYS);
    let mut table = Table::new(
        "charge and settle while another thread does the same with the same keys, ns",
        &["rules met", "alone", "beside another"],
    );
    for (name, rules) in [("one", vec![key(Dimension::Requests)]), ("five, one of them for all", five())] {
        let limiter = limiter(rules, LimiterConfig::default());
        fill(&limiter, &callers);
        let decide = |subject: &Subject<'_>, now| {
            if let Ok(reservation) = limiter.reserve(subject, &DEMAND, now) {
                limiter.settle(reservation, &ACTUAL, now);
            }
        };
        let mut turn = 0;
        let alone = each_turn(&callers, &mut turn, decide);
        let is_over = AtomicBool::new(false);
        let beside = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut turn = KEYS / 2;
                while !is_over.load(Relaxed) {
                    turn += 1;
                    decide(&callers.at(turn), time(turn));
                }
            });
            let beside = each_turn(&callers, &mut turn, decide);
            is_over.store(true, Relaxed);
            beside
        });
        table.row(vec![name.to_owned(), format!("{alone:.0}"), format!("{beside:.0}")]);
    }
    table
}

/// What telling the others takes beside the decisions.
fn background() -> Table {
    const TOLD: usize = 500;
    let callers = Callers::new(KEYS);
    let limiter = limiter(five(), LimiterConfig { is_meshed: true, ..LimiterConfig::default() });
    fill(&limiter, &callers);
    let counters = limiter.figures().counters;
    let mut table = Table::new(&format!("telling others of {counters} counters, us a call"), &["", ""]);
    let mut told = 0;
    let some = nanos(|| {
        told = 0;
        limiter.changed(TOLD, BEGIN, &mut |_, _| told += 1);
    });
    table.row(vec!["nothing has changed".to_owned(), format!("{:.0}", some / 1e3)]);
    let mut turn = 0;
    let all = nanos(|| {
        for _ in 0..TOLD / 5 {
            turn += 1;
            if let Ok(reservation) = limiter.reserve(&callers.at(turn), &DEMAND, BEGIN) {
                limiter.settle(reservation, &ACTUAL, BEGIN);
            }
        }
        limiter.changed(TOLD, BEGIN, &mut |_, _| told += 1);
    });
    table.row(vec![format!("{} requests before each call, these included", TOLD / 5), format!("{:.0}", all / 1e3)]);
    table
}

/// What the allocator gave out for each counter.
fn memory() -> Table {
    let mut table =
        Table::new("memory, bytes a counter", &["counters", "others heard", "as allocated", "as the limiter counts"]);
    for (keys, is_meshed) in [(KEYS, false), (KEYS, true), (1_000_000, false)] {
        let callers = Callers::new(keys);
        let mut filled = None;
        let counted = allocation_counter::measure(|| {
            let config = LimiterConfig { is_meshed, ..LimiterConfig::default() };
            let limiter = filled.insert(limiter(vec![key(Dimension::Requests).mode(Mode::Shared)], config));
            fill(limiter, &callers);
            if is_meshed {
                hear_four(limiter, &callers);
            }
        });
        let Some(limiter) = filled else { continue };
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let each = |bytes: i64| format!("{:.1}", bytes as f64 / limiter.figures().counters as f64);
        table.row(vec![
            limiter.figures().counters.to_string(),
            if is_meshed { "4" } else { "0" }.to_owned(),
            each(counted.bytes_current),
            each(i64::try_from(limiter.figures().bytes).unwrap_or(i64::MAX)),
        ]);
    }
    table
}

/// More keys than counters.
fn bounded() -> Table {
    let callers = Callers::new(1_100_000);
    let rule = Rule::new("key", Scope::Key, Dimension::Requests, 1).per(Window::Day);
    let limiter = limiter(vec![rule], LimiterConfig::default());
    let mut table = Table::new("1 100 000 keys, a million counters", &["", ""]);
    let admitted = |turns: std::ops::Range<usize>| {
        turns.filter(|&turn| limiter.reserve(&callers.at(turn), &DEMAND, BEGIN).is_ok()).count()
    };
    let first = admitted(0..1_100_000);
    let second = admitted(0..1_100_000);
    let figures = limiter.figures();
    table.row(vec!["admitted at their first request".to_owned(), first.to_string()]);
    table.row(vec!["admitted again, of a limit of one a day".to_owned(), second.to_string()]);
    table.row(vec!["refused for want of a counter".to_owned(), figures.full.to_string()]);
    table.row(vec!["MiB".to_owned(), (figures.bytes >> 20).to_string()]);
    table
}
