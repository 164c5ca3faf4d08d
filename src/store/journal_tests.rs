use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use smg_base::{Random as _, SplitMix, fuzz};
use tempfile::TempDir;

use super::*;

/// What a journal is to hold, kept the plain way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    boot: Option<u64>,
    lanes: BTreeMap<(u128, u8), ModelLane>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ModelLane {
    epoch: u64,
    collected: u64,
    version: u64,
    entries: BTreeMap<Bytes, (u64, Option<Bytes>)>,
}

impl Model {
    fn of(rows: &[Row]) -> Self {
        let mut model = Self::default();
        rows.iter().for_each(|row| model.apply(row));
        model
    }

    fn apply(&mut self, row: &Row) {
        match row.clone() {
            Row::Boot(boot) => self.boot = Some(boot),
            Row::Lane { writer, kind, epoch, collected, version } => {
                let lane = ModelLane { epoch, collected, version: version.max(collected), ..ModelLane::default() };
                self.lanes.insert((writer, kind), lane);
            }
            Row::Entry { writer, kind, key, version, value } => {
                let lane = self.lanes.get_mut(&(writer, kind)).expect("the tests write lanes first");
                lane.version = lane.version.max(version);
                lane.entries.insert(key, (version, value));
            }
            Row::Collect { writer, kind, collected } => {
                let Some(lane) = self.lanes.get_mut(&(writer, kind)) else { return };
                lane.entries.retain(|_, (version, value)| value.is_some() || *version > collected);
                lane.collected = collected;
                lane.version = lane.version.max(collected);
            }
            Row::Drop { writer, kind } => drop(self.lanes.remove(&(writer, kind))),
        }
    }
}

fn lane(writer: u128, kind: u8, epoch: u64) -> Row {
    Row::Lane { writer, kind, epoch, collected: 0, version: 0 }
}

fn entry(writer: u128, key: &'static str, version: u64, value: Option<&'static str>) -> Row {
    let (key, value) = (Bytes::from_static(key.as_bytes()), value.map(|value| Bytes::from_static(value.as_bytes())));
    Row::Entry { writer, kind: 1, key, version, value }
}

fn collect(writer: u128, collected: u64) -> Row {
    Row::Collect { writer, kind: 1, collected }
}

fn loaded(folder: &Path) -> Model {
    Model::of(&Journal::open(folder).unwrap().load().unwrap())
}

#[test]
fn what_is_appended_is_there_when_opened_again() {
    let check = |batches: &[&[Row]]| {
        let folder = TempDir::new().unwrap();
        let mut model = Model::default();
        for batch in batches {
            let mut journal = Journal::open(folder.path()).unwrap();
            assert_eq!(Model::of(&journal.load().unwrap()), model, "{batches:?}");
            journal.append(batch).unwrap();
            batch.iter().for_each(|row| model.apply(row));
            assert_eq!(Model::of(&journal.load().unwrap()), model, "{batches:?}");
        }
        assert_eq!(loaded(folder.path()), model, "{batches:?}");
    };
    check(&[&[]]);
    check(&[&[Row::Boot(1)], &[Row::Boot(u64::MAX)], &[Row::Boot(0)]]);
    check(&[&[lane(1, 1, 5), entry(1, "a", 1, Some("x")), entry(1, "a", 2, Some("y")), entry(1, "", 3, Some(""))]]);
    // A tombstone is kept until it is collected, and what is newer stays.
    check(&[
        &[lane(1, 1, 5), entry(1, "a", 1, Some("x")), entry(1, "b", 2, None), entry(1, "c", 3, None)],
        &[collect(1, 2)],
        &[entry(1, "c", 4, Some("z"))],
        &[collect(1, 4), collect(1, 9)],
    ]);
    // A lane begins anew with any epoch, greater, smaller or the same.
    check(&[&[lane(1, 1, 5), entry(1, "a", 1, Some("x"))], &[lane(1, 1, 5)], &[lane(1, 1, 6)]]);
    check(&[&[lane(1, 1, 5), entry(1, "a", 1, Some("x"))], &[lane(1, 1, 4), entry(1, "b", 1, Some("y"))]]);
    // Lanes of other writers and kinds are left alone.
    check(&[
        &[lane(1, 1, 5), lane(u128::MAX, 1, 1), lane(1, 255, 1), entry(u128::MAX, "a", 7, Some("x"))],
        &[Row::Drop { writer: 1, kind: 1 }, Row::Drop { writer: 9, kind: 9 }, collect(9, 9)],
    ]);
    // Numbers beyond SQLite's own.
    check(&[
        &[
            lane(1, 1, u64::MAX),
            entry(1, "a", u64::MAX - 1, None),
            entry(1, "b", 1 << 63, None),
            entry(1, "c", 3, None),
        ],
        &[collect(1, 5)],
        &[collect(1, 1 << 63)],
    ]);
}

/// Batches that a mesh might write: every writer's lane first, then changes of all kinds.
fn batches(seed: u64, count: usize) -> Vec<Vec<Row>> {
    let random = SplitMix::new(seed);
    let writers = 3;
    let mut made = vec![(0..writers).map(|writer| lane(writer, 1, 1)).collect::<Vec<_>>()];
    let mut version = 0;
    for _ in 1..count {
        let size = 1 + random.below(8);
        let rows = (0..size).map(|_| {
            version += 1;
            let writer = u128::from(random.below(3)) % writers;
            match random.below(20) {
                0 => Row::Boot(version),
                1 => lane(writer, 1, 1 + random.below(3)),
                2 => collect(writer, version.saturating_sub(random.below(20))),
                _ => {
                    let key = Bytes::from(format!("worker {}", random.below(30)));
                    let value = vec![random.below(256) as u8; usize::try_from(random.below(600)).unwrap()];
                    let value = (random.below(4) > 0).then(|| Bytes::from(value));
                    Row::Entry { writer, kind: 1, key, version, value }
                }
            }
        });
        made.push(rows.collect());
    }
    made
}

#[test]
fn random_batches_give_what_the_model_gives() {
    for seed in 0..20 {
        let folder = TempDir::new().unwrap();
        let mut journal = Journal::open(folder.path()).unwrap();
        let mut model = Model::default();
        for batch in batches(seed, 40) {
            journal.append(&batch).unwrap();
            batch.iter().for_each(|row| model.apply(row));
        }
        assert!(Model::of(&journal.load().unwrap()) == model, "seed {seed}");
        drop(journal);
        assert!(loaded(folder.path()) == model, "seed {seed}, opened again");
    }
}

#[test]
fn a_batch_that_fails_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let mut journal = Journal::open(folder.path()).unwrap();
    journal.append(&[lane(1, 1, 5), entry(1, "a", 1, Some("x"))]).unwrap();
    let before = journal.load().unwrap();
    let error = journal.append(&[Row::Boot(3), entry(1, "a", 2, None), entry(2, "a", 1, Some("y"))]).unwrap_err();
    assert!(matches!(error, Error::UnknownLane { kind: 1 }), "{error}");
    assert_eq!(journal.load().unwrap(), before);
    journal.append(&[entry(1, "a", 2, Some("z"))]).unwrap();
}

#[test]
fn a_folder_has_one_journal_open_at_a_time() {
    let folder = TempDir::new().unwrap();
    let first = Journal::open(folder.path()).unwrap();
    let error = Journal::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(error.to_string().contains("--data-dir"), "{error}");
    drop(first);
    Journal::open(folder.path()).unwrap();
}

#[test]
fn only_its_user_reads_it() {
    let root = TempDir::new().unwrap();
    let folder = root.path().join("new").join("data");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let mut journal = Journal::open(&folder).unwrap();
    journal.append(&[Row::Boot(1)]).unwrap();
    assert_eq!(mode(&folder), FOLDER_MODE);
    let files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|found| found.unwrap().path()).collect();
    assert!(files.len() >= 2, "{files:?}");
    files.iter().for_each(|file| assert_eq!(mode(file), FILE_MODE, "{}", file.display()));
    drop(journal);
    // A copy that others could read is narrowed.
    fs::set_permissions(folder.join(FILE), Permissions::from_mode(0o644)).unwrap();
    Journal::open(&folder).unwrap();
    assert_eq!(mode(&folder.join(FILE)), FILE_MODE);
}

#[test]
fn files_that_are_no_journal_of_this_version_are_named_and_left_alone() {
    let check = |write: &dyn Fn(&Path), expected: &str| {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join(FILE);
        write(&file);
        let before = fs::read(&file).unwrap();
        let error = Journal::open(folder.path()).map(drop).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
        assert_eq!(fs::read(&file).unwrap(), before, "{expected}");
    };
    let made = |file: &Path, sql: &str| {
        Journal::open(file.parent().unwrap()).unwrap();
        Connection::open(file).unwrap().execute_batch(sql).unwrap();
    };
    check(&|file| made(file, "PRAGMA user_version = 2"), "schema 2, and this version of smg knows up to 1");
    check(&|file| made(file, "PRAGMA user_version = 0"), "damaged (there is no schema 0)");
    check(&|file| made(file, "PRAGMA application_id = 7"), "is not a journal of smg");
    check(&|file| fs::write(file, "not a database, but long enough to look at".repeat(20)).unwrap(), "damaged");
    let other = |file: &Path| Connection::open(file).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    check(&other, "is not a journal of smg");
}

#[test]
fn rows_changed_behind_its_back_are_not_believed() {
    let check = |sql: &str| {
        let folder = TempDir::new().unwrap();
        let mut journal = Journal::open(folder.path()).unwrap();
        journal.append(&[Row::Boot(4), lane(1, 1, 5), entry(1, "a", 1, Some("x")), entry(1, "b", 2, None)]).unwrap();
        drop(journal);
        assert_eq!(Connection::open(folder.path().join(FILE)).unwrap().execute(sql, []).unwrap(), 1, "{sql}");
        let error = Journal::open(folder.path()).unwrap().load().unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{sql}: {error}");
        assert!(error.to_string().contains("move it away"), "{error}");
    };
    check("UPDATE number SET value = 3");
    check("UPDATE number SET name = 'boat'");
    check("UPDATE lane SET epoch = 6");
    check("UPDATE lane SET writer = x'00'");
    check("UPDATE lane SET kind = 256");
    check("DELETE FROM lane");
    check("UPDATE entry SET value = x'79' WHERE value IS NOT NULL");
    check("UPDATE entry SET value = NULL WHERE value IS NOT NULL");
    check("UPDATE entry SET value = x'' WHERE value IS NULL");
    check("UPDATE entry SET version = 9 WHERE value IS NULL");
    check("UPDATE entry SET key = x'00' WHERE value IS NULL");
}

#[test]
fn a_full_or_read_only_disk_is_told_and_the_journal_goes_on() {
    let folder = TempDir::new().unwrap();
    let bounds = Bounds { bytes_max: 64 << 10 };
    let mut journal = Journal::open_within(folder.path(), bounds).unwrap();
    journal.append(&[lane(1, 1, 5)]).unwrap();
    let row = |version| {
        let key = Bytes::from(format!("{version}"));
        Row::Entry { writer: 1, kind: 1, key, version, value: Some(Bytes::from(vec![7; 1_000])) }
    };
    let kept = (1..1_000).take_while(|version| journal.append(&[row(*version)]).is_ok()).count() as u64;
    assert!((30..64).contains(&kept), "{kept}");
    let error = journal.append(&[row(kept + 1)]).unwrap_err();
    assert!(matches!(error, Error::Full { bytes_max: 65_536, .. }), "{error}");
    assert_eq!(journal.load().unwrap().len() as u64, 1 + kept);
    // What is dropped makes room.
    journal.append(&[lane(1, 1, 6)]).unwrap();
    journal.append(&[row(1)]).unwrap();
    journal.database.pragma_update(None, "query_only", true).unwrap();
    let error = journal.append(&[Row::Boot(1)]).unwrap_err();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    let error = Journal::open(Path::new("/proc/self/no/such")).unwrap_err();
    assert!(matches!(error, Error::Folder { .. }), "{error}");
}

#[test]
fn the_log_beside_the_file_stays_small() {
    let folder = TempDir::new().unwrap();
    let mut journal = Journal::open(folder.path()).unwrap();
    journal.append(&[lane(1, 1, 5)]).unwrap();
    for version in 1..1_500 {
        let value = Some(Bytes::from(vec![7; 8_000]));
        journal.append(&[Row::Entry { writer: 1, kind: 1, key: Bytes::from_static(b"a"), version, value }]).unwrap();
    }
    let bytes = |name: String| fs::metadata(folder.path().join(name)).unwrap().len();
    assert!(bytes(format!("{FILE}-wal")) < 8 << 20);
    assert!(bytes(FILE.to_owned()) < 1 << 20);
}

/// Copies the folder as a crash would leave it: the database and the log, both as they are now.
fn crash_image(from: &Path, log_bytes: Option<usize>) -> TempDir {
    let image = TempDir::new().unwrap();
    fs::copy(from.join(FILE), image.path().join(FILE)).unwrap();
    let name = format!("{FILE}-wal");
    let mut log = fs::read(from.join(&name)).unwrap_or_default();
    log.truncate(log_bytes.unwrap_or(usize::MAX));
    fs::write(image.path().join(name), log).unwrap();
    image
}

#[test]
fn a_power_cut_leaves_whole_batches_in_order() {
    let folder = TempDir::new().unwrap();
    let mut journal = Journal::open(folder.path()).unwrap();
    let mut models = vec![Model::default()];
    for batch in batches(7, 20) {
        journal.append(&batch).unwrap();
        let mut model = models.last().unwrap().clone();
        batch.iter().for_each(|row| model.apply(row));
        models.push(model);
    }
    assert!(loaded(crash_image(folder.path(), None).path()) == *models.last().unwrap());
    let log = usize::try_from(fs::metadata(folder.path().join(format!("{FILE}-wal"))).unwrap().len()).unwrap();
    let mut reached = 0;
    for bytes in (0..=log).step_by(997) {
        let image = crash_image(folder.path(), Some(bytes));
        let Ok(mut cut) = Journal::open(image.path()) else { panic!("a log of {bytes} bytes is refused") };
        let found = Model::of(&cut.load().unwrap());
        let at = models.iter().position(|model| *model == found);
        let at = at.unwrap_or_else(|| panic!("a log of {bytes} bytes gives part of a batch"));
        assert!(at >= reached, "a log of {bytes} bytes gives less than a shorter one");
        reached = at;
    }
    assert!(reached >= models.len() - 2, "{reached}");
}

const CHILD: &str = "SMG_STORE_CHILD";

/// Appends until it is killed; says after each batch that it is on disk. Only the test below starts it with a folder.
#[test]
fn child() {
    let Some(folder) = env::var_os(CHILD) else { return };
    let mut journal = Journal::open(Path::new(&folder)).unwrap();
    for (batch, number) in batches(3, 2_000).iter().zip(1..) {
        journal.append(batch).unwrap();
        println!("\nwritten {number}");
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_was_told_is_written() {
    for kill_after in [1, 2, 5, 17] {
        let folder = TempDir::new().unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "journal::tests::child", "--nocapture"]).env(CHILD, folder.path());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut told = lines.filter_map(|line| line.strip_prefix("written ")?.parse::<usize>().ok());
        let written = told.find(|number| *number >= kill_after).expect("the child writes");
        process.kill().unwrap();
        process.wait().unwrap();
        let written = told.last().unwrap_or(written);
        let found = loaded(folder.path());
        let mut model = Model::default();
        let models = batches(3, 2_000).into_iter().map(|batch| {
            batch.iter().for_each(|row| model.apply(row));
            model.clone()
        });
        // One more may have reached the disk before its line was out.
        let candidates: Vec<Model> = models.skip(written - 1).take(2).collect();
        assert!(candidates.contains(&found), "killed after {written}");
    }
}

#[test]
fn mutated_files_are_read_as_written_or_refused() {
    let folder = TempDir::new().unwrap();
    let mut journal = Journal::open(folder.path()).unwrap();
    for batch in batches(11, 30) {
        journal.append(&batch).unwrap();
    }
    let expected = Model::of(&journal.load().unwrap());
    drop(journal);
    let good = fs::read(folder.path().join(FILE)).unwrap();
    let random = SplitMix::new(fuzz::seed(5));
    let (mut refused, inputs) = (0_u64, fuzz::inputs(300));
    for input in 0..inputs {
        let mut bytes = good.clone();
        for _ in 0..=random.below(4) {
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            match random.below(8) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at..].fill(0),
                _ => bytes[at] ^= 1 << random.below(8),
            }
        }
        let image = TempDir::new().unwrap();
        fs::write(image.path().join(FILE), bytes).unwrap();
        let Ok(mut journal) = Journal::open(image.path()) else {
            refused += 1;
            continue;
        };
        match journal.load() {
            Ok(rows) => {
                assert!(Model::of(&rows) == expected, "input {input} gives other rows than were written");
                // Where pages nobody reads are damaged, writing may fail; it may not panic.
                let _ = journal.append(&[Row::Boot(1)]);
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > inputs / 4, "{refused} of {inputs}: the test changes nothing that matters");
}
