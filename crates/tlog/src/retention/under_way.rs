//! What is being done to logs in this process: one thing at a time for each vdisk, and to be looked at.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tlog_proto::VdiskId;

/// A mark, checkpoint or prune that is under way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownWork {
    /// The vdisk.
    pub vdisk: String,
    /// What is done: mark, checkpoint or prune.
    pub what: &'static str,
    /// Since when.
    pub seconds: f64,
    /// Bytes of the image that is stored now; 0 where none is.
    pub bytes: u64,
    /// How many it has.
    pub bytes_total: u64,
}

struct OfVdisk {
    what: &'static str,
    began: Instant,
    written: (u64, u64),
}

static ALL: Mutex<BTreeMap<VdiskId, OfVdisk>> = Mutex::new(BTreeMap::new());

fn all() -> MutexGuard<'static, BTreeMap<VdiskId, OfVdisk>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that is under way, by vdisk.
pub fn show() -> Vec<ShownWork> {
    let shown = |(vdisk, of): (&VdiskId, &OfVdisk)| ShownWork {
        vdisk: vdisk.to_string(),
        what: of.what,
        seconds: of.began.elapsed().as_secs_f64(),
        bytes: of.written.0,
        bytes_total: of.written.1,
    };
    all().iter().map(shown).collect()
}

/// It is under way, and shown, as long as this is there.
pub(super) struct UnderWay(VdiskId);

impl UnderWay {
    /// None where something is under way for the vdisk already.
    pub(super) fn begin(vdisk: &VdiskId, what: &'static str) -> Option<Self> {
        let mut all = all();
        let Entry::Vacant(free) = all.entry(vdisk.clone()) else { return None };
        free.insert(OfVdisk { what, began: Instant::now(), written: (0, 0) });
        Some(Self(vdisk.clone()))
    }

    /// So many bytes of an image are stored.
    pub(super) fn tell(&self, written: u64, total: u64) {
        if let Some(of) = all().get_mut(&self.0) {
            of.written = (written, total);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        all().remove(&self.0);
    }
}
