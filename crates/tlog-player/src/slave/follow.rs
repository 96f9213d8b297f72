//! Reading a log forward, as it grows.

use std::collections::VecDeque;

use tlog_codec::{Kind, Opener, VdiskKeys};
use tlog_proto::{AggregationId, AggregationNumber, Block};
use tlog_quorum::{Candidate, ReadError};
use tlog_store::slave::SlavePoint;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::needs_resync::NeedsResync;
use crate::extent::Extent;
use crate::history::{AggregationInfo, History, HistoryError};
use crate::reader::{LogReader, OpenError, Opens, Unreadable};
use crate::task::Task;

/// Aggregations that are read ahead at once.
const MOST_AHEAD: usize = 16;
/// Bytes of memory for what is read ahead, about. One aggregation is read even if it takes more.
const BYTES_AHEAD: u64 = 32 << 20;
/// The same of all followers in a process, in KiB: a thousand slaves that come back at once must not take all memory. What a follower
/// needs next it reads in any case.
static KIB_AHEAD: Semaphore = Semaphore::const_new(256 << 10);

/// Gives the aggregations of format 2 of a log that have writes one after the other, with their blocks, and goes on as the log grows. Each is
/// proven to follow the one before.
///
/// Only what certainly belongs to the log is given: what too few stores in reach hold could still be ruled out.
#[derive(Debug)]
pub struct Follower {
    reader: LogReader,
    opener: Opener,
    /// What was listed up to now.
    listing: Option<Listing>,
    /// The next number to list, and the id that it must follow; none for the first, which is checked by its own id.
    next: AggregationNumber,
    follows: Option<AggregationId>,
    /// Where it began.
    from: SlavePoint,
    /// Listed, and not being read yet.
    listed: VecDeque<AggregationInfo>,
    reading: VecDeque<Reading>,
}

struct Listing(History);

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listing")
    }
}

/// An aggregation with its blocks.
#[derive(Clone, Debug)]
pub struct Followed {
    /// What is known of it without a key.
    pub info: AggregationInfo,
    /// Its blocks, in order.
    pub blocks: Vec<Block>,
}

/// A log cannot be followed on. Asking again can help, unless it is [`FollowError::NoWayOn`].
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The stores do not tell how far it goes.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What comes next is lost, or does not follow.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Too few shards of an aggregation are in reach.
    #[error("{0}; bring back stores")]
    Read(#[from] ReadError),
    /// An aggregation does not open.
    #[error("vdisk {vdisk}, aggregation {number}: {source}")]
    Decode {
        /// The vdisk.
        vdisk: tlog_proto::VdiskId,
        /// Which aggregation.
        number: AggregationNumber,
        /// What is wrong.
        #[source]
        source: tlog_codec::OpenError,
    },
    /// Where it is followed from lies beyond what certainly belongs to the log.
    #[error(
        "vdisk {vdisk}: whether aggregation {at} belongs to the log cannot be told without stores that are out of reach: {}",
        missing.join(", ")
    )]
    BeyondCertain {
        /// The vdisk.
        vdisk: tlog_proto::VdiskId,
        /// Which aggregation.
        at: AggregationNumber,
        /// Stores whose return would tell.
        missing: Vec<String>,
    },
    /// It cannot be followed from there.
    #[error("cannot be followed from there: {0}")]
    NoWayOn(#[from] NeedsResync),
}

/// A read that is under way, and ends when nobody waits for it any more.
#[derive(Debug)]
struct Reading {
    info: AggregationInfo,
    task: Task<Result<Vec<Block>, FollowError>>,
    /// None where it is read without there being any.
    _room: Option<SemaphorePermit<'static>>,
}

impl Follower {
    /// Follows the log from a point on: the first aggregation that it gives is the one that the point is in, all of it; after
    /// [`SlavePoint::START`] aggregation 1.
    pub fn new(reader: LogReader, keys: VdiskKeys, from: SlavePoint) -> Result<Self, FollowError> {
        let number = from.aggregation;
        if number.0 == 0 && from.blocks > 0 {
            return Err(NeedsResync::Format1Moment.into());
        }
        let next = if number.0 == 0 { AggregationNumber(1) } else { number };
        let follower = Self {
            opener: Opener::new(keys),
            listing: None,
            next,
            follows: if number.0 == 0 { Some(from.id) } else { None },
            from,
            listed: VecDeque::new(),
            reading: VecDeque::new(),
            reader,
        };
        follower.check_extent()?;
        Ok(follower)
    }

    /// Which aggregations the log had when it was looked at last.
    pub fn extent(&self) -> &Extent {
        self.reader.extent()
    }

    /// The log as it was looked at last.
    pub fn reader(&self) -> &LogReader {
        &self.reader
    }

    /// Looks how far the log goes now.
    pub async fn refresh(&mut self) -> Result<(), FollowError> {
        self.reader = self.reader.refreshed().await?;
        self.check_extent()
    }

    /// The next one; none where the log, as it was looked at last, has no more. Can be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<Followed>, FollowError> {
        self.read_ahead().await?;
        let Some(reading) = self.reading.front_mut() else { return Ok(None) };
        let blocks = (&mut reading.task).await;
        let Some(reading) = self.reading.pop_front() else { return Ok(None) };
        let info = reading.info;
        match blocks {
            Ok(blocks) => Ok(Some(Followed { info, blocks })),
            Err(error) => {
                // It is read again when it is asked for again.
                let later = self.reading.drain(..).map(|reading| reading.info);
                let again: Vec<AggregationInfo> = std::iter::once(info).chain(later).collect();
                again.into_iter().rev().for_each(|info| self.listed.push_front(info));
                Err(error)
            }
        }
    }

    /// Whether [`Self::next`] would answer one at once.
    pub fn has_next_ready(&self) -> bool {
        self.reading.front().is_some_and(|reading| reading.task.is_finished())
    }

    /// The aggregation that [`Self::next`] answers, as far as it is known without reading.
    pub fn peek(&self) -> Option<&AggregationInfo> {
        self.reading.front().map(|reading| &reading.info).or(self.listed.front())
    }

    /// Whether the log still has what was given up to now.
    fn check_extent(&self) -> Result<(), FollowError> {
        let Extent { first, last, uncertain, .. } = self.extent();
        let given = self.follows.and(self.next.previous()).unwrap_or(self.from.aggregation);
        if given > *last {
            return Err(match uncertain {
                Some(end) => FollowError::BeyondCertain {
                    vdisk: self.reader.vdisk().clone(),
                    at: given,
                    missing: end.missing.clone(),
                },
                None => NeedsResync::SlaveAhead { applied: given, last: *last }.into(),
            });
        }
        if last.0 == 0 && self.reader.before().id().is_some_and(|id| id != self.from.id) {
            // Format 1 has gone on, or the log was begun anew.
            return Err(NeedsResync::Format1.into());
        }
        let needed = self.listed.front().map_or(self.next, |info| info.number);
        if needed < *first {
            return Err(NeedsResync::Pruned { next: needed, first: *first }.into());
        }
        match (self.follows, self.reader.last_id()) {
            (Some(expected), Some(found)) if given == *last && given.0 > 0 && found != expected => {
                Err(NeedsResync::OtherLog { aggregation: given, expected, found }.into())
            }
            _ => Ok(()),
        }
    }

    /// Has as much read as the bounds allow.
    async fn read_ahead(&mut self) -> Result<(), FollowError> {
        // Where it is not the end, what was listed may all have been without writes.
        while self.listed.is_empty() && self.reading.len() < MOST_AHEAD / 2 && self.next <= self.extent().last
        {
            match self.list().await {
                // What is being read comes first; the fault is met again after it.
                Err(_) if !self.reading.is_empty() => break,
                listed => listed?,
            }
        }
        let mut bytes: u64 = self.reading.iter().map(|reading| cost(&reading.info)).sum();
        while let Some(info) = self.listed.front().copied() {
            let fits = self.reading.len() < MOST_AHEAD && bytes + cost(&info) <= BYTES_AHEAD;
            let kib = u32::try_from(cost(&info).div_ceil(1024)).unwrap_or(u32::MAX);
            let room = KIB_AHEAD.try_acquire_many(kib).ok();
            let is_next = self.reading.is_empty();
            if !(is_next || fits && room.is_some()) {
                break;
            }
            bytes += cost(&info);
            self.listed.pop_front();
            let task = Task::spawn(read(self.reader.clone(), self.opener.clone(), info));
            self.reading.push_back(Reading { info, task, _room: room });
        }
        Ok(())
    }

    /// Lists the next few that the log has.
    async fn list(&mut self) -> Result<(), FollowError> {
        let last = self.extent().last;
        if self.next > last {
            self.listing = None;
            return Ok(());
        }
        let listing = match self.listing.take() {
            Some(listing) => listing,
            None => Listing(self.reader.history_of(self.next..=last)),
        };
        let Listing(history) = self.listing.insert(listing);
        let batch = match history.next_batch().await {
            Ok(Some(batch)) => batch,
            // To the end of what it was begun for; the log has grown since.
            Ok(None) => {
                self.listing = None;
                return Ok(());
            }
            Err(error) => {
                self.listing = None;
                return Err(match error {
                    HistoryError::Pruned { first, .. } if first > self.next => {
                        NeedsResync::Pruned { next: self.next, first }.into()
                    }
                    error => error.into(),
                });
            }
        };
        for info in batch {
            let (aggregation, expected, found) = match self.follows {
                Some(id) => (self.next.previous().unwrap_or_default(), id, info.prev),
                None => (self.next, self.from.id, info.id),
            };
            if info.number != self.next || expected != found {
                self.listing = None;
                return Err(NeedsResync::OtherLog { aggregation, expected, found }.into());
            }
            (self.next, self.follows) = (info.number.next(), Some(info.id));
            if info.kind == Kind::Blocks {
                self.listed.push_back(info);
            }
        }
        Ok(())
    }
}

/// Bytes of memory that reading an aggregation takes, about.
fn cost(info: &AggregationInfo) -> u64 {
    info.stored_bytes.saturating_add(info.plain_bytes)
}

async fn read(reader: LogReader, opener: Opener, info: AggregationInfo) -> Result<Vec<Block>, FollowError> {
    let vdisk = reader.vdisk().clone();
    let open = move |candidate: &Candidate| opener.blocks(&candidate.head, &candidate.payloads);
    let read = reader.fetch(info.number, info.id, Opens::OnThread, open).await;
    read.map(|(blocks, _)| blocks).map_err(|error| match error {
        Unreadable::Lost(error) => FollowError::Read(error),
        Unreadable::Pruned { first } => NeedsResync::Pruned { next: info.number, first }.into(),
        Unreadable::Refused(source) => FollowError::Decode { vdisk, number: info.number, source },
    })
}
