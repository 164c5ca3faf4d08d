//! Reports as pictures.

use std::fmt::Write as _;

use super::report::{Family, Report, Row};

const WIDTH: f64 = 1_080.0;
const MARGIN: f64 = 24.0;
const LABELS: f64 = 196.0;
const GAP: f64 = 30.0;
const ROW: f64 = 26.0;
const BAR: f64 = 14.0;
const LINES_HEIGHT: f64 = 260.0;

/// Seconds between which times to the first token are drawn.
const TTFT_MIN: f64 = 0.05;

const INK: &str = "#1f2937";
const FAINT: &str = "#9ca3af";
const RULE: &str = "#e5e7eb";

/// What rows are called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Labels {
    Names,
    WithGateways,
}

impl Report {
    /// A picture: for each row the share found in caches, the times to the first token and the imbalance; and, where rows differ
    /// in the number of gateways, how the first two go with that.
    pub fn svg(&self) -> String {
        let mut counts: Vec<usize> =
            self.rows.iter().filter(|row| row.family != Family::Perfect).map(|row| row.gateways).collect();
        counts.sort_unstable();
        counts.dedup();
        let mut canvas = Canvas::default();
        let mut y = MARGIN;
        canvas.text(MARGIN, y + 14.0, &self.title, Style { size: 17.0, ..Style::default() });
        y += 26.0;
        for condition in &self.conditions {
            canvas.text(MARGIN, y + 10.0, condition, Style { color: "#4b5563", ..Style::default() });
            y += 16.0;
        }
        y = self.legend(&mut canvas, y + 6.0);
        let labels = if counts.len() > 1 { Labels::WithGateways } else { Labels::Names };
        y = self.bars(&mut canvas, y + 30.0, labels);
        if counts.len() > 1 {
            y = self.lines(&mut canvas, y + 40.0, &counts);
        }
        canvas.finish(y + MARGIN)
    }

    /// A page with the picture and all figures.
    pub fn html(&self) -> String {
        let mut page = String::from(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<style>\n\
             body { font: 14px system-ui, sans-serif; color: #1f2937; margin: 2em auto; max-width: 1180px; padding: 0 1em }\n\
             svg { width: 100%; height: auto }\n\
             table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: 2em }\n\
             th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #e5e7eb; white-space: nowrap }\n\
             th:first-child, td:first-child { text-align: left }\n\
             </style>\n",
        );
        let _ = write!(page, "<title>{}</title></head><body>\n{}\n<table>\n<tr>", escaped(&self.title), self.svg());
        for name in Self::COLUMNS {
            let _ = write!(page, "<th>{name}</th>");
        }
        page.push_str("</tr>\n");
        for row in &self.rows {
            page.push_str("<tr>");
            for cell in Self::cells(row) {
                let _ = write!(page, "<td>{}</td>", escaped(&cell));
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</table>\n</body></html>\n");
        page
    }

    fn legend(&self, canvas: &mut Canvas, y: f64) -> f64 {
        let kinds = [
            (Family::Perfect, "one gateway that knows all at once"),
            (Family::Policy, "policies of smg"),
            (Family::Model, "models of other routers\u{2019} rules"),
        ];
        let mut x = MARGIN;
        for (family, what) in kinds {
            if self.rows.iter().any(|row| row.family == family) {
                canvas.bar(x, y + 3.0, 12.0, 12.0, color(family));
                canvas.text(x + 18.0, y + 13.0, what, Style::default());
                x += 250.0;
            }
        }
        y + 18.0
    }

    fn bars(&self, canvas: &mut Canvas, y: f64, labels: Labels) -> f64 {
        let names_gateways = labels == Labels::WithGateways;
        let panel = (WIDTH - 2.0 * MARGIN - LABELS - 2.0 * GAP) / 4.0;
        let hits = Axis::linear(MARGIN + LABELS, panel * 1.2, 0.0, self.hit_max());
        let ttft = Axis::log(hits.end() + GAP, panel * 2.0, TTFT_MIN, self.ttft_max());
        let imbalance = Axis::linear(ttft.end() + GAP, panel * 0.8, 0.0, self.imbalance_max());
        let bottom = y + 8.0 + ROW * count(self.rows.len());
        let title = |canvas: &mut Canvas, axis: &Axis, what: &str| {
            canvas.text(axis.start, y - 6.0, what, Style { is_bold: true, ..Style::default() });
        };
        title(canvas, &hits, "prompt tokens found in caches");
        title(canvas, &ttft, "time to first token: p50 to p90, p99 |, mean \u{25cf}");
        title(canvas, &imbalance, "busiest engine \u{f7} mean");
        hits.grid(canvas, y, bottom, &steps(0.1, self.hit_max()), |value| format!("{:.0} %", value * 100.0));
        ttft.grid(canvas, y, bottom, &[0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0], |value| format!("{value} s"));
        let whole = if self.imbalance_max() > 8.0 { (self.imbalance_max() / 4.0).ceil() } else { 1.0 };
        imbalance.grid(canvas, y, bottom, &steps(whole, self.imbalance_max()), |value| format!("{value:.0}"));
        for (index, row) in self.rows.iter().enumerate() {
            let middle = y + 8.0 + ROW * (count(index) + 0.5);
            let name = if names_gateways && row.family != Family::Perfect {
                format!("{} \u{d7} {}", row.name, row.gateways)
            } else {
                row.name.clone()
            };
            canvas.text(MARGIN + LABELS - 10.0, middle + 4.0, &name, Style { anchor: "end", ..Style::default() });
            row.draw(canvas, middle, [&hits, &ttft, &imbalance]);
        }
        if let Some(infinite) = self.rows.iter().map(|row| row.infinite_share).reduce(f64::max) {
            canvas.dashes(hits.at(infinite), y, bottom);
            let style = Style { anchor: "middle", color: "#4b5563", ..Style::default() };
            canvas.text(hits.at(infinite), bottom + 28.0, "cache without end", style);
        }
        bottom + 30.0
    }

    fn lines(&self, canvas: &mut Canvas, y: f64, counts: &[usize]) -> f64 {
        let width = (WIDTH - 2.0 * MARGIN - LABELS - 2.0 * GAP) / 2.0;
        let names: Vec<&str> = {
            let mut names: Vec<&str> = Vec::new();
            for row in self.rows.iter().filter(|row| row.family != Family::Perfect) {
                if !names.contains(&row.name.as_str()) {
                    names.push(&row.name);
                }
            }
            names
        };
        let hit: &dyn Fn(&Row) -> f64 = &|row| row.hit_share.mean;
        let ttft: &dyn Fn(&Row) -> f64 = &|row| row.ttft_mean.mean;
        let perfect = self.rows.iter().find(|row| row.family == Family::Perfect);
        let panels = [
            ("found in caches, by number of gateways", hit, Axis::linear(0.0, LINES_HEIGHT, 0.0, self.hit_max())),
            ("mean time to first token", ttft, Axis::log(0.0, LINES_HEIGHT, TTFT_MIN * 4.0, self.ttft_mean_max())),
        ];
        for (number, (title, value, scale)) in panels.into_iter().enumerate() {
            let left = MARGIN + 44.0 + count(number) * (width + GAP + 24.0);
            let across = Axis::linear(left, width - 20.0, 0.0, count(counts.len() - 1));
            let up = |value: f64| y + LINES_HEIGHT - scale.at(value);
            canvas.text(left, y - 10.0, title, Style { is_bold: true, ..Style::default() });
            let marks = if number == 0 { steps(0.1, scale.high) } else { vec![0.3, 1.0, 3.0, 10.0, 30.0] };
            for mark in marks.into_iter().filter(|mark| (scale.low..=scale.high).contains(mark)) {
                canvas.line((left, up(mark)), (across.end(), up(mark)), RULE, 1.0);
                let text = if number == 0 { format!("{:.0} %", mark * 100.0) } else { format!("{mark} s") };
                canvas.text(
                    left - 6.0,
                    up(mark) + 4.0,
                    &text,
                    Style { anchor: "end", color: FAINT, ..Style::default() },
                );
            }
            for (place, gateways) in counts.iter().enumerate() {
                let style = Style { anchor: "middle", color: FAINT, ..Style::default() };
                canvas.text(across.at(count(place)), y + LINES_HEIGHT + 18.0, &gateways.to_string(), style);
            }
            if let Some(perfect) = perfect {
                canvas.line(
                    (left, up(value(perfect))),
                    (across.end(), up(value(perfect))),
                    color(Family::Perfect),
                    2.0,
                );
            }
            for (index, name) in names.iter().enumerate() {
                let rows = self.rows.iter().filter(|row| row.name == *name && row.family != Family::Perfect);
                let points: Vec<(f64, f64)> = rows
                    .filter_map(|row| {
                        let place = counts.iter().position(|gateways| *gateways == row.gateways)?;
                        Some((across.at(count(place)), up(value(row).clamp(scale.low, scale.high))))
                    })
                    .collect();
                canvas.path(&points, LINES[index % LINES.len()]);
            }
        }
        let x = WIDTH - MARGIN - LABELS + 30.0;
        for (index, name) in names.iter().enumerate() {
            let at = y + 10.0 + 18.0 * count(index);
            canvas.line((x, at), (x + 18.0, at), LINES[index % LINES.len()], 2.5);
            canvas.text(x + 24.0, at + 4.0, name, Style::default());
        }
        y + LINES_HEIGHT + 24.0
    }

    fn hit_max(&self) -> f64 {
        self.rows.iter().map(|row| row.infinite_share.max(row.hit_share.mean)).fold(0.1, f64::max) * 1.08
    }

    fn ttft_max(&self) -> f64 {
        self.rows.iter().map(|row| row.ttft_p99).fold(1.0, f64::max) * 1.1
    }

    fn ttft_mean_max(&self) -> f64 {
        self.rows.iter().map(|row| row.ttft_mean.mean).fold(1.0, f64::max) * 1.2
    }

    fn imbalance_max(&self) -> f64 {
        self.rows.iter().map(|row| row.imbalance).fold(2.0, f64::max) * 1.1
    }
}

impl Row {
    fn draw(&self, canvas: &mut Canvas, middle: f64, [hits, ttft, imbalance]: [&Axis; 3]) {
        let (top, fill) = (middle - BAR / 2.0, color(self.family));
        let text = Style { color: "#374151", size: 11.0, ..Style::default() };
        canvas.bar(hits.start, top, hits.at(self.hit_share.mean) - hits.start, BAR, fill);
        let share = format!("{:.1} %", self.hit_share.mean * 100.0);
        canvas.text(hits.start + 6.0, middle + 4.0, &share, Style { color: "#ffffff", ..text });
        let [p50, p90, p99] = [self.ttft_p50, self.ttft_p90, self.ttft_p99].map(|value| ttft.at(value.max(TTFT_MIN)));
        canvas.line((p90, middle), (p99, middle), fill, 1.5);
        canvas.bar(p50, top, p90 - p50, BAR, fill);
        canvas.line((p99, top), (p99, top + BAR), fill, 2.0);
        canvas.dot((ttft.at(self.ttft_mean.mean.max(TTFT_MIN)), middle));
        let mean = format!("{:.2}", self.ttft_mean.mean);
        canvas.text(p50 - 6.0, middle + 4.0, &mean, Style { anchor: "end", ..text });
        canvas.bar(imbalance.start, top, imbalance.at(self.imbalance) - imbalance.start, BAR, fill);
        let times = format!("{:.2}", self.imbalance);
        canvas.text(imbalance.start + 6.0, middle + 4.0, &times, Style { color: "#ffffff", ..text });
    }
}

/// Colours of lines, told apart by those who see red and green alike.
const LINES: [&str; 10] =
    ["#2563eb", "#d97706", "#0f766e", "#be185d", "#6b7280", "#7c3aed", "#65a30d", "#0891b2", "#92400e", "#111827"];

fn color(family: Family) -> &'static str {
    match family {
        Family::Policy => "#2563eb",
        Family::Model => "#b45309",
        Family::Perfect => "#047857",
    }
}

/// Values along a stretch of the picture.
struct Axis {
    start: f64,
    length: f64,
    low: f64,
    high: f64,
    is_log: bool,
}

impl Axis {
    fn linear(start: f64, length: f64, low: f64, high: f64) -> Self {
        Self { start, length, low, high, is_log: false }
    }

    fn log(start: f64, length: f64, low: f64, high: f64) -> Self {
        Self { start, length, low, high, is_log: true }
    }

    fn end(&self) -> f64 {
        self.start + self.length
    }

    fn at(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.start + self.length * share.clamp(0.0, 1.0)
    }

    fn grid(&self, canvas: &mut Canvas, top: f64, bottom: f64, marks: &[f64], name: impl Fn(f64) -> String) {
        for mark in marks.iter().filter(|mark| (self.low..=self.high).contains(*mark)) {
            canvas.line((self.at(*mark), top), (self.at(*mark), bottom), RULE, 1.0);
            let style = Style { anchor: "middle", color: FAINT, size: 11.0, ..Style::default() };
            canvas.text(self.at(*mark), bottom + 14.0, &name(*mark), style);
        }
    }
}

/// Marks `step` apart, no more than fit.
fn steps(step: f64, high: f64) -> Vec<f64> {
    (0..12).map(|number| step * f64::from(number)).take_while(|mark| *mark <= high).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a count of rows")]
fn count(number: usize) -> f64 {
    number as f64
}

#[derive(Clone, Copy)]
struct Style {
    size: f64,
    anchor: &'static str,
    color: &'static str,
    is_bold: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self { size: 12.0, anchor: "start", color: INK, is_bold: false }
    }
}

/// Shapes, one after the other.
#[derive(Default)]
struct Canvas(String);

impl Canvas {
    fn text(&mut self, x: f64, y: f64, text: &str, style: Style) {
        let Style { size, anchor, color, is_bold } = style;
        let weight = if is_bold || size > 15.0 { "600" } else { "400" };
        let text = escaped(text);
        self.shape(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" font-weight=\"{weight}\" \
             text-anchor=\"{anchor}\" fill=\"{color}\">{text}</text>"
        ));
    }

    fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, color: &str) {
        let width = width.max(0.5);
        self.shape(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\" fill=\"{color}\"/>"
        ));
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), color: &str, width: f64) {
        self.shape(format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{color}\" stroke-width=\"{width}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    fn dashes(&mut self, x: f64, top: f64, bottom: f64) {
        self.shape(format_args!(
            "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"{INK}\" \
             stroke-dasharray=\"4 3\"/>"
        ));
    }

    fn dot(&mut self, (x, y): (f64, f64)) {
        self.shape(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"#ffffff\" stroke=\"{INK}\" stroke-width=\"1.5\"/>"
        ));
    }

    fn path(&mut self, points: &[(f64, f64)], color: &str) {
        let along: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let along = along.join(" ");
        self.shape(format_args!(
            "<polyline points=\"{along}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2.5\"/>"
        ));
        for (x, y) in points {
            self.shape(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"));
        }
    }

    fn shape(&mut self, shape: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.0, "{shape}");
    }

    fn finish(self, height: f64) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
             height=\"{height:.0}\" font-family=\"system-ui, 'DejaVu Sans', sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.0
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Figures;

    #[test]
    fn pictures_hold_every_row_and_no_markup_of_others() {
        let figures = Figures { input_tokens: 10, hit_tokens: 3, reusable_tokens: 4, ..Figures::default() };
        let figures = Figures { ttft: vec![0.5, 1.5], imbalance: 1.25, ..figures };
        let row =
            |name: &str, family, gateways| Row::new(name.to_owned(), family, gateways, std::slice::from_ref(&figures));
        let rows =
            vec![row("perfect", Family::Perfect, 1), row("a<b", Family::Policy, 4), row("a<b", Family::Policy, 8)];
        let report = Report { title: "t & u".to_owned(), conditions: vec!["c".to_owned()], rows };
        let page = report.html();
        for expected in ["t &amp; u", "a&lt;b \u{d7} 4", "a&lt;b \u{d7} 8", "30.0 %", "1.25", "<polyline", "<td>75.0"] {
            assert!(page.contains(expected), "{expected} in {page}");
        }
        assert!(!page.contains("a<b") && !page.contains("NaN"));
    }
}
