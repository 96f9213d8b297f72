//! One syncer that has the slave, from taking it to losing it.

use tlog_ambient::{Point, reached};
use tlog_codec::VdiskKeys;
use tlog_proto::{Epoch, LogPosition};
use tlog_store::slave::{
    Claim, FillId, Restoring, SlaveMark, SlaveOwner, SlavePoint, SlavePosition, SlaveRecord, SlaveStep,
};

use super::adopt;
use super::cluster::{SlaveCluster, SlaveError, SlaveState, new_fill};
use super::cursor::Cursor;
use super::follow::{FollowError, Follower};
use super::needs_resync::{LegacyFault, NeedsResync};
use super::runs::Run;
use super::standing::Standing;
use crate::reader::LogReader;

/// Why a syncer does not have the slave, or does not have it any more.
#[derive(Debug)]
pub(crate) enum Parted {
    /// The slave is somebody's primary.
    Stopped,
    /// A restore fills it.
    Restoring(Box<Restoring>),
    /// It has to be filled anew.
    NeedsResync(NeedsResync),
    /// A store of the slave failed, or another took the slave over.
    Slave(SlaveError),
    /// The log cannot be read.
    Log(FollowError),
}

impl From<SlaveError> for Parted {
    fn from(error: SlaveError) -> Self {
        Parted::Slave(error)
    }
}

impl From<FollowError> for Parted {
    fn from(error: FollowError) -> Self {
        match error {
            FollowError::NoWayOn(reason) => Parted::NeedsResync(reason),
            error => Parted::Log(error),
        }
    }
}

impl From<NeedsResync> for Parted {
    fn from(reason: NeedsResync) -> Self {
        Parted::NeedsResync(reason)
    }
}

/// A slave that is held: nobody else can write to it while the epoch is the highest.
///
/// `applied` is, of each data store, the last write of the log that it has answered for. The blocks are those after the last of
/// these, `at`: everything before it was answered earlier.
#[derive(Debug)]
pub(crate) struct Session {
    slave: SlaveCluster,
    owner: SlaveOwner,
    epoch: Epoch,
    fill: FillId,
    at: SlavePosition,
    applied: Vec<SlavePoint>,
    recorded: Option<SlavePoint>,
}

impl Session {
    /// Takes the slave, and finds out how far the log was applied to it. What it takes to hold it stands in `had`: whether this
    /// owner had it before, so that whoever took it over since is left alone.
    pub(crate) async fn begin(
        slave: SlaveCluster,
        owner: SlaveOwner,
        had: &mut bool,
        reader: LogReader,
        keys: VdiskKeys,
    ) -> Result<(Self, Cursor), Parted> {
        let look = Look { reader, keys };
        let state = slave.state().await?;
        if *state.mark() == SlaveMark::Stopped {
            slave.settle_stop(&state).await?;
        }
        // Whoever cannot go on takes it from nobody: a restore may be about to mend it.
        look.at(&slave, &state).await?;
        let claim = if *had { Claim::Back } else { Claim::Over };
        let epoch = slave.promise(&state, owner, claim).await?;
        *had = true;
        slave.raise(epoch).await?;
        // Nobody else writes from here on; before, somebody may have.
        let Found { fill, at, applied, recorded, cursor } = look.at(&slave, &slave.state().await?).await?;
        let mut session = match fill {
            Some(fill) => Self { slave, owner, epoch, fill, at, applied, recorded: Some(recorded) },
            None => {
                let fill = new_fill()?;
                slave.begin(epoch, fill, Some(at.point)).await?;
                Self { slave, owner, epoch, fill, at, applied, recorded: None }
            }
        };
        // Of a new fill the record comes last: without it the parts are those of one that was interrupted.
        session.record().await?;
        Ok((session, cursor))
    }

    /// The slave holds everything up to here.
    pub(crate) fn at(&self) -> &SlavePosition {
        &self.at
    }

    /// Aggregations that were begun since the position was recorded.
    pub(crate) fn unrecorded(&self) -> u64 {
        let recorded = self.recorded.map_or(0, |point| point.aggregation.0);
        self.at.point.aggregation.0.saturating_sub(recorded)
    }

    /// Applies what comes next in the log.
    pub(crate) async fn apply(&mut self, run: &Run) -> Result<(), SlaveError> {
        let Some(applied) = self.applied.get_mut(run.store) else { return Ok(()) };
        let step = SlaveStep { fill: self.fill, from: Some(*applied), to: Some(run.to.point) };
        #[cfg(feature = "simulation")]
        if super::broken::is_broken() {
            *applied = run.to.point;
            self.at = run.to;
            self.record().await?;
        }
        reached(Point::BeforeSlaveData);
        self.slave.apply(run.store, self.epoch, &step, &run.changes).await?;
        reached(Point::AfterSlaveData);
        let Some(applied) = self.applied.get_mut(run.store) else { return Ok(()) };
        (*applied, self.at) = (run.to.point, run.to);
        Ok(())
    }

    /// Records how far it is.
    pub(crate) async fn record(&mut self) -> Result<(), SlaveError> {
        if self.recorded == Some(self.at.point) {
            return Ok(());
        }
        reached(Point::BeforeSlavePosition);
        self.slave.keep(self.epoch, &self.as_record(SlaveMark::Running)).await?;
        reached(Point::AfterSlavePosition);
        self.recorded = Some(self.at.point);
        Ok(())
    }

    /// Looks whether every store still has what it has answered for.
    pub(crate) async fn check(&self) -> Result<(), SlaveError> {
        let state = self.slave.state().await?;
        let changed = |address: &str| Err(SlaveError::Changed { address: address.to_owned() });
        if state.record.epoch != self.epoch || state.record.record.fill != Some(self.fill) {
            return changed(&state.metadata);
        }
        for ((address, part), applied) in state.parts.iter().zip(&self.applied) {
            let has = part.part.as_ref().filter(|part| part.fill == self.fill).and_then(|part| part.applied);
            if part.epoch != self.epoch || has != Some(*applied) || part.blocks != part.counted {
                return changed(address);
            }
        }
        Ok(())
    }

    /// Stops whoever would apply more: the slave is somebody's primary from now on.
    pub(crate) async fn hand_over(&mut self) -> Result<(), SlaveError> {
        self.check().await?;
        let state = self.slave.state().await?;
        self.epoch = self.slave.promise(&state, self.owner, Claim::Back).await?;
        self.slave.keep(self.epoch, &self.as_record(SlaveMark::Stopped)).await?;
        // Nobody else can write anyway. But a metadata store that is set back and forgets the mark is told by this from now on.
        self.slave.raise(self.epoch).await
    }

    fn as_record(&self, mark: SlaveMark) -> SlaveRecord {
        SlaveRecord { mark, fill: Some(self.fill), position: Some(self.at), applied: self.applied.clone() }
    }
}

/// How far the log is applied to a slave.
pub(crate) struct Found {
    /// Which fill it has; none where one is to be begun, of which the blocks that are there are those at `at`.
    fill: Option<FillId>,
    pub(crate) at: SlavePosition,
    applied: Vec<SlavePoint>,
    recorded: SlavePoint,
    /// What comes next.
    cursor: Cursor,
}

/// Looks at a slave with the eyes of its log. Changes nothing.
pub(crate) struct Look {
    pub(crate) reader: LogReader,
    pub(crate) keys: VdiskKeys,
}

impl Look {
    /// Up to where a slave that is stopped held this very log when it was; none: nothing of it.
    pub(crate) async fn held_when_stopped(&self, state: &SlaveState) -> Result<Option<LogPosition>, Parted> {
        let Some(SlavePosition { point, last }) = state.position() else { return Ok(None) };
        // Refuses where the log does not go as far.
        Follower::new(self.reader.clone(), self.keys.clone(), point)?;
        let aggregation = point.aggregation;
        if aggregation.0 > 0 {
            let infos = self.reader.history_of(aggregation..=aggregation).collect().await;
            let found = infos.map_err(FollowError::from)?.last().map(|info| info.id);
            if let Some(found) = found.filter(|found| *found != point.id) {
                return Err(NeedsResync::OtherLog { aggregation, expected: point.id, found }.into());
            }
        }
        Ok(last.map(|last| last.position))
    }

    pub(crate) async fn at(&self, slave: &SlaveCluster, state: &SlaveState) -> Result<Found, Parted> {
        match state.standing() {
            Standing::Stopped => Err(Parted::Stopped),
            Standing::Restoring(restoring) => Err(Parted::Restoring(Box::new(restoring))),
            Standing::NeedsResync(reason) => Err(reason.into()),
            Standing::Blank if self.reader.has_format1() => Err(NeedsResync::Format1.into()),
            Standing::Blank => self.found(slave, SlavePosition { point: SlavePoint::START, last: None }),
            Standing::Legacy { sequence, begun } => {
                let place = adopt::place_of(&self.reader, sequence).await?;
                if begun.is_some_and(|begun| begun != place.point) {
                    let why = LegacyFault::Contradicted;
                    return Err(NeedsResync::LegacyPosition { sequence, why }.into());
                }
                self.found(slave, place)
            }
            Standing::Filled { fill, position, recorded, applied } => {
                self.align(slave, state, fill, position, recorded, applied).await
            }
        }
    }

    fn found(&self, slave: &SlaveCluster, place: SlavePosition) -> Result<Found, Parted> {
        let follower = Follower::new(self.reader.clone(), self.keys.clone(), place.point)?;
        let cursor = Cursor::new(follower, &place.point);
        let applied = vec![place.point; slave.data().len()];
        Ok(Found { fill: None, at: place, applied, recorded: place.point, cursor })
    }

    /// Finds how far exactly the log was applied, and that no store lacks any of it.
    ///
    /// Writes are applied in order, so that the blocks are those after the last write that any store has. What each store must
    /// have then follows from the log: the last write up to there of a block that is on it.
    async fn align(
        &self,
        slave: &SlaveCluster,
        state: &SlaveState,
        fill: FillId,
        position: SlavePosition,
        recorded: Vec<SlavePoint>,
        applied: Vec<SlavePoint>,
    ) -> Result<Found, Parted> {
        let latest = applied.iter().map(SlavePoint::place).max().unwrap_or(position.point.place());
        let follower = Follower::new(self.reader.clone(), self.keys.clone(), position.point)?;
        let extent = follower.extent();
        if latest.0 > extent.last && extent.uncertain.is_none() {
            return Err(NeedsResync::SlaveAhead { applied: latest.0, last: extent.last }.into());
        }
        let mut cursor = Cursor::new(follower, &position.point);
        let (mut at, mut should) = (position, recorded);
        while at.point.place() < latest {
            if !cursor.advance().await? {
                return Err(Parted::Log(beyond_certain(&cursor, latest.0)));
            }
            let Some((block, point, last)) = cursor.peek() else { continue };
            if point.place() > latest {
                break;
            }
            if let Some(should) = should.get_mut(slave.store_of(block.index)) {
                *should = point;
            }
            at = SlavePosition { point, last: Some(last) };
            cursor.pass();
        }
        // Also where nothing is to be passed: the aggregation that the position names must be that of this log.
        cursor.advance().await?;
        for (((address, _), has), should) in state.parts.iter().zip(&applied).zip(&should) {
            if has == should {
                continue;
            }
            if has.place() >= should.place() && has.id != should.id {
                let (aggregation, expected, found) = (has.aggregation, has.id, should.id);
                return Err(NeedsResync::OtherLog { aggregation, expected, found }.into());
            }
            let (address, has, should) = (address.clone(), *has, *should);
            return Err(NeedsResync::StoreLostWrites { address, has, should }.into());
        }
        Ok(Found { fill: Some(fill), at, applied, recorded: position.point, cursor })
    }
}

fn beyond_certain(cursor: &Cursor, at: tlog_proto::AggregationNumber) -> FollowError {
    let reader = cursor.follower.reader();
    let missing = reader.extent().uncertain.as_ref().map(|end| end.missing.clone()).unwrap_or_default();
    FollowError::BeyondCertain { vdisk: reader.vdisk().clone(), at, missing }
}
