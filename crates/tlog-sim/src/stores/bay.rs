//! A place for a disk.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tlog_store::MemoryStore;

/// A place for a disk: the store is whatever disk is in it.
pub(crate) struct Bay {
    pub(crate) place: usize,
    pub(crate) address: Arc<str>,
    state: Mutex<State>,
}

/// Sets a disk back.
type Kept = Box<dyn FnOnce(&MemoryStore) + Send>;

struct State {
    disk: Arc<MemoryStore>,
    /// Disks that were in it.
    drawer: Vec<Arc<MemoryStore>>,
    /// Sets the disk back to what was certainly on it at some time.
    kept: Option<Kept>,
    down: bool,
    /// Every request takes so much longer.
    slow: Duration,
    /// Counts restarts: whoever writes over a connection to the run before finds out that there was one.
    run: u64,
}

impl Bay {
    pub(crate) fn new(place: usize) -> Arc<Self> {
        let address: Arc<str> = format!("store-{place}").into();
        let state = State {
            disk: Arc::new(MemoryStore::new(&*address)),
            drawer: Vec::new(),
            kept: None,
            down: false,
            slow: Duration::ZERO,
            run: 0,
        };
        Arc::new(Self { place, address, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn disk(&self) -> Arc<MemoryStore> {
        Arc::clone(&self.state().disk)
    }

    pub(crate) fn is_down(&self) -> bool {
        self.state().down
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    pub(crate) fn slow(&self) -> Duration {
        self.state().slow
    }

    pub(crate) fn set_slow(&self, slow: Duration) {
        self.state().slow = slow;
    }

    pub(crate) fn run(&self) -> u64 {
        self.state().run
    }

    /// What is on the disk now survives a restart.
    pub(crate) fn keep(&self) {
        let mut state = self.state();
        state.kept = Some(Box::new(state.disk.copy()));
    }

    /// Starts anew, with what was last kept. False where nothing ever was.
    pub(crate) fn lose_tail(&self) -> bool {
        let mut state = self.state();
        let Some(kept) = state.kept.take() else { return false };
        kept(&state.disk);
        state.run += 1;
        true
    }

    /// Starts anew, with everything.
    pub(crate) fn restart(&self) {
        self.state().run += 1;
    }

    /// An empty disk comes into the place.
    pub(crate) fn wipe(&self) {
        let mut state = self.state();
        let empty = Arc::new(MemoryStore::new(&*self.address));
        let out = std::mem::replace(&mut state.disk, empty);
        state.drawer.push(out);
        (state.kept, state.run) = (None, state.run + 1);
    }

    pub(crate) fn has_old_disk(&self) -> bool {
        !self.state().drawer.is_empty()
    }

    /// A disk that was in the place before comes back into it.
    pub(crate) fn put_back(&self) -> bool {
        let mut state = self.state();
        let Some(old) = state.drawer.pop() else { return false };
        let out = std::mem::replace(&mut state.disk, old);
        state.drawer.insert(0, out);
        (state.kept, state.run) = (None, state.run + 1);
        true
    }
}

impl fmt::Debug for Bay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bay({})", self.address)
    }
}
