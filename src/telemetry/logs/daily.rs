//! A file a day.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
};

use smg_base::{Clock, calendar::Day};

/// Writes to `smg.<year>-<month>-<day>` in a folder, UTC, and goes on to the next file at midnight.
pub(crate) struct DailyFile {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    day: Day,
    file: File,
}

impl DailyFile {
    /// Makes the folder if need be, and opens today's file.
    pub(crate) fn open(dir: PathBuf, clock: Arc<dyn Clock>) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let day = Day::of_unix_ms(clock.unix_ms());
        let file = open(&dir, day)?;
        Ok(Self { dir, clock, day, file })
    }
}

impl Write for DailyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let day = Day::of_unix_ms(self.clock.unix_ms());
        if day != self.day {
            self.file = open(&self.dir, day)?;
            self.day = day;
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(dir: &std::path::Path, day: Day) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(dir.join(format!("smg.{day}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smg_base::ManualClock;

    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        let check = |day: u64, expected: &str| assert_eq!(Day::of_unix_ms(day * 86_400_000).to_string(), expected);
        check(0, "1970-01-01");
        check(31, "1970-02-01");
        check(11_016, "2000-02-29");
        check(11_017, "2000-03-01");
        check(19_723, "2024-01-01");
        check(19_782, "2024-02-29");
        check(20_088, "2024-12-31");
        check(47_540, "2100-02-28");
        check(47_541, "2100-03-01");
    }

    #[test]
    fn midnight_begins_another_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("made/on/the/way");
        let clock = Arc::new(ManualClock::default());
        clock.advance(Duration::from_secs(20_088 * 86_400 + 86_399));
        let mut file = DailyFile::open(dir.clone(), Arc::clone(&clock) as Arc<dyn Clock>).expect("a file");
        file.write_all(b"old\n").expect("written");
        clock.advance(Duration::from_secs(1));
        file.write_all(b"new\n").expect("written");
        let read = |name: &str| fs::read_to_string(dir.join(name)).expect("a file");
        assert_eq!((read("smg.2024-12-31"), read("smg.2025-01-01")), ("old\n".to_owned(), "new\n".to_owned()));
    }
}
