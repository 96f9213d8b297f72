//! What a broken or hostile Redis has under its keys: a value is a shard, or none; a text is written so that it is read as the same again.

use std::sync::LazyLock;

use bytes::Bytes;
use redis::Value;
use tlog_proto::{AggregationId, AggregationNumber, Epoch, VdiskId};
use tlog_redis::fuzzing::{head_in, rewritten, shard_in, shard_key, shard_value, state_in};
use tlog_store::{Shard, StoreErrorKind};

use crate::Target;
use crate::input::Input;

/// The first byte says what the rest is: a text, a value, what is changed in a value, or the fields of a log in lines.
pub const TARGET: Target = Target { name: "redis-values", memory: 1 << 20, check, seeds };

struct Stored {
    vdisk: VdiskId,
    key: String,
    shard: Shard,
    value: Vec<u8>,
}

static STORED: LazyLock<Stored> = LazyLock::new(|| {
    let vdisk = VdiskId::new("v").expect("a legal id");
    let key = shard_key(&vdisk, AggregationNumber(7));
    let shard = Shard {
        epoch: Epoch(12),
        id: AggregationId([9; 32]),
        head: Bytes::from_static(b"a head part"),
        payload: Bytes::from_static(b"and a payload"),
    };
    let value = shard_value(&shard, &key).expect("it is short");
    Stored { vdisk, key, shard, value }
});

fn check(input: &[u8]) {
    let mut input = Input::new(input);
    match input.below(4) {
        0 => {
            let Ok(text) = std::str::from_utf8(input.rest()) else { return };
            for written in rewritten(text) {
                assert!(rewritten(&written).contains(&written), "{text:?} is written as {written:?}");
            }
        }
        1 => value(input.rest().to_vec()),
        2 => value(changed(&mut input)),
        _ => state(&mut input),
    }
}

/// A checksum is no seal: a value that somebody made is taken. One that is under another key is not.
fn value(value: Vec<u8>) {
    let Stored { key, shard, value: was, .. } = &*STORED;
    let read = shard_in(value.clone(), key);
    assert!(value != *was || read.as_ref() == Some(shard));
    if let Some(read) = read {
        assert_eq!(shard_value(&read, key), Some(value.clone()), "a value has one form");
        assert_eq!(shard_in(value.clone(), "tlog:{v}:s:8"), None, "under another key");
        let head = head_in(value[..value.len() - read.payload.len()].to_vec(), key).expect("its beginning");
        assert_eq!((head.epoch, head.id, head.head), (read.epoch, read.id, read.head));
    }
}

/// One or two bytes other than they were, which a checksum of 32 bits always tells.
fn changed(input: &mut Input<'_>) -> Vec<u8> {
    let Stored { key, value, .. } = &*STORED;
    let mut changed = value.clone();
    for _ in 0..=input.below(2) {
        let at = input.below(changed.len());
        changed[at] ^= input.byte();
    }
    let whole = changed == *value;
    assert_eq!(shard_in(changed.clone(), key).is_some(), whole, "{changed:?}");
    changed
}

/// A log as the scripts answer it: fields in lines, and behind an empty one the runs of numbers that are held.
fn state(input: &mut Input<'_>) {
    let text = String::from_utf8_lossy(input.rest());
    let (fields, runs) = text.split_once("\n\n").unwrap_or((&text, ""));
    let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
    let list = |text: &str| Value::Array(text.lines().map(bulk).collect());
    let answer = Value::Array(vec![bulk("state"), list(fields), list(runs)]);
    match state_in(answer, &STORED.vdisk) {
        Ok(state) => assert!(state.held.first().is_none_or(|first| first >= state.first)),
        Err(StoreErrorKind::Damaged { what }) => assert!(what.contains("tlog:{v}:")),
        Err(error) => panic!("it is an answer: {error}"),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let point = format!("9:3:{}", "07".repeat(32));
    let texts = [
        "3 4 4 5 000102030405060708090a0b0c0d0eff -".to_owned(),
        "1:1 5:17".to_owned(),
        "2-9".to_owned(),
        "000102030405060708090a0b0c0d0eff".to_owned(),
        format!("{point} {point}"),
        "2:18446744073709551615:5".to_owned(),
        format!("{point} 2:7:5 2:8 12 7 99"),
    ];
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| [&[0], text.as_bytes()].concat()).collect();
    seeds.push([&[1], &STORED.value[..]].concat());
    seeds.push(vec![2, 0, 80, 1]);
    let fields = format!("{}\n3\n9\n4\n8\n12\n1:1 3:8\n3 0 4 5 -\n1\n\n1-2\n3-5", "0f".repeat(16));
    seeds.push([&[3], fields.as_bytes()].concat());
    seeds
}
