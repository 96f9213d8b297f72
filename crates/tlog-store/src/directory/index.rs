//! What the segments of one log say, in memory.

use std::collections::{BTreeMap, BTreeSet};

use tlog_proto::{AggregationNumber, Epoch};

use super::record::{Cursor, Position, State};
use super::scan::Event;
use crate::LogState;
use crate::log_state::{LogMeta, Slot, Slots, unknown_log};

/// Where a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A record with a head part and payload of so many bytes.
    At(Position, u32, u32),
    /// It was there; its header is rotten.
    Lost(Position),
}

impl Place {
    pub(super) fn position(&self) -> Position {
        match *self {
            Place::At(position, ..) | Place::Lost(position) => position,
        }
    }
}

/// The segment that is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) segment: u64,
    pub(super) cursor: Cursor,
    /// Length of the file.
    pub(super) room: u64,
}

/// What the segments of one log say.
///
/// It is made by [`Index::apply`] alone, from events in the order of their records, whether they were found in files or have
/// just been written. A segment without live shards can be deleted at any time, and what the others say stays the same:
///
/// - every segment begins with the whole state, so the newest one has it all but for what follows;
/// - what a start drops follows from the list of starts, as each tells where its record stood, and a start is forgotten
///   only for one that drops at least as much;
/// - a shard that replaced another hides it only while its own segment is there. A start that drops the newer one drops
///   the older one too, as its epoch is not higher - except where a fill replaced a shard of a higher epoch. Such a
///   segment is pinned until the older one is gone.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) meta: Option<LogMeta>,
    /// Where the records of `meta.starts` stand, one for each.
    cuts: Vec<Position>,
    pub(super) slots: Slots<Place>,
    /// Segment -> shards in it that are live.
    segments: BTreeMap<u64, u64>,
    /// (segment, older segment): the first is needed as long as the second is there.
    pins: BTreeSet<(u64, u64)>,
    pub(super) tail: Option<Tail>,
}

impl Index {
    pub(super) fn state(&self) -> LogState {
        self.meta.as_ref().map_or_else(unknown_log, |meta| meta.state(self.slots.held()))
    }

    /// The state with `meta` in place of the one there is. `at` is where its record will stand; with it the starts that
    /// are new are found.
    pub(super) fn state_record(&self, meta: LogMeta, at: Position) -> State {
        let old = self.meta.as_ref().map(|meta| meta.starts.as_slice()).unwrap_or_default();
        let known = old.iter().zip(&self.cuts).zip(&meta.starts);
        let kept = known.take_while(|((old, _), new)| old == new).map(|((_, cut), _)| *cut);
        let mut cuts: Vec<Position> = kept.collect();
        cuts.resize(meta.starts.len(), at);
        State { meta, cuts }
    }

    /// The same for a start, whose record is always new: it may repeat one that is there.
    pub(super) fn start_record(&self, meta: LogMeta, at: Position) -> State {
        let mut state = self.state_record(meta, at);
        if let Some(last) = state.cuts.last_mut() {
            *last = at;
        }
        state
    }

    pub(super) fn add_segment(&mut self, segment: u64) {
        self.segments.entry(segment).or_default();
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = u64> + '_ {
        self.segments.keys().copied()
    }

    /// Does what a record says. To be called in the order of the records.
    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::State(_, state) => self.replace_state(state),
            Event::Mark(epoch, committed) => self.raise(epoch, committed),
            Event::Shard(position, header) => {
                let place = Place::At(position, header.head_len, header.payload_len);
                self.put(header.number, header.epoch, place);
                self.raise(header.log_epoch, header.committed);
            }
            Event::Lost(position, number, epoch) => self.put(number, epoch, Place::Lost(position)),
        }
    }

    fn raise(&mut self, epoch: Epoch, committed: AggregationNumber) {
        if let Some(meta) = &mut self.meta {
            meta.epoch = meta.epoch.max(epoch);
            meta.committed = meta.committed.max(committed);
        }
    }

    fn put(&mut self, number: AggregationNumber, epoch: Epoch, place: Place) {
        if self.meta.as_ref().is_some_and(|meta| number < meta.first) {
            return;
        }
        let segment = place.position().segment;
        *self.segments.entry(segment).or_default() += 1;
        if let Some(old) = self.slots.put(number, Slot { epoch, place }) {
            let older = old.place.position().segment;
            if old.epoch > epoch && older != segment {
                self.pins.insert((segment, older));
            }
            self.count_out([old]);
        }
    }

    fn replace_state(&mut self, state: State) {
        let State { meta, cuts } = state;
        let mut dropped = self.slots.drop_below(meta.first);
        for (at, (&start, &cut)) in meta.starts.iter().zip(&cuts).enumerate() {
            if self.cuts.get(at) != Some(&cut) {
                dropped.extend(self.slots.drop_started(start, |place| place.position() < cut));
            }
        }
        self.count_out(dropped);
        self.cuts = cuts;
        self.meta = Some(meta);
    }

    fn count_out(&mut self, dropped: impl IntoIterator<Item = Slot<Place>>) {
        for slot in dropped {
            if let Some(live) = self.segments.get_mut(&slot.place.position().segment) {
                *live = live.saturating_sub(1);
            }
        }
    }

    /// Whether shards in the tail would be live under `meta`.
    pub(super) fn tail_lives_under(&self, meta: &LogMeta) -> bool {
        let tail = self.tail.map(|tail| tail.segment);
        let last = meta.starts.last();
        self.slots.range(meta.first..=AggregationNumber(u64::MAX)).any(|(number, slot)| {
            let dropped = last.is_some_and(|start| number >= start.number && slot.epoch < start.epoch);
            Some(slot.place.position().segment) == tail && !dropped
        })
    }

    /// Takes out the segments that nothing needs any more, and says which.
    pub(super) fn take_dead_segments(&mut self) -> Vec<u64> {
        let Some(tail) = self.tail else { return Vec::new() };
        let mut dead = Vec::new();
        loop {
            let pinned = |segment: u64| self.pins.range((segment, 0)..=(segment, u64::MAX)).next().is_some();
            let is_dead =
                |(&segment, &live): (&u64, &u64)| live == 0 && segment != tail.segment && !pinned(segment);
            let found: Vec<u64> =
                self.segments.iter().filter(|&entry| is_dead(entry)).map(|(&s, _)| s).collect();
            if found.is_empty() {
                return dead;
            }
            for segment in found {
                self.forget_segment(segment);
                dead.push(segment);
            }
        }
    }

    fn forget_segment(&mut self, segment: u64) {
        self.segments.remove(&segment);
        self.pins.retain(|&(pinned, older)| pinned != segment && older != segment);
    }

    /// Forgets segments that are not in `there`, which is sorted: the writer has deleted them.
    pub(super) fn keep_segments(&mut self, there: &[u64]) {
        let gone: BTreeSet<u64> =
            self.segments().filter(|segment| there.binary_search(segment).is_err()).collect();
        if gone.is_empty() {
            return;
        }
        self.slots.drop_where(|place| gone.contains(&place.position().segment));
        gone.into_iter().for_each(|segment| self.forget_segment(segment));
    }
}
