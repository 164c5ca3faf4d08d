//! Amounts in half the space.

/// An amount rounded up to 27 significant bits, in four bytes: exact below 134 million, above it at most one part in 67 million too
/// much, capped at 2⁵⁸. Rounding up keeps every sum on the safe side of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compact(u32);

const MANTISSA_BITS: u32 = 27;
const MANTISSA_END: u64 = 1 << MANTISSA_BITS;
const EXPONENT_MAX: u32 = 31;

impl Compact {
    pub(crate) const ZERO: Self = Self(0);
    const MAX: Self = Self(u32::MAX);

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the mantissa has 27 bits")]
    pub(crate) const fn up(amount: u64) -> Self {
        if amount < MANTISSA_END {
            return Self(amount as u32);
        }
        let exponent = u64::BITS - MANTISSA_BITS - amount.leading_zeros();
        if exponent > EXPONENT_MAX {
            return Self::MAX;
        }
        let mantissa = amount.div_ceil(1 << exponent);
        if mantissa < MANTISSA_END {
            return Self(exponent << MANTISSA_BITS | mantissa as u32);
        }
        // Rounded up to the next power of two.
        if exponent == EXPONENT_MAX {
            return Self::MAX;
        }
        Self((exponent + 1) << MANTISSA_BITS | (mantissa >> 1) as u32)
    }

    #[inline]
    pub(crate) const fn amount(self) -> u64 {
        (self.0 as u64 & (MANTISSA_END - 1)) << (self.0 >> MANTISSA_BITS)
    }

    #[inline]
    pub(crate) const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_amounts_are_exact_and_great_ones_capped() {
        for amount in [0, 1, 77, MANTISSA_END - 1, MANTISSA_END, 1 << 40, 1 << 57] {
            assert_eq!(Compact::up(amount).amount(), amount, "{amount}");
        }
        assert_eq!(Compact::up(u64::MAX), Compact::MAX);
        assert!(Compact::MAX.amount() > 1 << 57);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn amounts_are_rounded_up_by_little(amount in 0..1_u64 << 57) {
            let compact = Compact::up(amount).amount();
            prop_assert!(compact >= amount);
            prop_assert!(compact - amount <= amount >> (MANTISSA_BITS - 1));
            prop_assert_eq!(Compact::up(compact).amount(), compact);
        }
    }
}
