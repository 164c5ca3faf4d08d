//! What nodes tell each other, and what they then admit.

use std::{sync::Arc, time::Duration};

use smg_base::Timestamp;

use crate::{
    CounterId, Demand, Dimension, Limiter, LimiterConfig, Mode, OnSplit, Rule, Rules, Scope, Share, Slot, Split,
    Stance, Subject, Window, mesh::Plane,
};

const SUBJECT: Subject<'static> = Subject { tenant: "acme", key: None, model: "m" };
const BEGIN: Timestamp = Timestamp::from_nanos(1_234_567_890_123_456);

fn rule(mode: Mode) -> Rule {
    Rule::new("r", Scope::Tenant, Dimension::Requests, 100).per(Window::Minute).mode(mode)
}

fn node(rule: &Rule) -> Limiter {
    let limiter = Limiter::new(LimiterConfig { is_meshed: true, ..LimiterConfig::default() });
    limiter.reconfigure(Arc::new(Rules::new(vec![rule.clone()]).expect("a sound rule")));
    limiter
}

fn counter(limiter: &Limiter) -> CounterId {
    limiter.rules().of(&SUBJECT)[0].counter
}

/// Takes what it is given of `requests`, one by one.
fn take(limiter: &Limiter, requests: u64, now: Timestamp) -> u64 {
    let one = Demand { requests: 1, ..Demand::default() };
    (0..requests).take_while(|_| limiter.reserve(&SUBJECT, &one, now).is_ok()).count() as u64
}

fn told(limiter: &Limiter, now: Timestamp) -> Vec<(CounterId, Slot)> {
    let mut all = Vec::new();
    limiter.changed(1_000, now, &mut |counter, slot| all.push((counter, slot)));
    all
}

fn tell(from: &Limiter, number: u64, to: &Limiter, now: Timestamp) {
    told(from, now).into_iter().for_each(|(counter, slot)| to.hear(number, counter, slot, now));
}

fn remaining(limiter: &Limiter, now: Timestamp) -> u64 {
    let mut remaining = 0;
    limiter.standing(&SUBJECT, now, &mut |_, standing| remaining = standing.remaining);
    remaining
}

fn seconds(seconds: u64) -> Timestamp {
    BEGIN + Duration::from_secs(seconds)
}

#[test]
fn a_shared_limit_debits_what_others_took_for_as_long_as_it_counts_there() {
    let rule = rule(Mode::Shared);
    let (a, b) = (node(&rule), node(&rule));
    assert_eq!(take(&a, 70, BEGIN), 70);
    tell(&a, 1, &b, BEGIN);
    assert_eq!(take(&b, 70, BEGIN), 30);
    assert_eq!(remaining(&b, BEGIN), 0);
    // A word counts for a window even if its writer falls silent.
    assert_eq!(take(&b, 1, seconds(59)), 0);
    assert_eq!(take(&b, 100, seconds(63)), 100);
}

#[test]
fn what_fades_is_dropped_after_half_a_window() {
    let rule = rule(Mode::Shared);
    let (a, b) = (node(&rule), node(&rule));
    assert_eq!(take(&a, 40, BEGIN), 40);
    assert_eq!(take(&a, 20, seconds(40)), 20);
    let words = told(&a, seconds(40));
    assert_eq!(words, [(counter(&a), Slot { used: 60, shared: 60, lasting: 20, wants: 0 })]);
    b.hear(1, words[0].0, words[0].1, seconds(40));
    assert_eq!(remaining(&b, seconds(65)), 40);
    assert_eq!(remaining(&b, seconds(75)), 80);
    assert_eq!(remaining(&b, seconds(105)), 100);
}

#[test]
fn what_is_given_back_is_told_too() {
    let rule = rule(Mode::Shared);
    let (a, b) = (node(&rule), node(&rule));
    let many = Demand { requests: 80, ..Demand::default() };
    let reservation = a.reserve(&SUBJECT, &many, BEGIN).expect("room");
    tell(&a, 1, &b, BEGIN);
    assert_eq!(remaining(&b, BEGIN), 20);
    a.settle(reservation, &Demand { requests: 5, ..Demand::default() }, seconds(3));
    tell(&a, 1, &b, seconds(3));
    assert_eq!(remaining(&b, seconds(3)), 95);
    assert!(told(&a, seconds(4)).is_empty(), "nothing has changed");
    // What passes is told without anybody coming.
    let words: Vec<_> = (5..70).flat_map(|second| told(&a, seconds(second))).collect();
    assert_eq!(words.last(), Some(&(counter(&a), Slot::default())));
    (0..40).for_each(|_| a.sweep(seconds(70)));
    assert_eq!(a.figures().counters, 0);
}

#[test]
fn strict_nodes_spend_their_rights_and_nothing_else() {
    let rule = rule(Mode::Strict);
    let nodes: Vec<Limiter> = (0..3).map(|_| node(&rule)).collect();
    for (rank, node) in (0..).zip(&nodes) {
        let shares = [Some(Share { rank, members: 3 }); Stance::CLASSES];
        node.set_stance(Stance { shares, ..Stance::default() });
    }
    let admitted: Vec<u64> = nodes.iter().map(|node| take(node, 100, BEGIN)).collect();
    assert_eq!(admitted, [34, 33, 33]);
    let slot = told(&nodes[1], BEGIN)[0].1;
    assert_eq!(slot, Slot { used: 33, shared: 0, lasting: 33, wants: 1 });

    let counter = counter(&nodes[0]);
    assert!(nodes[0].lend(counter, 10, BEGIN));
    assert_eq!(take(&nodes[0], 100, BEGIN), 10);
    assert_eq!(nodes[0].own(counter, BEGIN).map(|own| (own.used, own.allowance.own, own.lent)), Some((44, 44, 10)));
    // What was lent stays lent when nothing counts.
    (0..400).for_each(|second| drop(told(&nodes[0], seconds(second))));
    assert_eq!(take(&nodes[0], 100, seconds(400)), 44);

    let none = Stance { shares: [None; Stance::CLASSES], ..nodes[2].stance() };
    nodes[2].set_stance(none);
    assert_eq!(take(&nodes[2], 100, seconds(400)), 0);
    let over = Stance { shares: [Some(Share { rank: 0, members: 1 }); Stance::CLASSES], rights_until: BEGIN, ..none };
    nodes[2].set_stance(over);
    assert_eq!(take(&nodes[2], 100, seconds(400)), 0, "the rights have ended");
}

#[test]
fn hybrid_nodes_spend_rights_first_and_then_what_is_shared() {
    let rule = rule(Mode::Hybrid);
    let (a, b) = (node(&rule), node(&rule));
    for (rank, node) in [(0, &a), (1, &b)] {
        let shares = [Some(Share { rank, members: 2 }); Stance::CLASSES];
        node.set_stance(Stance { shares, ..Stance::default() });
    }
    assert_eq!(take(&a, 50, BEGIN), 50);
    assert_eq!(told(&a, BEGIN)[0].1, Slot { used: 50, shared: 15, lasting: 50, wants: 0 });
    b.hear(1, counter(&a), Slot { used: 50, shared: 15, lasting: 50, wants: 0 }, BEGIN);
    // Of the 15 that are left it takes half, and half of what is left then, as often as the other hears of it; the last one in its turn.
    for expected in [35 + 7, 4, 2, 1] {
        assert_eq!(take(&b, 100, BEGIN), expected);
        told(&b, BEGIN);
    }
    let turns = [0, 64].map(|ms| take(&b, 100, BEGIN + Duration::from_millis(ms)));
    assert_eq!(turns.iter().sum::<u64>(), 1);
    assert_eq!(remaining(&b, BEGIN), 0);
}

#[test]
fn nodes_that_have_not_heard_each_other_take_no_more_of_what_is_shared_than_there_is() {
    let rule = rule(Mode::Hybrid);
    let mut sum = 0;
    for rank in 0..5 {
        let node = node(&rule);
        let shares = [Some(Share { rank, members: 5 }); Stance::CLASSES];
        node.set_stance(Stance { shares, ..Stance::default() });
        sum += take(&node, 100, BEGIN);
        let refused = node.reserve(&SUBJECT, &Demand { requests: 1, ..Demand::default() }, BEGIN).unwrap_err();
        assert!(refused.retry_after < Duration::from_millis(100), "{refused:?}");
    }
    assert_eq!(sum, 100);
}

#[test]
fn a_split_is_answered_as_the_rule_says() {
    let check = |mode, on_split, expected| {
        let node = node(&rule(mode).on_split(on_split));
        let split = Some(Split { alive: 2, clean: 5 });
        node.set_stance(Stance { split, ..Stance::default() });
        assert_eq!(take(&node, 200, BEGIN), expected, "{mode} {on_split}");
    };
    check(Mode::Shared, OnSplit::KeepShare, 40);
    check(Mode::Shared, OnSplit::FailClosed, 0);
    check(Mode::Shared, OnSplit::FailOpen, 100);
    check(Mode::Hybrid, OnSplit::KeepShare, 70 + 12);
    check(Mode::Strict, OnSplit::FailOpen, 100);
}

#[test]
fn of_a_node_that_is_gone_only_what_it_used_stays() {
    let used = Slot { used: 30, shared: 30, lasting: 30, wants: 0 };
    let windowed = node(&rule(Mode::Shared));
    windowed.hear(7, counter(&windowed), used, BEGIN);
    windowed.forget_node(7);
    assert_eq!(remaining(&windowed, BEGIN), 70);
    // It is back and knows nothing of it.
    windowed.hear(7, counter(&windowed), Slot { used: 10, shared: 10, lasting: 10, wants: 0 }, seconds(1));
    assert_eq!(remaining(&windowed, seconds(1)), 60);
    windowed.forget_node(7);
    assert_eq!(remaining(&windowed, seconds(1)), 60);
    assert_eq!(remaining(&windowed, seconds(64)), 100);

    let running = node(&Rule::new("r", Scope::Tenant, Dimension::Concurrency, 100).mode(Mode::Shared));
    running.hear(7, counter(&running), used, BEGIN);
    assert_eq!(remaining(&running, seconds(1_000_000)), 70);
    running.forget_node(7);
    assert_eq!(remaining(&running, BEGIN), 100);

    let durable = node(&Rule { window: Some(Window::Day), ..rule(Mode::Shared) });
    durable.hear(7, counter(&durable), used, BEGIN);
    durable.forget_node(7);
    durable.hear(7, counter(&durable), Slot { used: 31, shared: 31, lasting: 31, wants: 0 }, BEGIN);
    assert_eq!(remaining(&durable, BEGIN), 69);
}

#[test]
fn a_subject_that_has_not_come_here_is_kept_and_bounded() {
    let rule = rule(Mode::Shared);
    let limiter = Limiter::new(LimiterConfig { counters_max: 80, is_meshed: true, ..LimiterConfig::default() });
    let rules = Rules::new(vec![rule]).expect("a sound rule");
    for tenant in 0..1_000 {
        let tenant = tenant.to_string();
        let counter = rules.of(&Subject { tenant: &tenant, ..SUBJECT })[0].counter;
        limiter.hear(1, counter, Slot { used: 99, shared: 99, lasting: 99, wants: 0 }, BEGIN);
    }
    assert_eq!(limiter.figures().counters, 70);
    limiter.reconfigure(Arc::new(rules));
    let one = Demand { requests: 2, ..Demand::default() };
    let known = (0..1_000).map(|tenant| tenant.to_string()).find(|tenant| {
        limiter.reserve(&Subject { tenant, ..SUBJECT }, &one, BEGIN).is_err_and(|refused| &*refused.rule == "r")
    });
    assert!(known.is_some());
}

#[test]
fn changes_are_told_in_turn_and_all_of_them() {
    let limiter = node(&rule(Mode::Shared));
    let one = Demand { requests: 1, ..Demand::default() };
    for tenant in 0..500 {
        let tenant = tenant.to_string();
        let _ = limiter.reserve(&Subject { tenant: &tenant, ..SUBJECT }, &one, BEGIN).expect("room");
    }
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let before = seen.len();
        limiter.changed(50, BEGIN, &mut |counter, _| assert!(seen.insert(counter), "told twice"));
        assert_eq!(seen.len(), before + 50);
    }
    assert!(told(&limiter, BEGIN).is_empty());
}

#[test]
fn honest_times_count_others_too() {
    let rule = rule(Mode::Shared);
    let (a, b) = (node(&rule), node(&rule));
    assert_eq!(take(&a, 60, BEGIN), 60);
    tell(&a, 1, &b, BEGIN);
    assert_eq!(take(&b, 40, seconds(5)), 40);
    let many = |requests| Demand { requests, ..Demand::default() };
    for charge in [30, 50, 70, 100] {
        let refused = b.reserve(&SUBJECT, &many(charge), seconds(5)).expect_err("no room");
        let at = seconds(5) + refused.retry_after;
        let early = at - Duration::from_nanos(1);
        assert!(b.reserve(&SUBJECT, &many(charge), early).is_err(), "{charge}");
        let reservation = b.reserve(&SUBJECT, &many(charge), at).expect("the time was honest");
        b.settle(reservation, &Demand::default(), at);
    }
}

#[test]
fn a_run_removes_no_row_that_it_has_not_written() {
    for (mode, writes) in [(Mode::Strict, false), (Mode::Shared, true)] {
        let limiter = Arc::new(node(&rule(mode).per(Window::Hour)));
        let mut plane = Plane::new(1, 1, 2, Arc::clone(&limiter), BEGIN);
        // What is refused for want of rights has its counter looked at, too.
        assert_eq!(take(&limiter, 1, BEGIN) > 0, writes, "{mode}");
        let mut written = Vec::new();
        let mut look = |now: Timestamp| {
            plane.tick(now, 1);
            let Some(batch) = plane.take_batch() else { return };
            written.extend(batch.writes.into_iter().map(|write| write.value.is_some()));
            plane.kept(batch.number, crate::mesh::Outcome::Kept);
        };
        (0..200).map(|at| BEGIN + Duration::from_millis(20 * at)).for_each(&mut look);
        limiter.sweep(seconds(2 * 60 * 60));
        // It is over: what was written goes.
        (0..20).map(|at| seconds(2 * 60 * 60 + at)).for_each(&mut look);
        assert_eq!(written.first().copied(), writes.then_some(true), "{mode}");
        assert_eq!(written.last().copied(), writes.then_some(false), "{mode}");
    }
}

#[test]
fn rights_by_the_hour_and_longer_are_not_lent() {
    let limiter = node(&rule(Mode::Strict).per(Window::Hour));
    let counter = counter(&limiter);
    assert!(!limiter.lend(counter, 10, BEGIN));
    assert!(limiter.lend(counter, 0, BEGIN));
    assert_eq!(limiter.own(counter, BEGIN), None);
}
