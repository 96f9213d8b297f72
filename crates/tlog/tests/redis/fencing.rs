//! Two servers on the same Redis servers: whoever was paused and goes on is fenced, and the log never forks.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tlog_client::Client;
use tlog_proto::{BlockIndex, VdiskId};
use tlog_testbed::RedisOptions;

use crate::site::Site;
use crate::support::{Server, of_one_connection};

/// How often the servers change; `TLOG_FENCING_ROUNDS` for more.
const ROUNDS: u64 = 60;

async fn connect(server: &Server) -> Client {
    Client::connect(server.addr(), VdiskId::new("vda").unwrap(), of_one_connection()).await.unwrap()
}

/// Writes blocks that say who wrote them; answers the sequences that were acknowledged.
async fn write(client: &Client, blocks: u64, mark: u64) -> (Vec<u64>, bool) {
    let mut acknowledged = Vec::new();
    let mut handles = Vec::new();
    for _ in 0..blocks {
        let data = Bytes::from(mark.to_le_bytes().to_vec());
        let sequence = client.next_sequence().0;
        match client.set(BlockIndex::new(sequence).unwrap(), data).await {
            Ok(durable) => handles.push((sequence, durable)),
            Err(_) => break,
        }
    }
    let all = handles.len() as u64 == blocks;
    for (sequence, durable) in handles {
        if durable.await.is_ok() {
            acknowledged.push(sequence);
        }
    }
    let everything = all && acknowledged.len() as u64 == blocks;
    (acknowledged, everything)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_that_goes_on_is_fenced_and_nothing_is_acknowledged_by_both() {
    let rounds = std::env::var("TLOG_FENCING_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let site = Site::with(6, &RedisOptions::default(), "");
    let servers = [site.serve(), site.serve()];
    // By sequence: which round acknowledged it.
    let mut acknowledged = std::collections::BTreeMap::new();
    let mut keep = |sequences: Vec<u64>, round: u64| {
        for sequence in sequences {
            let other = acknowledged.insert(sequence, round);
            assert_eq!(
                other, None,
                "sequence {sequence} was acknowledged twice: rounds {other:?} and {round}"
            );
        }
    };
    let mut current = connect(&servers[0]).await;
    for round in 0..rounds {
        let (older, newer) = (&servers[round as usize % 2], &servers[(round as usize + 1) % 2]);
        let (sequences, all) = write(&current, 5, round).await;
        assert!(all, "round {round}: the server that has the log does not write");
        keep(sequences, round);
        // Every other time it is paused in the middle of writing; else before, and finds the blocks when it goes on.
        let in_the_middle = round % 2 == 1;
        if !in_the_middle {
            older.pause();
        }
        let late = current.clone();
        let late = tokio::spawn(async move { write(&late, 10, 1_000_000 + round).await });
        if in_the_middle {
            tokio::task::yield_now().await;
            older.pause();
        }
        let mut next = connect(newer).await;
        let (sequences, all) = write(&next, 5, round).await;
        keep(sequences, round);
        if !all {
            // It had the log open from before, and finds out with this write that it was fenced since.
            assert!(round > 0, "nobody else has had the log yet");
            next = connect(newer).await;
            let (sequences, all) = write(&next, 5, round).await;
            assert!(all, "round {round}: the newer server does not write");
            keep(sequences, round);
        }
        older.signal("-CONT");
        let (sequences, all) = tokio::time::timeout(Duration::from_secs(60), late).await.unwrap().unwrap();
        assert!(in_the_middle || !all, "round {round}: a fenced server acknowledged everything");
        keep(sequences, round);
        current = next;
    }
    current.close_after_flush().await.unwrap();
    let history = site.place.tlog_ok(&["history", "vda", "--json"]);
    let mut sequences = BTreeSet::new();
    for line in history.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        for sequence in line["first_sequence"].as_u64().unwrap()..=line["last_sequence"].as_u64().unwrap() {
            assert!(sequences.insert(sequence), "sequence {sequence} is twice in the log");
        }
    }
    let missing: Vec<_> = acknowledged.keys().filter(|sequence| !sequences.contains(sequence)).collect();
    assert!(missing.is_empty(), "acknowledged, and not in the log: {missing:?}");
}

/// A server that was idle while another one had the log must not tell anybody the end that it remembers.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_idle_meanwhile_knows_the_end_of_the_log_when_a_client_comes() {
    let site = Site::with(6, &RedisOptions::default(), "");
    let servers = [site.serve(), site.serve()];
    let mut next = 1;
    for round in 0..6 {
        // The log stays open on the other server, which is not told of anything.
        let client = connect(&servers[round % 2]).await;
        assert_eq!(client.first_sequence().0, next, "round {round}");
        let (acknowledged, all) = write(&client, 5, round as u64).await;
        assert!(all && acknowledged.len() == 5, "round {round}: the first write found out instead");
        client.close_after_flush().await.unwrap();
        next += 5;
    }
}
