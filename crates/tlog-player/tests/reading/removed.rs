//! What differs and who wrote it, where the beginning of history was removed and images are left: against an image of each moment.

use std::collections::BTreeMap;

use tlog_codec::BlockEntry;
use tlog_player::{
    BlockContent, BlockWrite, ChangedBlock, DiskStateError, LogReader, Moment, MomentError, ReadOptions,
};
use tlog_proto::{Block, BlockIndex, Operation};

use crate::checkpoint_story::{After, BLOCKS, Story};

/// Random histories, whole and with three lengths of their beginning removed, each to the end of its base.
async fn for_each_pruned(seeds: std::ops::Range<u64>, mut check: impl AsyncFnMut(&Story, u64)) {
    for seed in seeds {
        let mut story = Story::random(seed, 2, 1, 10).await;
        let middle = story.after.len() / 2;
        let base = (middle..).find(|at| story.after[*at].place.blocks == story.after[*at].place.of).unwrap();
        let base = story.checkpoint_of(base).await.record.place.aggregation.0;
        story.write().await;
        story.log.publish().await;
        for first in [base / 2 + 1, base + 1] {
            story.prune(first).await;
            check(&story, seed).await;
        }
    }
}

fn moment(After { place, .. }: &After) -> Moment {
    Moment::Sequence { generation: Some(place.position.generation), sequence: place.position.sequence }
}

fn content(block: &Block) -> BlockContent {
    let BlockEntry { length, hash_prefix, .. } = BlockEntry::from(block);
    BlockContent { length, hash_prefix }
}

fn differing(from: &BTreeMap<u64, Block>, to: &BTreeMap<u64, Block>) -> Vec<ChangedBlock> {
    let at = |index| ChangedBlock {
        index: BlockIndex::new(index).unwrap(),
        from: from.get(&index).map(content),
        to: to.get(&index).map(content),
    };
    (0..BLOCKS).map(at).filter(|block| block.from != block.to).collect()
}

#[tokio::test]
async fn moments_that_can_be_restored_can_be_compared() {
    let mut compared = 0;
    for_each_pruned(100..103, async |story, seed| {
        let reader = story.log.reader().await;
        for (from, at) in story.after.iter().enumerate() {
            for (to, other) in story.after.iter().enumerate().skip(from % 3).step_by(3) {
                let (one, two) = (moment(at), moment(other));
                let found = reader.diff(&story.log.keys, one, two, &ReadOptions::default(), |_| {}).await;
                let about = format!("seed {seed}, first {}, {one:?} to {two:?}", story.first);
                match (story.expected(one), story.expected(two), found) {
                    (Some(_), Some(_), Ok(found)) => {
                        assert_eq!(found.blocks, differing(&at.content, &other.content), "{about}");
                        assert_eq!(found.from.unwrap().position, at.place.position, "{about}");
                        assert_eq!(found.to.unwrap().position, other.place.position, "{about}");
                        compared += u64::from(from.min(to) == 0 || at.place.aggregation.0 < story.first);
                    }
                    // What was written in between may be enough where all of the disk is not known.
                    (_, _, Ok(found)) => {
                        assert_eq!(found.blocks, differing(&at.content, &other.content), "{about}");
                    }
                    (Some(_), Some(_), Err(error)) => panic!("{about}: {error}"),
                    (_, _, Err(error)) => {
                        assert!(matches!(error, DiskStateError::Moment(_)), "{about}: {error}");
                    }
                }
            }
        }
    })
    .await;
    assert!(compared > 20, "{compared} comparisons with a moment of which an image alone is left");
}

async fn first_of(
    reader: &LogReader,
    story: &Story,
    at: u64,
    moment: Moment,
) -> Result<Option<BlockWrite>, DiskStateError> {
    let index = BlockIndex::new(at).unwrap();
    reader.blame(&story.log.keys, index, moment, &ReadOptions::default())?.next().await
}

#[tokio::test]
async fn the_last_write_of_a_block_is_known_from_a_checkpoint_where_no_write_is_kept() {
    let (mut from_image, mut not_known) = (0, 0);
    for_each_pruned(110..114, async |story, seed| {
        let reader = story.log.reader().await;
        for at in &story.after {
            let moment = moment(at);
            for block in 0..BLOCKS {
                let found = first_of(&reader, story, block, moment).await;
                let about = format!("seed {seed}, first {}, {moment:?}, block {block}", story.first);
                let has_base = story.bases().any(|base| base.record.place.position <= at.place.position);
                match (at.content.get(&block), found) {
                    (Some(block), Ok(Some(write))) => {
                        let entry = BlockEntry::from(block);
                        assert_eq!(write.place.position.sequence, entry.sequence, "{about}");
                        assert_eq!(write.place.timestamp, entry.timestamp, "{about}");
                        assert_eq!(write.operation, Operation::Set, "{about}");
                        assert_eq!((write.length, write.hash_prefix), (entry.length, entry.hash_prefix));
                        from_image += u64::from(write.checkpoint.is_some());
                        let number = write.place.aggregation.unwrap().0;
                        assert!(number >= story.first, "{about}: {number} was removed");
                    }
                    (None, Ok(Some(write))) => assert_eq!(write.operation, Operation::Delete, "{about}"),
                    (None, Ok(None)) => {}
                    (content, Err(DiskStateError::Moment(error))) => {
                        let whole_disk_known = story.expected(moment).is_some();
                        assert!(!has_base, "{about}: {error}");
                        assert!(content.is_some() || !whole_disk_known, "{about}: {error}");
                        not_known += u64::from(matches!(error, MomentError::BasePruned { .. }));
                    }
                    (content, found) => panic!("{about}: {found:?} and not {content:?}"),
                }
            }
        }
    })
    .await;
    assert!(from_image > 50 && not_known > 5, "{from_image} from an image, {not_known} not known");
}

#[tokio::test]
async fn what_was_before_a_checkpoint_is_not_said_to_be_nothing() {
    for_each_pruned(120..122, async |story, seed| {
        let reader = story.log.reader().await;
        for block in 0..BLOCKS {
            let index = BlockIndex::new(block).unwrap();
            let options = ReadOptions::default();
            let mut blame = reader.blame(&story.log.keys, index, Moment::Newest, &options).unwrap();
            let (mut last, mut any) = (None, false);
            let end = loop {
                match blame.next().await {
                    Ok(Some(write)) => (last, any) = (Some(write), true),
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            let about = format!("seed {seed}, first {}, block {block}: {last:?}, {end:?}", story.first);
            match end {
                None => assert!(!any && blame.is_empty_in_checkpoint(), "{about}"),
                Some(DiskStateError::Moment(MomentError::BasePruned { .. })) => assert!(any, "{about}"),
                Some(error) => panic!("{about}: {error}"),
            }
        }
    })
    .await;
}
