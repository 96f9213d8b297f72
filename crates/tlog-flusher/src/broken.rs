//! The rules that the exploration, and a simulation, break on purpose, to see that it is noticed.
//!
//! There is no such switch in a build for use: this is there for the crate's own tests and with the feature `simulation`, and it counts for
//! the thread that asks for it alone.

use std::cell::Cell;

use tlog_quorum::Quorums;

/// A rule that can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Start records rule out what a later opening did not adopt.
    StartRecords,
    /// An opening needs a majority, so that any two share a store.
    Majority,
    /// A store that came back empty is told by its identity.
    Identity,
    /// What the old identity had answered for aggregations in flight is forgotten.
    Forget,
    /// W stores, not fewer, hold an aggregation before it is acknowledged.
    WriteQuorum,
    /// An aggregation is acknowledged when W stores have answered, not when it was sent to them.
    Answers,
    /// A blank store gets what the opening adopted before it becomes a member.
    Adopted,
    /// A log of which stores were lost for good is not opened where what is gone may have been acknowledged.
    Traces,
    /// Where stores were lost for good, all that are left are asked, and told.
    AllLeft,
    /// Where it is not known whether enough members know the newest list of them, one more is asked.
    Settling,
    /// A log is opened with the quorums of the lowest W that it was written with.
    EarlierWrite,
    /// The last committed aggregation is never removed.
    LastStays,
}

thread_local! {
    static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
}

/// Which rule the writers of this thread do not know from now on.
pub fn break_rule(rule: Option<Rule>) {
    BROKEN.set(rule);
}

#[cfg(test)]
pub(crate) fn any_broken() -> bool {
    BROKEN.get().is_some()
}

/// Whether the writers of this thread do not know the rule.
pub fn is_broken(rule: Rule) -> bool {
    BROKEN.get() == Some(rule)
}

pub(crate) fn broken_opening_quorum(quorums: Quorums) -> Option<usize> {
    is_broken(Rule::Majority).then(|| quorums.total() - quorums.write() + quorums.data())
}

pub(crate) fn broken_write_quorum(quorums: Quorums) -> usize {
    if is_broken(Rule::WriteQuorum) { quorums.data() } else { quorums.write() }
}
