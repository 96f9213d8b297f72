//! How existing servers seal what they store: AES-256-GCM, no associated data, the tag behind the ciphertext, and
//! **one nonce for everything**.
//!
//! # Unsafe: not for anything new
//!
//! GCM is a stream cipher with a tag. Under one key and nonce the key stream is always the same: whoever holds two
//! aggregations learns the XOR of their contents without any key, and can work out the authentication key, after
//! which any forged aggregation passes for real. This module exists to read history that was written this way, and to
//! write beside old servers and readers that know nothing else. Everything new is sealed under a
//! [`DataKey`](crate::DataKey).

use std::fmt;

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};

use crate::{OpenError, TAG_SIZE};

/// Bytes of the private key.
pub const KEY_SIZE: usize = crate::KEY_SIZE;

/// Bytes of the nonce; its text has twice as many hex digits.
pub const NONCE_SIZE: usize = crate::NONCE_SIZE;

/// A private key or nonce that cannot be used. Never repeats either: a key pasted in the wrong place stays a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The private key is too short or too long.
    #[error("the private key has {got} bytes, it must have {KEY_SIZE}")]
    KeySize {
        /// Bytes given.
        got: usize,
    },
    /// The nonce has a character that is no hex digit.
    #[error("the nonce must be hex digits, character {at} is none")]
    NonceNotHex {
        /// Which one, counted from 1.
        at: usize,
    },
    /// The nonce is too short or too long.
    #[error("the nonce has {digits} hex digits, it must have {want}", want = 2 * NONCE_SIZE)]
    NonceSize {
        /// Hex digits given.
        digits: usize,
    },
}

/// Why bytes were not decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// Fewer bytes than the tag alone has.
    #[error("{got} bytes are no ciphertext, the tag alone has {TAG_SIZE}")]
    TooShort {
        /// Bytes given.
        got: usize,
    },
    /// The tag does not fit.
    #[error(transparent)]
    Rejected(#[from] OpenError),
}

/// Encrypts as existing servers do. Read what the [module](self) says first.
#[derive(Debug)]
pub struct AesEncrypter(FixedNonce);

/// Decrypts what existing servers stored.
#[derive(Debug)]
pub struct AesDecrypter(FixedNonce);

impl AesEncrypter {
    /// Takes the private key, as bytes, and the nonce, in hex of either case.
    pub fn new(private_key: &[u8], hex_nonce: &str) -> Result<Self, ConfigError> {
        FixedNonce::new(private_key, hex_nonce).map(Self)
    }

    /// The ciphertext, with the tag behind it.
    ///
    /// # Panics
    ///
    /// Where `plain` is larger than 64 GiB, which a Cap'n Proto message of one segment cannot be.
    pub fn encrypt(&self, plain: &[u8]) -> Vec<u8> {
        let FixedNonce { cipher, nonce } = &self.0;
        let mut out = Vec::with_capacity(plain.len() + TAG_SIZE);
        out.extend_from_slice(plain);
        let tag = cipher
            .encrypt_inout_detached(nonce.into(), &[], InOutBuf::from(&mut out[..]))
            .expect("AES-GCM encrypts anything up to 64 GiB");
        out.extend_from_slice(&tag);
        out
    }
}

impl AesDecrypter {
    /// Takes the private key, as bytes, and the nonce, in hex of either case.
    pub fn new(private_key: &[u8], hex_nonce: &str) -> Result<Self, ConfigError> {
        FixedNonce::new(private_key, hex_nonce).map(Self)
    }

    /// The plaintext of `cipher`, a ciphertext with the tag behind it.
    pub fn decrypt(&self, cipher: &[u8]) -> Result<Vec<u8>, DecryptError> {
        let too_short = DecryptError::TooShort { got: cipher.len() };
        let (body, tag) = cipher.split_last_chunk::<TAG_SIZE>().ok_or(too_short)?;
        let mut out = body.to_vec();
        self.0
            .cipher
            .decrypt_inout_detached(&self.0.nonce.into(), &[], InOutBuf::from(&mut out[..]), tag.into())
            .map_err(|_| OpenError)?;
        Ok(out)
    }
}

struct FixedNonce {
    cipher: Aes256Gcm,
    nonce: [u8; NONCE_SIZE],
}

impl FixedNonce {
    fn new(private_key: &[u8], hex_nonce: &str) -> Result<Self, ConfigError> {
        let key: &[u8; KEY_SIZE] =
            private_key.try_into().map_err(|_| ConfigError::KeySize { got: private_key.len() })?;
        if let Some(before) = hex_nonce.chars().position(|c| !c.is_ascii_hexdigit()) {
            return Err(ConfigError::NonceNotHex { at: before + 1 });
        }
        let mut nonce = [0; NONCE_SIZE];
        hex::decode_to_slice(hex_nonce, &mut nonce)
            .map_err(|_| ConfigError::NonceSize { digits: hex_nonce.len() })?;
        Ok(Self { cipher: Aes256Gcm::new(key.into()), nonce })
    }
}

impl fmt::Debug for FixedNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}
