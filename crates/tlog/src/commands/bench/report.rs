//! What a measurement says in the end.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::bench::figures::Runs;

/// A measurement, and what it was done with.
pub(super) struct Report<'a> {
    /// `write`, `restore`, ...
    pub(super) benchmark: &'a str,
    /// What was measured, in words.
    pub(super) heading: String,
    /// The same for programs.
    pub(super) about: Map<String, Value>,
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
            report.extend(self.runs.json());
            writeln!(out, "{:#}", Value::Object(report))?;
            return Ok(());
        }
        let runs = match self.runs.count() {
            1 => "1 run".to_owned(),
            runs => format!("{runs} runs"),
        };
        writeln!(out, "{}; {runs}", self.heading)?;
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
