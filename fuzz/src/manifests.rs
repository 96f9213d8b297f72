//! Manifests, records and bodies of format 2 that were sealed under the right key by whoever seals what no honest writer would: an error,
//! or blocks that fit together.

use bytes::Bytes;
use tlog_codec::{BlockEntry, ShardHead};
use tlog_proto::{Block, BlockHash, Operation};

use crate::Target;
use crate::input::Input;
use crate::v2::by_hand::{Head, field};
use crate::v2::{BASES, FIELDS, VDISK, master, opener, vdisk};

/// Which aggregation to begin with, and what is sealed in place of what is in it.
pub const TARGET: Target = Target { name: "manifests", memory: 4 << 20, check, seeds };

fn check(input: &[u8]) {
    let mut input = Input::new(input);
    let base = &BASES[input.below(BASES.len())];
    let mut head = base.head.clone();
    for _ in 0..input.below(4) {
        let field = FIELDS[input.below(FIELDS.len())].clone();
        head.put(field, input.number());
    }
    // The erasure code is not what is looked at.
    head.put(field::DATA, 1).put(field::PARITY, 0);
    let (compressed, manifest_length) = (input.below(4), input.below(256));
    let manifest = written(&base.manifest, manifest_length, &mut input);
    let body = written(&base.body, usize::MAX, &mut input);
    let payloads = sealed(&mut head, compressed, &manifest, &body);
    let Ok(parsed) = ShardHead::parse(&vdisk(VDISK), &head.put_together(VDISK)) else { return };
    let opener = opener();
    let entries = opener.manifest(&parsed);
    let record = opener.record(&parsed);
    assert!(entries.is_err() || record.is_err(), "it is one or the other");
    let payloads: Vec<Option<Bytes>> = payloads.into_iter().map(Some).collect();
    let Ok(blocks) = opener.blocks(&parsed, &payloads) else { return };
    match entries {
        Ok(entries) => {
            assert!(blocks.iter().map(BlockEntry::from).eq(entries));
            assert!(blocks.iter().all(is_whole));
        }
        Err(_) => assert!(record.is_ok() && blocks.is_empty()),
    }
}

fn is_whole(block: &Block) -> bool {
    block.hash == BlockHash::of(&block.data) && (block.operation == Operation::Set) != block.data.is_empty()
}

/// What there was with some of its bytes changed, or something else of at most that length.
fn written(was: &[u8], length: usize, input: &mut Input<'_>) -> Vec<u8> {
    if input.flag() {
        return input.bytes(length).to_vec();
    }
    let mut bytes = was.to_vec();
    for _ in 0..input.below(16) {
        let at = usize::from(input.u16()) % bytes.len().max(1);
        match input.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_slice(input.bytes(8)),
            _ => {
                let value = input.byte();
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
            }
        }
    }
    bytes
}

/// Seals both; with a bit set in `compressed` the manifest or the body is what says that it is compressed.
fn sealed(head: &mut Head, compressed: usize, manifest: &[u8], body: &[u8]) -> Vec<Bytes> {
    if compressed == 0 {
        return head.seal(VDISK, &master(), manifest, body);
    }
    let pack = |plain: &[u8]| snap::raw::Encoder::new().compress_vec(plain).expect("it is short");
    let (packed_manifest, packed_body) = (pack(manifest), pack(body));
    let manifest_is = |packed| if compressed & 1 == 1 { packed } else { manifest };
    let body_is = |packed| if compressed & 2 == 2 { packed } else { body };
    let (sealed_manifest, sealed_body) = (manifest_is(&packed_manifest[..]), body_is(&packed_body[..]));
    head.put(field::KEY_ID, u64::from_le_bytes(master().id().0))
        .put(field::MANIFEST_COMPRESSION, compressed as u64 & 1)
        .put(field::BODY_COMPRESSION, compressed as u64 >> 1)
        .put(field::MANIFEST_PLAIN, manifest.len() as u64)
        .put(field::MANIFEST_SEALED, sealed_manifest.len() as u64 + 16)
        .put(field::PAYLOAD, sealed_body.len() as u64 + 16)
        .put(field::BODY_PLAIN, body.len() as u64)
        .put(field::BODY_SEALED, sealed_body.len() as u64 + 16);
    head.seal_as_it_says(VDISK, &master(), sealed_manifest, sealed_body, (1, 0))
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (at, base) in (0..).zip(BASES.iter()) {
        for compressed in [0, 3] {
            seeds.push(vec![at, 0, compressed, 255, 0, 0, 0, 0]);
        }
        seeds.push(vec![at, 1, 14, 5, 0, 255, 0, 1, 3, 0, 2, 9, 0, 1, 40, 0, 2, 7]);
        let written = [&[at, 0, 0, base.manifest.len() as u8, 1], &base.manifest[..], &[1], &base.body[..]];
        seeds.push(written.concat());
    }
    seeds
}
