//! Proof that a disk can be restored: everything that a restore would read is read, opened and checked, and written nowhere.
//!
//! A proof of moment M, begun at time X, says: from X on, while it ran, the stores gave everything back that the disk at M is made
//! of. Every aggregation with a block that counts was put together from k shards, opened with the keys at hand, and the hash of
//! each of its blocks checked; which write of a block counts follows from the chain of ids. It says nothing of shards that were not
//! read (`verify` looks at all of them), of other moments, and nothing of the time afterwards: disks rot. So nothing is taken over from an
//! earlier proof; each reads everything anew.
//!
//! # The digest
//!
//! BLAKE2b-256 of what the disk's content is, however it came to be written, so that two proofs can be compared with each other and
//! with an image:
//!
//! ```text
//! "tlog disk 1\n"                                                  12 bytes
//! block size                                                        4 bytes, little endian
//! for each block that is not all zeros, by rising index:
//!   index                                                           8 bytes, little endian
//!   BLAKE2b-256 of its block-size bytes, zeros behind a short one  32 bytes
//! ```
//!
//! Length is not a part of it: the log knows only where content ends, and behind that there are zeros.

use std::fmt;
use std::time::Duration;

use blake2b_simd::Params;
use tlog_codec::{Opener, VdiskKeys};
use tlog_proto::{AggregationNumber, BlockHash, BlockIndex, Timestamp, VdiskId};
use tlog_quorum::Standing;
use tokio::time::Instant;

use crate::disk_state::{DiskState, DiskStateError, ReadOptions, is_zero};
use crate::format1::Format1Error;
use crate::history::HistoryError;
use crate::in_flight::run_bounded;
use crate::job::{DiskBlock, Job, jobs};
use crate::metric;
use crate::moment::{Moment, MomentReached};
use crate::reader::{LogReader, OpenError};
use crate::restore::{RestoreError, RestoreProgress};

/// Times that a proof is begun, where what it reads is removed from history meanwhile.
const ATTEMPTS: usize = 3;

/// How to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProveOptions {
    /// What a person may have to say before the disk can be put together.
    pub read: ReadOptions,
    /// Bytes of memory for what is being read, about. One aggregation is read even if it takes more.
    pub memory: u64,
}

impl Default for ProveOptions {
    fn default() -> Self {
        Self { read: ReadOptions::default(), memory: 128 << 20 }
    }
}

/// What a disk's content is, in 32 bytes: see the module that computes it. Shown as hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskDigest(pub [u8; 32]);

impl fmt::Display for DiskDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A disk that can be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// Where in the log the proven moment is; none where the log is empty.
    pub reached: Option<MomentReached>,
    /// Highest aggregation of format 2 that the log certainly had; below the first where it had none.
    pub last: AggregationNumber,
    /// Where it cannot be told whether a later one was acknowledged, and that was accepted: the first such.
    pub uncertain_beyond: Option<AggregationNumber>,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes up to the end of the highest block that has content.
    pub disk_len: u64,
    /// Blocks that have content.
    pub blocks: u64,
    /// Bytes of that.
    pub bytes: u64,
    /// Aggregations that have it, all of which were read.
    pub aggregations: u64,
    /// What the content is.
    pub digest: DiskDigest,
    /// Addresses of stores that took no part: out of reach, wiped or replaced.
    pub absent_stores: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Proof {
    /// Whether it was proven with something missing: a store, or certainty about the end.
    pub fn is_degraded(&self) -> bool {
        self.uncertain_beyond.is_some() || !self.absent_stores.is_empty()
    }
}

/// That a disk can be restored could not be proven.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// Which write of each block counts cannot be told.
    #[error(transparent)]
    DiskState(#[from] DiskStateError),
    /// The data cannot be read.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// History was removed while it was read, and the log could not be opened again.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// What a proof that failed says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProveFault {
    /// On the stores in reach something is missing, or is not what was written: it cannot be restored from these.
    Lost,
    /// History was removed while it was read, again and again.
    Pruned,
    /// It could not be told: a key, a moment or certainty is missing.
    Unknown,
}

impl ProveError {
    /// What it says.
    pub fn fault(&self) -> ProveFault {
        use tlog_codec::OpenError::Key;
        match self {
            Self::DiskState(DiskStateError::History(error)) => match error {
                HistoryError::DataLost { .. } | HistoryError::ChainBroken { .. } => ProveFault::Lost,
                HistoryError::Format1(error) => of_format1(error),
                HistoryError::Pruned { .. } => ProveFault::Pruned,
            },
            Self::DiskState(DiskStateError::Manifest { source: Key(_), .. })
            | Self::Restore(RestoreError::Open { source: Key(_), .. }) => ProveFault::Unknown,
            Self::DiskState(DiskStateError::Manifest { .. }) => ProveFault::Lost,
            Self::Restore(RestoreError::Format1(error)) => of_format1(error),
            Self::Restore(
                RestoreError::DataLost { .. } | RestoreError::Open { .. } | RestoreError::OtherState { .. },
            ) => ProveFault::Lost,
            Self::Restore(RestoreError::Pruned { .. }) => ProveFault::Pruned,
            Self::Open(OpenError::TooFewStores(error)) if error.counted > 0 => ProveFault::Lost,
            Self::Open(_) | Self::DiskState(_) | Self::Restore(_) => ProveFault::Unknown,
        }
    }
}

fn of_format1(error: &Format1Error) -> ProveFault {
    match error {
        Format1Error::KeysMissing { .. } => ProveFault::Unknown,
        Format1Error::Unreadable { .. } | Format1Error::Broken { .. } => ProveFault::Lost,
    }
}

/// Proves that the disk at a moment can be restored. Reads what a restore reads, as fast as the reader's pacer lets it, and
/// begins again with the log as it is then where history is removed meanwhile. Takes 32 bytes of memory for each block that has
/// content, besides the disk state and what the options say. `progress` is called after each aggregation.
pub async fn prove(
    reader: &LogReader,
    keys: &VdiskKeys,
    moment: Moment,
    options: &ProveOptions,
    mut progress: impl FnMut(&RestoreProgress) + Send,
) -> Result<Proof, ProveError> {
    let began = Instant::now();
    let mut reader = reader.clone();
    let mut attempt = 1;
    loop {
        let proven = once(&reader, keys, moment, options, &mut progress).await;
        match proven {
            Ok(proof) => {
                metric::restore_proven();
                return Ok(Proof { took: began.elapsed(), ..proof });
            }
            Err(error) if error.fault() == ProveFault::Pruned && attempt < ATTEMPTS => {
                tracing::info!(vdisk = %reader.vdisk(), %error, "the proof begins again");
                reader = reader.refreshed().await?;
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn once(
    reader: &LogReader,
    keys: &VdiskKeys,
    moment: Moment,
    options: &ProveOptions,
    progress: &mut (impl FnMut(&RestoreProgress) + Send),
) -> Result<Proof, ProveError> {
    let state = reader.disk_state(keys, moment, &options.read).await?;
    let (vdisk, block_size) = (reader.vdisk().clone(), state.block_size());
    let too_long = || RestoreError::TooLong { vdisk: vdisk.clone(), block_size };
    let disk_len = state.disk_len().ok_or_else(too_long)?;
    let mut hashes = Hashes::of(&state);
    let jobs = jobs(&state);
    let mut so_far = RestoreProgress {
        aggregations_total: jobs.len() as u64,
        blocks_total: state.block_count() as u64,
        bytes_total: state.content_bytes(),
        ..RestoreProgress::default()
    };
    progress(&so_far);
    let opener = Opener::new(keys.clone());
    let run = |job| read_one(reader, job, opener.clone(), &state);
    run_bounded(jobs, options.memory, run, |read: Read| {
        so_far.aggregations += 1;
        so_far.blocks += read.hashes.len() as u64;
        so_far.bytes += read.bytes;
        so_far.position = so_far.position.max(read.newest_timestamp);
        hashes.take(&read.hashes);
        progress(&so_far);
    })
    .await?;
    let uncertain = reader.extent().uncertain.as_ref().filter(|end| moment.depends_on(end));
    let absent = reader.survey().views.iter().filter(|view| view.standing != Standing::Member);
    Ok(Proof {
        vdisk,
        reached: state.reached().copied(),
        last: reader.extent().last,
        uncertain_beyond: uncertain.map(|end| end.beyond),
        block_size,
        disk_len,
        blocks: so_far.blocks,
        bytes: so_far.bytes,
        aggregations: so_far.aggregations,
        digest: hashes.digest(),
        absent_stores: absent.map(|view| view.address.clone()).collect(),
        took: Duration::ZERO,
    })
}

/// What is kept of an aggregation that was read.
struct Read {
    /// None for a block that is all zeros.
    hashes: Vec<(BlockIndex, Option<BlockHash>)>,
    bytes: u64,
    newest_timestamp: Timestamp,
}

async fn read_one(
    reader: &LogReader,
    job: Job,
    opener: Opener,
    state: &DiskState,
) -> Result<Read, RestoreError> {
    let block_size = state.block_size();
    let look = move |job: &Job, blocks: &[DiskBlock]| {
        let hashes = blocks.iter().map(|block| (block.index, hash_of(block, block_size))).collect();
        let bytes = blocks.iter().map(|block| block.data.len() as u64).sum();
        Ok(Read { hashes, bytes, newest_timestamp: job.source.newest_timestamp })
    };
    Ok(reader.with_data(job, state, opener, look).await?.0)
}

/// The hash of a block of the disk.
fn hash_of(block: &DiskBlock, block_size: u32) -> Option<BlockHash> {
    if is_zero(&block.data) {
        return None;
    }
    if block.data.len() >= block_size as usize {
        return Some(block.hash); // which was checked against the data when it was read
    }
    let mut whole = block.data.to_vec();
    whole.resize(block_size as usize, 0);
    Some(BlockHash::of(&whole))
}

/// The hash of every block that has content, as they come.
struct Hashes {
    block_size: u32,
    /// By rising index; all zeros, which is no hash of anything, for a block that is zeros.
    blocks: Vec<(BlockIndex, [u8; 32])>,
}

impl Hashes {
    fn of(state: &DiskState) -> Self {
        let blocks = state.blocks().map(|(index, _)| (index, [0; 32])).collect();
        Self { block_size: state.block_size(), blocks }
    }

    fn take(&mut self, hashes: &[(BlockIndex, Option<BlockHash>)]) {
        for (index, hash) in hashes {
            let at = self.blocks.binary_search_by_key(index, |(index, _)| *index);
            let place = at.ok().and_then(|at| self.blocks.get_mut(at));
            if let (Some((_, place)), Some(hash)) = (place, hash) {
                *place = hash.0;
            }
        }
    }

    fn digest(&self) -> DiskDigest {
        let mut params = Params::new();
        let mut digest = params.hash_length(32).to_state();
        digest.update(b"tlog disk 1\n").update(&self.block_size.to_le_bytes());
        for (index, hash) in self.blocks.iter().filter(|(_, hash)| *hash != [0; 32]) {
            digest.update(&index.get().to_le_bytes()).update(hash);
        }
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(digest.finalize().as_bytes()).for_each(|(to, from)| *to = *from);
        DiskDigest(bytes)
    }
}
