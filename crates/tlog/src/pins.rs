//! Pins: who reads a log says from which aggregation on it must stay, and history is not pruned beyond that meanwhile.
//!
//! # Reader and pruner
//!
//! A pin may come while history is being pruned. Both sides agree on one number for each vdisk, the *floor*: everything below it is
//! gone or may be gone any moment. It only rises, and only here, under one lock:
//!
//! | who | does under the lock | and then |
//! |---|---|---|
//! | a pruner that would keep what is from `wanted` on: [`Pins::decide`] | answer = min(wanted, lowest pin), floor = max(floor, answer) | removes what is below the answer, and nothing else |
//! | a reader: [`Pins::hold`], [`Pins::lease`] | notes the pin | opens the log, after it has the pin |
//!
//! So a pin is either noted before the decision, which then spares what it holds, or after it; then it answers the floor as `first`, and
//! where that is above what it asked for the reader knows that it came too late for what is below: it goes by what is from `first` on, or
//! finds the removed part out as the error *pruned* and begins again, once, for while its pin lives nothing more goes.
//!
//! A pruner that only wants to know asks [`Pins::lowest`]; that alone is not safe to prune by.
//!
//! # Leases
//!
//! A process elsewhere gets a lease: it ends by itself, so that a reader that was killed holds nothing up, and is renewed as long as its
//! reader runs. Whoever renews a lease that has ended is told so and takes a new one, with the floor as it is then. A restarted server knows
//! no leases and no floor: readers take theirs anew when they renew them, within a third of their length. What was pruned before is
//! gone from the stores, and that is what reading says.
//!
//! Pins are those of one server: the one that has the log open and prunes it. A tool that finds another server pins nothing there.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;
use serde::{Deserialize, Serialize};
use tlog_proto::{AggregationNumber, VdiskId};

/// Most pins of one vdisk at once.
const MOST: usize = 64;
/// Most of all vdisks together.
const MOST_OF_ALL: usize = 4096;
/// Longest lease.
pub const LONGEST_LEASE: Duration = Duration::from_secs(3600);
/// Longest name of whoever holds a pin, in bytes.
const LONGEST_NAME: usize = 200;

/// Names a pin; nobody guesses it, and it is not used again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PinId(String);

impl fmt::Display for PinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The pins of a server's vdisks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    vdisks: Arc<Mutex<HashMap<VdiskId, OfVdisk>>>,
}

#[derive(Debug, Default)]
struct OfVdisk {
    floor: AggregationNumber,
    pins: BTreeMap<PinId, Pin>,
}

#[derive(Debug)]
struct Pin {
    from: AggregationNumber,
    who: String,
    /// None: until it is let go.
    until: Option<Instant>,
}

/// A pin that was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Its name, for renewing and ending it.
    pub id: PinId,
    /// Everything from here on stays while the pin lives. Above what was asked for where the pin came too late.
    pub first: u64,
}

/// A pin, to be looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownPin {
    /// The vdisk.
    pub vdisk: String,
    /// Lowest aggregation that it holds.
    pub from: u64,
    /// Who took it.
    pub who: String,
    /// When it ends by itself; none: with whoever holds it.
    pub ends_in_seconds: Option<f64>,
}

/// Why a pin was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// There are too many.
    #[error(
        "vdisk {vdisk} cannot be pinned, {there} readers have pinned {what} already; let some of them end, GET /status names them"
    )]
    TooMany {
        /// The vdisk.
        vdisk: VdiskId,
        /// How many there are.
        there: usize,
        /// This vdisk, or all of them.
        what: &'static str,
    },
    /// A lease that ends at once, or hardly ever.
    #[error("a lease is 1 to {} seconds long", LONGEST_LEASE.as_secs())]
    Lease,
    /// A name that nobody can read.
    #[error("who holds a pin is told in 1 to {LONGEST_NAME} characters")]
    Name,
    /// There is no such pin, or it has ended.
    #[error("vdisk {vdisk} has no such pin (any more); take a new one")]
    Ended {
        /// The vdisk.
        vdisk: VdiskId,
    },
}

impl Pins {
    /// Pins a vdisk for as long as the answer lives: in the server itself.
    pub fn hold(&self, vdisk: &VdiskId, from: AggregationNumber, who: &str) -> Result<Held, PinError> {
        let granted = self.insert(vdisk, from, who, None, Instant::now())?;
        Ok(Held { pins: self.clone(), vdisk: vdisk.clone(), granted })
    }

    /// Pins a vdisk for a time: for a process elsewhere.
    pub fn lease(
        &self,
        vdisk: &VdiskId,
        from: AggregationNumber,
        who: &str,
        lease: Duration,
    ) -> Result<Granted, PinError> {
        self.insert(vdisk, from, who, Some(lease), Instant::now())
    }

    /// Has a lease end that long from now.
    pub fn renew(&self, vdisk: &VdiskId, id: &PinId, lease: Duration) -> Result<(), PinError> {
        self.renew_at(vdisk, id, lease, Instant::now())
    }

    fn renew_at(&self, vdisk: &VdiskId, id: &PinId, lease: Duration, now: Instant) -> Result<(), PinError> {
        let until = end_of(lease, now)?;
        let mut vdisks = self.current(now);
        let pin = vdisks.get_mut(vdisk).and_then(|of| of.pins.get_mut(id));
        let pin = pin.ok_or_else(|| PinError::Ended { vdisk: vdisk.clone() })?;
        pin.until = Some(until);
        Ok(())
    }

    /// Ends a pin. One that has ended is no error.
    pub fn end(&self, vdisk: &VdiskId, id: &PinId) {
        if let Some(of) = self.current(Instant::now()).get_mut(vdisk) {
            of.pins.remove(id);
        }
    }

    /// Lowest aggregation that anybody holds; none where nobody does. To look at: whoever prunes asks [`Pins::decide`].
    pub fn lowest(&self, vdisk: &VdiskId) -> Option<AggregationNumber> {
        self.lowest_at(vdisk, Instant::now())
    }

    fn lowest_at(&self, vdisk: &VdiskId, now: Instant) -> Option<AggregationNumber> {
        self.current(now).get(vdisk).and_then(OfVdisk::lowest)
    }

    /// For a pruner that would remove everything below `wanted`: answers below what it may. From now on whoever pins something
    /// that is below the answer is told that it came too late.
    pub fn decide(&self, vdisk: &VdiskId, wanted: AggregationNumber) -> AggregationNumber {
        let mut vdisks = self.current(Instant::now());
        let of = vdisks.entry(vdisk.clone()).or_default();
        let below = of.lowest().map_or(wanted, |lowest| lowest.min(wanted));
        of.floor = of.floor.max(below);
        below
    }

    /// All pins, by vdisk.
    pub fn show(&self) -> Vec<ShownPin> {
        let now = Instant::now();
        let vdisks = self.current(now);
        let mut shown: Vec<ShownPin> = vdisks
            .iter()
            .flat_map(|(vdisk, of)| {
                of.pins.values().map(move |pin| ShownPin {
                    vdisk: vdisk.to_string(),
                    from: pin.from.0,
                    who: pin.who.clone(),
                    ends_in_seconds: pin.until.map(|until| (until - now).as_secs_f64()),
                })
            })
            .collect();
        shown.sort_by(|a, b| (&a.vdisk, a.from, &a.who).cmp(&(&b.vdisk, b.from, &b.who)));
        shown
    }

    fn insert(
        &self,
        vdisk: &VdiskId,
        from: AggregationNumber,
        who: &str,
        lease: Option<Duration>,
        now: Instant,
    ) -> Result<Granted, PinError> {
        if !(1..=LONGEST_NAME).contains(&who.len()) || who.chars().any(char::is_control) {
            return Err(PinError::Name);
        }
        let until = lease.map(|lease| end_of(lease, now)).transpose()?;
        let mut vdisks = self.current(now);
        let too_many = |there, what| Err(PinError::TooMany { vdisk: vdisk.clone(), there, what });
        let all = vdisks.values().map(|of| of.pins.len()).sum::<usize>();
        let here = vdisks.get(vdisk).map_or(0, |of| of.pins.len());
        // Those of the server itself are few, and what they prove matters more than that bound.
        match until {
            Some(_) if here >= MOST => return too_many(here, "it"),
            Some(_) if all >= MOST_OF_ALL => return too_many(all, "some vdisk of this server"),
            _ => {}
        }
        let of = vdisks.entry(vdisk.clone()).or_default();
        let first = from.max(of.floor);
        // It holds what was asked for all the same: the floor may be that of a log which was deleted and begun anew.
        let id = PinId(format!("{:032x}", rand::rng().random::<u128>()));
        of.pins.insert(id.clone(), Pin { from, who: who.to_owned(), until });
        Ok(Granted { id, first: first.0 })
    }

    /// Those that have not ended.
    fn current(&self, now: Instant) -> MutexGuard<'_, HashMap<VdiskId, OfVdisk>> {
        let mut vdisks = self.vdisks.lock().unwrap_or_else(PoisonError::into_inner);
        vdisks.retain(|_, of| {
            of.pins.retain(|_, pin| pin.until.is_none_or(|until| until > now));
            // A floor is kept: whoever opened the log before it was decided may still ask.
            !of.pins.is_empty() || of.floor > AggregationNumber::default()
        });
        vdisks
    }
}

impl OfVdisk {
    fn lowest(&self) -> Option<AggregationNumber> {
        self.pins.values().map(|pin| pin.from).min()
    }
}

fn end_of(lease: Duration, now: Instant) -> Result<Instant, PinError> {
    if !(Duration::from_secs(1)..=LONGEST_LEASE).contains(&lease) {
        return Err(PinError::Lease);
    }
    Ok(now + lease)
}

/// A pin of the server itself; ends when dropped.
#[derive(Debug)]
pub struct Held {
    pins: Pins,
    vdisk: VdiskId,
    granted: Granted,
}

impl Held {
    /// Everything from here on stays. Above what was asked for where the pin came too late.
    pub fn first(&self) -> AggregationNumber {
        AggregationNumber(self.granted.first)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pins.end(&self.vdisk, &self.granted.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: u64) -> AggregationNumber {
        AggregationNumber(n)
    }

    fn vda() -> VdiskId {
        VdiskId::new("vda").unwrap()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn nothing_is_pruned_that_anybody_holds_and_everything_else_may_be() {
        let pins = Pins::default();
        assert_eq!((pins.lowest(&vda()), pins.decide(&vda(), number(5))), (None, number(5)));
        let held = pins.hold(&vda(), number(7), "verifier").unwrap();
        let leased = pins.lease(&vda(), number(9), "tlog restore", MINUTE).unwrap();
        assert_eq!((held.first(), leased.first), (number(7), 9));
        assert_eq!(pins.decide(&vda(), number(20)), number(7));
        drop(held);
        assert_eq!((pins.lowest(&vda()), pins.decide(&vda(), number(20))), (Some(number(9)), number(9)));
        pins.end(&vda(), &leased.id);
        pins.end(&vda(), &leased.id);
        assert_eq!(pins.decide(&vda(), number(20)), number(20));
        let other = VdiskId::new("vdb").unwrap();
        assert_eq!(pins.decide(&other, number(3)), number(3), "each vdisk has its own");
    }

    #[test]
    fn a_pin_that_comes_after_the_decision_is_told_what_is_left_and_holds_that() {
        let pins = Pins::default();
        assert_eq!(pins.decide(&vda(), number(100)), number(100));
        let late = pins.hold(&vda(), number(1), "restore").unwrap();
        assert_eq!(late.first(), number(100));
        assert!(pins.decide(&vda(), number(200)) <= number(100), "nothing of what is left goes");
        drop(late);
        assert_eq!(pins.decide(&vda(), number(200)), number(200));
    }

    #[test]
    fn pruners_and_readers_in_any_order_never_lose_what_a_granted_pin_holds() {
        let pins = Pins::default();
        let pruned = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let pruner = {
            let (pins, pruned) = (pins.clone(), Arc::clone(&pruned));
            std::thread::spawn(move || {
                for wanted in 1..=2000 {
                    let below = pins.decide(&vda(), number(wanted));
                    pruned.fetch_max(below.0, std::sync::atomic::Ordering::SeqCst);
                }
            })
        };
        let reader = std::thread::spawn(move || {
            for _ in 0..2000 {
                let held = pins.hold(&vda(), number(1), "restore").unwrap();
                let before = pruned.load(std::sync::atomic::Ordering::SeqCst);
                assert!(before <= held.first().0, "{before} was pruned, {} is held", held.first());
                std::thread::yield_now();
                assert!(pruned.load(std::sync::atomic::Ordering::SeqCst) <= held.first().0);
            }
        });
        pruner.join().unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn a_lease_ends_by_itself_unless_it_is_renewed() {
        let pins = Pins::default();
        let began = Instant::now();
        let pin = pins.lease(&vda(), number(3), "tlog restore", MINUTE).unwrap();
        let almost = began + MINUTE - Duration::from_secs(1);
        pins.renew_at(&vda(), &pin.id, MINUTE, almost).unwrap();
        assert_eq!(pins.lowest_at(&vda(), began + MINUTE + Duration::from_secs(1)), Some(number(3)));
        assert_eq!(pins.show().len(), 1);
        let over = almost + MINUTE;
        assert_eq!(pins.lowest_at(&vda(), over), None);
        let ended = pins.renew_at(&vda(), &pin.id, MINUTE, over).unwrap_err();
        assert_eq!(ended, PinError::Ended { vdisk: vda() });
    }

    #[test]
    fn pins_are_bounded_and_what_makes_no_sense_is_refused() {
        let pins = Pins::default();
        let lease = |who: &str, lease| pins.lease(&vda(), number(1), who, lease);
        assert_eq!(lease("", MINUTE), Err(PinError::Name));
        assert_eq!(lease("two\nlines", MINUTE), Err(PinError::Name));
        assert_eq!(lease(&"x".repeat(201), MINUTE), Err(PinError::Name));
        assert_eq!(lease("x", Duration::ZERO), Err(PinError::Lease));
        assert_eq!(lease("x", LONGEST_LEASE + MINUTE), Err(PinError::Lease));
        for _ in 0..MOST {
            lease("x", MINUTE).unwrap();
        }
        let too_many = lease("x", MINUTE).unwrap_err();
        assert!(matches!(too_many, PinError::TooMany { there: MOST, .. }), "{too_many}");
        let _held = pins.hold(&vda(), number(1), "the server's own is granted all the same").unwrap();
    }
}
