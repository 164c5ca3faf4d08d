//! Seeded mutations for the fuzz tests of this crate's decoders.

/// splitmix64 (S. Vigna, 2015).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; `bound` must not be zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).expect("smaller than a usize")
    }
}

/// Calls `check` with each input of `corpus` and with `usual` mutations of them. The seed is fixed. `cargo xtask fuzz`
/// compiles other numbers in.
pub(crate) fn mutations<T: AsRef<[u8]>>(corpus: &[T], usual: u64, mut check: impl FnMut(&[u8])) {
    let asked = |number: Option<&str>| number.and_then(|number| number.parse().ok());
    let count = asked(option_env!("SMG_FUZZ_INPUTS")).unwrap_or(usual);
    let mut dice = Dice(asked(option_env!("SMG_FUZZ_SEED")).unwrap_or(0x5eed));
    for input in corpus {
        check(input.as_ref());
    }
    for _ in 0..count {
        let mut input = corpus[dice.below(corpus.len())].as_ref().to_vec();
        for _ in 0..=dice.below(3) {
            mutate(&mut input, corpus, &mut dice);
        }
        check(&input);
    }
}

fn mutate<T: AsRef<[u8]>>(input: &mut Vec<u8>, corpus: &[T], dice: &mut Dice) {
    const TOKENS: [&[u8]; 16] = [
        b"\"", b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\n\n", b"\r\n", b"\0", b"\\u0000", b"\\ud800",
        b"1e9", b"null",
    ];
    let at = dice.below(input.len() + 1);
    let end = (at + dice.below(16)).min(input.len());
    match dice.below(6) {
        0 => drop(input.drain(at..end)),
        1 => input.truncate(at),
        2 => drop(input.splice(at..at, TOKENS[dice.below(TOKENS.len())].iter().copied())),
        3 => {
            let copy = input[at..end].to_vec();
            drop(input.splice(at..at, copy));
        }
        4 => {
            let other = corpus[dice.below(corpus.len())].as_ref();
            let from = dice.below(other.len() + 1);
            drop(input.splice(at.., other[from..].iter().copied()));
        }
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte = u8::try_from(dice.below(256)).expect("below 256");
            }
        }
    }
}
