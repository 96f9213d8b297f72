//! What a chart shows, and the figures beside it, as a section of the page.

use std::fmt::Write as _;

use super::{Point, Series, Spread};

/// A heading, how it was measured, the chart and the table.
pub(super) fn section(series: &Series, points: &[Point], chart: &str) -> String {
    let mut text =
        format!("### {}\n\n{}\n\n![{}]({chart})\n\n", series.title, how(series, points), series.title);
    let figures: Vec<usize> = (0..series.figures.len())
        .filter(|&at| points.iter().any(|point| point.figures.get(at).is_some_and(Option::is_some)))
        .collect();
    let titles = figures.iter().filter_map(|&at| Some(series.figures.get(at)?.title));
    let titles: Vec<&str> = std::iter::once(series.grows).chain(titles).collect();
    let _never_fails = writeln!(text, "| {} |\n|{}", titles.join(" | "), "---|".repeat(titles.len()));
    for point in points {
        let cells = figures.iter().map(|&at| cell(point.figures.get(at).and_then(Option::as_ref)));
        let cells: Vec<String> = std::iter::once(point.label.clone()).chain(cells).collect();
        let _never_fails = writeln!(text, "| {} |", cells.join(" | "));
    }
    text + "\n"
}

/// With which command, how often, and on what.
fn how(series: &Series, points: &[Point]) -> String {
    let command = [&["tlog", "bench"], series.common, series.varied].concat().join(" ");
    let runs = points.iter().map(|point| point.runs).min().unwrap_or_default();
    let runs = if runs == 1 {
        "one run each".to_owned()
    } else {
        format!("medians of {runs} runs, lowest and highest in brackets")
    };
    let processors = points.iter().map(|point| point.machine.0).max().unwrap_or_default();
    let loads = points.iter().filter_map(|point| point.machine.1);
    let load = loads.fold(None, |most: Option<f64>, load| Some(most.map_or(load, |most| most.max(load))));
    let load = load.map(|load| format!(", load average before a measurement at most {load:.1}"));
    format!("`{command}`; {runs}; {processors} processors{}.", load.unwrap_or_default())
}

fn cell(spread: Option<&Spread>) -> String {
    match spread {
        None => "-".to_owned(),
        Some(Spread { median, lowest, highest }) if lowest == highest => number(*median),
        Some(Spread { median, lowest, highest }) => {
            format!("{} ({}-{})", number(*median), number(*lowest), number(*highest))
        }
    }
}

/// With as many digits as say something.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        100.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_say_something() {
        assert_eq!([0.0, 0.123, 1.26, 99.96, 1234.5].map(number), ["0", "0.12", "1.3", "100.0", "1234"]);
    }
}
