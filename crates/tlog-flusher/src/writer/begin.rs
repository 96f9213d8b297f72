//! What recovery left becomes an open log's state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use tlog_codec::{Header, Kind, Sealer, TimeReaches};
use tlog_proto::{AggregationNumber, LogPosition, SessionId};
use tlog_quorum::{MAX_IN_FLIGHT, Pacer, Standing, StoreSet};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::{Phase, Writer, wall_clock};
use crate::aggregator::Aggregator;
use crate::commit::CommitTracker;
use crate::lane::{Lane, LaneStanding};
use crate::log::Durability;
use crate::metric;
use crate::recovery::Recovered;
use crate::repair::{Claims, KeptFrom};
use crate::settings::LogSettings;

impl Writer {
    /// A writer for what recovery left. What was adopted is sent at once; `ready` is told when all of that is committed, and
    /// `durable` with it.
    pub(crate) fn new(
        set: StoreSet,
        sealer: Sealer,
        mut settings: LogSettings,
        recovered: Recovered,
        durable: Option<LogPosition>,
        durability: watch::Sender<Durability>,
        ready: oneshot::Sender<()>,
    ) -> Self {
        let (now, wall) = (Instant::now(), wall_clock());
        settings.in_flight = settings.in_flight.min(MAX_IN_FLIGHT);
        let committed = recovered.committed;
        let first = recovered.survey.first();
        let quorums = set.quorums();
        let lanes = recovered
            .survey
            .views
            .iter()
            .zip(&recovered.started)
            .zip(&recovered.doubts)
            .map(|((view, started), doubts)| {
                let standing = match (view.standing, started) {
                    (Standing::Member, true) => LaneStanding::Active,
                    (Standing::Blank, _) => LaneStanding::Blank { retry_at: now },
                    _ => LaneStanding::Away { retry_at: now + settings.retry_after },
                };
                let mut lane = Lane::new(standing, now, wall);
                match &view.answer {
                    Ok(_) if view.standing == Standing::Blank => {
                        lane.error =
                            Some("it was wiped or replaced, or was not there when the log began".to_owned());
                    }
                    Ok(state) => {
                        lane.known = true;
                        lane.first = state.first;
                        lane.missed = state.held.missing_in(first..=committed);
                        for range in doubts.wrong.iter().chain(doubts.unread.iter()) {
                            lane.missed.insert_range(range);
                        }
                    }
                    Err(error) => lane.error = Some(error.to_string()),
                }
                lane.forget_below(first); // what was ruled out there matters no more
                lane
            })
            .collect();
        let mut writer = Self {
            extras: VecDeque::new(),
            extra_next: false,
            prunes: Vec::new(),
            aggregator: Aggregator::new(settings.max_blocks, settings.max_batch_bytes, settings.max_age),
            commits: metric::Commits::new(set.vdisk()),
            tracker: CommitTracker::new(quorums.total(), write_quorum(&set), committed),
            start: recovered.start,
            starts: recovered.survey.starts().into(),
            first,
            kept_from: KeptFrom::new(first),
            members: recovered.members,
            in_flight: VecDeque::new(),
            last_id: recovered.last_id,
            end: durable.map(|position| {
                (position, recovered.last.map_or(SessionId::default(), |header| header.session))
            }),
            last_record: recovered.last.as_ref().and_then(newest_record),
            reaches: TimeReaches::default(),
            block_size: recovered.last.map_or(0, |header| header.block_size),
            lanes,
            calls: FuturesUnordered::new(),
            pacer: Arc::new(Pacer::new(settings.fill_bytes_per_second)),
            claims: Claims::default(),
            busy: Arc::default(),
            sent: (0, 0),
            check_at: now + spread(settings.check_stores_every, set.vdisk().as_str()),
            quorum: recovered.quorum,
            ready_with: recovered.ready_with,
            ready: Some(ready),
            publish_at: None,
            phase: Phase::Open,
            close_at: None,
            closed: None,
            durability,
            set,
            sealer,
            settings,
        };
        for aggregation in recovered.adopted {
            writer.send(aggregation, 0, Vec::new(), now);
        }
        if writer.members.change > 0 {
            writer.confirm_members();
        }
        if writer.in_flight.is_empty() {
            writer.durability.send_modify(|state| state.durable = durable);
        }
        writer
    }
}

/// The newest record of a log that ends with an aggregation, or an aggregation that knows it.
fn newest_record(last: &Header) -> Option<AggregationNumber> {
    if last.kind == Kind::Record { Some(last.number) } else { last.record_before() }
}

fn write_quorum(set: &StoreSet) -> usize {
    #[cfg(any(test, feature = "simulation"))]
    return crate::broken::broken_write_quorum(set.quorums());
    #[cfg(not(any(test, feature = "simulation")))]
    set.quorums().write()
}

/// An interval that differs a little from vdisk to vdisk, so that thousands of logs that were opened together do not ask their
/// stores together for ever.
pub(super) fn spread(interval: Duration, vdisk: &str) -> Duration {
    let hash = vdisk
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    interval.mul_f64(0.8 + 0.2 * (hash % 1024) as f64 / 1024.0)
}
