//! The writes of a log one after the other, from any of them on.

use tlog_proto::{Block, LogPosition};
use tlog_store::slave::{LastWrite, SlavePoint};

use super::follow::{FollowError, Followed, Follower};
use crate::history::AggregationInfo;

/// Gives writes as the follower gives aggregations.
#[derive(Debug)]
pub(crate) struct Cursor {
    pub(crate) follower: Follower,
    current: Option<Followed>,
    /// How many blocks of `current` were given, or of the first one are to be left out.
    given: usize,
}

impl Cursor {
    /// The first write that it gives is the one after the point from which the follower follows.
    pub(crate) fn new(follower: Follower, from: &SlavePoint) -> Self {
        Self { follower, current: None, given: from.blocks as usize }
    }

    /// Makes sure that there is a write to give. False where the log, as it was looked at last, has no more. Can be dropped and
    /// called again.
    pub(crate) async fn advance(&mut self) -> Result<bool, FollowError> {
        while self.current.as_ref().is_none_or(|current| self.given >= current.blocks.len()) {
            if self.current.take().is_some() {
                self.given = 0;
            }
            match self.follower.next().await? {
                None => return Ok(false),
                Some(next) => self.current = Some(next),
            }
        }
        Ok(true)
    }

    /// The next write, and where the log is after it; none where [`Self::advance`] must be asked first.
    pub(crate) fn peek(&self) -> Option<(&Block, SlavePoint, LastWrite)> {
        let Followed { info, blocks } = self.current.as_ref()?;
        let block = blocks.get(self.given)?;
        let point = SlavePoint { aggregation: info.number, blocks: self.given as u32 + 1, id: info.id };
        let position = LogPosition { generation: info.generation, sequence: block.sequence };
        Some((block, point, LastWrite { position, timestamp: block.timestamp }))
    }

    /// Goes past the write that [`Self::peek`] answers.
    pub(crate) fn pass(&mut self) {
        self.given += 1;
    }

    /// Whether the next write can be had without waiting.
    pub(crate) fn is_ready(&self) -> bool {
        self.peek().is_some() || self.follower.has_next_ready()
    }

    /// The aggregation of the next write, as far as it is known, and how many of its blocks are still to be given.
    pub(crate) fn at(&self) -> Option<(&AggregationInfo, u64)> {
        let left = |info: &AggregationInfo, given: usize| u64::from(info.blocks).saturating_sub(given as u64);
        match &self.current {
            Some(current) if self.given < current.blocks.len() => {
                Some((&current.info, left(&current.info, self.given)))
            }
            // The first one may be begun already.
            Some(_) => self.follower.peek().map(|info| (info, left(info, 0))),
            None => self.follower.peek().map(|info| (info, left(info, self.given))),
        }
    }
}
