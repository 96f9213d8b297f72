//! Parts of checkpoints, and records: what stands in a log beside writes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod support;

use std::path::Path;

use support::by_hand::{self, field};
use support::*;
use tlog_codec::{
    BlockEntry, CheckpointPart, CheckpointRecord, Content, Finding, HeaderError, Kind, Mark, MarkName,
    OpenError, PlaceInLog, Record, SealError, Sealed, TimeReach, WithoutWrites,
};
use tlog_proto::{
    AggregationId, AggregationNumber, Block, BlockIndex, Generation, LogPosition, Sequence, SessionId,
    Timestamp,
};

fn position() -> LogPosition {
    LogPosition { generation: Generation(3), sequence: Sequence(1200) }
}

fn place() -> PlaceInLog {
    PlaceInLog {
        aggregation: AggregationNumber(6),
        id: AggregationId([6; 32]),
        blocks: 2,
        of: 5,
        position: position(),
        timestamp: Timestamp(1_500_000_000_000_000_000),
    }
}

fn mark() -> Record {
    Record::Mark(Mark { name: MarkName::new("before-upgrade").unwrap(), place: place() })
}

fn checkpoint() -> Record {
    let part = |number, first, last| CheckpointPart {
        number: AggregationNumber(number),
        id: AggregationId([number as u8; 32]),
        blocks: 3,
        first: BlockIndex::new(first).unwrap(),
        last: BlockIndex::new(last).unwrap(),
    };
    Record::Checkpoint(CheckpointRecord {
        place: place(),
        block_size: 64,
        blocks: 6,
        bytes: 300,
        base: None,
        parts: vec![part(7, 0, 70), part(9, 71, 900)],
    })
}

/// Blocks in the order of their indexes, their sequences in none.
fn image() -> Vec<Block> {
    let mut blocks = vec![set(20, noise(1, 64)), set(5, b"text, text, text, text".to_vec()), delete(9)];
    blocks.sort_by_key(|block| block.index);
    blocks
}

fn request(content: Content<'_>) -> WithoutWrites<'_> {
    WithoutWrites {
        number: AggregationNumber(8),
        after: position(),
        session: SessionId(0x5e55),
        about: Timestamp(1_500_000_000_000_000_000),
        sealed_at: Timestamp(1_500_000_000_000_000_009),
        block_size: 64,
        nonce: [9; 12],
        finding: Finding { time_reach: TimeReach::covering(1000), record_before: Some(AggregationNumber(3)) },
        content,
    }
}

fn seal(content: Content<'_>) -> Sealed {
    sealer(4, 2).seal_without_writes(request(content)).unwrap()
}

#[test]
fn a_part_of_a_checkpoint_has_its_blocks_and_says_where_the_log_stands() {
    let shards = stored(seal(Content::Checkpoint(&image())));
    let head = parse(&shards[3]);
    let header = &head.header;
    assert_eq!((header.kind, header.block_count), (Kind::Checkpoint, 3));
    assert_eq!((header.first_sequence, header.last_sequence), (Sequence(1201), Sequence(1200)));
    assert_eq!((header.generation, header.session), (Generation(3), SessionId(0x5e55)));
    assert_eq!(header.record_before(), Some(AggregationNumber(3)));
    assert_eq!(header.time_reach, TimeReach::covering(1000));
    let entries: Vec<BlockEntry> = image().iter().map(BlockEntry::from).collect();
    assert_eq!(opener().manifest(&head).unwrap(), entries);
    let mut left = payloads(&shards);
    left[0] = None;
    left[4] = None;
    assert_eq!(opener().blocks(&head, &left).unwrap(), image());
    assert!(matches!(opener().record(&head), Err(OpenError::OtherKind(Kind::Checkpoint))));
}

#[test]
fn a_record_is_read_from_any_head_alone_and_has_no_blocks() {
    for record in [mark(), checkpoint(), Record::MarkRemoved(MarkName::new("before-upgrade").unwrap())] {
        let shards = stored(seal(Content::Record(&record)));
        for shard in &shards {
            let head = parse(shard);
            assert_eq!((head.header.kind, head.header.block_count), (Kind::Record, 0));
            assert_eq!(opener().record(&head).unwrap(), record);
            assert!(matches!(opener().manifest(&head), Err(OpenError::OtherKind(Kind::Record))));
            assert_eq!(opener().blocks(&head, &payloads(&shards)).unwrap(), []);
        }
    }
}

#[test]
fn what_no_reader_would_take_is_not_sealed() {
    let sealer = sealer(4, 2);
    let refused = |request: WithoutWrites<'_>| sealer.seal_without_writes(request).unwrap_err();
    assert!(matches!(refused(request(Content::Checkpoint(&[]))), SealError::NoBlocks));
    let mut backwards = image();
    backwards.reverse();
    assert!(matches!(refused(request(Content::Checkpoint(&backwards))), SealError::Indexes));
    let record = mark();
    let nowhere = WithoutWrites { number: AggregationNumber(0), ..request(Content::Record(&record)) };
    assert!(matches!(refused(nowhere), SealError::Header(HeaderError::Inconsistent("number"))));
    let last = LogPosition { sequence: Sequence(u64::MAX), ..position() };
    let at_the_end = WithoutWrites { after: last, ..request(Content::Record(&record)) };
    assert!(matches!(refused(at_the_end), SealError::Sequences));
}

#[test]
fn a_record_that_is_very_far_back_is_found_by_way_of_one_that_is_nearer() {
    let number = AggregationNumber(10_000_000_000);
    let record = mark();
    let request = WithoutWrites { number, ..request(Content::Record(&record)) };
    let shards = stored(sealer(1, 0).seal_without_writes(request).unwrap());
    let before = parse(&shards[0]).header.record_before().unwrap();
    assert_eq!(before, AggregationNumber(10_000_000_000 - u64::from(u32::MAX)));
}

#[test]
fn what_is_written_is_what_the_format_says() {
    let removed = Record::MarkRemoved(MarkName::new("before-upgrade").unwrap());
    for record in [mark(), checkpoint(), removed] {
        let shards = stored(seal(Content::Record(&record)));
        let head = by_hand::Head::take_apart(&shards[1].head);
        assert_eq!(head.open_manifest("myimg", &master()), by_hand::record_of(&record));
        let fields =
            [field::KIND, field::BLOCK_COUNT, field::BODY_PLAIN, field::BODY_SEALED, field::RECORD_BACK];
        assert_eq!(fields.map(|field| head.number(field)), [3, 0, 0, 16, 5]);
        assert_eq!((head.number(field::FIRST_SEQUENCE), head.number(field::LAST_SEQUENCE)), (1201, 1200));
        let reach = by_hand::reach_of(head.number(field::TIME_REACH) as u8);
        assert!(reach.is_some_and(|reach| (1000..1250).contains(&reach)), "{reach:?}");
    }
    let shards = stored(seal(Content::Checkpoint(&image())));
    let head = by_hand::Head::take_apart(&shards[1].head);
    assert_eq!(head.number(field::KIND), 2);
    assert_eq!(head.open_manifest("myimg", &master()), by_hand::manifest_of(&image()));
    let data: Vec<bytes::Bytes> = payloads(&shards).into_iter().take(4).flatten().collect();
    assert_eq!(head.open_body("myimg", &master(), &data).blocks, image());
    // And the other way round.
    let mut made = head.clone();
    made.put(field::KIND, 3).put(field::BLOCK_COUNT, 0);
    made.seal("myimg", &master(), &by_hand::record_of(&checkpoint()), &[]);
    let parsed = parse_as("myimg", made.put_together("myimg").to_vec()).unwrap();
    assert_eq!(opener().record(&parsed).unwrap(), checkpoint());
}

/// Written once by this version; what was written is read for ever. `TLOG_WRITE_GOLDEN=1` writes those that are not there.
#[test]
fn golden_ones_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v2-without-writes");
    let (blocks, record, mark) = (image(), checkpoint(), mark());
    let all = [
        ("checkpoint", Content::Checkpoint(&blocks)),
        ("record-of-checkpoint", Content::Record(&record)),
        ("mark", Content::Record(&mark)),
    ];
    for (name, content) in all {
        let path = folder.join(format!("{name}.hex"));
        if std::env::var_os("TLOG_WRITE_GOLDEN").is_some() && !path.exists() {
            let shards = stored(sealer(1, 0).seal_without_writes(request(content)).unwrap());
            let text = format!("{}\n{}\n", hex::encode(&shards[0].head), hex::encode(&shards[0].payload));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, text).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let parts: Vec<Vec<u8>> = text.lines().map(|line| hex::decode(line).unwrap()).collect();
        let head = parse_as("myimg", parts[0].clone()).unwrap();
        head.verify_payload(&parts[1]).unwrap();
        let payloads = [Some(parts[1].clone().into())];
        match content {
            Content::Checkpoint(blocks) => assert_eq!(opener().blocks(&head, &payloads).unwrap(), blocks),
            Content::Record(record) => {
                assert_eq!(opener().record(&head).unwrap(), *record);
                assert_eq!(opener().blocks(&head, &payloads).unwrap(), []);
            }
        }
    }
}
