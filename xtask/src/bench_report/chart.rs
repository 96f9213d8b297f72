//! A line of medians, with lowest and highest as whiskers, as SVG. Colours follow the reader's light or dark scheme.
//!
//! ```text
//!  title
//!  y |        o---o      <- medians
//!    |    o--'    |      <- whiskers
//!    +---------------
//!      1   25   250      labels, evenly spaced, and what grows
//! ```

use std::fmt::Write as _;

use super::{Point, Series};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;

/// Lines of the grid above zero, about.
const GRID: f64 = 4.0;

const STYLE: &str = "\
  .ground { fill: #ffffff } .text { fill: #24292f; font: 13px sans-serif } .title { font-size: 16px; font-weight: bold }
  .grid { stroke: #d0d7de; stroke-width: 1 } .line { fill: none; stroke: #0969da; stroke-width: 2 }
  .dot { fill: #0969da } .whisker { stroke: #0969da; stroke-width: 1 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 } .text { fill: #e6edf3 } .grid { stroke: #30363d }
    .line, .whisker { stroke: #58a6ff } .dot { fill: #58a6ff }
  }
";

/// The first figure of each point.
pub(super) fn svg(series: &Series, points: &[Point]) -> String {
    let drawn: Vec<_> = points
        .iter()
        .filter_map(|point| Some((point.label.as_str(), point.figures.first()?.as_ref()?)))
        .collect();
    let highest = drawn.iter().map(|(_, spread)| spread.highest).fold(0.0, f64::max);
    let step = step(highest);
    let top = (highest / step).ceil().max(1.0) * step;
    let x = |at: usize| LEFT + (WIDTH - LEFT - RIGHT) * (at as f64 + 0.5) / drawn.len().max(1) as f64;
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top;
    let figure = series.figures.first().map(|figure| figure.title).unwrap_or_default();

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n<title>{}: {}</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n",
        escaped(series.title),
        escaped(figure),
    );
    text(&mut svg, "text title", (LEFT, 24.0), "start", &format!("{} ({figure})", series.title));
    let mut value = 0.0;
    while value <= top + step / 2.0 {
        let at = y(value);
        let right = WIDTH - RIGHT;
        element(&mut svg, format_args!("<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/>"));
        text(&mut svg, "text", (LEFT - 8.0, at + 4.0), "end", &super::tables::number(value));
        value += step;
    }
    let line: Vec<String> = drawn
        .iter()
        .enumerate()
        .map(|(at, (_, spread))| format!("{:.1},{:.1}", x(at), y(spread.median)))
        .collect();
    element(&mut svg, format_args!("<polyline class=\"line\" points=\"{}\"/>", line.join(" ")));
    for (at, (label, spread)) in drawn.iter().enumerate() {
        let (x, low, high) = (x(at), y(spread.lowest), y(spread.highest));
        element(&mut svg, format_args!("<path class=\"whisker\" d=\"M{x:.1} {low:.1}V{high:.1}\"/>"));
        element(
            &mut svg,
            format_args!("<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"4\"/>", y(spread.median)),
        );
        text(&mut svg, "text", (x, HEIGHT - BOTTOM + 20.0), "middle", label);
    }
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    text(&mut svg, "text", (middle, HEIGHT - 14.0), "middle", series.grows);
    svg + "</svg>\n"
}

/// Between two lines of the grid: 1, 2 or 5 with zeros.
fn step(highest: f64) -> f64 {
    let rough = (highest / GRID).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 5.0].into_iter().find(|times| times * power >= rough).unwrap_or(10.0);
    times * power
}

fn element(svg: &mut String, element: std::fmt::Arguments<'_>) {
    let _never_fails = writeln!(svg, "{element}");
}

fn text(svg: &mut String, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = escaped(text);
    element(
        svg,
        format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ),
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_has_round_numbers() {
        let check = |highest: f64, expected: f64| {
            assert!((step(highest) / expected - 1.0).abs() < 1e-9, "{highest}: {}", step(highest));
        };
        check(229.0, 100.0);
        check(0.9, 0.5);
        check(70.0, 20.0);
        check(4.0, 1.0);
        assert!(step(0.0) > 0.0);
    }
}
