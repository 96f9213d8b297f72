//! Memory that is counted before it is taken.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

/// How long nobody gets anything before those who hold bytes are told that somebody waits. What is being stored comes back by itself, mostly
/// sooner; flushing what is not full, for each who waits, would have everybody store many small aggregations just when there is most to do.
const PATIENCE: Duration = Duration::from_millis(20);

/// So many bytes, shared by whoever takes from it; taken bytes come back when their permit is dropped.
///
/// When somebody waits and for a while nobody has got anything, everybody who holds bytes that a flush would free is told: [`Budget::pressure`]
/// wakes those who sleep, [`Budget::is_short`] is for those who are just taking more on.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: Arc<Semaphore>,
    size: usize,
    /// How often somebody who had to wait got what he waited for.
    served: AtomicUsize,
    waiting: AtomicUsize,
    pressed: watch::Sender<()>,
}

impl Budget {
    /// A budget of so many bytes.
    pub(crate) fn new(size: usize) -> Self {
        let size = size.min(Semaphore::MAX_PERMITS);
        let bytes = Arc::new(Semaphore::new(size));
        let (served, waiting) = Default::default();
        Self { bytes, size, served, waiting, pressed: watch::Sender::new(()) }
    }

    /// Takes bytes if they are free.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.bytes).try_acquire_many_owned(self.permits(bytes)).ok()
    }

    /// Whether so many bytes are free right now.
    pub(crate) fn has_room_for(&self, bytes: usize) -> bool {
        bytes <= self.bytes.available_permits()
    }

    /// Takes bytes, waits until they are free. First come, first served.
    pub(crate) async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        if let Some(taken) = self.try_take(bytes) {
            return taken;
        }
        let mut taking = pin!(Arc::clone(&self.bytes).acquire_many_owned(self.permits(bytes)));
        let mut waiter = None;
        let mut served = self.served.load(Ordering::SeqCst);
        let taken = loop {
            match timeout(PATIENCE, &mut taking).await {
                Ok(taken) => break taken,
                Err(_) if served == self.served.load(Ordering::SeqCst) => {
                    waiter.get_or_insert_with(|| Waiter::new(self));
                }
                Err(_) => served = self.served.load(Ordering::SeqCst),
            }
        };
        self.served.fetch_add(1, Ordering::SeqCst);
        taken.expect("the semaphore is never closed")
    }

    /// Changes whenever somebody has begun to wait for what nobody gives back.
    pub(crate) fn pressure(&self) -> watch::Receiver<()> {
        self.pressed.subscribe()
    }

    /// Whether somebody waits for what nobody gives back.
    pub(crate) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Bytes that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.size.saturating_sub(self.bytes.available_permits())
    }

    /// Nothing may want more than there is, or it would wait for ever.
    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.size)).unwrap_or(u32::MAX)
    }
}

/// Counts one who waits, also when he gives up.
struct Waiter<'a>(&'a Budget);

impl<'a> Waiter<'a> {
    fn new(budget: &'a Budget) -> Self {
        budget.waiting.fetch_add(1, Ordering::SeqCst);
        budget.pressed.send_replace(());
        Self(budget)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a block holds of the budgets until it is durable.
#[derive(Debug)]
pub(crate) enum Permit {
    /// Taken for all blocks that were read together, of their vdisk and of all; comes back when the last of them lets go, as does the
    /// memory that they are parts of.
    Unflushed { _taken: Arc<[OwnedSemaphorePermit; 2]> },
    /// Taken from what all windows share.
    Window { _taken: OwnedSemaphorePermit },
}

impl Permit {
    /// What blocks are read with.
    pub(crate) fn unflushed(vdisk: OwnedSemaphorePermit, all: OwnedSemaphorePermit) -> Self {
        Self::Unflushed { _taken: Arc::new([vdisk, all]) }
    }

    /// What a block waits in a window with.
    pub(crate) fn window(bytes: OwnedSemaphorePermit) -> Self {
        Self::Window { _taken: bytes }
    }

    /// The same one for another block; none where it is for one alone.
    pub(crate) fn share(&self) -> Option<Self> {
        match self {
            Self::Unflushed { _taken } => Some(Self::Unflushed { _taken: Arc::clone(_taken) }),
            Self::Window { .. } => None,
        }
    }

    /// It was taken from what all windows share.
    pub(crate) fn is_of_window(&self) -> bool {
        matches!(self, Self::Window { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_is_pressed_while_what_is_taken_comes_back() {
        let budget = Budget::new(10);
        let mut pressure = budget.pressure();
        let mut held = Some(budget.take(10).await);
        for _ in 0..20 {
            let mut next = pin!(budget.take(10));
            assert!(timeout(PATIENCE * 3 / 4, &mut next).await.is_err(), "there is no room");
            drop(held.take());
            held = Some(next.await);
        }
        assert!(!pressure.has_changed().unwrap() && !budget.is_short());
        // Of two that wait one after the other, the second is not forgotten while the first is served.
        let (mut first, mut second) = (pin!(budget.take(10)), pin!(budget.take(10)));
        assert!(timeout(PATIENCE / 2, &mut first).await.is_err());
        assert!(timeout(PATIENCE / 4, &mut second).await.is_err());
        drop(held);
        let _first = first.await;
        tokio::select! {
            biased;
            _ = &mut second => panic!("there is no room"),
            _ = pressure.changed() => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_presses_until_served_or_gone() {
        let budget = Budget::new(10);
        let mut pressure = budget.pressure();
        let first = budget.take(8).await;
        assert!(!pressure.has_changed().unwrap() && budget.taken() == 8);
        assert!(budget.try_take(3).is_none());

        let mut second = Box::pin(budget.take(5));
        tokio::select! {
            biased;
            _ = &mut second => panic!("there is no room"),
            _ = pressure.changed() => {}
        }
        assert!(budget.is_short());
        drop(first);
        let second = second.await;
        assert!(!budget.is_short() && budget.taken() == 5);

        let gave_up = timeout(PATIENCE * 2, budget.take(6)).await;
        assert!(gave_up.is_err() && !budget.is_short() && pressure.has_changed().unwrap());
        drop(second);
        assert_eq!(budget.taken(), 0);
        assert_eq!(budget.take(1000).await.num_permits(), 10, "more than everything is everything");
    }
}
