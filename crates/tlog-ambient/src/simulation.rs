//! A seed in place of the machine, for the code that runs on this thread.

use std::cell::RefCell;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::time::Instant;

thread_local! {
    static SIMULATED: RefCell<Option<Simulated>> = const { RefCell::new(None) };
}

struct Simulated {
    random: SmallRng,
    began: Instant,
    /// The time of day when it began, in nanoseconds; a clock that steps moves it.
    wall: u64,
}

/// The thread is simulated as long as this exists.
#[derive(Debug)]
#[must_use]
pub struct Entered(());

/// From now on, on this thread: random numbers come from `seed`, the time of day is `wall` now and passes as the runtime's time
/// does, and nothing is given to other threads. Must be called within a runtime, whose time is best paused.
pub fn enter(seed: u64, wall: Duration) -> Entered {
    let simulated = Simulated {
        random: SmallRng::seed_from_u64(seed),
        began: Instant::now(),
        wall: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX),
    };
    SIMULATED.set(Some(simulated));
    Entered(())
}

impl Drop for Entered {
    fn drop(&mut self) {
        SIMULATED.set(None);
    }
}

/// The time of day steps by so many nanoseconds.
pub fn step_clock(by: i64) {
    SIMULATED.with_borrow_mut(|simulated| {
        if let Some(simulated) = simulated {
            simulated.wall = simulated.wall.saturating_add_signed(by);
        }
    });
}

pub(crate) fn is_entered() -> bool {
    SIMULATED.with_borrow(Option::is_some)
}

pub(crate) fn unix_nanos() -> Option<u64> {
    SIMULATED.with_borrow(|simulated| {
        let Simulated { began, wall, .. } = simulated.as_ref()?;
        Some(wall.saturating_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)))
    })
}

pub(crate) fn fill_random(bytes: &mut [u8]) -> bool {
    SIMULATED.with_borrow_mut(|simulated| {
        simulated.as_mut().map(|simulated| simulated.random.fill_bytes(bytes)).is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_seed_decides_until_it_is_left() {
        let draw = || {
            let _entered = enter(7, Duration::from_secs(10));
            [crate::random_u64().unwrap(), crate::random_u64().unwrap(), crate::unix_nanos()]
        };
        assert_eq!(draw(), draw());
        let _entered = enter(8, Duration::from_secs(10));
        assert_ne!(crate::random_u64().unwrap(), draw()[0]);
        tokio::time::advance(Duration::from_secs(1)).await;
        let _again = enter(8, Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(1)).await;
        step_clock(-500_000_000);
        assert_eq!(crate::unix_nanos(), 10_500_000_000);
    }
}
