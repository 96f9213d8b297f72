//! Which faults there are in a round, and when: decided by the seed, and by nothing else.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::fault::{Blow, Cut, Fault, Shape, Target, Who};

/// The shortest that a fault lasts.
const SHORTEST: Duration = Duration::from_millis(100);

/// The longest.
const LONGEST: Duration = Duration::from_secs(20);

/// Time between the beginnings of two faults, at most; half of it on average.
const APART: Duration = Duration::from_millis(2500);

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strike {
    /// Since the beginning of the round.
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
    pub(crate) fault: Fault,
}

impl Strike {
    pub(crate) fn end(&self) -> Duration {
        self.at + self.lasts
    }
}

/// The faults of a round, by when they begin. All are over at its end, nothing suffers from two at once, and at most one store is wiped:
/// so many losses an acknowledgement promises to survive, and a round begins when all stores have everything.
pub(crate) fn faults(seed: u64, round: u64, length: Duration, shape: &Shape) -> Vec<Strike> {
    let mut random = SmallRng::seed_from_u64(seed ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut strikes = Vec::new();
    let mut busy: HashMap<Target, Duration> = HashMap::new();
    let mut at = Duration::ZERO;
    let mut may_wipe = true;
    loop {
        at += random.random_range(Duration::ZERO..APART);
        let Some(left) = length.checked_sub(at).filter(|left| *left > SHORTEST) else { return strikes };
        let fault = fault(&mut random, shape);
        let lasts = lasting(&mut random).min(left);
        let wipes = matches!(fault, Fault::StoreWiped(_));
        let targets = fault.targets(shape);
        if targets.iter().any(|target| busy.get(target).is_some_and(|until| *until >= at))
            || wipes && !may_wipe
        {
            continue;
        }
        may_wipe &= !wipes;
        let strike = Strike { at, lasts, fault };
        busy.extend(targets.into_iter().map(|target| (target, strike.end())));
        strikes.push(strike);
    }
}

/// From the shortest to the longest, short ones as often as long ones are.
fn lasting(random: &mut SmallRng) -> Duration {
    let range = SHORTEST.as_secs_f64().ln()..LONGEST.as_secs_f64().ln();
    Duration::from_secs_f64(random.random_range(range).exp())
}

fn fault(random: &mut SmallRng, shape: &Shape) -> Fault {
    let server = random.random_range(0..shape.servers);
    let client = random.random_range(0..shape.clients);
    let store = random.random_range(0..shape.stores);
    let slave = random.random_range(0..shape.slave_stores);
    match random.random_range(0..100) {
        0..12 => Fault::Process(Who::Server(server), Blow::Killed),
        12..20 => Fault::Process(Who::Server(server), Blow::Stopped),
        20..24 => Fault::Process(Who::Server(server), Blow::Terminated),
        24..32 => Fault::Process(Who::Client(client), Blow::Killed),
        32..36 => Fault::Process(Who::Client(client), Blow::Stopped),
        36..46 => Fault::Process(Who::Store(store), Blow::Killed),
        46..56 => Fault::Process(Who::Store(store), Blow::Stopped),
        56..60 => Fault::Process(Who::SlaveStore(slave), Blow::Killed),
        60..64 => Fault::Process(Who::SlaveStore(slave), Blow::Stopped),
        64..70 => match shape.small_disks.choose(random) {
            Some(store) => Fault::DiskFull(*store),
            None => Fault::Process(Who::Store(store), Blow::Killed),
        },
        70..73 => Fault::StoreWiped(store),
        73..84 => Fault::StoresCut { server, stores: some(random, shape.stores), how: cut(random) },
        84..88 => Fault::SlaveCut { server, how: cut(random) },
        88..98 => Fault::ClientsCut { server, how: cut(random) },
        _ => Fault::PowerFails,
    }
}

fn cut(random: &mut SmallRng) -> Cut {
    match random.random_range(0..10) {
        0..4 => Cut::Refused,
        4..6 => Cut::Silent,
        6 => Cut::OneWay { answers: true },
        7 => Cut::OneWay { answers: false },
        _ => Cut::Slow(Duration::from_millis(random.random_range(5..300))),
    }
}

/// At least one of so many, in order.
fn some(random: &mut SmallRng, of: usize) -> Vec<usize> {
    let count = random.random_range(1..=of);
    let mut chosen = rand::seq::index::sample(random, of, count).into_vec();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const LENGTH: Duration = Duration::from_secs(40);

    fn shape() -> Shape {
        Shape { servers: 2, clients: 2, stores: 6, slave_stores: 2, small_disks: vec![0, 3] }
    }

    #[test]
    fn the_same_seed_is_the_same_plan_and_another_round_another_one() {
        assert_eq!(faults(7, 3, LENGTH, &shape()), faults(7, 3, LENGTH, &shape()));
        assert_ne!(faults(7, 3, LENGTH, &shape()), faults(7, 4, LENGTH, &shape()));
        assert_ne!(faults(8, 3, LENGTH, &shape()), faults(7, 3, LENGTH, &shape()));
    }

    #[test]
    fn nothing_suffers_from_two_faults_at_once_one_store_is_wiped_and_all_is_over_at_the_end() {
        let shape = shape();
        for round in 0..300 {
            let strikes = faults(1, round, LENGTH, &shape);
            assert!(strikes.len() > 5, "{strikes:?}");
            assert!(strikes.iter().all(|strike| strike.end() <= LENGTH && strike.lasts >= SHORTEST));
            assert!(
                strikes.iter().filter(|strike| matches!(strike.fault, Fault::StoreWiped(_))).count() <= 1
            );
            for (nth, one) in strikes.iter().enumerate() {
                let targets: BTreeSet<_> = one.fault.targets(&shape).into_iter().collect();
                let beside = strikes[nth + 1..].iter().filter(|other| other.at <= one.end());
                for other in beside {
                    assert!(
                        other.fault.targets(&shape).iter().all(|target| !targets.contains(target)),
                        "{one:?} {other:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_kind_of_fault_comes_but_for_full_disks_where_none_is_small() {
        let kinds = |shape: &Shape| -> BTreeSet<&str> {
            (0..100)
                .flat_map(|round| faults(2, round, LENGTH, shape))
                .map(|strike| strike.fault.kind())
                .collect()
        };
        assert_eq!(kinds(&shape()).len(), 15);
        let large = Shape { small_disks: Vec::new(), ..shape() };
        assert_eq!(kinds(&large).len(), 14);
    }
}
