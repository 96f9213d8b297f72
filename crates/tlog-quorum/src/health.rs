//! How quickly and how well the stores of a set have answered lately: who is asked first, and when one more is asked.
//!
//! It changes only the order in which stores are asked and how long is waited before one more is; never what counts. So nothing in
//! it has to be right, and all of it is forgotten after a while: a store that has recovered is used again, and if it has not, that
//! costs one hedge.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Waited before one more store is asked, while nothing is known of how quickly they answer.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Never waited less: a store is not late because a thread had to wait for its turn.
const LEAST_DELAY: Duration = Duration::from_millis(5);
/// Never waited longer.
const MOST_DELAY: Duration = Duration::from_secs(1);
/// A store that failed or was overtaken is asked last for so long; each time in a row twice as long, up to the longest.
const FIRST_SUSPICION: Duration = Duration::from_secs(2);
const LONGEST_SUSPICION: Duration = Duration::from_secs(64);
/// What a store's last answer took says nothing after so long.
const REMEMBERED: Duration = Duration::from_secs(10);
/// A store is slow that takes so many times as long as the middle one of the set.
const SLOW: u32 = 4;

/// What is known of the stores of a set. Shared by all clones of the set; as large as the set has stores.
#[derive(Debug)]
pub(crate) struct Health {
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// Of what all stores took that answered in time.
    all: Smoothed,
    stores: Vec<StoreHealth>,
}

#[derive(Clone, Debug, Default)]
struct StoreHealth {
    took: Smoothed,
    answered_at: Option<Instant>,
    /// Failures in a row, a suspicion that has not ended counting as one.
    failures: u32,
    suspected_until: Option<Instant>,
}

/// A smoothed time and how far it is off on average, as TCP does it (RFC 6298, section 2).
#[derive(Clone, Copy, Debug, Default)]
struct Smoothed {
    mean: Option<Duration>,
    deviation: Duration,
}

impl Smoothed {
    fn add(&mut self, took: Duration) {
        let Some(mean) = self.mean else {
            (self.mean, self.deviation) = (Some(took), took / 2);
            return;
        };
        self.deviation = (self.deviation * 3 + mean.abs_diff(took)) / 4;
        self.mean = Some((mean * 7 + took) / 8);
    }
}

impl Health {
    pub(crate) fn new(stores: usize) -> Self {
        let known = Known { all: Smoothed::default(), stores: vec![StoreHealth::default(); stores] };
        Self { known: Mutex::new(known) }
    }

    /// The store has answered a read of a shard.
    pub(crate) fn answered(&self, store: usize, took: Duration) {
        let known = &mut *self.known();
        known.all.add(took);
        if let Some(health) = known.stores.get_mut(store) {
            health.took.add(took);
            health.answered_at = Some(Instant::now());
            (health.failures, health.suspected_until) = (0, None);
        }
    }

    /// The store has failed, or others were quicker although they were asked later.
    pub(crate) fn failed(&self, store: usize) {
        let (known, now) = (&mut *self.known(), Instant::now());
        let Some(health) = known.stores.get_mut(store) else { return };
        if health.is_suspect(now) {
            return; // reads that were under way together fail together
        }
        let longer = 1u32 << health.failures.min(8);
        health.failures = health.failures.saturating_add(1);
        health.suspected_until = Some(now + (FIRST_SUSPICION * longer).min(LONGEST_SUSPICION));
    }

    /// How long to wait for answers before one more store is asked.
    pub(crate) fn delay(&self) -> Duration {
        let all = self.known().all;
        let usual = |mean: Duration| (mean * 2 + all.deviation * 4).clamp(LEAST_DELAY, MOST_DELAY);
        all.mean.map_or(FIRST_DELAY, usual)
    }

    /// The stores in the order in which they are best asked. Data shards first, as these need no computation; but behind all others
    /// those that are slow, and last those that failed.
    pub(crate) fn order(&self) -> Vec<usize> {
        let (known, now) = (self.known(), Instant::now());
        let mut means: Vec<Duration> = known.stores.iter().filter_map(|health| health.took.mean).collect();
        means.sort_unstable();
        let middle = means.get(means.len().saturating_sub(1) / 2).copied().unwrap_or(MOST_DELAY);
        let slow = middle * SLOW + LEAST_DELAY;
        let rank = |health: &StoreHealth| (health.is_suspect(now), health.is_slower(slow, now));
        let mut order: Vec<(usize, (bool, bool))> = known.stores.iter().map(rank).enumerate().collect();
        order.sort_by_key(|(_, rank)| *rank);
        order.into_iter().map(|(store, _)| store).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreHealth {
    fn is_suspect(&self, now: Instant) -> bool {
        self.suspected_until.is_some_and(|until| now < until)
    }

    fn is_slower(&self, than: Duration, now: Instant) -> bool {
        let remembered = self.answered_at.is_some_and(|at| now.duration_since(at) < REMEMBERED);
        remembered && self.took.mean.is_some_and(|mean| mean > than)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn data_shards_come_first_then_slow_stores_then_those_that_failed() {
        let health = Health::new(6);
        assert_eq!(health.order(), [0, 1, 2, 3, 4, 5]);
        for _ in 0..20 {
            (0..6).for_each(|store| health.answered(store, if store == 2 { MS * 30 } else { MS }));
        }
        health.failed(1);
        assert_eq!(health.order(), [0, 3, 4, 5, 2, 1]);
        advance(REMEMBERED).await;
        assert_eq!(health.order(), [0, 1, 2, 3, 4, 5], "nothing is held against a store for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn who_fails_again_is_suspected_for_longer_and_who_answers_no_more() {
        let health = Health::new(2);
        for suspicion in [2, 4, 8, 16, 32, 64, 64, 64, 64, 64, 64] {
            (0..5).for_each(|_| health.failed(0)); // together
            advance(Duration::from_secs(suspicion) - MS).await;
            assert_eq!(health.order(), [1, 0], "{suspicion}");
            advance(MS).await;
            assert_eq!(health.order(), [0, 1], "{suspicion}");
        }
        health.failed(0);
        health.answered(0, MS);
        assert_eq!(health.order(), [0, 1]);
        health.failed(0);
        advance(FIRST_SUSPICION).await;
        assert_eq!(health.order(), [0, 1], "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn how_long_is_waited_follows_how_quickly_the_set_answers() {
        let health = Health::new(3);
        assert_eq!(health.delay(), FIRST_DELAY);
        let settled = |took: Duration| {
            (0..100).for_each(|at| health.answered(at % 3, took));
            health.delay()
        };
        assert_eq!(settled(Duration::ZERO), LEAST_DELAY);
        let of_40 = settled(MS * 40);
        assert!((MS * 80..MS * 90).contains(&of_40), "{of_40:?}");
        assert_eq!(settled(Duration::from_secs(9)), MOST_DELAY);
    }
}
