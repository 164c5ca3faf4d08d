//! One fault and its text.
//!
//! The text is a list of parts separated by commas; `body=` takes the rest. A part is a step `action@point`, or a
//! setting:
//!
//! ```text
//! actions   delay=20ms  stall  fin  rst  garble  drop  error  badchunk
//! points    accept  request  head  body  event:N  event:*  byte:N  end
//! settings  status=503  retry-after=2  content-type=text/html  header-padding=70000  length=+5  fragment=1
//!           endless  garbage  nodone  hangup  rawhead  body=…
//! ```

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Steps of one fault; more are refused.
const STEPS_MAX: usize = 32;
/// Bytes of a fault's text.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Bytes of padding in a head.
const PADDING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What goes wrong with one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// What happens at which point.
    pub steps: Vec<Step>,
    /// Answer with this status instead of serving the request.
    pub status: Option<u16>,
    /// A `Retry-After` with this value.
    pub retry_after: Option<String>,
    /// This content type instead of the right one.
    pub content_type: Option<String>,
    /// This body instead of the dialect's, with `status`.
    pub body: Option<String>,
    /// A response field of so many bytes.
    pub header_padding: usize,
    /// Announce a `Content-Length` that is so many bytes too great (or too small).
    pub length_error: i64,
    /// Write in pieces of so many bytes, each in a write of its own.
    pub fragment: Option<usize>,
    /// A stream never ends: its first event is repeated for ever.
    pub endless: bool,
    /// A stream consists of bytes that are no events.
    pub garbage: bool,
    /// A stream ends as HTTP wants it, but without its terminal event.
    pub no_terminal: bool,
    /// The connection closes after the answer, unannounced.
    pub hangup: bool,
    /// The answer begins with bytes that are not HTTP.
    pub raw_head: bool,
}

/// Something that happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What happens.
    pub action: Action,
    /// Where.
    pub at: Point,
}

/// What may happen at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait, then go on.
    Delay(Duration),
    /// Wait for ever.
    Stall,
    /// Close the connection in the regular way.
    Fin,
    /// Reset the connection.
    Rst,
    /// Replace the event by one that is not JSON.
    Garble,
    /// Leave the event out.
    Drop,
    /// Send the engine's own error event and end the stream.
    Error,
    /// Send a chunk header that is no number, and close.
    BadChunk,
}

/// Where in the life of a request something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// When the connection is accepted (in rules only).
    Accept,
    /// When the request's head has been read and its body has not (in rules without a condition on the body, or in the header).
    Request,
    /// Before the response's head.
    Head,
    /// After the response's head has left.
    Body,
    /// Before the event of this number, counted from 1. A plain body is one event.
    Event(u64),
    /// Before each event.
    EveryEvent,
    /// After so many bytes of the body.
    Byte(u64),
    /// When everything has left but the end of the message.
    End,
}

impl Fault {
    /// The steps at `point`, in order.
    pub(crate) fn at(&self, point: Point) -> impl Iterator<Item = Action> {
        self.steps.iter().filter(move |step| step.at == point).map(|step| step.action)
    }

    /// The steps before event `number`.
    pub(crate) fn at_event(&self, number: u64) -> impl Iterator<Item = Action> {
        self.steps
            .iter()
            .filter(move |step| matches!(step.at, Point::EveryEvent) || step.at == Point::Event(number))
            .map(|step| step.action)
    }

    /// The first step after more than `from` and at most `to` bytes of the body.
    pub(crate) fn next_byte_step(&self, from: u64, to: u64) -> Option<(u64, Action)> {
        let steps = self.steps.iter().filter_map(|step| match step.at {
            Point::Byte(at) if at > from && at <= to => Some((at, step.action)),
            _ => None,
        });
        steps.min_by_key(|(at, _)| *at)
    }

    /// Whether something happens at `point`.
    pub(crate) fn acts_at(&self, point: Point) -> bool {
        self.steps.iter().any(|step| step.at == point)
    }

    /// Whether nothing goes wrong.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what `other` says; where both set the same, `other` wins.
    pub(crate) fn join(&mut self, other: Self) {
        self.steps.extend(other.steps);
        self.status = other.status.or(self.status);
        self.retry_after = other.retry_after.or(self.retry_after.take());
        self.content_type = other.content_type.or(self.content_type.take());
        self.body = other.body.or(self.body.take());
        self.header_padding = self.header_padding.max(other.header_padding);
        self.length_error = if other.length_error == 0 { self.length_error } else { other.length_error };
        self.fragment = other.fragment.or(self.fragment);
        self.endless |= other.endless;
        self.garbage |= other.garbage;
        self.no_terminal |= other.no_terminal;
        self.hangup |= other.hangup;
        self.raw_head |= other.raw_head;
    }

    fn part(&mut self, part: &str) -> Result<(), BadFault> {
        let bad = || BadFault(part.to_owned());
        if let Some((action, point)) = part.rsplit_once('@') {
            if self.steps.len() == STEPS_MAX {
                return Err(bad());
            }
            let step = Step { action: action_of(action).ok_or_else(bad)?, at: point_of(point).ok_or_else(bad)? };
            self.steps.push(step);
            return Ok(());
        }
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        match name {
            "status" => {
                self.status = Some(value.parse().ok().filter(|code| (200..1000).contains(code)).ok_or_else(bad)?);
            }
            "retry-after" => self.retry_after = Some(field_value(value).ok_or_else(bad)?),
            "content-type" => self.content_type = Some(field_value(value).ok_or_else(bad)?),
            "header-padding" => {
                self.header_padding = value.parse().ok().filter(|bytes| *bytes <= PADDING_BYTES_MAX).ok_or_else(bad)?;
            }
            "length" => self.length_error = value.parse().map_err(|_| bad())?,
            "fragment" => self.fragment = Some(value.parse().ok().filter(|bytes| *bytes > 0).ok_or_else(bad)?),
            "endless" => self.endless = true,
            "garbage" => self.garbage = true,
            "nodone" => self.no_terminal = true,
            "hangup" => self.hangup = true,
            "rawhead" => self.raw_head = true,
            _ => return Err(bad()),
        }
        Ok(())
    }
}

/// The text is not a fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not part of a fault")]
pub struct BadFault(String);

impl FromStr for Fault {
    type Err = BadFault;

    fn from_str(text: &str) -> Result<Self, BadFault> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(BadFault("a text of that length".to_owned()));
        }
        let mut fault = Self::default();
        let mut rest = text.trim();
        while !rest.is_empty() {
            if let Some(body) = rest.strip_prefix("body=") {
                fault.body = Some(body.to_owned());
                break;
            }
            let (part, after) = rest.split_once(',').unwrap_or((rest, ""));
            fault.part(part.trim())?;
            rest = after.trim_start();
        }
        Ok(fault)
    }
}

fn field_value(value: &str) -> Option<String> {
    value.bytes().all(|byte| (0x20..0x7f).contains(&byte)).then(|| value.to_owned())
}

fn action_of(text: &str) -> Option<Action> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    Some(match name {
        "delay" => Action::Delay(duration_of(value)?),
        "stall" => Action::Stall,
        "fin" => Action::Fin,
        "rst" => Action::Rst,
        "garble" => Action::Garble,
        "drop" => Action::Drop,
        "error" => Action::Error,
        "badchunk" => Action::BadChunk,
        _ => return None,
    })
}

fn point_of(text: &str) -> Option<Point> {
    Some(match text.split_once(':').unwrap_or((text, "")) {
        ("accept", "") => Point::Accept,
        ("request", "") => Point::Request,
        ("head", "") => Point::Head,
        ("body", "") => Point::Body,
        ("end", "") => Point::End,
        ("event", "*") => Point::EveryEvent,
        ("event", number) => Point::Event(number.parse().ok().filter(|number| *number > 0)?),
        ("byte", number) => Point::Byte(number.parse().ok().filter(|number| *number > 0)?),
        _ => return None,
    })
}

/// `20ms`, `1.5s` or `300us`; at most a day.
fn duration_of(text: &str) -> Option<Duration> {
    let split = text.find(|character: char| character.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let unit_seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    let seconds = number.parse::<f64>().ok()? * unit_seconds;
    Some(seconds).filter(|seconds| (0.0..=86_400.0).contains(seconds)).map(Duration::from_secs_f64)
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Request => f.write_str("request"),
            Self::Head => f.write_str("head"),
            Self::Body => f.write_str("body"),
            Self::Event(number) => write!(f, "event:{number}"),
            Self::EveryEvent => f.write_str("event:*"),
            Self::Byte(bytes) => write!(f, "byte:{bytes}"),
            Self::End => f.write_str("end"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(duration) => write!(f, "delay={}us", duration.as_micros()),
            Self::Stall => f.write_str("stall"),
            Self::Fin => f.write_str("fin"),
            Self::Rst => f.write_str("rst"),
            Self::Garble => f.write_str("garble"),
            Self::Drop => f.write_str("drop"),
            Self::Error => f.write_str("error"),
            Self::BadChunk => f.write_str("badchunk"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.steps.iter().map(|step| format!("{}@{}", step.action, step.at)).collect();
        parts.extend(self.status.map(|status| format!("status={status}")));
        parts.extend(self.retry_after.as_ref().map(|value| format!("retry-after={value}")));
        parts.extend(self.content_type.as_ref().map(|value| format!("content-type={value}")));
        parts.extend(
            Some(self.header_padding).filter(|bytes| *bytes > 0).map(|bytes| format!("header-padding={bytes}")),
        );
        parts.extend(Some(self.length_error).filter(|bytes| *bytes != 0).map(|bytes| format!("length={bytes:+}")));
        parts.extend(self.fragment.map(|bytes| format!("fragment={bytes}")));
        let flags = [
            (self.endless, "endless"),
            (self.garbage, "garbage"),
            (self.no_terminal, "nodone"),
            (self.hangup, "hangup"),
            (self.raw_head, "rawhead"),
        ];
        parts.extend(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| (*name).to_owned()));
        parts.extend(self.body.as_ref().map(|body| format!("body={body}")));
        f.write_str(&parts.join(","))
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};

    use super::*;

    #[test]
    fn what_can_be_read_is_written_so_that_it_reads_the_same() {
        let text = "delay=20ms@event:*,rst@byte:7,status=503,retry-after=2,length=-3,fragment=1,nodone,header-padding=9,body=x, y";
        let random = SplitMix::new(9);
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..random.below(4) {
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                bytes[at] = u8::try_from(32 + random.below(95)).unwrap();
            }
            bytes.truncate(usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap());
            let mutated = String::from_utf8(bytes).unwrap();
            if let Ok(fault) = mutated.parse::<Fault>() {
                accepted += 1;
                assert_eq!(fault.to_string().parse::<Fault>().unwrap().to_string(), fault.to_string(), "{mutated}");
            }
        }
        assert!(accepted > 1000, "{accepted}");
    }
}
