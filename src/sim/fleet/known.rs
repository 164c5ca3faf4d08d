//! Which engines hold which prompts, in the simplest form: what the models of other routers' rules know.

use smg_base::map::StableMap;
use smg_prefix::{Change, Claim, Predictor};

/// Engines are numbered below this.
pub(super) const ENGINES_MAX: usize = 256;

/// A set of engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Engines([u64; ENGINES_MAX / 64]);

impl Engines {
    fn insert(&mut self, engine: usize) {
        self.0[engine / 64] |= 1 << (engine % 64);
    }

    fn remove(&mut self, engine: usize) {
        self.0[engine / 64] &= !(1 << (engine % 64));
    }

    fn contains(self, engine: usize) -> bool {
        self.0[engine / 64] & 1 << (engine % 64) != 0
    }

    fn is_empty(self) -> bool {
        self.0 == [0; ENGINES_MAX / 64]
    }
}

/// For each chunk, who holds it.
#[derive(Debug, Default)]
pub(super) struct Known {
    holders: StableMap<u64, Engines>,
    sizes: Vec<u64>,
}

impl Known {
    pub(super) fn new(engines: usize) -> Self {
        Self { holders: StableMap::default(), sizes: vec![0; engines] }
    }

    pub(super) fn apply(&mut self, engine: usize, change: &Change) {
        match change {
            Change::Held { chunks, .. } => {
                self.sizes[engine] += chunks.len() as u64;
                for chunk in chunks {
                    self.holders.entry(*chunk).or_default().insert(engine);
                }
            }
            Change::Dropped { chunks } => {
                self.sizes[engine] = self.sizes[engine].saturating_sub(chunks.len() as u64);
                for chunk in chunks {
                    if let Some(holders) = self.holders.get_mut(chunk) {
                        holders.remove(engine);
                        if holders.is_empty() {
                            self.holders.remove(chunk);
                        }
                    }
                }
            }
            Change::Cleared => {
                self.sizes[engine] = 0;
                self.holders.retain(|_, holders| {
                    holders.remove(engine);
                    !holders.is_empty()
                });
            }
        }
    }

    /// How many of the first of `chunks` each engine holds.
    pub(super) fn depths(&self, chunks: &[u64], depths: &mut [usize]) {
        depths.fill(0);
        for (place, chunk) in chunks.iter().enumerate() {
            let Some(holders) = self.holders.get(chunk) else { return };
            let mut any = false;
            for (engine, depth) in depths.iter_mut().enumerate() {
                if *depth == place && holders.contains(engine) {
                    *depth = place + 1;
                    any = true;
                }
            }
            if !any {
                return;
            }
        }
    }

    /// How much an engine holds.
    pub(super) fn size(&self, engine: usize) -> u64 {
        self.sizes[engine]
    }
}

/// What one gateway takes the engines to hold after what it sent there itself.
#[derive(Debug)]
pub(super) struct Guessed {
    pub(super) known: Known,
    predictors: Vec<Predictor>,
    changes: Vec<Change>,
}

impl Guessed {
    pub(super) fn new(engines: usize, capacity: u64) -> Self {
        let predictors = (0..engines).map(|_| Predictor::new(capacity)).collect();
        Self { known: Known::new(engines), predictors, changes: Vec::new() }
    }

    pub(super) fn sent(&mut self, engine: usize, chunks: &[u64]) {
        let claim = Claim { after: None, chunks: chunks.to_vec() };
        self.predictors[engine].claim(&claim, &mut self.changes);
        for change in self.changes.drain(..) {
            self.known.apply(engine, &change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engines_depth_ends_at_its_first_hole() {
        let mut known = Known::new(3);
        let held = |after, chunks: &[u64]| Change::Held { after, chunks: chunks.to_vec() };
        known.apply(0, &held(None, &[1, 2, 3]));
        known.apply(2, &held(None, &[1, 2]));
        let mut depths = [0; 3];
        known.depths(&[1, 2, 3, 4], &mut depths);
        assert_eq!((depths, known.size(0)), ([3, 0, 2], 3));
        known.apply(0, &Change::Dropped { chunks: vec![3] });
        known.apply(2, &Change::Cleared);
        known.depths(&[1, 2, 3, 4], &mut depths);
        assert_eq!(depths, [2, 0, 0]);
    }

    #[test]
    fn what_was_sent_is_guessed_up_to_the_capacity() {
        let mut guessed = Guessed::new(1, 3);
        guessed.sent(0, &[1, 2]);
        guessed.sent(0, &[11, 12]);
        let mut depths = [0];
        guessed.known.depths(&[1, 2], &mut depths);
        assert_eq!(depths, [1]);
    }
}
