//! What code takes from the machine that it runs on without being given it: the time of day, random numbers, threads for what
//! blocks.
//!
//! Everything else - monotonic time, the network, stores - comes by way of `tokio` or is handed over, so that a test can
//! decide about it. These three cannot, and so they are here: with the feature `simulation` a thread may have them decided by
//! a seed (`simulation::enter`), and the same seed then makes the same run. In a build without it there is no such switch.
//!
//! A simulation or a test can also end a process at any [`Point`] that code says it has [`reached`].
//!
//! It deliberately has no keys: those are drawn from the system alone, by `tlog-crypto`.

use std::time::{SystemTime, UNIX_EPOCH};

pub use getrandom::Error as RandomError;

mod point;
#[cfg(feature = "simulation")]
pub mod simulation;
#[cfg(feature = "failpoints")]
mod watch;

pub use point::Point;
#[cfg(feature = "failpoints")]
pub use watch::{Watched, watch_points};

/// The time of day, in nanoseconds since the Unix epoch. May step back.
pub fn unix_nanos() -> u64 {
    #[cfg(feature = "simulation")]
    if let Some(nanos) = simulation::unix_nanos() {
        return nanos;
    }
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

/// Fills `bytes` with random ones, which nobody can guess.
pub fn fill_random(bytes: &mut [u8]) -> Result<(), RandomError> {
    #[cfg(feature = "simulation")]
    if simulation::fill_random(bytes) {
        return Ok(());
    }
    getrandom::fill(bytes)
}

/// A random number.
pub fn random_u64() -> Result<u64, RandomError> {
    let mut bytes = [0; 8];
    fill_random(&mut bytes).map(|()| u64::from_le_bytes(bytes))
}

/// Runs something that computes or blocks for long on a thread for that. Must be called within a runtime.
pub async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    #[cfg(feature = "simulation")]
    if simulation::is_entered() {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels it, and then nothing waits for the result.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Says that the code has come to a failpoint. A test may end the process here, and a simulation take it for dead from here on: nothing that it does
/// after this reaches anybody. Nothing at all in a build without the feature `failpoints`.
#[inline(always)]
pub fn reached(point: Point) {
    #[cfg(feature = "failpoints")]
    watch::reached(point);
    #[cfg(not(feature = "failpoints"))]
    let _ = point;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_machine_has_is_handed_on() {
        assert!(unix_nanos() > 1_700_000_000_000_000_000);
        assert_ne!(random_u64().unwrap(), random_u64().unwrap());
        assert_eq!(blocking(|| 7).await, 7);
    }
}
