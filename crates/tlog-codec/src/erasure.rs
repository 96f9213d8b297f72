//! Reed-Solomon over GF(2^8): k data shards, m parity shards, any k of them give the rest.
//!
//! One code for both formats: polynomial 0x11d and a Cauchy matrix, in which the coefficient of parity row i (k <= i < k + m)
//! for data shard j is the inverse of (i XOR j). That is what existing servers write. `rusty_erasure` has exactly this matrix
//! and picks SIMD kernels at run time, with a portable one where the processor has none (docs/adr/0001).

use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use rusty_erasure::{Coder, Matrix};

/// How many shards an aggregation is split into: any `parity` of them may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Redundancy {
    data: u8,
    parity: u8,
}

/// Numbers of shards that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRedundancy {
    /// No data shard.
    #[error("at least one data shard is needed, k = 0 stores nothing")]
    NoData,
    /// More shards than the field has room for.
    #[error("at most 255 shards are possible, {data} data and {parity} parity shards are {total}", total = data.saturating_add(*parity))]
    TooMany {
        /// Data shards asked for.
        data: usize,
        /// Parity shards asked for.
        parity: usize,
    },
}

/// Why shards could not be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ErasureError {
    /// Not enough of them.
    #[error("{present} of {needed} needed shards are there")]
    TooFew {
        /// Shards given.
        present: usize,
        /// Data shards, that is how many are needed.
        needed: usize,
    },
    /// They do not belong together.
    #[error("shards of different lengths, or more of them than k + m")]
    Unequal,
}

impl Redundancy {
    /// `data` shards hold the bytes, `parity` more make up for as many lost ones.
    pub fn new(data: usize, parity: usize) -> Result<Self, InvalidRedundancy> {
        if data == 0 {
            return Err(InvalidRedundancy::NoData);
        }
        match (u8::try_from(data), u8::try_from(parity)) {
            (Ok(k), Ok(m)) if data + parity <= 255 => Ok(Self { data: k, parity: m }),
            _ => Err(InvalidRedundancy::TooMany { data, parity }),
        }
    }

    /// k, the number of data shards.
    pub fn data(self) -> usize {
        usize::from(self.data)
    }

    /// m, the number of parity shards.
    pub fn parity(self) -> usize {
        usize::from(self.parity)
    }

    /// n = k + m.
    pub fn total(self) -> usize {
        self.data() + self.parity()
    }
}

/// The code for one redundancy.
#[derive(Clone, Debug)]
pub(crate) struct ErasureCode {
    redundancy: Redundancy,
    /// Its tables, made when first needed: a reader that has all data shards computes nothing.
    coder: OnceLock<Coder>,
}

impl ErasureCode {
    pub(crate) fn new(redundancy: Redundancy) -> Self {
        Self { redundancy, coder: OnceLock::new() }
    }

    /// None without parity: there is nothing to compute then.
    fn coder(&self) -> Option<&Coder> {
        let Redundancy { data, parity } = self.redundancy;
        let make = || {
            Matrix::cauchy(data.into(), parity.into())
                .and_then(rusty_erasure::coder)
                .expect("1 <= k, 1 <= m and k + m <= 255 hold here")
        };
        (parity > 0).then(|| self.coder.get_or_init(make))
    }

    pub(crate) fn redundancy(&self) -> Redundancy {
        self.redundancy
    }

    /// Length of each shard of a body of so many bytes.
    pub(crate) fn shard_len(&self, body: usize) -> usize {
        body.div_ceil(self.redundancy.data())
    }

    /// Bytes that all n shards of a body of so many bytes take together. A body with that capacity is split without being
    /// copied.
    pub(crate) fn split_len(&self, body: usize) -> usize {
        self.shard_len(body).saturating_mul(self.redundancy.total())
    }

    /// Splits `body`, zero-padded, into all n shards, which share its memory.
    pub(crate) fn split(&self, mut body: BytesMut) -> Vec<Bytes> {
        let len = self.shard_len(body.len());
        let data_bytes = len * self.redundancy.data();
        body.resize(data_bytes + len * self.redundancy.parity(), 0);
        if len == 0 {
            return vec![Bytes::new(); self.redundancy.total()];
        }
        if let Some(coder) = self.coder() {
            let (data, parity) = body.split_at_mut(data_bytes);
            let data: Vec<&[u8]> = data.chunks_exact(len).collect();
            let mut parity: Vec<&mut [u8]> = parity.chunks_exact_mut(len).collect();
            coder.encode(&data, &mut parity).expect("k and m chunks of one length each were just made");
        }
        let mut body = body.freeze();
        (0..self.redundancy.total()).map(|_| body.split_to(len)).collect()
    }

    /// All n shards from any k of them, in order. Those that are there are not copied.
    pub(crate) fn complete(&self, shards: &[Option<Bytes>]) -> Result<Vec<Bytes>, ErasureError> {
        self.rebuild(shards, self.redundancy.total())
    }

    /// The data shards from any k of n, one after the other, padding included.
    pub(crate) fn join(&self, shards: &[Option<Bytes>]) -> Result<BytesMut, ErasureError> {
        let data = self.rebuild(shards, self.redundancy.data())?;
        let mut body = BytesMut::with_capacity(data.iter().map(Bytes::len).sum());
        for shard in &data {
            body.extend_from_slice(shard);
        }
        Ok(body)
    }

    /// The first `wanted` shards; those that are missing are computed.
    fn rebuild(&self, shards: &[Option<Bytes>], wanted: usize) -> Result<Vec<Bytes>, ErasureError> {
        let total = self.redundancy.total();
        let mut present = shards.iter().flatten();
        let len = present.next().map_or(0, Bytes::len);
        if shards.len() != total || present.any(|shard| shard.len() != len) {
            return Err(ErasureError::Unequal);
        }
        let missing: Vec<usize> =
            shards.iter().take(wanted).enumerate().filter(|(_, s)| s.is_none()).map(|(i, _)| i).collect();
        let present = shards.iter().flatten().count();
        let too_few = ErasureError::TooFew { present, needed: self.redundancy.data() };
        if present < self.redundancy.data() {
            return Err(too_few);
        }
        let mut made = vec![BytesMut::zeroed(len); missing.len()];
        if !missing.is_empty() {
            let coder = self.coder().ok_or(too_few)?;
            let shards: Vec<Option<&[u8]>> = shards.iter().map(|shard| shard.as_deref()).collect();
            let mut out: Vec<&mut [u8]> = made.iter_mut().map(|shard| shard.as_mut()).collect();
            coder.recover(&shards, &missing, &mut out).map_err(|_| ErasureError::Unequal)?;
        }
        let mut made = made.into_iter().map(BytesMut::freeze);
        Ok(shards.iter().take(wanted).map_while(|shard| shard.clone().or_else(|| made.next())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reed_solomon_erasure::galois_8;

    fn split(data: usize, parity: usize, body: &[u8]) -> (ErasureCode, Vec<Bytes>) {
        let code = ErasureCode::new(Redundancy::new(data, parity).unwrap());
        let shards = code.split(BytesMut::from(body));
        (code, shards)
    }

    /// The Cauchy rows worked out with another library's field arithmetic.
    fn parity_by_definition(data: &[Bytes], parity: usize) -> Vec<Vec<u8>> {
        let k = data.len();
        let row = |i: usize| {
            let mut out = vec![0; data[0].len()];
            for (j, shard) in data.iter().enumerate() {
                galois_8::mul_slice_xor(galois_8::div(1, (i ^ j) as u8), shard, &mut out);
            }
            out
        };
        (k..k + parity).map(row).collect()
    }

    proptest! {
        #[test]
        fn parity_is_that_of_the_cauchy_matrix(
            body in prop::collection::vec(any::<u8>(), 1..3000), data in 1usize..20, parity in 1usize..8
        ) {
            let (_, shards) = split(data, parity, &body);
            prop_assert_eq!(parity_by_definition(&shards[..data], parity), &shards[data..]);
        }

        #[test]
        fn any_k_shards_give_everything_back(
            body in prop::collection::vec(any::<u8>(), 0..3000), data in 1usize..12, parity in 0usize..6, seed: u64
        ) {
            let (code, shards) = split(data, parity, &body);
            let mut left: Vec<Option<Bytes>> = shards.iter().cloned().map(Some).collect();
            let mut order: Vec<usize> = (0..data + parity).collect();
            order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
            for lost in order.into_iter().take(parity) {
                left[lost] = None;
            }
            prop_assert_eq!(&code.complete(&left).unwrap(), &shards);
            prop_assert_eq!(&code.join(&left).unwrap()[..body.len()], &body[..]);
        }
    }

    #[test]
    fn one_shard_too_few_is_an_error_that_counts() {
        let (code, shards) = split(4, 2, &[7; 100]);
        let mut left: Vec<Option<Bytes>> = shards.into_iter().map(Some).collect();
        left[0] = None;
        left[3] = None;
        left[5] = None;
        assert_eq!(code.complete(&left), Err(ErasureError::TooFew { present: 3, needed: 4 }));
        left[1] = Some(Bytes::from_static(&[1]));
        assert_eq!(code.complete(&left), Err(ErasureError::Unequal));
    }

    #[test]
    fn any_k_of_255_shards_give_everything_back() {
        let body: Vec<u8> = (0..5000u32).map(|i| (i * 31 % 251) as u8).collect();
        for (data, parity) in [(1, 254), (128, 127), (254, 1), (255, 0)] {
            let (code, shards) = split(data, parity, &body);
            assert_eq!(shards.len(), 255);
            let keep = |i: usize| i >= parity; // all data shards that can be lost are
            let left: Vec<_> = (0..255).map(|i| keep(i).then(|| shards[i].clone())).collect();
            assert_eq!(code.complete(&left).unwrap(), shards, "{data} + {parity}");
        }
    }

    #[test]
    fn nothing_split_is_nothing_joined() {
        let (code, shards) = split(4, 2, &[]);
        let mut left: Vec<_> = shards.into_iter().map(Some).collect();
        left[1] = None;
        assert_eq!(code.join(&left).unwrap().len(), 0);
        assert_eq!(code.complete(&left).unwrap(), vec![Bytes::new(); 6]);
        let nothing = vec![None; 6];
        let too_few = ErasureError::TooFew { present: 0, needed: 4 };
        assert_eq!(code.join(&nothing).unwrap_err(), too_few);
        assert_eq!(code.join(&nothing[1..]).unwrap_err(), ErasureError::Unequal);
    }

    #[test]
    fn a_body_with_room_for_all_shards_is_not_copied() {
        let code = ErasureCode::new(Redundancy::new(4, 2).unwrap());
        let mut body = BytesMut::with_capacity(code.split_len(1001));
        body.resize(1001, 7);
        let at = body.as_ptr();
        assert_eq!(code.split(body)[0].as_ptr(), at);
    }

    #[test]
    fn the_rows_of_4_plus_2_are_those_of_existing_servers() {
        let unit = |j: usize| (0..4).map(|i| u8::from(i == j)).collect::<Vec<u8>>();
        let columns: Vec<Vec<u8>> =
            (0..4).map(|j| split(4, 2, &unit(j)).1[4..].iter().map(|s| s[0]).collect()).collect();
        let row = |i: usize| columns.iter().map(|column| column[i]).collect::<Vec<u8>>();
        assert_eq!(row(0), [0x47, 0xa7, 0x7a, 0xba]);
        assert_eq!(row(1), [0xa7, 0x47, 0xba, 0x7a]);
    }

    #[test]
    fn every_kernel_of_this_processor_makes_the_same_shards() {
        let body: Vec<u8> = (0..10_007u32).map(|i| (i * 31 % 251) as u8).collect();
        let (code, shards) = split(5, 3, &body);
        let data: Vec<&[u8]> = shards[..5].iter().map(|s| &s[..]).collect();
        for name in ["scalar", "ssse3", "avx2", "gfni", "neon"] {
            let Some(kernels) = rusty_erasure::kernels_named(name) else {
                continue;
            };
            let coder = Coder::with_kernels(Matrix::cauchy(5, 3).unwrap(), kernels).unwrap();
            let mut parity = vec![vec![0; data[0].len()]; 3];
            coder.encode(&data, &mut parity.iter_mut().map(|p| &mut p[..]).collect::<Vec<_>>()).unwrap();
            assert_eq!(parity, &shards[5..], "{name}");
        }
        assert_eq!(code.redundancy().total(), 8);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(Redundancy::new(0, 2), Err(InvalidRedundancy::NoData));
        assert_eq!(Redundancy::new(200, 56), Err(InvalidRedundancy::TooMany { data: 200, parity: 56 }));
        assert!(Redundancy::new(253, 2).is_ok());
        assert!(Redundancy::new(255, 0).is_ok());
        assert!(Redundancy::new(1, 254).is_ok());
        assert!(Redundancy::new(1, 255).is_err());
        for (data, parity) in [(usize::MAX, usize::MAX), (usize::MAX, 1), (1, usize::MAX)] {
            let refused = Redundancy::new(data, parity).unwrap_err();
            assert!(refused.to_string().contains("255"), "{refused}");
        }
    }
}
