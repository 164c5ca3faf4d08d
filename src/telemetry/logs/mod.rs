//! Log lines: their formats, the threads that write them, and daily files.

mod daily;
mod format;
mod sink;

pub(crate) use daily::DailyFile;
pub(crate) use format::{Style, layer};
pub(crate) use sink::Sink;
#[cfg(test)]
pub(crate) use sink::tests;
