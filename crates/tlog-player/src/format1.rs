//! The part of a log that was written in format 1.
//!
//! A vdisk that existing servers have written has a chain of aggregations without numbers; a log of format 2 that went on from
//! it names its last one as what aggregation 1 follows. To everything above, the two parts are one history: first the chain,
//! then the numbers. Reading the chain takes its keys, and the bytes of all of it, since each aggregation names the one before
//! it behind the seal.

use std::fmt;
use std::sync::Arc;

use tlog_codec::format1::Keys;
use tlog_codec::{BlockEntry, PlainBody};
use tlog_proto::{
    AggregationId, AggregationNumber, Generation, LogPosition, Sequence, SessionId, Timestamp, VdiskId,
};
use tlog_quorum::{ChainEnd, ChainWalk, Link, LinkCondition, LinkError, LinkFault, LinkRead, StoreSet};

use crate::history::AggregationInfo;
use crate::metric;
use crate::reader::OpenError;

/// In which format something was stored. Everything of format 1 comes before everything of format 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StoredFormat {
    /// That of existing servers.
    One,
    /// That of this project.
    Two,
}

impl StoredFormat {
    /// 1 or 2.
    pub fn number(self) -> u8 {
        match self {
            StoredFormat::One => 1,
            StoredFormat::Two => 2,
        }
    }
}

/// Generation that everything of format 1 counts as: that format does not know generations.
const GENERATION: Generation = Generation(1);

/// The part of a log that was written in format 1 cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Format1Error {
    /// The reader was opened without its keys.
    #[error(
        "vdisk {vdisk}: its history begins in format 1 (aggregation {newest} and what is before it); set private-key and nonce, those of the server that wrote it"
    )]
    KeysMissing {
        /// The vdisk.
        vdisk: VdiskId,
        /// Its newest aggregation.
        newest: AggregationId,
    },
    /// An aggregation of it that could be read before cannot be read now.
    #[error("{source}; bring back stores")]
    Unreadable {
        /// Why.
        #[source]
        source: LinkError,
    },
    /// An aggregation of it cannot be read, and with it nothing before it.
    #[error(
        "{source}; it is number {back} of format 1, counted back from the newest; bring back stores or run tlog verify"
    )]
    Broken {
        /// Where, counted from the newest, which is 1.
        back: u64,
        /// Why.
        #[source]
        source: LinkError,
    },
}

/// How far reading history of format 1 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format1Progress {
    /// Aggregations that were read in this walk, from new to old. How many there are is not known before the end.
    pub aggregations: u64,
    /// Position in history: lowest timestamp of the aggregation that was read last.
    pub position: Timestamp,
}

/// Who is told how far reading history of format 1 is.
#[derive(Clone)]
pub(crate) struct OnProgress(pub(crate) Arc<dyn Fn(&Format1Progress) + Send + Sync>);

impl fmt::Debug for OnProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnProgress")
    }
}

/// What is before aggregation 1.
#[derive(Clone, Debug)]
pub(crate) enum Before {
    /// It has yet to be found out.
    Unknown,
    /// Nothing.
    Nothing,
    /// A chain of format 1.
    Chain(Arc<Chain>),
}

/// A chain of format 1.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) newest: AggregationId,
    pub(crate) keys: Option<Keys>,
    /// Newer ones that cannot be read and may have been acknowledged.
    pub(crate) doubts: Vec<LinkError>,
}

impl Before {
    /// What aggregation 1 follows; none where that is not known.
    pub(crate) fn id(&self) -> Option<AggregationId> {
        match self {
            Before::Unknown => None,
            Before::Nothing => Some(AggregationId::BEFORE_FIRST),
            Before::Chain(chain) => Some(chain.newest),
        }
    }

    pub(crate) fn chain(&self) -> Option<&Arc<Chain>> {
        match self {
            Before::Chain(chain) => Some(chain),
            _ => None,
        }
    }

    /// By what aggregation 1 says that it follows.
    pub(crate) fn of_anchor(anchor: AggregationId, keys: Option<Keys>) -> Self {
        if anchor == AggregationId::BEFORE_FIRST {
            return Before::Nothing;
        }
        Before::Chain(Arc::new(Chain { newest: anchor, keys, doubts: Vec::new() }))
    }

    /// By the lists of the stores, where no aggregation of format 2 says it.
    pub(crate) async fn of_lists(stores: &StoreSet, keys: Option<Keys>) -> Result<Self, OpenError> {
        let survey = stores.chain_survey().await;
        // Fewer could have come back empty, and the history be where it cannot be asked.
        survey.require(stores.chain_quorum()).map_err(OpenError::TooFewStores)?;
        if !survey.exists() {
            return Ok(Before::Nothing);
        }
        let Some(keys) = keys else {
            return Err(OpenError::Format1KeysMissing { vdisk: stores.vdisk().clone() });
        };
        let end = stores.chain_end(&survey, &keys).await.map_err(OpenError::Format1End)?;
        match end {
            ChainEnd { newest: Some(newest), doubts, .. } => {
                Ok(Before::Chain(Arc::new(Chain { newest, keys: Some(keys), doubts })))
            }
            // Nothing of it can be read, or there is only what was never acknowledged.
            end => end.certain().map(|_| Before::Nothing).map_err(OpenError::Format1End),
        }
    }
}

/// Walks a chain from new to old, and tells how far it is.
pub(crate) struct Format1Walk {
    walk: ChainWalk,
    on_progress: Option<OnProgress>,
    passed: u64,
}

impl Format1Walk {
    pub(crate) fn new(
        stores: &StoreSet,
        chain: &Chain,
        read: LinkRead,
        on_progress: Option<OnProgress>,
    ) -> Result<Self, Format1Error> {
        let Some(keys) = &chain.keys else {
            let (vdisk, newest) = (stores.vdisk().clone(), chain.newest);
            return Err(Format1Error::KeysMissing { vdisk, newest });
        };
        Ok(Self { walk: stores.chain_walk(chain.newest, keys, read), on_progress, passed: 0 })
    }

    /// The next older one; none after the first of the chain. An aggregation that cannot be read is tried once more.
    pub(crate) async fn next(&mut self) -> Result<Option<Link>, Format1Error> {
        let mut read = self.walk.next().await;
        if let Err(error) = &read
            && may_be_back(&error.fault)
        {
            tracing::warn!(%error, "asking the stores again");
            metric::read_repeated();
            read = self.walk.next().await;
        }
        let back = self.passed + 1;
        let link = read.map_err(|source| {
            metric::data_lost(1);
            Format1Error::Broken { back, source }
        })?;
        if let Some(link) = &link {
            self.passed = back;
            count_read(link);
            if let Some(OnProgress(tell)) = &self.on_progress {
                let oldest = link.aggregation.blocks.iter().map(|block| block.timestamp).min();
                tell(&Format1Progress {
                    aggregations: back,
                    position: oldest.unwrap_or(link.aggregation.timestamp),
                });
            }
        }
        Ok(link)
    }
}

/// Whether asking the stores again can help.
pub(crate) fn may_be_back(fault: &LinkFault) -> bool {
    matches!(fault, LinkFault::TooFew { .. } | LinkFault::Damaged)
}

/// Counts an aggregation that was read, and answers how many bytes of it.
pub(crate) fn count_read(link: &Link) -> u64 {
    let bytes = bytes_read(link);
    metric::aggregation_read(bytes);
    if link.held() < link.shards.len() && link.conditions.iter().any(is_fault) {
        metric::aggregation_made_up();
    }
    bytes
}

/// Bytes of its shards that were read.
pub(crate) fn bytes_read(link: &Link) -> u64 {
    link.shards.first().map_or(0, |shard| shard.len() as u64) * link.held() as u64
}

fn is_fault(condition: &LinkCondition) -> bool {
    !matches!(condition, LinkCondition::Held | LinkCondition::NotAsked)
}

/// What is kept of each aggregation of a chain while its history is put in order: no blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkInfo {
    id: AggregationId,
    first: Sequence,
    last: Sequence,
    oldest: Timestamp,
    newest: Timestamp,
    sealed_at: Timestamp,
    blocks: u32,
    plain_bytes: u64,
    shard_bytes: u32,
    holders: u8,
}

impl From<&Link> for LinkInfo {
    fn from(link: &Link) -> Self {
        let blocks = &link.aggregation.blocks;
        let sequence = |at: Option<&tlog_proto::Block>| at.map_or(Sequence(0), |block| block.sequence);
        let times = || blocks.iter().map(|block| block.timestamp);
        let sealed_at = link.aggregation.timestamp;
        Self {
            id: link.id,
            first: sequence(blocks.first()),
            last: sequence(blocks.last()),
            oldest: times().min().unwrap_or(sealed_at),
            newest: times().max().unwrap_or(sealed_at),
            sealed_at,
            blocks: u32::try_from(blocks.len()).unwrap_or(u32::MAX),
            plain_bytes: blocks.iter().map(|block| block.size() as u64).sum(),
            shard_bytes: link.shards.first().map_or(0, |s| u32::try_from(s.len()).unwrap_or(u32::MAX)),
            holders: u8::try_from(link.held()).unwrap_or(u8::MAX),
        }
    }
}

impl LinkInfo {
    /// As a line of history: the `number`th from the oldest, after `prev`.
    pub(crate) fn in_history(&self, number: u64, prev: AggregationId, total: usize) -> AggregationInfo {
        AggregationInfo {
            format: StoredFormat::One,
            kind: tlog_codec::Kind::Blocks,
            number: AggregationNumber(number),
            generation: GENERATION,
            session: SessionId::UNKNOWN,
            first_sequence: self.first,
            last_sequence: self.last,
            oldest_timestamp: self.oldest,
            newest_timestamp: self.newest,
            sealed_at: self.sealed_at,
            blocks: self.blocks,
            stored_bytes: u64::from(self.shard_bytes) * total as u64,
            plain_bytes: self.plain_bytes,
            holders: usize::from(self.holders),
            id: self.id,
            prev,
        }
    }

    pub(crate) fn id(&self) -> AggregationId {
        self.id
    }
}

/// What a walk from new to old needs to know of an aggregation of either format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passed {
    pub(crate) format: StoredFormat,
    /// In format 1: counted back from the newest, until the walk is over.
    pub(crate) number: AggregationNumber,
    pub(crate) id: AggregationId,
    pub(crate) generation: Generation,
    pub(crate) first: LogPosition,
    pub(crate) last: LogPosition,
    /// Lowest and highest sequence.
    pub(crate) sequences: (Sequence, Sequence),
    pub(crate) oldest: Timestamp,
    pub(crate) newest: Timestamp,
    /// Length of the longest block, of it and perhaps of what is before it.
    pub(crate) block_size: u32,
    /// Bytes of memory that reading it takes, about.
    pub(crate) cost: u64,
    /// Its body, where blocks can be read out of it alone.
    pub(crate) plain: Option<PlainBody>,
}

impl Passed {
    /// What is known of an aggregation of format 1; none where it has no blocks.
    pub(crate) fn of_link(link: &Link, back: u64, entries: &[BlockEntry]) -> Option<Self> {
        let at = |entry: &BlockEntry| LogPosition { generation: GENERATION, sequence: entry.sequence };
        let sequences = || entries.iter().map(|entry| entry.sequence);
        let times = || entries.iter().map(|entry| entry.timestamp);
        let stored: u64 = link.shards.iter().map(|shard| shard.len() as u64).sum();
        let plain: u64 = entries.iter().map(|entry| u64::from(entry.length)).sum();
        Some(Self {
            format: StoredFormat::One,
            number: AggregationNumber(back),
            id: link.id,
            generation: GENERATION,
            first: at(entries.first()?),
            last: at(entries.last()?),
            sequences: (sequences().min()?, sequences().max()?),
            oldest: times().min()?,
            newest: times().max()?,
            block_size: entries.iter().map(|entry| entry.length).max()?,
            cost: stored.saturating_add(plain.saturating_mul(2)),
            plain: None,
        })
    }
}

impl From<&tlog_codec::Header> for Passed {
    /// Everything but the id, which is not in the header.
    fn from(header: &tlog_codec::Header) -> Self {
        let at = |sequence| LogPosition { generation: header.generation, sequence };
        Self {
            format: StoredFormat::Two,
            number: header.number,
            id: AggregationId::BEFORE_FIRST,
            generation: header.generation,
            first: at(header.first_sequence),
            last: at(header.last_sequence),
            sequences: (header.first_sequence, header.last_sequence),
            oldest: header.oldest_timestamp,
            newest: header.newest_timestamp,
            block_size: header.block_size,
            cost: (header.body_sealed + header.body_plain).saturating_mul(2),
            plain: PlainBody::of(header),
        }
    }
}
