//! Values as Python writes them: templates were written for it, and what they print is part of the prompt.

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

/// How `json.dumps` is told to write.
#[derive(Clone, Debug)]
pub(crate) struct Dumps {
    pub(crate) ascii_only: bool,
    /// What one level is moved in by; none for all on one line.
    pub(crate) indent: Option<String>,
    /// Between items and after names.
    pub(crate) separators: (String, String),
    pub(crate) sort_keys: bool,
}

/// Deeper values are an error. Those of a body cannot be: its parser has a lower bound.
const DEPTH_MAX: usize = 256;

/// `str(value)`.
pub(crate) fn str_of(value: &Value) -> String {
    let mut out = String::new();
    match (value.kind(), value.as_str()) {
        (ValueKind::Undefined, _) => {}
        (_, Some(text)) => out.push_str(text),
        _ => repr(value, DEPTH_MAX, &mut out),
    }
    out
}

fn repr(value: &Value, depth: usize, out: &mut String) {
    let Some(depth) = depth.checked_sub(1) else { return };
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(&item, depth, out);
            }
            out.push_str(if value.is_tuple() && value.len() == Some(1) { "," } else { "" });
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(&key, depth, out);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), depth, out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// `repr` of a string.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}

fn number(value: &Value, out: &mut String) {
    if value.is_integer() {
        out.push_str(&value.to_string());
        return;
    }
    match f64::try_from(value.clone()) {
        Ok(number) => float(number, out),
        Err(_) => out.push_str(&value.to_string()),
    }
}

/// `repr` of a float: the fewest digits that lead back to it, with an exponent below 1e-4 and from 1e16 on.
fn float(number: f64, out: &mut String) {
    if !number.is_finite() {
        out.push_str(if number.is_nan() {
            "nan"
        } else if number > 0.0 {
            "inf"
        } else {
            "-inf"
        });
        return;
    }
    let digits = format!("{number:e}");
    let (mantissa, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        out.push_str(&format!("{number:?}"));
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        out.push_str(&format!("{mantissa}e{sign}{:02}", exponent.abs()));
    }
}

impl Dumps {
    /// `json.dumps(value)`.
    pub(crate) fn write(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.value(value, 0, &mut out)?;
        Ok(out)
    }

    fn value(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => json_number(value, out),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(['[', ']'], depth, items.len(), out, |index, out| self.value(&items[index], depth + 1, out))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list(['{', '}'], depth, keys.len(), out, |index, out| {
                    self.name(&keys[index], out)?;
                    out.push_str(&self.separators.1);
                    self.value(&value.get_item(&keys[index])?, depth + 1, out)
                })?;
            }
            kind => {
                let message = format!("a value of type {kind} cannot be written as JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn list(
        &self,
        [open, close]: [char; 2],
        depth: usize,
        length: usize,
        out: &mut String,
        mut item: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |levels: usize, out: &mut String| {
            if let Some(indent) = self.indent.as_ref().filter(|_| length > 0) {
                out.push('\n');
                (0..levels).for_each(|_| out.push_str(indent));
            }
        };
        out.push(open);
        for index in 0..length {
            out.push_str(if index > 0 { &self.separators.0 } else { "" });
            line(depth + 1, out);
            item(index, out)?;
        }
        line(depth, out);
        out.push(close);
        Ok(())
    }

    fn name(&self, key: &Value, out: &mut String) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default(), out),
            ValueKind::Bool | ValueKind::None | ValueKind::Number => {
                out.push('"');
                self.value(key, 0, out)?;
                out.push('"');
            }
            kind => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("a name cannot be of type {kind}")));
            }
        }
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
                c if self.ascii_only && !c.is_ascii() && u32::from(c) != 0x7f => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn json_number(value: &Value, out: &mut String) {
    let before = out.len();
    number(value, out);
    let python = match &out[before..] {
        "nan" => "NaN",
        "inf" => "Infinity",
        "-inf" => "-Infinity",
        _ => return,
    };
    out.replace_range(before.., python);
}

/// `strftime` at a time in seconds since the Unix epoch, in UTC as engines in containers have it. Nothing for a directive that
/// is not known here.
pub(crate) fn strftime(format: &str, unix_s: i64) -> Option<String> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    // The first day of the epoch was a Thursday.
    let weekday = DAYS[usize::try_from((days + 3).rem_euclid(7)).ok()?];
    let month_name = MONTHS[usize::try_from(month - 1).ok()?];
    let half = if hour < 12 { "AM" } else { "PM" };
    let hour_of_12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let day_of_year = days - days_before(year, 1, 1) + 1;
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next()?;
        let padded = directive != '-';
        if !padded {
            directive = rest.next()?;
        }
        let two = |number: i64| if padded { format!("{number:02}") } else { number.to_string() };
        match directive {
            'd' => out.push_str(&two(day)),
            'm' => out.push_str(&two(month)),
            'H' => out.push_str(&two(hour)),
            'I' => out.push_str(&two(hour_of_12)),
            'M' => out.push_str(&two(minute)),
            'S' => out.push_str(&two(second)),
            'y' => out.push_str(&two(year.rem_euclid(100))),
            'Y' => out.push_str(&format!("{year}")),
            'j' if padded => out.push_str(&format!("{day_of_year:03}")),
            'j' => out.push_str(&format!("{day_of_year}")),
            'e' => out.push_str(&format!("{day:2}")),
            'B' => out.push_str(month_name),
            'b' | 'h' => out.push_str(&month_name[..3]),
            'A' => out.push_str(weekday),
            'a' => out.push_str(&weekday[..3]),
            'p' => out.push_str(half),
            'F' => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            'T' => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            '%' => out.push('%'),
            _ => return None,
        }
    }
    Some(out)
}

/// Year, month and day of a day counted from the Unix epoch: years begin in March and eras have 400 of them, so that leap days
/// come last.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The reverse of [`civil`].
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}
