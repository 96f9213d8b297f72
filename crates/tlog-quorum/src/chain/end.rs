//! Which of the ids in all lists is the newest that counts. Pure.
//!
//! A writer stores an aggregation on every store, puts its id in front of every list, and only then acknowledges it and goes on
//! to the next one. So:
//!
//! - what was acknowledged is in the list of every store that has not lost its list, and in at least k of them, since at
//!   most m stores may be lost;
//! - what is not in the list of some store that has one was never acknowledged: a writer died there;
//! - between two openings a list runs ahead of the others by one id at most.
//!
//! Of ids that can be read and do not follow each other (two writers, or a late answer of a store to a dead one) the one that
//! more lists have counts, then the one that is further in front. Ids that cannot be read are passed over if they cannot have
//! been acknowledged; else they are *doubtful*.

use std::collections::{BTreeMap, BTreeSet};

use tlog_codec::Redundancy;
use tlog_proto::AggregationId;

use super::LinkFault;

/// What the lists come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// The newest that counts and can be read.
    pub(super) newest: Option<AggregationId>,
    /// Newer ones that cannot be read, and may have been acknowledged.
    pub(super) doubtful: Vec<AggregationId>,
}

/// `lists` are those that are not empty, newest first; `judged` has the id before it for what can be read, at least of all ids
/// that are not behind one which can be read and with which all lists begin. What is `unsettled` cannot be read at this moment
/// and may be in the next; `silent` stores did not answer.
pub(super) fn choose(
    lists: &[&[AggregationId]],
    judged: &BTreeMap<AggregationId, Result<AggregationId, LinkFault>>,
    unsettled: &BTreeSet<AggregationId>,
    silent: usize,
    redundancy: Redundancy,
) -> Choice {
    let newest = tips(judged).into_iter().max_by_key(|id| standing(lists, *id));
    // Ids that cannot be read, by the list that has them in front of the newest, or has not got that at all.
    let ahead: Vec<BTreeSet<AggregationId>> = lists
        .iter()
        .map(|list| {
            let newer = list.iter().copied().take_while(|id| Some(*id) != newest);
            newer.filter(|id| matches!(judged.get(id), Some(Err(_)))).collect()
        })
        .collect();
    let may_be_acknowledged = |id: &AggregationId| {
        let listed = lists.iter().filter(|list| list.contains(id)).count();
        listed == lists.len() && listed + silent >= redundancy.data()
    };
    let mut doubtful = BTreeSet::new();
    for newer in &ahead {
        // More than one: this store did not run ahead, the others fell behind what they had.
        let fell_behind = newer.len() > 1;
        for id in newer {
            let whole = !matches!(
                judged.get(id),
                Some(Err(LinkFault::TooFew { .. } | LinkFault::Damaged) | Ok(_)) | None
            );
            if fell_behind || whole || unsettled.contains(id) || may_be_acknowledged(id) {
                doubtful.insert(*id);
            }
        }
    }
    Choice { newest, doubtful: doubtful.into_iter().collect() }
}

/// What can be read and nothing else that can be read follows.
fn tips(judged: &BTreeMap<AggregationId, Result<AggregationId, LinkFault>>) -> BTreeSet<AggregationId> {
    let mut tips: BTreeSet<AggregationId> =
        judged.iter().filter(|(_, read)| read.is_ok()).map(|(id, _)| *id).collect();
    for prev in judged.values().flatten() {
        tips.remove(prev);
    }
    tips
}

/// In how many lists it is, and how far in front.
fn standing(lists: &[&[AggregationId]], id: AggregationId) -> (usize, std::cmp::Reverse<usize>) {
    let places = || lists.iter().filter_map(|list| list.iter().position(|other| *other == id));
    (places().count(), std::cmp::Reverse(places().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: u8) -> AggregationId {
        AggregationId([name; 32])
    }

    const TOO_FEW: LinkFault = LinkFault::TooFew { present: 3, needed: 4 };

    /// Names and what they follow; a capital letter cannot be read. Lists are written as texts, newest first.
    fn check(lists: &[&str], follows: &[&str], silent: usize, newest: Option<char>, doubtful: &str) {
        let ids: Vec<Vec<AggregationId>> = lists.iter().map(|list| list.bytes().map(id).collect()).collect();
        let lists_of: Vec<&[AggregationId]> = ids.iter().map(Vec::as_slice).collect();
        let before: BTreeMap<u8, u8> =
            follows.iter().flat_map(|chain| chain.bytes().zip(chain.bytes().skip(1))).collect();
        let judge = |name: u8| match name.is_ascii_uppercase() {
            true => Err(TOO_FEW),
            false => Ok(before.get(&name).map_or(AggregationId::BEFORE_FIRST, |name| id(*name))),
        };
        let judged = lists.iter().flat_map(|list| list.bytes()).map(|name| (id(name), judge(name))).collect();
        let choice = choose(&lists_of, &judged, &BTreeSet::new(), silent, Redundancy::new(4, 2).unwrap());
        let expected = Choice {
            newest: newest.map(|name| id(name as u8)),
            doubtful: doubtful.bytes().map(id).collect(),
        };
        assert_eq!(choice, expected, "{lists:?}");
    }

    #[test]
    fn lists_that_agree_end_with_what_is_in_front() {
        check(&["cba"; 6], &["cba"], 0, Some('c'), "");
        check(&["cba"; 4], &["cba"], 2, Some('c'), "");
        check(&[], &[], 0, None, "");
    }

    #[test]
    fn a_list_that_is_one_ahead_counts_if_it_can_be_read_and_is_passed_over_if_not() {
        check(&["dcba", "cba", "cba", "cba", "cba", "cba"], &["dcba"], 0, Some('d'), "");
        check(&["Dcba", "Dcba", "Dcba", "cba", "cba", "cba"], &["cba"], 0, Some('c'), "");
        // Four have it, and one of the four shards is damaged.
        check(&["Dcba", "Dcba", "Dcba", "Dcba", "cba", "cba"], &["cba"], 0, Some('c'), "");
        // The very first aggregation, torn.
        check(&["A"], &[], 0, None, "");
        check(&["A", "A", "A"], &[], 0, None, "");
    }

    #[test]
    fn what_may_have_been_acknowledged_and_cannot_be_read_is_doubtful() {
        check(&["Dcba"; 6], &["cba"], 0, Some('c'), "D");
        check(&["Dcba"; 4], &["cba"], 2, Some('c'), "D");
        // Two stores came back empty.
        check(&["Dcba"; 4], &["cba"], 0, Some('c'), "D");
        check(&["A"; 4], &[], 0, None, "A");
        // Three fell back to an earlier state: what the others have in front was acknowledged.
        check(&["EDcba", "EDcba", "EDcba", "cba", "cba", "cba"], &["cba"], 0, Some('c'), "DE");
        check(&["CBA", "CBA", "CBA"], &[], 0, None, "ABC");
    }

    #[test]
    fn what_is_whole_and_does_not_open_is_never_passed_over() {
        let lists: Vec<Vec<AggregationId>> = vec![vec![id(2), id(1)], vec![id(1)]];
        let lists: Vec<&[AggregationId]> = lists.iter().map(Vec::as_slice).collect();
        let judged = [(id(1), Ok(AggregationId::BEFORE_FIRST)), (id(2), Err(LinkFault::Key))].into();
        let choice = choose(&lists, &judged, &BTreeSet::new(), 0, Redundancy::new(1, 1).unwrap());
        assert_eq!(choice, Choice { newest: Some(id(1)), doubtful: vec![id(2)] });
        // Nor is what may be read in a moment.
        let judged = [(id(1), Ok(AggregationId::BEFORE_FIRST)), (id(2), Err(TOO_FEW))].into();
        let choice = choose(&lists, &judged, &[id(2)].into(), 0, Redundancy::new(1, 1).unwrap());
        assert_eq!(choice.doubtful, [id(2)]);
    }

    #[test]
    fn of_two_that_follow_the_same_one_that_which_more_lists_have_counts() {
        // A store gave a dead writer's append late: d is in front there, and e is in all lists.
        check(&["decba", "ecba", "ecba", "ecdba", "ecdba", "ecdba"], &["ecba", "dcba"], 0, Some('e'), "");
        // d had been settled upon and later written over by a writer that did not see it.
        check(&["edcba", "edcba", "ecba", "ecba", "ecba", "ecba"], &["ecba", "dcba"], 0, Some('e'), "");
        check(&["edcba"; 4], &["ecba", "dcba"], 2, Some('e'), "");
    }

    #[test]
    fn garbage_behind_the_newest_is_not_looked_at() {
        check(&["cXba", "cba", "cYZWV", "c", "cba", "cba"], &["cba"], 0, Some('c'), "");
    }
}
