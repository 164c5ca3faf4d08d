//! Which rules a request meets.

use crate::{Dimension, Mode, OnSplit, Rule, Rules, RulesError, Scope, Subject, Window};

fn rule(name: &str, scope: Scope) -> Rule {
    Rule::new(name, scope, Dimension::Requests, 10).per(Window::Minute)
}

fn subject<'a>(tenant: &'a str, key: Option<&'a str>, model: &'a str) -> Subject<'a> {
    Subject { tenant, key, model }
}

fn names(rules: &Rules, subject: &Subject<'_>) -> Vec<String> {
    rules.of(subject).iter().filter_map(|applied| rules.get(applied.rule)).map(|rule| rule.name.to_string()).collect()
}

#[test]
fn of_rules_about_one_thing_the_narrowest_counts() {
    let rules = Rules::new(vec![
        rule("all", Scope::Tenant),
        rule("a*", Scope::Tenant).only("a*"),
        rule("acme", Scope::Tenant).only("acme"),
        rule("acm*", Scope::Tenant).only("acm*"),
        rule("acme, llama", Scope::Tenant).only("acme").model("llama-3"),
        rule("acme, l*", Scope::Tenant).only("acme").model("l*"),
    ])
    .expect("sound rules");
    let check = |tenant, model, expected: &str| {
        assert_eq!(names(&rules, &subject(tenant, None, model)), [expected], "{tenant} {model}");
    };
    check("zeta", "m", "all");
    check("alpha", "m", "a*");
    check("acm", "m", "acm*");
    check("acme", "m", "acme");
    check("acme", "lama", "acme, l*");
    check("acme", "llama-3", "acme, llama");
}

#[test]
fn every_scope_counts_and_the_narrow_ones_come_first() {
    let scopes = [Scope::Global, Scope::Model, Scope::Tenant, Scope::TenantModel, Scope::Key];
    let rules = Rules::new(scopes.map(|scope| rule(scope.as_str(), scope)).to_vec()).expect("sound rules");
    let all = names(&rules, &subject("t", Some("k"), "m"));
    assert_eq!(all, ["key", "tenant_model", "tenant", "model", "global"]);
    assert_eq!(names(&rules, &subject("t", None, "m")).len(), 4, "a request without a key has no key's limit");
}

#[test]
fn counters_are_told_apart_by_what_they_are_about() {
    let rules = Rules::new(vec![rule("tenant and model", Scope::TenantModel)]).expect("sound rules");
    let counter = |tenant, model| rules.of(&subject(tenant, None, model))[0].counter;
    assert_eq!(counter("a", "b"), counter("a", "b"));
    assert_ne!(counter("a", "b"), counter("b", "a"));
    assert_ne!(counter("ab", "c"), counter("a", "bc"));
    assert_eq!(counter("a", "b").window(), Some(Window::Minute));
    assert!(!counter("a", "b").is_durable());

    let running =
        Rules::new(vec![Rule::new("running", Scope::Global, Dimension::Concurrency, 1)]).expect("sound rules");
    assert_eq!(running.of(&subject("a", None, "b"))[0].counter.window(), None);
    let money = Rule::new("money", Scope::Global, Dimension::Money, 1).per(Window::Minute);
    let money = Rules::new(vec![money]).expect("sound rules").of(&subject("a", None, "b"))[0].counter;
    assert!(money.is_durable());
}

#[test]
fn a_changed_amount_or_mode_keeps_the_counter() {
    let counter = |rule: Rule| Rules::new(vec![rule]).expect("sound rules").of(&subject("a", None, "b"))[0].counter;
    let before = counter(rule("before", Scope::Tenant));
    let after = Rule { amount: 99, mode: Mode::Strict, ..rule("after", Scope::Tenant).on_split(OnSplit::FailOpen) };
    assert_eq!(before, counter(after));
    assert_ne!(before, counter(rule("before", Scope::Tenant).only("a")));
    // Pinned: nodes of different versions compare it.
    assert_eq!(before.0, 4_597_131_999_955_227_073);
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let check = |rules: Vec<Rule>, said: &str| {
        let error = Rules::new(rules).expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    };
    check(vec![Rule::new("r", Scope::Global, Dimension::Tokens, 1)], "needs a window");
    check(vec![Rule::new("r", Scope::Global, Dimension::Concurrency, 1).per(Window::Day)], "has no window");
    check(vec![rule("r", Scope::Global).only("x")], "no value");
    check(vec![rule("r", Scope::Tenant).only("")], "empty");
    check(vec![rule("one", Scope::Tenant), rule("two", Scope::Tenant)], "rules one and two");
    let many = (0..5_000).map(|number| rule("r", Scope::Tenant).only(&number.to_string())).collect();
    assert_eq!(Rules::new(many).expect_err("too many"), RulesError::TooMany(5_000));
}

#[test]
fn names_are_read_as_they_are_written() {
    for dimension in Dimension::ALL {
        assert_eq!(dimension.to_string().parse(), Ok(dimension));
    }
    for window in Window::ALL {
        assert_eq!(window.to_string().parse(), Ok(window));
    }
    assert_eq!("keep_share".parse(), Ok(OnSplit::KeepShare));
    assert!("sometimes".parse::<Mode>().is_err());
}

#[test]
fn a_hybrid_amount_is_divided_without_a_rest() {
    for amount in [0, 1, 9, 10, 11, 99, 1_000, u64::MAX] {
        let rule = Rule { amount, ..rule("r", Scope::Global) };
        assert_eq!(u128::from(rule.rights()), u128::from(amount) * 7 / 10, "{amount}");
        assert_eq!(rule.rights() + rule.shared(), amount);
    }
}
