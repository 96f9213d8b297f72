//! Several clients, each with a connection of its own, on one log.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_proto::Epoch;
use tlog_store::{Members, ShardSlot, ShardStore, StoreErrorKind};
use tlog_testbed::{RedisOptions, RedisProcess};
use tokio::task::JoinSet;

use store_support::*;

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_the_older_is_fenced_and_nothing_of_it_comes_after_the_promise() {
    let server = RedisProcess::start(RedisOptions::default());
    for round in 0..20 {
        let (older, newer) = (store(&server), store(&server));
        let disk = vdisk(&format!("disk-{round}"));
        open(&older, &disk).await;
        let mut tasks = JoinSet::new();
        for number in 1..=100 {
            let (older, disk) = (older.clone(), disk.clone());
            tasks.spawn(async move {
                let shard = usual_shard(1, number);
                (number, older.append(&disk, n(number), shard, n(0)).await)
            });
        }
        // Let some be on the way.
        let (first, _) = tasks.join_next().await.unwrap().unwrap();
        let found = newer.promise(&disk, Epoch(2)).await.unwrap();
        let mut stored = vec![first];
        while let Some(task) = tasks.join_next().await {
            match task.unwrap() {
                (number, Ok(_)) => stored.push(number),
                (_, Err(error)) => assert!(error.is_fenced(), "{error}"),
            }
        }
        // Exactly what was answered as stored was there at the promise, and that is all there is.
        stored.sort_unstable();
        let told: Vec<u64> = found.held.iter().flat_map(|run| run.start().0..=run.end().0).collect();
        assert_eq!(told, stored, "round {round}");
        assert_eq!(newer.status(&disk).await.unwrap(), found, "round {round}");
        for number in 1..=100 {
            match newer.shard(&disk, n(number)).await.unwrap() {
                ShardSlot::Held(shard) => {
                    assert!(stored.contains(&number));
                    assert_eq!(shard, usual_shard(1, number), "round {round}: torn");
                }
                ShardSlot::Empty => assert!(!stored.contains(&number)),
                ShardSlot::Damaged => panic!("round {round}, number {number}"),
            }
        }
        newer.start(&disk, start_at(2, 51), &Members::default()).await.unwrap();
        newer.append(&disk, n(51), shard(2, 51), n(50)).await.unwrap();
        assert_eq!(kind(older.append(&disk, n(52), shard(1, 52), n(50)).await), "fenced");
        assert_eq!(kind(older.publish(&disk, Epoch(1), n(52)).await), "fenced");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_promises_of_one_epoch_one_is_kept_and_all_see_one_log() {
    let server = RedisProcess::start(RedisOptions::default());
    for round in 0..20 {
        let disk = vdisk(&format!("disk-{round}"));
        let mut tasks = JoinSet::new();
        for client in 0..6 {
            let (store, disk) = (store(&server), disk.clone());
            tasks.spawn(async move { store.promise(&disk, Epoch(1 + client % 2)).await });
        }
        let (mut identities, mut kept) = (Vec::new(), Vec::new());
        while let Some(task) = tasks.join_next().await {
            match task.unwrap() {
                Ok(state) => {
                    identities.extend(state.identity);
                    kept.push(state.epoch);
                }
                Err(error) => assert!(error.is_fenced(), "{error}"),
            }
        }
        identities.dedup();
        kept.sort_unstable();
        kept.dedup();
        assert_eq!(identities.len(), 1, "round {round}");
        assert_eq!(kept.last(), Some(&Epoch(2)), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_and_a_backfill_leave_out_no_number() {
    let server = RedisProcess::start(RedisOptions::default());
    let (writer, filler, disk) = (store(&server), store(&server), vdisk("disk"));
    open(&writer, &disk).await;
    writer.publish(&disk, Epoch(1), n(300)).await.unwrap();
    let mut tasks = JoinSet::new();
    for number in 1..=600u64 {
        let (store, disk) = (if number <= 300 { filler.clone() } else { writer.clone() }, disk.clone());
        tasks.spawn(async move {
            if number <= 300 {
                store.fill(&disk, n(number * 7 % 300 + 1), shard(1, number * 7 % 300 + 1)).await.map(|_| ())
            } else {
                store.append(&disk, n(number), shard(1, number), n(300)).await.map(|_| ())
            }
        });
    }
    for result in tasks.join_all().await {
        result.unwrap();
    }
    assert_eq!(held(&writer, &disk).await, [(1, 600)]);
    assert_eq!(keys(&writer).await, 2 + 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_and_promises_at_once_leave_a_log_that_is_listed_or_none() {
    let server = RedisProcess::start(RedisOptions::default());
    let (owner, disk) = (store(&server), vdisk("disk"));
    for round in 0..30 {
        open(&owner, &disk).await;
        append_all(&owner, &disk, (1..=600).chain([700]), 600).await;
        let (deleter, opener) = (store(&server), store(&server));
        let (deleted, promised) = tokio::join!(
            tokio::spawn({
                let disk = disk.clone();
                async move { deleter.delete(&disk, Epoch(1)).await }
            }),
            tokio::spawn({
                let disk = disk.clone();
                async move { opener.promise(&disk, Epoch(2)).await }
            })
        );
        let (deleted, promised) = (deleted.unwrap(), promised.unwrap());
        let status = owner.status(&disk).await.unwrap();
        // One of them came first: a promise fences the delete, a delete leaves the promise a new log.
        assert_eq!(status.epoch, Epoch(2), "round {round}");
        assert_eq!(promised.unwrap().identity, status.identity, "round {round}");
        assert_eq!(status.held.is_empty(), deleted.is_ok(), "round {round}: {deleted:?}");
        assert_eq!(owner.vdisks().await.unwrap(), std::slice::from_ref(&disk), "round {round}");
        owner.delete(&disk, Epoch(2)).await.unwrap();
        assert_eq!(keys(&owner).await, 0, "round {round}");
    }
}

/// Everything at once, also operations that take several scripts: in the end what is told is what is there, and nothing else is.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_clients_do_at_once_the_numbers_held_are_the_shards_that_are_there() {
    let server = RedisProcess::start(RedisOptions::default());
    let seed: u64 = getrandom::u64().unwrap();
    for round in 0..12 {
        let context = format!("seed {seed}, round {round}");
        let disk = vdisk(&format!("disk-{round}"));
        let owner = store(&server);
        open(&owner, &disk).await;
        append_all(&owner, &disk, (1..=1400).chain(1500..1700), 1200).await;
        let mut tasks = JoinSet::new();
        for client in 0..4 {
            let (client_store, disk) = (store(&server), disk.clone());
            let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(round * 4 + client));
            tasks.spawn(async move {
                for step in 0..60 {
                    let epoch = rng.random_range(1..4) + step / 20;
                    let number = n(rng.random_range(1..1800));
                    let salt = rng.random::<u64>() >> 16;
                    let result = match rng.random_range(0..100) {
                        0..3 => client_store.promise(&disk, Epoch(epoch)).await.map(drop),
                        3..10 => {
                            let record = start_at(epoch, number.0);
                            client_store.start(&disk, record, &Members::default()).await.map(drop)
                        }
                        10..40 => {
                            client_store.append(&disk, number, shard(epoch, salt), n(0)).await.map(drop)
                        }
                        40..50 => {
                            client_store.append(&disk, number, usual_shard(epoch, salt), n(0)).await.map(drop)
                        }
                        50..90 => client_store.fill(&disk, number, shard(epoch, salt)).await.map(drop),
                        90..97 => client_store
                            .prune(&disk, Epoch(epoch), n(rng.random_range(1..900)))
                            .await
                            .map(drop),
                        97 => client_store.delete(&disk, Epoch(epoch)).await.map(drop),
                        _ => client_store.publish(&disk, Epoch(epoch), n(1200)).await.map(drop),
                    };
                    if let Err(error) = result {
                        let expected = matches!(
                            error.kind,
                            StoreErrorKind::Fenced { .. }
                                | StoreErrorKind::NoLog
                                | StoreErrorKind::NotCommitted { .. }
                        );
                        assert!(expected, "{error}");
                    }
                }
            });
        }
        tasks.join_all().await;
        let state = owner.status(&disk).await.unwrap();
        let told: Vec<u64> = state.held.iter().flat_map(|run| run.start().0..=run.end().0).collect();
        for &number in &told {
            let slot = owner.shard(&disk, n(number)).await.unwrap();
            assert!(matches!(slot, ShardSlot::Held(_)), "{context}: {number} is {slot:?}");
        }
        let there: Vec<String> = raw(&owner, &["KEYS", &format!("tlog:{{{disk}}}:s:*")]).await;
        assert_eq!(there.len(), told.len(), "{context}");
        let others: Vec<String> = raw(&owner, &["KEYS", &format!("tlog:{{{disk}}}:[id]*")]).await;
        assert!(others.is_empty(), "{context}: {others:?}");
        assert_eq!(owner.vdisks().await.unwrap().contains(&disk), state.identity.is_some(), "{context}");
        owner.promise(&disk, Epoch(99)).await.unwrap();
        owner.delete(&disk, Epoch(99)).await.unwrap();
        assert_eq!(keys(&owner).await, 0, "{context}");
    }
}
