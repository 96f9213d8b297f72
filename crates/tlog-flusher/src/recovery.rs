//! Opening a log: fencing older writers and finding where it ends.
//!
//! ```text
//! status of all stores -> epoch e = highest + 1 -> promise(e) on the members -> enough of them? else refuse
//!   -> every committed number held by k of them, not counting what was ruled out? else refuse: data is lost
//!   -> above the highest committed: adopt what k whole shards prove and no start record rules out
//!   -> start(e, last adopted + 1) on enough of them -> the writer writes the adopted ones again until W hold them
//! ```
//! Nothing that could have been acknowledged is ever cut: where shards of the next number are damaged or out of reach in such
//! numbers that it may have been acknowledged, the opening is refused. Where something is cut because stores do not hold it, they are
//! asked once more who they are.

use tlog_ambient::{Point, reached};
use tlog_codec::{EncodedAggregation, Header};
use tlog_proto::{AggregationId, AggregationNumber, Epoch};
use tlog_quorum::{Candidate, ShardCondition, Standing, StoreSet, Survey, TooFewStores, doubtful};
use tlog_store::{LogState, Members, NumberRanges, StartRecord};

use crate::format1::{Foundation, follows};
use crate::open_error::{Numbers, OpenError, ReplaceError};

/// How often an opening that loses a race against another one tries again.
const ATTEMPTS: usize = 8;

/// How many stores an opening goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// As many as always work, whatever happens to the others.
    Usual,
    /// The operator says that the blank stores are lost for good: all that are left, if that is enough to know what was
    /// acknowledged.
    Replacing,
}

/// What an opening found, and did.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The stores, with the quorums that this log needs.
    pub(crate) set: StoreSet,
    /// What the stores said when they promised.
    pub(crate) survey: Survey,
    /// Who is a member from now on.
    pub(crate) members: Members,
    /// So many members must be in reach from now on: as many as an opening needs, or all that are left where that are fewer.
    pub(crate) quorum: usize,
    /// So many members must take part before anything is served.
    pub(crate) ready_with: usize,
    /// This opening: its epoch and the first number it writes.
    pub(crate) start: StartRecord,
    /// Stores that have the start record.
    pub(crate) started: Vec<bool>,
    /// What each store holds that does not count, or may not.
    pub(crate) doubts: Vec<Doubts>,
    /// Highest number known as committed.
    pub(crate) committed: AggregationNumber,
    /// Its header; none in a log without.
    pub(crate) committed_last: Option<Header>,
    /// What was adopted above it, to be written again.
    pub(crate) adopted: Vec<EncodedAggregation>,
    /// Id of the last aggregation.
    pub(crate) last_id: AggregationId,
    /// Header of the last aggregation; none in an empty log.
    pub(crate) last: Option<Header>,
}

/// Opens the log of `set` for a new writer. Where it has no aggregation, the first one follows the `foundation`.
pub(crate) async fn recover(
    set: &StoreSet,
    opening: Opening,
    foundation: &mut Foundation,
) -> Result<Recovered, OpenError> {
    for _ in 0..ATTEMPTS {
        let Some(Promised { set, epoch, survey, quorum }) = promise(set, opening).await? else {
            continue;
        };
        let set = &set;
        // Fewer than an opening needs: what was acknowledged may have been on the lost ones.
        let reduced = quorum < opening_quorum(set);
        let committed = survey.committed();
        let doubts = doubts(set, &survey).await;
        let found = async {
            check_held(set, &survey, &doubts)?;
            committed_end(set, &survey).await
        };
        let (mut last_id, committed_last) = match found.await {
            // What is not there was perhaps not looked for on the stores that have promised.
            Err(OpenError::DataLost { .. }) if exchanged(set, &survey, |_| true).await > 0 => continue,
            found => found?,
        };
        let mut last = committed_last;
        let mut adopted = Vec::new();
        let mut number = committed.next();
        while number <= survey.head() {
            let Some(next) = adopt(set, &survey, number, last_id, reduced).await? else {
                break;
            };
            (last_id, last) = (next.id, Some(next.header));
            adopted.push(next);
            number = number.next();
        }
        reached(Point::AfterAdoption);
        if number.0 == 1 {
            last_id = foundation.prev()?;
        }
        let start = StartRecord { epoch, number };
        let mut members = members_of(set, &survey, epoch);
        if let Some(started) = begin(set, &survey, start, &members, quorum).await? {
            reached(Point::AfterStart);
            members.change = members.change.next_multiple_of(2); // enough of them know it now
            return Ok(Recovered {
                set: set.clone(),
                survey,
                members,
                quorum: quorum.min(opening_quorum(set)),
                ready_with: if reduced { opening_quorum(set).max(set.quorums().write()) } else { 0 },
                start,
                started,
                doubts,
                committed,
                committed_last,
                adopted,
                last_id,
                last,
            });
        }
    }
    Err(OpenError::Contended { vdisk: set.vdisk().clone() })
}

/// An epoch that enough members have promised.
struct Promised {
    /// The stores, with the quorums that this log needs.
    set: StoreSet,
    epoch: Epoch,
    survey: Survey,
    /// How many are enough.
    quorum: usize,
}

/// Takes the next epoch and has it promised. None where another opening was faster.
async fn promise(set: &StoreSet, opening: Opening) -> Result<Option<Promised>, OpenError> {
    let before = set.survey().await;
    reached(Point::AfterSurvey);
    set.check_shape(&before)?;
    let set = &as_written(set, &before);
    let (needed, reduced) = match opening {
        Opening::Usual if before.is_new() => (set.quorums().founding(), false),
        Opening::Usual => (settling(&before, opening_quorum(set)), false),
        Opening::Replacing if !before.is_new() && before.counted_len() >= opening_quorum(set) => {
            (settling(&before, opening_quorum(set)), false)
        }
        Opening::Replacing => {
            before.require(0)?; // no store behind two places
            let left = members_left(set, &before)?;
            (left.min(opening_quorum(set)), left < opening_quorum(set))
        }
    };
    before.require(needed)?;
    let founding = before.is_new();
    let epoch = before.highest_epoch().next();
    let standings: Vec<Standing> = before.views.iter().map(|view| view.standing).collect();
    let mut answers: Vec<_> = before.views.into_iter().map(|view| Some(view.answer)).collect();
    // A blank store promises nothing: it is filled first, start records in order.
    let promises = set.on_all(|store, port| {
        let kept = match standings.get(store) {
            Some(Standing::Member) => None,
            _ => answers.get_mut(store).and_then(Option::take),
        };
        async move {
            match kept {
                Some(answer) => answer,
                None => port.promise(set.vdisk(), epoch).await,
            }
        }
    });
    let promises = promises.await;
    reached(Point::AfterPromise);
    let overtaken = promises.iter().any(|answer| answer.as_ref().is_err_and(|error| error.is_fenced()));
    let mut survey = set.assess(promises);
    // A store that another writer made a member between the two questions has promised nothing: it does not count.
    for (view, before) in survey.views.iter_mut().zip(standings) {
        if before == Standing::Blank && view.standing == Standing::Member {
            view.standing = Standing::Blank;
        }
    }
    let set = as_written(set, &survey);
    let needed = if reduced { needed } else { needed.max(settling(&survey, opening_quorum(&set))) };
    // Where a log is begun, it may be one store behind two places, which has promised once: the next look tells.
    if overtaken && (reduced || founding) {
        return Ok(None);
    }
    match survey.require(needed) {
        Ok(()) if reduced && members_left(&set, &survey)? != needed => Ok(None),
        Ok(()) => Ok(Some(Promised { quorum: needed, set, epoch, survey })),
        Err(_) if overtaken => Ok(None),
        Err(too_few) => Err(too_few.into()),
    }
}

/// How many members an opening needs where the newest list of members that is seen may not have been told to all who must know
/// it: then one place may have two stores, the one of this list and the one of the list before, and quorums of the two
/// lists need not share a store. One member more makes it a quorum of both; or all members there are, where every other place
/// answers and is blank.
fn settling(survey: &Survey, needed: usize) -> usize {
    #[cfg(test)]
    if crate::broken::is_broken(crate::broken::Rule::Settling) {
        return needed;
    }
    match (is_settled(&survey.members), survey.unreachable_len()) {
        (true, _) => needed,
        (false, 0) => survey.counted_len().clamp(needed, needed + 1),
        (false, _) => needed + 1,
    }
}

/// A list that enters a store has an odd count. It is followed by an even one: with the same stores once enough members know
/// of it, with the stores of before where that failed.
pub(crate) fn is_settled(members: &Members) -> bool {
    members.change.is_multiple_of(2)
}

/// How many members are left, where the operator says that the others are lost for good. Refused where it would be a guess:
///
/// - every place must answer: a store that is merely out of reach may hold what was acknowledged, and count again;
/// - the members left share a store with whatever any earlier or later opening had promised and told: they know the newest list of
///   members and all start records that count, and fence everybody else;
/// - fewer stores are lost than held whatever was acknowledged: it has left a trace on one of the members.
fn members_left(set: &StoreSet, survey: &Survey) -> Result<usize, ReplaceError> {
    let vdisk = || set.vdisk().clone();
    if survey.is_new() {
        return Err(ReplaceError::NoLog { vdisk: vdisk() });
    }
    let places = || 0..survey.views.len();
    let out_of_place = |store: &usize| {
        survey.views.get(*store).is_none_or(|view| view.answer.is_err())
            || survey.belongs_to(*store).is_some()
    };
    let stores: Vec<String> =
        places().filter(out_of_place).filter_map(|store| survey.reason(store)).collect();
    #[cfg(test)]
    let stores = if crate::broken::is_broken(crate::broken::Rule::AllLeft) { Vec::new() } else { stores };
    if !stores.is_empty() {
        return Err(ReplaceError::NotAllAnswer { vdisk: vdisk(), stores });
    }
    let (left, quorums) = (survey.counted_len(), set.quorums());
    let shared = quorums.total() - opening_quorum(set).min(quorums.acknowledged()) + 1;
    let needed = quorums.data().max(shared);
    #[cfg(test)]
    let needed = if crate::broken::is_broken(crate::broken::Rule::Traces) { quorums.data() } else { needed };
    if left < needed {
        let blank = places().filter_map(|store| survey.reason(store)).collect();
        return Err(ReplaceError::TooFewLeft { vdisk: vdisk(), left, needed, blank });
    }
    #[cfg(test)]
    if crate::broken::is_broken(crate::broken::Rule::AllLeft) {
        return Ok(left.min(needed));
    }
    Ok(left)
}

/// Committed numbers under which a store has something that may not count: it has not heard of a start record that rules out
/// some of it. A list of what is missing does not have these, and nothing else would find them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doubts {
    /// Ruled out, or damaged.
    pub(crate) wrong: NumberRanges,
    /// Could not be read right now.
    pub(crate) unread: NumberRanges,
}

async fn doubts(set: &StoreSet, survey: &Survey) -> Vec<Doubts> {
    let starts = survey.starts();
    let mut all = vec![Doubts::default(); set.stores().len()];
    for (store, state) in survey.counted() {
        let Some(doubts) = all.get_mut(store) else { continue };
        for range in doubtful(&starts, state).iter() {
            for located in set.heads(survey, *range.start()..=survey.committed().min(*range.end())).await {
                match located.conditions.get(store) {
                    Some(ShardCondition::Held(_)) => {}
                    Some(ShardCondition::Unreachable) | None => doubts.unread.insert(located.number),
                    Some(_) => doubts.wrong.insert(located.number),
                }
            }
        }
    }
    all
}

/// Every committed number must be held by k stores.
fn check_held(set: &StoreSet, survey: &Survey, doubts: &[Doubts]) -> Result<(), OpenError> {
    let range = survey.first()..=survey.committed();
    if range.is_empty() {
        return Ok(());
    }
    // Sweep over the ends of all ranges: cheap, however long the history is.
    let mut changes: Vec<(u64, i64)> = vec![(range.start().0, 0), (range.end().0 + 1, 0)];
    for (store, state) in survey.counted() {
        let mut held = state.held.clone();
        let wrong = doubts.get(store).into_iter().flat_map(|doubts| doubts.wrong.iter());
        wrong.for_each(|range| held.remove_range(range));
        for held in held.iter() {
            changes.push((held.start().0, 1));
            changes.push((held.end().0.saturating_add(1), -1));
        }
    }
    changes.sort_unstable();
    let needed = set.quorums().data();
    let mut lost = NumberRanges::new();
    let mut holders = 0i64;
    let mut from = 0u64;
    for (number, change) in changes {
        let (first, last) = (from.max(range.start().0), number.saturating_sub(1).min(range.end().0));
        if first <= last && number > from && holders < needed as i64 {
            lost.insert_range(AggregationNumber(first)..=AggregationNumber(last));
        }
        holders += change;
        from = number;
    }
    if lost.is_empty() {
        return Ok(());
    }
    Err(OpenError::DataLost { vdisk: set.vdisk().clone(), numbers: Numbers(lost), needed })
}

/// Id and header of the highest committed aggregation.
async fn committed_end(
    set: &StoreSet,
    survey: &Survey,
) -> Result<(AggregationId, Option<Header>), OpenError> {
    let number = survey.committed();
    if number.0 == 0 {
        return Ok((AggregationId::BEFORE_FIRST, None));
    }
    let needed = set.quorums().data();
    let located = set.heads(survey, number..=number).await;
    let proven = located
        .first()
        .and_then(|located| located.candidates.iter().find(|candidate| candidate.holders.len() >= needed));
    if let Some(candidate) = proven {
        return Ok((candidate.head.id, Some(candidate.head.header)));
    }
    // A store that does not answer has not lost anything.
    let conditions = located.into_iter().next().map(|located| located.conditions).unwrap_or_default();
    let counted: Vec<usize> = survey.counted().map(|(store, _)| store).collect();
    let silent = |store: &usize| conditions.get(*store) == Some(&ShardCondition::Unreachable);
    if counted.iter().any(silent) {
        return Err(OpenError::UncertainEnd(set.unreadable(number, &[], &conditions)));
    }
    let numbers = Numbers([number].into_iter().collect());
    Err(OpenError::DataLost { vdisk: set.vdisk().clone(), numbers, needed })
}

/// The aggregation that goes on from `prev` under a number above all committed ones, if there is one to adopt.
async fn adopt(
    set: &StoreSet,
    survey: &Survey,
    number: AggregationNumber,
    prev: AggregationId,
    reduced: bool,
) -> Result<Option<EncodedAggregation>, OpenError> {
    let (candidates, conditions) = set.all_shards(survey, number).await;
    // Was something acknowledged of which we see too little? Of the stores that were asked, W less those that were not asked would
    // hold it. With as many asked as an opening needs, k of them would; so that it takes damage, or silence, to doubt.
    let asked = survey.counted_len();
    let not_asked = set.quorums().total() - asked;
    let unknown = survey
        .counted()
        .filter(|(store, _)| {
            matches!(
                conditions.get(*store),
                Some(ShardCondition::Damaged(_) | ShardCondition::Unreachable) | None
            )
        })
        .count();
    #[cfg(test)]
    let reduced = reduced && !crate::broken::is_broken(crate::broken::Rule::Traces);
    let following: Vec<_> = candidates.iter().filter(|c| follows(number, c.head.header.prev, prev)).collect();
    // Highest epoch first: what a newer opening adopted or wrote goes before what it did not.
    let choose = |unknown: usize| {
        let doubt = |held: usize| {
            (unknown > 0 || reduced) && held + unknown + not_asked >= set.quorums().acknowledged()
        };
        let counts = |candidate: &&&Candidate| candidate.is_whole() || doubt(candidate.present());
        match following.iter().find(counts) {
            Some(candidate) if candidate.is_whole() => Ok(Some(*candidate)),
            None if !doubt(0) => Ok(None),
            _ => Err(OpenError::UncertainEnd(set.unreadable(number, &candidates, &conditions))),
        }
    };
    let mut chosen = choose(unknown)?;
    // What has k whole shards proves itself. Whatever else is decided here is, because stores do not hold something.
    if chosen.map(|chosen| chosen.head.id) != following.first().map(|first| first.head.id) || chosen.is_none()
    {
        let lacks = |store: usize| {
            matches!(
                conditions.get(store),
                Some(ShardCondition::Missing | ShardCondition::RuledOut(_) | ShardCondition::Held(_))
            )
        };
        chosen = choose(unknown + exchanged(set, survey, lacks).await)?;
    }
    let rebuilt = chosen.map(|candidate| candidate.rebuild()).transpose();
    rebuilt.map_err(|_| OpenError::UncertainEnd(set.unreadable(number, &candidates, &conditions)))
}

/// How many of the counted stores that `lack` something may not be the ones that have promised: reading a shard does not tell who answers,
/// and a disk that was in the place before knows the log, and nothing of what was written since.
async fn exchanged(set: &StoreSet, survey: &Survey, lack: impl Fn(usize) -> bool) -> usize {
    let lacking: Vec<(usize, &LogState)> = survey.counted().filter(|(store, _)| lack(*store)).collect();
    let now = set.survey_of(|store| lacking.iter().any(|(lacking, _)| *lacking == store)).await.identities();
    lacking.iter().filter(|(store, state)| now.get(*store).copied().flatten() != state.identity).count()
}

/// The list of members that this opening writes down.
///
/// Its write quorum is never raised again: some of what was acknowledged under a lower one may be known as committed to few
/// stores only, and a later opening must not ask fewer than finds it.
fn members_of(set: &StoreSet, survey: &Survey, epoch: Epoch) -> Members {
    let small = |number: usize| u8::try_from(number).unwrap_or(u8::MAX); // at most 255 shards
    let (data_shards, write_quorum) = (small(set.quorums().data()), small(set.quorums().acknowledged()));
    let identities = if survey.is_new() { survey.identities() } else { survey.members.identities.clone() };
    // What was not settled is not before enough members have this list.
    let change = u64::from(!is_settled(&survey.members));
    Members { epoch, change, identities, data_shards, write_quorum }
}

/// Writes the start record. None where another opening was faster.
async fn begin(
    set: &StoreSet,
    survey: &Survey,
    start: StartRecord,
    members: &Members,
    needed: usize,
) -> Result<Option<Vec<bool>>, OpenError> {
    let counted: Vec<bool> = survey.views.iter().map(|view| view.standing == Standing::Member).collect();
    let answers = set
        .on_all(|store, port| {
            let member = counted.get(store).copied().unwrap_or(false);
            async move {
                if member {
                    reached(Point::BeforeStart);
                    port.start(set.vdisk(), start, members).await.map(Some)
                } else {
                    Ok(None)
                }
            }
        })
        .await;
    let started: Vec<bool> = answers
        .iter()
        .zip(&members.identities)
        .map(|(answer, member)| matches!((answer, member), (Ok(Some(identity)), Some(member)) if identity == member))
        .collect();
    let count = started.iter().filter(|started| **started).count();
    if count >= needed {
        return Ok(Some(started));
    }
    if answers.iter().any(|answer| answer.as_ref().is_err_and(|error| error.is_fenced())) {
        return Ok(None);
    }
    let missing = answers.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
    Err(TooFewStores {
        vdisk: set.vdisk().clone(),
        counted: count,
        needed,
        total: set.quorums().total(),
        missing,
        same: Vec::new(),
    }
    .into())
}

/// The stores with the quorums that the log needs.
fn as_written(set: &StoreSet, survey: &Survey) -> StoreSet {
    #[cfg(test)]
    if crate::broken::is_broken(crate::broken::Rule::EarlierWrite) {
        return set.clone();
    }
    set.as_written(survey)
}

/// How many stores an opening needs.
pub(crate) fn opening_quorum(set: &StoreSet) -> usize {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(broken) = crate::broken::broken_opening_quorum(set.quorums()) {
        return broken;
    }
    set.quorums().opening()
}
