//! Format 2 a second time: slow, written from `docs/format.md`, with nothing of the crate but the layout's numbers. What the
//! crate writes must open here and the other way round. It can also write what no honest writer would.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use reed_solomon_erasure::galois_8;
use tlog_codec::{AGGREGATIONS_PER_DATA_KEY, MarkName, PlaceInLog, Record};
use tlog_crypto::{DataKey, MasterKey, blake2b_256, blake3_256};
use tlog_proto::{Aggregation, Block, Timestamp};

pub const PREFIX: usize = 24;
pub const HEADER: usize = 168;

/// Where the fields of the header are.
pub mod field {
    use std::ops::Range;

    pub const FORMAT: Range<usize> = 4..5;
    pub const DATA: Range<usize> = 5..6;
    pub const PARITY: Range<usize> = 6..7;
    pub const KIND: Range<usize> = 7..8;
    pub const MANIFEST_COMPRESSION: Range<usize> = 8..9;
    pub const BODY_COMPRESSION: Range<usize> = 9..10;
    pub const SUITE: Range<usize> = 10..11;
    pub const TIME_REACH: Range<usize> = 11..12;
    pub const BLOCK_COUNT: Range<usize> = 12..16;
    pub const KEY_ID: Range<usize> = 16..24;
    pub const NUMBER: Range<usize> = 24..32;
    pub const GENERATION: Range<usize> = 32..40;
    pub const SESSION: Range<usize> = 40..48;
    pub const FIRST_SEQUENCE: Range<usize> = 48..56;
    pub const LAST_SEQUENCE: Range<usize> = 56..64;
    pub const OLDEST: Range<usize> = 64..72;
    pub const NEWEST: Range<usize> = 72..80;
    pub const SEALED_AT: Range<usize> = 80..88;
    pub const BLOCK_SIZE: Range<usize> = 88..92;
    pub const MANIFEST_PLAIN: Range<usize> = 92..96;
    pub const MANIFEST_SEALED: Range<usize> = 96..100;
    pub const PAYLOAD: Range<usize> = 100..104;
    pub const BODY_PLAIN: Range<usize> = 104..112;
    pub const BODY_SEALED: Range<usize> = 112..120;
    pub const NONCE: Range<usize> = 120..132;
    pub const RECORD_BACK: Range<usize> = 132..136;
    pub const PREV: Range<usize> = 136..168;
}

/// A head part, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub index: u8,
    pub epoch: u64,
    pub header: [u8; HEADER],
    pub hashes: Vec<[u8; 32]>,
    pub manifest: Vec<u8>,
}

impl Head {
    pub fn take_apart(head: &[u8]) -> Self {
        assert_eq!(&head[..4], b"TLS2");
        assert_eq!(head[5..8], [0; 3]);
        let header: [u8; HEADER] = head[PREFIX..PREFIX + HEADER].try_into().unwrap();
        let shards = usize::from(header[5]) + usize::from(header[6]);
        let (hashes, manifest) = head[PREFIX + HEADER..].split_at(shards * 32);
        let this = Self {
            index: head[4],
            epoch: u64::from_le_bytes(head[8..16].try_into().unwrap()),
            header,
            hashes: hashes.as_chunks().0.to_vec(),
            manifest: manifest.to_vec(),
        };
        assert_eq!(this.number(field::MANIFEST_SEALED), manifest.len() as u64);
        this
    }

    /// The stored bytes, with an id and a check that fit: what anybody can make who has no key.
    pub fn put_together(&self, vdisk: &str) -> Bytes {
        let mut out = b"TLS2".to_vec();
        out.extend_from_slice(&[self.index, 0, 0, 0]);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        let check = blake2b_256(&[&out, &self.id(vdisk)]);
        out.extend_from_slice(&check[..8]);
        out.extend_from_slice(&self.header);
        out.extend_from_slice(self.hashes.as_flattened());
        out.extend_from_slice(&self.manifest);
        out.into()
    }

    pub fn id(&self, vdisk: &str) -> [u8; 32] {
        blake2b_256(&[
            &(vdisk.len() as u16).to_le_bytes(),
            vdisk.as_bytes(),
            &self.header,
            &self.manifest,
            self.hashes.as_flattened(),
        ])
    }

    pub fn number(&self, field: Range<usize>) -> u64 {
        let bytes = self.header[field].iter().rev();
        bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    pub fn put(&mut self, field: Range<usize>, number: u64) -> &mut Self {
        let length = field.len();
        self.header[field].copy_from_slice(&number.to_le_bytes()[..length]);
        self
    }

    fn nonce(&self, body: bool) -> [u8; 12] {
        let mut nonce: [u8; 12] = self.header[field::NONCE].try_into().unwrap();
        assert_eq!(nonce[0] & 1, 0);
        nonce[0] |= u8::from(body);
        nonce
    }

    fn associated(&self, vdisk: &str) -> Vec<u8> {
        let mut data = (vdisk.len() as u16).to_le_bytes().to_vec();
        data.extend_from_slice(vdisk.as_bytes());
        data.extend_from_slice(&self.header[..136]);
        data
    }

    fn data_key(&self, vdisk: &str, master: &MasterKey) -> DataKey {
        let window = self.number(field::NUMBER) / AGGREGATIONS_PER_DATA_KEY;
        DataKey::derive(master, vdisk.as_bytes(), window)
    }

    fn open(&self, vdisk: &str, master: &MasterKey, body: bool, sealed: &[u8]) -> Vec<u8> {
        let key = self.data_key(vdisk, master);
        let (packed, tag) = sealed.split_last_chunk::<16>().unwrap();
        let mut packed = packed.to_vec();
        key.open_in_place(&mut packed, self.nonce(body), &self.associated(vdisk), tag).unwrap();
        match self.header[if body { 9 } else { 8 }] {
            0 => packed,
            _ => snap::raw::Decoder::new().decompress_vec(&packed).unwrap(),
        }
    }

    pub fn open_manifest(&self, vdisk: &str, master: &MasterKey) -> Vec<u8> {
        self.open(vdisk, master, false, &self.manifest)
    }

    /// The blocks, from all data shards.
    pub fn open_body(&self, vdisk: &str, master: &MasterKey, data: &[Bytes]) -> Aggregation {
        assert_eq!(data.len(), usize::from(self.header[5]));
        let mut body = data.concat();
        let sealed = self.number(field::BODY_SEALED) as usize;
        assert!(body[sealed..].iter().all(|byte| *byte == 0));
        body.truncate(sealed);
        let plain = self.open(vdisk, master, true, &body);
        assert_eq!(plain.len() as u64, self.number(field::BODY_PLAIN));
        Aggregation::decode(&plain).unwrap()
    }

    /// Seals what it is given, whatever it is, nothing compressed, and answers all payloads. Lengths and hashes are entered;
    /// every other field stays as it is.
    pub fn seal(&mut self, vdisk: &str, master: &MasterKey, manifest: &[u8], body: &[u8]) -> Vec<Bytes> {
        let (data, parity) = (usize::from(self.header[5]), usize::from(self.header[6]));
        let payload = (body.len() + 16).div_ceil(data);
        self.put(field::KEY_ID, u64::from_le_bytes(master.id().0))
            .put(field::MANIFEST_COMPRESSION, 0)
            .put(field::BODY_COMPRESSION, 0)
            .put(field::MANIFEST_PLAIN, manifest.len() as u64)
            .put(field::MANIFEST_SEALED, manifest.len() as u64 + 16)
            .put(field::PAYLOAD, payload as u64)
            .put(field::BODY_PLAIN, body.len() as u64)
            .put(field::BODY_SEALED, body.len() as u64 + 16);
        self.seal_as_it_says(vdisk, master, manifest, body, (data, parity))
    }

    /// Seals and splits, and enters hashes but no length.
    pub fn seal_as_it_says(
        &mut self,
        vdisk: &str,
        master: &MasterKey,
        manifest: &[u8],
        body: &[u8],
        (data, parity): (usize, usize),
    ) -> Vec<Bytes> {
        let key = self.data_key(vdisk, master);
        let seal = |plain: &[u8], nonce| {
            let mut bytes = plain.to_vec();
            let tag = key.seal_in_place(&mut bytes, nonce, &self.associated(vdisk)).unwrap();
            [&bytes[..], &tag].concat()
        };
        let sealed_manifest = seal(manifest, self.nonce(false));
        let mut body = seal(body, self.nonce(true));
        let length = body.len().div_ceil(data);
        body.resize(length * data, 0);
        let mut payloads: Vec<Bytes> = body.chunks(length).map(Bytes::copy_from_slice).collect();
        payloads.extend(parity_by_definition(&payloads, parity));
        self.manifest = sealed_manifest;
        self.hash(&payloads);
        payloads
    }

    /// Enters the hashes of these payloads.
    pub fn hash(&mut self, payloads: &[Bytes]) {
        let hash = |payload: &Bytes| match self.number(field::SUITE) {
            2 => blake3_256(payload),
            _ => blake2b_256(&[payload]),
        };
        self.hashes = payloads.iter().map(hash).collect();
    }
}

/// Row i of the Cauchy matrix, worked out with another library's field arithmetic.
pub fn parity_by_definition(data: &[Bytes], parity: usize) -> Vec<Bytes> {
    let row = |i: usize| {
        let mut out = vec![0; data[0].len()];
        for (j, shard) in data.iter().enumerate() {
            galois_8::mul_slice_xor(galois_8::div(1, (i ^ j) as u8), shard, &mut out);
        }
        Bytes::from(out)
    };
    (data.len()..data.len() + parity).map(row).collect()
}

/// The manifest of these blocks.
pub fn manifest_of(blocks: &[Block]) -> Vec<u8> {
    let entry = |block: &Block| {
        let mut entry = block.sequence.0.to_le_bytes().to_vec();
        entry.extend_from_slice(&block.index.get().to_le_bytes());
        entry.push(if block.data.is_empty() { 2 } else { 1 });
        entry.extend_from_slice(&block.timestamp.0.to_le_bytes());
        entry.extend_from_slice(&(block.data.len() as u32).to_le_bytes());
        entry.extend_from_slice(&blake2b_256(&[&block.data])[..16]);
        entry
    };
    blocks.iter().flat_map(entry).collect()
}

/// The body of these blocks.
pub fn body_of(vdisk: &str, sealed_at: u64, blocks: &[Block]) -> Vec<u8> {
    let mut out = BytesMut::new();
    let aggregation = Aggregation {
        name: "The Go Tlog".to_owned(),
        timestamp: Timestamp(sealed_at),
        vdisk_id: super::vdisk(vdisk),
        blocks: blocks.to_vec(),
        prev: Bytes::new(),
    };
    aggregation.encode_into(&mut out);
    out.to_vec()
}

/// The bytes of a record.
pub fn record_of(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    let number = |out: &mut Vec<u8>, number: u64| out.extend_from_slice(&number.to_le_bytes());
    let short = |out: &mut Vec<u8>, number: u32| out.extend_from_slice(&number.to_le_bytes());
    let place = |out: &mut Vec<u8>, place: &PlaceInLog| {
        number(out, place.aggregation.0);
        out.extend_from_slice(&place.id.0);
        short(out, place.blocks);
        short(out, place.of);
        for field in [place.position.generation.0, place.position.sequence.0, place.timestamp.0] {
            number(out, field);
        }
    };
    let name = |out: &mut Vec<u8>, name: &MarkName| {
        out.push(name.as_str().len() as u8);
        out.extend_from_slice(name.as_str().as_bytes());
    };
    match record {
        Record::Mark(mark) => {
            out.push(1);
            place(&mut out, &mark.place);
            name(&mut out, &mark.name);
        }
        Record::MarkRemoved(removed) => {
            out.push(2);
            name(&mut out, removed);
        }
        Record::Checkpoint(checkpoint) => {
            out.push(3);
            place(&mut out, &checkpoint.place);
            short(&mut out, checkpoint.block_size);
            let base = checkpoint.base.map_or(0, |base| base.0);
            for field in [checkpoint.blocks, checkpoint.bytes, base] {
                number(&mut out, field);
            }
            short(&mut out, checkpoint.parts.len() as u32);
            for part in &checkpoint.parts {
                number(&mut out, part.number.0);
                out.extend_from_slice(&part.id.0);
                short(&mut out, part.blocks);
                number(&mut out, part.first.get());
                number(&mut out, part.last.get());
            }
        }
    }
    out
}

/// Nanoseconds that a time reach stands for; none where it says nothing of that kind.
pub fn reach_of(byte: u8) -> Option<u128> {
    match byte {
        0 | 255 => None,
        1 => Some(0),
        n => Some((4 + u128::from(n - 2) % 4) << ((n - 2) / 4)),
    }
}
