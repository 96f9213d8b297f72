//! Logs for what is done to them beside writing: scrubs, replaced stores, marks, checkpoints, prunes.

use std::sync::Arc;

use tlog_flusher::Log;
use tlog_proto::VdiskId;
use tlog_quorum::StoreView;

use super::{FlusherStorage, OpenLogError, guard};

impl FlusherStorage {
    /// The writer of a vdisk's log of format 2: that of a client's session, or one that is opened now. Then the second answer is
    /// true, and whoever asked gives it back with [`FlusherStorage::let_go`]; a client that comes meanwhile takes the log over.
    pub(crate) async fn hold(
        &self,
        vdisk: &VdiskId,
        replacing: bool,
    ) -> Result<(Arc<Log>, bool), OpenLogError> {
        if let Some(log) = self.open_log(vdisk) {
            return Ok((log, false));
        }
        let turn = self.turn(vdisk);
        let _turn = turn.lock().await;
        if let Some(log) = self.open_log(vdisk) {
            return Ok((log, false));
        }
        self.open_for_holding(vdisk, replacing).await
    }

    /// The same where the log that was held has closed: that of the client's session that has taken it over here, or one that is opened
    /// again; but none where another server has it now.
    pub(crate) async fn hold_again(&self, before: &Arc<Log>) -> Result<(Arc<Log>, bool), OpenLogError> {
        let vdisk = before.vdisk();
        let turn = self.turn(vdisk);
        let _turn = turn.lock().await;
        if let Some(log) = self.open_log(vdisk).filter(|log| !Arc::ptr_eq(log, before)) {
            return Ok((log, false));
        }
        let set = self.store_set(vdisk).ok_or(OpenLogError::NumberOfStores)?;
        let is_newer = |view: &StoreView| {
            view.answer.as_ref().is_ok_and(|state| state.identity.is_some() && state.epoch > before.epoch())
        };
        if set.survey().await.views.iter().any(is_newer) {
            return Err(OpenLogError::TakenOver(vdisk.clone()));
        }
        self.open_for_holding(vdisk, false).await
    }

    async fn open_for_holding(
        &self,
        vdisk: &VdiskId,
        replacing: bool,
    ) -> Result<(Arc<Log>, bool), OpenLogError> {
        let set = self.store_set(vdisk).ok_or(OpenLogError::NumberOfStores)?;
        let (keys, settings) = (self.keys(vdisk)?, self.log.clone());
        let log = match replacing {
            true => Log::open_replacing(set, keys, settings, |_| {}).await,
            false => Log::open(set, keys, settings).await,
        };
        let log = Arc::new(log.map_err(OpenLogError::from)?);
        guard(&self.scrubbing).insert(vdisk.clone(), Arc::clone(&log));
        Ok((log, true))
    }

    pub(crate) async fn let_go(&self, log: &Arc<Log>, ours: bool) {
        if ours {
            guard(&self.scrubbing).retain(|_, other| !Arc::ptr_eq(other, log));
            // A client that has taken it over closed it already.
            let _closed = log.close().await;
        }
    }

    /// The same from where nobody can wait for it.
    pub(crate) fn abandon(&self, log: &Arc<Log>) {
        guard(&self.scrubbing).retain(|_, other| !Arc::ptr_eq(other, log));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let log = Arc::clone(log);
            runtime.spawn(async move { log.close().await });
        }
    }
}
