//! Format 1: what existing servers of protocol 1.1.0-alpha write and read.
//!
//! ```text
//! TlogAggregation -> snappy -> AES-256-GCM, fixed nonce -> id = BLAKE2b-256 of the ciphertext
//!   -> u64 little-endian length | ciphertext | zeros to a multiple of k -> k data shards -> m parity shards
//! ```
//! On every store the shard stands under its id, and the last ids of a vdisk under [`LAST_HASH_PREFIX`] and its name.
//! Under the fixed nonce two aggregations leak the XOR of their plaintexts and forging becomes feasible; this exists to read
//! old history and to live beside old readers.

use bytes::{Buf, Bytes, BytesMut};
use tlog_crypto::blake2b_256;
use tlog_crypto::format1::{AesDecrypter, AesEncrypter};
use tlog_proto::{Aggregation, AggregationError, AggregationId};

use crate::MAX_BODY_BYTES;
use crate::erasure::{ErasureCode, ErasureError, Redundancy};

/// Key of the list of a vdisk's last aggregations, in front of its name.
pub const LAST_HASH_PREFIX: &str = "last_hash_";

/// How many ids that list keeps.
pub const LAST_HASHES: usize = 5;

/// An aggregation as existing servers store it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Key of its shards.
    pub id: AggregationId,
    /// Shard i is for store i.
    pub shards: Vec<Bytes>,
}

/// Why an aggregation of format 1 cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Format1Error {
    /// Not enough shards, or shards that do not fit together.
    #[error(transparent)]
    Erasure(#[from] ErasureError),
    /// The length in front of the ciphertext cannot be.
    #[error("the length in front of the ciphertext, {0}, cannot be")]
    Length(u64),
    /// The ciphertext is not the one that was asked for.
    #[error("the shards make up {actual}, not {expected}: one of them is damaged")]
    WrongId {
        /// The id asked for.
        expected: AggregationId,
        /// The id of what they make up.
        actual: AggregationId,
    },
    /// Wrong key or nonce.
    #[error("it does not open under this private key and nonce")]
    Decrypt,
    /// Not snappy, or larger than can be.
    #[error("it does not decompress")]
    Decompress,
    /// Not an aggregation of whole blocks.
    #[error(transparent)]
    Aggregation(#[from] AggregationError),
}

/// Encodes one aggregation; its `prev` names the one before it.
pub fn encode(aggregation: &Aggregation, encrypter: &AesEncrypter, redundancy: Redundancy) -> Encoded {
    let mut message = BytesMut::new();
    aggregation.encode_into(&mut message);
    split(&encrypter.encrypt(&compress(&message)), redundancy)
}

fn compress(message: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; snap::raw::max_compress_len(message.len())];
    let length = snap::raw::Encoder::new()
        .compress(message, &mut packed)
        .expect("the output has room, and messages stay below the 4 GiB that snappy takes");
    packed.truncate(length);
    packed
}

/// Splits a ciphertext into shards.
pub fn split(ciphertext: &[u8], redundancy: Redundancy) -> Encoded {
    let mut body = BytesMut::with_capacity(8 + ciphertext.len());
    body.extend_from_slice(&(ciphertext.len() as u64).to_le_bytes());
    body.extend_from_slice(ciphertext);
    Encoded {
        id: AggregationId(blake2b_256(&[ciphertext])),
        shards: ErasureCode::new(redundancy).split(body),
    }
}

/// Puts the ciphertext with this id together from the shards that are there, by index.
///
/// A shard of format 1 does not prove itself: where one of them is damaged, this fails with [`Format1Error::WrongId`], and
/// the caller leaves out one after the other.
pub fn join(
    id: AggregationId,
    shards: &[Option<Bytes>],
    redundancy: Redundancy,
) -> Result<Bytes, Format1Error> {
    let mut body = ErasureCode::new(redundancy).join(shards)?.freeze();
    let length = body.try_get_u64_le().map_err(|_| Format1Error::Length(0))?;
    if length > body.len() as u64 {
        return Err(Format1Error::Length(length));
    }
    body.truncate(length as usize);
    let actual = AggregationId(blake2b_256(&[&body]));
    if actual == id {
        Ok(body)
    } else {
        Err(Format1Error::WrongId { expected: id, actual })
    }
}

/// Reads the aggregation with this id from the shards that are there, by index.
pub fn decode(
    id: AggregationId,
    shards: &[Option<Bytes>],
    redundancy: Redundancy,
    decrypter: &AesDecrypter,
) -> Result<Aggregation, Format1Error> {
    let packed = decrypter
        .decrypt(&join(id, shards, redundancy)?)
        .map_err(|_| Format1Error::Decrypt)?;
    let length = snap::raw::decompress_len(&packed).map_err(|_| Format1Error::Decompress)?;
    if length as u64 > MAX_BODY_BYTES {
        return Err(Format1Error::Decompress);
    }
    let message = snap::raw::Decoder::new()
        .decompress_vec(&packed)
        .map_err(|_| Format1Error::Decompress)?;
    Ok(Aggregation::decode(&message)?)
}
