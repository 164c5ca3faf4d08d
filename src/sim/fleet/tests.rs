//! Replays of small fleets.

use std::time::Duration;

use smg_base::Timestamp;
use smg_routing::{PolicyConfig, PolicyKind};

use super::{
    engine::{Engine, Seen},
    workload::{CHUNK, Prompt},
    *,
};
use crate::dice::Dice;

/// Conversations with a common beginning, each turn of which goes on from the one before.
fn conversations(seed: u64, count: u64, turns: u64) -> Trace {
    let mut dice = Dice::new(seed, 9);
    let mut requests = Vec::new();
    for conversation in 0..count {
        let mut tokens = 1_500 + u32::try_from(dice.below(3_000)).unwrap();
        let start = dice.below(60_000);
        for turn in 0..turns {
            let blocks = 0..u64::from(tokens.div_ceil(512));
            let id = |block| if block < 2 { block } else { 1_000 * (conversation + 1) + block };
            let output_tokens = 20 + u32::try_from(dice.below(100)).unwrap();
            requests.push(Request {
                at: Duration::from_millis(start + turn * 20_000) / 3_000 * 3_000,
                input_tokens: tokens,
                output_tokens,
                blocks: blocks.map(id).collect(),
            });
            tokens += output_tokens + 400;
        }
    }
    requests.sort_by_key(|request| request.at);
    Trace { requests }
}

fn case(policy: PolicyKind) -> Case {
    Case {
        seed: 1,
        chooser: Chooser::Policy(policy),
        gateways: 3,
        engines: 6,
        model: Model::Full,
        engine: EngineConfig { capacity_tokens: 60_000, ..EngineConfig::default() },
        rate: 4.0,
        load_delay: Duration::from_millis(200),
        ownership_delay: Duration::from_secs(1),
        ownership: Ownership::Events,
        poll: Duration::from_secs(10),
        config: PolicyConfig::default(),
    }
}

fn small() -> Workload {
    Workload::new(&conversations(5, 60, 5), Answers::Inferred)
}

#[test]
fn one_seed_is_one_outcome() {
    let workload = small();
    for chooser in [Chooser::Policy(PolicyKind::CacheAware), Chooser::Rule(Rule::ThresholdGuess)] {
        for model in [Model::Prefill, Model::Full] {
            let case = Case { chooser, model, ..case(PolicyKind::CacheAware) };
            let once = run(&workload, &case, &mut |_| {});
            assert_eq!(once, run(&workload, &case, &mut |_| {}), "{case:?}");
            let other = run(&workload, &Case { seed: 2, ..case.clone() }, &mut |_| {});
            assert_ne!(once, other, "{case:?}");
        }
    }
}

#[test]
fn every_request_ends_and_every_token_is_found_or_computed() {
    let workload = small();
    let policies = [PolicyKind::CacheAware, PolicyKind::RoundRobin, PolicyKind::PrefixHash].map(Chooser::Policy);
    for chooser in policies.into_iter().chain(Rule::ALL.map(Chooser::Rule)) {
        for (model, ownership) in [(Model::Prefill, Ownership::Events), (Model::Full, Ownership::Predicted)] {
            let case = Case { chooser, model, ownership, ..case(PolicyKind::CacheAware) };
            let figures = run(&workload, &case, &mut |_| {});
            assert_eq!((figures.requests, figures.rejected, figures.failed), (300, 0, 0), "{case:?}");
            assert_eq!((figures.ttft.len(), figures.duration.len()), (300, 300), "{case:?}");
            let known_tokens = figures.hit_tokens + figures.prefilled_tokens;
            let again = known_tokens.checked_sub(figures.input_tokens).expect("all prompts were computed");
            assert_eq!(again > 0, figures.preemptions > 0, "{case:?}");
            let outputs: u64 = workload.prompts.iter().map(|prompt| u64::from(prompt.output_tokens)).sum();
            assert_eq!(figures.decoded_tokens, outputs, "{case:?}");
            assert!(figures.hit_tokens <= figures.reusable_tokens && figures.imbalance >= 1.0, "{case:?}");
        }
    }
}

#[test]
fn who_knows_the_caches_finds_more_and_answers_sooner() {
    let workload = small();
    for ownership in [Ownership::Events, Ownership::Predicted] {
        let knows = run(&workload, &Case { ownership, ..case(PolicyKind::CacheAware) }, &mut |_| {});
        let turns = run(&workload, &case(PolicyKind::RoundRobin), &mut |_| {});
        assert!(knows.hit_share() > 1.3 * turns.hit_share(), "{} and {}", knows.hit_share(), turns.hit_share());
        assert!(knows.ttft_mean() < turns.ttft_mean(), "{} and {}", knows.ttft_mean(), turns.ttft_mean());
    }
}

/// Drives one engine by itself; returns the order of first tokens and the end.
fn drive(engine: &mut Engine, prompts: &[Prompt], come: &[usize]) -> (Vec<usize>, Timestamp) {
    for request in come {
        assert!(engine.take(*request, prompts));
    }
    let (mut now, mut order, mut finished) = (Timestamp::ORIGIN, Vec::new(), 0);
    while let Some(end) = engine.step(now, prompts) {
        now = end;
        let mut seen = Vec::new();
        engine.finish_step(prompts, &mut seen);
        let gauges = engine.gauges();
        assert!(gauges.kv_usage <= 1.0);
        for seen in seen {
            match seen {
                Seen::FirstToken { request, .. } => order.push(request),
                Seen::Finished { .. } => finished += 1,
            }
        }
    }
    assert_eq!((finished, engine.gauges().running, engine.gauges().kv_usage), (come.len(), 0, 0.0));
    (order, now)
}

/// Prompts that have nothing in common.
fn strangers(count: u64, input_tokens: u32, output_tokens: u32) -> Workload {
    let blocks = |number: u64| (0..u64::from(input_tokens.div_ceil(512))).map(|at| number * 1_000 + at).collect();
    let request = |number| Request { at: Duration::ZERO, input_tokens, output_tokens, blocks: blocks(number + 1) };
    Workload::new(&Trace { requests: (0..count).map(request).collect() }, Answers::Inferred)
}

#[test]
fn an_engine_takes_prompts_in_their_order_and_at_its_rate() {
    let workload = strangers(8, 4_000, 1);
    let mut engine = Engine::new(EngineConfig { step_seconds: 0.0, request_seconds: 0.0, ..EngineConfig::default() });
    let (order, end) = drive(&mut engine, &workload.prompts, &[3, 1, 2, 7, 0, 5, 4, 6]);
    assert_eq!(order, [3, 1, 2, 7, 0, 5, 4, 6]);
    let seconds = end.since(Timestamp::ORIGIN).as_secs_f64();
    assert!((seconds - 4.0).abs() < 0.001, "{seconds} s for 32 000 tokens at 8 000 a second");
}

#[test]
fn streams_slow_down_with_their_number_and_with_prompts_beside_them() {
    let alone = drive(&mut Engine::new(EngineConfig::default()), &strangers(1, 256, 300).prompts, &[0]).1;
    let many: Vec<usize> = (0..64).collect();
    let together = drive(&mut Engine::new(EngineConfig::default()), &strangers(64, 256, 300).prompts, &many).1;
    assert!(together > alone && together < alone + (alone.since(Timestamp::ORIGIN)) * 2, "{alone:?} {together:?}");
}

#[test]
fn an_engine_short_of_memory_preempts_and_finishes_everything() {
    let workload = strangers(12, 1_000, 900);
    let config = EngineConfig { capacity_tokens: 5_120, ..EngineConfig::default() };
    let mut engine = Engine::new(config);
    let all: Vec<usize> = (0..12).collect();
    let (order, _) = drive(&mut engine, &workload.prompts, &all);
    assert_eq!(order, all, "those that came first get their first token first");
    let work = engine.work();
    assert!(work.preemptions > 0, "{work:?}");
    assert_eq!(work.decoded_tokens, 12 * 900);
    assert!(work.prefilled_tokens >= 12 * 1_000, "{work:?}");
}

#[test]
fn an_answer_is_found_by_the_question_that_follows() {
    let first = Request { at: Duration::ZERO, input_tokens: 1_200, output_tokens: 400, blocks: vec![0, 1, 2] };
    let second =
        Request { at: Duration::from_secs(60), input_tokens: 1_800, output_tokens: 1, blocks: vec![0, 1, 3, 4] };
    let trace = Trace { requests: vec![first, second] };
    for (answers, expected) in [(Answers::Inferred, 1_600 / CHUNK * CHUNK), (Answers::Dropped, 1_200 / CHUNK * CHUNK)] {
        let workload = Workload::new(&trace, answers);
        let mut engine = Engine::new(EngineConfig::default());
        drive(&mut engine, &workload.prompts, &[0]);
        drive(&mut engine, &workload.prompts, &[1]);
        let computed = u64::from(1_200 + 1_800 - expected);
        assert_eq!(engine.work().prefilled_tokens, computed, "{answers:?}");
    }
}

#[test]
fn a_request_too_long_for_its_engine_fails_alone() {
    let trace = Trace { requests: [conversations(1, 3, 2).requests, vec![long()]].concat() };
    let engine = EngineConfig { capacity_tokens: 30_000, ..EngineConfig::default() };
    let workload = Workload::new(&trace, Answers::Inferred);
    let figures = run(&workload, &Case { engine, ..case(PolicyKind::CacheAware) }, &mut |_| {});
    assert_eq!((figures.requests, figures.failed, figures.duration.len()), (7, 1, 6));
}

fn long() -> Request {
    let input_tokens = 40_000;
    Request { at: Duration::ZERO, input_tokens, output_tokens: 9, blocks: (500..579).collect() }
}
