//! One trait over prefix indexes, and what is measured of each: the same questions and events for all, in one run.

use std::{
    fs,
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use smg_base::{
    Random, SplitMix, WorkerId, hash,
    map::{StableMap, StableSet},
};
use smg_prefix::{Change, Found, PrefixIndex};

use super::Table;

/// Workers in the measured setting.
pub const WORKERS: usize = 128;
const SYSTEM_PROMPTS: u64 = 64;
const SYSTEM_CHUNKS: u64 = 32;
const CONVERSATIONS: u64 = 8_448;
const CONVERSATION_CHUNKS: u64 = 96;
const LONG_CONVERSATIONS: u64 = 256;
const LONG_CHUNKS: u64 = 480;
/// Texts that share nothing and are held by one worker.
const LONE_TEXTS: u64 = 512;
const LONE_CHUNKS: u64 = 128;
/// What a question has beyond what is held.
const BEYOND_CHUNKS: usize = 8;
/// Questions of one kind, asked in turn, so that the processor's caches do not hold the answer.
const QUESTIONS: u64 = 4_096;
/// Lookups timed together: the clock costs as much as one.
const BATCH: usize = 8;
/// How long each kind of lookup is measured at a time, and how often.
const ROUND: Duration = Duration::from_millis(40);
const ROUNDS: usize = 10;

/// What holds which prefix for which worker, and is told by events.
pub trait Index: Sync {
    /// A text as this index asks about it; made before the clock runs.
    type Query;
    /// Room for an answer, used again and again.
    type Answer: Default;

    /// What it is called in a table.
    fn name(&self) -> &'static str;
    /// A worker holds these chunks too, each after the one before.
    fn store(&self, worker: usize, after: Option<u64>, chunks: &[u64]);
    /// A worker holds these no more: from the last chunk of a text backwards.
    fn remove(&self, worker: usize, chunks: &[u64]);
    /// A worker holds nothing.
    fn clear(&self, worker: usize);
    /// Returns when everything told before can be found.
    fn settle(&self) {}
    /// Makes a question of a text.
    fn query(&self, chunks: &[u64]) -> Self::Query;
    /// Who holds how much of a text.
    fn find(&self, query: &Self::Query, answer: &mut Self::Answer);
    /// An answer's depths by worker, for comparison.
    fn depths(&self, answer: &Self::Answer) -> Vec<u32>;
}

/// This project's index.
#[derive(Debug)]
pub struct Runs {
    index: PrefixIndex,
    workers: Vec<WorkerId>,
}

impl Default for Runs {
    fn default() -> Self {
        let mut workers: Vec<WorkerId> = (0..WORKERS).map(|at| WorkerId::of(&at.to_string(), None)).collect();
        workers.sort_unstable();
        Self { index: PrefixIndex::new(usize::MAX), workers }
    }
}

impl Runs {
    /// The index itself.
    pub fn index(&self) -> &PrefixIndex {
        &self.index
    }
}

impl Index for Runs {
    type Query = Vec<u64>;
    type Answer = Found;

    fn name(&self) -> &'static str {
        "smg"
    }

    fn store(&self, worker: usize, after: Option<u64>, chunks: &[u64]) {
        self.index.apply(self.workers[worker], &Change::Held { after, chunks: chunks.to_vec() });
    }

    fn remove(&self, worker: usize, chunks: &[u64]) {
        self.index.apply(self.workers[worker], &Change::Dropped { chunks: chunks.to_vec() });
    }

    fn clear(&self, worker: usize) {
        self.index.apply(self.workers[worker], &Change::Cleared);
    }

    fn query(&self, chunks: &[u64]) -> Vec<u64> {
        chunks.to_vec()
    }

    /// Asks about all workers, as routing does.
    fn find(&self, query: &Vec<u64>, answer: &mut Found) {
        self.index.lookup(query, self.workers.iter().copied(), answer);
    }

    fn depths(&self, answer: &Found) -> Vec<u32> {
        (0..WORKERS).map(|at| answer.holders.get(at).map_or(0, |held| held.chunks)).collect()
    }
}

/// What was measured of one index.
#[derive(Debug)]
pub struct Measured {
    /// Its name.
    pub name: &'static str,
    /// Nanoseconds of a lookup, median and 99th percentile, for each of [`ROWS`] and read-only or beside a writer.
    pub lookups: Vec<[Lookup; 2]>,
    /// Blocks applied a second and core: long stretches, short ones, and short ones given up and held again.
    pub applied: [f64; 3],
    /// Wrong answers among those compared with an oracle: too much, and too little.
    pub wrong: [u64; 3],
}

/// The time of a lookup.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookup {
    median: f64,
    p99: f64,
}

/// The kinds of lookup.
pub const ROWS: [&str; 6] = ["nothing held", "8 held", "32 held", "128 held", "512 held", "128 held by one worker"];

/// What is stored: who holds which text, as (worker, chunks).
pub fn content() -> Vec<(usize, Vec<u64>)> {
    let mut texts = Vec::new();
    for number in 0..CONVERSATIONS {
        let text = conversation(number, CONVERSATION_CHUNKS);
        let holder = holder(number);
        if number % 4 == 0 {
            let part = SYSTEM_CHUNKS + number % CONVERSATION_CHUNKS;
            texts.push(((holder + 1) % WORKERS, text[..usize::try_from(part).unwrap_or(1)].to_vec()));
        }
        texts.push((holder, text));
    }
    for number in CONVERSATIONS..CONVERSATIONS + LONG_CONVERSATIONS {
        texts.push((holder(number), conversation(number, LONG_CHUNKS)));
    }
    for number in 0..LONE_TEXTS {
        texts.push((holder(number), lone(number, LONE_CHUNKS)));
    }
    texts
}

/// How many different blocks [`content`] has.
pub fn blocks() -> u64 {
    SYSTEM_PROMPTS * SYSTEM_CHUNKS
        + CONVERSATIONS * CONVERSATION_CHUNKS
        + LONG_CONVERSATIONS * LONG_CHUNKS
        + LONE_TEXTS * LONE_CHUNKS
}

/// Stores all of `content`, in stretches as a cache reports them.
pub fn fill<I: Index>(index: &I, content: &[(usize, Vec<u64>)]) {
    for (worker, text) in content {
        index.store(*worker, None, text);
    }
    index.settle();
}

/// A filled index, ready to be measured in turn with others.
pub struct Entrant<'a> {
    name: &'static str,
    /// Times lookups of one of [`ROWS`] for a while.
    ask: Ask<'a>,
    /// Changes what is held until told to stop.
    change: Box<dyn Fn(&AtomicBool) + Sync + 'a>,
    events: Box<dyn Fn() -> [f64; 3] + 'a>,
    wrong: Box<dyn Fn() -> [u64; 3] + 'a>,
}

type Ask<'a> = Box<dyn Fn(usize, &mut Vec<f64>) + 'a>;

/// Makes an index ready.
pub fn entrant<I: Index>(index: &I) -> Entrant<'_> {
    let questions: Vec<Vec<I::Query>> = (0..ROWS.len()).map(|row| questions(index, row)).collect();
    Entrant {
        name: index.name(),
        ask: Box::new(move |row, times| time_lookups(index, &questions[row], times)),
        change: Box::new(|done| keep_changing(index, done)),
        events: Box::new(|| [apply_long(index), apply_short(index), apply_again(index)]),
        wrong: Box::new(|| wrong_credit(index)),
    }
}

/// Measures indexes in turn, a little of each at a time, so that what else the machine does meets them alike.
pub fn measure(entrants: &[Entrant<'_>]) -> Vec<Measured> {
    let mut times = vec![vec![[Vec::new(), Vec::new()]; ROWS.len()]; entrants.len()];
    for row in 0..ROWS.len() {
        for _ in 0..ROUNDS {
            for (entrant, times) in entrants.iter().zip(&mut times) {
                let [alone, beside] = &mut times[row];
                (entrant.ask)(row, alone);
                let (change, done) = (&entrant.change, AtomicBool::new(false));
                std::thread::scope(|scope| {
                    scope.spawn(|| change(&done));
                    (entrant.ask)(row, beside);
                    done.store(true, Relaxed);
                });
            }
        }
    }
    let measured = entrants.iter().zip(times).map(|(entrant, times)| Measured {
        name: entrant.name,
        lookups: times.into_iter().map(|modes| modes.map(Lookup::of)).collect(),
        applied: (entrant.events)(),
        wrong: (entrant.wrong)(),
    });
    measured.collect()
}

/// A table of lookups, side by side.
pub fn table_of_lookups(measured: &[Measured]) -> Table {
    let mut columns = vec!["".to_owned()];
    for one in measured {
        columns.extend([
            format!("{} p50", one.name),
            "p99".to_owned(),
            "beside a writer p50".to_owned(),
            "p99".to_owned(),
        ]);
    }
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let title = format!("a lookup, ns: {} blocks, {WORKERS} workers, batches of {BATCH}", blocks());
    let mut table = Table::new(&title, &columns);
    for (name, row) in ROWS.iter().zip(0..) {
        let mut cells = vec![(*name).to_owned()];
        for one in measured {
            for lookup in one.lookups[row] {
                cells.extend([format!("{:.0}", lookup.median), format!("{:.0}", lookup.p99)]);
            }
        }
        table.row(cells);
    }
    table
}

/// A table of everything else.
pub fn table_of_events(measured: &[Measured]) -> Table {
    let columns =
        ["", "stretches of 1000", "of 4 after 128", "4 dropped, held again", "asked", "too much", "too little"];
    let mut table = Table::new("events, millions of blocks a second and core; answers unlike the oracle's", &columns);
    for one in measured {
        let mut cells = vec![one.name.to_owned()];
        cells.extend(one.applied.iter().map(|rate| format!("{:.1}", rate / 1e6)));
        cells.extend(one.wrong.iter().map(u64::to_string));
        table.row(cells);
    }
    table
}

fn chain(symbols: impl Iterator<Item = u64>, root: u64) -> Vec<u64> {
    let mut link = root;
    symbols
        .map(|symbol| {
            link = hash::mix(link, symbol).max(1);
            link
        })
        .collect()
}

/// A conversation: a system prompt that many share, and text of its own.
fn conversation(number: u64, chunks: u64) -> Vec<u64> {
    let system = (0..SYSTEM_CHUNKS).map(|at| hash::mix(number % SYSTEM_PROMPTS, at));
    chain(system.chain((0..chunks).map(|at| hash::mix(number + 1_000_000, at))), 1)
}

fn lone(number: u64, chunks: u64) -> Vec<u64> {
    chain((0..chunks).map(|at| hash::mix(number, at)), 2)
}

fn holder(number: u64) -> usize {
    usize::try_from(hash::mix(number, 3) % WORKERS as u64).unwrap_or(0)
}

fn questions<I: Index>(index: &I, row: usize) -> Vec<I::Query> {
    let with_more = |mut held: Vec<u64>, number: u64| {
        held.extend(chain(0..BEYOND_CHUNKS as u64, number + (1 << 50)));
        index.query(&held)
    };
    let question = |number: u64| {
        let text = conversation(number * 5 % CONVERSATIONS, CONVERSATION_CHUNKS);
        match row {
            0 => index.query(&chain(0..136, number + (1 << 40))),
            1 => with_more(text[..8].to_vec(), number),
            2 => with_more(text[..32].to_vec(), number),
            3 => with_more(text, number),
            4 => with_more(conversation(CONVERSATIONS + number % LONG_CONVERSATIONS, LONG_CHUNKS), number),
            _ => with_more(lone(number % LONE_TEXTS, LONE_CHUNKS), number),
        }
    };
    (0..QUESTIONS).map(question).collect()
}

fn time_lookups<I: Index>(index: &I, questions: &[I::Query], times: &mut Vec<f64>) {
    let mut answer = I::Answer::default();
    let mut ask = |batch: &[I::Query]| {
        for question in batch {
            index.find(black_box(question), &mut answer);
            black_box(&answer);
        }
    };
    // Warms up.
    questions.chunks_exact(BATCH).for_each(&mut ask);
    let end = Instant::now() + ROUND;
    for batch in questions.chunks_exact(BATCH).cycle() {
        let start = Instant::now();
        ask(batch);
        let now = Instant::now();
        times.push((now - start).as_secs_f64() * 1e9 / BATCH as f64);
        if now > end {
            break;
        }
    }
}

impl Lookup {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |hundredths: usize| times.get(times.len() * hundredths / 100).copied().unwrap_or(0.0);
        Self { median: at(50), p99: at(99) }
    }
}

/// Texts that nobody asks about, for events.
fn other(number: u64, chunks: u64) -> Vec<u64> {
    chain((0..chunks).map(|at| hash::mix(number, at)), 4)
}

/// Lets conversations grow and be given up until told to stop.
fn keep_changing<I: Index>(index: &I, done: &AtomicBool) {
    let mut number = 1 << 30;
    while !done.load(Relaxed) {
        number += 1;
        let worker = holder(number);
        let text = conversation(number, 32);
        index.store(worker, None, &text[..48]);
        for (at, stretch) in (48..).step_by(4).zip(text[48..].chunks(4)) {
            index.store(worker, Some(text[at - 1]), stretch);
        }
        let backwards: Vec<u64> = text[32..].iter().rev().copied().collect();
        index.remove(worker, &backwards);
        index.settle();
    }
}

fn apply_long<I: Index>(index: &I) -> f64 {
    let texts: Vec<Vec<u64>> = (0..200).map(|number| other(number, 1_000)).collect();
    let start = Work::now();
    for (text, number) in texts.iter().zip(0..) {
        index.store(holder(number), None, text);
    }
    index.settle();
    rate(200 * 1_000, start)
}

fn apply_short<I: Index>(index: &I) -> f64 {
    const TEXTS: u64 = 1_000;
    const STRETCHES: usize = 40;
    let texts: Vec<Vec<u64>> = (1_000..1_000 + TEXTS).map(|number| other(number, 128 + 4 * STRETCHES as u64)).collect();
    for (text, number) in texts.iter().zip(0..) {
        index.store(holder(number), None, &text[..128]);
    }
    index.settle();
    let start = Work::now();
    for stretch in 0..STRETCHES {
        let at = 128 + 4 * stretch;
        for (text, number) in texts.iter().zip(0..) {
            index.store(holder(number), Some(text[at - 1]), &text[at..at + 4]);
        }
    }
    index.settle();
    rate(TEXTS * 4 * STRETCHES as u64, start)
}

fn apply_again<I: Index>(index: &I) -> f64 {
    const TEXTS: u64 = 1_000;
    const ROUNDS: u64 = 20;
    let texts: Vec<Vec<u64>> = (5_000..5_000 + TEXTS).map(|number| other(number, 132)).collect();
    for (text, number) in texts.iter().zip(0..) {
        index.store(holder(number), None, text);
    }
    index.settle();
    let ends: Vec<Vec<u64>> = texts.iter().map(|text| text[128..].iter().rev().copied().collect()).collect();
    let start = Work::now();
    for _ in 0..ROUNDS {
        for ((text, end), number) in texts.iter().zip(&ends).zip(0..) {
            index.remove(holder(number), end);
            index.store(holder(number), Some(text[127]), &text[128..]);
        }
    }
    index.settle();
    rate(TEXTS * ROUNDS * 8, start)
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(blocks: u64, start: Work) -> f64 {
    blocks as f64 / start.elapsed().as_secs_f64()
}

/// What this process has computed, on all its threads: a rate by it is one of a core, and does not count what other
/// processes took. The time on the clock where the system does not tell.
#[derive(Clone, Copy)]
struct Work {
    computed: Option<Duration>,
    clock: Instant,
}

impl Work {
    fn now() -> Self {
        Self { computed: computed(), clock: Instant::now() }
    }

    fn elapsed(self) -> Duration {
        match (self.computed, computed()) {
            (Some(before), Some(now)) if now > before => now - before,
            _ => self.clock.elapsed(),
        }
    }
}

fn computed() -> Option<Duration> {
    let threads = fs::read_dir("/proc/self/task").ok()?;
    let nanos = threads.filter_map(|thread| {
        let times = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<u64>().ok()
    });
    Some(Duration::from_nanos(nanos.sum()))
}

/// Plays events over branching texts and compares answers with a plain set of what each worker holds: how many were
/// compared, how many claim too much, how many too little.
fn wrong_credit<I: Index>(index: &I) -> [u64; 3] {
    const SOME: usize = 6;
    let random = SplitMix::new(7);
    let draw = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap_or(0);
    let text = |length: usize| chain((0..length).map(|_| u64::from(random.below(8) == 0)), 5);
    let mut held: Vec<StableMap<u64, Option<u64>>> = vec![StableMap::default(); SOME];
    // Nothing of the measurements is left.
    (0..WORKERS).for_each(|worker| index.clear(worker));
    index.settle();
    let (mut answer, mut counted) = (I::Answer::default(), [0; 3]);
    for step in 0..6_000 {
        let worker = draw(SOME);
        let path = text(draw(80) + 1);
        let known = path.iter().take_while(|chunk| held[worker].contains_key(*chunk)).count();
        if step % 3 < 2 && known < path.len() {
            let after = known.checked_sub(1).map(|at| path[at]);
            index.store(worker, after, &path[known..]);
            let mut before = after;
            for chunk in &path[known..] {
                held[worker].insert(*chunk, before.replace(*chunk));
            }
        } else if draw(400) == 0 {
            index.clear(worker);
            held[worker].clear();
        } else {
            let dropped = ends_of(&mut held[worker], draw(20));
            if !dropped.is_empty() {
                index.remove(worker, &dropped);
            }
        }
        index.settle();
        let asked = text(draw(80) + 1);
        index.find(&index.query(&asked), &mut answer);
        let depths = index.depths(&answer);
        for (held, depth) in held.iter().zip(depths) {
            let truth = asked.iter().take_while(|chunk| held.contains_key(*chunk)).count();
            counted[0] += 1;
            counted[1] += u64::from(depth as usize > truth);
            counted[2] += u64::from((depth as usize) < truth);
        }
    }
    counted
}

/// Takes up to `most` chunks that nothing follows out of what is held, each after those that follow it.
fn ends_of(held: &mut StableMap<u64, Option<u64>>, most: usize) -> Vec<u64> {
    let followed: StableSet<u64> = held.values().filter_map(|before| *before).collect();
    let mut next = held.keys().copied().find(|chunk| !followed.contains(chunk));
    let mut dropped = Vec::new();
    while let Some(chunk) =
        next.filter(|chunk| dropped.len() < most && !held.values().any(|before| *before == Some(*chunk)))
    {
        next = held.remove(&chunk).flatten();
        dropped.push(chunk);
    }
    dropped
}
