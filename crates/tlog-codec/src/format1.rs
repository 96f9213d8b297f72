//! Format 1: what existing servers of protocol 1.1.0-alpha write and read.
//!
//! ```text
//! TlogAggregation -> snappy -> AES-256-GCM, fixed nonce -> id = BLAKE2b-256 of the ciphertext
//!   -> u64 little-endian length | ciphertext | zeros to a multiple of k -> k data shards -> m parity shards
//! ```
//! On every store the shard stands under its id, and the last ids of a vdisk under [`LAST_HASH_PREFIX`] and its name.
//! Under the fixed nonce two aggregations leak the XOR of their plaintexts and forging becomes feasible; this exists to read
//! old history and to live beside old readers.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tlog_crypto::blake2b_256;
use tlog_proto::{Aggregation, AggregationError, AggregationId};

use crate::MAX_BODY_BYTES;
use crate::compression::{Compression, decompress, snappy_length};
use crate::erasure::{ErasureCode, ErasureError, Redundancy};
use crate::seal::check_size;

/// What [`Keys`] are made of, and why they cannot be.
pub use tlog_crypto::format1::{AesDecrypter, AesEncrypter, ConfigError};

/// Key of the list of a vdisk's last aggregations, in front of its name.
pub const LAST_HASH_PREFIX: &str = "last_hash_";

/// How many ids that list keeps.
pub const LAST_HASHES: usize = 5;

/// The private key and the nonce of a server that writes format 1. Cheap to clone, and never shown.
#[derive(Clone, Debug)]
pub struct Keys {
    encrypter: Arc<AesEncrypter>,
    decrypter: Arc<AesDecrypter>,
}

impl Keys {
    /// Takes the private key, as 32 bytes, and the nonce, in hex of either case.
    pub fn new(private_key: &[u8], hex_nonce: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            encrypter: Arc::new(AesEncrypter::new(private_key, hex_nonce)?),
            decrypter: Arc::new(AesDecrypter::new(private_key, hex_nonce)?),
        })
    }

    /// What seals.
    pub fn encrypter(&self) -> &AesEncrypter {
        &self.encrypter
    }

    /// What opens.
    pub fn decrypter(&self) -> &AesDecrypter {
        &self.decrypter
    }
}

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

/// An aggregation that [`decode`] would refuse to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an aggregation of {bytes} bytes is larger than can be stored")]
pub struct TooLarge {
    /// Bytes of its message.
    pub bytes: u64,
}

/// Encodes one aggregation; its `prev` names the one before it.
///
/// # Panics
///
/// Where its blocks take more than [`MAX_BODY_BYTES`]. Where nothing else bounds them, use [`try_encode`].
pub fn encode(aggregation: &Aggregation, encrypter: &AesEncrypter, redundancy: Redundancy) -> Encoded {
    try_encode(aggregation, encrypter, redundancy).expect("the caller bounds the bytes of an aggregation")
}

/// Encodes one aggregation; its `prev` names the one before it.
pub fn try_encode(
    aggregation: &Aggregation,
    encrypter: &AesEncrypter,
    redundancy: Redundancy,
) -> Result<Encoded, TooLarge> {
    check_size(&aggregation.blocks).map_err(|bytes| TooLarge { bytes })?;
    let mut message = BytesMut::new();
    aggregation.encode_into(&mut message);
    let bytes = message.len() as u64;
    let packed = snap::raw::Encoder::new().compress_vec(&message).map_err(|_| TooLarge { bytes })?;
    Ok(split(&encrypter.encrypt(&packed), redundancy))
}

/// Splits a ciphertext into shards.
pub fn split(ciphertext: &[u8], redundancy: Redundancy) -> Encoded {
    Encoded {
        id: AggregationId(blake2b_256(&[ciphertext])),
        shards: shards_of(ciphertext, &ErasureCode::new(redundancy)),
    }
}

fn shards_of(ciphertext: &[u8], code: &ErasureCode) -> Vec<Bytes> {
    let mut body = BytesMut::with_capacity(code.split_len(8 + ciphertext.len()));
    body.extend_from_slice(&(ciphertext.len() as u64).to_le_bytes());
    body.extend_from_slice(ciphertext);
    code.split(body)
}

/// Puts the ciphertext with this id together from the shards that are there, by index.
///
/// A shard of format 1 does not prove itself: where one of them is damaged, this fails, mostly with
/// [`Format1Error::WrongId`]; [`join_any`] then finds out which one.
pub fn join(
    id: AggregationId,
    shards: &[Option<Bytes>],
    redundancy: Redundancy,
) -> Result<Bytes, Format1Error> {
    join_with(&ErasureCode::new(redundancy), id, shards)
}

fn join_with(code: &ErasureCode, id: AggregationId, shards: &[Option<Bytes>]) -> Result<Bytes, Format1Error> {
    let mut body = code.join(shards)?.freeze();
    let length = body.try_get_u64_le().map_err(|_| Format1Error::Length(0))?;
    if length > body.len() as u64 {
        return Err(Format1Error::Length(length));
    }
    body.truncate(length as usize);
    let actual = AggregationId(blake2b_256(&[&body]));
    if actual == id { Ok(body) } else { Err(Format1Error::WrongId { expected: id, actual }) }
}

/// What [`join_any`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// What was asked for, proven by its id.
    pub ciphertext: Bytes,
    /// All n shards as they must be, made again.
    pub shards: Vec<Bytes>,
    /// Indices of the given shards that are not as they must be, rising. Those that were not given are not in it.
    pub damaged: Vec<usize>,
}

/// Like [`join`], but finds the way around damaged shards: leaves out one after the other, then two at a time, and so on,
/// until what is left makes up the ciphertext with this id. After all of them together at most `max_tries` choices of k, each
/// of which costs as much as a [`join`]. For 4 + 2 there are 15, of which the first 5 find any one that is damaged; for
/// 10 + 4 there are 1001, and the first 11 do.
///
/// The error, where nothing fits, is that of the first try: of all shards.
pub fn join_any(
    id: AggregationId,
    shards: &[Option<Bytes>],
    redundancy: Redundancy,
    max_tries: usize,
) -> Result<Joined, Format1Error> {
    let code = ErasureCode::new(redundancy);
    let first_error = match join_with(&code, id, shards) {
        Ok(ciphertext) => return Ok(Joined::new(ciphertext, shards, &code)),
        Err(error) => error,
    };
    let present: Vec<usize> = (0..shards.len()).filter(|i| matches!(shards.get(*i), Some(Some(_)))).collect();
    if shards.len() != redundancy.total() || present.len() < redundancy.data() {
        return Err(first_error);
    }
    for left_in in choices(present.len(), redundancy.data()).take(max_tries) {
        let mut left = vec![None; shards.len()];
        for index in left_in.iter().filter_map(|at| present.get(*at)) {
            if let (Some(to), Some(shard)) = (left.get_mut(*index), shards.get(*index)) {
                to.clone_from(shard);
            }
        }
        if let Ok(ciphertext) = join_with(&code, id, &left) {
            return Ok(Joined::new(ciphertext, shards, &code));
        }
    }
    Err(first_error)
}

impl Joined {
    fn new(ciphertext: Bytes, given: &[Option<Bytes>], code: &ErasureCode) -> Self {
        let shards = shards_of(&ciphertext, code);
        let damaged = given
            .iter()
            .zip(&shards)
            .enumerate()
            .filter(|(_, (given, whole))| given.as_ref().is_some_and(|given| given != *whole))
            .map(|(index, _)| index)
            .collect();
        Self { ciphertext, shards, damaged }
    }
}

/// Every choice of `k` of 0..n, each once: first those that pass over nothing, then those that pass over one before their
/// last, two, and so on. A few damaged ones are so avoided early.
fn choices(n: usize, k: usize) -> impl Iterator<Item = Vec<usize>> {
    // With `over` passed over the last is k - 1 + over, and what is passed over is any choice of those before it.
    (0..=n.saturating_sub(k)).flat_map(move |over| {
        let last = (k + over).saturating_sub(1);
        let mut passed_over: Option<Vec<usize>> = Some((0..over).collect());
        std::iter::from_fn(move || {
            let current = passed_over.take()?;
            passed_over = next_choice(&current, last);
            Some((0..=last).filter(|at| !current.contains(at)).collect())
        })
    })
}

/// The choice of numbers below `n` after this one, in lexicographic order.
fn next_choice(choice: &[usize], n: usize) -> Option<Vec<usize>> {
    let mut next = choice.to_vec();
    for at in (0..choice.len()).rev() {
        let highest = n + at - choice.len();
        if let Some(number) = next.get(at).copied().filter(|number| *number < highest) {
            for (slot, value) in next.iter_mut().skip(at).zip(number + 1..) {
                *slot = value;
            }
            return Some(next);
        }
    }
    None
}

/// Reads the aggregation with this id from the shards that are there, by index.
pub fn decode(
    id: AggregationId,
    shards: &[Option<Bytes>],
    redundancy: Redundancy,
    decrypter: &AesDecrypter,
) -> Result<Aggregation, Format1Error> {
    open(&join(id, shards, redundancy)?, decrypter)
}

/// Like [`decode`], but finds the way around damaged shards, as [`join_any`] does; answers their indices too.
pub fn decode_any(
    id: AggregationId,
    shards: &[Option<Bytes>],
    redundancy: Redundancy,
    decrypter: &AesDecrypter,
    max_tries: usize,
) -> Result<(Aggregation, Vec<usize>), Format1Error> {
    let joined = join_any(id, shards, redundancy, max_tries)?;
    Ok((open(&joined.ciphertext, decrypter)?, joined.damaged))
}

/// Reads an aggregation from its ciphertext.
pub fn open(ciphertext: &[u8], decrypter: &AesDecrypter) -> Result<Aggregation, Format1Error> {
    let packed = decrypter.decrypt(ciphertext).map_err(|_| Format1Error::Decrypt)?;
    let length =
        snappy_length(&packed).filter(|length| *length <= MAX_BODY_BYTES).ok_or(Format1Error::Decompress)?;
    let message = decompress(Compression::Snappy, packed, length as usize).ok_or(Format1Error::Decompress)?;
    Ok(Aggregation::decode(&message)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_comes_once_and_those_that_pass_over_little_come_first() {
        for n in 0..9usize {
            for k in 1..=n {
                let all: Vec<Vec<usize>> = choices(n, k).collect();
                let mut expected: Vec<Vec<usize>> = (0u32..1 << n)
                    .filter(|set| set.count_ones() as usize == k)
                    .map(|set| (0..n).filter(|i| set >> i & 1 == 1).collect())
                    .collect();
                let passed_over = |choice: &[usize]| choice[k - 1] + 1 - k;
                assert!(all.is_sorted_by_key(|choice| passed_over(choice)), "{all:?}");
                let mut sorted = all.clone();
                sorted.sort();
                expected.sort();
                assert_eq!(sorted, expected, "{k} of {n}");
            }
        }
        assert_eq!(choices(6, 4).next(), Some(vec![0, 1, 2, 3]));
    }
}
