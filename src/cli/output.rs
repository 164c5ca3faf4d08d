//! Printing: text, JSON, and tables.

use std::io::{ErrorKind, Write};

use clap::ValueEnum;
use serde_json::Value;

use super::Failure;

/// How an answer is printed.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// For reading.
    Table,
    /// As the gateway sent it.
    Json,
}

/// Prints text. A reader that has seen enough and went away is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::system("write to standard output")(error)),
        _ => Ok(()),
    }
}

/// Says something that is not the answer. Who does not listen is not an error.
pub(super) fn note(text: &str) {
    let _gone = writeln!(std::io::stderr().lock(), "{text}");
}

/// Says how far something is, on the line where it said so before.
#[cfg(feature = "lab")]
pub(super) fn progress(text: &str) {
    let _gone = write!(std::io::stderr().lock(), "\r\x1b[K{text}");
}

/// Prints JSON, indented.
pub(super) fn print_json(value: &Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

/// Rows under a header, columns aligned. Whatever the cells hold, it prints on one line and moves no cursor.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = std::iter::once(header.iter().map(|cell| (*cell).to_owned()).collect())
        .chain(rows.iter().map(|row| row.iter().map(|cell| tame(cell)).collect()))
        .collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..header.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Any JSON for reading: plain fields as lines, lists of objects as tables, objects indented.
pub(super) fn readable(value: &Value) -> String {
    let mut text = String::new();
    describe(value, 0, &mut text);
    text
}

/// What stands for no value.
const NOTHING: &str = "-";

/// One value on one line.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => tame(text),
        Value::Array(items) if items.is_empty() => NOTHING.to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(fields) if fields.is_empty() => NOTHING.to_owned(),
        Value::Object(fields) => {
            let pairs = fields.iter().map(|(name, value)| format!("{}={}", tame(name), cell(value)));
            pairs.collect::<Vec<_>>().join(" ")
        }
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(number) => format!("{number:.4}").trim_end_matches('0').trim_end_matches('.').to_owned(),
            None => number.to_string(),
        },
        Value::Bool(_) => value.to_string(),
    }
}

/// Objects nested deeper than this are printed on one line.
const DEPTH_MAX: usize = 6;

fn describe(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    let Value::Object(fields) = value else {
        text.push_str(&format!("{indent}{}\n", cell(value)));
        return;
    };
    for (name, value) in fields {
        let name = tame(name);
        match value {
            Value::Object(inner) if !inner.is_empty() && depth < DEPTH_MAX => {
                text.push_str(&format!("{indent}{name}:\n"));
                describe(value, depth + 1, text);
            }
            Value::Array(items) if is_table(items) => {
                text.push_str(&format!("{indent}{name}:\n"));
                for line in objects(items).lines() {
                    text.push_str(&format!("{indent}  {line}\n"));
                }
            }
            Value::Array(items) if items.iter().any(Value::is_object) && depth < DEPTH_MAX => {
                for (index, item) in items.iter().enumerate() {
                    text.push_str(&format!("{indent}{name} {}:\n", index + 1));
                    describe(item, depth + 1, text);
                }
            }
            _ => text.push_str(&format!("{indent}{name}: {}\n", cell(value))),
        }
    }
}

/// Whether each of the items fits a row: objects without lists of objects inside.
fn is_table(items: &[Value]) -> bool {
    fn holds_rows(value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().any(Value::is_object),
            Value::Object(fields) => fields.values().any(holds_rows),
            _ => false,
        }
    }
    !items.is_empty() && items.iter().all(|item| item.is_object() && !holds_rows(item))
}

/// A table whose columns are the fields of the objects, in the order they first appear, what identifies the object
/// in front. A field that no object has a value for is left out.
fn objects(items: &[Value]) -> String {
    let rows: Vec<Vec<(String, String)>> = items.iter().map(|item| columns("", item)).collect();
    let mut names: Vec<&str> = Vec::new();
    for (name, value) in rows.iter().flatten() {
        if value != NOTHING && !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.sort_by_key(|name| !matches!(*name, "id" | "worker"));
    let value = |row: &Vec<(String, String)>, name: &str| {
        row.iter().find(|(one, _)| one == name).map_or_else(|| NOTHING.to_owned(), |(_, value)| value.clone())
    };
    let cells: Vec<Vec<String>> = rows.iter().map(|row| names.iter().map(|name| value(row, name)).collect()).collect();
    table(&names, &cells)
}

/// The fields of an object, those of objects inside included, as `outer.inner`.
fn columns(prefix: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let dot = if prefix.is_empty() { "" } else { "." };
            fields.iter().flat_map(|(name, value)| columns(&format!("{prefix}{dot}{}", tame(name)), value)).collect()
        }
        value => vec![(prefix.to_owned(), cell(value))],
    }
}

/// Without control characters, which could rewrite the terminal.
fn tame(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { '\u{fffd}' } else { one }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_align_and_stay_on_their_lines() {
        let rows = vec![vec!["a".to_owned(), "1\n2".to_owned()], vec!["long".to_owned(), "3".to_owned()]];
        assert_eq!(table(&["ID", "N"], &rows), "ID    N\na     1\u{fffd}2\nlong  3\n");
    }

    #[test]
    fn a_decision_reads() {
        let value = json!({"attempts": [{
            "worker": "b",
            "decision": {"chosen": "b", "workers": [
                {"worker": "a", "in_flight": 3, "seconds": {"prefill": 0.25, "queue": 1.0}},
                {"worker": "b", "in_flight": 0, "seconds": null},
            ]},
        }]});
        let expected = "\
attempts 1:
  decision:
    chosen: b
    workers:
      worker  in_flight  seconds.prefill  seconds.queue
      a       3          0.25             1
      b       0          -                -
  worker: b
";
        assert_eq!(readable(&value), expected);
    }

    #[test]
    fn any_json_reads() {
        let value = json!({"chosen": "w", "why": {"x": 0.5}, "list": [{"a": 1}, {"a": 2, "b": null}], "none": []});
        let expected = "chosen: w\nlist:\n  a\n  1\n  2\nnone: -\nwhy:\n  x: 0.5\n";
        assert_eq!(readable(&value), expected);
    }
}
