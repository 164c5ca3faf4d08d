//! Reads just enough Rust for the checks of `tidy`: where functions are, and what is comment, literal or test.
//!
//! It blanks comments and literals and then matches brackets. It does not parse: macros are text like any other.

/// A function with a body.
pub(super) struct Function {
    pub(super) name: String,
    pub(super) lines: usize,
    pub(super) parameters: usize,
}

/// The functions with a body in masked code, nested ones included.
pub(super) fn functions(code: &str) -> Vec<Function> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    for start in words(code, "fn") {
        let name: String = code[start + 2..].trim_start().chars().take_while(|c| is_word(*c)).collect();
        if name.is_empty() {
            continue;
        }
        let Some(open) = parameters_start(bytes, start) else { continue };
        let Some(close) = matching(bytes, open) else { continue };
        let Some(body) = body_start(bytes, close) else { continue };
        let end = matching(bytes, body).unwrap_or(bytes.len() - 1);
        found.push(Function {
            name,
            lines: code[start..=end].matches('\n').count() + 1,
            parameters: parameters(&code[open + 1..close]),
        });
    }
    found
}

/// The `(` that opens the parameters of the `fn` at `start`, past any generics.
fn parameters_start(bytes: &[u8], start: usize) -> Option<usize> {
    let mut angles = 0_usize;
    for at in start..bytes.len() {
        match bytes[at] {
            b'<' => angles += 1,
            b'>' if bytes[at - 1] != b'-' => angles = angles.saturating_sub(1),
            b'(' if angles == 0 => return Some(at),
            b'{' | b'}' | b';' if angles == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The `{` of the body after the parameters that end at `close`; none for a declaration.
fn body_start(bytes: &[u8], close: usize) -> Option<usize> {
    let mut brackets = 0_usize;
    for (at, byte) in bytes.iter().enumerate().skip(close + 1) {
        match byte {
            b'[' | b'(' => brackets += 1,
            b']' | b')' => brackets = brackets.saturating_sub(1),
            b';' if brackets == 0 => return None,
            b'{' if brackets == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

fn parameters(list: &str) -> usize {
    let bytes = list.as_bytes();
    let (mut depth, mut count, mut pending) = (0_usize, 0, false);
    for at in 0..bytes.len() {
        match bytes[at] {
            b'(' | b'[' | b'{' | b'<' => depth += 1,
            b'>' if at > 0 && bytes[at - 1] == b'-' => {}
            b')' | b']' | b'}' | b'>' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                count += 1;
                pending = false;
                continue;
            }
            _ => {}
        }
        pending |= !bytes[at].is_ascii_whitespace();
    }
    count + usize::from(pending)
}

/// Blanks items under `#[cfg(test)]`; also tells how many lines they take.
pub(super) fn without_tests(masked: &str) -> (String, usize) {
    let mut code = masked.as_bytes().to_vec();
    let mut lines = 0;
    let mut from = 0;
    while let Some(start) = masked[from..].find("#[cfg(test)]").map(|at| from + at) {
        let attribute_end = start + "#[cfg(test)]".len();
        let end = item_end(&code, attribute_end);
        lines += masked[start..end].matches('\n').count() + 1;
        for byte in code[start..end].iter_mut().filter(|byte| **byte != b'\n') {
            *byte = b' ';
        }
        from = end;
    }
    (String::from_utf8(code).expect("blanks replace ASCII only"), lines)
}

/// One past the end of the item that starts after an attribute: its `;` or the brace that closes it.
fn item_end(code: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < code.len() {
        match code[at] {
            b'(' | b'[' => at = matching(code, at).unwrap_or(code.len() - 1),
            b'{' => return matching(code, at).map_or(code.len(), |end| end + 1),
            b';' => return at + 1,
            _ => {}
        }
        at += 1;
    }
    code.len()
}

/// The bracket that closes the one at `open`.
fn matching(code: &[u8], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Blanks comments, strings and characters, keeping every line break and all offsets.
pub(super) fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        match end {
            Some(end) => {
                out.extend(bytes[at..end].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
                at = end;
            }
            None => {
                out.push(if bytes[at].is_ascii() { bytes[at] } else { b' ' });
                at += 1;
            }
        }
    }
    String::from_utf8(out).expect("only ASCII was written")
}

/// Where the comment or literal that starts at `at` ends, if one does.
fn literal_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let in_word = at > 0 && is_word(bytes[at - 1] as char);
    let until = |skip: usize, close: &[u8]| {
        let found = rest[skip..].windows(close.len()).position(|window| window == close);
        found.map_or(bytes.len(), |found| at + skip + found + close.len())
    };
    match rest {
        [b'/', b'/', ..] => Some(until(2, b"\n") - usize::from(rest.contains(&b'\n'))),
        [b'/', b'*', ..] => Some(block_comment_end(bytes, at)),
        [b'"', ..] => Some(string_end(bytes, at + 1)),
        [b'b' | b'c', b'"', ..] if !in_word => Some(string_end(bytes, at + 2)),
        [b'\'', b'\\', ..] => Some(until(3, b"'")),
        // A character; a lifetime has no quote two to five bytes on.
        [b'\'', first, ..] if *first != b'\'' => {
            let width = if first.is_ascii() { 1 } else { first.leading_ones() as usize };
            (rest.get(1 + width) == Some(&b'\'')).then_some(at + width + 2)
        }
        [b'r' | b'b' | b'c', ..] if !in_word => {
            let prefix = usize::from(rest[0] != b'r');
            let hashes = rest[prefix..].strip_prefix(b"r")?.iter().take_while(|byte| **byte == b'#').count();
            let open = prefix + 1 + hashes;
            let close: Vec<u8> = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
            (rest.get(open) == Some(&b'"')).then(|| until(open + 1, &close))
        }
        _ => None,
    }
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn block_comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                at += 2;
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = code[..*at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

pub(super) fn has_word(code: &str, word: &str) -> bool {
    words(code, word).next().is_some()
}

pub(super) fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[test]
fn the_scanner_sees_through_literals() {
    let check = |text: &str, expected: &str| assert_eq!(mask(text), expected, "{text}");
    check("a // fn b\nc", "a        \nc");
    check("a /* /* x */ { */ b", "a                 b");
    check(r#"let a = "}\"{"; b"#, "let a =       ; b");
    check(r###"let a = r#"{"#; b"###, "let a =       ; b");
    check("x<'a>('{', '\\'', 'é', b'}')", "x<'a>(   ,     ,     , b   )");
    check("// end", "      ");
}

#[test]
fn the_scanner_measures_functions() {
    let code = "impl A {\n fn short<F: Fn(u8) -> u8>(&self, a: Map<K, V>, b: [u8; 2],) -> [u8; 2] {\n  b\n }\n fn bare();\n}\n";
    let found = functions(code);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].name.as_str(), found[0].lines, found[0].parameters), ("short", 3, 3));
    let (production, lines) = without_tests("fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\nfn c() {}\n");
    assert_eq!(lines, 4);
    assert_eq!(functions(&production).iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
}
