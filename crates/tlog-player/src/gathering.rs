//! The state while a log is walked from new to old: for each block the first write that is met.

use std::collections::BTreeMap;

use tlog_codec::{BlockEntry, Kind, Opener, PlaceInLog, PlainBody, VdiskKeys};
use tlog_proto::{AggregationNumber, BlockIndex, LogPosition, Operation};
use tlog_quorum::{HeadCandidate, Link};

use crate::block_set::BlockSet;
use crate::checkpoint::Checkpoint;
use crate::disk_state::{BlockPlace, DiskState, DiskStateError, Source, Sources};
use crate::format1::{Passed, StoredFormat};
use crate::moment::{Moment, MomentReached, Span};

/// The state while the log is walked from new to old.
pub(crate) struct Gathering {
    pub(crate) opener: Opener,
    moment: Moment,
    pub(crate) reached: Option<MomentReached>,
    pub(crate) span: Option<Span>,
    /// The blocks of which the last write was met, and these writes, but for deletes.
    met: BlockSet,
    last_writes: Vec<(BlockIndex, BlockPlace)>,
    sources: Sources,
    /// Aggregations of format 1 that were passed. They are numbered back from the newest while it is not known how many there are.
    links: u64,
    /// Longest block of the log, and of the log up to the moment.
    pub(crate) longest: u32,
    longest_then: u32,
}

impl Gathering {
    pub(crate) fn of(keys: &VdiskKeys, moment: Moment) -> Self {
        Self {
            opener: Opener::new(keys.clone()),
            moment,
            reached: None,
            span: None,
            met: BlockSet::default(),
            last_writes: Vec::new(),
            sources: BTreeMap::new(),
            links: 0,
            longest: 0,
            longest_then: 0,
        }
    }

    pub(crate) fn handle(&mut self, link: &HeadCandidate) -> Result<(), DiskStateError> {
        if link.head.header.kind != Kind::Blocks {
            return Ok(()); // no writes
        }
        let passed = Passed { id: link.head.id, ..Passed::from(&link.head.header) };
        Span::add(&mut self.span, &passed);
        self.longest = self.longest.max(passed.block_size);
        let entries = self.opener.manifest(&link.head).map_err(|source| DiskStateError::Manifest {
            vdisk: self.opener.vdisk().clone(),
            number: passed.number,
            source,
        })?;
        self.gather(&passed, &entries);
        Ok(())
    }

    /// An image comes next, of a moment that is not later.
    pub(crate) fn handle_checkpoint(&mut self, Checkpoint { record, .. }: &Checkpoint) {
        let PlaceInLog { aggregation, id, blocks, of, position, timestamp } = record.place;
        self.longest = self.longest.max(record.block_size);
        self.longest_then = self.longest_then.max(record.block_size);
        self.reached.get_or_insert(MomentReached {
            format: StoredFormat::Two,
            aggregation,
            id,
            blocks,
            of,
            position,
            timestamp,
        });
    }

    pub(crate) fn handle_part(&mut self, part: &HeadCandidate, entries: &[BlockEntry]) {
        let passed = Passed { id: part.head.id, ..Passed::from(&part.head.header) };
        self.take_all(&passed, entries, true);
    }

    pub(crate) fn handle_link(&mut self, link: &Link) {
        self.links += 1;
        let entries: Vec<BlockEntry> = link.aggregation.blocks.iter().map(BlockEntry::from).collect();
        if let Some(passed) = Passed::of_link(link, self.links, &entries)
            && self.passes(&passed)
        {
            self.gather(&passed, &entries);
        }
    }

    /// Takes the next older aggregation of format 1 in. Whether its blocks matter.
    fn passes(&mut self, passed: &Passed) -> bool {
        Span::add(&mut self.span, passed);
        self.longest = self.longest.max(passed.block_size);
        self.reached.is_some() || self.moment.may_be_in(passed)
    }

    fn gather(&mut self, passed: &Passed, entries: &[BlockEntry]) {
        let part = if self.reached.is_some() { entries.len() } else { self.moment.blocks_of(entries) };
        let part = entries.get(..part).unwrap_or_default();
        let Some(last) = part.last() else { return };
        if self.reached.is_none() {
            self.reached = Some(MomentReached {
                format: passed.format,
                aggregation: passed.number,
                id: passed.id,
                blocks: part.len() as u32,
                of: entries.len() as u32,
                position: LogPosition { generation: passed.generation, sequence: last.sequence },
                timestamp: last.timestamp,
            });
        }
        self.longest_then = self.longest_then.max(passed.block_size);
        self.take_all(passed, part, false);
    }

    /// Takes what was not met yet.
    fn take_all(&mut self, passed: &Passed, entries: &[BlockEntry], is_checkpoint: bool) {
        let places = match passed.plain {
            Some(_) => PlainBody::places(self.opener.vdisk(), entries),
            None => Vec::new(),
        };
        let mut needed = false;
        for (position, entry) in entries.iter().enumerate().rev() {
            let place = places.get(position).copied().unwrap_or_default();
            needed |= self.take(passed, position as u32, place, entry);
        }
        if needed {
            let Passed { id, cost, newest, plain, .. } = *passed;
            let source = Source { id, cost, newest_timestamp: newest, plain, is_checkpoint };
            self.sources.insert((passed.format, passed.number), source);
        }
    }

    /// Turns the numbers of format 1 around, now that it is known how many there are.
    pub(crate) fn count_from_the_oldest(&mut self) {
        let links = self.links;
        let turn = |format: StoredFormat, number: &mut AggregationNumber| {
            if format == StoredFormat::One {
                number.0 = (links + 1).saturating_sub(number.0);
            }
        };
        if let Some(reached) = &mut self.reached {
            turn(reached.format, &mut reached.aggregation);
        }
        for (_, place) in &mut self.last_writes {
            turn(place.format, &mut place.aggregation);
        }
        let sources = std::mem::take(&mut self.sources);
        self.sources = sources
            .into_iter()
            .map(|((format, mut number), source)| {
                turn(format, &mut number);
                ((format, number), source)
            })
            .collect();
    }

    /// Whether the data of the entry is part of the state.
    fn take(&mut self, passed: &Passed, position: u32, place_in_body: u32, entry: &BlockEntry) -> bool {
        if !self.met.insert(entry.index) {
            return false;
        }
        let &BlockEntry { length, hash_prefix, .. } = entry;
        let set = entry.operation == Operation::Set;
        let (format, aggregation) = (passed.format, passed.number);
        if set {
            let place = BlockPlace { format, aggregation, position, place_in_body, length, hash_prefix };
            self.last_writes.push((entry.index, place));
        }
        set
    }

    pub(crate) fn finish(self, given: Option<u32>) -> Result<DiskState, DiskStateError> {
        let vdisk = self.opener.vdisk().clone();
        let mut blocks = self.last_writes;
        blocks.sort_unstable_by_key(|(index, _)| *index);
        let block_size = match given {
            Some(block_size) => block_size,
            // One block that is shorter than a block of the disk is the last one of a disk that ends with it.
            None if self.longest_then == self.longest || blocks.len() <= 1 => self.longest,
            // The size of blocks is a power of two, so nothing but short blocks were written yet.
            None if !self.longest_then.is_power_of_two() => self.longest,
            None => {
                let (then, now) = (self.longest_then, self.longest);
                return Err(DiskStateError::BlockSizeUnclear { vdisk, then, now });
            }
        };
        if let Some((index, place)) = blocks.iter().find(|(_, place)| place.length > block_size) {
            return Err(DiskStateError::BlockTooLong {
                vdisk,
                index: *index,
                length: place.length,
                block_size,
            });
        }
        Ok(DiskState { vdisk, reached: self.reached, block_size, blocks, sources: self.sources })
    }
}
