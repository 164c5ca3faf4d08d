//! Requests as chunks: what they share, what their answers add, and what of it a cache without end would find.

use std::time::Duration;

use smg_base::{
    Timestamp, hash,
    map::{StableMap, StableSet},
};
use smg_prefix::{CHUNK_TOKENS, PromptKey, Space, TOKEN_BYTES};

use super::trace::{BLOCK_TOKENS, Trace};
use crate::dice::Dice;

/// Tokens of a chunk, which is also the block in which the simulated engines keep their caches.
#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
pub(super) const CHUNK: u32 = CHUNK_TOKENS as u32;

const CHUNKS_IN_BLOCK: usize = (BLOCK_TOKENS / CHUNK) as usize;

/// Traces write down when a request came to three seconds; it came at some time in them.
const SPREAD: Duration = Duration::from_secs(3);

/// What is taken for the answers, of which a trace tells no more than the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// They are not kept in caches.
    Dropped,
    /// A later request that begins with all whole blocks of one, and is longer than that and its answer by no more than a
    /// question, goes on from the answer: the blocks after are the answer's. An answer that nobody goes on from is like
    /// no other.
    Inferred,
}

/// The requests of a trace, ready to be replayed.
#[derive(Clone, Debug)]
pub struct Workload {
    pub(super) prompts: Vec<Prompt>,
    /// How many requests go on from the answer of another.
    pub continued: usize,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Prompt {
    /// When the trace has it.
    pub(super) written_at: Duration,
    pub(super) input_tokens: u32,
    pub(super) output_tokens: u32,
    /// The whole chunks of its prompt, as gateways see them.
    pub(super) key: PromptKey,
    /// The whole chunks of its prompt and answer, as far as they may be cached.
    pub(super) chunks: Vec<u64>,
}

impl Prompt {
    /// Chunks that may be found in a cache: the last token is always computed, for the first of the answer follows from it.
    pub(super) fn reusable_chunks(&self) -> usize {
        ((self.input_tokens - 1) / CHUNK) as usize
    }
}

impl Workload {
    /// Names the chunks of a trace.
    pub fn new(trace: &Trace, answers: Answers) -> Self {
        // What follows the last whole block of a prompt is in the request that goes on from it, whatever becomes of the answer.
        let next = continuations(trace);
        let continued = next.iter().flatten().count();
        let mut prompts: Vec<Prompt> = Vec::with_capacity(trace.requests.len());
        // From the last to the first: what a request leaves behind is named by the one that goes on from it.
        let mut named: Vec<Vec<u64>> = vec![Vec::new(); trace.requests.len()];
        for (number, request) in trace.requests.iter().enumerate().rev() {
            let mut chain = Chain::default();
            let whole_blocks = (request.input_tokens / BLOCK_TOKENS) as usize;
            for block in &request.blocks[..whole_blocks] {
                (0..CHUNKS_IN_BLOCK as u64).for_each(|part| chain.push(*block, part));
            }
            let tokens = request.input_tokens + request.output_tokens;
            let (input, all) = ((request.input_tokens / CHUNK) as usize, (tokens / CHUNK) as usize);
            if let Some(next) = next[number].and_then(|next: usize| named[next].get(chain.chunks.len()..all)) {
                chain.chunks.extend_from_slice(next);
            }
            while chain.chunks.len() < input {
                let part = (chain.chunks.len() % CHUNKS_IN_BLOCK) as u64;
                chain.push(request.blocks[whole_blocks], part);
            }
            while chain.chunks.len() < all {
                chain.push(UNIQUE | number as u64, 0);
            }
            let head = chain.chunks.get(1).or(chain.chunks.first()).copied();
            let key = PromptKey {
                space: Space::Tokens,
                chunks: chain.chunks[..input].to_vec(),
                head: head.unwrap_or(hash::mix(request.blocks[0], u64::from(request.input_tokens))),
                bytes: request.input_tokens as usize * TOKEN_BYTES,
            };
            named[number].clone_from(&chain.chunks);
            let mut chunks = chain.chunks;
            if answers == Answers::Dropped {
                chunks.truncate(input);
            }
            let (input_tokens, output_tokens) = (request.input_tokens, request.output_tokens);
            prompts.push(Prompt { written_at: request.at, input_tokens, output_tokens, key, chunks });
        }
        prompts.reverse();
        Self { prompts, continued }
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// When each request comes, by ascending time: at `rate` times the speed of the trace, anywhere in its three seconds.
    pub(super) fn arrivals(&self, rate: f64, dice: &mut Dice) -> Vec<(Timestamp, usize)> {
        let mut arrivals: Vec<_> = self
            .prompts
            .iter()
            .enumerate()
            .map(|(number, prompt)| {
                (Timestamp::ORIGIN + (prompt.written_at + dice.up_to(SPREAD)).div_f64(rate), number)
            })
            .collect();
        arrivals.sort_unstable();
        arrivals
    }

    /// Prompt tokens that one cache without end, which knows each request as soon as it comes, would find.
    pub(super) fn reusable_tokens(&self, arrivals: &[(Timestamp, usize)]) -> u64 {
        let mut seen: StableSet<u64> = StableSet::default();
        let mut found = 0;
        for (_, number) in arrivals {
            let prompt = &self.prompts[*number];
            let first = &prompt.chunks[..prompt.reusable_chunks()];
            found += first.iter().take_while(|chunk| seen.contains(*chunk)).count() as u64;
            seen.extend(&prompt.chunks);
        }
        found * u64::from(CHUNK)
    }
}

/// Sets names of answers apart from ids of blocks.
const UNIQUE: u64 = 1 << 63;

/// Names each of which covers everything before it.
#[derive(Default)]
struct Chain {
    chunks: Vec<u64>,
}

impl Chain {
    fn push(&mut self, block: u64, part: u64) {
        let last = self.chunks.last().copied().unwrap_or(0);
        self.chunks.push(hash::mix(last, hash::mix(block, part)).max(1));
    }
}

/// A question after an answer has no more tokens than this; a longer rest belongs to another conversation with the same
/// beginning.
const QUESTION_TOKENS_MAX: u32 = 4_096;
/// One block is how every conversation begins; two in common say that it is the same one.
const COMMON_BLOCKS_MIN: usize = 2;
/// Requests looked at for one that goes on.
const LOOKED_AT_MAX: usize = 256;

/// For each request, the one that goes on from its answer.
fn continuations(trace: &Trace) -> Vec<Option<usize>> {
    let mut holders: StableMap<(usize, u64), Vec<usize>> = StableMap::default();
    for (number, request) in trace.requests.iter().enumerate() {
        for place in request.blocks.iter().enumerate().skip(COMMON_BLOCKS_MIN - 1) {
            holders.entry((place.0, *place.1)).or_default().push(number);
        }
    }
    let mut taken = vec![false; trace.requests.len()];
    let mut found = vec![None; trace.requests.len()];
    for (number, request) in trace.requests.iter().enumerate() {
        let whole = (request.input_tokens / BLOCK_TOKENS) as usize;
        if whole < COMMON_BLOCKS_MIN {
            continue;
        }
        let place = whole - 1;
        let Some(others) = holders.get(&(place, request.blocks[place])) else { continue };
        let after = others.partition_point(|other| *other <= number);
        let question = |other: usize| {
            let tokens =
                trace.requests[other].input_tokens.checked_sub(request.input_tokens + request.output_tokens)?;
            (tokens <= QUESTION_TOKENS_MAX && !taken[other]).then_some((tokens, other))
        };
        let best = others[after..].iter().take(LOOKED_AT_MAX).filter_map(|other| question(*other)).min();
        if let Some((_, next)) = best {
            taken[next] = true;
            found[number] = Some(next);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::trace::Request;

    fn request(seconds: u64, input_tokens: u32, output_tokens: u32, blocks: &[u64]) -> Request {
        Request { at: Duration::from_secs(seconds), input_tokens, output_tokens, blocks: blocks.to_vec() }
    }

    fn two_turns() -> Trace {
        // The second is the first, 200 tokens of answer, and a question of 100.
        let first = request(0, 1_200, 200, &[0, 1, 2]);
        let second = request(30, 1_500, 50, &[0, 1, 3]);
        Trace { requests: vec![first, second, request(60, 600, 9, &[0, 7])] }
    }

    #[test]
    fn requests_share_the_chunks_of_the_blocks_they_share() {
        let workload = Workload::new(&two_turns(), Answers::Dropped);
        let [first, second, third] = &workload.prompts[..] else { panic!("three requests") };
        assert_eq!((first.chunks.len(), second.chunks.len(), third.chunks.len()), (9, 11, 4));
        assert_eq!(first.chunks[..], second.chunks[..9], "also of the incomplete block");
        assert_eq!(first.chunks[..4], third.chunks[..]);
        assert_eq!(first.key.chunks, first.chunks);
    }

    #[test]
    fn an_answer_is_the_beginning_of_the_request_that_goes_on_from_it() {
        let workload = Workload::new(&two_turns(), Answers::Inferred);
        let [first, second, _] = &workload.prompts[..] else { panic!("three requests") };
        assert_eq!(workload.continued, 1);
        assert_eq!((first.key.chunks.len(), first.chunks.len()), (9, 10));
        assert_eq!(first.chunks[..], second.chunks[..10]);
        let arrivals = [(Timestamp::ORIGIN, 0), (Timestamp::ORIGIN, 1), (Timestamp::ORIGIN, 2)];
        assert_eq!(workload.reusable_tokens(&arrivals), (10 + 4) * 128);
    }

    #[test]
    fn requests_come_within_the_three_seconds_they_are_written_down_for() {
        let workload = Workload::new(&two_turns(), Answers::Dropped);
        let arrivals = workload.arrivals(10.0, &mut Dice::new(1, 0));
        for (at, number) in arrivals {
            let written = workload.prompts[number].written_at.div_f64(10.0);
            let after = at.since(Timestamp::ORIGIN).checked_sub(written).expect("not before it was written down");
            assert!(after <= SPREAD.div_f64(10.0));
        }
    }
}
