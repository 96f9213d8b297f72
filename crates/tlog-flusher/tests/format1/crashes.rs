//! Writers that die between the stores, stores that are lost, and all of it at random.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tlog_flusher::format1::OpenError;
use tlog_proto::{AggregationId, Sequence};

use crate::cluster::{Cluster, append, block, durable, position};

/// How far the dead writer came on a store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Came {
    Nowhere,
    Shard,
    List,
}

const CAME: [Came; 3] = [Came::Nowhere, Came::Shard, Came::List];

/// The next aggregation of a writer that dies in the middle of storing it.
async fn die(
    cluster: &Cluster,
    prev: AggregationId,
    sequence: u64,
    mark: u64,
    came: &[Came],
) -> AggregationId {
    let encoded = cluster.encode(prev, sequence, mark);
    for (i, came) in came.iter().enumerate() {
        match came {
            Came::Nowhere => {}
            Came::Shard => cluster.chains(i).put_shard(encoded.id, encoded.shards[i].clone()),
            Came::List => cluster.store(&encoded, &[i]).await,
        }
    }
    encoded.id
}

async fn check(data: usize, parity: usize, came: &[Came], before: u64) {
    let cluster = Cluster::new(data, parity);
    let log = cluster.open().await;
    append(&log, 1..=before).await;
    log.close().await.unwrap();
    let prev = match before {
        0 => AggregationId::BEFORE_FIRST,
        _ => cluster.front(),
    };
    let torn = die(&cluster, prev, before + 1, 77, came).await;
    let shards = came.iter().filter(|came| **came != Came::Nowhere).count();
    let listed = came.contains(&Came::List);

    let log = cluster.open().await;
    let counts = listed && shards >= data;
    let end = before + u64::from(counts);
    assert_eq!(log.end().last, (end > 0).then_some(Sequence(end)), "{came:?}");
    if end > 0 {
        assert_eq!(cluster.front() == torn, counts, "settled on every store: {came:?}");
    }
    append(&log, end + 1..=end + 1).await;
    log.close().await.unwrap();
    let mut expected: Vec<(u64, u64)> = (1..=before).map(|n| (n, n)).collect();
    expected.extend(counts.then_some((before + 1, 77)));
    expected.push((end + 1, end + 1));
    assert_eq!(cluster.content().await, expected, "{came:?}");
    // What was settled can lose any m stores at once.
    for lost in 0..parity {
        cluster.memory[lost].wipe();
    }
    assert_eq!(cluster.content().await, expected, "{came:?}");
}

#[tokio::test]
async fn wherever_a_writer_dies_between_the_stores_its_last_aggregation_counts_or_never_was() {
    for (data, parity) in [(2, 1), (2, 2), (3, 0)] {
        let total = data + parity;
        for before in [0, 2] {
            for nth in 0..3usize.pow(total as u32) {
                let came: Vec<Came> = (0..total).map(|i| CAME[nth / 3usize.pow(i as u32) % 3]).collect();
                check(data, parity, &came, before).await;
            }
        }
    }
}

#[tokio::test]
async fn writers_that_die_again_and_again_leave_nothing_in_the_way() {
    let cluster = Cluster::new(4, 2);
    let log = cluster.open().await;
    append(&log, 1..=1).await;
    log.close().await.unwrap();
    for again in 0..12 {
        let came: Vec<Came> =
            (0..6).map(|i| if i == again % 6 { Came::List } else { Came::Nowhere }).collect();
        die(&cluster, cluster.front(), 2, 100 + again as u64, &came).await;
        let log = cluster.open().await;
        assert_eq!(log.end().last, Some(Sequence(1)));
    }
    assert_eq!(cluster.content().await, [(1, 1)]);
}

#[tokio::test]
async fn a_late_answer_to_a_dead_writer_does_not_bring_back_what_was_passed_over() {
    let cluster = Cluster::new(4, 2);
    let log = cluster.open().await;
    append(&log, 1..=1).await;
    log.close().await.unwrap();
    let came = [Came::List, Came::List, Came::List, Came::Nowhere, Came::Nowhere, Came::Nowhere];
    let late = cluster.encode(cluster.front(), 2, 66);
    assert_eq!(die(&cluster, cluster.front(), 2, 66, &came).await, late.id);
    let log = cluster.open().await;
    append(&log, 2..=2).await;
    log.close().await.unwrap();
    // What the dead writer had sent to this store is carried out only now: four have it, and it is in front of one list.
    cluster.store(&late, &[5]).await;
    assert_eq!(cluster.content().await, [(1, 1), (2, 2)]);
    let log = cluster.open().await;
    append(&log, 3..=3).await;
    log.close().await.unwrap();
    assert_eq!(cluster.content().await, [(1, 1), (2, 2), (3, 3)]);
}

#[tokio::test]
async fn stores_that_fell_back_to_an_earlier_state_are_noticed() {
    let cluster = Cluster::new(4, 2);
    let log = cluster.open().await;
    append(&log, 1..=3).await;
    log.flush().await.unwrap();
    durable(&log, position(1, 3)).await.unwrap();
    let earlier: Vec<_> = (0..3).map(|i| cluster.chains(i).list(&cluster.vdisk)).collect();
    append(&log, 4..=9).await;
    log.close().await.unwrap();
    let newer: Vec<_> = cluster.chains(0).list(&cluster.vdisk)[..2].to_vec();
    for (i, list) in earlier.into_iter().enumerate() {
        cluster.chains(i).set_list(&cluster.vdisk, list);
        newer.iter().for_each(|id| assert!(cluster.chains(i).remove_shard(*id)));
    }
    let error = cluster.try_open().await.unwrap_err();
    assert!(
        matches!(&error, OpenError::End(tlog_quorum::ChainEndError::Unclear { doubts, .. }) if doubts.len() == 2),
        "{error}"
    );
}

#[tokio::test]
async fn what_only_a_failing_read_makes_unreadable_is_not_passed_over() {
    let cluster = Cluster::new(4, 2);
    let log = cluster.open().await;
    append(&log, 1..=1).await;
    log.close().await.unwrap();
    let came = [Came::List, Came::List, Came::List, Came::List, Came::Nowhere, Came::Nowhere];
    die(&cluster, cluster.front(), 2, 66, &came).await;
    cluster.chains(1).set_shards_unreadable(true);
    let error = cluster.try_open().await.unwrap_err();
    assert!(matches!(&error, OpenError::End(tlog_quorum::ChainEndError::Unclear { .. })), "{error}");
    assert!(error.to_string().contains("memory:1 is out of reach"), "{error}");
    cluster.chains(1).set_shards_unreadable(false);
    assert_eq!(cluster.open().await.end().last, Some(Sequence(2)));
}

/// Openings, appends, deaths in the middle of storing, stores that come back empty (no more than m in all), against a list of
/// what was acknowledged.
async fn random_story(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (data, parity) = [(4, 2), (2, 1), (2, 2), (1, 2)][rng.random_range(0..4)];
    let (cluster, total) = (Cluster::new(data, parity), data + parity);
    let mut acknowledged: Vec<(u64, u64)> = Vec::new();
    let mut possible: Vec<(u64, u64)> = Vec::new();
    let mut wiped = 0;
    let mut mark = 0;
    for _ in 0..12 {
        let log = cluster.open().await;
        let content = cluster.content().await;
        // Everything acknowledged, in order; besides, only what a dead writer had begun to store.
        let mut rest = content.iter();
        assert!(
            acknowledged.iter().all(|block| rest.any(|other| other == block)),
            "seed {seed}: {content:?}"
        );
        let begun = |block: &(u64, u64)| acknowledged.contains(block) || possible.contains(block);
        assert!(content.iter().all(begun), "seed {seed}: {content:?}");
        assert_eq!(log.end().last.map(|last| last.0), content.last().map(|last| last.0), "seed {seed}");
        acknowledged = content;

        let mut next = log.end().last.map_or(1, |last| last.0 + 1);
        for _ in 0..rng.random_range(0..8) {
            mark += 1;
            log.append(block(1, next, mark)).await.unwrap();
            acknowledged.push((next, mark));
            next += 1;
        }
        log.close().await.unwrap();
        if rng.random_bool(0.3) && wiped < parity {
            cluster.memory[rng.random_range(0..total)].wipe();
            wiped += 1;
        }
        if rng.random_bool(0.7) {
            let prev = match acknowledged.is_empty() {
                true => AggregationId::BEFORE_FIRST,
                false => {
                    cluster.set.chain_survey().await.lists.iter().flatten().flatten().next().copied().unwrap()
                }
            };
            mark += 1;
            let came: Vec<Came> = (0..total).map(|_| CAME[rng.random_range(0..3)]).collect();
            die(&cluster, prev, next, mark, &came).await;
            possible.push((next, mark));
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_in_the_log_whatever_happens_in_between() {
    for seed in 0..150 {
        random_story(seed).await;
    }
}
