//! Where a log ends, by who holds what and who can be asked.

use tlog_player::{DiskStateError, Moment, MomentError, ReadOptions};
use tlog_proto::{Epoch, Sequence, Timestamp};

use crate::log::{TestLog, number};

/// One aggregation above the highest committed one, number 3.
struct Case {
    shards: (usize, usize),
    holders: &'static [usize],
    down: &'static [usize],
    wiped: &'static [usize],
    damaged: &'static [usize],
    /// Last number, and whether the end is uncertain.
    expected: (u64, bool),
}

const CASES: &[Case] = &[
    // 4+2, W = 5.
    Case {
        shards: (4, 2),
        holders: &[0, 1, 2, 3, 4],
        down: &[],
        wiped: &[],
        damaged: &[],
        expected: (4, false),
    },
    Case {
        shards: (4, 2),
        holders: &[0, 1, 2, 3],
        down: &[],
        wiped: &[],
        damaged: &[],
        expected: (3, false),
    },
    Case {
        shards: (4, 2),
        holders: &[0, 1, 2, 3],
        down: &[5],
        wiped: &[],
        damaged: &[],
        expected: (3, true),
    },
    Case {
        shards: (4, 2),
        holders: &[0, 1, 2, 3, 4],
        down: &[4],
        wiped: &[],
        damaged: &[],
        expected: (3, true),
    },
    Case { shards: (4, 2), holders: &[0, 1, 2], down: &[5], wiped: &[], damaged: &[], expected: (3, false) },
    Case {
        shards: (4, 2),
        holders: &[0, 1, 2],
        down: &[4, 5],
        wiped: &[],
        damaged: &[],
        expected: (3, true),
    },
    Case { shards: (4, 2), holders: &[4, 5], down: &[4, 5], wiped: &[], damaged: &[], expected: (3, false) },
    Case {
        shards: (4, 2),
        holders: &[0],
        down: &[2, 3, 4, 5],
        wiped: &[],
        damaged: &[],
        expected: (3, true),
    },
    Case {
        shards: (4, 2),
        holders: &[0, 1, 2, 3, 4],
        down: &[5],
        wiped: &[],
        damaged: &[],
        expected: (4, false),
    },
    Case {
        shards: (4, 2),
        holders: &[0, 1, 2, 3, 4],
        down: &[],
        wiped: &[0],
        damaged: &[],
        expected: (3, true),
    },
    Case {
        shards: (4, 2),
        holders: &[0, 1, 2, 3],
        down: &[],
        wiped: &[4, 5],
        damaged: &[],
        expected: (3, true),
    },
    Case {
        shards: (4, 2),
        holders: &[0, 1, 2, 3, 4],
        down: &[],
        wiped: &[],
        damaged: &[1],
        expected: (3, true),
    },
    Case {
        shards: (4, 2),
        holders: &[0, 1, 2, 3],
        down: &[],
        wiped: &[],
        damaged: &[1],
        expected: (3, false),
    },
    Case {
        shards: (4, 2),
        holders: &[0],
        down: &[2, 3, 4, 5],
        wiped: &[],
        damaged: &[0],
        expected: (3, true),
    },
    Case {
        shards: (4, 2),
        holders: &[],
        down: &[2, 3, 4, 5],
        wiped: &[],
        damaged: &[],
        expected: (3, false),
    },
    // 2+1, W = 3: all must hold it.
    Case { shards: (2, 1), holders: &[0, 1, 2], down: &[], wiped: &[], damaged: &[], expected: (4, false) },
    Case { shards: (2, 1), holders: &[0, 1], down: &[], wiped: &[], damaged: &[], expected: (3, false) },
    Case { shards: (2, 1), holders: &[0, 1], down: &[2], wiped: &[], damaged: &[], expected: (3, true) },
    Case { shards: (2, 1), holders: &[0, 2], down: &[2], wiped: &[], damaged: &[], expected: (3, false) },
    // 3+2, W = 4.
    Case {
        shards: (3, 2),
        holders: &[0, 1, 2, 3],
        down: &[4],
        wiped: &[],
        damaged: &[],
        expected: (4, false),
    },
    Case { shards: (3, 2), holders: &[0, 1, 2], down: &[4], wiped: &[], damaged: &[], expected: (3, true) },
    Case { shards: (3, 2), holders: &[0, 1], down: &[4], wiped: &[], damaged: &[], expected: (3, false) },
    // 1+0.
    Case { shards: (1, 0), holders: &[0], down: &[], wiped: &[], damaged: &[], expected: (4, false) },
    Case { shards: (1, 0), holders: &[], down: &[], wiped: &[], damaged: &[], expected: (3, false) },
];

#[tokio::test]
async fn the_end_is_where_w_stores_hold_it_and_uncertain_where_silent_stores_could_make_it_w() {
    for (at, case) in CASES.iter().enumerate() {
        let mut log = TestLog::with(case.shards.0, case.shards.1, 3).await;
        let block = log.one_block();
        let tail = log.encode(1, &[block]);
        log.store(&tail, log.epoch, case.holders, 3).await;
        case.down.iter().for_each(|&i| log.controls[i].set_down(true));
        case.wiped.iter().for_each(|&i| log.memory[i].wipe());
        for &i in case.damaged {
            assert!(log.memory[i].damage(&log.vdisk, number(4), |shard| shard.head = "rot".into()));
        }
        let reader = log.reader().await;
        let extent = reader.extent();
        assert_eq!((extent.last.0, extent.uncertain.is_some()), case.expected, "case {at}: {extent:?}");
        let history = reader.history().collect().await.unwrap();
        assert_eq!(history.len() as u64, case.expected.0, "case {at}");
        let Some(end) = &extent.uncertain else {
            assert!(log.state(Moment::Newest).await.is_ok(), "case {at}");
            continue;
        };
        assert_eq!(end.beyond, number(4), "case {at}");
        let named = |of: &[usize]| of.iter().all(|i| end.missing.contains(&format!("memory:{i}")));
        assert!(named(case.down) && named(case.wiped), "case {at}: {end:?}");
        assert_eq!(end.more, end.tail.is_empty(), "case {at}: {end:?}");

        let error = log.state(Moment::Newest).await.unwrap_err();
        assert!(
            matches!(error, DiskStateError::Moment(MomentError::UncertainEnd { .. })),
            "case {at}: {error}"
        );
        let options = ReadOptions { accept_uncertain_end: true, ..ReadOptions::default() };
        let state = reader.disk_state(&log.keys, Moment::Newest, &options).await.unwrap();
        assert_eq!(state.reached().unwrap().aggregation, number(3), "case {at}");
    }
}

#[tokio::test]
async fn only_moments_that_an_uncertain_end_could_change_are_refused() {
    let mut log = TestLog::with(4, 2, 3).await; // sequences 1 to 3, timestamps 1001 to 1003
    for on in [&[0, 1, 2, 3][..], &[0, 1, 2, 3][..], &[0][..]] {
        let block = log.one_block(); // sequences 4, 5, 6; timestamps 1004, 1005, 1006
        let tail = log.encode(1, &[block]);
        log.store(&tail, log.epoch, on, 3).await;
        log.advance(&tail);
    }
    log.controls[5].set_down(true);
    let reader = log.reader().await;
    let end = reader.extent().uncertain.clone().unwrap();
    assert_eq!(
        end.tail.iter().map(|info| info.number.0).collect::<Vec<_>>(),
        [4, 5],
        "W cannot hold the third"
    );
    assert_eq!(end.oldest_timestamp(), Some(Timestamp(1004)));
    let sequence = |n| Moment::Sequence { generation: None, sequence: Sequence(n) };
    for (moment, refused) in [
        (Moment::Newest, true),
        (Moment::At(Timestamp(1003)), false),
        (Moment::At(Timestamp(1004)), true),
        (Moment::At(Timestamp(9999)), true),
        (sequence(3), false),
        (sequence(5), true),
        (Moment::Aggregation(number(3)), false),
        (Moment::Aggregation(number(4)), true),
    ] {
        match log.state(moment).await {
            Ok(_) => assert!(!refused, "{moment:?}"),
            Err(DiskStateError::Moment(MomentError::UncertainEnd { .. })) => assert!(refused, "{moment:?}"),
            Err(error) => panic!("{moment:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn what_a_later_opening_ruled_out_is_neither_in_the_log_nor_at_its_end() {
    let mut log = TestLog::with(4, 2, 3).await;
    let block = log.one_block();
    let ruled_out = log.encode(1, &[block]);
    // The first writer got it onto one store that the second then missed.
    log.store(&ruled_out, Epoch(1), &[0], 3).await;
    log.open(Epoch(2), &[1, 2, 3, 4, 5]).await;
    let reader = log.reader().await;
    assert_eq!((reader.extent().last, &reader.extent().uncertain), (number(3), &None));

    let block = log.one_block();
    let right = log.encode(1, &[block]);
    log.store(&right, Epoch(2), &[1, 2, 3, 4, 5], 3).await;
    let reader = log.reader().await;
    assert_eq!((reader.extent().last, reader.last_id()), (number(4), Some(right.id)));
    let state = log.state(Moment::Newest).await.unwrap();
    assert_eq!(state.reached().unwrap().position.sequence, right.header.last_sequence);

    // The same with the first data shards out of reach, so that all others are needed.
    log.controls[5].set_down(true);
    let reader = log.reader().await;
    assert_eq!(reader.extent().last, number(3), "4 of 5 in reach");
    assert_eq!(reader.extent().uncertain.as_ref().unwrap().missing, ["memory:5"]);
}

#[tokio::test]
async fn several_aggregations_above_the_committed_one_are_followed_by_their_chain() {
    let mut log = TestLog::with(4, 2, 2).await;
    for _ in 0..70 {
        let block = log.one_block();
        let next = log.encode(1, &[block]);
        log.store(&next, log.epoch, &[0, 1, 2, 3, 4], 2).await; // more than one step of heads, none known as committed
        log.advance(&next);
    }
    let reader = log.reader().await;
    assert_eq!((reader.extent().last, reader.last_id()), (number(72), Some(log.prev)));
    // W stores hold it, but it follows something else.
    let block = log.one_block();
    let stranger = log.encode_as(log.next, tlog_proto::AggregationId([9; 32]), 1, &[block]);
    log.store(&stranger, log.epoch, &log.all(), 2).await;
    assert_eq!(log.reader().await.extent().last, number(72));
}
