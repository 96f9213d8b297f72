//! Snappy where it is worth it, as is where it is not.

use std::cell::RefCell;

use bytes::BytesMut;

use crate::HeaderError;

/// How bytes are compressed before they are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Snappy,
}

/// Snappy makes at most this many bytes of one: its densest element is a copy of 64 bytes that takes 3. What claims to
/// become more is a lie, and no memory is taken for it.
const SNAPPY_MAX_RATIO: u64 = 22;

impl Compression {
    pub(crate) fn number(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Snappy => 1,
        }
    }

    pub(crate) fn from_number(number: u8) -> Result<Self, HeaderError> {
        match number {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Snappy),
            value => Err(HeaderError::Unknown { what: "compression", value }),
        }
    }

    /// Whether `plain` bytes can have become `packed` bytes this way.
    pub(crate) fn can_turn(self, plain: u64, packed: u64) -> bool {
        match self {
            Compression::None => packed == plain,
            Compression::Snappy => packed < plain && plain <= packed.saturating_mul(SNAPPY_MAX_RATIO),
        }
    }
}

/// What is tried out before it is known whether it shrinks, one for each thread: most data does not, and its memory need not
/// be taken and zeroed each time.
struct Attempt {
    encoder: snap::raw::Encoder,
    packed: Vec<u8>,
}

/// More than this is not kept for the next time.
const KEPT_BYTES: usize = 4 << 20;

thread_local! {
    static ATTEMPT: RefCell<Attempt> =
        RefCell::new(Attempt { encoder: snap::raw::Encoder::new(), packed: Vec::new() });
}

/// What compression has to save to be worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    AnyByte,
    /// An eighth. Less is not worth decompressing for, and single blocks cannot be read out of what is compressed: what stands around the
    /// data of blocks shrinks a little even where the data does not.
    AnEighth,
}

impl Worth {
    fn is_worth(self, plain: usize, packed: usize) -> bool {
        match self {
            Worth::AnyByte => packed < plain,
            Worth::AnEighth => packed < plain && packed <= plain - plain / 8,
        }
    }
}

/// Compresses `plain` where that is worth it. The buffer that comes back has the capacity that `room` asks for its length; where it is
/// not compressed it is `plain` itself, not copied if it has that capacity.
pub(crate) fn compress(
    plain: BytesMut,
    worth: Worth,
    room: impl Fn(usize) -> usize,
) -> (Compression, BytesMut) {
    let packed = ATTEMPT.with_borrow_mut(|Attempt { encoder, packed }| {
        let max = snap::raw::max_compress_len(plain.len());
        if packed.len() < max {
            packed.resize(max, 0);
        }
        // What is longer than snappy takes (4 GiB) does not shrink either.
        let length = encoder.compress(&plain, packed).unwrap_or(usize::MAX);
        let shrunk = packed.get(..length).filter(|_| worth.is_worth(plain.len(), length)).map(|shrunk| {
            let mut fitting = BytesMut::with_capacity(room(length));
            fitting.extend_from_slice(shrunk);
            fitting
        });
        if packed.len() > KEPT_BYTES {
            *packed = Vec::new();
        }
        shrunk
    });
    match packed {
        Some(packed) => (Compression::Snappy, packed),
        None => {
            let mut plain = plain;
            plain.reserve(room(plain.len()).saturating_sub(plain.len()));
            (Compression::None, plain)
        }
    }
}

/// The opposite. None where the bytes are not `length` bytes compressed that way; takes no memory before it knows that
/// they can be.
pub(crate) fn decompress(compression: Compression, packed: Vec<u8>, length: usize) -> Option<Vec<u8>> {
    match compression {
        Compression::None => (packed.len() == length).then_some(packed),
        Compression::Snappy => {
            (snappy_length(&packed)? == length as u64).then_some(())?;
            snap::raw::Decoder::new().decompress_vec(&packed).ok()
        }
    }
}

/// What snappy bytes say that they decompress to; none where they cannot.
pub(crate) fn snappy_length(packed: &[u8]) -> Option<u64> {
    let length = snap::raw::decompress_len(packed).ok()? as u64;
    (length <= (packed.len() as u64).saturating_mul(SNAPPY_MAX_RATIO)).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes in which snappy finds nothing.
    fn noise(length: usize) -> Vec<u8> {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 32) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    fn check(plain: &[u8], expected: Compression) {
        let room = |length: usize| length * 3 / 2 + 16;
        let (compression, packed) = compress(BytesMut::from(plain), Worth::AnyByte, room);
        assert_eq!(compression, expected);
        assert!(packed.capacity() >= room(packed.len()));
        assert!(compression.can_turn(plain.len() as u64, packed.len() as u64));
        for wrong in [plain.len().wrapping_sub(1), plain.len() + 1] {
            assert_eq!(decompress(compression, packed.to_vec(), wrong), None);
        }
        assert_eq!(decompress(compression, packed.to_vec(), plain.len()).as_deref(), Some(plain));
    }

    #[test]
    fn what_does_not_shrink_stays_as_it_is() {
        for length in [1, 2, 15, 16, 100, 5000, 200_000] {
            check(&noise(length), Compression::None);
        }
        check(&[7; 100], Compression::Snappy);
        check(&[noise(4096), vec![0; 3000]].concat(), Compression::Snappy);
    }

    #[test]
    fn what_does_not_shrink_is_not_copied_where_it_has_room() {
        let room = |length: usize| length * 3 / 2 + 16;
        let mut plain = BytesMut::with_capacity(room(5000));
        plain.extend_from_slice(&noise(5000));
        let at = plain.as_ptr();
        assert_eq!(compress(plain, Worth::AnyByte, room).1.as_ptr(), at);
    }

    #[test]
    fn memory_of_a_large_attempt_is_not_kept() {
        let kept = || ATTEMPT.with_borrow(|attempt| attempt.packed.capacity());
        compress(BytesMut::zeroed(KEPT_BYTES * 2), Worth::AnyByte, |length| length);
        assert_eq!(kept(), 0);
        compress(BytesMut::zeroed(100), Worth::AnyByte, |length| length);
        assert!((100..1000).contains(&kept()));
    }

    #[test]
    fn what_shrinks_a_lot_does_not_hold_on_to_a_large_buffer() {
        let (_, packed) = compress(BytesMut::zeroed(1 << 20), Worth::AnyByte, |length| length * 2);
        assert!(packed.capacity() < 1 << 18, "{}", packed.capacity());
    }

    #[test]
    fn the_densest_that_snappy_can_be_is_within_the_bound_and_more_is_refused_unread() {
        let plain = vec![0; 60_000_000];
        let (_, packed) = compress(BytesMut::from(&plain[..]), Worth::AnyByte, |length| length);
        assert_eq!(snappy_length(&packed), Some(60_000_000));
        // A length of 4 GiB - 1, and hardly anything behind it.
        let bomb = vec![0xff, 0xff, 0xff, 0xff, 0x0f, 0xfe, 0, 0];
        assert_eq!(snappy_length(&bomb), None);
        assert_eq!(decompress(Compression::Snappy, bomb, u32::MAX as usize), None);
        assert_eq!(decompress(Compression::Snappy, Vec::new(), 1), None);
    }

    #[test]
    fn what_saves_less_than_an_eighth_is_left_alone_where_that_is_asked_for() {
        let with_zeros = |zeros: usize| [vec![0; zeros], noise(8_000 - zeros)].concat();
        for (zeros, worth, expected) in [
            (500, Worth::AnyByte, Compression::Snappy),
            (500, Worth::AnEighth, Compression::None),
            (2_000, Worth::AnEighth, Compression::Snappy),
            (0, Worth::AnyByte, Compression::None),
        ] {
            let plain = with_zeros(zeros);
            let (compression, packed) = compress(BytesMut::from(&plain[..]), worth, |length| length);
            assert_eq!(compression, expected, "{zeros} zeros, {worth:?}");
            assert_eq!(decompress(compression, packed.into(), plain.len()), Some(plain));
        }
        assert!(!Worth::AnEighth.is_worth(0, 0) && !Worth::AnEighth.is_worth(1, 1));
    }

    proptest! {
        #[test]
        fn any_bytes_decompress_to_what_they_say_or_to_nothing(packed in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(length) = snappy_length(&packed)
                && let Some(plain) = decompress(Compression::Snappy, packed, length as usize)
            {
                prop_assert_eq!(plain.len() as u64, length);
            }
        }

        #[test]
        fn what_was_compressed_comes_back(
            pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), 1usize..20), 0..20)
        ) {
            let plain: Vec<u8> = pieces.iter().flat_map(|(bytes, times)| bytes.repeat(*times)).collect();
            let (compression, packed) = compress(BytesMut::from(&plain[..]), Worth::AnyByte, |length| length);
            prop_assert_eq!(decompress(compression, packed.into(), plain.len()), Some(plain));
        }
    }
}
