//! `bench-report`: how cost grows, measured by `tlog bench`, as charts and tables of `docs/performance.md`.
//!
//! ```text
//! SERIES  the measurements of each chart      measurements.rs
//!   tlog bench ... --json                     one file for each, in target/bench-report
//!   SVG                                       chart.rs     -> docs/charts
//!   tables                                    tables.rs    -> docs/performance.md, between two marks
//! ```
//!
//! With `--from DIR` nothing is measured: the files are taken that are there, so that charts can be drawn elsewhere than where they were measured.

mod chart;
mod measurements;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use self::measurements::{Extent, Measurement, SERIES, Series};
use crate::steps;

/// The page that has the tables.
const PAGE: &str = "docs/performance.md";

/// Where charts are, relative to the workspace.
const CHARTS: &str = "docs/charts";

/// Between these two lines of the page everything is replaced.
const BEGIN: &str = "<!-- Made by cargo xtask bench-report; written anew each time. -->";
const END: &str = "<!-- End of what cargo xtask bench-report makes. -->";

/// Measures, or takes what was measured, and writes charts and tables.
pub(crate) fn run(root: &Path, arguments: &[&str]) -> Result<()> {
    let (extent, from) = match arguments {
        [] => (Extent::Full, None),
        ["--quick"] => (Extent::Quick, None),
        ["--from", directory] => (Extent::Full, Some(PathBuf::from(directory))),
        _ => bail!("bench-report takes --quick, --from DIR, or nothing"),
    };
    let directory = match from {
        Some(directory) => directory,
        None => measured(root, extent)?,
    };
    let mut sections = String::new();
    let charts = root.join(CHARTS);
    fs::create_dir_all(&charts).with_context(|| format!("cannot make {CHARTS}"))?;
    for series in SERIES {
        let points = points(series, &directory)?;
        if points.is_empty() {
            println!("bench-report: no measurements of {}, its chart stays out", series.name);
            continue;
        }
        let file = format!("{}.svg", series.name);
        fs::write(charts.join(&file), chart::svg(series, &points))
            .with_context(|| format!("cannot write {file}"))?;
        sections += &tables::section(series, &points, &format!("charts/{file}"));
    }
    ensure!(!sections.is_empty(), "{} has no measurements in it", directory.display());
    let page = root.join(PAGE);
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {PAGE}"))?;
    fs::write(&page, replaced(&text, &sections)?).with_context(|| format!("cannot write {PAGE}"))?;
    println!("bench-report: charts are in {CHARTS}, tables in {PAGE}");
    Ok(())
}

/// Does every measurement, one after the other. Answers where their files are.
fn measured(root: &Path, extent: Extent) -> Result<PathBuf> {
    steps::cargo(root, &["build", "--release", "--locked", "-p", "tlog"], &[])?;
    let metadata = crate::tidy::metadata(root)?;
    let target = metadata.get("target_directory").and_then(Value::as_str);
    let target = Path::new(target.context("cargo does not tell where it builds")?).to_owned();
    let directory = target.join("bench-report");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    let program = target.join("release/tlog");
    for series in SERIES {
        for measurement in series.measurements(extent) {
            println!("bench-report: tlog {}", measurement.arguments.join(" "));
            let output = Command::new(&program).args(&measurement.arguments).current_dir(&directory).output();
            let output = output.with_context(|| format!("cannot run {}", program.display()))?;
            if !output.status.success() {
                bail!("it failed: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            fs::write(directory.join(measurement.file()), &output.stdout)?;
        }
    }
    Ok(directory)
}

/// One figure of a chart.
#[derive(Debug, Clone, PartialEq)]
struct Spread {
    median: f64,
    lowest: f64,
    highest: f64,
}

/// One measurement: what it was of, and its figures, in the order of the series.
#[derive(Debug, Clone, PartialEq)]
struct Point {
    label: String,
    figures: Vec<Option<Spread>>,
    runs: usize,
    /// Processors, and load average before it.
    machine: (u64, Option<f64>),
}

/// Those of a series that are there.
fn points(series: &Series, directory: &Path) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    for measurement in series.measurements(Extent::Full) {
        let path = directory.join(measurement.file());
        if !path.is_file() {
            continue;
        }
        let told = || format!("{} is no measurement of tlog bench", path.display());
        let report: Value = serde_json::from_slice(&fs::read(&path)?).with_context(told)?;
        points.push(point(series, &measurement, &report).with_context(told)?);
    }
    Ok(points)
}

fn point(series: &Series, measurement: &Measurement, report: &Value) -> Result<Point> {
    let medians = report.get("medians").context("no medians")?;
    let figure = |key: &str| {
        let key = key.replace("{}", &measurement.label);
        let spread = medians.get(key)?;
        let number = |name| spread.get(name).and_then(Value::as_f64);
        Some(Spread { median: number("median")?, lowest: number("lowest")?, highest: number("highest")? })
    };
    let figures: Vec<_> = series.figures.iter().map(|shown| figure(shown.key)).collect();
    ensure!(figures.first().is_some_and(Option::is_some), "the figure of the chart is not in it");
    let machine = report.get("machine");
    let of_machine = |name| machine.and_then(|machine| machine.get(name));
    Ok(Point {
        label: measurement.label.clone(),
        figures,
        runs: report.get("runs").and_then(Value::as_array).map_or(0, Vec::len),
        machine: (
            of_machine("processors").and_then(Value::as_u64).unwrap_or_default(),
            of_machine("load_average_before").and_then(Value::as_f64),
        ),
    })
}

/// The page with other sections between the marks.
fn replaced(text: &str, sections: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("{PAGE} has no line `{BEGIN}`"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{PAGE} has no line `{END}`"))?;
    Ok(format!("{before}{BEGIN}\n\n{sections}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(speed: f64) -> Value {
        json!({
            "machine": { "processors": 2, "load_average_before": 0.5 },
            "medians": { "data_mb_per_s": { "median": speed, "lowest": speed - 1.0, "highest": speed + 1.0 } },
            "runs": [{}, {}],
        })
    }

    #[test]
    fn what_was_measured_becomes_a_chart_and_a_table_and_what_was_not_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let series = SERIES.iter().find(|series| series.name == "flush-size").unwrap();
        let all = series.measurements(Extent::Full);
        for (measurement, speed) in all.iter().zip([10.0, 30.0]) {
            fs::write(directory.path().join(measurement.file()), report(speed).to_string()).unwrap();
        }
        let points = points(series, directory.path()).unwrap();
        assert_eq!(points.len(), 2);
        assert_eq!(points[1].figures[0], Some(Spread { median: 30.0, lowest: 29.0, highest: 31.0 }));
        let svg = chart::svg(series, &points);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("prefers-color-scheme: dark"));
        let section = tables::section(series, &points, "charts/x.svg");
        assert!(section.contains("(charts/x.svg)") && section.contains("30.0 (29.0-31.0)"), "{section}");
        fs::write(directory.path().join(all[0].file()), "{}").unwrap();
        assert!(super::points(series, directory.path()).is_err());
    }

    #[test]
    fn every_quick_measurement_is_one_of_the_full_ones_and_has_a_file_of_its_own() {
        let mut files = std::collections::BTreeSet::new();
        for series in SERIES {
            let full: Vec<_> = series.measurements(Extent::Full).iter().map(Measurement::file).collect();
            let quick = series.measurements(Extent::Quick);
            assert!(!quick.is_empty() && quick.iter().all(|measurement| full.contains(&measurement.file())));
            assert!(full.into_iter().all(|file| files.insert(file)), "{}", series.name);
        }
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = format!("# Page\n\n{BEGIN}\nold\n{END}\n\nrest\n");
        let page = replaced(&page, "new\n\n").unwrap();
        assert_eq!(page, format!("# Page\n\n{BEGIN}\n\nnew\n\n{END}\n\nrest\n"));
        assert!(replaced("# Page\n", "new").is_err());
    }
}
