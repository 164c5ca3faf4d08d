//! Hashes that are the same on every node, build and platform: xxh3 (Y. Collet, XXH3, 2020).

use xxhash_rust::xxh3;

/// 64-bit hash of `bytes`.
#[inline]
pub fn stable64(bytes: &[u8]) -> u64 {
    xxh3::xxh3_64(bytes)
}

/// 64-bit hash of `bytes` under `seed`; chaining passes the hash of what came before as the seed.
#[inline]
pub fn stable64_seeded(bytes: &[u8], seed: u64) -> u64 {
    xxh3::xxh3_64_with_seed(bytes, seed)
}

/// 128-bit hash of `bytes`.
pub fn stable128(bytes: &[u8]) -> u128 {
    xxh3::xxh3_128(bytes)
}

/// Mixes two 64-bit values into one, for rendezvous hashing of a key over workers: a multiply-fold
/// of the pair, finished with the splitmix64 finaliser, so that every input bit reaches every output bit.
#[inline]
pub fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd1b5_4a32_d192_ed03);
    #[expect(clippy::cast_possible_truncation, reason = "both halves of the product are folded in")]
    let folded = (product >> 64) as u64 ^ product as u64;
    finalise(folded ^ a.rotate_left(32) ^ b)
}

/// The finaliser of splitmix64 (S. Vigna, 2015).
#[inline]
pub(crate) fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_pinned_because_nodes_compare_them() {
        assert_eq!(stable64(b"smg"), xxh3::xxh3_64(b"smg"));
        assert_eq!(stable64_seeded(b"", 0), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn mix_depends_on_both_sides_and_on_their_order() {
        assert_ne!(mix(1, 2), mix(2, 1));
        assert_ne!(mix(1, 2), mix(1, 3));
        assert_ne!(mix(0, 0), mix(0, 1));
    }
}
