//! Aggregations of which blocks are needed: which they are, and reading these blocks.
//!
//! Where most of an aggregation is needed it is read and opened whole. Where few of its blocks are, as of one that was written long ago on
//! a disk that is written all over, these alone are read, if their place in it is known: what is left of old history then costs what is
//! left of it, and not what it once was.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tlog_codec::{BodyBlock, Opener, PayloadPart};
use tlog_proto::{AggregationNumber, Block, BlockHash, BlockIndex, Operation, VdiskId};
use tlog_quorum::Candidate;

use crate::disk_state::{BlockPlace, DiskState, Source};
use crate::format1::{StoredFormat, bytes_read};
use crate::metric;
use crate::reader::{LogReader, Opens, Unreadable};
use crate::restore::{RestoreError, blocking};

/// Of an aggregation of which no more than one in so many bytes is needed, these alone are read.
const WHOLE_FROM: u64 = 2;

/// An aggregation of which blocks are needed.
pub(crate) struct Job {
    pub(crate) format: StoredFormat,
    pub(crate) number: AggregationNumber,
    pub(crate) source: Source,
    /// Position in the aggregation, and which block it is.
    blocks: Vec<(u32, BlockIndex)>,
    /// Few of its blocks are needed, and their places are known.
    few: bool,
}

/// Which aggregation a job reads.
pub(crate) type JobKey = (StoredFormat, AggregationNumber);

/// A block of a disk, proven by its hash.
pub(crate) struct DiskBlock {
    pub(crate) index: BlockIndex,
    pub(crate) hash: BlockHash,
    pub(crate) data: Bytes,
}

impl From<&Block> for DiskBlock {
    fn from(block: &Block) -> Self {
        Self { index: block.index, hash: block.hash, data: block.data.clone() }
    }
}

impl Job {
    pub(crate) fn key(&self) -> JobKey {
        (self.format, self.number)
    }

    /// How many of the aggregation's blocks are needed, and how many bytes these have.
    pub(crate) fn needs(&self, state: &DiskState) -> (u64, u64) {
        let bytes = |(_, index): &(u32, BlockIndex)| state.get(*index).map_or(0, |place| place.length.into());
        (self.blocks.len() as u64, self.blocks.iter().map(bytes).sum())
    }

    /// The needed blocks, where those at their positions are these.
    fn needed(&self, vdisk: &VdiskId, blocks: Vec<Option<Block>>) -> Result<Vec<Block>, RestoreError> {
        let needed = self.blocks.iter().zip(blocks).map(|(&(_, index), block)| {
            let block = block.filter(|b| b.index == index && b.operation == Operation::Set);
            block.ok_or_else(|| RestoreError::OtherState { vdisk: vdisk.clone(), number: self.number, index })
        });
        needed.collect()
    }

    /// The needed blocks, where these alone are to be read.
    fn few_blocks(&self, state: &DiskState) -> Option<Vec<BodyBlock>> {
        let block = |(_, index): &(u32, BlockIndex)| {
            let &BlockPlace { place_in_body: place, length, hash_prefix, .. } = state.get(*index)?;
            Some(BodyBlock { place, length, hash_prefix })
        };
        self.few.then(|| self.blocks.iter().map(block).collect())?
    }

    /// The needed blocks from their bytes as they are stored; none where these are not what the manifest says.
    fn open_few(&self, opener: &Opener, mut encrypted: Vec<(BodyBlock, Vec<u8>)>) -> Option<Vec<DiskBlock>> {
        let hashes = opener.open_parts(&self.source.plain?, &mut encrypted)?;
        let blocks = self.blocks.iter().zip(encrypted).zip(hashes);
        Some(
            blocks
                .map(|((&(_, index), (_, data)), hash)| DiskBlock { index, hash, data: data.into() })
                .collect(),
        )
    }
}

/// What is to be read, oldest first, each with what it costs.
pub(crate) fn jobs(state: &DiskState) -> Vec<(u64, Job)> {
    jobs_of(state, state.blocks())
}

/// The same for some blocks of the state.
pub(crate) fn jobs_of<'a>(
    state: &DiskState,
    of: impl Iterator<Item = (BlockIndex, &'a BlockPlace)>,
) -> Vec<(u64, Job)> {
    type Needed = (u64, Vec<(u32, BlockIndex)>);
    let mut needed: BTreeMap<JobKey, Needed> = BTreeMap::new();
    for (index, place) in of {
        let (bytes, blocks) = needed.entry((place.format, place.aggregation)).or_default();
        *bytes += u64::from(place.length);
        blocks.push((place.position, index));
    }
    let job = |((format, number), (bytes, blocks)): (JobKey, Needed)| {
        let source = *state.sources().get(&(format, number))?;
        let few = source.plain.is_some_and(|body| bytes.saturating_mul(WHOLE_FROM) <= body.len());
        Some((source.cost, Job { format, number, source, blocks, few }))
    };
    needed.into_iter().filter_map(job).collect()
}

impl LogReader {
    /// Reads the data of the blocks that are needed of an aggregation and hands it on, on a thread for what blocks or computes for long:
    /// of few blocks these alone. Answers how many bytes were read for it, too.
    pub(crate) async fn with_data<R: Send + 'static>(
        &self,
        job: Job,
        state: &DiskState,
        opener: Opener,
        work: impl Fn(&Job, &[DiskBlock]) -> Result<R, RestoreError> + Send + Sync + 'static,
    ) -> Result<(R, u64), RestoreError> {
        let (job, work) = (Arc::new(job), Arc::new(work));
        if let Some(few) = job.few_blocks(state)
            && let Some((encrypted, bytes)) = self.read_few(&job, few).await
        {
            let (job, work, opener) = (Arc::clone(&job), Arc::clone(&work), opener.clone());
            let open = move || job.open_few(&opener, encrypted).map(|blocks| work(&job, &blocks));
            if let Some(done) = blocking(open).await {
                return Ok((done?, bytes));
            }
        }
        self.with_blocks_counted(job, opener, move |job, blocks| {
            let blocks: Vec<DiskBlock> = blocks.iter().map(DiskBlock::from).collect();
            work(job, &blocks)
        })
        .await
    }

    /// The needed blocks as they are stored, and how many bytes that is. None where all of the aggregation has to be read for them.
    async fn read_few(&self, job: &Job, few: Vec<BodyBlock>) -> Option<(Vec<(BodyBlock, Vec<u8>)>, u64)> {
        let body = job.source.plain?;
        let of_blocks: Vec<Vec<PayloadPart>> =
            few.iter().map(|block| body.parts(block)).collect::<Option<_>>()?;
        let parts: Vec<PayloadPart> = of_blocks.iter().flatten().cloned().collect();
        let mut read = self.stores().payload_parts(self.survey(), job.number, &parts).await?.into_iter();
        let join = |(block, parts): (BodyBlock, &Vec<PayloadPart>)| {
            (block, read.by_ref().take(parts.len()).collect::<Vec<Bytes>>().concat())
        };
        let blocks: Vec<(BodyBlock, Vec<u8>)> = few.into_iter().zip(&of_blocks).map(join).collect();
        let bytes = blocks.iter().map(|(_, data)| data.len() as u64).sum();
        metric::aggregation_read(bytes);
        self.keep_pace(bytes).await;
        Some((blocks, bytes))
    }

    /// Reads the blocks of an aggregation that are needed and hands them on, on a thread for what blocks or computes for long.
    pub(crate) async fn with_blocks<R: Send + 'static>(
        &self,
        job: Job,
        opener: Opener,
        work: impl Fn(&Job, &[Block]) -> Result<R, RestoreError> + Send + Sync + 'static,
    ) -> Result<R, RestoreError> {
        Ok(self.with_blocks_counted(job, opener, work).await?.0)
    }

    /// The same, with how many bytes of shards were read for it.
    pub(crate) async fn with_blocks_counted<R: Send + 'static>(
        &self,
        job: impl Into<Arc<Job>>,
        opener: Opener,
        work: impl Fn(&Job, &[Block]) -> Result<R, RestoreError> + Send + Sync + 'static,
    ) -> Result<(R, u64), RestoreError> {
        let (job, vdisk) = (job.into(), self.vdisk().clone());
        if job.format == StoredFormat::One {
            let link = self.fetch_link(job.source.id).await?;
            let bytes = bytes_read(&link);
            return blocking(move || {
                let blocks = &link.aggregation.blocks;
                let at = job.blocks.iter().map(|(position, _)| blocks.get(*position as usize).cloned());
                let blocks = at.collect();
                Ok((work(&job, &job.needed(&vdisk, blocks)?)?, bytes))
            })
            .await;
        }
        let (number, id, of) = (job.number, job.source.id, vdisk.clone());
        let positions: Vec<u32> = job.blocks.iter().map(|(position, _)| *position).collect();
        let open = move |candidate: &Candidate| {
            let blocks = opener.blocks_at(&candidate.head, &candidate.payloads, &positions)?;
            // What was opened is right, whatever comes of it.
            Ok(job.needed(&of, blocks).and_then(|blocks| work(&job, &blocks)))
        };
        let (done, bytes) =
            self.fetch(number, id, Opens::OnThread, open).await.map_err(|error| match error {
                Unreadable::Lost(source) => RestoreError::DataLost { source },
                Unreadable::Pruned { first } => RestoreError::Pruned { vdisk: vdisk.clone(), first },
                Unreadable::Refused(source) => RestoreError::Open { vdisk: vdisk.clone(), number, source },
            })?;
        Ok((done?, bytes))
    }
}
