//! The chart: panels of grouped bars as one SVG, readable on light and dark pages.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::failure::{Failure, Tried as _};
use super::options::Contender;
use super::table::figure;

/// One small chart; a group has a label and a bar for each contender.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) groups: Vec<(String, Vec<(Contender, f64)>)>,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 250.0;
const PLOT_TOP: f64 = 48.0;
const PLOT_BOTTOM: f64 = 212.0;
const MARGIN: f64 = 16.0;
const COLUMNS: usize = 2;
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#333}.t{font-size:14px;font-weight:600}.v{font-size:10px}\
     .m{fill:#777}rect.b{fill:#fff}.direct{fill:#b8bec7}.nginx{fill:#4f9a6b}.smg{fill:#3566c4}\
     @media(prefers-color-scheme:dark){text{fill:#ddd}.m{fill:#999}rect.b{fill:#16181d}}";

/// Writes the panels to a file.
pub(crate) fn write(path: &Path, panels: &[Panel], machine: &str) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).tried("making the chart's folder")?;
    }
    fs::write(path, draw(panels, machine)).tried("writing the chart")
}

fn draw(panels: &[Panel], machine: &str) -> String {
    let rows = panels.len().div_ceil(COLUMNS);
    let (width, height) = (WIDTH * COLUMNS as f64, HEIGHT * rows as f64 + 40.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\
         <title>What a proxy costs</title><style>{STYLE}</style><rect class=\"b\" width=\"{width}\" height=\"{height}\"/>"
    );
    for (index, panel) in panels.iter().enumerate() {
        let (x, y) = ((index % COLUMNS) as f64 * WIDTH, (index / COLUMNS) as f64 * HEIGHT);
        draw_panel(&mut svg, panel, x, y);
    }
    let y = height - 16.0;
    let mut x = MARGIN;
    for contender in [Contender::Direct, Contender::Nginx, Contender::Smg] {
        put(
            &mut svg,
            format_args!("<rect class=\"{contender}\" x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\"/>", y - 11.0),
        );
        put(&mut svg, format_args!("<text x=\"{}\" y=\"{y}\">{contender}</text>", x + 18.0));
        x += 80.0;
    }
    put(&mut svg, format_args!("<text class=\"m\" x=\"{x}\" y=\"{y}\">{}</text></svg>\n", escape(machine)));
    svg
}

fn draw_panel(svg: &mut String, panel: &Panel, x: f64, y: f64) {
    let values = panel.groups.iter().flat_map(|(_, bars)| bars.iter().map(|(_, value)| *value));
    let highest = values.fold(f64::MIN_POSITIVE, f64::max);
    put(svg, format_args!("<text class=\"t\" x=\"{}\" y=\"{}\">{}</text>", x + MARGIN, y + 24.0, escape(&panel.title)));
    let group_width = (WIDTH - 2.0 * MARGIN) / panel.groups.len() as f64;
    for (index, (label, bars)) in panel.groups.iter().enumerate() {
        let left = x + MARGIN + index as f64 * group_width;
        let bar_width = (group_width * 0.8 / bars.len().max(1) as f64).min(56.0);
        for (place, (contender, value)) in bars.iter().enumerate() {
            let height = (value.max(0.0) / highest * (PLOT_BOTTOM - PLOT_TOP)).max(1.0);
            let (bar_x, bar_y) = (left + place as f64 * bar_width, y + PLOT_BOTTOM - height);
            let width = bar_width - 3.0;
            put(
                svg,
                format_args!(
                    "<rect class=\"{contender}\" x=\"{bar_x:.1}\" y=\"{bar_y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>\
                     <text class=\"v\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    bar_x + width / 2.0,
                    bar_y - 4.0,
                    figure(Some(*value)),
                ),
            );
        }
        put(
            svg,
            format_args!("<text class=\"m\" x=\"{left:.1}\" y=\"{}\">{}</text>", y + PLOT_BOTTOM + 16.0, escape(label)),
        );
    }
}

fn put(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.write_fmt(text).expect("writing to a string can't fail");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
