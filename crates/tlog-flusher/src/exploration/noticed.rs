//! Rules that are broken on purpose: each must be noticed.

use super::{explore, from_environment};
use crate::broken::Rule;

/// The first seed that shows what breaking a rule does. What shows itself rarely is looked for from a seed on that is known to show
/// it soon; after a change that makes other things happen under each seed, look for another one: `TLOG_EXPLORE_FROM=1
/// TLOG_EXPLORE_BROKEN=50000`.
fn must_be_caught_from(first: u64, rule: Rule) {
    let first = from_environment("TLOG_EXPLORE_FROM").unwrap_or(first);
    let many = from_environment("TLOG_EXPLORE_BROKEN").unwrap_or(3000);
    let mut seeds = first..first + many;
    let caught = seeds.find_map(|seed| explore(seed, Some(rule), false).err().map(|found| (seed, found)));
    let (seed, found) = caught.unwrap_or_else(|| panic!("nobody noticed that {rule:?} is broken"));
    println!("{rule:?} broken: seed {seed}: {}", found.chars().take(120).collect::<String>());
}

fn must_be_caught(rule: Rule) {
    must_be_caught_from(1, rule);
}

#[test]
fn leaving_out_start_records_is_noticed() {
    must_be_caught(Rule::StartRecords);
}

#[test]
fn opening_without_a_majority_is_noticed() {
    must_be_caught(Rule::Majority);
}

#[test]
fn taking_an_empty_store_for_the_old_one_is_noticed() {
    must_be_caught(Rule::Identity);
}

#[test]
fn counting_answers_of_an_old_identity_is_noticed() {
    must_be_caught(Rule::Forget);
}

#[test]
fn acknowledging_before_w_stores_have_it_is_noticed() {
    must_be_caught(Rule::WriteQuorum);
}

#[test]
fn not_giving_a_blank_store_what_was_adopted_is_noticed() {
    must_be_caught_from(9300, Rule::Adopted);
}

#[test]
fn forgetting_that_a_log_was_written_with_a_lower_w_is_noticed() {
    must_be_caught(Rule::EarlierWrite);
}

#[test]
fn replacing_lost_stores_where_what_is_gone_may_have_been_acknowledged_is_noticed() {
    must_be_caught(Rule::Traces);
}

#[test]
fn removing_the_last_aggregation_is_noticed() {
    must_be_caught(Rule::LastStays);
}

#[test]
fn replacing_lost_stores_without_asking_all_that_are_left_is_noticed() {
    must_be_caught_from(2500, Rule::AllLeft);
}
