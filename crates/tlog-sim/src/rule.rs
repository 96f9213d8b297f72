//! The rules that can be broken on purpose, to see that the simulator notices.

use std::fmt;
use std::str::FromStr;

use tlog_flusher::broken as writer;
use tlog_player::slave::broken as slave;

/// A rule of the product that a run may do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Start records rule out what a later opening did not adopt.
    StartRecords,
    /// An opening needs a majority, so that any two share a store.
    Majority,
    /// W stores, not just k, hold what is acknowledged.
    WriteQuorum,
    /// W stores have answered before anything is acknowledged.
    Answers,
    /// A slave has the data before it records the position.
    DataFirst,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 5] =
        [Rule::StartRecords, Rule::Majority, Rule::WriteQuorum, Rule::Answers, Rule::DataFirst];

    /// As it is written on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Rule::StartRecords => "no-start-records",
            Rule::Majority => "no-majority",
            Rule::WriteQuorum => "w-too-small",
            Rule::Answers => "ack-before-w",
            Rule::DataFirst => "position-before-data",
        }
    }

    fn of_writer(self) -> Option<writer::Rule> {
        match self {
            Rule::StartRecords => Some(writer::Rule::StartRecords),
            Rule::Majority => Some(writer::Rule::Majority),
            Rule::WriteQuorum => Some(writer::Rule::WriteQuorum),
            Rule::Answers => Some(writer::Rule::Answers),
            Rule::DataFirst => None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No rule is called that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchRule;

impl fmt::Display for NoSuchRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the rules are {}", Rule::ALL.map(Rule::name).join(", "))
    }
}

impl std::error::Error for NoSuchRule {}

impl FromStr for Rule {
    type Err = NoSuchRule;

    fn from_str(text: &str) -> Result<Self, NoSuchRule> {
        Rule::ALL.into_iter().find(|rule| rule.name() == text).ok_or(NoSuchRule)
    }
}

/// The rule is broken on this thread as long as this exists.
#[must_use]
pub(crate) struct Broken(());

pub(crate) fn break_rule(rule: Option<Rule>) -> Broken {
    writer::break_rule(rule.and_then(Rule::of_writer));
    slave::record_before_applying(rule == Some(Rule::DataFirst));
    Broken(())
}

impl Drop for Broken {
    fn drop(&mut self) {
        writer::break_rule(None);
        slave::record_before_applying(false);
    }
}
