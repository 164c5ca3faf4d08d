//! What tokens cost: a table by model.

use smg_base::map::StableMap;

/// Tokens that a price is for.
const PRICED_TOKENS: u128 = 1_000_000;

/// What a million tokens of one model cost, in millionths of whatever currency the operator counts in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// Those of prompts.
    pub input: u64,
    /// Those of prompts that came out of a cache.
    pub cached_input: u64,
    /// Those that the model wrote.
    pub output: u64,
}

impl Price {
    /// What these tokens cost, rounded up, in millionths. Of the input, `cached` tokens came out of a cache.
    pub fn of(&self, input: u64, cached: u64, output: u64) -> u64 {
        let cached = cached.min(input);
        let parts = [(input - cached, self.input), (cached, self.cached_input), (output, self.output)];
        let sum = parts
            .iter()
            .fold(0_u128, |sum, &(tokens, price)| sum.saturating_add(u128::from(tokens) * u128::from(price)));
        u64::try_from(sum.div_ceil(PRICED_TOKENS)).unwrap_or(u64::MAX)
    }
}

/// The prices of models. A model that is not in the table costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    exact: StableMap<Box<str>, Price>,
    /// Beginnings of names, the longest first.
    beginnings: Vec<(Box<str>, Price)>,
}

impl Prices {
    /// A table of prices by name; a name that ends in `*` stands for all that begin like it.
    pub fn new<'a>(prices: impl IntoIterator<Item = (&'a str, Price)>) -> Self {
        let mut table = Self::default();
        for (name, price) in prices {
            match name.strip_suffix('*') {
                Some(beginning) => table.beginnings.push((beginning.into(), price)),
                None => drop(table.exact.insert(name.into(), price)),
            }
        }
        table.beginnings.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        table
    }

    /// The price of a model: by its own name, else by the longest beginning.
    pub fn of(&self, model: &str) -> Option<Price> {
        if let Some(price) = self.exact.get(model) {
            return Some(*price);
        }
        self.beginnings.iter().find(|(beginning, _)| model.starts_with(&**beginning)).map(|(_, price)| *price)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_name_sets_the_price() {
        let price = |input| Price { input, ..Price::default() };
        let prices =
            Prices::new([("*", price(1)), ("llama-*", price(2)), ("llama-3*", price(3)), ("llama-3", price(4))]);
        let check = |model: &str, expected: u64| assert_eq!(prices.of(model), Some(price(expected)), "{model}");
        check("qwen", 1);
        check("llama-2", 2);
        check("llama-3-70b", 3);
        check("llama-3", 4);
        assert_eq!(Prices::default().of("llama-3"), None);
    }

    #[test]
    fn tokens_are_paid_for_to_the_millionth() {
        let price = Price { input: 2_000_000, cached_input: 500_000, output: 10_000_000 };
        let check = |input, cached, output, expected| {
            assert_eq!(price.of(input, cached, output), expected, "{input} {cached} {output}");
        };
        check(0, 0, 0, 0);
        check(1_000, 0, 0, 2_000);
        check(1_000, 400, 50, 1_200 + 200 + 500);
        // More cached than there was: an engine's mistake is not paid back.
        check(10, 1_000, 0, 5);
        assert_eq!(Price { input: 1, ..Price::default() }.of(1, 0, 0), 1, "nothing is free because it is small");
        assert_eq!(Price { input: u64::MAX, ..Price::default() }.of(u64::MAX, 0, 0), u64::MAX);
    }
}
