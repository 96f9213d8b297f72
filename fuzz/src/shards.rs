//! Stored shards of format 2, damaged by whoever has no key: what comes out is an error, or what was sealed.

use bytes::Bytes;
use tlog_codec::{BodyBlock, Header, PlainBody, ShardHead, rebuild};
use tlog_proto::Epoch;

use crate::Target;
use crate::input::Input;
use crate::v2::{BASES, Base, FIELDS, VDISK, opener, vdisk};

/// Bytes that are to be a head part, or what is to be done to the shards of an aggregation.
pub const TARGET: Target = Target { name: "shards", memory: 1 << 20, check, seeds };

fn check(input: &[u8]) {
    let mut input = Input::new(input);
    match input.below(3) {
        0 => raw(input.rest()),
        1 => damaged(&BASES[input.below(BASES.len())], &mut input),
        _ => forged(&BASES[input.below(BASES.len())], &mut input),
    }
}

/// Bytes that anybody may have written.
fn raw(bytes: &[u8]) {
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(header.encode(), bytes[..Header::LEN], "a header has one form");
    }
    let vdisk = vdisk(VDISK);
    let head = Bytes::copy_from_slice(bytes);
    let parsed = ShardHead::parse(&vdisk, &head);
    if let Ok(parsed) = &parsed {
        assert_eq!(parsed.stored_len(), bytes.len());
        let _ = (parsed.verify_payload(bytes), opener().manifest(parsed), opener().record(parsed));
    }
    assert_eq!(ShardHead::parse_many(&vdisk, &[head]), [parsed]);
}

/// Bits that flip, bytes that are missing, shards that are gone or in another's place.
fn damaged(base: &Base, input: &mut Input<'_>) {
    let mut heads: Vec<Vec<u8>> = base.shards.iter().map(|shard| shard.head.to_vec()).collect();
    let mut payloads: Vec<Option<Vec<u8>>> =
        base.shards.iter().map(|shard| Some(shard.payload.to_vec())).collect();
    while !input.is_empty() {
        let what = input.byte();
        let which = input.below(heads.len());
        match what % 8 {
            0 => flip(&mut heads[which], input),
            1 => {
                let length = usize::from(input.u16()) % (heads[which].len() + 1);
                heads[which].truncate(length);
            }
            2 => heads[which].extend_from_slice(input.bytes(4)),
            3 => payloads[which] = None,
            4 => payloads.swap(which, 0),
            5 => payloads[which].iter_mut().for_each(|payload| flip(payload, &mut *input)),
            6 => payloads[which].iter_mut().for_each(|payload| payload.truncate(usize::from(input.u16()))),
            _ => heads.swap(which, 0),
        }
    }
    let vdisk = vdisk(VDISK);
    let heads: Vec<Bytes> = heads.into_iter().map(Bytes::from).collect();
    let payloads: Vec<Option<Bytes>> = payloads.into_iter().map(|payload| payload.map(Bytes::from)).collect();
    let parsed: Vec<_> = heads.iter().map(|head| ShardHead::parse(&vdisk, head)).collect();
    assert_eq!(ShardHead::parse_many(&vdisk, &heads), parsed);
    for (at, (head, parsed)) in heads.iter().zip(&parsed).enumerate() {
        assert_eq!(&ShardHead::parse_beside(&vdisk, head, Some(&base.heads[0])), parsed);
        let whole = base.shards.iter().any(|shard| shard.head == head);
        assert_eq!(parsed.is_ok(), whole, "head {at} was taken for whole, or was not");
        let Ok(parsed) = parsed else { continue };
        assert_eq!(parsed, &base.heads[parsed.index]);
        if let Some(Some(payload)) = payloads.get(at) {
            let whole = *payload == base.shards[parsed.index].payload;
            assert_eq!(parsed.verify_payload(payload).is_ok(), whole);
        }
        opened(base, parsed, &payloads);
    }
}

fn flip(bytes: &mut [u8], input: &mut Input<'_>) {
    let (at, mask) = (usize::from(input.u16()), input.byte());
    if let Some(byte) = bytes.get_mut(at % bytes.len().max(1)) {
        *byte ^= mask;
    }
}

/// A head whose id and check fit whatever it says: anybody can make one.
fn forged(base: &Base, input: &mut Input<'_>) {
    let mut head = base.head.clone();
    let mut payloads = base.payloads();
    while !input.is_empty() {
        match input.below(6) {
            0 => {
                let field = FIELDS[input.below(FIELDS.len())].clone();
                head.put(field, input.number());
            }
            1 => head.index = input.byte(),
            2 => head.epoch = input.number(),
            3 => flip(&mut head.manifest, input),
            4 => {
                let which = input.below(payloads.len());
                payloads[which] = Some(Bytes::copy_from_slice(input.bytes(64)));
            }
            _ => {
                let whole: Vec<Bytes> = payloads.iter().flatten().cloned().collect();
                head.hash(&whole);
            }
        }
    }
    let Ok(parsed) = ShardHead::parse(&vdisk(VDISK), &head.put_together(VDISK)) else { return };
    opened(base, &parsed, &payloads);
}

/// What opens is what was sealed.
fn opened(base: &Base, head: &ShardHead, payloads: &[Option<Bytes>]) {
    let opener = opener();
    if let Ok(entries) = opener.manifest(head) {
        assert_eq!(entries, base.entries);
        if let Some(body) = PlainBody::of(&head.header) {
            parts(base, &body, payloads);
        }
    }
    if let Ok(record) = opener.record(head) {
        assert_eq!(Some(record), base.record);
    }
    if let Ok(blocks) = opener.blocks(head, payloads) {
        assert!(blocks.is_empty() && base.record.is_some() || blocks == base.blocks);
    }
    if let Ok(found) = opener.blocks_at(head, payloads, &[1, 0, 1000]) {
        let expected: Vec<_> = [1, 0, 1000].map(|at: usize| base.blocks.get(at).cloned()).into();
        assert!(found.iter().all(Option::is_none) || found == expected);
    }
    // Without a key only hashes prove; those of the head that was sealed prove what was sealed.
    if let Ok(rebuilt) = rebuild(head, payloads)
        && rebuilt.id == base.encoded.id
    {
        let shard = |index| (rebuilt.shard(index, Epoch(7)), base.encoded.shard(index, Epoch(7)));
        (0..base.shards.len()).map(shard).for_each(|(rebuilt, sealed)| assert_eq!(rebuilt, sealed));
    }
}

/// Single blocks out of a body that is not compressed.
fn parts(base: &Base, body: &PlainBody, payloads: &[Option<Bytes>]) {
    let places = PlainBody::places(&vdisk(VDISK), &base.entries);
    for ((entry, place), block) in base.entries.iter().zip(places).zip(&base.blocks) {
        let wanted = BodyBlock { place, length: entry.length, hash_prefix: entry.hash_prefix };
        let Some(parts) = body.parts(&wanted) else { continue };
        let mut sealed = Vec::new();
        for part in parts {
            let range = part.bytes.start as usize..part.bytes.end as usize;
            let payload = payloads.get(part.shard).and_then(Option::as_ref);
            sealed.extend_from_slice(payload.and_then(|payload| payload.get(range)).unwrap_or_default());
        }
        let mut blocks = [(wanted, sealed)];
        if let Some(hashes) = opener().open_parts(body, &mut blocks) {
            assert_eq!((&blocks[0].1[..], hashes[0]), (&block.data[..], block.hash));
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> =
        BASES.iter().map(|base| [&[0], &base.shards[0].head[..]].concat()).collect();
    for base in 0..BASES.len() as u8 {
        seeds.extend([
            vec![1, base],
            vec![1, base, 3, 0],
            vec![1, base, 5, 0, 3, 0, 1, 3, 1],
            vec![1, base, 0, 1, 30, 0, 4],
            vec![1, base, 4, 1, 7, 1],
            vec![2, base, 0, 10, 0xe4, 2, 9],
            vec![2, base, 4, 0, 1, 2, 3, 4, 5],
        ]);
    }
    seeds
}
