//! Requests per second, latency and CPU over concurrency, size and shape; and events relayed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::chart::Panel;
use super::super::children::{Canned, Server};
use super::super::failure::Failure;
use super::super::generator::Job;
use super::super::options::{Contender, Shape};
use super::super::series::median;
use super::super::table::{Table, bytes, figure};
use super::super::verdict::Side::{AtLeast, AtMost};
use super::{Bench, Sample, measure};

/// A plain answer, and a stream as long as a short chat answer.
const CHAT: Canned =
    Canned { body_bytes: 1024, events: 128, event_bytes: 256, event_interval: Duration::ZERO, framing: "chunk" };
/// Streams so long that what a request costs does not matter.
const LONG: Canned =
    Canned { body_bytes: 1024, events: 2000, event_bytes: 256, event_interval: Duration::ZERO, framing: "chunk" };
const EVENTS_CONCURRENCY: usize = 16;

const SMALL: usize = 1 << 10;

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    shape: Shape,
    body_bytes: usize,
    concurrency: usize,
}

/// The rounds of each contender at each point.
#[derive(Default)]
struct Grid(BTreeMap<(Point, Contender), Vec<Sample>>);

impl Grid {
    /// The median over rounds; none if nothing was measured.
    fn median(&self, point: Point, contender: Contender, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.0.get(&(point, contender))?.iter().filter_map(of))
    }

    /// The median over rounds of what two contenders gave in the same round.
    fn paired(&self, point: Point, [left, right]: [Contender; 2], of: impl Fn(&Sample, &Sample) -> f64) -> Option<f64> {
        let (left, right) = (self.0.get(&(point, left))?, self.0.get(&(point, right))?);
        median(left.iter().zip(right).map(|(left, right)| of(left, right)))
    }

    /// Microseconds that a contender adds to a direct connection.
    fn added(&self, point: Point, contender: Contender, of: impl Fn(&Sample) -> u64) -> Option<f64> {
        if contender == Contender::Direct {
            return None;
        }
        self.paired(point, [contender, Contender::Direct], |with, without| {
            (of(with) as f64 - of(without) as f64) / 1000.0
        })
    }
}

/// Contenders that are up, in front of one engine.
struct Field {
    engine: Server,
    proxies: BTreeMap<Contender, Server>,
}

impl Bench {
    /// The table over concurrency, size and shape.
    pub(super) fn throughput(&mut self) -> Result<(), Failure> {
        let points = self.points();
        let grid = self.take_turns(CHAT, &points)?;
        for shape in self.options.shapes.clone() {
            self.print_grid(shape, &points, &grid);
        }
        self.judge_throughput(&grid);
        self.chart_throughput(&points, &grid);
        Ok(())
    }

    /// How fast events are passed on, when they come together and when each comes alone.
    pub(super) fn events(&mut self) -> Result<(), Failure> {
        let point = Point { shape: Shape::Streamed, body_bytes: SMALL, concurrency: EVENTS_CONCURRENCY };
        let together = self.take_turns(LONG, &[point])?;
        self.print_events("events that are due together share a write", point, &together);
        let alone = self.take_turns(Canned { framing: "write", ..LONG }, &[point])?;
        self.print_events("each event is written alone", point, &alone);

        let smg = |of: &dyn Fn(&Sample) -> Option<f64>| alone.median(point, Contender::Smg, of);
        self.verdicts.judge(
            "events relayed, each written alone",
            smg(&|s| Some(s.events_per_second())),
            AtLeast,
            250_000.0,
            "1/s",
        );
        self.verdicts.judge("CPU of an event written alone", smg(&Sample::cpu_us_per_event), AtMost, 2.0, "µs");
        let proxies = self.proxies();
        let group = |label: &str, grid: &Grid| {
            let rate = |who| grid.median(point, who, |sample| Some(sample.events_per_second()));
            (label.to_owned(), proxies.iter().filter_map(|who| Some((*who, rate(*who)?))).collect())
        };
        let groups = vec![group("written together", &together), group("written alone", &alone)];
        self.panels.push(Panel { title: "Events relayed per second".to_owned(), groups });
        Ok(())
    }

    fn print_events(&self, how: &str, point: Point, grid: &Grid) {
        let mut table = Table::new(&["contender", "", "events/s", "CPU µs/event", "streams/s", "RSS MB"]);
        for contender in self.options.contenders.iter().copied() {
            let of = |of: &dyn Fn(&Sample) -> Option<f64>| figure(grid.median(point, contender, of));
            table.row([
                contender.to_string(),
                String::new(),
                of(&|sample| Some(sample.events_per_second())),
                of(&Sample::cpu_us_per_event),
                of(&|sample| Some(sample.answers_per_second())),
                of(&|sample| sample.resident_bytes.map(|bytes| bytes as f64 / 1e6)),
            ]);
        }
        let (streams, events, bytes) = (point.concurrency, LONG.events, LONG.event_bytes);
        table.print(&format!("Events relayed: {streams} streams at a time, {events} events of {bytes} bytes, {how}"));
    }

    fn points(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for shape in &self.options.shapes {
            for body_bytes in self.options.bodies() {
                for concurrency in self.options.concurrency() {
                    points.push(Point { shape: *shape, body_bytes, concurrency });
                }
            }
        }
        points
    }

    /// Every contender at every point, one after the other, in rounds; who begins changes from round to round.
    fn take_turns(&self, canned: Canned, points: &[Point]) -> Result<Grid, Failure> {
        let engine = self.programs.engine(canned)?;
        let mut proxies = BTreeMap::new();
        for contender in self.proxies() {
            proxies.extend(self.start(contender, &engine)?.map(|server| (contender, server)));
        }
        let field = Field { engine, proxies };
        let mut grid = Grid::default();
        for round in 0..self.options.rounds() {
            for point in points {
                let mut order = self.options.contenders.clone();
                let first = round % order.len();
                order.rotate_left(first);
                for contender in order {
                    let sample = self.measure_at(&field, *point, contender)?;
                    grid.0.entry((*point, contender)).or_default().push(sample);
                }
            }
        }
        Ok(grid)
    }

    fn measure_at(&self, field: &Field, point: Point, contender: Contender) -> Result<Sample, Failure> {
        let proxy = field.proxies.get(&contender);
        let job = Job {
            address: proxy.map_or(field.engine.address, |proxy| proxy.address),
            engine: field.engine.address,
            connections: point.concurrency,
            is_streamed: point.shape == Shape::Streamed,
            body_bytes: point.body_bytes,
            conversations: 8,
            warm_up: self.options.warm_up(),
            measured: self.options.measured(),
        };
        measure(&format!("{contender} at {point:?}"), proxy, &job)
    }

    fn print_grid(&self, shape: Shape, points: &[Point], grid: &Grid) {
        let mut table = Table::new(&[
            "body × at once",
            "contender",
            "requests/s",
            "÷ nginx",
            "p50 µs",
            "p99 µs",
            "added p50",
            "added p99",
            "first p50",
            "added first",
            "CPU-s/10k",
            "RSS MB",
        ]);
        for point in points.iter().filter(|point| point.shape == shape).copied() {
            for contender in self.options.contenders.iter().copied() {
                let of = |of: &dyn Fn(&Sample) -> Option<f64>| figure(grid.median(point, contender, of));
                let ratio = grid.paired(point, [contender, Contender::Nginx], |left, right| {
                    left.answers_per_second() / right.answers_per_second()
                });
                table.row([
                    format!("{} × {}", bytes(point.body_bytes), point.concurrency),
                    contender.to_string(),
                    of(&|sample| Some(sample.answers_per_second())),
                    figure(ratio),
                    of(&|sample| Some(sample.report.whole_p50 as f64 / 1000.0)),
                    of(&|sample| Some(sample.report.whole_p99 as f64 / 1000.0)),
                    figure(grid.added(point, contender, |sample| sample.report.whole_p50)),
                    figure(grid.added(point, contender, |sample| sample.report.whole_p99)),
                    of(&|sample| Some(sample.report.first_p50 as f64 / 1000.0)),
                    figure(grid.added(point, contender, |sample| sample.report.first_p50)),
                    of(&Sample::cpu_per_10_000),
                    of(&|sample| sample.resident_bytes.map(|bytes| bytes as f64 / 1e6)),
                ]);
            }
        }
        let answer = match shape {
            Shape::Plain => format!("answers of {}", bytes(CHAT.body_bytes)),
            Shape::Streamed => format!("answers of {} events of {} bytes", CHAT.events, CHAT.event_bytes),
        };
        table.print(&format!("Requests, {shape}: {answer}"));
    }

    fn judge_throughput(&mut self, grid: &Grid) {
        let at = |concurrency| Point { shape: Shape::Plain, body_bytes: SMALL, concurrency };
        let ratio = grid.paired(at(64), [Contender::Smg, Contender::Nginx], |smg, nginx| {
            smg.answers_per_second() / nginx.answers_per_second()
        });
        let cpu = grid.median(at(64), Contender::Smg, Sample::cpu_per_10_000);
        let added = grid.added(at(1), Contender::Smg, |sample| sample.report.whole_p50);
        let judge = &mut self.verdicts;
        judge.judge("requests/s ÷ nginx's, 1 KB × 64 (reach)", ratio, AtLeast, 0.6, "");
        judge.judge("requests/s ÷ nginx's, 1 KB × 64 (moonshot)", ratio, AtLeast, 0.9, "");
        judge.judge("CPU of 10 000 requests, 1 KB × 64", cpu, AtMost, 0.5, "s");
        judge.judge("added p50, 1 KB × 1", added, AtMost, 120.0, "µs");
    }

    fn chart_throughput(&mut self, points: &[Point], grid: &Grid) {
        let small = |shape| points.iter().filter(move |point| point.shape == shape && point.body_bytes == SMALL);
        let mut panel = |title: &str, shape, of: &dyn Fn(Point, Contender) -> Option<f64>| {
            let groups = small(shape).map(|point| {
                let bars = self.options.contenders.iter().filter_map(|who| Some((*who, of(*point, *who)?)));
                (format!("{} at once", point.concurrency), bars.collect())
            });
            let groups: Vec<_> = groups.collect();
            if !groups.is_empty() {
                self.panels.push(Panel { title: title.to_owned(), groups });
            }
        };
        let rate = |point, who| grid.median(point, who, |sample| Some(sample.answers_per_second()));
        panel("Requests per second, plain, 1 KB", Shape::Plain, &rate);
        panel("Streams per second, 1 KB", Shape::Streamed, &rate);
        panel("CPU seconds of 10 000 requests, plain, 1 KB", Shape::Plain, &|point, who| {
            grid.median(point, who, Sample::cpu_per_10_000)
        });
        panel("Added p50 in µs, plain, 1 KB", Shape::Plain, &|point, who| {
            grid.added(point, who, |sample| sample.report.whole_p50)
        });
    }
}
