//! Models of the rules by which other routers choose, for comparison.
//!
//! Each is written after a description of the rule, with its defaults; none is the product that has the rule, and all of them are
//! given more than it has: they know of the other gateways' requests as soon as the policies of this project do, and of
//! caches too where the rule takes events.

use smg_base::{Random, hash};

use super::{
    heard::{Busy, Ledgers},
    known::{Guessed, Known},
    workload::{CHUNK, Prompt},
};

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// One after the other.
    RoundRobin,
    /// Whoever has the fewest requests.
    LeastRequests,
    /// The hash of the first 1 024 tokens decides.
    HeadHash,
    /// Whoever this gateway has sent the longest beginning to, if that is more than a threshold of the prompt; else, or if
    /// the engines' requests differ too much, whoever has the fewest.
    ThresholdGuess,
    /// Whoever holds the longest beginning by its events; whoever has the fewest requests if nobody holds any, or if the
    /// engines' requests differ too much.
    ThresholdEvents,
    /// The least sum, in blocks, of prompt tokens to compute and context to decode.
    LinearBlocks,
    /// The least product of prompt tokens to compute and requests.
    Product,
}

/// When the engines' requests differ too much, and when a beginning is long enough: the reference gateway's command line.
const BALANCE_ABSOLUTE: i64 = 64;
const BALANCE_RELATIVE: f64 = 1.5;
const CACHE_THRESHOLD: f64 = 0.3;

/// Tokens that decide under [`Rule::HeadHash`].
const HEAD_TOKENS: u32 = 1_024;

impl Rule {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::RoundRobin,
        Self::LeastRequests,
        Self::HeadHash,
        Self::ThresholdGuess,
        Self::ThresholdEvents,
        Self::LinearBlocks,
        Self::Product,
    ];

    /// The name on the command line and in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "model:round-robin",
            Self::LeastRequests => "model:least-requests",
            Self::HeadHash => "model:head-hash",
            Self::ThresholdGuess => "model:smg1-approximate",
            Self::ThresholdEvents => "model:smg1-events",
            Self::LinearBlocks => "model:dynamo-linear",
            Self::Product => "model:lmetric",
        }
    }
}

/// One gateway that follows a rule.
#[derive(Debug)]
pub(super) struct Follower {
    rule: Rule,
    turn: usize,
    guessed: Option<Guessed>,
    depths: Vec<usize>,
    loads: Vec<Busy>,
}

/// What is known besides.
pub(super) struct View<'a> {
    pub(super) gateway: usize,
    pub(super) ledgers: &'a Ledgers,
    /// By the engines' events.
    pub(super) known: &'a Known,
    pub(super) random: &'a dyn Random,
}

/// A choice, and how much of the prompt the chosen one is taken to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) engine: usize,
    pub(super) matched_tokens: u32,
}

impl Follower {
    pub(super) fn new(rule: Rule, gateway: usize, engines: usize, capacity_chunks: u64) -> Self {
        let guesses = rule == Rule::ThresholdGuess;
        Self {
            rule,
            // Gateways do not take their turns in step.
            turn: gateway.wrapping_mul(engines / 3 + 1),
            guessed: guesses.then(|| Guessed::new(engines, capacity_chunks)),
            depths: vec![0; engines],
            loads: vec![Busy::default(); engines],
        }
    }

    pub(super) fn choose(&mut self, prompt: &Prompt, view: &View<'_>) -> Chosen {
        let known = self.guessed.as_ref().map_or(view.known, |guessed| &guessed.known);
        known.depths(&prompt.key.chunks, &mut self.depths);
        for (engine, load) in self.loads.iter_mut().enumerate() {
            *load = view.ledgers.all(view.gateway, engine);
        }
        let engine = self.engine(prompt, view);
        if let Some(guessed) = &mut self.guessed {
            guessed.sent(engine, &prompt.key.chunks);
        }
        Chosen { engine, matched_tokens: self.matched_tokens(engine) }
    }

    fn engine(&mut self, prompt: &Prompt, view: &View<'_>) -> usize {
        let fewest = |this: &Self| this.least(view.random, |engine| (this.loads[engine].requests, 0));
        match self.rule {
            Rule::RoundRobin => {
                self.turn += 1;
                self.turn % self.loads.len()
            }
            Rule::LeastRequests => fewest(self),
            Rule::HeadHash => {
                let place = (HEAD_TOKENS / CHUNK) as usize - 1;
                let head = prompt.key.chunks.get(place).or(prompt.key.chunks.last()).copied();
                self.greatest(|engine| hash::mix(head.unwrap_or(prompt.key.head), engine as u64))
            }
            Rule::ThresholdGuess => {
                let best =
                    self.least(view.random, |engine| (-signed(self.depths[engine]), self.loads[engine].requests));
                let share = f64::from(self.matched_tokens(best)) / f64::from(prompt.input_tokens);
                if self.is_imbalanced() || share <= CACHE_THRESHOLD { fewest(self) } else { best }
            }
            Rule::ThresholdEvents => {
                let size = |engine: usize| i64::try_from(self.known(view).size(engine)).unwrap_or(i64::MAX);
                let key = |engine: usize| (-signed(self.depths[engine]), (self.loads[engine].requests, size(engine)));
                let best = self.least(view.random, key);
                if self.is_imbalanced() || self.depths[best] == 0 { fewest(self) } else { best }
            }
            Rule::LinearBlocks => self.least(view.random, |engine| {
                let load = self.loads[engine];
                let prefill = load.pending_tokens + self.uncached(engine, prompt);
                (prefill.max(0) + load.context_tokens + i64::from(prompt.input_tokens), 0)
            }),
            Rule::Product => self.least(view.random, |engine| {
                let load = self.loads[engine];
                ((load.pending_tokens + self.uncached(engine, prompt)) * (load.requests + 1), 0)
            }),
        }
    }

    fn known<'a>(&'a self, view: &View<'a>) -> &'a Known {
        self.guessed.as_ref().map_or(view.known, |guessed| &guessed.known)
    }

    fn matched_tokens(&self, engine: usize) -> u32 {
        u32::try_from(self.depths[engine]).unwrap_or(u32::MAX / CHUNK) * CHUNK
    }

    fn uncached(&self, engine: usize, prompt: &Prompt) -> i64 {
        i64::from(prompt.input_tokens) - i64::from(self.matched_tokens(engine))
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    fn is_imbalanced(&self) -> bool {
        let requests = || self.loads.iter().map(|load| load.requests);
        let (least, most) = (requests().min().unwrap_or(0), requests().max().unwrap_or(0));
        most - least > BALANCE_ABSOLUTE && most as f64 > BALANCE_RELATIVE * least as f64
    }

    /// The engine whose key is least; one of them by chance if there are several.
    fn least<K: Ord + Copy>(&self, random: &dyn Random, key: impl Fn(usize) -> K) -> usize {
        let mut best = 0;
        let mut ties = 0;
        let mut best_key = key(0);
        for engine in 0..self.loads.len() {
            let key = key(engine);
            if key < best_key {
                (best, best_key, ties) = (engine, key, 1);
            } else if key == best_key {
                ties += 1;
                if random.below(ties) == 0 {
                    best = engine;
                }
            }
        }
        best
    }

    fn greatest(&self, key: impl Fn(usize) -> u64) -> usize {
        (0..self.loads.len()).max_by_key(|engine| key(*engine)).unwrap_or(0)
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
