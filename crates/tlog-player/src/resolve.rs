//! Which of several aggregations under one number belongs to the log: the chain decides. Pure.
//!
//! A number has more than one candidate only where a writer died in the middle and a store that missed the next opening still
//! holds what was ruled out, in a way that the start records in reach do not tell. What follows such a number refers to one of
//! them by id. So candidates that follow what is before them are kept *live* until the other end of the run is reached, and
//! then the chain is followed back from there. Where nothing tells them apart the highest epoch that can be rebuilt counts.

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
        let follows = !candidates.is_empty();
        if !follows {
            // The chain is broken here, or what was before is lost: it goes on from whatever is there.
            candidates = located.candidates.iter().filter(allowed).collect();
        }
        ids = (!candidates.is_empty()).then(|| candidates.iter().map(|c| c.head.id).collect());
        live.push(Step { located, candidates, follows });
    }
    let ambiguous = live.last().is_some_and(|step| step.candidates.len() > 1);

    let mut wanted: Option<AggregationId> = None;
    let mut run: Vec<Resolved> = Vec::with_capacity(live.len());
    for Step { located, candidates, follows } in live.into_iter().rev() {
        let chosen = match wanted {
            Some(id) => candidates.into_iter().find(|c| c.head.id == id),
            None => likeliest(&candidates),
        };
        wanted = chosen.filter(|_| follows).map(|chosen| chosen.head.header.prev);
        let (number, conditions) = (located.number, located.conditions.clone());
        run.push(Resolved { number, chosen: chosen.cloned(), conditions });
    }
    run.reverse();
    Resolution { run, ambiguous }
}

struct Step<'a> {
    located: &'a Located,
    /// Highest epoch first, as they were located.
    candidates: Vec<&'a HeadCandidate>,
    /// They follow what is before them.
    follows: bool,
}

/// Of candidates, highest epoch first, that nothing tells apart: the first that enough stores hold to give it back.
fn likeliest<'a>(candidates: &[&'a HeadCandidate]) -> Option<&'a HeadCandidate> {
    let enough = |c: &&&HeadCandidate| c.holders.len() >= c.head.header.redundancy.data();
    candidates.iter().find(enough).or(candidates.first()).copied()
}
