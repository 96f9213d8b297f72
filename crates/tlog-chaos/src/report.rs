//! What happened, counted, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::fault::Fault;

/// Counts what happens.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Report>);

impl Tally {
    pub(crate) fn change(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn fault(&self, fault: &Fault) {
        self.change(|report| *report.faults.entry(fault.kind()).or_default() += 1);
    }

    /// A restore while nothing was wrong.
    pub(crate) fn compared(&self) {
        self.change(|report| report.restores += 1);
    }

    /// A restore while anything might have been wrong.
    pub(crate) fn compared_meanwhile(&self) {
        self.change(|report| report.restores_meanwhile += 1);
    }

    /// A slave wherever its syncer was.
    pub(crate) fn slave_compared(&self) {
        self.change(|report| report.slaves += 1);
    }

    /// One that was not possible then.
    pub(crate) fn not_possible(&self, said: String) {
        self.change(|report| {
            report.not_possible += 1;
            report.last_not_possible = Some(said);
        });
    }

    /// How long it took, after the faults of a round had stopped, until this was so.
    pub(crate) fn took(&self, what: &'static str, took: Duration) {
        self.change(|report| {
            let longest = report.recoveries.entry(what).or_default();
            *longest = took.max(*longest);
        });
    }

    pub(crate) fn report(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What everything was decided by.
    pub seed: u64,
    /// How long it took.
    pub took: Duration,
    /// Rounds that were over, with everything compared.
    pub rounds: u64,
    /// How many faults of each kind there were.
    pub faults: BTreeMap<&'static str, u64>,
    /// Kinds of faults that this machine does not allow.
    pub impossible: Vec<&'static str>,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Bytes of data in them.
    pub bytes: u64,
    /// Restores that were compared when faults had stopped.
    pub restores: u64,
    /// Restores that were compared in the middle of faults.
    pub restores_meanwhile: u64,
    /// Restores in the middle of faults that too few stores were there for.
    pub not_possible: u64,
    /// Slaves that were compared wherever their syncers were.
    pub slaves: u64,
    /// What the tool said of the last restore that was not possible.
    pub last_not_possible: Option<String>,
    /// The longest that something took after the faults of a round had stopped.
    pub recoveries: BTreeMap<&'static str, Duration>,
    /// What must not be.
    pub found: Option<String>,
}

impl Report {
    /// For a program.
    pub fn as_json(&self) -> Value {
        let seconds: BTreeMap<_, _> =
            self.recoveries.iter().map(|(what, took)| (*what, took.as_secs_f64())).collect();
        json!({
            "seed": self.seed,
            "seconds": self.took.as_secs_f64(),
            "rounds": self.rounds,
            "faults": self.faults,
            "impossible": self.impossible,
            "acknowledged": self.acknowledged,
            "bytes": self.bytes,
            "restores": self.restores,
            "restores_meanwhile": self.restores_meanwhile,
            "restores_not_possible": self.not_possible,
            "slaves": self.slaves,
            "longest_seconds_after_faults": seconds,
            "found": self.found,
        })
    }
}

/// For a person.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |what: &str, figure: String| writeln!(f, "{what:<44} {figure:>12}");
        line("rounds", self.rounds.to_string())?;
        for (kind, count) in &self.faults {
            line(kind, count.to_string())?;
        }
        for kind in &self.impossible {
            line(kind, "not possible".to_owned())?;
        }
        line("writes acknowledged", self.acknowledged.to_string())?;
        line("bytes", self.bytes.to_string())?;
        line("restores compared after faults", self.restores.to_string())?;
        line("restores compared during faults", self.restores_meanwhile.to_string())?;
        line("restores that too few stores were there for", self.not_possible.to_string())?;
        line("slaves compared while they are synced", self.slaves.to_string())?;
        for (what, took) in &self.recoveries {
            let mut words = String::from("longest until ");
            words.write_str(what)?;
            line(&words, format!("{:.1} s", took.as_secs_f64()))?;
        }
        Ok(())
    }
}
