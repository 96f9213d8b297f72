//! Puts the disk at a moment together, from manifests alone.
//!
//! The moment is found, and from there the log is walked back, which proves it step by step, taking for each block the first write that is
//! met: that is the last one at the moment. The walk ends at the image of an earlier moment, or at the beginning. Where the log began in
//! format 1 it goes on there; that format has no manifests, so that all of its bytes are read.

use tlog_codec::{ChainBreak, Kind, Opener, PlaceInLog, VdiskKeys};
use tlog_proto::{AggregationId, AggregationNumber};
use tlog_quorum::{HeadCandidate, LinkRead};

use crate::checkpoint::{Checkpoint, layers};
use crate::disk_state::{DiskState, DiskStateError, ReadOptions};
use crate::find::{Finder, Found};
use crate::format1::bytes_read;
use crate::gathering::Gathering;
use crate::history::HistoryError;
use crate::moment::{Moment, MomentError, MomentReached, Span};
use crate::reader::LogReader;
use crate::walk::Backward;

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
        let (mut bases, mut nearest) = self.first_bases(keys, moment, start, options).await?;
        loop {
            for base in bases {
                let mut gathering = Gathering::of(keys, moment);
                gathering.longest = longest;
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
            let Some(tried) = nearest.take() else { break };
            bases = self.bases_of(keys, moment, start, options).await?;
            bases.retain(|base| base.first().is_none_or(|uppermost| uppermost.number != tried));
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

    /// The first of [`LogReader::bases_of`], mostly found without reading all records of the log. Where it is an image, and there may be
    /// others, the number of that.
    async fn first_bases(
        &self,
        keys: &VdiskKeys,
        moment: Moment,
        start: Option<Found>,
        options: &ReadOptions,
    ) -> Result<(Vec<Base>, Option<AggregationNumber>), DiskStateError> {
        let beginning = self.extent().first.0 <= 1;
        let nearest = match &start {
            Some(found) if !(options.ignore_checkpoints && beginning) => self.nearest_base(keys, found).await,
            _ => return Ok((self.bases_of(keys, moment, start, options).await?, None)),
        };
        Ok(match nearest {
            Ok(Some(nearest)) => (vec![vec![nearest.clone()]], Some(nearest.number)),
            Ok(None) if beginning || options.accept_pruned_base => (vec![Base::new()], None),
            Ok(None) => (Vec::new(), None),
            // Reading all of them says what that means.
            Err(_) => (self.bases_of(keys, moment, start, options).await?, None),
        })
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
            (Some(found), _) => c.is_base_of(&found, first),
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
