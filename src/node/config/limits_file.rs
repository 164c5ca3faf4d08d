//! The file with what callers may use, and what it costs.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde::Deserialize;
use smg_gateway::{Price, Prices};
use smg_limits::{Dimension, Mode, OnSplit, Rule, Rules, Scope, Window};

/// Largest file that is read.
const BYTES_MAX: u64 = 4 << 20;

/// Millionths in one of whatever currency there is.
const MILLIONTHS: f64 = 1e6;

/// More money than this is a mistake: a double would not hold it to the millionth.
const MONEY_MAX: f64 = 1e9;

/// What the file says.
#[derive(Clone, Debug, Default)]
pub struct Allowances {
    /// What callers may use.
    pub rules: Arc<Rules>,
    /// What tokens cost.
    pub prices: Arc<Prices>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    limits: Vec<WrittenLimit>,
    #[serde(default)]
    prices: BTreeMap<String, WrittenPrice>,
}

/// One entry: a limit for each amount that it gives.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLimit {
    name: String,
    scope: Scope,
    only: Option<String>,
    model: Option<String>,
    per: Option<Window>,
    requests: Option<u64>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    tokens: Option<u64>,
    concurrency: Option<u64>,
    money: Option<f64>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    on_split: OnSplit,
}

/// Money for a million tokens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPrice {
    #[serde(default)]
    input: f64,
    cached_input: Option<f64>,
    #[serde(default)]
    output: f64,
}

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<Allowances, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > BYTES_MAX {
        return Err(format!("it has more than {BYTES_MAX} bytes"));
    }
    parse(&std::fs::read_to_string(path).map_err(|error| error.to_string())?)
}

fn parse(text: &str) -> Result<Allowances, String> {
    let written: Written = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    let mut rules = Vec::new();
    for limit in &written.limits {
        limit.add_to(&mut rules).map_err(|reason| format!("the limit '{}': {reason}", limit.name))?;
    }
    let rules = Rules::new(rules).map_err(|error| error.to_string())?;
    let mut prices = Vec::new();
    for (model, price) in &written.prices {
        let read = price.read().map_err(|reason| format!("the price of '{model}': {reason}"))?;
        prices.push((model.as_str(), read));
    }
    Ok(Allowances { rules: Arc::new(rules), prices: Arc::new(Prices::new(prices)) })
}

impl WrittenLimit {
    fn add_to(&self, rules: &mut Vec<Rule>) -> Result<(), String> {
        let money = self.money.map(millionths).transpose()?;
        let windowed = [
            (Dimension::Requests, self.requests),
            (Dimension::InputTokens, self.input_tokens),
            (Dimension::OutputTokens, self.output_tokens),
            (Dimension::Tokens, self.tokens),
            (Dimension::Money, money),
        ];
        let before = rules.len();
        rules.extend(windowed.into_iter().filter_map(|(what, amount)| Some(self.rule(what, amount?, self.per))));
        if let Some(amount) = self.concurrency {
            // What runs at one time has no window; that of the other amounts is not about it.
            let per = self.per.filter(|_| rules.len() == before);
            rules.push(self.rule(Dimension::Concurrency, amount, per));
        }
        if rules.len() > before {
            return Ok(());
        }
        Err("it has no amount: requests, input_tokens, output_tokens, tokens, concurrency or money".to_owned())
    }

    fn rule(&self, dimension: Dimension, amount: u64, window: Option<Window>) -> Rule {
        Rule {
            only: self.only.as_deref().map(Into::into),
            model_only: self.model.as_deref().map(Into::into),
            window,
            mode: self.mode,
            on_split: self.on_split,
            ..Rule::new(&self.name, self.scope, dimension, amount)
        }
    }
}

impl WrittenPrice {
    fn read(&self) -> Result<Price, String> {
        Ok(Price {
            input: millionths(self.input)?,
            cached_input: millionths(self.cached_input.unwrap_or(self.input))?,
            output: millionths(self.output)?,
        })
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was looked at")]
fn millionths(money: f64) -> Result<u64, String> {
    if (0.0..=MONEY_MAX).contains(&money) {
        return Ok((money * MILLIONTHS).round() as u64);
    }
    Err(format!("{money} is no amount of money; it is from 0 to {MONEY_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
        [[limits]]
        name = "everybody"
        scope = "tenant"
        requests = 100
        tokens = 20_000
        concurrency = 8
        per = "minute"

        [[limits]]
        name = "acme's budget"
        scope = "tenant"
        only = "acme"
        money = 12.5
        per = "day"
        mode = "strict"
        on_split = "fail_closed"

        [prices."llama-*"]
        input = 0.5
        cached_input = 0.1
        output = 1.5
    "#;

    #[test]
    fn one_entry_may_give_several_amounts() {
        let allowances = parse(EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
        let told: Vec<String> = allowances
            .rules
            .all()
            .iter()
            .map(|rule| format!("{} {} {} {:?}", rule.name, rule.dimension, rule.amount, rule.window))
            .collect();
        assert_eq!(
            told,
            [
                "everybody requests 100 Some(Minute)",
                "everybody tokens 20000 Some(Minute)",
                "everybody concurrency 8 None",
                "acme's budget money 12500000 Some(Day)",
            ]
        );
        assert_eq!(allowances.rules.all()[3].mode, Mode::Strict);
        let price = Price { input: 500_000, cached_input: 100_000, output: 1_500_000 };
        assert_eq!(allowances.prices.of("llama-3"), Some(price));
    }

    #[test]
    fn mistakes_are_told() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).map(|_| ()).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("[[limits]]\nname = 'a'\nscope = 'tenant'", "no amount");
        check("[[limits]]\nname = 'a'\nscope = 'tenant'\nrequests = 1", "needs a window");
        check("[[limits]]\nname = 'a'\nscope = 'tenant'\nconcurrency = 1\nper = 'day'", "has no window");
        check("[[limits]]\nname = 'a'\nscope = 'planet'\nrequests = 1", "planet");
        check("[[limits]]\nname = 'a'\nscope = 'tenant'\nrequests = 1\nper = 'day'\ncolour = 1", "colour");
        check("[[limits]]\nname = 'a'\nscope = 'tenant'\nmoney = -1\nper = 'day'", "no amount of money");
        check("[prices.m]\ninput = nan", "the price of 'm'");
    }
}
