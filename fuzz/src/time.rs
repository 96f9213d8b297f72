//! Time that passes where nothing else is to be done, so that no input takes as long as the timeouts that it provokes.

use tokio::runtime::{Builder, Runtime};

/// A runtime on this thread, with a clock that goes on to the next timer when all tasks wait.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime without sockets")
}
