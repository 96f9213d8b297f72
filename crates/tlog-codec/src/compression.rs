//! Snappy where it shrinks, as is where it does not.

use crate::HeaderError;

/// How bytes are compressed before they are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Snappy,
}

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
            value => Err(HeaderError::Unknown {
                what: "compression",
                value,
            }),
        }
    }
}

/// Compresses `plain`, leaving room for `spare` bytes after it.
pub(crate) fn compress(plain: &[u8], spare: usize) -> (Compression, Vec<u8>) {
    let mut packed = Vec::with_capacity(snap::raw::max_compress_len(plain.len()) + spare);
    packed.resize(snap::raw::max_compress_len(plain.len()), 0);
    match snap::raw::Encoder::new().compress(plain, &mut packed) {
        Ok(length) if length < plain.len() => {
            packed.truncate(length);
            (Compression::Snappy, packed)
        }
        // Longer than snappy takes (4 GiB), or it did not shrink.
        _ => {
            packed.clear();
            packed.extend_from_slice(plain);
            (Compression::None, packed)
        }
    }
}

/// The opposite. None where the bytes are not `length` bytes compressed that way; takes no memory beyond `length`.
pub(crate) fn decompress(compression: Compression, packed: Vec<u8>, length: usize) -> Option<Vec<u8>> {
    match compression {
        Compression::None => (packed.len() == length).then_some(packed),
        Compression::Snappy => {
            if snap::raw::decompress_len(&packed).ok()? != length {
                return None;
            }
            snap::raw::Decoder::new().decompress_vec(&packed).ok()
        }
    }
}
