//! A toy tokenizer: deterministic, without a vocabulary, and reversible.
//!
//! A token carries one to four bytes, packed into its id. Words are cut greedily from the left into pieces of at most
//! four ASCII letters or digits, the first of which takes a leading space with it; every other character is a token of
//! its own (two, if it needs four bytes in UTF-8). Cutting is local: appending to a text changes at most its last
//! token, so a longer conversation has the shorter one's tokens as its prefix.

use std::sync::Arc;

use smg_base::hash;

/// A token's id. Below [`SPECIAL`] it packs bytes; above, it marks a role or stands for an image.
pub(crate) type Token = u32;

/// What keeps the cache entries of prompts apart beside their tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespace {
    /// The name of the adapter.
    pub(crate) lora: Option<Arc<str>>,
    /// The tenant's salt.
    pub(crate) salt: Option<Arc<str>>,
}

impl Namespace {
    /// What the first block's hash begins with.
    pub(crate) fn root(&self) -> u64 {
        let part = |part: &Option<Arc<str>>| hash::stable64(part.as_deref().unwrap_or_default().as_bytes());
        hash::mix(part(&self.salt), part(&self.lora))
    }
}

const ONE: Token = 0;
const TWO: Token = ONE + (1 << 8);
const THREE: Token = TWO + (1 << 16);
/// Four bytes of seven bits.
const FOUR: Token = THREE + (1 << 24);
/// The first id that carries no text.
pub(crate) const SPECIAL: Token = FOUR + (1 << 28);

/// Appends the tokens of `text`.
pub(crate) fn encode(text: &str, tokens: &mut Vec<Token>) {
    tokens.reserve(text.len() / 3 + 1);
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let length = piece_length(&bytes[at..]);
        tokens.push(pack(&bytes[at..at + length]));
        at += length;
    }
}

/// How many tokens `text` has.
pub(crate) fn count(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let (mut at, mut tokens) = (0, 0);
    while at < bytes.len() {
        at += piece_length(&bytes[at..]);
        tokens += 1;
    }
    tokens
}

/// The bytes of `tokens`; what carries no text is left out.
pub(crate) fn decode(tokens: &[Token]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(tokens.len() * 4);
    for &token in tokens {
        unpack(token, &mut bytes);
    }
    bytes
}

/// The length of the piece that `bytes`, which is not empty, begins with.
fn piece_length(bytes: &[u8]) -> usize {
    let first = bytes[0];
    match first {
        b' ' => 1 + word_length(&bytes[1..], 3),
        _ if first.is_ascii_alphanumeric() => word_length(bytes, 4),
        // The first byte of a character tells its length; a four-byte character is two tokens of two bytes,
        // and the second of them begins with a continuation byte.
        0xc0..=0xdf | 0xf0.. => 2.min(bytes.len()),
        0x80..=0xbf => 2.min(bytes.len()),
        0xe0..=0xef => 3.min(bytes.len()),
        _ => 1,
    }
}

fn word_length(bytes: &[u8], length_max: usize) -> usize {
    bytes.iter().take(length_max).take_while(|byte| byte.is_ascii_alphanumeric()).count()
}

fn pack(piece: &[u8]) -> Token {
    let join = |bits: u32| piece.iter().fold(0, |id, byte| (id << bits) | Token::from(*byte));
    match piece.len() {
        1 => ONE + join(8),
        2 => TWO + join(8),
        3 => THREE + join(8),
        _ => FOUR + join(7),
    }
}

fn unpack(token: Token, bytes: &mut Vec<u8>) {
    let (packed, length, bits) = match token {
        ONE..TWO => (token - ONE, 1, 8),
        TWO..THREE => (token - TWO, 2, 8),
        THREE..FOUR => (token - THREE, 3, 8),
        FOUR..SPECIAL => (token - FOUR, 4, 7),
        _ => return,
    };
    for place in (0..length).rev() {
        let byte = (packed >> (place * bits)) & ((1 << bits) - 1);
        bytes.push(u8::try_from(byte).expect("masked to at most eight bits"));
    }
}

/// Cuts text into the pieces in which a model would stream it: one token each, except that the tokens of one
/// character stay together.
pub(crate) fn pieces(text: &str) -> Vec<Piece> {
    let bytes = text.as_bytes();
    let mut pieces = Vec::with_capacity(text.len() / 3 + 1);
    let (mut from, mut at, mut tokens) = (0, 0, 0);
    while at < bytes.len() {
        at += piece_length(&bytes[at..]);
        tokens += 1;
        if text.is_char_boundary(at) {
            pieces.push(Piece { text: text[from..at].to_owned(), tokens });
            (from, tokens) = (at, 0);
        }
    }
    pieces
}

/// A piece of generated text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) tokens: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        let mut tokens = Vec::new();
        encode(text, &mut tokens);
        tokens
    }

    #[test]
    fn every_text_comes_back() {
        for text in
            ["", "a", "hello world", "  two  spaces\n\ttab", "naïve café", "日本語", "🦀 crabs 🦀🦀", "a1b2c3d4e5"]
        {
            assert_eq!(decode(&tokens(text)), text.as_bytes(), "{text:?}");
            assert_eq!(pieces(text).iter().map(|piece| piece.text.as_str()).collect::<String>(), text);
            assert_eq!(pieces(text).iter().map(|piece| u64::from(piece.tokens)).sum::<u64>(), count(text));
            assert_eq!(tokens(text).len() as u64, count(text));
        }
    }

    #[test]
    fn appending_changes_at_most_the_last_token() {
        let text = "The quick brown fox, 12345 times: naïve 🦀 ok";
        let whole = tokens(text);
        for end in (1..text.len()).filter(|end| text.is_char_boundary(*end)) {
            let part = tokens(&text[..end]);
            let shared = part.len() - 1;
            assert_eq!(part[..shared], whole[..shared], "{:?}", &text[..end]);
        }
    }
}
