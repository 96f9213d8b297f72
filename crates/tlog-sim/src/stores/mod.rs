//! Stores behind a network of requests and answers, and disks that fail.
//!
//! Each process has its own [`Link`] to each place. A request may be late, lost, or delivered twice; so may its answer be late or lost; and as
//! each takes its own time, they overtake each other. A request that is on its way arrives whatever becomes of who sent it. Behind the links are
//! the [`Bay`]s: places in which there is a disk, which can be down, slow, torn in the middle of a write, set back to an
//! older state, exchanged for an empty one or for one that was there before.

mod bay;
mod link;
mod slave_link;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tlog_store::{StoreError, StoreErrorKind};

pub(crate) use self::bay::Bay;
pub(crate) use self::link::Link;
pub(crate) use self::slave_link::SlaveLink;

/// How often something goes wrong with a request: probabilities from 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    /// A request or an answer takes a while, up to `longest_delay`.
    pub(crate) delay: f64,
    /// See `delay`.
    pub(crate) longest_delay: Duration,
    /// The request never arrives.
    pub(crate) lost_request: f64,
    /// The answer never arrives.
    pub(crate) lost_answer: f64,
    /// The request arrives once more, later.
    pub(crate) twice: f64,
    /// An append stores half a payload and fails.
    pub(crate) torn: f64,
}

/// What all links have in common.
#[derive(Debug)]
pub(crate) struct Weather {
    rates: Mutex<Rates>,
}

impl Weather {
    pub(crate) fn new(rates: Rates) -> Arc<Self> {
        Arc::new(Self { rates: Mutex::new(rates) })
    }

    /// From now on nothing goes wrong any more.
    pub(crate) fn clear(&self) {
        *self.rates.lock().unwrap_or_else(PoisonError::into_inner) = Rates::default();
    }

    fn rates(&self) -> Rates {
        *self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process that uses stores: a server, a reader, a syncer of a slave.
#[derive(Debug, Default)]
pub(crate) struct Process {
    dead: AtomicBool,
    /// Places that it cannot reach.
    cut_off: Mutex<Vec<usize>>,
}

impl Process {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Sends nothing and hears nothing any more.
    pub(crate) fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub(crate) fn cut_off(&self, places: Vec<usize>) {
        *self.places() = places;
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    fn reaches(&self, place: usize) -> bool {
        !self.places().contains(&place)
    }

    fn places(&self) -> MutexGuard<'_, Vec<usize>> {
        self.cut_off.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug)]
struct Fate {
    there: Duration,
    back: Duration,
    lost_request: bool,
    lost_answer: bool,
    /// How long after the first it arrives once more.
    again: Option<Duration>,
    torn: bool,
    /// Who is not answered learns so at once, or never.
    told: bool,
}

impl Fate {
    /// All is drawn for every request, so that one fault does not shift the draws of the next.
    fn drawn(rng: &mut SmallRng, rates: Rates) -> Self {
        let mut way = || match rng.random::<f64>() < rates.delay {
            true => rates.longest_delay.mul_f64(rng.random::<f64>()),
            false => Duration::ZERO,
        };
        let (there, back) = (way(), way());
        let mut happens = |probability: f64| rng.random::<f64>() < probability;
        let (lost_request, lost_answer) = (happens(rates.lost_request), happens(rates.lost_answer));
        let (twice, torn, told) = (happens(rates.twice), happens(rates.torn), happens(0.5));
        let again = rates.longest_delay.mul_f64(4.0 * rng.random::<f64>());
        Self { there, back, lost_request, lost_answer, again: twice.then_some(again), torn, told }
    }

    /// Whether it is carried out at once and answered at once, as if there were no network.
    fn is_plain(&self) -> bool {
        let Self { there, back, lost_request, lost_answer, again, torn, told: _ } = self;
        there.is_zero() && back.is_zero() && !lost_request && !lost_answer && again.is_none() && !torn
    }
}

fn unavailable(address: &str, what: &'static str) -> StoreError {
    StoreError::new(address, StoreErrorKind::Unavailable { source: std::io::Error::other(what) })
}
