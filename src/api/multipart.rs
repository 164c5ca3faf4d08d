//! Finding one text field in a multipart body that is still arriving (RFC 7578, RFC 2046 §5.1).

use memchr::memmem;

/// The headers of one part are no longer than this.
const HEADERS_BYTES_MAX: usize = 8 << 10;

/// The field's value is no longer than this.
const VALUE_BYTES_MAX: usize = 4 << 10;

/// Looks for one field. It remembers how far it looked, so that a long body is searched once.
#[derive(Debug)]
pub struct Finder {
    field: String,
    /// Two dashes and the boundary.
    delimiter: memmem::Finder<'static>,
    /// Nothing before this is of interest any more.
    at: usize,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// The field's value.
    Found(String),
    /// Not there yet; come again with more of the body.
    More,
    /// The body is over and has no such field.
    Absent,
    /// No multipart body, or one with a field beyond all reason.
    Malformed,
}

/// A part whose headers are there.
struct Part<'a> {
    headers: &'a [u8],
    body: usize,
}

impl Finder {
    /// A finder of the text field `field` in a body of this content type, or `None` if that is not `multipart/form-data` with
    /// a boundary.
    pub fn new(content_type: &str, field: &str) -> Option<Self> {
        let media = content_type.split(';').next()?.trim();
        if !media.eq_ignore_ascii_case("multipart/form-data") {
            return None;
        }
        let boundary = parameter(content_type, "boundary").filter(|boundary| (1..=70).contains(&boundary.len()))?;
        let delimiter = memmem::Finder::new(&format!("--{boundary}")).into_owned();
        Some(Self { field: field.to_owned(), delimiter, at: 0 })
    }

    /// Looks into `body`, which is the body from its beginning, as much of it as is there.
    pub fn search(&mut self, body: &[u8]) -> Search {
        loop {
            let Some(start) =
                body.get(self.at..).and_then(|rest| self.delimiter.find(rest)).map(|offset| self.at + offset)
            else {
                // The delimiter may be there in part.
                self.at = self.at.max(body.len().saturating_sub(self.delimiter.needle().len()));
                return Search::More;
            };
            // Until the part is understood, the next search begins here again.
            self.at = start;
            let after = start + self.delimiter.needle().len();
            let begins_line = start == 0 || body[start - 1] == b'\n';
            match after_delimiter(&body[after..]) {
                Line::Unknown => return Search::More,
                Line::Close if begins_line => return Search::Absent,
                Line::Open(len) if begins_line => match part_at(body, after + len) {
                    Ok(Some(part)) if self.is_wanted(part.headers) => return self.value(&body[part.body..]),
                    Ok(Some(part)) => self.at = part.body,
                    Ok(None) => return Search::More,
                    Err(TooLong) => return Search::Malformed,
                },
                _ => self.at = start + 1,
            }
        }
    }

    /// A field of that name which is no file.
    fn is_wanted(&self, headers: &[u8]) -> bool {
        let Ok(headers) = str::from_utf8(headers) else {
            return false;
        };
        let disposition = headers.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
        });
        disposition.is_some_and(|value| {
            parameter(value, "name").as_deref() == Some(&self.field) && parameter(value, "filename").is_none()
        })
    }

    fn value(&self, rest: &[u8]) -> Search {
        let mut from = 0;
        while let Some(offset) = self.delimiter.find(&rest[from..]) {
            let at = from + offset;
            // The line break before a delimiter belongs to it.
            if let Some(value) = rest[..at].strip_suffix(b"\n") {
                let value = value.strip_suffix(b"\r").unwrap_or(value);
                if value.len() > VALUE_BYTES_MAX {
                    return Search::Malformed;
                }
                return str::from_utf8(value).map_or(Search::Malformed, |value| Search::Found(value.to_owned()));
            }
            from = at + 1;
        }
        let longest = VALUE_BYTES_MAX + self.delimiter.needle().len() + 2;
        if rest.len() > longest { Search::Malformed } else { Search::More }
    }
}

/// What follows a delimiter on its line.
enum Line {
    /// The line ends after this many bytes: a part follows.
    Open(usize),
    /// The last delimiter.
    Close,
    /// Something else: these bytes only look like a delimiter.
    Other,
    /// Not there yet.
    Unknown,
}

fn after_delimiter(rest: &[u8]) -> Line {
    if rest.starts_with(b"--") {
        return Line::Close;
    }
    let padding = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    match &rest[padding..] {
        [b'\r', b'\n', ..] => Line::Open(padding + 2),
        [b'\n', ..] => Line::Open(padding + 1),
        [] | [b'\r'] | [b'-'] if padding < HEADERS_BYTES_MAX => Line::Unknown,
        _ => Line::Other,
    }
}

struct TooLong;

/// The part whose headers begin at `start`, if they are there. A part may have no headers at all.
fn part_at(body: &[u8], start: usize) -> Result<Option<Part<'_>>, TooLong> {
    let rest = &body[start..];
    let mut at = 0;
    while let Some(len) = memchr::memchr(b'\n', &rest[at..]) {
        let line = &rest[at..at + len];
        let next = at + len + 1;
        if line.is_empty() || line == b"\r" {
            return Ok(Some(Part { headers: &rest[..at], body: start + next }));
        }
        if next > HEADERS_BYTES_MAX {
            return Err(TooLong);
        }
        at = next;
    }
    if rest.len() > HEADERS_BYTES_MAX { Err(TooLong) } else { Ok(None) }
}

/// A parameter of a header's value, such as `boundary` in `multipart/form-data; boundary="x"`.
fn parameter(value: &str, name: &str) -> Option<String> {
    let mut rest = value;
    loop {
        rest = past_semicolon(rest)?.trim_start();
        let (key, after) = rest.split_once('=')?;
        if key.trim_end().eq_ignore_ascii_case(name) {
            return Some(parameter_value(after.trim_start()));
        }
    }
}

/// What follows the first semicolon that is not inside quotes.
fn past_semicolon(text: &str) -> Option<&str> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' if !quoted => return Some(&text[at + 1..]),
            _ => {}
        }
    }
    None
}

fn parameter_value(text: &str) -> String {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ' ', '\t', '\r']).unwrap_or(text.len());
        return text[..end].to_owned();
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const TYPE: &str = "multipart/form-data; boundary=XyZ";

    fn search_all(body: &[u8]) -> Search {
        Finder::new(TYPE, "model").expect("a boundary").search(body)
    }

    /// The answer must not depend on how the body arrives; what is found early is found.
    fn search_by_pieces(body: &[u8], piece: usize) -> Search {
        let mut finder = Finder::new(TYPE, "model").expect("a boundary");
        for end in (piece..body.len()).step_by(piece).chain([body.len()]) {
            let search = finder.search(&body[..end]);
            if search != Search::More {
                return search;
            }
        }
        Search::More
    }

    fn check(body: &str, expected: &Search) {
        assert_eq!(&search_all(body.as_bytes()), expected, "{body:?}");
        for piece in [1, 2, 3, 7, 64] {
            assert_eq!(&search_by_pieces(body.as_bytes(), piece), expected, "{body:?} by {piece}");
        }
    }

    fn found(value: &str) -> Search {
        Search::Found(value.to_owned())
    }

    #[test]
    fn the_field_is_found_wherever_it_is() {
        let model = "--XyZ\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n";
        let file = "--XyZ\r\nContent-Disposition: form-data; name=\"file\"; filename=\"model\"\r\nContent-Type: audio/wav\r\n\r\n\0RIFF--XyZ\r\n--XyZw\r\n\r\n";
        check(&format!("{model}{file}--XyZ--\r\n"), &found("whisper-1"));
        check(&format!("{file}{model}--XyZ--"), &found("whisper-1"));
        check(&format!("preamble\r\n{file}{file}{model}--XyZ"), &found("whisper-1"));
        check(&format!("{file}{file}--XyZ--\r\n"), &Search::Absent);
        check(&format!("{file}--XyZ-"), &Search::More);
        check(model, &Search::More);
        check("", &Search::More);
        check("--XyZ\nCONTENT-disposition:form-data;name=model\n\nm\n--XyZ--", &found("m"));
        check(
            "--XyZ \t\r\nContent-Disposition: form-data; x=\"a;name=b\"; name=\"mod\\el\"\r\n\r\n\r\n--XyZ--",
            &found(""),
        );
        check(
            "--XyZ\r\n\r\nno headers\r\n--XyZ\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na\r\nb\r\n--XyZ--",
            &found("a\r\nb"),
        );
    }

    #[test]
    fn a_file_called_model_is_not_the_model() {
        check(
            "--XyZ\r\nContent-Disposition: form-data; name=\"model\"; filename=\"x\"\r\n\r\nm\r\n--XyZ--",
            &Search::Absent,
        );
    }

    #[test]
    fn headers_and_value_are_bounded() {
        let long = "x".repeat(9 << 10);
        check(&format!("--XyZ\r\nA: {long}"), &Search::Malformed);
        check(&format!("--XyZ\r\nContent-Disposition: form-data; name=model\r\n\r\n{long}"), &Search::Malformed);
    }

    #[test]
    fn boundaries_are_read_from_the_content_type() {
        let check = |content_type: &str, expected: Option<&str>| {
            let finder = Finder::new(content_type, "model");
            let delimiter =
                finder.as_ref().map(|finder| String::from_utf8_lossy(finder.delimiter.needle()).into_owned());
            assert_eq!(delimiter.as_deref(), expected, "{content_type}");
        };
        check("multipart/form-data; boundary=abc", Some("--abc"));
        check("Multipart/Form-Data; charset=\"a;boundary=b\"; BOUNDARY=\"a b\\\"c\"", Some("--a b\"c"));
        check("multipart/form-data;boundary=abc ; x=y", Some("--abc"));
        check("multipart/form-data; boundary=\"\"", None);
        check("multipart/form-data; boundary", None);
        check("multipart/form-data", None);
        check("multipart/mixed; boundary=abc", None);
        check("application/json", None);
        check("", None);
        check(&format!("multipart/form-data; boundary={}", "b".repeat(71)), None);
    }

    #[test]
    fn no_input_makes_it_panic_and_pieces_do_not_matter() {
        let corpus = [
            "--XyZ\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--XyZ--\r\n",
            "--XyZ\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n--XyZ\r\n\n--XyZ\n\nxx\r\n--XyZ\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--XyZ--",
            "--XyZ  \r\n\r\n\r\n--XyZ--",
        ];
        testing::mutations(&corpus, 20_000, |input| {
            let whole = search_all(input);
            assert_eq!(search_by_pieces(input, 1 + input.len() % 5), whole, "{}", input.escape_ascii());
        });
        testing::mutations(&["multipart/form-data; boundary=\"a\\\"b\"; x=y; é=1"], 5_000, |input| {
            Finder::new(&String::from_utf8_lossy(input), "model");
        });
    }
}
