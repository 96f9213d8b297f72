//! Logs that existing servers have written, alone and with format 2 after them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tlog_codec::format1;
use tlog_player::{
    Depth, DiskStateError, Format1Error, HistoryError, LogReader, MemoryTarget, Moment, MomentError,
    OpenError, ReadOptions, RestoreOptions, StoredFormat, Verdict, VerifyError, VerifyReport,
};
use tlog_proto::{AggregationId, Epoch, Generation, Sequence, Timestamp, VdiskId};
use tlog_quorum::{LinkFault, StoreSet};

use crate::log::{TestLog, choices, number, set_block};
use crate::moments::check;
use crate::oracle::{Story, random_story_of_both};

/// Every moment of both parts against an image that was taken then.
async fn check_all_moments(story: &Story, seed: u64) {
    check(story, Moment::Newest, story.newest(), seed).await;
    let times: BTreeSet<u64> = story.snapshots.iter().flat_map(|s| s.timestamp - 1..=s.timestamp).collect();
    for time in times {
        if let Some(expected) = story.last_where(|s| s.timestamp <= time) {
            check(story, Moment::At(Timestamp(time)), expected, seed).await;
        }
    }
    for snapshot in &story.snapshots {
        let sequence = Sequence(snapshot.sequence);
        let newest = story.last_where(|s| s.sequence == snapshot.sequence).unwrap();
        check(story, Moment::Sequence { generation: None, sequence }, newest, seed).await;
        let same = |s: &&_| (s as &crate::oracle::Snapshot).generation == snapshot.generation;
        let newest =
            story.snapshots.iter().rev().filter(same).find(|s| s.sequence == snapshot.sequence).unwrap();
        let generation = Some(Generation(snapshot.generation));
        check(story, Moment::Sequence { generation, sequence }, newest, seed).await;
    }
}

#[tokio::test]
async fn every_moment_of_a_chain_equals_an_image_taken_then() {
    for (data, parity) in [(4, 2), (1, 0)] {
        for seed in 0..2 {
            check_all_moments(&random_story_of_both(seed, data, parity, 12, 0).await, seed).await;
        }
    }
}

#[tokio::test]
async fn every_moment_of_a_log_that_went_on_in_format_2_equals_an_image_taken_then() {
    for (data, parity) in [(4, 2), (2, 1)] {
        for seed in 10..12 {
            let story = random_story_of_both(seed, data, parity, 7, 6).await;
            check_all_moments(&story, seed).await;
            for aggregation in 1..=6 {
                let last = |s: &crate::oracle::Snapshot| {
                    (s.format, s.aggregation) == (StoredFormat::Two, aggregation)
                };
                let expected = story.last_where(last).unwrap();
                check(&story, Moment::Aggregation(number(aggregation)), expected, seed).await;
            }
        }
    }
}

#[tokio::test]
async fn history_shows_both_parts_as_one_and_says_which_is_which() {
    let story = random_story_of_both(3, 4, 2, 5, 4).await;
    let history = story.log.reader().await.history().collect().await.unwrap();
    let rows: Vec<_> = history.iter().map(|info| (info.format.number(), info.number.0)).collect();
    assert_eq!(rows, [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 1), (2, 2), (2, 3), (2, 4)]);
    let mut prev = AggregationId::BEFORE_FIRST;
    for info in &history {
        assert_eq!((info.prev, info.holders), (prev, 6), "{info:?}");
        prev = info.id;
        let of = |s: &&crate::oracle::Snapshot| (s.format, s.aggregation) == (info.format, info.number.0);
        let blocks: Vec<_> = story.snapshots.iter().filter(of).collect();
        let times = || blocks.iter().map(|block| block.timestamp);
        assert_eq!(info.blocks as usize, blocks.len());
        assert_eq!(info.first_sequence.0, blocks[0].sequence);
        assert_eq!(info.last_sequence.0, blocks[blocks.len() - 1].sequence);
        assert_eq!(info.oldest_timestamp.0, times().min().unwrap());
        assert_eq!(info.newest_timestamp.0, times().max().unwrap());
        assert_eq!(info.generation.0, blocks[0].generation);
    }
    let links = history.iter().filter(|info| info.format == StoredFormat::One);
    for info in links {
        let held =
            story.log.memory.iter().map(|store| store.chain_store().shard(info.id).unwrap().len() as u64);
        assert_eq!((info.stored_bytes, info.sealed_at), (held.sum(), Timestamp(2_000_000)));
    }
    // What is in format 2 alone needs no key.
    let reader = LogReader::open(story.log.set.clone()).await.unwrap();
    let of_format2 = reader.history_of(number(1)..=number(4)).collect().await.unwrap();
    assert_eq!(of_format2, history[5..]);
}

#[tokio::test]
async fn the_recorded_aggregation_of_an_existing_server_is_found_and_restored() {
    let shared = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden"));
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tlog-codec/tests/golden/v1"));
    for folder in [own, shared] {
        if !folder.join("aggregation.bin").exists() {
            eprintln!("skipped: no recorded bytes in {}", folder.display());
            continue;
        }
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let id = hex::decode(read("aggregation.key.hex").trim_ascii()).unwrap();
        let id = AggregationId(id.try_into().unwrap());
        let mut log = TestLog::unopened(4, 2);
        log.vdisk = VdiskId::new("myimg").unwrap();
        log.keys = crate::log::keys_of(&log.vdisk, 7);
        let (stores, quorums) = (log.set.stores().to_vec(), log.set.quorums());
        log.set = StoreSet::new(log.vdisk.clone(), stores, quorums, log.set.timeout()).unwrap();
        let shards = (0..6).map(|i| Bytes::from(read(&format!("piece_{i}.bin")))).collect();
        log.store_link(&format1::Encoded { id, shards }, &log.all()).await;

        let history = log.reader().await.history().collect().await.unwrap();
        assert_eq!(history.len(), 1);
        assert_eq!((history[0].id, history[0].blocks, history[0].last_sequence), (id, 3, Sequence(3)));
        // Blocks of 100 bytes: 10 was set and deleted, 11 set.
        let restored = log.restore(Moment::Newest).await.unwrap();
        assert_eq!(restored.len(), 12 * 100);
        assert_eq!(restored[11 * 100..], (0..100).collect::<Vec<u8>>());
        let before = log.restore(Moment::Sequence { generation: None, sequence: Sequence(1) }).await;
        // Then only a block of 64 bytes was written, and where it belongs is known from the longer one.
        assert_eq!(before.unwrap()[10 * 100..], [b'a'; 64]);
    }
}

async fn verify(log: &TestLog) -> VerifyReport {
    log.reader().await.verify(Depth::Chain, |_| {}).await.unwrap()
}

#[tokio::test]
async fn up_to_m_shards_of_every_aggregation_may_be_lost_or_damaged_on_any_stores() {
    let story = random_story_of_both(5, 4, 2, 6, 3).await;
    let log = &story.log;
    let report = verify(log).await;
    assert_eq!((report.verdict.clone(), report.losses_survived), (Verdict::Whole, Some(2)));
    let whole = report.format1.unwrap();
    assert_eq!((whole.aggregations, whole.degraded, whole.is_whole()), (6, 0, true));
    let ids: Vec<_> = log.reader().await.history().collect().await.unwrap();
    let ids: Vec<_> =
        ids.iter().filter(|info| info.format == StoredFormat::One).map(|info| info.id).collect();
    for pair in choices(6, 2) {
        let kept: Vec<Vec<Bytes>> = pair
            .iter()
            .map(|i| ids.iter().map(|id| log.memory[*i].chain_store().shard(*id).unwrap()).collect())
            .collect();
        for (nth, id) in ids.iter().enumerate() {
            let [one, other] = [&log.memory[pair[0]], &log.memory[pair[1]]].map(|store| store.chain_store());
            match nth % 3 {
                0 => assert!(one.remove_shard(*id) && other.remove_shard(*id)),
                1 => assert!(
                    one.damage_shard(*id, |s| s[3] ^= 1) && other.damage_shard(*id, |s| s.truncate(5))
                ),
                _ => assert!(one.remove_shard(*id) && other.damage_shard(*id, |s| s.fill(0))),
            }
        }
        check(&story, Moment::Newest, story.newest(), 5).await;
        let history = log.reader().await.history().collect().await.unwrap();
        assert!(history[..6].iter().all(|info| info.holders == 4));
        let report = verify(log).await;
        assert_eq!((report.verdict, report.losses_survived), (Verdict::Degraded, Some(0)));
        let found = report.format1.unwrap();
        assert_eq!((found.aggregations, found.degraded, &found.broken), (6, 6, &None));
        let of = |i: usize| (found.stores[i].held, found.stores[i].missing, found.stores[i].damaged);
        assert_eq!([of(pair[0]), of(pair[1])], [(0, 4, 2), (0, 2, 4)], "{pair:?}");
        for (i, shards) in pair.iter().zip(kept) {
            for (id, shard) in ids.iter().zip(shards) {
                log.memory[*i].chain_store().put_shard(*id, shard);
            }
        }
    }
    assert_eq!(verify(log).await.verdict, Verdict::Whole);
}

#[tokio::test]
async fn any_two_stores_out_of_reach_or_wiped_leave_everything_readable() {
    for links_only in [true, false] {
        for wiped in [false, true] {
            for pair in choices(6, 2) {
                let aggregations = if links_only { 0 } else { 3 };
                let story = random_story_of_both(8, 4, 2, 7, aggregations).await;
                for i in &pair {
                    match wiped {
                        // The log of format 2 is opened with five; here it is only about what is before it.
                        true => story.log.memory[*i].chain_store().wipe(),
                        false => story.log.memory[*i].chain_store().set_down(true),
                    }
                }
                check(&story, Moment::Newest, story.newest(), 8).await;
                let report = verify(&story.log).await;
                let found = report.format1.unwrap();
                assert_eq!(
                    (report.verdict, found.degraded, found.losses_survived),
                    (Verdict::Degraded, 7, Some(0))
                );
                let store = &found.stores[pair[1]];
                assert_eq!((store.missing, store.unread), if wiped { (7, 0) } else { (0, 7) });
                assert_eq!(store.error.is_some(), !wiped);
            }
        }
    }
}

#[tokio::test]
async fn too_many_stores_out_of_reach_is_an_error_and_never_no_history() {
    let story = random_story_of_both(1, 4, 2, 3, 0).await;
    let log = &story.log;
    for three in choices(6, 3) {
        for i in &three {
            log.memory[*i].chain_store().set_down(true);
        }
        let error = log.open_reader().await.unwrap_err();
        assert!(matches!(&error, OpenError::TooFewStores(e) if (e.counted, e.needed) == (3, 4)), "{error}");
        assert!(error.to_string().contains(&format!("memory:{}", three[0])), "{error}");
        // A vdisk that was never written looks the same from there.
        let other = VdiskId::new("other").unwrap();
        let set =
            StoreSet::new(other, log.set.stores().to_vec(), log.set.quorums(), log.set.timeout()).unwrap();
        let error = LogReader::open(set).await.unwrap_err();
        assert!(matches!(error, OpenError::TooFewStores(_)), "{error}");
        for i in three {
            log.memory[i].chain_store().set_down(false);
        }
    }
    // The shards of three stores are gone, and their lists.
    for store in &log.memory[..3] {
        store.chain_store().wipe();
    }
    let error = log.open_reader().await.unwrap_err();
    assert!(matches!(error, OpenError::Format1End(_)), "{error}");
}

#[tokio::test]
async fn a_chain_that_breaks_in_the_middle_is_told_with_the_place() {
    let story = random_story_of_both(2, 4, 2, 6, 2).await;
    let log = &story.log;
    let history = log.reader().await.history().collect().await.unwrap();
    let lost = history[2].id;
    for store in &log.memory[..3] {
        assert!(store.chain_store().remove_shard(lost));
    }
    let too_few = LinkFault::TooFew { present: 3, needed: 4 };
    let is_it = |error: &Format1Error| matches!(error, Format1Error::Broken { back: 4, source } if (source.id, &source.fault) == (lost, &too_few));
    let error = log.reader().await.history().collect().await.unwrap_err();
    assert!(matches!(&error, HistoryError::Format1(error) if is_it(error)), "{error}");
    assert!(error.to_string().contains("memory:1 does not hold its shard"), "{error}");
    let error = log.state(Moment::Newest).await.unwrap_err();
    assert!(
        matches!(&error, DiskStateError::History(HistoryError::Format1(error)) if is_it(error)),
        "{error}"
    );
    let report = verify(log).await;
    assert!(matches!(&report.verdict, Verdict::Lost { numbers } if numbers.is_empty()));
    let found = report.format1.unwrap();
    assert_eq!((found.aggregations, found.broken.as_ref().is_some_and(is_it)), (3, true));
    assert_eq!((report.losses_survived, report.aggregations), (None, 2));
}

#[tokio::test]
async fn without_the_keys_and_with_wrong_ones_it_says_what_to_set() {
    let story = random_story_of_both(2, 2, 1, 3, 0).await;
    let error = LogReader::open(story.log.set.clone()).await.unwrap_err();
    assert!(matches!(error, OpenError::Format1KeysMissing { .. }), "{error}");
    assert!(error.to_string().contains("private-key and nonce"), "{error}");
    let wrong = format1::Keys::new(&[9; 32], "37b8e8a308c354048d245f6d").unwrap();
    let error = LogReader::open_with(story.log.set.clone(), Some(wrong.clone())).await.unwrap_err();
    assert!(matches!(error, OpenError::Format1End(tlog_quorum::ChainEndError::Key { .. })), "{error}");

    let story = random_story_of_both(2, 2, 1, 3, 2).await;
    let reader = LogReader::open(story.log.set.clone()).await.unwrap();
    assert!(reader.has_format1());
    let error = reader.history().collect().await.unwrap_err();
    assert!(matches!(error, HistoryError::Format1(Format1Error::KeysMissing { .. })), "{error}");
    let error = reader.verify(Depth::Chain, |_| {}).await.unwrap_err();
    assert!(matches!(error, VerifyError::Format1Keys(Format1Error::KeysMissing { .. })), "{error}");
    assert!(error.to_string().contains("private-key and nonce"), "{error}");
    let reader = LogReader::open_with(story.log.set.clone(), Some(wrong)).await.unwrap();
    let report = reader.verify(Depth::Deep(&story.log.keys), |_| {}).await.unwrap();
    let broken = report.format1.unwrap().broken.unwrap();
    assert!(
        matches!(&broken, Format1Error::Broken { back: 1, source } if source.fault == LinkFault::Key),
        "{broken}"
    );
}

#[tokio::test]
async fn lists_that_disagree_are_told_apart_by_what_can_be_read() {
    let blocks = |sequence: u64| [set_block(sequence, sequence, sequence, vec![sequence as u8; 8])];
    // One more, on so many stores, by a writer that died.
    for holders in 1..=6 {
        let mut log = TestLog::unopened(4, 2);
        for sequence in 1..=3 {
            log.append_link(&blocks(sequence)).await;
        }
        let torn = log.encode_link(log.prev, &blocks(4));
        log.store_link(&torn, &log.all()[6 - holders..]).await;
        let reader = log.reader().await;
        assert!(reader.format1_doubts().is_empty());
        let last = reader.history().collect().await.unwrap().pop().unwrap();
        assert_eq!(last.last_sequence.0, if holders >= 4 { 4 } else { 3 }, "{holders}");
        // Lists of garbage, and ids of nothing behind what counts.
        let [one, other] = [log.memory[0].chain_store(), log.memory[1].chain_store()];
        one.set_list(&log.vdisk, Vec::new());
        let list = [vec![log.prev], (20..24).map(|n| AggregationId([n; 32])).collect()].concat();
        other.set_list(&log.vdisk, list);
        let last = log.reader().await.history().collect().await.unwrap().pop().unwrap();
        assert_eq!(last.last_sequence.0, if holders >= 4 { 4 } else { 3 }, "{holders}, with garbage");
    }
}

#[tokio::test]
async fn what_may_have_been_acknowledged_and_cannot_be_read_makes_the_end_uncertain() {
    let story = random_story_of_both(4, 4, 2, 5, 0).await;
    let log = &story.log;
    let history = log.reader().await.history().collect().await.unwrap();
    let (last, before) = (&history[4], &history[3]);
    for store in &log.memory[..3] {
        assert!(store.chain_store().remove_shard(last.id));
    }
    let reader = log.reader().await;
    assert_eq!(reader.format1_doubts().len(), 1);
    let error = log.state(Moment::Newest).await.unwrap_err();
    assert!(
        matches!(&error, DiskStateError::Moment(MomentError::Format1UncertainEnd { doubts, .. }) if doubts[0].id == last.id),
        "{error}"
    );
    let report = verify(log).await;
    assert_eq!((report.verdict, report.format1.unwrap().doubts.len()), (Verdict::Degraded, 1));
    let accepting = ReadOptions { accept_uncertain_end: true, ..ReadOptions::default() };
    let state = reader.disk_state(&log.keys, Moment::Newest, &accepting).await.unwrap();
    assert_eq!(state.reached().unwrap().position.sequence, before.last_sequence);
    let expected = story.last_where(|s| s.aggregation == 4).unwrap();
    let target = Arc::new(MemoryTarget::default());
    reader.restore(&log.keys, &state, target.clone(), &RestoreOptions::default(), |_| {}).await.unwrap();
    assert_eq!(target.bytes(), expected.image);
}

#[tokio::test]
async fn an_aggregation_of_another_vdisk_or_under_another_id_is_not_taken() {
    let mut log = TestLog::unopened(2, 1);
    let block = |sequence: u64| [set_block(sequence, 1, 5, vec![1; 8])];
    let first = log.append_link(&block(1)).await;
    // Another vdisk's, in this one's list: who wrote it there had the keys.
    let ours = std::mem::replace(&mut log.vdisk, VdiskId::new("other").unwrap());
    let other = log.encode_link(first, &block(2));
    log.vdisk = ours;
    log.store_link(&other, &log.all()).await;
    let reader = log.reader().await;
    assert!(
        matches!(&reader.format1_doubts()[0].fault, LinkFault::OtherVdisk(name) if name.as_str() == "other")
    );
    // Another aggregation's shards, under this id.
    let swapped = log.encode_link(first, &block(3));
    for (store, shard) in log.memory.iter().zip(&swapped.shards) {
        store.chain_store().set_list(&log.vdisk, vec![first]);
        store.chain_store().put_shard(first, shard.clone());
    }
    let error = log.open_reader().await.unwrap_err();
    assert!(
        matches!(&error, OpenError::Format1End(tlog_quorum::ChainEndError::Unclear { doubts, .. }) if doubts[0].fault == LinkFault::Damaged),
        "{error}"
    );
}

#[tokio::test]
async fn a_first_aggregation_of_format_2_that_follows_nothing_that_is_there_breaks_the_chain() {
    let mut log = TestLog::new(2, 1).await;
    log.prev = AggregationId([1; 32]);
    log.append_one().await;
    log.publish().await;
    let error = log.state(Moment::Newest).await.unwrap_err();
    let is_it = |error: &Format1Error| matches!(error, Format1Error::Broken { back: 1, source } if source.id == AggregationId([1; 32]));
    assert!(
        matches!(&error, DiskStateError::History(HistoryError::Format1(error)) if is_it(error)),
        "{error}"
    );
    let error = log.reader().await.history().collect().await.unwrap_err();
    assert!(matches!(&error, HistoryError::Format1(error) if is_it(error)), "{error}");
    assert!(matches!(verify(&log).await.verdict, Verdict::Lost { .. }));
    // Without keys, or on stores that cannot have format 1, nothing is answered either.
    let reader = LogReader::open(log.set.clone()).await.unwrap();
    assert!(reader.history().collect().await.is_err());
}

#[tokio::test]
async fn a_chain_that_went_on_after_format_2_had_begun_is_not_followed() {
    let story = random_story_of_both(6, 2, 1, 4, 3).await;
    let log = &story.log;
    let history = log.reader().await.history().collect().await.unwrap();
    let stray = log.encode_link(history[3].id, &[set_block(500, 1, 5, vec![1; 8])]);
    log.store_link(&stray, &log.all()).await;
    assert_eq!(log.reader().await.history().collect().await.unwrap(), history);
    check(&story, Moment::Newest, story.newest(), 6).await;
    // Nor are the lists needed any more.
    for store in &log.memory {
        store.chain_store().set_list(&log.vdisk, Vec::new());
    }
    check(&story, Moment::Newest, story.newest(), 6).await;
}

#[tokio::test]
async fn a_log_of_format_2_that_is_opened_and_empty_reads_the_chain_before_it() {
    let story = random_story_of_both(6, 2, 1, 4, 0).await;
    let mut log = story.log;
    log.open(Epoch(1), &log.all()).await;
    let story = Story { log, snapshots: story.snapshots };
    check(&story, Moment::Newest, story.newest(), 6).await;
    assert!(story.log.reader().await.extent().is_empty());
    let error = story.log.state(Moment::Aggregation(number(1))).await.unwrap_err();
    assert!(matches!(error, DiskStateError::Moment(MomentError::NoNumbers { .. })), "{error}");
}

#[tokio::test]
async fn a_log_of_format_2_alone_costs_no_read_of_format_1() {
    let log = TestLog::with(4, 2, 4).await;
    log.restore(Moment::Newest).await.unwrap();
    log.reader().await.history().collect().await.unwrap();
    assert!(log.memory.iter().all(|store| store.chain_store().reads() == (0, 0)));
    // Without an aggregation of format 2 it is one list each.
    let empty = TestLog::new(4, 2).await;
    assert!(!empty.reader().await.has_format1());
    assert!(empty.memory.iter().all(|store| store.chain_store().reads() == (1, 0)));
}

#[tokio::test]
async fn who_waits_is_told_how_far_reading_is() {
    let story = random_story_of_both(1, 2, 1, 9, 1).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let reader = story.log.reader().await.on_format1_progress(move |at| tell.lock().unwrap().push(*at));
    reader.history().collect().await.unwrap();
    let progress: Vec<u64> = told.lock().unwrap().iter().map(|at| at.aggregations).collect();
    assert_eq!(progress, (1..=9).collect::<Vec<_>>());
    let mut seen = Vec::new();
    reader.verify(Depth::Chain, |at| seen.push((at.format1, at.aggregations))).await.unwrap();
    assert_eq!((seen[0], seen.last().unwrap()), ((1, 0), &(9, 1)));
}
