//! A cursor over JSON text that validates while it reads, knows its position, and allocates nothing.
//!
//! Strict RFC 8259 in requests. In what engines send, `NaN` and the infinities are taken too: Python writes them, and the
//! clients that these answers go to read them.

use std::{borrow::Cow, ops::Range};

/// The deepest nesting that is read.
pub(crate) const DEPTH_MAX: u32 = 128;

/// Why reading stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Not JSON at this byte.
    Syntax(usize),
    /// Nested deeper than [`DEPTH_MAX`] at this byte.
    TooDeep(usize),
}

/// Which numbers are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Those of the RFC.
    Strict,
    /// Python's `NaN`, `Infinity` and `-Infinity` too.
    Python,
}

/// A string as it stands in the text, without its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text<'a> {
    raw: &'a str,
    decoded_len: usize,
}

/// A position in JSON text.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
    numbers: Numbers,
}

/// What kind of value comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a str, numbers: Numbers) -> Self {
        Self { text, at: 0, depth: 0, numbers }
    }

    /// The kind of the value that comes next; the cursor is then at its first byte.
    #[inline]
    pub(crate) fn kind(&mut self) -> Result<Kind, Broken> {
        self.skip_space();
        match self.byte() {
            Some(b'"') => Ok(Kind::String),
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            Some(b'N' | b'I') if self.numbers == Numbers::Python => Ok(Kind::Number),
            _ => Err(self.syntax()),
        }
    }

    /// Enters the object or array that comes next. `step` reads each member's value; it is given the member's name, or
    /// nothing in an array, and must consume the value. Returns how many there were and where the closing byte is.
    #[inline]
    pub(crate) fn object<E: From<Broken>>(
        &mut self,
        mut step: impl FnMut(&mut Self, Text<'a>) -> Result<(), E>,
    ) -> Result<Closed, E> {
        self.enter(b'{')?;
        let mut members = 0;
        self.skip_space();
        if self.byte() == Some(b'}') {
            return Ok(self.leave(members));
        }
        loop {
            let name = self.string()?;
            self.skip_space();
            self.expect(b':')?;
            step(self, name)?;
            members += 1;
            if !self.another(b'}')? {
                return Ok(self.leave(members));
            }
            self.skip_space();
        }
    }

    /// The same for an array.
    #[inline]
    pub(crate) fn array<E: From<Broken>>(
        &mut self,
        mut step: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<Closed, E> {
        self.enter(b'[')?;
        let mut members = 0;
        self.skip_space();
        if self.byte() == Some(b']') {
            return Ok(self.leave(members));
        }
        loop {
            step(self)?;
            members += 1;
            if !self.another(b']')? {
                return Ok(self.leave(members));
            }
        }
    }

    /// Reads the string that comes next.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<Text<'a>, Broken> {
        self.skip_space();
        if self.byte() != Some(b'"') {
            return Err(self.syntax());
        }
        self.string_here()
    }

    /// Reads the value that comes next if it is a string, else skips it.
    #[inline]
    pub(crate) fn string_or_skip(&mut self) -> Result<Option<Text<'a>>, Broken> {
        self.skip_space();
        if self.byte() == Some(b'"') { self.string_here().map(Some) } else { self.skip().map(|()| None) }
    }

    /// Reads the string whose first quote the cursor is at.
    fn string_here(&mut self) -> Result<Text<'a>, Broken> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let (mut at, mut saved) = (start, 0);
        loop {
            at = next_special(bytes, at);
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    let (len, shorter) = escape(&bytes[at..]).ok_or(Broken::Syntax(at))?;
                    at += len;
                    saved += shorter;
                }
                _ => return Err(Broken::Syntax(at)),
            }
        }
        self.at = at + 1;
        // Both ends are at ASCII bytes, hence between characters.
        let raw = &self.text[start..at];
        Ok(Text { raw, decoded_len: raw.len() - saved })
    }

    /// Reads the value that comes next if it is a number that is a whole one in `0..=u64::MAX`, else skips it.
    pub(crate) fn count_or_skip(&mut self) -> Result<Option<u64>, Broken> {
        let is_number = self.kind()? == Kind::Number;
        let span = self.span()?;
        Ok(is_number.then(|| whole(&self.text[span])).flatten())
    }

    /// Passes the array that comes next if it holds whole numbers and nothing else; says how many. Otherwise, and if it is
    /// empty, the cursor stays where it is.
    pub(crate) fn whole_numbers(&mut self) -> Option<usize> {
        self.skip_space();
        let bytes = self.text.as_bytes();
        let (mut at, mut count) = (self.at, 0);
        if self.depth == DEPTH_MAX || *bytes.get(at)? != b'[' {
            return None;
        }
        let space =
            |at: usize| bytes[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\n' | b'\t' | b'\r')).count();
        loop {
            at += 1;
            at += space(at);
            let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            if digits == 0 || (digits > 1 && bytes[at] == b'0') {
                return None;
            }
            at += digits;
            at += space(at);
            count += 1;
            match bytes.get(at)? {
                b',' => {}
                b']' => {
                    self.at = at + 1;
                    return Some(count);
                }
                _ => return None,
            }
        }
    }

    /// Skips the value that comes next, checking it.
    #[inline]
    pub(crate) fn skip(&mut self) -> Result<(), Broken> {
        self.skip_space();
        match self.byte() {
            Some(b'{' | b'[') => self.skip_nested(),
            _ => self.skip_scalar(),
        }
    }

    /// The same; says where the value is.
    pub(crate) fn span(&mut self) -> Result<Range<usize>, Broken> {
        self.skip_space();
        let start = self.at;
        self.skip()?;
        Ok(start..self.at)
    }

    /// Where the cursor is.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// The text between two positions that the cursor gave.
    pub(crate) fn slice(&self, span: Range<usize>) -> &'a str {
        &self.text[span]
    }

    /// Checks that nothing but space follows.
    pub(crate) fn end(&mut self) -> Result<(), Broken> {
        self.skip_space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.syntax()) }
    }

    fn enter(&mut self, open: u8) -> Result<(), Broken> {
        self.skip_space();
        if self.depth == DEPTH_MAX {
            return Err(Broken::TooDeep(self.at));
        }
        self.depth += 1;
        self.expect(open)
    }

    fn leave(&mut self, members: usize) -> Closed {
        let end = self.at;
        self.at += 1;
        self.depth -= 1;
        Closed { members, end }
    }

    /// After a member: true past a comma, false at the closing byte.
    #[inline]
    fn another(&mut self, close: u8) -> Result<bool, Broken> {
        self.skip_space();
        match self.byte() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => Ok(false),
            _ => Err(self.syntax()),
        }
    }

    /// Skips an object or array without recursion: `kinds` has one bit for each level, set for objects.
    fn skip_nested(&mut self) -> Result<(), Broken> {
        let mut kinds: u128 = 0;
        let mut levels: u32 = 0;
        loop {
            // Here a value begins.
            self.skip_space();
            match self.byte() {
                Some(open @ (b'{' | b'[')) => {
                    if self.depth + levels == DEPTH_MAX {
                        return Err(Broken::TooDeep(self.at));
                    }
                    self.at += 1;
                    levels += 1;
                    kinds = kinds << 1 | u128::from(open == b'{');
                    self.skip_space();
                    let close = if open == b'{' { b'}' } else { b']' };
                    if self.byte() != Some(close) {
                        self.skip_name(kinds)?;
                        continue;
                    }
                }
                _ => {
                    self.skip_scalar()?;
                    self.skip_space();
                }
            }
            // Here a value has ended, or an empty one is about to.
            loop {
                match self.byte() {
                    Some(b',') => {
                        self.at += 1;
                        self.skip_name(kinds)?;
                        break;
                    }
                    Some(b'}') if kinds & 1 == 1 => {}
                    Some(b']') if kinds & 1 == 0 => {}
                    _ => return Err(self.syntax()),
                }
                self.at += 1;
                levels -= 1;
                kinds >>= 1;
                if levels == 0 {
                    return Ok(());
                }
                self.skip_space();
            }
        }
    }

    /// Skips a member's name and colon, if the innermost of `kinds` is an object.
    #[inline]
    fn skip_name(&mut self, kinds: u128) -> Result<(), Broken> {
        if kinds & 1 == 0 {
            return Ok(());
        }
        self.string()?;
        self.skip_space();
        self.expect(b':')
    }

    fn skip_scalar(&mut self) -> Result<(), Broken> {
        match self.byte() {
            Some(b'"') => self.string_here().map(|_| ()),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'N') if self.numbers == Numbers::Python => self.word(b"NaN"),
            Some(b'I') if self.numbers == Numbers::Python => self.word(b"Infinity"),
            _ => Err(self.syntax()),
        }
    }

    fn number(&mut self) -> Result<(), Broken> {
        if self.byte() == Some(b'-') {
            self.at += 1;
            if self.byte() == Some(b'I') && self.numbers == Numbers::Python {
                return self.word(b"Infinity");
            }
        }
        match self.byte() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.syntax()),
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte() {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(())
    }

    fn some_digits(&mut self) -> Result<(), Broken> {
        if !self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(self.syntax());
        }
        self.digits();
        Ok(())
    }

    fn digits(&mut self) {
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    #[inline]
    fn word<const LEN: usize>(&mut self, word: &[u8; LEN]) -> Result<(), Broken> {
        if self.text.as_bytes()[self.at..].first_chunk() != Some(word) {
            return Err(self.syntax());
        }
        self.at += LEN;
        Ok(())
    }

    #[inline]
    fn skip_space(&mut self) {
        // Most engines and clients write no space at all.
        if self.byte().is_some_and(|byte| byte > b' ') {
            return;
        }
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.byte() {
            self.at += 1;
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), Broken> {
        if self.byte() != Some(byte) {
            return Err(self.syntax());
        }
        self.at += 1;
        Ok(())
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[cold]
    fn syntax(&self) -> Broken {
        Broken::Syntax(self.at)
    }
}

/// How an object or array ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closed {
    /// How many members it has.
    pub(crate) members: usize,
    /// Where its closing byte is.
    pub(crate) end: usize,
}

impl<'a> Text<'a> {
    /// As it stands between the quotes.
    pub(crate) fn raw(self) -> &'a str {
        self.raw
    }

    /// How many bytes the string has once decoded.
    pub(crate) fn decoded_len(self) -> usize {
        self.decoded_len
    }

    /// Whether it is the empty string.
    pub(crate) fn is_empty(self) -> bool {
        self.raw.is_empty()
    }

    /// The string itself.
    #[inline]
    pub(crate) fn decode(self) -> Cow<'a, str> {
        if !self.has_escapes() {
            return Cow::Borrowed(self.raw);
        }
        let mut out = String::with_capacity(self.decoded_len);
        self.pieces(|piece| out.push_str(piece));
        Cow::Owned(out)
    }

    /// The string, piece by piece. A lone surrogate, which JSON can write and UTF-8 cannot, becomes U+FFFD.
    pub(crate) fn pieces(self, mut sink: impl FnMut(&str)) {
        if !self.has_escapes() {
            return sink(self.raw);
        }
        let bytes = self.raw.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            // Inside a string only backslashes are special.
            let run = at..next_special(bytes, at);
            at = run.end;
            if !run.is_empty() {
                sink(&self.raw[run]);
            }
            let Some(backslash) = bytes.get(at..) else { return };
            match backslash.get(1).and_then(|letter| short_escape(*letter)) {
                Some(character) => {
                    sink(character);
                    at += 2;
                }
                None if backslash.is_empty() => {}
                None => {
                    let (character, len) = unicode_escape(backslash).expect("the cursor passed this escape");
                    sink(character.encode_utf8(&mut [0; 4]));
                    at += len;
                }
            }
        }
    }

    /// The string as JSON writes it with the fewest escapes, piece by piece: equal strings give equal text, whoever
    /// escaped them how. Most arrive written so, and pass in one piece; decoding them would cost more than all other
    /// reading.
    pub(crate) fn canonical(self, mut sink: impl FnMut(&str)) {
        if self.is_canonical() {
            return sink(self.raw);
        }
        self.pieces(|piece| match canonical_escape(piece) {
            Some(escape) => sink(escape),
            None => match piece.as_bytes() {
                [control @ ..0x20] => sink(&format!("\\u{control:04x}")),
                _ => sink(piece),
            },
        });
    }

    /// Whether its escapes are only those that everybody must write, in the one way there is. What is taken for an escape
    /// of another kind by mistake is only decoded in vain.
    fn is_canonical(self) -> bool {
        let has = |needle: &[u8]| memchr::memmem::find(self.raw.as_bytes(), needle).is_some();
        !self.has_escapes() || !(has(b"\\u") || has(b"\\/"))
    }

    // No escape is as short as what it stands for.
    #[inline]
    fn has_escapes(self) -> bool {
        self.decoded_len != self.raw.len()
    }
}

/// Where the string ends whose text begins at `start`: the place of its closing quote, if that is there and what is
/// before it is sound. Whether it is UTF-8 is not looked at.
#[inline]
pub(crate) fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = next_special(bytes, start);
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at),
            b'\\' => at = next_special(bytes, at + escape(&bytes[at..])?.0),
            _ => return None,
        }
    }
}

/// The length of the escape at the start of `bytes`, and by how much it is longer than what it stands for.
#[inline]
fn escape(bytes: &[u8]) -> Option<(usize, usize)> {
    if short_escape(*bytes.get(1)?).is_some() {
        return Some((2, 1));
    }
    unicode_escape(bytes).map(|(character, len)| (len, len - character.len_utf8()))
}

/// What a backslash and this letter stand for.
#[inline]
fn short_escape(letter: u8) -> Option<&'static str> {
    Some(match letter {
        b'n' => "\n",
        b'"' => "\"",
        b'\\' => "\\",
        b'/' => "/",
        b't' => "\t",
        b'r' => "\r",
        b'b' => "\u{8}",
        b'f' => "\u{c}",
        _ => return None,
    })
}

/// How a character is written that has a short escape and must not stand for itself.
fn canonical_escape(character: &str) -> Option<&'static str> {
    Some(match character {
        "\n" => "\\n",
        "\"" => "\\\"",
        "\\" => "\\\\",
        "\t" => "\\t",
        "\r" => "\\r",
        "\u{8}" => "\\b",
        "\u{c}" => "\\f",
        _ => return None,
    })
}

/// The character that `\uXXXX` at the start of `bytes` stands for, alone or with the second half of a surrogate pair.
fn unicode_escape(bytes: &[u8]) -> Option<(char, usize)> {
    let unit = |bytes: &[u8]| -> Option<u32> {
        let digits = bytes.strip_prefix(b"\\u")?.first_chunk::<4>()?;
        digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
    };
    let first = unit(bytes)?;
    if (0xd800..0xdc00).contains(&first)
        && let Some(second @ 0xdc00..0xe000) = bytes.get(6..).and_then(unit)
    {
        let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return Some((char::from_u32(code)?, 12));
    }
    Some((char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 6))
}

/// A JSON number as a count: `12`, and also `12.0` and `1e3`, which Python's engines take for whole numbers.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
fn whole(number: &str) -> Option<u64> {
    if let Ok(count) = number.parse() {
        return Some(count);
    }
    let value: f64 = number.parse().ok()?;
    let exact = 0.0..9_007_199_254_740_992.0;
    (exact.contains(&value) && value.fract() == 0.0).then_some(value as u64)
}

/// Where the first quote, backslash or control character at or after `at` is; the length if there is none.
///
/// Most strings are short, so two words are looked at first; the loop over blocks after them is one that the compiler
/// turns into vector instructions.
#[inline]
fn next_special(bytes: &[u8], mut at: usize) -> usize {
    const BLOCK: usize = 32;
    for _ in 0..2 {
        let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) else {
            return tail_special(bytes, at);
        };
        match special_in(*word) {
            Some(offset) => return at + offset,
            None => at += 8,
        }
    }
    while let Some(block) = bytes[at..].first_chunk::<BLOCK>() {
        if block.iter().fold(false, |any, byte| any | is_special(*byte)) {
            break;
        }
        at += BLOCK;
    }
    while let Some(word) = bytes[at..].first_chunk::<8>() {
        match special_in(*word) {
            Some(offset) => return at + offset,
            None => at += 8,
        }
    }
    tail_special(bytes, at)
}

fn tail_special(bytes: &[u8], at: usize) -> usize {
    bytes[at.min(bytes.len())..].iter().position(|byte| is_special(*byte)).map_or(bytes.len(), |offset| at + offset)
}

#[inline]
fn is_special(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

/// Where the first special byte of a word is. The carries of the subtractions can only mark bytes above a real one.
#[inline]
fn special_in(word: [u8; 8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let word = u64::from_le_bytes(word);
    let less = |word: u64, than: u64| word.wrapping_sub(ONES * than) & !word;
    let marks = (less(word, 0x20) | less(word ^ (ONES * 0x22), 1) | less(word ^ (ONES * 0x5c), 1)) & HIGHS;
    (marks != 0).then(|| marks.trailing_zeros() as usize / 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn valid(text: &str) -> Result<(), Broken> {
        let mut cursor = Cursor::new(text, Numbers::Strict);
        cursor.skip()?;
        cursor.end()
    }

    #[test]
    fn takes_what_serde_takes_and_nothing_else() {
        let corpus = [
            r#"{"a":[1,-0.5e+10,true,false,null,"x\n\u00e9\ud83d\ude00"],"b":{},"c":[],"":{"a":[[],{}]}}"#,
            r#"[0,01,1.,.5,-,1e,1e5,"\x","\u12","a	b"]"#,
            " \t\r\n[ ] ",
            r#"{"a" : 1 , "b" :[ ]}"#,
            "{\"long\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaé\"}",
        ];
        testing::mutations(&corpus, 40_000, |input| {
            let Ok(text) = str::from_utf8(input) else { return };
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
            assert_eq!(valid(text).is_ok(), theirs, "{text:?}");
        });
    }

    #[test]
    fn decodes_strings_like_serde() {
        let corpus = [
            r#""plain""#,
            r#""\"\\\/\b\f\n\r\t""#,
            r#""é\u00e9\ud83d\ude00\u20ac""#,
            r#""a long text without any escape but one\n""#,
        ];
        testing::mutations(&corpus, 40_000, |input| {
            let Ok(text) = str::from_utf8(input) else { return };
            let mut cursor = Cursor::new(text, Numbers::Strict);
            let Ok(ours) = cursor.string().and_then(|string| cursor.end().map(|()| string)) else { return };
            let decoded = ours.decode();
            assert_eq!(decoded.len(), ours.decoded_len(), "{text:?}");
            if let Ok(theirs) = serde_json::from_str::<String>(text) {
                assert_eq!(decoded, theirs, "{text:?}");
            }
        });
    }

    #[test]
    fn nesting_is_limited_in_what_is_read_and_in_what_is_skipped() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(valid(&nested(128)), Ok(()));
        assert_eq!(valid(&nested(129)), Err(Broken::TooDeep(128)));
        assert_eq!(valid(&"[{\"a\":".repeat(500_000)), Err(Broken::TooDeep(64 * 6)));
        let within = |depth: usize| {
            let text = format!("{{\"a\":{}}}", nested(depth));
            Cursor::new(&text, Numbers::Strict).object(|cursor, _| cursor.skip()).map(|closed| closed.members)
        };
        assert_eq!(within(127), Ok(1));
        assert_eq!(within(128), Err(Broken::TooDeep(132)));
    }

    #[test]
    fn special_bytes_are_found_wherever_they_are() {
        for len in 0..120 {
            for at in 0..len {
                for special in [b'"', b'\\', 0, 0x1f] {
                    let mut bytes = vec![0xc3; len];
                    bytes[at] = special;
                    bytes[len - 1] = special;
                    assert_eq!(next_special(&bytes, 0), at, "{len} {at} {special}");
                }
            }
            assert_eq!(next_special(&vec![0x20; len], 0), len);
            assert_eq!(next_special(&vec![0x7f; len], len), len);
        }
    }

    #[test]
    fn counts_are_whole_numbers_however_written() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(Cursor::new(text, Numbers::Python).count_or_skip(), Ok(expected), "{text}");
        };
        check("0", Some(0));
        check("18446744073709551615", Some(u64::MAX));
        check("18446744073709551616", None);
        check("100.0", Some(100));
        check("1e3", Some(1000));
        check("1.5", None);
        check("-1", None);
        check("1e400", None);
        check("NaN", None);
        check("-Infinity", None);
        check("\"5\"", None);
        check("[5]", None);
    }

    #[test]
    fn pythons_numbers_are_taken_from_engines_only() {
        let text = "[NaN,Infinity,-Infinity]";
        assert!(Cursor::new(text, Numbers::Python).skip().is_ok());
        assert!(Cursor::new(text, Numbers::Strict).skip().is_err());
    }
}
