//! Many seeds, on several threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Options, Tally, run};

/// What a number of seeds did and found.
#[derive(Debug, Default)]
pub struct Many {
    /// Seeds that were run.
    pub seeds: u64,
    /// The lowest seed that found something, and what.
    pub found: Option<(u64, String)>,
    /// What they did, together.
    pub tally: Tally,
    /// How long that took.
    pub took: Duration,
}

/// Runs `count` seeds from `first` on, on so many threads. After something was found, no further seed is begun. `progress` is called after each seed
/// with how many are done.
pub fn run_many(
    first: u64,
    count: u64,
    jobs: usize,
    options: Options,
    progress: impl Fn(u64) + Sync,
) -> Many {
    let began = Instant::now();
    let (next, done) = (AtomicU64::new(first), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let many = Mutex::new(Many::default());
    let end = first.saturating_add(count);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let outcome = run(seed, options);
                    let mut many = many.lock().unwrap_or_else(PoisonError::into_inner);
                    many.seeds += 1;
                    many.tally.add(outcome.tally);
                    if let Some(what) = outcome.found {
                        stop.store(true, Ordering::Relaxed);
                        if many.found.as_ref().is_none_or(|(other, _)| seed < *other) {
                            many.found = Some((seed, what));
                        }
                    }
                    drop(many);
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1);
                }
            });
        }
    });
    let many = many.into_inner().unwrap_or_else(PoisonError::into_inner);
    Many { took: began.elapsed(), ..many }
}
