//! What a routing decision costs, and what the prefix index costs and saves.
//!
//! ```sh
//! cargo bench -p smg-benches --bench routing
//! ```
//!
//! One thread, medians. Each figure of the index stands beside the same done with the plain alternative, a table with
//! one entry per chunk. Times move with the machine; the ratios should not.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{hint::black_box, sync::Arc, time::Duration};

use smg_base::{Random, SplitMix, Timestamp, WorkerId, hash, map::StableMap};
use smg_benches::{Table, nanos, nanos_once};
use smg_fleet::{EngineLoad, Fleet, FleetConfig, HealthConfig, LoadGuard, Origin, Pool, Relaying, WorkerSpec};
use smg_prefix::{CHUNK_BYTES, Change, Chunker, Found, PrefixIndex, PromptKey, Source, Space};
use smg_routing::{Ask, Explanation, Policy, PolicyConfig, PolicyKind};

const TEXT_BYTES: usize = 32 << 10;
const PATHS: &[&str] = &["/v1/chat/completions"];

fn main() {
    println!("routing: one thread, medians\n");
    println!("{}", decisions());
    println!("{}", told());
    println!("{}", hashing());
    println!("{}", a_request());
    let (speed, memory) = index();
    println!("{speed}\n{memory}");
}

/// Workers with some load each, and the guards that keep it there.
struct Setting {
    pool: Arc<Pool>,
    _running: Vec<LoadGuard>,
}

fn now() -> Timestamp {
    Timestamp::ORIGIN + Duration::from_secs(10)
}

impl Setting {
    fn new(workers: usize) -> Self {
        let health = HealthConfig { enabled: false, ..HealthConfig::default() };
        let fleet = Fleet::new(FleetConfig { health, ..FleetConfig::default() });
        for number in 0..workers {
            let url = format!("http://10.0.{}.{}:8000", number / 250, number % 250).parse().expect("a URL");
            fleet.add(WorkerSpec::new(url), Origin::Flag, Timestamp::ORIGIN).expect("a new worker");
        }
        let pool = Arc::clone(fleet.snapshot().any());
        let random = SplitMix::new(3);
        let mut running = Vec::new();
        for worker in &pool.workers {
            let state = &worker.state;
            let requests = u32::try_from(1 + random.below(4)).unwrap_or(1);
            for _ in 0..requests {
                let mut guard = state.begin(random.below(2_000), Timestamp::ORIGIN + Duration::from_secs(9));
                if random.below(2) == 0 {
                    guard.first_token(Timestamp::ORIGIN + Duration::from_secs(9));
                }
                running.push(guard);
            }
            state.rates.observe_ttft(6_000 + random.below(4_000), 0, Duration::from_secs(1));
            state.load.set_engine(EngineLoad {
                running: requests,
                waiting: 0,
                kv_usage: 0.5,
                generation_tokens_per_second: 1_000.0,
                at: Timestamp::ORIGIN + Duration::from_secs(9),
            });
        }
        Self { pool, _running: running }
    }
}

fn ask<'a>(text: Option<&'a PromptKey>, random: &'a dyn Random) -> Ask<'a> {
    let input_tokens = text.map_or(8_192, |text| text.bytes as u64 / 4);
    Ask {
        prompt: text,
        input_tokens,
        routing_key: Some("user-4711"),
        target: None,
        session: None,
        excluded: &[],
        paths: PATHS,
        relaying: Relaying::Allowed,
        now: now(),
        random,
    }
}

/// A policy that knows every worker to hold the first quarter of the text, and one to hold all but its end.
fn warm(kind: PolicyKind, pool: &Pool, text: &PromptKey, random: &dyn Random) -> Policy {
    let policy = Policy::new(kind, &PolicyConfig::default());
    let ask = ask(Some(text), random);
    let part = |chunks: usize| PromptKey { chunks: text.chunks[..chunks].to_vec(), ..text.clone() };
    if policy.wants_text() && !text.chunks.is_empty() {
        for worker in &pool.workers {
            policy.dispatched(worker, &Ask { prompt: Some(&part(text.chunks.len() / 4)), ..ask });
        }
        policy.dispatched(&pool.workers[0], &Ask { prompt: Some(&part(text.chunks.len() - 2)), ..ask });
    }
    policy
}

fn decisions() -> Table {
    const COUNTS: [usize; 3] = [4, 32, 128];
    let random = SplitMix::new(1);
    let mut table = Table::new(
        "a decision, ns, by number of workers (32 KiB prompt, engines report)",
        &["policy", "4", "32", "128"],
    );
    for kind in PolicyKind::ALL {
        let mut row = vec![kind.to_string()];
        for workers in COUNTS {
            let setting = Setting::new(workers);
            let mut chunker = Policy::new(kind, &PolicyConfig::default()).chunker(Space::Text, 0);
            chunker.push(text().as_bytes());
            let text = chunker.finish();
            let policy = warm(kind, &setting.pool, &text, &random);
            let mut why = Explanation::default();
            let ask = Ask { routing_key: None, ..ask(Some(&text), &random) };
            let ask = if kind == PolicyKind::Manual { Ask { routing_key: Some("user-4711"), ..ask } } else { ask };
            row.push(format!("{:.0}", nanos(|| policy.choose(&setting.pool, &ask, &mut why))));
        }
        table.row(row);
    }
    table
}

/// The same for `cache_aware` and tokens, by how it is known what the caches hold, and what it allocates.
fn told() -> Table {
    let random = SplitMix::new(1);
    let mut table = Table::new(
        "a decision of cache_aware on 8 192 tokens, ns (allocations), by number of workers",
        &["known by", "4", "32", "128"],
    );
    for (name, source, is_recent) in [
        ("prediction", Source::Own, false),
        ("events", Source::Fed, false),
        ("events, and a tenth just sent", Source::Fed, true),
        ("claims, and a tenth just sent", Source::FedAndClaimed, true),
    ] {
        let mut row = vec![name.to_owned()];
        for workers in [4, 32, 128] {
            let setting = Setting::new(workers);
            let policy = Policy::new(PolicyKind::CacheAware, &PolicyConfig::default());
            let mut chunker = policy.chunker(Space::Tokens, 0);
            (0..8_192).for_each(|token| chunker.push_tokens(&[token]));
            let prompt = chunker.finish();
            let ask = Ask { input_tokens: 8_192, routing_key: None, ..ask(Some(&prompt), &random) };
            let part = |chunks: usize| PromptKey { chunks: prompt.chunks[..chunks].to_vec(), ..prompt.clone() };
            for (number, worker) in setting.pool.workers.iter().enumerate() {
                policy.set_source(worker.id, Space::Tokens, source);
                let part = part(if number == 0 { 60 } else { 16 });
                if source == Source::Own {
                    policy.dispatched(worker, &Ask { prompt: Some(&part), ..ask });
                } else {
                    policy.apply(worker.id, Space::Tokens, &Change::Held { after: None, chunks: part.chunks });
                }
                if is_recent && number % 10 == 0 {
                    policy.dispatched(worker, &ask);
                }
            }
            let mut why = Explanation::default();
            let allocations = allocation_counter::measure(|| {
                black_box(policy.choose(&setting.pool, &ask, &mut why)).ok();
            });
            let nanos = nanos(|| policy.choose(&setting.pool, &ask, &mut why));
            row.push(format!("{nanos:.0} ({})", allocations.count_total));
        }
        table.row(row);
    }
    table
}

fn text() -> String {
    let random = SplitMix::new(5);
    let words = ["the ", "gateway ", "sends ", "each ", "request ", "where ", "its ", "prefix ", "is ", "cached. "];
    let mut text = String::new();
    while text.len() < TEXT_BYTES {
        text.push_str(words[usize::try_from(random.below(10)).unwrap_or(0)]);
    }
    text.truncate(TEXT_BYTES);
    text
}

fn hashing() -> Table {
    let text = text();
    let mut table =
        Table::new("hashing 32 KiB of text", &["chunks of", "µs whole", "GB/s", "µs in pieces of 200", "GB/s"]);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = |nanos: f64| format!("{:.1}", text.len() as f64 / nanos);
    for chunk_bytes in [256, CHUNK_BYTES, 1_024] {
        let hash = |piece: usize| {
            nanos(|| {
                let mut chunker = Chunker::new(chunk_bytes, 7);
                for piece in text.as_bytes().chunks(piece) {
                    chunker.push(piece);
                }
                chunker.finish()
            })
        };
        let (whole, pieces) = (hash(text.len()), hash(200));
        let micros = |nanos: f64| format!("{:.2}", nanos / 1e3);
        table.row(vec![chunk_bytes.to_string(), micros(whole), rate(whole), micros(pieces), rate(pieces)]);
    }
    table
}

/// All that routing does for one request: hash, choose, note. Each request is the next turn of one of many conversations.
fn a_request() -> Table {
    let random = SplitMix::new(2);
    let mut table =
        Table::new("all of routing for one request with 32 KiB of text, µs", &["policy", "4 workers", "128 workers"]);
    let text = text();
    for kind in [PolicyKind::RoundRobin, PolicyKind::LeastLoad, PolicyKind::PrefixHash, PolicyKind::CacheAware] {
        let mut row = vec![kind.to_string()];
        for workers in [4, 128] {
            let setting = Setting::new(workers);
            let policy = Policy::new(kind, &PolicyConfig::default());
            let mut why = Explanation::default();
            let mut conversation = 0_u64;
            let nanos = nanos(|| {
                conversation = (conversation + 1) % 1_000;
                let text = policy.wants_text().then(|| {
                    let mut chunker = policy.chunker(Space::Text, 0);
                    chunker.push(&text.as_bytes()[..text.len() / 2]);
                    chunker.push(&conversation.to_le_bytes());
                    chunker.push(&text.as_bytes()[text.len() / 2..]);
                    chunker.finish()
                });
                let ask = Ask { routing_key: None, ..ask(text.as_ref(), &random) };
                let chosen = policy.choose(&setting.pool, &ask, &mut why);
                if let Ok(chosen) = chosen {
                    policy.dispatched(&setting.pool.workers[chosen], &ask);
                }
            });
            row.push(format!("{:.2}", nanos / 1e3));
        }
        table.row(row);
    }
    table
}

const WORKERS: u64 = 128;
const SYSTEM_PROMPTS: u64 = 64;
const SYSTEM_CHUNKS: u64 = 32;
const TURN_CHUNKS: u64 = 96;
const CONVERSATIONS: u64 = 10_240;

/// The chain of one conversation: a system prompt that many share, and text of its own.
fn conversation(number: u64, chunks: u64) -> Vec<u64> {
    let mut link = 0;
    let system = (0..SYSTEM_CHUNKS).map(|at| hash::mix(number % SYSTEM_PROMPTS, at));
    let own = (0..chunks).map(|at| hash::mix(number + 1_000_000, at));
    let chain = system.chain(own).map(|symbol| {
        link = hash::mix(link, symbol);
        link
    });
    chain.collect()
}

fn worker(number: u64) -> WorkerId {
    WorkerId::of(&number.to_string(), None)
}

/// The plain alternative: who holds each chunk, as a set of bits, one entry per chunk. It cannot forget by recency.
#[derive(Default)]
struct PlainTable(StableMap<u64, u128>);

impl PlainTable {
    fn insert(&mut self, worker: u64, chunks: &[u64]) {
        for chunk in chunks {
            *self.0.entry(*chunk).or_default() |= 1 << worker;
        }
    }

    fn lookup(&self, chunks: &[u64], depths: &mut [u32; 128]) {
        *depths = [0; 128];
        let mut holders = u128::MAX;
        for (chunk, depth) in chunks.iter().zip(1..) {
            let next = holders & self.0.get(chunk).copied().unwrap_or(0);
            let mut lost = holders & !next;
            while lost != 0 {
                depths[lost.trailing_zeros() as usize] = depth - 1;
                lost &= lost - 1;
            }
            holders = next;
            if holders == 0 {
                break;
            }
        }
    }
}

/// Fills `insert` with all conversations; says how many bytes that takes.
fn filled<T>(index: T, insert: impl Fn(&mut T, u64, &[u64])) -> (T, u64) {
    let mut index = Some(index);
    let mut bytes = 0;
    let counted = allocation_counter::measure(|| {
        if let Some(index) = &mut index {
            for number in 0..CONVERSATIONS {
                insert(index, number % WORKERS, &conversation(number, TURN_CHUNKS));
            }
        }
    });
    bytes += u64::try_from(counted.bytes_current).unwrap_or(0);
    (index.expect("put there above"), bytes)
}

fn index() -> (Table, Table) {
    let mut workers: Vec<WorkerId> = (0..WORKERS).map(worker).collect();
    let (runs, runs_bytes) = filled(PrefixIndex::new(usize::MAX), |index, at, chunks| {
        index.insert(worker(at), chunks, u64::MAX);
    });
    let (plain, plain_bytes) = filled(PlainTable::default(), |table, at, chunks| table.insert(at, chunks));
    workers.sort_unstable();
    let size = runs.size();
    let stored = CONVERSATIONS * TURN_CHUNKS + SYSTEM_PROMPTS * SYSTEM_CHUNKS;
    let mut memory = Table::new(
        &format!("memory for {stored} chunks in {} runs, {WORKERS} workers", size.runs),
        &["", "bytes a chunk"],
    );
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let per_chunk = |bytes: u64| format!("{:.1}", bytes as f64 / stored as f64);
    memory.row(vec!["runs, as allocated".to_owned(), per_chunk(runs_bytes)]);
    memory.row(vec!["runs, as the index estimates".to_owned(), per_chunk(size.bytes as u64)]);
    memory.row(vec!["one entry a chunk (no order of use)".to_owned(), per_chunk(plain_bytes)]);
    (index_speed(&runs, plain, &workers), memory)
}

/// Asks about many conversations in turn, so that the processor's caches do not hold the answer.
fn index_speed(runs: &PrefixIndex, mut plain: PlainTable, workers: &[WorkerId]) -> Table {
    let paths: Vec<Vec<u64>> = (0..2_048).map(|at| conversation(at * 5 % CONVERSATIONS, TURN_CHUNKS)).collect();
    let longer: Vec<Vec<u64>> = (0..2_048).map(|at| conversation(at * 5 % CONVERSATIONS, TURN_CHUNKS + 8)).collect();
    let strangers: Vec<Vec<u64>> = (0..2_048).map(|at| conversation(at + (1 << 40), 96)).collect();
    let mut table = Table::new("the index at 1 M chunks, ns", &["", "runs", "one entry a chunk"]);
    let (mut found, mut depths) = (Found::default(), [0; 128]);
    let mut next = 0;
    for (name, texts) in [("look up, 128 chunks held", &paths), ("look up, 32 of 128 held", &strangers)] {
        let by_runs = nanos(|| {
            next = (next + 1) % texts.len();
            runs.lookup(&texts[next], workers.iter().copied(), &mut found);
            black_box(&found);
        });
        let by_chunk = nanos(|| {
            next = (next + 1) % texts.len();
            plain.lookup(&texts[next], &mut depths);
            black_box(&depths);
        });
        table.row(vec![name.to_owned(), format!("{by_runs:.0}"), format!("{by_chunk:.0}")]);
    }
    let by_runs = nanos(|| {
        next = (next + 1) % paths.len();
        runs.insert(worker(next as u64 * 5 % WORKERS), &paths[next], u64::MAX);
    });
    let by_chunk = nanos(|| {
        next = (next + 1) % paths.len();
        plain.insert(next as u64 * 5 % WORKERS, &paths[next]);
    });
    table.row(vec!["note 128 chunks again".to_owned(), format!("{by_runs:.0}"), format!("{by_chunk:.0}")]);
    for (name, texts) in [("note 8 chunks more", &longer), ("note 96 chunks after 32 known", &strangers)] {
        let texts: Vec<(u64, &Vec<u64>)> = (0..).map(|at| at * 5 % WORKERS).zip(texts).collect();
        let by_runs = nanos_once(&texts, |(at, text)| runs.insert(worker(*at), text, u64::MAX));
        let by_chunk = nanos_once(&texts, |(at, text)| plain.insert(*at, text));
        table.row(vec![name.to_owned(), format!("{by_runs:.0}"), format!("{by_chunk:.0}")]);
    }
    table
}
