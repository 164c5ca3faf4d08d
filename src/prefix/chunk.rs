//! From text to a chain of hashes.

use smg_base::hash;

/// The usual size of a chunk: about 128 tokens of English, eight blocks of an engine's cache. Smaller ones follow short
/// prompts more closely but cost more to hash: see `benches/routing.rs`.
pub const CHUNK_BYTES: usize = 512;

/// How much text decides [`PromptKey::head`] unless told otherwise: about 256 tokens.
pub const HEAD_BYTES: usize = 1_024;

/// The most chunks of one text that are followed; what comes after them counts in [`PromptKey::bytes`] only.
pub const CHUNKS_MAX: usize = 1 << 14;

/// Room made for the hashes of a text at its first chunk: enough for 32 KiB without growing.
const CHUNKS_EXPECTED: usize = 64;

/// Tokens in a chunk where tokens are known: eight blocks of sixteen, as many bytes as [`CHUNK_BYTES`].
pub const CHUNK_TOKENS: usize = CHUNK_BYTES / TOKEN_BYTES;

/// Bytes of a token's id as it is hashed: little-endian, so that all machines agree.
pub const TOKEN_BYTES: usize = 4;

/// What a prompt was cut from. Hashes of different spaces are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Its text.
    #[default]
    Text,
    /// The ids of its tokens, which are also what engines report.
    Tokens,
}

/// What is remembered of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptKey {
    /// What it was cut from.
    pub space: Space,
    /// One hash per whole chunk, each covering all of the prompt up to the chunk's end. The incomplete chunk at the end of
    /// the prompt has none, so that a longer prompt's hashes begin with a shorter one's.
    pub chunks: Vec<u64>,
    /// Hash of the first bytes ([`HEAD_BYTES`] unless set), or of all the prompt where it is shorter.
    pub head: u64,
    /// Length of the text, or [`TOKEN_BYTES`] for each token.
    pub bytes: usize,
}

/// Cuts text, given piece by piece, into chunks and hashes them. Where the pieces begin and end makes no difference.
#[derive(Debug)]
pub struct Chunker {
    space: Space,
    chunk_bytes: usize,
    head_chunks: usize,
    chunks_max: usize,
    partial: Vec<u8>,
    chunks: Vec<u64>,
    link: u64,
    bytes: usize,
}

impl Chunker {
    /// A chunker for chunks of `chunk_bytes` (at least one). Texts compare only under one `salt`, which therefore
    /// stands for everything beside the text that must be equal: model, adapter, tenant, a secret.
    pub fn new(chunk_bytes: usize, salt: u64) -> Self {
        let chunk_bytes = chunk_bytes.max(1);
        Self {
            space: Space::Text,
            chunk_bytes,
            head_chunks: HEAD_BYTES.div_ceil(chunk_bytes),
            chunks_max: CHUNKS_MAX,
            partial: Vec::new(),
            chunks: Vec::new(),
            link: salt,
            bytes: 0,
        }
    }

    /// A chunker for tokens, in chunks of [`CHUNK_TOKENS`].
    pub fn of_tokens(salt: u64) -> Self {
        Self { space: Space::Tokens, ..Self::new(CHUNK_TOKENS * TOKEN_BYTES, salt) }
    }

    /// Takes the next tokens.
    pub fn push_tokens(&mut self, tokens: &[u32]) {
        for token in tokens {
            self.push(&token.to_le_bytes());
        }
    }

    /// Lets the first `bytes` of the text, rounded up to whole chunks, decide [`PromptKey::head`].
    #[must_use]
    pub fn with_head_bytes(mut self, bytes: usize) -> Self {
        self.head_chunks = bytes.div_ceil(self.chunk_bytes).clamp(1, CHUNKS_MAX);
        self
    }

    /// Hashes no further than the head, for those who want nothing else of the text.
    #[must_use]
    pub fn head_only(mut self) -> Self {
        self.chunks_max = self.head_chunks;
        self
    }

    /// Takes the next piece of the text.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes = self.bytes.saturating_add(piece.len());
        if self.chunks.len() >= self.chunks_max {
            return;
        }
        let missing = if self.partial.is_empty() { 0 } else { self.chunk_bytes - self.partial.len() };
        let (completing, rest) = piece.split_at(missing.min(piece.len()));
        self.partial.extend_from_slice(completing);
        if self.partial.len() == self.chunk_bytes {
            let mut whole = std::mem::take(&mut self.partial);
            self.chain(&whole);
            whole.clear();
            self.partial = whole;
        }
        let mut chunks = rest.chunks_exact(self.chunk_bytes);
        for chunk in &mut chunks {
            if self.chunks.len() >= self.chunks_max {
                return;
            }
            self.chain(chunk);
        }
        self.keep(chunks.remainder());
    }

    /// The key of all that was pushed.
    pub fn finish(self) -> PromptKey {
        let head = match self.chunks.get(self.head_chunks - 1) {
            Some(&head) => head,
            None => hash::stable64_seeded(&self.partial, self.link),
        };
        PromptKey { space: self.space, chunks: self.chunks, head, bytes: self.bytes }
    }

    fn chain(&mut self, chunk: &[u8]) {
        if self.chunks.capacity() == 0 {
            self.chunks.reserve(CHUNKS_EXPECTED.min(self.chunks_max));
        }
        self.link = next_link(chunk, self.link);
        self.chunks.push(self.link);
    }

    fn keep(&mut self, remainder: &[u8]) {
        if remainder.is_empty() || self.chunks.len() >= self.chunks_max {
            return;
        }
        if self.partial.capacity() == 0 {
            self.partial.reserve_exact(self.chunk_bytes);
        }
        self.partial.extend_from_slice(remainder);
    }
}

/// The hash of a whole chunk after `link`. Zero stands for "no chunk" in the index.
pub(crate) fn next_link(chunk: &[u8], link: u64) -> u64 {
    hash::stable64_seeded(chunk, link).max(1)
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};

    use super::*;

    fn key(text: &[u8]) -> PromptKey {
        let mut chunker = Chunker::new(16, 7);
        chunker.push(text);
        chunker.finish()
    }

    fn text(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
    }

    #[test]
    fn where_the_pieces_end_makes_no_difference() {
        let random = SplitMix::new(5);
        for length in [0, 1, 15, 16, 17, 47, 48, 200, 2_000] {
            let text = text(length);
            for _ in 0..50 {
                let mut chunker = Chunker::new(16, 7);
                let mut rest = text.as_slice();
                while !rest.is_empty() {
                    let cut = usize::try_from(random.below(40)).unwrap().min(rest.len());
                    chunker.push(&rest[..cut]);
                    rest = &rest[cut..];
                }
                assert_eq!(chunker.finish(), key(&text), "{length} bytes");
            }
        }
    }

    #[test]
    fn a_longer_text_begins_with_the_hashes_of_a_shorter_one() {
        let whole = key(&text(1_000));
        for length in 0..1_000 {
            let part = key(&text(length));
            assert_eq!(part.chunks.len(), length / 16);
            assert_eq!(part.chunks, whole.chunks[..length / 16], "{length} bytes");
        }
    }

    #[test]
    fn a_change_anywhere_changes_every_later_hash() {
        let before = key(&text(320));
        let mut changed = text(320);
        changed[100] ^= 1;
        let after = key(&changed);
        assert_eq!(before.chunks[..6], after.chunks[..6]);
        assert!(before.chunks[6..].iter().zip(&after.chunks[6..]).all(|(one, other)| one != other));
    }

    #[test]
    fn the_head_covers_its_bytes_and_no_more() {
        let head = |text: &[u8]| {
            let mut chunker = Chunker::new(16, 7).with_head_bytes(40);
            chunker.push(text);
            chunker.finish().head
        };
        assert_eq!(head(&text(48)), head(&text(1_000)));
        assert_ne!(head(&text(47)), head(&text(48)));
        assert_ne!(head(&text(1)), head(&text(2)));
        assert_ne!(head(&text(0)), head(&text(1)));
        let mut short = Chunker::new(16, 7).with_head_bytes(40).head_only();
        short.push(&text(500));
        let short = short.finish();
        assert_eq!((short.head, short.chunks.len(), short.bytes), (head(&text(48)), 3, 500));
    }

    #[test]
    fn the_salt_separates_and_the_length_is_bounded() {
        let mut other = Chunker::new(16, 8);
        other.push(&text(64));
        assert!(other.finish().chunks.iter().zip(&key(&text(64)).chunks).all(|(one, other)| one != other));
        let mut long = Chunker::new(1, 7);
        for _ in 0..3 {
            long.push(&text(CHUNKS_MAX - 1));
        }
        let long = long.finish();
        assert_eq!((long.chunks.len(), long.bytes), (CHUNKS_MAX, 3 * (CHUNKS_MAX - 1)));
    }
}
