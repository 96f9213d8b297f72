//! The keys that an operator keeps.

use std::fmt;

use zeroize::Zeroizing;

use crate::KEY_SIZE;
use crate::hash::keyed;

/// Names a master key without telling anything about it: the first 8 bytes of a BLAKE2b-256 that is keyed with it.
///
/// It stands in the header of everything that was sealed under the key, and may be logged and shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// 32 secret bytes, from which the keys of vdisks are derived. Wiped from memory when dropped, never printed.
pub struct MasterKey {
    secret: Zeroizing<[u8; KEY_SIZE]>,
    id: KeyId,
}

/// A text that is no master key. Says nothing about what the text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyTextError {
    /// Another number of characters than a key has.
    #[error("a master key is {want} hex digits, this has {got} characters", want = 2 * KEY_SIZE)]
    Length {
        /// Characters given.
        got: usize,
    },
    /// A character that is no hex digit.
    #[error("a master key is made of hex digits, character {at} is none")]
    NotHex {
        /// Which one, counted from 1.
        at: usize,
    },
}

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system's random source failed: {0}")]
pub struct RandomSourceError(#[from] getrandom::Error);

impl MasterKey {
    /// Takes the bytes of a key.
    pub fn from_bytes(secret: [u8; KEY_SIZE]) -> Self {
        Self::from_secret(Zeroizing::new(secret))
    }

    /// Takes a key as it stands in a key file: 64 hex digits, of either case.
    pub fn from_hex(text: &str) -> Result<Self, KeyTextError> {
        if let Some(before) = text.chars().position(|c| !c.is_ascii_hexdigit()) {
            return Err(KeyTextError::NotHex { at: before + 1 });
        }
        let mut secret = Zeroizing::new([0; KEY_SIZE]);
        hex::decode_to_slice(text, &mut *secret).map_err(|_| KeyTextError::Length { got: text.len() })?;
        Ok(Self::from_secret(secret))
    }

    /// Makes a new key from the operating system's random source.
    pub fn generate() -> Result<Self, RandomSourceError> {
        let mut secret = Zeroizing::new([0; KEY_SIZE]);
        getrandom::fill(&mut *secret)?;
        Ok(Self::from_secret(secret))
    }

    fn from_secret(secret: Zeroizing<[u8; KEY_SIZE]>) -> Self {
        let digest = keyed(&secret, b"tlog key id v1\0\0", &[]);
        let (id, _) = digest.split_first_chunk().expect("8 is not more than 32");
        let id = KeyId(*id);
        Self { secret, id }
    }

    /// Its public name.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The secret itself, as [`MasterKey::from_hex`] takes it: for writing a key file, never for a log.
    pub fn expose_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.secret.as_slice()))
    }

    pub(crate) fn secret(&self) -> &[u8; KEY_SIZE] {
        &self.secret
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn a_key_survives_its_text_in_either_case() {
        let key = MasterKey::from_hex(TEXT).unwrap();
        assert_eq!(key.expose_hex().as_str(), TEXT);
        assert_eq!(MasterKey::from_hex(&TEXT.to_uppercase()).unwrap().id(), key.id());
        assert_eq!(MasterKey::from_bytes(std::array::from_fn(|i| i as u8)).id(), key.id());
    }

    #[test]
    fn key_ids_never_change_and_differ_between_keys() {
        let key = MasterKey::from_hex(TEXT).unwrap();
        // Stored in the header of every aggregation: another value here means old logs can no longer be read.
        assert_eq!(key.id().to_string(), "ef643ef6737ee842");
        assert_ne!(MasterKey::generate().unwrap().id(), MasterKey::generate().unwrap().id());
    }

    #[test]
    fn a_text_that_is_no_key_is_refused_without_being_repeated() {
        let check = |text: &str, expected: KeyTextError| {
            assert_eq!(MasterKey::from_hex(text).unwrap_err(), expected);
        };
        check("", KeyTextError::Length { got: 0 });
        check(&TEXT[..63], KeyTextError::Length { got: 63 });
        check(&TEXT[..62], KeyTextError::Length { got: 62 });
        check(&format!("{TEXT}00"), KeyTextError::Length { got: 66 });
        check("00ä", KeyTextError::NotHex { at: 3 });
        check(&TEXT.replace("1f", "1g"), KeyTextError::NotHex { at: 64 });
    }

    #[test]
    fn debug_shows_the_id_and_not_the_secret() {
        let key = MasterKey::from_hex(TEXT).unwrap();
        assert_eq!(format!("{key:?}"), format!("MasterKey {{ id: KeyId({}), .. }}", key.id()));
    }
}
