//! What a seed means: how large everything is, and what goes wrong how often.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_codec::Redundancy;
use tlog_flusher::LogSettings;
use tlog_proto::VdiskId;
use tlog_quorum::Quorums;

use crate::rule::Rule;
use crate::stores::Rates;

/// Redundancies (k, m, W) that are tried.
const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 2),
    (1, 2, 2),
    (1, 2, 3),
    (2, 1, 3),
    (2, 2, 3),
    (2, 2, 4),
    (4, 2, 5),
    (4, 2, 6),
    (1, 3, 4),
    (2, 3, 5),
    (3, 3, 6),
];

/// Those in which a majority is more than what W asks for.
const SHAPES_FOR_MAJORITY: &[(usize, usize, usize)] = &[(1, 1, 2), (1, 2, 3), (1, 3, 4), (2, 3, 5)];

/// All that a seed decides at the beginning.
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    /// The rule that is to show itself, if it is broken.
    pub(crate) about: Option<Rule>,
    pub(crate) broken: Option<Rule>,
    pub(crate) vdisk: VdiskId,
    pub(crate) quorums: Quorums,
    pub(crate) servers: usize,
    /// Front-ends that take the vdisk over from each other; else each comes when the one before is gone.
    pub(crate) rivals: bool,
    /// Front-ends that begin a generation of their own now and then.
    pub(crate) resets: bool,
    pub(crate) slave_stores: usize,
    pub(crate) latency: Duration,
    pub(crate) rates: Rates,
    /// Stores are set back to older states, as those are that do not make durable what they answer.
    pub(crate) loses_tails: bool,
    /// So many stores may be lost and not replaced at once.
    pub(crate) may_be_lost: usize,
    /// Faults, and what is between them at most.
    pub(crate) faults: usize,
    pub(crate) pause: Duration,
    pub(crate) blocks: u64,
    pub(crate) block_bytes: usize,
    pub(crate) log: LogSettings,
    pub(crate) vdisk_idle: Duration,
    pub(crate) max_unflushed_bytes: usize,
}

/// Whether nothing acknowledged is lost where one store loses its newest writes and cannot be told from one that never had them. That is no
/// promise of the product, which asks for stores that keep what they have answered; but it follows where quorums have one store to spare: for
/// fencing, for knowing start records and members, and for finding k shards of what W stores had.
fn survives_lost_tail(quorums: Quorums) -> bool {
    let (total, data, opening) = (quorums.total(), quorums.data(), quorums.opening());
    data >= 2 && opening * 2 >= total + 2 && opening > total - quorums.write() + data
}

/// One of several, or nothing of none.
pub(crate) fn one_of<T: Copy>(rng: &mut SmallRng, of: &[T]) -> Option<T> {
    of.get(rng.random_range(0..of.len().max(1))).copied()
}

/// Those in which an opening can do without stores that hold what was not acknowledged.
const SHAPES_FOR_STARTS: &[(usize, usize, usize)] = &[(1, 2, 2), (1, 2, 3), (1, 3, 4), (2, 3, 5), (2, 2, 4)];

impl Scenario {
    pub(crate) fn of(seed: u64, about: Option<Rule>, broken: Option<Rule>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x05ee_d0f7_1063);
        let rng = &mut rng;
        let shapes = match about {
            Some(Rule::Majority) => SHAPES_FOR_MAJORITY,
            Some(Rule::StartRecords) => SHAPES_FOR_STARTS,
            _ => SHAPES,
        };
        let (data, parity, write) = one_of(rng, shapes).unwrap_or((4, 2, 5));
        let redundancy = Redundancy::new(data, parity).expect("the table has valid ones");
        let quorums = Quorums::new(redundancy, write).expect("the table has valid ones");
        let (total, opening) = (quorums.total(), quorums.opening());
        let loses_tails = survives_lost_tail(quorums) && about.is_none() && rng.random_bool(0.6);
        let losses = quorums.losses_at_acknowledgement();
        // With more, nothing is lost, but it takes an operator's word to go on.
        let may_be_lost = losses.min(total - opening);
        let longest_delay = one_of(rng, &[5, 20, 20, 60, 1500]).unwrap_or(20);
        let rough = rng.random_bool(0.5);
        let rare = if rough { 0.03 } else { 0.004 };
        let rates = Rates {
            delay: one_of(rng, &[0.1, 0.5, 0.9]).unwrap_or(0.5),
            longest_delay: Duration::from_millis(longest_delay),
            lost_request: rare,
            lost_answer: rare,
            twice: rare,
            torn: if about.is_none() && rng.random_bool(0.2) { 0.01 } else { 0.0 },
        };
        let several = about.is_none();
        Self {
            seed,
            about,
            broken,
            vdisk: VdiskId::new("disk").expect("a legal name"),
            quorums,
            servers: match about {
                Some(Rule::Majority) => 2,
                _ => one_of(rng, &[1, 2, 2, 2, 3]).unwrap_or(2),
            },
            rivals: several && rng.random_bool(0.15),
            resets: several && rng.random_bool(0.15),
            slave_stores: if about == Some(Rule::DataFirst) || rng.random_bool(0.3) {
                rng.random_range(1..=3)
            } else {
                0
            },
            latency: Duration::from_millis(one_of(rng, &[1, 3, 3, 40, 400]).unwrap_or(3)),
            rates,
            loses_tails,
            may_be_lost,
            faults: rng.random_range(6..24),
            pause: Duration::from_millis(one_of(rng, &[300, 1500, 4000]).unwrap_or(1500)),
            blocks: one_of(rng, &[3, 8, 24]).unwrap_or(8),
            block_bytes: one_of(rng, &[16, 64, 512]).unwrap_or(64),
            log: LogSettings {
                max_blocks: rng.random_range(2..=6),
                max_age: Duration::from_millis(one_of(rng, &[50, 500, 2000]).unwrap_or(500)),
                in_flight: rng.random_range(1..=4),
                commit_timeout: Duration::from_secs(one_of(rng, &[3, 8, 30]).unwrap_or(8)),
                ..LogSettings::default()
            },
            vdisk_idle: Duration::from_secs(one_of(rng, &[1, 5, 60]).unwrap_or(5)),
            max_unflushed_bytes: one_of(rng, &[96 << 10, 1 << 20]).unwrap_or(1 << 20),
        }
    }

    /// For people, in one line.
    pub(crate) fn describe(&self) -> String {
        let (quorums, broken) =
            (self.quorums, self.broken.map(|rule| format!(", {rule}")).unwrap_or_default());
        format!(
            "{}+{} with W = {}, {} servers, slave of {} stores{}{}{}, latency {:?}, {:?}, {} faults{broken}",
            quorums.data(),
            quorums.total() - quorums.data(),
            quorums.write(),
            self.servers,
            self.slave_stores,
            if self.rivals { ", rivals" } else { "" },
            if self.resets { ", resets" } else { "" },
            if self.loses_tails { ", stores lose their tails" } else { "" },
            self.latency,
            self.rates,
            self.faults,
        )
    }
}
