//! Cap'n Proto in stream framing: how long a message is, parsing one, building one.
//!
//! ```text
//! u32 segments - 1 | u32 words in segment 0 | ... | padding to 8 bytes | segment 0 | segment 1 | ...
//! ```
//! All little endian, a word is 8 bytes.

use bytes::{BufMut, BytesMut};
use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions};
use capnp::serialize::{self, NoAllocSliceSegments};

use crate::{DecodeError, FrameError, Limits};

/// What the first bytes of a message tell about its length.
pub(crate) enum FrameLength {
    /// The table has not arrived whole.
    Unknown,
    /// The message takes so many bytes, table and segments.
    Whole(usize),
}

/// Reads the segment table at the start of `bytes`, as far as it is there.
pub(crate) fn frame_length(bytes: &[u8], limits: &Limits) -> Result<FrameLength, FrameError> {
    let word = |at: usize| {
        let bytes = bytes.get(at * 4..at * 4 + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let Some(last_segment) = word(0) else {
        return Ok(FrameLength::Unknown);
    };
    let segments = last_segment.saturating_add(1);
    if segments > limits.max_segments {
        return Err(FrameError::TooManySegments { segments, max: limits.max_segments });
    }
    let table = (segments + 2) / 2 * 8;
    let mut total: usize = 0;
    for segment in 0..segments {
        let Some(words) = word(segment + 1) else {
            return Ok(FrameLength::Unknown);
        };
        total = total.saturating_add(words.saturating_mul(8));
        if total > limits.max_message_bytes() {
            return Err(FrameError::TooLarge { bytes: total, max: limits.max_message_bytes() });
        }
    }
    Ok(FrameLength::Whole(table + total))
}

/// Opens one whole message, and nothing but it, for reading. Nothing is copied.
///
/// `message` may begin at any address: the crate `capnp` is used with its feature `unaligned`.
pub(crate) fn open(mut message: &[u8]) -> Result<Reader<NoAllocSliceSegments<'_>>, DecodeError> {
    // Every field is visited once. Twice the size is room for that, and bounds what a message can make of itself
    // by letting many pointers lead to one part, or by lists of elements that take no room.
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(message.len() / 8 * 2 + 64));
    let reader = serialize::read_message_from_flat_slice_no_alloc(&mut message, options)?;
    if !message.is_empty() {
        return Err(capnp::Error::failed(format!("{} bytes follow the message", message.len())).into());
    }
    Ok(reader)
}

/// Most words that a segment can have; a message that needs more gets several.
const LARGEST_SEGMENT: u32 = 1 << 29;

/// Builds one message in a single segment and appends it to `out`. `words` is how much room it takes at most.
pub(crate) fn build(out: &mut BytesMut, words: usize, fill: impl FnOnce(&mut Builder<HeapAllocator>)) {
    let words = u32::try_from(words).unwrap_or(u32::MAX).min(LARGEST_SEGMENT);
    let mut message = Builder::new(HeapAllocator::new().first_segment_words(words));
    fill(&mut message);
    serialize::write_message(out.writer(), &message).expect("writing to memory cannot fail");
}

/// Words that `bytes` bytes take.
pub(crate) fn words(bytes: usize) -> usize {
    bytes.div_ceil(8)
}
