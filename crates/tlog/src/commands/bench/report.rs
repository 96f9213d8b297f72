//! What a measurement says in the end.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::bench::figures::Runs;

/// On what something is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    processors: usize,
    /// Of the last minute, before anything was measured; none where the system does not tell.
    load_average: Option<f64>,
}

impl Machine {
    /// As it is now.
    pub(super) fn now() -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        let load_average = load.and_then(|load| load.split_whitespace().next()?.parse().ok());
        let processors = std::thread::available_parallelism().map(usize::from).unwrap_or(1);
        Self { processors, load_average }
    }

    fn in_words(self) -> String {
        let load = self.load_average.map(|load| format!(", load average {load} before"));
        format!("{} processors{}", self.processors, load.unwrap_or_default())
    }

    fn json(self) -> Value {
        json!({ "processors": self.processors, "load_average_before": self.load_average })
    }
}

/// A measurement, and what it was done with.
pub(super) struct Report<'a> {
    /// `write`, `restore`, ...
    pub(super) benchmark: &'a str,
    /// What was measured, in words.
    pub(super) heading: String,
    /// The same for programs.
    pub(super) about: Map<String, Value>,
    pub(super) machine: Machine,
    pub(super) runs: Runs,
    /// What was found besides numbers, in words.
    pub(super) ending: Option<String>,
}

impl Report<'_> {
    /// On standard output.
    pub(super) fn print(self, json: bool) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            let mut report = Map::new();
            report.insert("benchmark".to_owned(), json!(self.benchmark));
            report.extend(self.about);
            report.insert("machine".to_owned(), self.machine.json());
            report.extend(self.runs.json());
            writeln!(out, "{:#}", Value::Object(report))?;
            return Ok(());
        }
        let runs = match self.runs.count() {
            1 => "1 run".to_owned(),
            runs => format!("{runs} runs"),
        };
        writeln!(out, "{}; {runs}; {}", self.heading, self.machine.in_words())?;
        self.runs.show(&mut out)?;
        if let Some(ending) = self.ending {
            writeln!(out, "{ending}")?;
        }
        Ok(())
    }
}

/// The entries of an object.
pub(super) fn entries<const N: usize>(entries: [(&str, Value); N]) -> Map<String, Value> {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
