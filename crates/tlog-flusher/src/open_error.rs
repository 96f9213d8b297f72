//! Why a log is not opened.

use std::fmt;

use tlog_codec::KeyId;
use tlog_proto::VdiskId;
use tlog_quorum::{OtherShape, ReadError, TooFewStores};
use tlog_store::NumberRanges;

use crate::format1::GoingOnError;
use crate::lookup::LookupError;
use crate::settings::InvalidSettings;

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Settings under which a writer cannot work.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    /// Not enough stores can be counted on.
    #[error(transparent)]
    TooFewStores(#[from] TooFewStores),
    /// The log has other numbers of shards than the settings say.
    #[error(transparent)]
    OtherShape(#[from] OtherShape),
    /// Others open the same log at the same time, again and again.
    #[error("vdisk {vdisk}: other servers keep opening it; make sure that only one serves it")]
    Contended {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// The log was sealed under a key that is not there: what is written now could not be read with it, nor what is there without it.
    #[error(
        "vdisk {vdisk}: its log is sealed under the key {id}, which is not in the key file; use the key file that it was written with, or \
         add that key to this one, below the first"
    )]
    ForeignKey {
        /// The vdisk.
        vdisk: VdiskId,
        /// The key.
        id: KeyId,
    },
    /// Committed aggregations cannot be rebuilt.
    #[error(
        "vdisk {vdisk}: committed aggregations {numbers} are held by too few stores ({needed} whole shards are needed); bring lost stores back, or restore what is readable"
    )]
    DataLost {
        /// The vdisk.
        vdisk: VdiskId,
        /// Which ones.
        numbers: Numbers,
        /// k.
        needed: usize,
    },
    /// An aggregation at the end may have been acknowledged and cannot be read now.
    #[error("the end of the log cannot be told: {0}")]
    UncertainEnd(#[source] ReadError),
    /// The adopted end of the log could not be made durable again.
    #[error("vdisk {vdisk}: the end of the log could not be written to {needed} stores again: {why}")]
    NotRewritten {
        /// The vdisk.
        vdisk: VdiskId,
        /// W.
        needed: usize,
        /// What the stores said.
        why: String,
    },
    /// Lost stores cannot be replaced like this.
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    /// What the log is to go on from cannot be told.
    #[error(transparent)]
    GoingOn(#[from] GoingOnError),
    /// Head parts that are needed to tell where the newest generation began cannot be read.
    #[error("the log cannot be searched: {0}")]
    Lookup(#[from] LookupError),
}

/// Why an opening does not go on without the stores that are said to be lost for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceError {
    /// No store knows the log.
    #[error("vdisk {vdisk}: no store knows a log of it; there is nothing that replacing stores could save")]
    NoLog {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// A store of which nobody knows whether it has something is no lost store.
    #[error(
        "vdisk {vdisk}: to go on without lost stores, every place must answer, those of lost stores with an empty one: {}", stores.join("; ")
    )]
    NotAllAnswer {
        /// The vdisk.
        vdisk: VdiskId,
        /// Each place that does not answer, or with the store of another place.
        stores: Vec<String>,
    },
    /// With so few left, nobody can tell what was acknowledged.
    #[error(
        "vdisk {vdisk}: only {left} of its stores are left, and {needed} are needed to tell what was acknowledged ({}); put back the old disk of one that was lost, if there is one", blank.join("; ")
    )]
    TooFewLeft {
        /// The vdisk.
        vdisk: VdiskId,
        /// Stores that the log knows and that answer.
        left: usize,
        /// How many are needed.
        needed: usize,
        /// The others.
        blank: Vec<String>,
    },
}

/// Ranges of aggregation numbers, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers(pub NumberRanges);

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first} to {last}")?,
            }
        }
        Ok(())
    }
}
