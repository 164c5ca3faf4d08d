//! How much a fuzz test does: little in the test suite, more when `cargo xtask fuzz` asks for it.
//!
//! What is asked for is read while compiling, so that a pure crate's tests read no environment when they run.

/// Inputs to try: `usual`, unless `SMG_FUZZ_INPUTS` said otherwise.
pub const fn inputs(usual: u64) -> u64 {
    asked(option_env!("SMG_FUZZ_INPUTS"), usual)
}

/// The seed to draw them with: `usual`, unless `SMG_FUZZ_SEED` said otherwise.
pub const fn seed(usual: u64) -> u64 {
    asked(option_env!("SMG_FUZZ_SEED"), usual)
}

const fn asked(number: Option<&str>, usual: u64) -> u64 {
    let Some(number) = number else { return usual };
    match u64::from_str_radix(number, 10) {
        Ok(number) => number,
        Err(_) => usual,
    }
}

#[cfg(test)]
mod tests {
    use super::asked;

    #[test]
    fn what_is_asked_for_wins_if_it_is_a_number() {
        assert_eq!(asked(None, 7), 7);
        assert_eq!(asked(Some("20"), 7), 20);
        assert_eq!(asked(Some("many"), 7), 7);
    }
}
