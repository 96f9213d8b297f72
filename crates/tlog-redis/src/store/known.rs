//! Which log a command is meant for.
//!
//! What a caller has sent can reach the server when nobody waits for it any more, even minutes later: a network that was cut
//! delivers what it still has. By then the log may be deleted, and another made in its name, whose epochs begin at 1 again. So
//! what changes a log says which one it means, and a script refuses it where there is another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::{RedisError, RedisResult, Value};
use tlog_proto::VdiskId;
use tlog_store::{StoreErrorKind, StoreIdentity};

use super::{RedisStore, Reply};
use crate::kind_of;
use crate::layout::{self, Keys};
use crate::scripts::{Call, Script};

/// What this client knows of the logs that it has to do with.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<BTreeMap<VdiskId, KnownLog>>);

#[derive(Debug, Default)]
struct KnownLog {
    identity: Option<StoreIdentity>,
    /// Of format 1: what is in front of the list, `-` for nothing.
    front: Option<Vec<u8>>,
    run: Arc<AtomicU64>,
}

impl Known {
    /// The identity as an argument of a script; empty where it was not told yet.
    pub(super) fn text(&self, vdisk: &VdiskId) -> String {
        let identity = self.logs().get(vdisk).and_then(|log| log.identity);
        identity.map(|identity| identity.to_string()).unwrap_or_default()
    }

    /// From now on this log is meant; whichever there is, where it is none.
    pub(super) fn set(&self, vdisk: &VdiskId, identity: Option<StoreIdentity>) {
        self.logs().entry(vdisk.clone()).or_default().identity = identity;
    }

    /// The same, unless one is meant already. Whoever only looks at a log does not change which one a writer means.
    pub(super) fn suggest(&self, vdisk: &VdiskId, identity: Option<StoreIdentity>) {
        let mut logs = self.logs();
        let log = logs.entry(vdisk.clone()).or_default();
        log.identity = log.identity.or(identity);
    }

    /// Of format 1: what this client knows in front of the list, as an argument of a script; empty where it has not looked.
    pub(crate) fn front(&self, vdisk: &VdiskId) -> Vec<u8> {
        self.logs().get(vdisk).and_then(|log| log.front.clone()).unwrap_or_default()
    }

    /// It is this now.
    pub(crate) fn set_front(&self, vdisk: &VdiskId, front: Vec<u8>) {
        self.logs().entry(vdisk.clone()).or_default().front = Some(front);
    }

    /// The same, unless something is known already: whoever only looks does not change what a writer knows.
    pub(crate) fn suggest_front(&self, vdisk: &VdiskId, front: Option<&Vec<u8>>) {
        let front = front.cloned().unwrap_or_else(|| b"-".to_vec());
        self.logs().entry(vdisk.clone()).or_default().front.get_or_insert(front);
    }

    /// The start of the server in which the last append or publish was answered; 0 before, and after one that failed.
    pub(super) fn run(&self, vdisk: &VdiskId) -> Arc<AtomicU64> {
        Arc::clone(&self.logs().entry(vdisk.clone()).or_default().run)
    }

    fn logs(&self) -> MutexGuard<'_, BTreeMap<VdiskId, KnownLog>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RedisStore {
    /// A script that changes a log: the one that this client knows, or whichever there is where it knows none.
    pub(super) fn meaning<'a>(&self, vdisk: &VdiskId, script: &'a Script, keys: &[&String]) -> Call<'a> {
        script.call(keys).arg(self.known.text(vdisk))
    }

    /// Runs what [`Self::meaning`] began. Answers `NoLog` at once where there is another log: whoever tries again then means that one.
    pub(super) async fn change(
        &self,
        vdisk: &VdiskId,
        keys: &Keys,
        call: Call<'_>,
    ) -> Result<Reply, StoreErrorKind> {
        let reply = self.call(call).await?;
        self.meant(vdisk, keys, reply)
    }

    /// The same for a writer, that counts on what it stored before: it is told once if the server was started anew since, so that it
    /// looks at what is still there. It may be an older state of the same log.
    pub(super) async fn write(
        &self,
        vdisk: &VdiskId,
        keys: &Keys,
        call: Call<'_>,
    ) -> Result<Reply, StoreErrorKind> {
        let run = self.known.run(vdisk);
        let answer = call.run_on_same(&self.link, &run).await;
        self.written(vdisk, keys, &run, answer)
    }

    /// The same right behind a command that puts a value under a key, for so many milliseconds, where the script is to find it.
    pub(super) async fn write_behind(
        &self,
        put: (&str, &layout::Value<'_>, u64),
        vdisk: &VdiskId,
        keys: &Keys,
        call: Call<'_>,
    ) -> Result<Reply, StoreErrorKind> {
        let run = self.known.run(vdisk);
        let answer = call.run_behind(put, &self.link, &run).await;
        self.written(vdisk, keys, &run, answer)
    }

    fn written(
        &self,
        vdisk: &VdiskId,
        keys: &Keys,
        run: &AtomicU64,
        answer: RedisResult<Value>,
    ) -> Result<Reply, StoreErrorKind> {
        if answer.as_ref().is_err_and(RedisError::is_io_error) {
            // It is told with this already.
            run.store(0, Ordering::Relaxed);
        }
        self.meant(vdisk, keys, answer.map_err(kind_of).and_then(Reply::of)?)
    }

    fn meant(&self, vdisk: &VdiskId, keys: &Keys, mut reply: Reply) -> Result<Reply, StoreErrorKind> {
        if reply.word() != "other" {
            return Ok(reply);
        }
        self.known.set(vdisk, Some(reply.identity(keys)?));
        Err(StoreErrorKind::NoLog)
    }
}
