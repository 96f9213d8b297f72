//! What the stores of a slave say together. Pure.

use tlog_proto::Sequence;
use tlog_store::slave::{FillId, Restoring, SlaveMark, SlavePart, SlavePoint, SlavePosition};

use super::cluster::SlaveState;
use super::needs_resync::NeedsResync;

/// How a slave stands, by what its stores say; the log was not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is somebody's primary: nothing may be applied.
    Stopped,
    /// A restore fills it, or was interrupted.
    Restoring(Restoring),
    /// Nothing was ever put there.
    Blank,
    /// An existing server's syncer has filled it.
    Legacy {
        /// The sequence that it names.
        sequence: Sequence,
        /// Where an adoption has begun that was interrupted.
        begun: Option<SlavePoint>,
    },
    /// A fill is complete, and no store has lost what the record tells of.
    Filled {
        /// Which fill.
        fill: FillId,
        /// How far the log is applied, at least.
        position: SlavePosition,
        /// Of each data store, the last write applied at or before the position.
        recorded: Vec<SlavePoint>,
        /// Of each data store, the last write applied.
        applied: Vec<SlavePoint>,
    },
    /// What is there cannot be gone on with.
    NeedsResync(NeedsResync),
}

impl SlaveState {
    /// What the stores say together.
    pub fn standing(&self) -> Standing {
        match &self.record.record.mark {
            SlaveMark::Stopped => return Standing::Stopped,
            SlaveMark::Restoring(restoring) => return Standing::Restoring(*restoring),
            SlaveMark::Running => {}
        }
        let filled = match self.record.record.fill {
            None => self.unfilled(),
            Some(fill) => self.filled(fill),
        };
        filled.unwrap_or_else(Standing::NeedsResync)
    }

    fn unfilled(&self) -> Result<Standing, NeedsResync> {
        let parts = || self.parts.iter().filter_map(|(_, state)| state.part.as_ref());
        let begun = parts().map(|part| part.applied).next();
        let Some(sequence) = self.record.legacy_sequence else {
            let blocks = self.blocks();
            // Of a founding that was interrupted there is nothing but where it would begin.
            let begun = |part: &SlavePart| part.applied != Some(SlavePoint::START);
            return match (blocks, parts().any(begun)) {
                (0, false) => Ok(Standing::Blank),
                (_, false) if parts().next().is_none() => Err(NeedsResync::BlocksWithoutPosition { blocks }),
                _ => Err(NeedsResync::MetadataLost { address: self.metadata.clone() }),
            };
        };
        let differ = parts().any(|part| Some(part.applied) != begun || part.applied.is_none());
        if differ || self.metadata_is_set_back() {
            return Err(NeedsResync::MetadataLost { address: self.metadata.clone() });
        }
        Ok(Standing::Legacy { sequence, begun: begun.flatten() })
    }

    fn filled(&self, fill: FillId) -> Result<Standing, NeedsResync> {
        let stores = self.parts.len() as u32;
        let record = &self.record.record;
        let position = record.position.ok_or(NeedsResync::WasStopped)?;
        if self.metadata_is_set_back() {
            return Err(NeedsResync::MetadataLost { address: self.metadata.clone() });
        }
        let mut applied = Vec::with_capacity(self.parts.len());
        for (index, (address, state)) in (0..).zip(&self.parts) {
            let part = state.part.as_ref().filter(|part| part.fill == fill);
            let part = part.ok_or_else(|| NeedsResync::StoreReplaced { address: address.clone() })?;
            if (part.index, part.stores) != (index, stores) {
                return Err(NeedsResync::OtherShape {
                    address: address.clone(),
                    was_index: part.index,
                    was_stores: part.stores,
                    index,
                    stores,
                });
            }
            if state.blocks != state.counted {
                let (address, has, should) = (address.clone(), state.blocks, state.counted);
                return Err(NeedsResync::BlocksChanged { address, has, should });
            }
            applied
                .push(part.applied.ok_or_else(|| NeedsResync::StoreReplaced { address: address.clone() })?);
        }
        if record.applied.len() != self.parts.len() {
            // The data stores are as many as they say; the record is not one of theirs.
            return Err(NeedsResync::MetadataLost { address: self.metadata.clone() });
        }
        for (((address, _), has), should) in self.parts.iter().zip(&applied).zip(&record.applied) {
            let is_behind = has.place() < should.place() || (has.place() == should.place() && has != should);
            if is_behind {
                let (address, has, should) = (address.clone(), *has, *should);
                return Err(NeedsResync::StoreLostWrites { address, has, should });
            }
        }
        let recorded = record.applied.clone();
        Ok(Standing::Filled { fill, position, recorded, applied })
    }

    /// Every epoch is promised on the metadata store first. Where a data store knows a higher one, that of the metadata store was
    /// forgotten, and with it perhaps that the slave was stopped.
    pub(crate) fn metadata_is_set_back(&self) -> bool {
        self.parts.iter().any(|(_, state)| state.epoch > self.record.epoch)
    }
}
