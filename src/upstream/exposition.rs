//! Reading the Prometheus text format (version 0.0.4): only samples, and only what is asked for. Lines that are none
//! are passed over, so a worker's nonsense yields nothing rather than an error.

use std::borrow::Cow;

/// One line with a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample<'a> {
    pub(crate) name: &'a str,
    pub(crate) labels: Labels<'a>,
    pub(crate) value: f64,
}

/// What stands between the braces, not yet taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Labels<'a>(&'a str);

/// The samples in `text` whose name satisfies `wanted`.
pub(crate) fn samples<'a>(text: &'a str, wanted: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = Sample<'a>> + 'a {
    text.lines().filter_map(move |line| {
        let line = line.trim();
        let end = line.find(['{', ' ', '\t'])?;
        let (name, rest) = line.split_at(end);
        if name.starts_with('#') || !wanted(name) {
            return None;
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => {
                let close = closing_brace(rest)?;
                (&rest[..close], &rest[close + 1..])
            }
            None => ("", rest),
        };
        // A timestamp may follow the value.
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Sample { name, labels: Labels(labels), value })
    })
}

impl<'a> Labels<'a> {
    /// The value of the label called `name`.
    pub(crate) fn value(self, name: &str) -> Option<Cow<'a, str>> {
        let mut rest = self.0;
        loop {
            let (label, after) = rest.split_once('=')?;
            let quoted = after.trim_start().strip_prefix('"')?;
            let end = closing_quote(quoted)?;
            if label.trim_matches([' ', ',', '\t']) == name {
                return Some(unescape(&quoted[..end]));
            }
            rest = &quoted[end + 1..];
        }
    }
}

/// Where the brace is that ends the labels: the first outside of quotes.
fn closing_brace(text: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let next = from + text[from..].find(['"', '}'])?;
        if text[next..].starts_with('}') {
            return Some(next);
        }
        from = next + 1;
        from += closing_quote(&text[from..])? + 1;
    }
}

/// Where the quote is that ends a value: the first that no backslash precedes.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

fn unescape(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, name: &str) -> Vec<f64> {
        samples(text, |found| found == name).map(|sample| sample.value).collect()
    }

    #[test]
    fn samples_are_found_among_comments_labels_and_timestamps() {
        let text = "# HELP vllm:x a {b} \"c\"\n# TYPE vllm:x gauge\nvllm:x{engine=\"0\",model_name=\"a b\"} 3.0\n\
                    vllm:x{engine=\"1\"} 4e1 1700000000000\nvllm:x_total 5\nvllm:x 6\n  vllm:x\t7\nvllm:x{a=\"}\\\"\"} 8\n";
        assert_eq!(read(text, "vllm:x"), [3.0, 40.0, 6.0, 7.0, 8.0]);
        assert!(read("vllm:x NaN\n", "vllm:x")[0].is_nan());
        assert_eq!(read("vllm:x +Inf\n", "vllm:x"), [f64::INFINITY]);
        for broken in ["vllm:x", "vllm:x{", "vllm:x{a=\"", "vllm:x{a=\"b\"", "vllm:x{a=\"b\"}", "vllm:x{} y", "{} 1"] {
            assert_eq!(read(broken, "vllm:x"), [0.0; 0], "{broken}");
        }
    }

    #[test]
    fn labels_are_taken_apart_by_name() {
        let text = r#"m{block_size="16", num_gpu_blocks="27283",path="C:\\DIR\\F",say="\"hi\"\n",e="",} 1"#;
        let sample = samples(text, |_| true).next().unwrap();
        let check = |name, expected| assert_eq!(sample.labels.value(name).as_deref(), expected, "{name}");
        check("block_size", Some("16"));
        check("num_gpu_blocks", Some("27283"));
        check("path", Some(r"C:\DIR\F"));
        check("say", Some("\"hi\"\n"));
        check("e", Some(""));
        check("block", None);
        check("hi", None);
        check("", None);
    }
}
