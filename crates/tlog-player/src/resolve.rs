//! Which of several aggregations under one number belongs to the log: the chain decides. Pure.
//!
//! A number has more than one candidate only where a writer died in the middle and a store that missed the next opening still
//! holds what was ruled out, in a way that the start records in reach do not tell. What follows such a number refers to one of
//! them by id. So candidates that follow what is before them are kept *live* until the other end of the run is reached, and
//! then the chain is followed back from there. Where nothing tells them apart the highest epoch counts.

use tlog_codec::ChainBreak;
use tlog_proto::{AggregationId, AggregationNumber};
use tlog_quorum::{HeadCandidate, Located, ShardCondition};

/// What stands under one number, after the chain has decided.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) number: AggregationNumber,
    /// None: every head of it is gone.
    pub(crate) chosen: Option<HeadCandidate>,
    /// What each store has; [`ShardCondition::Held`] may name another aggregation than the chosen one.
    pub(crate) conditions: Vec<ShardCondition>,
    /// It does not follow what is before it.
    pub(crate) broken: Option<ChainBreak>,
}

/// A run of numbers, decided.
#[derive(Debug)]
pub(crate) struct Resolution {
    pub(crate) run: Vec<Resolved>,
    /// What comes after the run could still decide otherwise.
    pub(crate) ambiguous: bool,
}

/// Candidates that follow one of `before`; all of them where that is not known.
pub(crate) fn following<'a>(
    located: &'a Located,
    before: Option<&[AggregationId]>,
) -> impl Iterator<Item = &'a HeadCandidate> {
    let follows = move |c: &&HeadCandidate| before.is_none_or(|ids| ids.contains(&c.head.header.prev));
    located.candidates.iter().filter(follows)
}

/// Decides a run of adjoining numbers. `before` is the id of what is before the first, where it is known; `last` that of the
/// last, where it is known.
pub(crate) fn resolve(
    before: Option<AggregationId>,
    run: &[Located],
    last: Option<AggregationId>,
) -> Resolution {
    let mut live: Vec<Step<'_>> = Vec::with_capacity(run.len());
    let mut ids: Option<Vec<AggregationId>> = before.map(|id| vec![id]);
    for (at, located) in run.iter().enumerate() {
        let is_last = at + 1 == run.len();
        let allowed = |c: &&HeadCandidate| !is_last || last.is_none_or(|id| c.head.id == id);
        let mut candidates: Vec<_> = following(located, ids.as_deref()).filter(allowed).collect();
        let broken = match (candidates.is_empty(), located.candidates.first(), &ids) {
            (true, Some(found), Some(ids)) => ids.first().map(|expected| ChainBreak::Prev {
                number: located.number,
                expected: *expected,
                found: found.head.header.prev,
            }),
            _ => None,
        };
        if candidates.is_empty() {
            candidates = located.candidates.iter().filter(allowed).collect();
        }
        ids = (!candidates.is_empty()).then(|| candidates.iter().map(|c| c.head.id).collect());
        live.push(Step { located, candidates, broken });
    }
    let ambiguous = live.last().is_some_and(|step| step.candidates.len() > 1);

    let mut wanted: Option<AggregationId> = None;
    let mut run: Vec<Resolved> = Vec::with_capacity(live.len());
    for Step { located, candidates, broken } in live.into_iter().rev() {
        let chosen = candidates.into_iter().find(|c| wanted.is_none_or(|id| c.head.id == id)).cloned();
        wanted = match (&broken, &chosen) {
            (None, Some(chosen)) => Some(chosen.head.header.prev),
            _ => None,
        };
        run.push(Resolved { number: located.number, chosen, conditions: located.conditions.clone(), broken });
    }
    run.reverse();
    Resolution { run, ambiguous }
}

struct Step<'a> {
    located: &'a Located,
    /// Highest epoch first, as they were located.
    candidates: Vec<&'a HeadCandidate>,
    broken: Option<ChainBreak>,
}
