//! Reading one aggregation of format 1 from whatever stores hold its shards.

use std::fmt;

use bytes::Bytes;
use futures::future::join_all;
use tlog_codec::format1::{self, Format1Error, Keys};
use tlog_codec::{ErasureError, Redundancy};
use tlog_proto::{Aggregation, AggregationId, VdiskId};

use crate::survey::StoreSet;

/// An aggregation of format 1, proven by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its id.
    pub id: AggregationId,
    /// Id of the one before it.
    pub prev: AggregationId,
    /// What is in it.
    pub aggregation: Aggregation,
    /// All its shards as they must be.
    pub shards: Vec<Bytes>,
    /// What each store has of it.
    pub conditions: Vec<LinkCondition>,
}

impl Link {
    /// How many stores hold their whole shard, as far as they were asked.
    pub fn held(&self) -> usize {
        self.conditions.iter().filter(|condition| **condition == LinkCondition::Held).count()
    }
}

/// What a store has of an aggregation of format 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkCondition {
    /// Its shard. Where the aggregation cannot be put together: something, of which nothing is known.
    Held,
    /// Nothing.
    Missing,
    /// Something else.
    Damaged,
    /// It does not answer. What it said.
    Unreachable(String),
    /// Others were enough.
    NotAsked,
}

/// An aggregation of format 1 cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkError {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// Which aggregation.
    pub id: AggregationId,
    /// Why.
    pub fault: LinkFault,
    /// Address and condition of each store.
    pub conditions: Vec<(String, LinkCondition)>,
}

/// Why an aggregation of format 1 cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// Too few shards.
    #[error("{present} of {needed} needed shards can be read")]
    TooFew {
        /// Shards that could be read.
        present: usize,
        /// k.
        needed: usize,
    },
    /// No choice of its shards makes it up.
    #[error("too many of its shards are damaged")]
    Damaged,
    /// It is whole, and does not open.
    #[error("it does not open under this private key and nonce")]
    Key,
    /// It opens, and is no aggregation of whole blocks.
    #[error("it is no aggregation: {0}")]
    Content(String),
    /// It is another vdisk's.
    #[error("it belongs to vdisk {0}")]
    OtherVdisk(VdiskId),
    /// It names what cannot be an id.
    #[error("it names as the one before it something of {0} bytes; an id has 32")]
    Prev(usize),
    /// What comes before it comes after it too.
    #[error("the chain leads back to it")]
    Loop,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vdisk, id, fault, conditions } = self;
        write!(f, "vdisk {vdisk}, aggregation {id} of format 1: {fault}")?;
        for (address, condition) in conditions {
            match condition {
                LinkCondition::Held | LinkCondition::NotAsked => {}
                LinkCondition::Missing => write!(f, "; {address} does not hold its shard")?,
                LinkCondition::Damaged => write!(f, "; {address} holds a damaged shard")?,
                LinkCondition::Unreachable(_) => write!(f, "; {address} is out of reach")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for LinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.fault)
    }
}

/// How many stores are asked for their shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRead {
    /// As many as give it back, data shards first.
    Enough,
    /// All: tells what each of them has.
    All,
}

/// Bytes above which an aggregation is put together on a thread for that.
const LARGE: usize = 1 << 20;

/// Bytes that the search for damaged shards of one aggregation goes through at most, about. A small aggregation of
/// 10 + 4 is done long before; of a large one with many damaged shards not every choice is tried.
const SEARCH_BYTES: usize = 4 << 30;

impl StoreSet {
    /// Reads an aggregation of format 1. Goes around stores that do not answer and shards that are missing or damaged, as long
    /// as k are left.
    pub async fn link(&self, id: AggregationId, keys: &Keys, read: LinkRead) -> Result<Link, LinkError> {
        let total = self.stores().len();
        let mut shards = LinkShards::new(self, id);
        let mut asked = 0;
        loop {
            let missing = self.quorums().data().saturating_sub(shards.present());
            let more = match read {
                LinkRead::Enough => missing.min(total - asked),
                LinkRead::All => total - asked,
            };
            if more > 0 {
                self.read_link(asked..asked + more, &mut shards).await;
                asked += more;
                continue;
            }
            match open(shards.clone(), keys).await {
                // A shard does not prove itself: one of those that were read is damaged, and only more of them tell.
                Err(error) if error.fault == LinkFault::Damaged && asked < total => {
                    self.read_link(asked..total, &mut shards).await;
                    asked = total;
                }
                result => return result,
            }
        }
    }

    async fn read_link(&self, stores: std::ops::Range<usize>, into: &mut LinkShards) {
        let id = into.id;
        let reads = stores.clone().map(|i| async move {
            let store = self.stores().get(i)?;
            let Some(chains) = store.chains() else { return Some(Ok(None)) };
            Some(self.within_limit(store, chains.linked_shard(id)).await)
        });
        let answers = join_all(reads).await;
        for (i, answer) in stores.zip(answers) {
            let (condition, shard) = match answer {
                Some(Ok(Some(shard))) => (LinkCondition::Held, Some(shard)),
                Some(Ok(None)) | None => (LinkCondition::Missing, None),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a store could not be read");
                    (LinkCondition::Unreachable(error.to_string()), None)
                }
            };
            if let Some(slot) = into.conditions.get_mut(i) {
                *slot = condition;
            }
            if let Some(slot) = into.shards.get_mut(i) {
                *slot = shard;
            }
        }
    }
}

/// Reads of one aggregation so far.
#[derive(Clone)]
struct LinkShards {
    vdisk: VdiskId,
    id: AggregationId,
    redundancy: Redundancy,
    addresses: Vec<String>,
    shards: Vec<Option<Bytes>>,
    conditions: Vec<LinkCondition>,
}

/// Puts it together where it is, if that takes no time; the search for damaged shards can take seconds.
async fn open(shards: LinkShards, keys: &Keys) -> Result<Link, LinkError> {
    let bytes: usize = shards.shards.iter().flatten().map(Bytes::len).sum();
    if bytes < LARGE {
        match shards.clone().open(keys, 0) {
            Err(error) if error.fault == LinkFault::Damaged => {}
            result => return result,
        }
    }
    let longest = shards.shards.iter().flatten().map(Bytes::len).max().unwrap_or(0).max(1);
    let tries = (SEARCH_BYTES / longest / shards.redundancy.data()).clamp(64, 4096);
    let (vdisk, id, keys) = (shards.vdisk.clone(), shards.id, keys.clone());
    match tokio::task::spawn_blocking(move || shards.open(&keys, tries)).await {
        Ok(result) => result,
        // It panicked, or the runtime is shutting down.
        Err(error) => {
            Err(LinkError { vdisk, id, fault: LinkFault::Content(error.to_string()), conditions: Vec::new() })
        }
    }
}

impl LinkShards {
    fn new(set: &StoreSet, id: AggregationId) -> Self {
        let total = set.stores().len();
        Self {
            vdisk: set.vdisk().clone(),
            id,
            redundancy: set.quorums().redundancy(),
            addresses: set.stores().iter().map(|store| store.address().to_string()).collect(),
            shards: vec![None; total],
            conditions: vec![LinkCondition::NotAsked; total],
        }
    }

    fn present(&self) -> usize {
        self.shards.iter().flatten().count()
    }

    /// `tries` is how many choices of shards are tried where some are damaged.
    fn open(mut self, keys: &Keys, tries: usize) -> Result<Link, LinkError> {
        let joined = match format1::join_any(self.id, &self.shards, self.redundancy, tries) {
            Ok(joined) => joined,
            Err(Format1Error::Erasure(ErasureError::TooFew { present, needed })) => {
                return Err(self.fails(LinkFault::TooFew { present, needed }));
            }
            Err(_) => return Err(self.fails(LinkFault::Damaged)),
        };
        for damaged in joined.damaged {
            if let Some(condition) = self.conditions.get_mut(damaged) {
                *condition = LinkCondition::Damaged;
            }
        }
        let aggregation = match format1::open(&joined.ciphertext, keys.decrypter()) {
            Ok(aggregation) => aggregation,
            Err(Format1Error::Decrypt) => return Err(self.fails(LinkFault::Key)),
            Err(error) => return Err(self.fails(LinkFault::Content(error.to_string()))),
        };
        if aggregation.vdisk_id != self.vdisk {
            return Err(self.fails(LinkFault::OtherVdisk(aggregation.vdisk_id)));
        }
        let Ok(prev) = <[u8; 32]>::try_from(&aggregation.prev[..]) else {
            return Err(self.fails(LinkFault::Prev(aggregation.prev.len())));
        };
        Ok(Link {
            id: self.id,
            prev: AggregationId(prev),
            aggregation,
            shards: joined.shards,
            conditions: self.conditions,
        })
    }

    fn fails(self, fault: LinkFault) -> LinkError {
        let conditions = self.addresses.into_iter().zip(self.conditions).collect();
        LinkError { vdisk: self.vdisk, id: self.id, fault, conditions }
    }
}
