//! Which write of each block counts at a moment, and where its data is: from manifests alone.
//!
//! The log is walked from its end to its beginning, which proves it step by step: first down to the moment, then on, taking
//! for each block the first write that is met. That is the last one at the moment. Where the log began in format 1 the walk goes
//! on there; that format has no manifests, so that all of its bytes are read.

use std::collections::BTreeMap;

use tlog_codec::{BlockEntry, ChainBreak, Kind, Opener, PlaceInLog, VdiskKeys};
use tlog_proto::{
    AggregationId, AggregationNumber, BlockHash, BlockIndex, LogPosition, Operation, Timestamp, VdiskId,
    hash_many,
};
use tlog_quorum::{HeadCandidate, Link, LinkRead};

use crate::block_set::BlockSet;
use crate::checkpoint::{Checkpoint, layers};
use crate::find::{Finder, Found};
use crate::format1::{Passed, StoredFormat, bytes_read};
use crate::history::HistoryError;
use crate::moment::{Moment, MomentError, MomentReached, Span};
use crate::reader::LogReader;
use crate::records::RecordsError;
use crate::walk::Backward;

/// What a person may have to say before a disk can be put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Where it is uncertain whether the newest writes were acknowledged, go without them.
    pub accept_uncertain_end: bool,
    /// Where the beginning of history was removed, take blocks that were not written since as zeros. Right only where
    /// everything was written again after it.
    pub accept_pruned_base: bool,
    /// Makes the disk from all of history although there is a checkpoint, as long as all of history is there.
    pub ignore_checkpoints: bool,
    /// Bytes of a block, where they are known from elsewhere. Else the longest block of the log counts.
    pub block_size: Option<u32>,
}

/// Where the data of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// In which format that aggregation is stored.
    pub format: StoredFormat,
    /// The aggregation that has it; in format 1 counted from the oldest.
    pub aggregation: AggregationNumber,
    /// Which of the aggregation's blocks it is, from 0.
    pub position: u32,
    /// Bytes of data.
    pub length: u32,
    /// First 16 bytes of the hash of the data.
    pub hash_prefix: [u8; 16],
}

/// A disk at a moment: which write of each block counts, without the data.
#[derive(Clone, Debug)]
pub struct DiskState {
    vdisk: VdiskId,
    reached: Option<MomentReached>,
    block_size: u32,
    /// By rising index. Blocks that were deleted or never written are not here; they read as zeros.
    blocks: Vec<(BlockIndex, BlockPlace)>,
    /// The aggregations that have data of `blocks`.
    sources: Sources,
}

/// By format and number, which is the log's order.
pub(crate) type Sources = BTreeMap<(StoredFormat, AggregationNumber), Source>;

/// An aggregation that is needed to restore a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) id: AggregationId,
    /// Bytes of memory that reading it takes, about.
    pub(crate) cost: u64,
    pub(crate) newest_timestamp: Timestamp,
    /// It is part of a checkpoint.
    pub(crate) is_checkpoint: bool,
}

/// The disk at a moment cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum DiskStateError {
    /// The log has no such moment.
    #[error(transparent)]
    Moment(#[from] MomentError),
    /// History cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// What the log says about itself cannot be read.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// A manifest does not open: the key is not there, or is not the right one.
    #[error("vdisk {vdisk}, aggregation {number}: {source}")]
    Manifest {
        /// The vdisk.
        vdisk: VdiskId,
        /// Which aggregation.
        number: AggregationNumber,
        /// What is wrong.
        #[source]
        source: tlog_codec::OpenError,
    },
    /// A checkpoint does not have what its record says.
    #[error(
        "vdisk {vdisk}: the checkpoint that aggregation {number} records is not what was stored: {what}; run tlog verify"
    )]
    Checkpoint {
        /// The vdisk.
        vdisk: VdiskId,
        /// Number of its record.
        number: AggregationNumber,
        /// What is wrong.
        what: &'static str,
    },
    /// The longest block at the moment is shorter than later ones, and it is not only one short block at the end of the disk.
    #[error(
        "vdisk {vdisk}: blocks have {then} bytes at that moment and {now} later, so where they belong is not clear; say the block size"
    )]
    BlockSizeUnclear {
        /// The vdisk.
        vdisk: VdiskId,
        /// Longest block up to the moment.
        then: u32,
        /// Longest block of the whole log.
        now: u32,
    },
    /// A block is longer than the block size that was given.
    #[error("vdisk {vdisk}: block {index} has {length} bytes, more than the block size of {block_size}")]
    BlockTooLong {
        /// The vdisk.
        vdisk: VdiskId,
        /// Which block.
        index: BlockIndex,
        /// Its length.
        length: u32,
        /// The block size given.
        block_size: u32,
    },
}

impl LogReader {
    /// The disk at a moment. Reads heads only: a few per cent of the bytes of the log; but of a part in format 1 everything.
    ///
    /// The newest moment of an empty log is an empty disk. Where the end of the log is uncertain and could change the answer,
    /// that is an error unless the options accept it. `keys` must be those of the reader's vdisk.
    pub async fn disk_state(
        &self,
        keys: &VdiskKeys,
        moment: Moment,
        options: &ReadOptions,
    ) -> Result<DiskState, DiskStateError> {
        self.check_moment(moment, options)?;
        let (vdisk, extent) = (self.vdisk(), self.extent());
        if extent.is_empty() && extent.first.0 > 1 && !options.accept_pruned_base {
            return Err(MomentError::BasePruned { vdisk: vdisk.clone(), first: extent.first }.into());
        }
        if extent.is_empty() && !self.has_format1() {
            return match moment {
                Moment::Newest => Ok(DiskState::empty(vdisk.clone(), options.block_size.unwrap_or(0))),
                _ => Err(MomentError::Empty { vdisk: vdisk.clone() }.into()),
            };
        }

        let opener = Opener::new(keys.clone());
        // The last header knows the longest block of all.
        let newest =
            if extent.is_empty() { None } else { Some(self.head_at(extent.last).await?.head.header) };
        let longest = newest.map_or(0, |newest| newest.block_size);
        let start = Finder::new(self, &opener).find(moment).await?;
        let mut failed = None;
        for base in self.bases_of(keys, moment, start, options).await? {
            let mut gathering = Gathering { longest, ..Gathering::of(keys, moment) };
            match self.gather(start, &base, &mut gathering).await {
                Ok(()) if gathering.reached.is_some() => return gathering.finish(options.block_size),
                Ok(()) => return Err(self.not_found(moment, gathering.span).await?.into()),
                // There may be an older one, or all of history, instead.
                Err(error) if !base.is_empty() => {
                    tracing::warn!(vdisk = %self.vdisk(), %error, "a checkpoint cannot be used; it is passed over");
                    failed.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        let removed = || MomentError::BasePruned { vdisk: vdisk.clone(), first: extent.first };
        Err(failed.unwrap_or_else(|| removed().into()))
    }

    /// Takes in what the disk at the moment is made from, with one of the bases.
    async fn gather(
        &self,
        start: Option<Found>,
        base: &Base,
        gathering: &mut Gathering,
    ) -> Result<(), DiskStateError> {
        match start {
            Some(start) => self.gather_writes(start, base, gathering).await?,
            None => self.check_end(base).await?,
        }
        if base.is_empty() && self.extent().first.0 <= 1 {
            return self.gather_format1(gathering).await;
        }
        self.gather_image(base, gathering).await
    }

    /// The disk that an image is of, from that and those that it is laid over.
    pub(crate) async fn image_of_layers(
        &self,
        keys: &VdiskKeys,
        checkpoint: &Checkpoint,
        layers: &[Checkpoint],
    ) -> Result<DiskState, DiskStateError> {
        let moment = Moment::Aggregation(checkpoint.record.place.aggregation);
        let mut gathering = Gathering::of(keys, moment);
        self.gather_image(layers, &mut gathering).await?;
        gathering.finish(Some(checkpoint.record.block_size))
    }

    /// Where in the log a moment is, without putting its disk together: in O(log n) reads of heads. The newest moment of an empty log is
    /// nowhere.
    pub async fn locate(
        &self,
        keys: &VdiskKeys,
        moment: Moment,
        options: &ReadOptions,
    ) -> Result<MomentReached, DiskStateError> {
        let opener = Opener::new(keys.clone());
        let uncertain = self.extent().uncertain.as_ref();
        if uncertain.is_none_or(|end| options.accept_uncertain_end || !moment.depends_on(end))
            && let Some(found) = Finder::new(self, &opener).find(moment).await?
        {
            let mut gathering = Gathering::of(keys, moment);
            let mut walk = Backward::new(self.clone(), (found.number, found.id), AggregationNumber(1));
            loop {
                // Records and parts of checkpoints may be the newest.
                let links = walk.next().await?;
                for link in &links {
                    gathering.handle(link)?;
                    if let Some(reached) = gathering.reached {
                        return Ok(reached);
                    }
                }
                if links.is_empty() {
                    break;
                }
            }
        }
        // What is in format 1, or was removed but for its image; or there is an error to be told.
        let state = self.disk_state(keys, moment, options).await?;
        state.reached().copied().ok_or_else(|| MomentError::Empty { vdisk: self.vdisk().clone() }.into())
    }

    /// Takes the writes up to the moment in, down to what the base has.
    async fn gather_writes(
        &self,
        start: Found,
        base: &Base,
        gathering: &mut Gathering,
    ) -> Result<(), DiskStateError> {
        let place = base.first().map(|checkpoint| checkpoint.record.place);
        let to = place.map_or(AggregationNumber(1), |place| place.aggregation.next());
        let mut walk = Backward::new(self.clone(), (start.number, start.id), to);
        loop {
            let links = walk.next().await?;
            if links.is_empty() {
                break;
            }
            for link in &links {
                gathering.handle(link)?;
            }
            self.keep_pace(links.iter().map(bytes_of_heads).sum()).await;
        }
        match (place, walk.before()) {
            (Some(place), Some(found)) => self.check_followed(&place, found),
            _ => Ok(()),
        }
    }

    /// The same where no write is taken: the image stands alone, and what is kept may begin right after it.
    async fn check_end(&self, base: &Base) -> Result<(), DiskStateError> {
        let first = self.extent().first;
        match base.first().map(|checkpoint| checkpoint.record.place) {
            Some(place) if place.blocks == place.of && place.aggregation.next() == first => {
                let follows = self.head_at(first).await?.head.header.prev;
                self.check_followed(&place, follows)
            }
            _ => Ok(()),
        }
    }

    /// An image must be of what the log has: where what comes after it is kept, that follows it.
    pub(crate) async fn check_is_of_chain(&self, place: &PlaceInLog) -> Result<(), DiskStateError> {
        let next = place.aggregation.next();
        match self.extent().contains(next) {
            true => self.check_followed(place, self.head_at(next).await?.head.header.prev),
            false => Ok(()),
        }
    }

    /// The image must be of what the next one follows.
    fn check_followed(&self, place: &PlaceInLog, found: AggregationId) -> Result<(), DiskStateError> {
        if found == place.id {
            return Ok(());
        }
        let source = ChainBreak::Prev { number: place.aggregation.next(), expected: place.id, found };
        Err(HistoryError::ChainBroken { vdisk: self.vdisk().clone(), source }.into())
    }

    /// Takes the image below the writes in.
    async fn gather_image(
        &self,
        base: &[Checkpoint],
        gathering: &mut Gathering,
    ) -> Result<(), DiskStateError> {
        let opener = gathering.opener.clone();
        for checkpoint in base {
            gathering.handle_checkpoint(checkpoint);
            self.parts_of(&opener, checkpoint, |part, entries| gathering.handle_part(part, &entries)).await?;
        }
        Ok(())
    }

    async fn gather_format1(&self, gathering: &mut Gathering) -> Result<(), DiskStateError> {
        let of_format1 = self.format1_walk(LinkRead::Enough).map_err(HistoryError::from)?;
        if let Some(mut walk) = of_format1 {
            while let Some(link) = walk.next().await.map_err(HistoryError::from)? {
                gathering.handle_link(&link);
                self.keep_pace(bytes_read(&link)).await;
            }
            gathering.count_from_the_oldest();
        }
        Ok(())
    }

    /// What can be said against a moment without reading the log: that it is not certain, or that there is no such number.
    pub(crate) fn check_moment(&self, moment: Moment, options: &ReadOptions) -> Result<(), MomentError> {
        let (vdisk, extent) = (self.vdisk(), self.extent());
        if let Some(end) = &extent.uncertain
            && !options.accept_uncertain_end
            && moment.depends_on(end)
        {
            return Err(MomentError::UncertainEnd { vdisk: vdisk.clone(), end: Box::new(end.clone()) });
        }
        if let Moment::Aggregation(number) = moment
            && !extent.is_empty()
            && !extent.contains(number)
            // An image of what was removed may be there.
            && (number > extent.last || number.0 == 0 || extent.first.0 <= 1)
        {
            let (first, last) = (extent.first, extent.last);
            return Err(MomentError::NoSuchAggregation { vdisk: vdisk.clone(), asked: number, first, last });
        }
        if extent.is_empty() && self.has_format1() {
            let doubts = self.format1_doubts();
            if !doubts.is_empty() && !options.accept_uncertain_end {
                let doubts = doubts.to_vec();
                return Err(MomentError::Format1UncertainEnd { vdisk: vdisk.clone(), doubts });
            }
            if matches!(moment, Moment::Aggregation(_)) {
                return Err(MomentError::NoNumbers { vdisk: vdisk.clone() });
            }
        }
        Ok(())
    }

    /// What the disk can be made from besides the writes from `start` back, the cheapest first: of checkpoints the newest that is not
    /// later, and at last all of history. Where the moment is in no aggregation that is kept, images of just that moment. None where
    /// what was there is gone.
    pub(crate) async fn bases_of(
        &self,
        keys: &VdiskKeys,
        moment: Moment,
        start: Option<Found>,
        options: &ReadOptions,
    ) -> Result<Vec<Base>, DiskStateError> {
        let first = self.extent().first;
        let beginning = first.0 <= 1;
        if self.extent().is_empty() || options.ignore_checkpoints && beginning {
            return Ok(if beginning || options.accept_pruned_base { vec![Base::new()] } else { Vec::new() });
        }
        let all = match self.checkpoints(keys).await {
            Err(error) if beginning => {
                tracing::warn!(vdisk = %self.vdisk(), %error, "records cannot be read; checkpoints are passed over");
                return Ok(vec![Base::new()]);
            }
            all => all?,
        };
        let place = |checkpoint: &Checkpoint| checkpoint.record.place;
        let fits = |c: &&Checkpoint| match (start, moment) {
            // Where the moment is in the middle of its aggregation, an image of the whole of that is later.
            (Some(Found { number, whole, .. }), _) => {
                c.is_base(first) && (place(c).aggregation < number || whole && place(c).aggregation == number)
            }
            // Everything that is kept is later: then the moment is what is before it, if that is early enough.
            (None, Moment::At(time)) => {
                c.is_base(first) && place(c).aggregation.next() == first && place(c).timestamp <= time
            }
            (None, moment) => c.is_of(moment),
        };
        let mut fitting: Vec<&Checkpoint> = all.iter().filter(fits).collect();
        fitting.sort_by_key(|c| std::cmp::Reverse((place(c).position, place(c).aggregation, c.number)));
        let mut bases: Vec<Base> =
            fitting.into_iter().map(|base| layers(&all, base).into_iter().cloned().collect()).collect();
        // Without a start there is no such moment where no image has it, and that is the error.
        if beginning || bases.is_empty() && (start.is_none() || options.accept_pruned_base) {
            bases.push(Base::new());
        }
        Ok(bases)
    }

    /// The error for a moment that nothing which is kept has.
    async fn not_found(&self, moment: Moment, format1: Option<Span>) -> Result<MomentError, DiskStateError> {
        let (vdisk, extent) = (self.vdisk(), self.extent());
        // The first one that has writes, and the last: records and checkpoints have none of their own.
        let mut span = format1;
        let mut history = self.history_of(extent.first..=extent.last);
        while let Some(infos) = history.next_batch().await? {
            for info in infos.iter().filter(|info| info.kind == Kind::Blocks) {
                Span::extend(&mut span, info);
            }
        }
        Ok(match span {
            Some(span) => moment.not_found(vdisk, extent, &span),
            None if extent.is_empty() => MomentError::Empty { vdisk: vdisk.clone() },
            None => MomentError::BasePruned { vdisk: vdisk.clone(), first: extent.first },
        })
    }
}

/// What a disk is made from besides writes that are read: images, the uppermost first. Empty: all writes there ever were are read.
pub(crate) type Base = Vec<Checkpoint>;

/// Bytes of the heads of an aggregation that were read, about: every store that has one answers it.
fn bytes_of_heads(link: &HeadCandidate) -> u64 {
    link.head.size() as u64 * link.holders.len() as u64
}

/// The state while the log is walked from new to old.
struct Gathering {
    opener: Opener,
    moment: Moment,
    reached: Option<MomentReached>,
    span: Option<Span>,
    /// The blocks of which the last write was met, and these writes, but for deletes.
    met: BlockSet,
    last_writes: Vec<(BlockIndex, BlockPlace)>,
    sources: Sources,
    /// Aggregations of format 1 that were passed. They are numbered back from the newest while it is not known how many there are.
    links: u64,
    /// Longest block of the log, and of the log up to the moment.
    longest: u32,
    longest_then: u32,
}

impl Gathering {
    fn of(keys: &VdiskKeys, moment: Moment) -> Self {
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

    fn handle(&mut self, link: &HeadCandidate) -> Result<(), DiskStateError> {
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
    fn handle_checkpoint(&mut self, Checkpoint { record, .. }: &Checkpoint) {
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

    fn handle_part(&mut self, part: &HeadCandidate, entries: &[BlockEntry]) {
        let passed = Passed { id: part.head.id, ..Passed::from(&part.head.header) };
        self.take_all(&passed, entries, true);
    }

    fn handle_link(&mut self, link: &Link) {
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
        let mut needed = false;
        for (position, entry) in entries.iter().enumerate().rev() {
            needed |= self.take(passed, position as u32, entry);
        }
        if needed {
            let Passed { id, cost, newest, .. } = *passed;
            let source = Source { id, cost, newest_timestamp: newest, is_checkpoint };
            self.sources.insert((passed.format, passed.number), source);
        }
    }

    /// Turns the numbers of format 1 around, now that it is known how many there are.
    fn count_from_the_oldest(&mut self) {
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
    fn take(&mut self, passed: &Passed, position: u32, entry: &BlockEntry) -> bool {
        if !self.met.insert(entry.index) {
            return false;
        }
        let &BlockEntry { length, hash_prefix, .. } = entry;
        let set = entry.operation == Operation::Set;
        let (format, aggregation) = (passed.format, passed.number);
        if set {
            let place = BlockPlace { format, aggregation, position, length, hash_prefix };
            self.last_writes.push((entry.index, place));
        }
        set
    }

    fn finish(self, given: Option<u32>) -> Result<DiskState, DiskStateError> {
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

impl DiskState {
    /// A disk that nothing was written to.
    pub fn empty(vdisk: VdiskId, block_size: u32) -> Self {
        Self { vdisk, reached: None, block_size, blocks: Vec::new(), sources: BTreeMap::new() }
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        &self.vdisk
    }

    /// Where in the log the moment is; none where the log is empty.
    pub fn reached(&self) -> Option<&MomentReached> {
        self.reached.as_ref()
    }

    /// Bytes of a block; 0 where nothing was ever written and no size was given.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// How many blocks have content.
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes up to the end of the highest block that has content; none where that does not fit 64 bits. A disk may be longer,
    /// with zeros at its end: the log does not know.
    pub fn disk_len(&self) -> Option<u64> {
        match self.blocks.last() {
            None => Some(0),
            Some((index, place)) => index.offset(self.block_size)?.checked_add(u64::from(place.length)),
        }
    }

    /// Bytes of content.
    pub fn content_bytes(&self) -> u64 {
        self.blocks.iter().map(|(_, place)| u64::from(place.length)).sum()
    }

    /// The blocks that have content, by rising index.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = (BlockIndex, &BlockPlace)> {
        self.blocks.iter().map(|(index, place)| (*index, place))
    }

    /// Where the data of a block is; none where it has no content and reads as zeros.
    pub fn get(&self, index: BlockIndex) -> Option<&BlockPlace> {
        let at = self.blocks.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        self.blocks.get(at).map(|(_, place)| place)
    }

    /// The blocks that have content, from this index on, by rising index: for finding what an image does not have any more.
    pub fn blocks_from(&self, index: BlockIndex) -> impl Iterator<Item = (BlockIndex, &BlockPlace)> {
        let at = self.blocks.partition_point(|(other, _)| *other < index);
        self.blocks.iter().skip(at).map(|(index, place)| (*index, place))
    }

    /// The blocks of this disk that another one has not, or has otherwise, as a disk state of its own; and those that only the other
    /// one has. Compares lengths and 128 bits of the hashes.
    pub fn apart_from(&self, other: &DiskState) -> (DiskState, Vec<BlockIndex>) {
        let same = |a: &BlockPlace, b: &BlockPlace| (a.length, a.hash_prefix) == (b.length, b.hash_prefix);
        let differs = |(index, place): &&(BlockIndex, BlockPlace)| {
            other.get(*index).is_none_or(|theirs| !same(place, theirs))
        };
        let blocks: Vec<(BlockIndex, BlockPlace)> = self.blocks.iter().filter(differs).copied().collect();
        let gone = other.blocks.iter().map(|(index, _)| *index).filter(|index| self.get(*index).is_none());
        let gone = gone.collect();
        (DiskState { blocks, ..self.clone() }, gone)
    }

    /// Whether a block of an image differs from the disk. Compares 128 bits of the hash, or with zeros where the block has no
    /// content; a short block is followed by zeros.
    pub fn differs(&self, index: BlockIndex, data: &[u8]) -> bool {
        self.differ([(index, data)]).first().copied().unwrap_or(true)
    }

    /// The same for many blocks, in order: faster, as they are hashed together.
    pub fn differ<'a>(&self, blocks: impl IntoIterator<Item = (BlockIndex, &'a [u8])>) -> Vec<bool> {
        let mut differs = Vec::new();
        let mut to_hash: Vec<(usize, &'a [u8], [u8; 16])> = Vec::new();
        for (at, (index, data)) in blocks.into_iter().enumerate() {
            let Some(place) = self.get(index) else {
                differs.push(!is_zero(data));
                continue;
            };
            differs.push(true); // unless its hash says otherwise
            if let Some((data, rest)) = data.split_at_checked(place.length as usize)
                && is_zero(rest)
            {
                to_hash.push((at, data, place.hash_prefix));
            }
        }
        let hashes: Vec<BlockHash> = hash_many(to_hash.iter().map(|(_, data, _)| *data));
        for ((at, _, expected), hash) in to_hash.iter().zip(&hashes) {
            if let Some(differs) = differs.get_mut(*at) {
                *differs = BlockEntry::prefix_of(hash) != *expected;
            }
        }
        differs
    }

    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
