//! What a request is charged before it is sent, what it did use when it has ended, and how its caller is told of its limits.
//!
//! Whoever lets a caller in charges it, once, whatever becomes of its request: a peer that it is handed on to charges nothing. What limits
//! allow, over all nodes, is `smg_limits`' business.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use prometheus::{IntCounter, IntCounterVec};
use smg_api::Family;
use smg_auth::Principal;
use smg_base::{
    ModelId, Timestamp,
    calendar::{self, Day},
};
use smg_infer::{Failure, FailureCode};
use smg_limits::{Demand, Dimension, Refused, Reservation, Rule, Scope, Standing, Subject};
use smg_runtime::metrics::Registrar;

use crate::{
    app::Gateway,
    config::Settings,
    edge::header_value,
    prepare::Prepared,
    prices::Price,
    trail::Trail,
    usage::{Counts, User},
};

/// Tells clients of both families' SDKs not to try again by themselves.
pub(crate) const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// `Retry-After` in milliseconds, as OpenAI's SDKs like it best.
pub(crate) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// How long a request waits for what it is to be charged to be written down.
const WRITTEN_WITHIN: Duration = Duration::from_millis(500);

/// What is counted of limits. No tenant, key or model is named here.
pub(crate) struct LimitMeters {
    decisions: IntCounterVec,
    allowed: IntCounter,
    reserved: IntCounter,
    settled: IntCounter,
}

impl LimitMeters {
    pub(crate) fn new(registrar: &Registrar) -> Self {
        let decisions = registrar.counter_vec(
            "smg_limit_decisions_total",
            "Requests that limits allowed or refused, by what the limit counts that refused",
            &["result", "dimension"],
        );
        Self {
            allowed: decisions.with_label_values(&["allowed", ""]),
            decisions,
            reserved: registrar.counter("smg_limit_reserved_tokens_total", "Tokens charged before requests were sent"),
            settled: registrar.counter("smg_limit_settled_tokens_total", "Tokens used by requests that have ended"),
        }
    }
}

/// What a request has to answer for.
pub(crate) struct Account {
    principal: Arc<Principal>,
    model: ModelId,
    price: Option<Price>,
    /// None if limits refused it.
    reservation: Option<Reservation>,
}

/// What a request used of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spent {
    /// No worker has seen it.
    Nothing,
    /// A worker has, and answered with an error.
    Refused,
    /// A worker worked on it.
    Tokens {
        /// Those of the prompt.
        input: u64,
        /// Those of them that came out of a cache.
        cached: u64,
        /// Those of the answer.
        output: u64,
    },
}

/// Charges a request what it may use at most, as far as that is known, or refuses it.
///
/// What only has to be written down first, which takes some milliseconds, is waited for.
pub(crate) fn reserve<'a>(
    gateway: &'a Gateway,
    settings: &Settings,
    prepared: &Prepared,
    trail: &'a mut Trail,
) -> impl Future<Output = Result<(), Failure>> + use<'a> {
    let hints = &prepared.hints;
    let output = match prepared.endpoint.is_generation() {
        true => hints.output_tokens_max.unwrap_or(settings.output_tokens_reserved),
        false => 0,
    };
    let (input, is_handed_on) = (hints.input_tokens, prepared.hop.is_some());
    let mut account = Account {
        principal: prepared.principal.clone(),
        model: prepared.pool.model.clone(),
        price: settings.prices.of(prepared.pool.model.as_str()),
        reservation: None,
    };
    async move {
        if is_handed_on {
            return Ok(());
        }
        let demand = account.demand(Spent::Tokens { input, cached: 0, output });
        let reserved = charge(gateway, &account, &demand).await;
        let meters = &gateway.metrics.limits;
        let failure = match reserved {
            Ok(reservation) => {
                if !reservation.is_empty() {
                    meters.allowed.inc();
                    meters.reserved.inc_by(input.saturating_add(output));
                }
                account.reservation = Some(reservation);
                None
            }
            Err(refused) => {
                meters.decisions.with_label_values(&["refused", refused.dimension.as_str()]).inc();
                Some(failure_of(&refused))
            }
        };
        trail.account(account);
        failure.map_or(Ok(()), Err)
    }
}

/// Charges `demand`, once what may be charged is written down.
async fn charge(gateway: &Gateway, account: &Account, demand: &Demand) -> Result<Reservation, Refused> {
    let begun = gateway.now();
    loop {
        let now = gateway.now();
        match gateway.limiter.reserve(&account.subject(), demand, now) {
            Err(refused) if refused.is_unwritten && now.since(begun) < WRITTEN_WITHIN => {
                tokio::time::sleep(refused.retry_after).await;
            }
            outcome => return outcome,
        }
    }
}

impl Account {
    fn subject(&self) -> Subject<'_> {
        Subject {
            tenant: self.principal.tenant.as_str(),
            key: self.principal.key.as_ref().map(smg_base::KeyId::as_str),
            model: self.model.as_str(),
        }
    }

    fn demand(&self, spent: Spent) -> Demand {
        match spent {
            Spent::Nothing => Demand::default(),
            Spent::Refused => Demand { requests: 1, ..Demand::default() },
            Spent::Tokens { input, cached, output } => Demand {
                requests: 1,
                input_tokens: input,
                output_tokens: output,
                money: self.price.map_or(0, |price| price.of(input, cached, output)),
            },
        }
    }

    /// Replaces what was reserved by what was used, and counts it as the tenant's usage.
    pub(crate) fn settle(self, gateway: &Gateway, spent: Spent, now: Timestamp) {
        let demand = self.demand(spent);
        let Some(reservation) = self.reservation else { return };
        if !reservation.is_empty() {
            gateway.metrics.limits.settled.inc_by(demand.input_tokens.saturating_add(demand.output_tokens));
            gateway.limiter.settle(reservation, &demand, now);
        }
        if spent == Spent::Nothing {
            return;
        }
        let cached_tokens = match spent {
            Spent::Tokens { input, cached, .. } => cached.min(input),
            Spent::Nothing | Spent::Refused => 0,
        };
        let counts = Counts {
            requests: demand.requests,
            input_tokens: demand.input_tokens,
            cached_tokens,
            output_tokens: demand.output_tokens,
            money_millionths: demand.money,
        };
        let user = User { tenant: self.principal.tenant.clone(), key: self.principal.key.clone(), model: self.model };
        gateway.usage.add(Day::of_unix_ms(gateway.clock.unix_ms()), user, &counts);
    }

    /// How the caller's limits stand, in the headers of its API; nothing where there are none.
    /// What others use is not told where tenants are kept apart.
    pub(crate) fn told(&self, gateway: &Gateway, settings: &Settings, family: Family) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let is_apart = gateway.access.isolates(settings);
        let may_know = |rule: &Rule| !is_apart || is_own(rule.scope);
        let standings = Standings::of(gateway, &self.subject(), may_know);
        match family {
            Family::OpenAi | Family::Native => standings.tell_openai(&mut headers),
            Family::Anthropic => standings.tell_anthropic(&mut headers, gateway.clock.unix_ms()),
        }
        headers
    }
}

/// The failure that a refusal leads to. Spent money is told apart, as OpenAI does: waiting a little will not help.
fn failure_of(refused: &Refused) -> Failure {
    let Refused { rule, dimension, limit, retry_after, never, is_unwritten: _ } = refused;
    let code = match dimension {
        Dimension::Money => FailureCode::BudgetSpent,
        _ => FailureCode::RateLimited,
    };
    let what = match dimension {
        Dimension::Requests => "requests",
        Dimension::InputTokens => "input tokens",
        Dimension::OutputTokens => "output tokens",
        Dimension::Tokens => "tokens",
        Dimension::Concurrency => "requests at one time",
        Dimension::Money => "money",
    };
    if *never {
        let message =
            format!("the request alone is more than the limit '{rule}' allows ({limit} {what}); ask for less");
        return Failure::new(code, message);
    }
    let amount = match dimension {
        Dimension::Money => "its money".to_owned(),
        _ => format!("{limit} {what}"),
    };
    Failure::new(code, format!("the limit '{rule}' ({amount}) is used up for now")).retry_after(*retry_after)
}

/// The tightest limit of each kind that a caller may be told of.
#[derive(Default)]
struct Standings {
    requests: Option<Standing>,
    input: Option<Standing>,
    output: Option<Standing>,
    tokens: Option<Standing>,
}

impl Standings {
    fn of(gateway: &Gateway, subject: &Subject<'_>, may_know: impl Fn(&Rule) -> bool) -> Self {
        let mut standings = Self::default();
        gateway.limiter.standing(subject, gateway.now(), &mut |rule, standing| {
            if !may_know(rule) {
                return;
            }
            let place = match rule.dimension {
                Dimension::Requests => &mut standings.requests,
                Dimension::InputTokens => &mut standings.input,
                Dimension::OutputTokens => &mut standings.output,
                Dimension::Tokens => &mut standings.tokens,
                Dimension::Concurrency | Dimension::Money => return,
            };
            if place.is_none_or(|known| is_tighter(&standing, &known)) {
                *place = Some(standing);
            }
        });
        standings
    }

    fn tell_openai(&self, headers: &mut HeaderMap) {
        let mut tell = |names: [&'static str; 3], standing: Option<Standing>| {
            let Some(Standing { limit, remaining, reset }) = standing else { return };
            let [limits, remainings, resets] = names.map(HeaderName::from_static);
            headers.insert(limits, HeaderValue::from(limit));
            headers.insert(remainings, HeaderValue::from(remaining));
            headers.insert(resets, header_value(&duration_text(reset)));
        };
        let requests = ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
        tell(requests, self.requests);
        let tokens = ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];
        tell(tokens, self.tokens.or(self.input).or(self.output));
    }

    fn tell_anthropic(&self, headers: &mut HeaderMap, unix_ms: u64) {
        let mut tell = |names: [&'static str; 3], standing: Option<Standing>| {
            let Some(Standing { limit, remaining, reset }) = standing else { return };
            let [limits, remainings, resets] = names.map(HeaderName::from_static);
            let reset_ms = unix_ms.saturating_add(u64::try_from(reset.as_millis()).unwrap_or(u64::MAX));
            headers.insert(limits, HeaderValue::from(limit));
            headers.insert(remainings, HeaderValue::from(remaining));
            headers.insert(resets, header_value(&calendar::rfc3339(reset_ms)));
        };
        macro_rules! names {
            ($what:literal) => {
                [
                    concat!("anthropic-ratelimit-", $what, "-limit"),
                    concat!("anthropic-ratelimit-", $what, "-remaining"),
                    concat!("anthropic-ratelimit-", $what, "-reset"),
                ]
            };
        }
        tell(names!("requests"), self.requests);
        tell(names!("input-tokens"), self.input);
        tell(names!("output-tokens"), self.output);
        tell(names!("tokens"), self.tokens);
    }
}

/// Whether only one tenant's requests are counted together.
pub(crate) const fn is_own(scope: Scope) -> bool {
    matches!(scope, Scope::Tenant | Scope::Key | Scope::TenantModel)
}

/// Whether less of it is left, in parts of the whole.
fn is_tighter(one: &Standing, other: &Standing) -> bool {
    if one.limit == 0 || other.limit == 0 {
        return one.limit < other.limit;
    }
    u128::from(one.remaining) * u128::from(other.limit) < u128::from(other.remaining) * u128::from(one.limit)
}

/// A duration as OpenAI writes it, such as `6m0s` or `20ms`.
fn duration_text(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    let (seconds, millis) = (millis / 1_000, millis % 1_000);
    match (seconds, millis) {
        (0, millis) => format!("{millis}ms"),
        (seconds, 0) if seconds < 60 => format!("{seconds}s"),
        (seconds, millis) if seconds < 60 => format!("{seconds}.{millis:03}").trim_end_matches('0').to_owned() + "s",
        (seconds, millis) => {
            let seconds = seconds + u128::from(millis > 0);
            let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
            match hours {
                0 => format!("{minutes}m{seconds}s"),
                hours => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(limit: u64, remaining: u64, reset_ms: u64) -> Option<Standing> {
        Some(Standing { limit, remaining, reset: Duration::from_millis(reset_ms) })
    }

    #[test]
    fn durations_are_written_as_openai_does() {
        let check = |millis: u64, expected: &str| {
            assert_eq!(duration_text(Duration::from_millis(millis)), expected, "{millis}");
        };
        check(0, "0ms");
        check(20, "20ms");
        check(1_000, "1s");
        check(8_640, "8.64s");
        check(59_005, "59.005s");
        check(360_000, "6m0s");
        check(359_001, "6m0s");
        check(86_400_000, "24h0m0s");
        assert_eq!(duration_text(Duration::from_nanos(1)), "1ms", "never too early");
    }

    #[test]
    fn each_family_is_told_in_its_own_headers() {
        let standings = Standings {
            requests: standing(100, 99, 600),
            input: standing(5_000, 10, 60_000),
            output: None,
            tokens: standing(9_000, 20, 30_000),
        };
        let text = |headers: &HeaderMap, name: &str| headers[name].to_str().expect("it is text").to_owned();
        let mut headers = HeaderMap::new();
        standings.tell_openai(&mut headers);
        assert_eq!(headers.len(), 6);
        assert_eq!(text(&headers, "x-ratelimit-remaining-requests"), "99");
        assert_eq!(text(&headers, "x-ratelimit-reset-requests"), "600ms");
        assert_eq!(text(&headers, "x-ratelimit-limit-tokens"), "9000");
        assert_eq!(text(&headers, "x-ratelimit-reset-tokens"), "30s");

        let mut headers = HeaderMap::new();
        standings.tell_anthropic(&mut headers, 1_764_028_740_000);
        assert_eq!(headers.len(), 9);
        assert_eq!(text(&headers, "anthropic-ratelimit-input-tokens-remaining"), "10");
        assert_eq!(text(&headers, "anthropic-ratelimit-input-tokens-reset"), "2025-11-25T00:00:00Z");
        assert!(!headers.contains_key("anthropic-ratelimit-output-tokens-limit"));
    }

    #[test]
    fn of_two_limits_the_tighter_is_told() {
        let check = |one, other, expected| assert_eq!(is_tighter(&one, &other), expected, "{one:?} {other:?}");
        let of = |limit, remaining| Standing { limit, remaining, reset: Duration::ZERO };
        check(of(10, 1), of(1_000, 500), true);
        check(of(1_000, 5), of(10, 1), true);
        check(of(10, 10), of(1_000, 1_000), false);
        check(of(0, 0), of(10, 1), true);
    }

    #[test]
    fn a_refusal_says_what_is_used_up_and_when_to_come_back() {
        let refused = |dimension, never| Refused {
            rule: "per minute".into(),
            dimension,
            limit: 100,
            retry_after: Duration::from_secs(3),
            never,
            is_unwritten: false,
        };
        let failure = failure_of(&refused(Dimension::Requests, false));
        assert_eq!((failure.code, failure.retry_after), (FailureCode::RateLimited, Some(Duration::from_secs(3))));
        assert!(failure.message.contains("'per minute' (100 requests)"), "{}", failure.message);
        let failure = failure_of(&refused(Dimension::Tokens, true));
        assert_eq!((failure.code, failure.retry_after), (FailureCode::RateLimited, None));
        assert_eq!(failure_of(&refused(Dimension::Money, false)).code, FailureCode::BudgetSpent);
    }
}
