//! Looking at a slave with the eyes of its log, without holding it.

use tlog_codec::VdiskKeys;
use tlog_store::slave::{Restoring, SlavePosition};

use super::cluster::{SlaveCluster, SlaveError, SlaveState};
use super::follow::FollowError;
use super::needs_resync::NeedsResync;
use super::session::{Look, Parted};
use super::standing::Standing;
use crate::reader::LogReader;

/// What a syncer would do with a slave that is as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// Nothing: it is somebody's primary.
    Stopped,
    /// Wait: a restore fills it, or was interrupted.
    Restoring(Restoring),
    /// Fill it from the beginning of the log: nothing was ever put there.
    Blank,
    /// Go on from what an existing server has left.
    Legacy(SlavePosition),
    /// Go on from here: it is the disk after that write.
    Filled(SlavePosition),
    /// Nothing, before it was filled anew.
    NeedsResync(NeedsResync),
}

/// Whether a slave can be gone on with cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum OutlookError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] FollowError),
    /// The slave cannot.
    #[error(transparent)]
    Slave(#[from] SlaveError),
}

/// Looks whether a slave can be gone on with: what its stores say together, and whether its log has that. Changes nothing.
///
/// What stores say is of one moment only where nobody applies anything meanwhile.
pub async fn outlook(
    reader: &LogReader,
    keys: &VdiskKeys,
    slave: &SlaveCluster,
    state: &SlaveState,
) -> Result<Outlook, OutlookError> {
    let look = Look { reader: reader.clone(), keys: keys.clone() };
    let parted = match (state.standing(), look.at(slave, state).await) {
        (Standing::Blank, Ok(_)) => return Ok(Outlook::Blank),
        (Standing::Legacy { .. }, Ok(found)) => return Ok(Outlook::Legacy(found.at)),
        (_, Ok(found)) => return Ok(Outlook::Filled(found.at)),
        (_, Err(parted)) => parted,
    };
    match parted {
        Parted::Stopped => Ok(Outlook::Stopped),
        Parted::Restoring(restoring) => Ok(Outlook::Restoring(*restoring)),
        Parted::NeedsResync(reason) => Ok(Outlook::NeedsResync(reason)),
        Parted::Log(error) => Err(error.into()),
        Parted::Slave(error) => Err(error.into()),
    }
}
