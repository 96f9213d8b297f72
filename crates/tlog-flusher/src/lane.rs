//! What the writer knows of one store. Pure.

use std::sync::Arc;
use std::time::Duration;

use tlog_proto::{AggregationNumber, Timestamp};
use tlog_store::NumberRanges;
use tokio::time::Instant;

use crate::repair::{RefillProgress, Refilled};

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

/// Since when a store is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutSince {
    pub(crate) instant: Instant,
    /// For people: the clock on the wall.
    pub(crate) wall: Timestamp,
}

/// What was filled in on a store since it came back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CatchingUp {
    pub(crate) since: Instant,
    pub(crate) shards: u64,
    pub(crate) bytes: u64,
}

/// One store, as the writer sees it.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) standing: LaneStanding,
    /// Since when the standing is not `Active`.
    pub(crate) out_since: Option<OutSince>,
    /// What it said last when it failed.
    pub(crate) error: Option<String>,
    /// Operations other than appends that it has not answered.
    pub(crate) outstanding: usize,
    /// Appends that it has not answered, with the bytes of memory that each keeps.
    unanswered: Vec<(AggregationNumber, u64)>,
    /// Committed numbers that it does not hold.
    pub(crate) missed: NumberRanges,
    /// Of these numbers too few whole shards are left to make its own; not in `missed`.
    pub(crate) unrepairable: NumberRanges,
    /// Unrepairable numbers that stand in the log file already.
    pub(crate) reported: NumberRanges,
    /// What it holds is known: it was a member that answered since the log was opened, and is the same store since.
    pub(crate) known: bool,
    /// Lowest number that it keeps, as far as is known.
    pub(crate) first: AggregationNumber,
    /// It is being told to remove what is below the log's first number.
    pub(crate) pruning: bool,
    /// When it answered last.
    pub(crate) heard_at: Instant,
    pub(crate) backfilling: bool,
    /// Before this no backfill begins.
    pub(crate) backfill_at: Instant,
    /// Set while something that it missed is being filled in.
    pub(crate) catching_up: Option<CatchingUp>,
    /// How far filling a blank store is.
    pub(crate) refill: Option<Arc<RefillProgress>>,
    /// How often it could not be filled, one time after the other.
    pub(crate) fills_failed: u32,
    pause: Duration,
}

impl Lane {
    pub(crate) fn new(standing: LaneStanding, now: Instant, wall: Timestamp) -> Self {
        let active = standing == LaneStanding::Active;
        Self {
            standing,
            out_since: (!active).then_some(OutSince { instant: now, wall }),
            error: None,
            outstanding: 0,
            unanswered: Vec::new(),
            missed: NumberRanges::new(),
            unrepairable: NumberRanges::new(),
            reported: NumberRanges::new(),
            known: active,
            first: AggregationNumber(1),
            pruning: false,
            heard_at: now,
            backfilling: false,
            backfill_at: now,
            catching_up: None,
            refill: None,
            fills_failed: 0,
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

    /// It works again. Answers since when it was out.
    pub(crate) fn activate(&mut self) -> Option<OutSince> {
        self.standing = LaneStanding::Active;
        self.known = true;
        self.refill = None;
        self.error = None;
        self.fills_failed = 0;
        self.pause = Duration::ZERO;
        self.out_since.take()
    }

    /// It failed. The pause before it is asked again doubles each time.
    pub(crate) fn fail(
        &mut self,
        now: Instant,
        wall: Timestamp,
        error: String,
        blank: bool,
        first: Duration,
        most: Duration,
    ) {
        self.fills_failed = if blank { self.fills_failed.saturating_add(1) } else { 0 };
        self.pause = (self.pause * 2).clamp(first, most.max(first));
        let retry_at = now + self.pause;
        self.standing =
            if blank { LaneStanding::Blank { retry_at } } else { LaneStanding::Away { retry_at } };
        self.out_since.get_or_insert(OutSince { instant: now, wall });
        self.error = Some(error);
    }

    /// It turned out to be empty or another store: nothing that it had said counts any more.
    pub(crate) fn forget(&mut self, now: Instant, wall: Timestamp, error: String) {
        self.standing = LaneStanding::Blank { retry_at: now };
        self.out_since.get_or_insert(OutSince { instant: now, wall });
        self.error = Some(error);
        self.fills_failed = 0;
        self.known = false;
        self.first = AggregationNumber(1);
        self.catching_up = None;
        self.missed = NumberRanges::new();
        self.unrepairable = NumberRanges::new();
    }

    /// When it is to be asked or filled again.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        match self.standing {
            LaneStanding::Away { retry_at } | LaneStanding::Blank { retry_at } => Some(retry_at),
            _ => None,
        }
    }

    /// What is below a number is nothing that it could miss any more.
    pub(crate) fn forget_below(&mut self, first: AggregationNumber) {
        let Some(last) = first.previous() else { return };
        for numbers in [&mut self.missed, &mut self.unrepairable, &mut self.reported] {
            numbers.remove_range(AggregationNumber(0)..=last);
        }
    }

    pub(crate) fn miss(&mut self, number: AggregationNumber) {
        self.missed.insert(number);
    }

    pub(crate) fn hold(&mut self, number: AggregationNumber) {
        self.missed.remove_range(number..=number);
        self.unrepairable.remove_range(number..=number);
    }

    /// An append is on its way.
    pub(crate) fn sent(&mut self, number: AggregationNumber, bytes: u64) {
        self.unanswered.push((number, bytes));
    }

    /// An append has come to an end.
    pub(crate) fn append_answered(&mut self, number: AggregationNumber) {
        if let Some(at) = self.unanswered.iter().position(|(sent, _)| *sent == number) {
            self.unanswered.swap_remove(at);
        }
    }

    /// Appends that it has not answered.
    pub(crate) fn unanswered_len(&self) -> usize {
        self.unanswered.len()
    }

    /// Bytes of memory that appends keep which it has not answered.
    pub(crate) fn unanswered_bytes(&self) -> u64 {
        self.unanswered.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Whether it has answered everything.
    pub(crate) fn is_quiet(&self) -> bool {
        self.outstanding == 0 && self.unanswered.is_empty()
    }

    /// Of the committed numbers from `first` on those of which it is not known that it holds them; none where nothing is known of it.
    pub(crate) fn lacking(
        &self,
        first: AggregationNumber,
        committed: AggregationNumber,
    ) -> Option<NumberRanges> {
        if !self.known {
            return None;
        }
        let mut lacking = self.missed.clone();
        self.unrepairable.iter().for_each(|range| lacking.insert_range(range));
        self.unanswered.iter().for_each(|(number, _)| lacking.insert(*number));
        lacking.remove_range(committed.next()..=AggregationNumber(u64::MAX));
        if let Some(removed) = first.previous() {
            lacking.remove_range(AggregationNumber(0)..=removed);
        }
        Some(lacking)
    }
}
