//! Deleting a log, from every store or not at all.

use tlog_proto::{Epoch, VdiskId};
use tlog_quorum::{StoreSet, TooFewStores};
use tlog_store::{LogState, StoreError};

/// A log was not deleted, or not from every store. It can be done again.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// A store that keeps its part of a deleted log would bring it back: an opening could find it where all others know nothing,
    /// and a disk that is put back later would be taken for a member.
    #[error("vdisk {vdisk}: its log is deleted from every store or from none, and these are missing: {}", missing.join("; "))]
    NotAllAnswer {
        /// The vdisk.
        vdisk: VdiskId,
        /// What each store that does not answer said.
        missing: Vec<String>,
    },
    /// One store is behind two places.
    #[error(transparent)]
    Stores(#[from] TooFewStores),
    /// A newer writer, or another delete, was faster.
    #[error("vdisk {vdisk}: a server opened the log meanwhile; stop serving it, then delete it again")]
    InUse {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// It is gone from some of the stores.
    #[error("vdisk {vdisk}: its log is not gone from every store, delete it again when they work: {}", stores.join("; "))]
    NotDeleted {
        /// The vdisk.
        vdisk: VdiskId,
        /// What each of the others said.
        stores: Vec<String>,
    },
}

/// Deletes the log of a vdisk from all n stores: fences every writer on all of them, then removes it from each. Answers how many
/// stores had something of it. After a crash, or an error, it can be called again and goes on.
///
/// Every store must answer. One that is out of reach keeps its shards, its list of members and its identity; when it came back,
/// it would be a store that remembers a log which all others have never heard of.
pub async fn delete_log(set: &StoreSet) -> Result<usize, DeleteError> {
    let vdisk = || set.vdisk().clone();
    let survey = set.survey().await;
    let missing: Vec<String> =
        survey.views.iter().filter_map(|view| view.answer.as_ref().err()).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Err(DeleteError::NotAllAnswer { vdisk: vdisk(), missing });
    }
    survey.require(0)?;
    let knew = known(survey.views.iter().map(|view| &view.answer));
    if knew == 0 {
        return Ok(0);
    }
    // Also where nothing is known of it: a writer may be filling that store.
    let epoch = survey.highest_epoch().next();
    let promises = set.on_all(|_, port| port.promise(set.vdisk(), epoch)).await;
    all_done(set, promises)?;
    all_done(set, set.on_all(|_, port| port.delete(set.vdisk(), epoch)).await)?;
    // A writer that had begun to fill an empty store before it was fenced can have made the log there again.
    let left = set.survey().await;
    if known(left.views.iter().map(|view| &view.answer)) > 0 {
        return Err(DeleteError::InUse { vdisk: vdisk() });
    }
    tracing::info!(vdisk = %set.vdisk(), stores = knew, last_epoch = %Epoch(epoch.0), "a log was deleted from all its stores");
    Ok(knew)
}

fn known<'a>(answers: impl Iterator<Item = &'a Result<LogState, StoreError>>) -> usize {
    answers.flatten().filter(|state| state.identity.is_some()).count()
}

fn all_done<T>(set: &StoreSet, answers: Vec<Result<T, StoreError>>) -> Result<(), DeleteError> {
    let errors: Vec<StoreError> = answers.into_iter().filter_map(Result::err).collect();
    if errors.iter().any(StoreError::is_fenced) {
        return Err(DeleteError::InUse { vdisk: set.vdisk().clone() });
    }
    if errors.is_empty() {
        return Ok(());
    }
    let stores = errors.iter().map(ToString::to_string).collect();
    Err(DeleteError::NotDeleted { vdisk: set.vdisk().clone(), stores })
}
