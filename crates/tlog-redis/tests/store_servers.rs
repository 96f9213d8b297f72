//! What servers do to the store: they forget its scripts, are restarted, run full, take no writes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod store_support;

use tlog_proto::Epoch;
use tlog_store::{FillOutcome, Members, ShardSlot, ShardStore};
use tlog_testbed::{RedisOptions, RedisProcess};

use store_support::*;

#[tokio::test]
async fn a_server_that_was_told_to_forget_the_scripts_is_told_them_again() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("disk"));
    open(&store, &disk).await;
    for round in 0..10 {
        raw::<()>(&store, &["SCRIPT", "FLUSH"]).await;
        append_all(&store, &disk, round * 20 + 1..=round * 20 + 20, 0).await;
    }
    assert_eq!(held(&store, &disk).await, [(1, 200)]);
    for number in 1..=200 {
        assert_eq!(whole(&store, &disk, number).await, shard(1, number));
    }
    let before = calls(&store).await;
    append_all(&store, &disk, 201..=300, 0).await;
    assert_eq!(calls_between(&before, &calls(&store).await).get("eval"), None, "it knows them now");
}

#[tokio::test]
async fn a_restart_with_its_files_keeps_the_log_and_one_without_makes_another() {
    let server = RedisProcess::start(RedisOptions::durable());
    let disk = vdisk("disk");
    let before = store(&server);
    open(&before, &disk).await;
    append_all(&before, &disk, (1..=30).chain([40, 41]), 30).await;
    let known = before.status(&disk).await.unwrap();

    server.restart();
    let after = store(&server);
    assert_eq!(after.status(&disk).await.unwrap(), known);
    assert_eq!(whole(&after, &disk, 41).await, shard(1, 41));
    assert_eq!(after.vdisks().await.unwrap(), std::slice::from_ref(&disk));
    after.append(&disk, n(31), shard(1, 31), n(30)).await.unwrap();

    server.restart_empty();
    let blank = store(&server);
    assert_eq!(blank.status(&disk).await.unwrap().identity, None);
    assert_eq!(kind(blank.append(&disk, n(32), shard(1, 32), n(30)).await), "no_log");
    assert_eq!(blank.vdisks().await.unwrap(), []);
    let made = blank.promise(&disk, Epoch(2)).await.unwrap();
    assert_ne!(made.identity, known.identity);
    assert_eq!((made.head(), made.committed), (n(0), n(0)));
}

/// What an append does with a large value, of which the server's file then says that it expired long ago.
#[tokio::test]
async fn a_value_that_got_its_name_in_time_is_still_there_after_a_restart() {
    let server = RedisProcess::start(RedisOptions::durable());
    let before = store(&server);
    let script = "redis.call('SET', 'tlog:{disk}:in:1', 'value', 'PX', '1')
        redis.call('RENAME', 'tlog:{disk}:in:1', 'tlog:{disk}:s:1')
        return redis.call('PERSIST', 'tlog:{disk}:s:1')";
    assert_eq!(raw::<i64>(&before, &["EVAL", script, "0"]).await, 1);
    raw::<()>(&before, &["SET", "tlog:{disk}:in:2", "value", "PX", "1"]).await;
    server.restart();
    let after = store(&server);
    assert_eq!(raw::<String>(&after, &["GET", "tlog:{disk}:s:1"]).await, "value");
    assert_eq!(raw::<i64>(&after, &["PTTL", "tlog:{disk}:s:1"]).await, -1);
    assert!(!raw::<bool>(&after, &["EXISTS", "tlog:{disk}:in:2"]).await);
}

#[tokio::test]
async fn a_flush_in_the_middle_makes_the_store_a_blank_one_at_once() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("disk"));
    open(&store, &disk).await;
    append_all(&store, &disk, 1..=5, 5).await;
    raw::<()>(&store, &["FLUSHALL"]).await;
    assert_eq!(kind(store.append(&disk, n(6), shard(1, 6), n(5)).await), "no_log");
    assert_eq!(kind(store.publish(&disk, Epoch(1), n(6)).await), "no_log");
    assert_eq!(kind(store.fill(&disk, n(1), shard(1, 1)).await), "no_log");
    assert_eq!(kind(store.shard(&disk, n(1)).await), "no_log");
    assert_eq!(keys(&store).await, 0);
}

#[tokio::test]
async fn a_full_server_says_so_and_has_nothing_half_written() {
    let server = RedisProcess::start(RedisOptions { max_memory: Some(4 << 20), ..RedisOptions::default() });
    let (store, disk) = (store(&server), vdisk("disk"));
    open(&store, &disk).await;
    let mut number = 0;
    let full = loop {
        number += 1;
        let result = store.append(&disk, n(number), usual_shard(1, number), n(number - 1)).await;
        if let Err(error) = result {
            break error;
        }
    };
    assert_eq!(full.kind.name(), "full", "{full}");
    assert!(number > 20, "{number}");
    let last = number - 1;
    // One that begins another run must be refused as well.
    let other = store.append(&disk, n(number + 5), usual_shard(1, number + 5), n(last)).await;
    assert_eq!(kind(other), "full");
    let status = store.status(&disk).await.unwrap();
    assert_eq!(held(&store, &disk).await, [(1, last)]);
    assert_eq!((status.epoch, status.committed), (Epoch(1), n(last - 1)));
    for held in 1..=last {
        assert_eq!(whole(&store, &disk, held).await, usual_shard(1, held));
    }
    assert_eq!(store.shard(&disk, n(number)).await.unwrap(), ShardSlot::Empty);
    // Log, list of vdisks, shards.
    assert_eq!(keys(&store).await, 2 + last);

    // What fences, tells and makes room is not refused, however full it is.
    raw::<()>(&store, &["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(kind(store.append(&disk, n(number), shard(1, 1), n(last)).await), "full");
    assert_eq!(kind(store.fill(&disk, n(1), shard(1, 99)).await), "full");
    assert_eq!(kind(store.promise(&vdisk("another"), Epoch(1)).await), "full");
    assert_eq!(whole(&store, &disk, 1).await, usual_shard(1, 1));
    store.promise(&disk, Epoch(2)).await.unwrap();
    store.start(&disk, start_at(2, last), &Members { epoch: Epoch(2), ..Members::default() }).await.unwrap();
    store.publish(&disk, Epoch(2), n(last - 1)).await.unwrap();
    store.prune(&disk, Epoch(2), n(10)).await.unwrap();
    let status = store.status(&disk).await.unwrap();
    assert_eq!((status.epoch, status.members.epoch, status.committed), (Epoch(2), Epoch(2), n(last - 1)));
    assert_eq!(status.starts, [start_at(1, 1), start_at(2, last)]);
    assert_eq!(held(&store, &disk).await, [(10, last - 1)]);
    assert_eq!(keys(&store).await, 2 + last - 10);
    // With room again it goes on.
    raw::<()>(&store, &["CONFIG", "SET", "maxmemory", "0"]).await;
    for number in [last, last + 5] {
        store.append(&disk, n(number), usual_shard(2, number), n(last)).await.unwrap();
    }
    assert_eq!(held(&store, &disk).await, [(10, last), (last + 5, last + 5)]);
    raw::<()>(&store, &["CONFIG", "SET", "maxmemory", "1"]).await;
    store.delete(&disk, Epoch(2)).await.unwrap();
    assert_eq!(keys(&store).await, 0);
}

#[tokio::test]
async fn a_replica_answers_what_it_has_and_takes_no_writes() {
    let no_delay = ["--repl-diskless-sync-delay", "0"].map(String::from).to_vec();
    let primary = RedisProcess::start(RedisOptions { arguments: no_delay, ..RedisOptions::default() });
    let (source, disk) = (store(&primary), vdisk("disk"));
    open(&source, &disk).await;
    append_all(&source, &disk, [1, 2, 3, 7], 2).await;
    let of = ["--replicaof", primary.host(), &primary.port().to_string()].map(String::from).to_vec();
    let replica = RedisProcess::start(RedisOptions { arguments: of, ..RedisOptions::default() });
    let store = store(&replica);
    let known = source.status(&disk).await.unwrap();
    // It refuses commands or has nothing while it takes over the data.
    while store.status(&disk).await.ok().as_ref() != Some(&known) {}
    assert_eq!(whole(&store, &disk, 7).await, shard(1, 7));
    assert_eq!(store.heads(&disk, n(1)..=n(9), usize::MAX).await.unwrap().len(), 4);
    assert_eq!(store.vdisks().await.unwrap(), std::slice::from_ref(&disk));
    assert_eq!(kind(store.promise(&disk, Epoch(2)).await), "read_only");
    assert_eq!(kind(store.promise(&vdisk("another"), Epoch(1)).await), "read_only");
    assert_eq!(kind(store.start(&disk, start_at(2, 2), &Members::default()).await), "read_only");
    assert_eq!(kind(store.append(&disk, n(4), shard(1, 4), n(2)).await), "read_only");
    assert_eq!(kind(store.publish(&disk, Epoch(2), n(3)).await), "read_only");
    assert_eq!(kind(store.fill(&disk, n(1), shard(3, 9)).await), "read_only");
    assert_eq!(kind(store.prune(&disk, Epoch(1), n(2)).await), "read_only");
    assert_eq!(kind(store.delete(&disk, Epoch(9)).await), "read_only");
    assert_eq!(store.status(&disk).await.unwrap(), known);
}

#[tokio::test]
async fn a_user_who_may_only_read_changes_nothing() {
    let users = vec!["reader on >secret ~* +@read +@connection +eval +evalsha +info".to_owned()];
    let server = RedisProcess::start(RedisOptions { users, ..RedisOptions::default() });
    let (owner, disk) = (store(&server), vdisk("disk"));
    open(&owner, &disk).await;
    append_all(&owner, &disk, [1, 2, 3, 7], 2).await;
    let known = owner.status(&disk).await.unwrap();

    let reader = store_as(&server, "reader", "secret");
    assert_eq!(reader.status(&disk).await.unwrap(), known);
    assert_eq!(whole(&reader, &disk, 7).await, shard(1, 7));
    assert_eq!(kind(reader.append(&disk, n(4), shard(1, 4), n(2)).await), "unavailable");
    assert_eq!(kind(reader.promise(&disk, Epoch(2)).await), "unavailable");
    assert_eq!(kind(reader.publish(&disk, Epoch(2), n(3)).await), "unavailable");
    assert_eq!(kind(reader.prune(&disk, Epoch(1), n(2)).await), "unavailable");
    assert_eq!(kind(reader.delete(&disk, Epoch(9)).await), "unavailable");
    assert_eq!(owner.status(&disk).await.unwrap(), known);
    assert_eq!(keys(&owner).await, 2 + 1 + 4);
}

#[tokio::test]
async fn a_script_that_was_cut_short_has_told_of_nothing_that_is_not_there() {
    // A user who may store a shard and not tell of it: what a script leaves that fails behind its first write.
    let users = vec!["half on >secret ~* +@all -hset".to_owned()];
    let server = RedisProcess::start(RedisOptions { users, ..RedisOptions::default() });
    let (owner, disk) = (store(&server), vdisk("disk"));
    open(&owner, &disk).await;
    append_all(&owner, &disk, 1..=3, 3).await;
    let known = owner.status(&disk).await.unwrap();
    let half = store_as(&server, "half", "secret");
    half.append(&disk, n(4), shard(1, 4), n(3)).await.unwrap_err();
    assert_eq!(keys(&owner).await, 2 + 4, "the shard is there");

    assert_eq!(owner.status(&disk).await.unwrap(), known);
    assert_eq!(owner.shard(&disk, n(4)).await.unwrap(), ShardSlot::Empty);
    assert_eq!(owner.heads(&disk, n(1)..=n(9), usize::MAX).await.unwrap().len(), 3);
    // Nor does it come back behind a later opening, and what is written there takes its place.
    owner.promise(&disk, Epoch(2)).await.unwrap();
    owner.start(&disk, start_at(2, 4), &Members::default()).await.unwrap();
    owner.append(&disk, n(5), shard(2, 5), n(3)).await.unwrap();
    assert_eq!(held(&owner, &disk).await, [(1, 3), (5, 5)]);
    assert_eq!(owner.shard(&disk, n(4)).await.unwrap(), ShardSlot::Empty);
    owner.publish(&disk, Epoch(2), n(5)).await.unwrap();
    assert_eq!(owner.fill(&disk, n(4), shard(2, 44)).await.unwrap(), FillOutcome::Stored);
    assert_eq!(whole(&owner, &disk, 4).await, shard(2, 44));
    assert_eq!(held(&owner, &disk).await, [(1, 5)]);
}

#[tokio::test]
async fn numbers_that_a_script_could_mistake_are_not_sent() {
    let server = RedisProcess::start(RedisOptions::default());
    let (store, disk) = (store(&server), vdisk("disk"));
    open(&store, &disk).await;
    let highest = (1u64 << 53) - 1;
    for number in [highest + 1, u64::MAX] {
        let refused = [
            store.append(&disk, n(number), shard(1, 1), n(0)).await.unwrap_err(),
            store.append(&disk, n(1), shard(1, 1), n(number)).await.unwrap_err(),
            store.append(&disk, n(1), shard(number, 1), n(0)).await.unwrap_err(),
            store.publish(&disk, Epoch(1), n(number)).await.unwrap_err(),
            store.promise(&disk, Epoch(number)).await.unwrap_err(),
            store.start(&disk, start_at(1, number), &Members::default()).await.unwrap_err(),
            store.fill(&disk, n(number), shard(1, 1)).await.unwrap_err(),
            store.prune(&disk, Epoch(1), n(number)).await.unwrap_err(),
        ];
        for error in refused {
            let text = error.kind.to_string();
            assert!(text.contains(&format!("{number} is above {highest}")), "{text}");
        }
        assert_eq!(store.shard(&disk, n(number)).await.unwrap(), ShardSlot::Empty);
        assert_eq!(store.heads(&disk, n(number)..=n(u64::MAX), usize::MAX).await.unwrap(), []);
    }
    assert_eq!(held(&store, &disk).await, []);
    // The highest ones are as good as any.
    for number in [highest, highest - 2, highest - 1] {
        store.append(&disk, n(number), shard(1, number), n(highest)).await.unwrap();
    }
    assert_eq!(held(&store, &disk).await, [(highest - 2, highest)]);
    assert_eq!(whole(&store, &disk, highest - 1).await, shard(1, highest - 1));
    assert_eq!(store.heads(&disk, n(highest - 1)..=n(u64::MAX), usize::MAX).await.unwrap().len(), 2);
    store.promise(&disk, Epoch(highest)).await.unwrap();
    assert_eq!(store.status(&disk).await.unwrap().epoch, Epoch(highest));
}
