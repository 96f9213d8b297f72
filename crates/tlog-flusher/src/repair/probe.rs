//! A store that was away: whether it is the one that it was, and what it lacks.

use std::sync::Arc;

use tlog_proto::AggregationNumber;
use tlog_quorum::{StoreSet, doubtful};
use tlog_store::{Members, NumberRanges, StartRecord, StoreError};

/// What probing a store that was away found.
#[derive(Debug)]
pub(crate) enum Probe {
    /// The same store as before; it lacks these committed numbers, and keeps none below `first`.
    Back { missed: NumberRanges, first: AggregationNumber },
    /// It is another store now, or an empty one.
    Blank,
}

/// What the writer hands to a probe.
#[derive(Clone, Debug)]
pub(crate) struct ProbeOrder {
    pub(crate) set: StoreSet,
    pub(crate) store: usize,
    pub(crate) start: StartRecord,
    /// All start records that the opening found.
    pub(crate) starts: Arc<[StartRecord]>,
    pub(crate) members: Members,
    pub(crate) committed: AggregationNumber,
    /// Lowest number that the log keeps.
    pub(crate) first: AggregationNumber,
}

/// Asks a store that was away, and brings its start record up to date. What it holds is asked after that: the start record
/// drops some.
///
/// A store that answers the first question and not the next is asked once more at once: one that was restarted says so to the
/// first write, and would else be left out for another pause.
pub(crate) async fn probe(order: ProbeOrder) -> Result<Probe, StoreError> {
    let port = order.set.stores().get(order.store).cloned();
    let answers = match port {
        Some(port) => order.set.within_limit(&port, port.status(order.set.vdisk())).await,
        None => return Ok(Probe::Blank),
    };
    answers?;
    match ask_back(order.clone()).await {
        Err(error) if error.is_retryable() => ask_back(order).await,
        answer => answer,
    }
}

async fn ask_back(order: ProbeOrder) -> Result<Probe, StoreError> {
    let ProbeOrder { set, store, start, starts, members, committed, first } = order;
    let Some(port) = set.stores().get(store).cloned() else {
        return Ok(Probe::Blank);
    };
    let expected = members.identities.get(store).copied().flatten();
    let before = set.within_limit(&port, port.status(set.vdisk())).await?;
    if before.identity.is_none() || before.identity != expected {
        return Ok(Probe::Blank);
    }
    let identity = set.within_limit(&port, port.start(set.vdisk(), start, &members)).await?;
    let same = set.within_limit(&port, port.publish(set.vdisk(), start.epoch, committed)).await?;
    let state = set.within_limit(&port, port.status(set.vdisk())).await?;
    if [Some(identity), Some(same), state.identity].iter().any(|identity| *identity != expected) {
        return Ok(Probe::Blank);
    }
    let mut missed = state.held.missing_in(first.max(state.first)..=committed);
    // Filling finds out which of these are right.
    for range in doubtful(&starts, &state).iter() {
        missed.insert_range(*range.start()..=committed.min(*range.end()));
    }
    Ok(Probe::Back { missed, first: state.first })
}
