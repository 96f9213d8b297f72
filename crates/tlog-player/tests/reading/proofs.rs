//! Proofs that a disk can be restored, on logs of every kind and with stores that are lost.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tlog_player::{
    DiskDigest, Moment, Proof, ProveError, ProveFault, ProveOptions, ReadOptions, RestoreProgress, prove,
};
use tlog_proto::BlockHash;
use tlog_quorum::Pacer;
use tlog_store::ShardStore;
use tokio::time::Instant;

use crate::log::{BLOCK_SIZE, TestLog, keys_of, number, set_block};
use crate::oracle::random_story;

/// As `docs/restore.md` says, from the bytes of an image alone.
fn digest_of(image: &[u8], block_size: usize) -> DiskDigest {
    let mut all = b"tlog disk 1\n".to_vec();
    all.extend((block_size as u32).to_le_bytes());
    for (index, block) in image.chunks(block_size).enumerate() {
        let mut whole = block.to_vec();
        whole.resize(block_size, 0);
        if whole.iter().any(|byte| *byte != 0) {
            all.extend((index as u64).to_le_bytes());
            all.extend(BlockHash::of(&whole).0);
        }
    }
    DiskDigest(BlockHash::of(&all).0)
}

async fn proof(log: &TestLog, moment: Moment) -> Result<Proof, ProveError> {
    prove(&log.reader().await, &log.keys, moment, &ProveOptions::default(), |_| {}).await
}

#[tokio::test]
async fn a_proof_of_any_moment_has_the_digest_of_the_image_that_a_restore_gives() {
    for seed in 1..=20 {
        let story = random_story(seed, 4, 2, 9).await;
        let mut digests = Vec::new();
        for moment in (1..=9).map(|n| Moment::Aggregation(number(n))).chain([Moment::Newest]) {
            let image = story.log.restore(moment).await.unwrap();
            let proof = proof(&story.log, moment).await.unwrap();
            assert_eq!(proof.digest, digest_of(&image, proof.block_size as usize), "seed {seed}, {moment:?}");
            assert_eq!(proof.disk_len, image.len() as u64);
            assert_eq!(proof.reached, story.log.state(moment).await.unwrap().reached().copied());
            assert!(!proof.is_degraded());
            digests.push(proof.digest);
        }
        assert_eq!(digests[8], digests[9], "the newest moment is that of the last aggregation");
    }
}

#[tokio::test]
async fn a_digest_tells_what_the_content_is_and_not_how_it_was_written() {
    let mut log = TestLog::new(2, 1).await;
    let data = vec![7; BLOCK_SIZE];
    log.append(1, &[set_block(1, 3, 10, data.clone()), set_block(2, 5, 11, vec![0; BLOCK_SIZE])]).await;
    log.publish().await;
    let once = proof(&log, Moment::Newest).await.unwrap();
    // Other content and back again; a short block that is zeros behind its end.
    log.append(1, &[set_block(3, 3, 12, vec![8; BLOCK_SIZE])]).await;
    log.append(1, &[set_block(4, 3, 13, data)]).await;
    log.publish().await;
    let again = proof(&log, Moment::Newest).await.unwrap();
    assert_eq!(once.digest, again.digest);
    assert_ne!(once.digest, proof(&log, Moment::Aggregation(number(2))).await.unwrap().digest);
    assert_eq!((again.blocks, again.aggregations), (2, 2));
    let mut short = vec![9; 10];
    log.append(1, &[set_block(5, 1, 14, short.clone())]).await;
    log.publish().await;
    let with_short = proof(&log, Moment::Newest).await.unwrap();
    short.resize(BLOCK_SIZE, 0);
    log.append(1, &[set_block(6, 1, 15, short)]).await;
    log.publish().await;
    assert_eq!(with_short.digest, proof(&log, Moment::Newest).await.unwrap().digest);
}

#[tokio::test]
async fn an_empty_log_is_proven_to_be_an_empty_disk() {
    let log = TestLog::new(4, 2).await;
    let proof = proof(&log, Moment::Newest).await.unwrap();
    assert_eq!((proof.reached, proof.blocks, proof.disk_len), (None, 0, 0));
    assert_eq!(proof.digest, DiskDigest(BlockHash::of(b"tlog disk 1\n\0\0\0\0").0));
}

#[tokio::test]
async fn with_m_stores_lost_it_is_proven_and_with_one_more_the_proof_fails_until_it_is_back() {
    let log = TestLog::with(4, 2, 9).await;
    let whole = proof(&log, Moment::Newest).await.unwrap();
    log.controls[0].set_down(true);
    log.memory[3].wipe();
    let degraded = proof(&log, Moment::Newest).await.unwrap();
    assert!(degraded.is_degraded() && degraded.digest == whole.digest);
    assert_eq!(degraded.absent_stores, [0, 3].map(|i| log.memory[i].address().to_string()));
    // One more store has lost one shard, of an aggregation whose block counts.
    assert!(log.memory[5].remove(&log.vdisk, number(7)));
    let error = proof(&log, Moment::Newest).await.unwrap_err();
    assert_eq!(error.fault(), ProveFault::Lost, "{error}");
    assert!(error.to_string().contains("aggregation 7"), "{error}");
    log.controls[0].set_down(false);
    assert_eq!(proof(&log, Moment::Newest).await.unwrap().digest, whole.digest);
}

#[tokio::test]
async fn a_byte_that_rotted_in_every_copy_fails_the_proof_and_one_in_a_block_that_does_not_count_does_not() {
    let log = TestLog::with(4, 2, 9).await;
    // Sequences 1 and 9 wrote the same block.
    for store in &log.memory {
        store.damage(&log.vdisk, number(1), |shard| {
            let mut bytes = shard.payload.to_vec();
            bytes[0] ^= 1;
            shard.payload = bytes.into();
        });
    }
    proof(&log, Moment::Newest).await.unwrap();
    let error = proof(&log, Moment::Aggregation(number(8))).await.unwrap_err();
    assert_eq!(error.fault(), ProveFault::Lost, "{error}");
}

#[tokio::test]
async fn what_cannot_be_told_is_neither_proven_nor_lost() {
    let log = TestLog::with(4, 2, 3).await;
    let reader = log.reader().await;
    let options = ProveOptions::default();
    let other_key = keys_of(&log.vdisk, 8);
    let error = prove(&reader, &other_key, Moment::Newest, &options, |_| {}).await.unwrap_err();
    assert_eq!(error.fault(), ProveFault::Unknown, "{error}");
    let error = proof(&log, Moment::Aggregation(number(4))).await.unwrap_err();
    assert_eq!(error.fault(), ProveFault::Unknown, "{error}");
}

#[tokio::test]
async fn an_uncertain_end_that_is_accepted_is_named_in_the_proof() {
    let mut log = TestLog::with(4, 2, 3).await;
    let block = log.one_block();
    let encoded = log.encode(1, &[block]);
    log.store(&encoded, log.epoch, &[0, 1, 2, 3], 3).await;
    log.controls[5].set_down(true);
    let error = proof(&log, Moment::Newest).await.unwrap_err();
    assert_eq!(error.fault(), ProveFault::Unknown, "{error}");
    let read = ReadOptions { accept_uncertain_end: true, ..ReadOptions::default() };
    let options = ProveOptions { read, ..ProveOptions::default() };
    let proof = prove(&log.reader().await, &log.keys, Moment::Newest, &options, |_| {}).await.unwrap();
    assert_eq!((proof.uncertain_beyond, proof.last), (Some(number(4)), number(3)));
    let certain =
        prove(&log.reader().await, &log.keys, Moment::Aggregation(number(2)), &options, |_| {}).await;
    assert_eq!(certain.unwrap().uncertain_beyond, None);
}

#[tokio::test]
async fn a_proof_that_pruning_overtakes_begins_again_with_what_is_kept() {
    let log = TestLog::with(4, 2, 9).await;
    let reader = log.reader().await;
    let read = ReadOptions { accept_pruned_base: true, ..ReadOptions::default() };
    let options = ProveOptions { read, memory: 1 };
    let mut begun = 0;
    // After the disk state is known and before anything of the data is read.
    let prune = |progress: &RestoreProgress| {
        begun += u32::from(progress.aggregations == 0);
        for store in &log.memory {
            store.prune(&log.vdisk, log.epoch, number(6)).now_or_never().unwrap().unwrap();
        }
    };
    let proof = prove(&reader, &log.keys, Moment::Newest, &options, prune).await.unwrap();
    assert_eq!((begun, proof.aggregations), (2, 4));
    // A disk whose beginning is gone is proven by nobody's word but the operator's.
    let error = self::proof(&log, Moment::Newest).await.unwrap_err();
    assert_eq!(error.fault(), ProveFault::Unknown, "{error}");
}

#[tokio::test(start_paused = true)]
async fn proofs_that_share_a_pacer_together_read_no_faster_than_it_allows() {
    let mut log = TestLog::new(4, 2).await;
    let mut content = 0u64;
    for sequence in 1..=40 {
        // Bytes that do not compress.
        let mut data = Vec::new();
        while data.len() < 16 << 10 {
            let at = (sequence, data.len());
            data.extend(BlockHash::of(format!("{at:?}").as_bytes()).0);
        }
        content += data.len() as u64;
        log.append(1, &[set_block(sequence, sequence, sequence, data)]).await;
    }
    log.publish().await;
    let rate = 100_000;
    let pacer = Arc::new(Pacer::new(rate));
    let began = Instant::now();
    let reader = log.reader().await.paced(pacer);
    let options = ProveOptions { memory: 1, ..ProveOptions::default() };
    let mut told = Vec::new();
    let tell = |progress: &RestoreProgress| told.push((began.elapsed(), progress.bytes));
    let (one, other) = tokio::join!(
        prove(&reader, &log.keys, Moment::Newest, &options, tell),
        prove(&reader, &log.keys, Moment::Newest, &options, |_| {}),
    );
    assert_eq!(one.unwrap().digest, other.unwrap().digest);
    let least = Duration::from_secs_f64(2.0 * content as f64 / rate as f64);
    let took = began.elapsed();
    assert!(took >= least && took < least * 2, "{took:?} for what takes {least:?}");
    for (at, bytes) in told {
        assert!(bytes as f64 <= at.as_secs_f64() * rate as f64, "{bytes} bytes after {at:?}");
    }
}
