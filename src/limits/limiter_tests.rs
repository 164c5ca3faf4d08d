//! Decisions of one node, against an oracle that remembers everything.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use smg_base::Timestamp;

use crate::{
    Demand, Dimension, Limiter, LimiterConfig, Mode, Refused, Reservation, Rule, Rules, Scope, Standing, Subject,
    Window,
};

const SUBJECT: Subject<'static> = Subject { tenant: "acme", key: Some("k1"), model: "m" };
/// Somewhere inside a slot of each window.
const BEGIN: Timestamp = Timestamp::from_nanos(1_234_567_890_123_456);

fn limiter(rules: Vec<Rule>) -> Limiter {
    let limiter = Limiter::new(LimiterConfig::default());
    limiter.reconfigure(Arc::new(Rules::new(rules).expect("sound rules")));
    limiter
}

fn requests(amount: u64, window: Window) -> Rule {
    Rule::new("requests", Scope::Tenant, Dimension::Requests, amount).per(window)
}

fn tokens(amount: u64, window: Window) -> Rule {
    Rule::new("tokens", Scope::Tenant, Dimension::Tokens, amount).per(window)
}

fn one() -> Demand {
    Demand { requests: 1, ..Demand::default() }
}

fn of_tokens(input: u64, output: u64) -> Demand {
    Demand { requests: 1, input_tokens: input, output_tokens: output, money: 0 }
}

fn standing(limiter: &Limiter, now: Timestamp) -> Vec<Standing> {
    let mut all = Vec::new();
    limiter.standing(&SUBJECT, now, &mut |_, standing| all.push(standing));
    all
}

fn refusal(limiter: &Limiter, demand: &Demand, now: Timestamp) -> Refused {
    limiter.reserve(&SUBJECT, demand, now).expect_err("a refusal")
}

#[test]
fn without_rules_nothing_is_refused_or_kept() {
    let limiter = limiter(Vec::new());
    assert!(limiter.reserve(&SUBJECT, &of_tokens(u64::MAX, u64::MAX), BEGIN).expect("no limit").is_empty());
    assert_eq!(limiter.figures().counters, 0);
}

#[test]
fn a_lone_client_gets_what_it_is_allowed_but_a_thirty_second() {
    for window in Window::ALL {
        let limiter = limiter(vec![requests(100, window)]);
        let (mut now, mut admitted) = (BEGIN, 0);
        let end = BEGIN + window.length() * 32;
        while now < end {
            match limiter.reserve(&SUBJECT, &one(), now) {
                Ok(reservation) => {
                    limiter.settle(reservation, &one(), now);
                    admitted += 1;
                }
                Err(refused) => now = now + refused.retry_after,
            }
        }
        assert!((3_100..=3_200).contains(&admitted), "{window}: {admitted}");
    }
}

#[test]
fn all_rules_are_charged_or_none() {
    let limiter = limiter(vec![
        requests(10, Window::Minute),
        Rule::new("model", Scope::Model, Dimension::Requests, 1).per(Window::Minute),
        Rule::new("running", Scope::Key, Dimension::Concurrency, 3),
    ]);
    let first = limiter.reserve(&SUBJECT, &one(), BEGIN).expect("room");
    let refused = refusal(&limiter, &one(), BEGIN);
    assert_eq!((&*refused.rule, refused.dimension, refused.limit), ("model", Dimension::Requests, 1));
    let remaining: Vec<u64> = standing(&limiter, BEGIN).iter().map(|standing| standing.remaining).collect();
    assert_eq!(remaining, [2, 9, 0]);
    limiter.settle(first, &Demand::default(), BEGIN);
    let remaining: Vec<u64> = standing(&limiter, BEGIN).iter().map(|standing| standing.remaining).collect();
    assert_eq!(remaining, [3, 10, 1]);
}

#[test]
fn settling_gives_back_what_was_not_used() {
    let limiter = limiter(vec![tokens(1_000, Window::Minute)]);
    let reservation = limiter.reserve(&SUBJECT, &of_tokens(100, 900), BEGIN).expect("room");
    let later = BEGIN + Duration::from_secs(20);
    let _ = refusal(&limiter, &of_tokens(1, 0), later);
    limiter.settle(reservation, &of_tokens(100, 50), later);
    assert_eq!(standing(&limiter, later)[0].remaining, 850);
    // In the slot of the reservation: it passes when that does.
    let passed = BEGIN + Duration::from_secs(62);
    assert_eq!(standing(&limiter, passed)[0], Standing { limit: 1_000, remaining: 1_000, reset: Duration::ZERO });
}

#[test]
fn what_was_used_beyond_the_reservation_is_debt() {
    let limiter = limiter(vec![tokens(100, Window::Second)]);
    let reservation = limiter.reserve(&SUBJECT, &of_tokens(10, 10), BEGIN).expect("room");
    limiter.settle(reservation, &of_tokens(10, 240), BEGIN);
    assert_eq!(standing(&limiter, BEGIN)[0].remaining, 0);
    let refused = refusal(&limiter, &of_tokens(1, 0), BEGIN);
    assert!(refused.retry_after > Duration::from_millis(990), "{refused:?}");
    let _ = limiter.reserve(&SUBJECT, &of_tokens(1, 0), BEGIN + refused.retry_after).expect("the debt has passed");
}

#[test]
fn a_late_settlement_changes_nothing() {
    let limiter = limiter(vec![tokens(100, Window::Second)]);
    let early = limiter.reserve(&SUBJECT, &of_tokens(10, 90), BEGIN).expect("room");
    let later = BEGIN + Duration::from_secs(2);
    let reservation = limiter.reserve(&SUBJECT, &of_tokens(0, 60), later).expect("room");
    limiter.settle(early, &Demand::default(), later);
    assert_eq!(standing(&limiter, later)[0].remaining, 40);
    limiter.settle(reservation, &of_tokens(0, 60), later);
    assert_eq!(standing(&limiter, later)[0].remaining, 40);
}

#[test]
fn what_can_never_fit_is_said_to_be_so() {
    let limiter = limiter(vec![tokens(100, Window::Second)]);
    let refused = refusal(&limiter, &of_tokens(101, 0), BEGIN);
    assert!(refused.never);
    assert_eq!(refused.retry_after, Duration::MAX);
    assert!(limiter.reserve(&SUBJECT, &of_tokens(100, 0), BEGIN).is_ok());
    assert!(!refusal(&limiter, &of_tokens(100, 0), BEGIN).never);
}

#[test]
fn a_changed_amount_refills_nobody() {
    let limiter = limiter(vec![requests(10, Window::Hour)]);
    for _ in 0..10 {
        let _ = limiter.reserve(&SUBJECT, &one(), BEGIN).expect("room");
    }
    let more = Rules::new(vec![tokens(5, Window::Day), requests(12, Window::Hour)]).expect("sound rules");
    limiter.reconfigure(Arc::new(more));
    assert!(limiter.reserve(&SUBJECT, &one(), BEGIN).is_ok());
    assert!(limiter.reserve(&SUBJECT, &one(), BEGIN).is_ok());
    assert_eq!(refusal(&limiter, &one(), BEGIN).limit, 12);
}

#[test]
fn a_full_table_refuses_who_is_new_and_forgets_nobody() {
    let limiter = Limiter::new(LimiterConfig { counters_max: 1_000, ..LimiterConfig::default() });
    let rules = Rules::new(vec![requests(1, Window::Minute).mode(Mode::Shared)]).expect("sound rules");
    limiter.reconfigure(Arc::new(rules));
    let reserve = |tenant: u32, now| {
        let tenant = tenant.to_string();
        limiter.reserve(&Subject { tenant: &tenant, ..SUBJECT }, &one(), now)
    };
    for tenant in 0..1_000 {
        assert!(reserve(tenant, BEGIN).is_ok());
    }
    for tenant in 1_000..1_100 {
        let refused = reserve(tenant, BEGIN).expect_err("no room");
        assert_eq!(&*refused.rule, "all counters are in use");
    }
    for tenant in 0..1_000 {
        let refused = reserve(tenant, BEGIN).expect_err("the window is open");
        assert_eq!(&*refused.rule, "requests");
    }
    assert_eq!((limiter.figures().counters, limiter.figures().full), (1_000, 100));
    let later = BEGIN + Duration::from_secs(62);
    let admitted = (2_000..3_000).filter(|&tenant| reserve(tenant, later).is_ok()).count();
    assert!(admitted > 800, "{admitted}");
    assert!(limiter.figures().counters <= 1_000);
    for _ in 0..20 {
        limiter.sweep(later + Duration::from_secs(62));
    }
    assert_eq!(limiter.figures().counters, 0);
}

#[test]
fn threads_together_take_no_more_than_the_limit() {
    const AMOUNT: u64 = 5_000;
    let limiter = limiter(vec![
        requests(AMOUNT, Window::Month),
        Rule::new("running", Scope::Key, Dimension::Concurrency, 64),
        Rule::new("all", Scope::Global, Dimension::Requests, 1_000_000).per(Window::Second),
    ]);
    let take = || {
        let mut admitted = 0;
        while let Ok(reservation) = limiter.reserve(&SUBJECT, &one(), BEGIN) {
            limiter.settle(reservation, &one(), BEGIN);
            admitted += 1;
        }
        admitted
    };
    let admitted: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(admitted, AMOUNT);
    assert_eq!(standing(&limiter, BEGIN)[0].remaining, 64);
}

/// What is done in a random run.
#[derive(Clone, Debug)]
enum Step {
    Wait(Duration),
    Reserve {
        input: u64,
        output: u64,
    },
    /// Settles the reservation at this place of those open, with this share of its output, in hundredths.
    Settle {
        at: usize,
        percent: u64,
    },
    /// Comes back when it was told to.
    ComeBack {
        input: u64,
    },
}

fn step(window: Window) -> impl Strategy<Value = Step> {
    let nanos = u64::try_from(window.length().as_nanos()).unwrap_or(u64::MAX);
    let wait = prop_oneof![0..nanos / 40, 0..nanos / 3, Just(nanos / 31), Just(0)];
    prop_oneof![
        3 => wait.prop_map(|nanos| Step::Wait(Duration::from_nanos(nanos))),
        6 => (0..40_u64, 0..60_u64).prop_map(|(input, output)| Step::Reserve { input, output }),
        3 => (any::<usize>(), 0..=100_u64).prop_map(|(at, percent)| Step::Settle { at, percent }),
        1 => (1..100_u64).prop_map(|input| Step::ComeBack { input }),
    ]
}

/// Remembers when everything was taken.
#[derive(Default)]
struct Oracle {
    taken: Vec<(Timestamp, u64)>,
    open: Vec<(Reservation, usize, Demand)>,
}

impl Oracle {
    /// What the last window holds, both its ends included.
    fn within(&self, now: Timestamp, window: Duration) -> u64 {
        self.taken.iter().filter(|(at, _)| now.since(*at) <= window).map(|(_, amount)| amount).sum()
    }

    fn reserve(&mut self, limiter: &Limiter, demand: Demand, now: Timestamp) -> Result<(), Refused> {
        let reservation = limiter.reserve(&SUBJECT, &demand, now)?;
        self.taken.push((now, demand.input_tokens + demand.output_tokens));
        self.open.push((reservation, self.taken.len() - 1, demand));
        Ok(())
    }

    fn settle(&mut self, limiter: &Limiter, at: usize, percent: u64, now: Timestamp) {
        let (reservation, taken, demand) = self.open.swap_remove(at);
        let actual = Demand { output_tokens: demand.output_tokens * percent / 100, ..demand };
        limiter.settle(reservation, &actual, now);
        self.taken[taken].1 = actual.input_tokens + actual.output_tokens;
    }
}

fn run(window: Window, steps: Vec<Step>) -> Result<(), TestCaseError> {
    const AMOUNT: u64 = 250;
    const RUNNING: usize = 5;
    let limiter = limiter(vec![
        tokens(AMOUNT, window),
        Rule::new("running", Scope::Global, Dimension::Concurrency, RUNNING as u64),
    ]);
    let mut oracle = Oracle::default();
    let mut now = BEGIN;
    for step in steps {
        match step {
            Step::Wait(time) => now = now + time,
            Step::Reserve { input, output } => {
                let fits = oracle.within(now, window.length() * 33 / 31) + input + output <= AMOUNT;
                let runs = oracle.open.len() < RUNNING;
                let outcome = oracle.reserve(&limiter, of_tokens(input, output), now);
                prop_assert!(outcome.is_ok() || !fits || !runs, "{outcome:?}");
            }
            Step::Settle { at, percent } if !oracle.open.is_empty() => {
                oracle.settle(&limiter, at % oracle.open.len(), percent, now);
            }
            Step::Settle { .. } => {}
            Step::ComeBack { input } => {
                while !oracle.open.is_empty() {
                    oracle.settle(&limiter, 0, 100, now);
                }
                if let Err(refused) = oracle.reserve(&limiter, of_tokens(input, 0), now) {
                    let early = now + (refused.retry_after - Duration::from_nanos(1));
                    prop_assert!(limiter.reserve(&SUBJECT, &of_tokens(input, 0), early).is_err(), "could come earlier");
                    now = now + refused.retry_after;
                    let outcome = oracle.reserve(&limiter, of_tokens(input, 0), now);
                    prop_assert!(outcome.is_ok(), "{outcome:?} after {refused:?}");
                }
            }
        }
        prop_assert!(oracle.within(now, window.length()) <= AMOUNT);
        prop_assert!(oracle.open.len() <= RUNNING);
        let all = standing(&limiter, now);
        let remaining = all.iter().map(|standing| standing.remaining).collect::<Vec<_>>();
        prop_assert_eq!(remaining[1], (RUNNING - oracle.open.len()) as u64);
        let least = oracle.within(now, window.length() * 33 / 31);
        prop_assert!(
            remaining[0] <= AMOUNT - oracle.within(now, window.length())
                && remaining[0] >= AMOUNT.saturating_sub(least)
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_second_holds_more_than_the_limit(steps in prop::collection::vec(step(Window::Second), 1..150)) {
        run(Window::Second, steps)?;
    }

    #[test]
    fn no_month_holds_more_than_the_limit(steps in prop::collection::vec(step(Window::Month), 1..150)) {
        run(Window::Month, steps)?;
    }
}
