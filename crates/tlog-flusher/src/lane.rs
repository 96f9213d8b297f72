//! What the writer knows of one store. Pure.

use std::time::Duration;

use tlog_proto::AggregationNumber;
use tlog_store::NumberRanges;
use tokio::time::Instant;

use crate::repair::Refilled;

/// Whether a store gets what is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LaneStanding {
    /// A member that answers.
    Active,
    /// It failed; it is asked again at `retry_at`.
    Away { retry_at: Instant },
    /// It is being asked again.
    Probing,
    /// It came back empty, or has never been filled; it is filled again at `retry_at`.
    Blank { retry_at: Instant },
    /// It is being filled.
    Refilling,
    /// It is filled; the members are told once no other store is entering.
    Filled(Refilled),
    /// It is filled, and the members are told.
    Entering,
}

/// One store, as the writer sees it.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) standing: LaneStanding,
    /// Since when the standing is not `Active`.
    pub(crate) out_since: Option<Instant>,
    /// What it said last when it failed.
    pub(crate) error: Option<String>,
    /// Operations that it has not answered.
    pub(crate) outstanding: usize,
    /// Committed numbers that it does not hold.
    pub(crate) missed: NumberRanges,
    pause: Duration,
}

impl Lane {
    pub(crate) fn new(standing: LaneStanding, now: Instant) -> Self {
        let out_since = (standing != LaneStanding::Active).then_some(now);
        Self {
            standing,
            out_since,
            error: None,
            outstanding: 0,
            missed: NumberRanges::new(),
            pause: Duration::ZERO,
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        self.standing == LaneStanding::Active
    }

    /// Whether it may be a member: everything but blank.
    pub(crate) fn is_member(&self) -> bool {
        matches!(self.standing, LaneStanding::Active | LaneStanding::Away { .. } | LaneStanding::Probing)
    }

    /// It works again.
    pub(crate) fn activate(&mut self) {
        self.standing = LaneStanding::Active;
        self.out_since = None;
        self.error = None;
        self.pause = Duration::ZERO;
    }

    /// It failed. The pause before it is asked again doubles each time.
    pub(crate) fn fail(&mut self, now: Instant, error: String, blank: bool, first: Duration, most: Duration) {
        self.pause = (self.pause * 2).clamp(first, most.max(first));
        let retry_at = now + self.pause;
        self.standing =
            if blank { LaneStanding::Blank { retry_at } } else { LaneStanding::Away { retry_at } };
        self.out_since.get_or_insert(now);
        self.error = Some(error);
    }

    /// When it is to be asked or filled again.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        match self.standing {
            LaneStanding::Away { retry_at } | LaneStanding::Blank { retry_at } => Some(retry_at),
            _ => None,
        }
    }

    pub(crate) fn miss(&mut self, number: AggregationNumber) {
        self.missed.insert(number);
    }

    pub(crate) fn hold(&mut self, number: AggregationNumber) {
        self.missed.remove_range(number..=number);
    }
}
