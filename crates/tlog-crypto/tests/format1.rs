//! The pair of stored format 1: its bytes are those of existing servers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use proptest::prelude::*;
use tlog_crypto::format1::{AesDecrypter, AesEncrypter, ConfigError, DecryptError};
use tlog_crypto::{OpenError, blake2b_256};

const KEY: &[u8] = b"12345678901234567890123456789012";
const NONCE: &str = "37b8e8a308c354048d245f6d";

fn pair() -> (AesEncrypter, AesDecrypter) {
    (AesEncrypter::new(KEY, NONCE).unwrap(), AesDecrypter::new(KEY, NONCE).unwrap())
}

#[test]
fn a_recorded_aggregation_is_encrypted_to_the_recorded_bytes_and_back() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden");
    let read = |name: &str| std::fs::read(format!("{folder}/{name}"));
    let Ok(plain) = read("aggregation.snappy.bin") else {
        eprintln!("skipped: no recorded bytes beside the repository");
        return;
    };
    let cipher = read("aggregation.encrypted.bin").unwrap();
    let id = String::from_utf8(read("aggregation.key.hex").unwrap()).unwrap();
    let (encrypter, decrypter) = pair();
    assert_eq!(encrypter.encrypt(&plain), cipher);
    assert_eq!(decrypter.decrypt(&cipher).unwrap(), plain);
    assert_eq!(hex::encode(blake2b_256(&[&cipher])), id.trim());
}

#[test]
fn the_bytes_are_aes_256_gcm_with_the_tag_behind() {
    // The first bytes of the recorded aggregation. The key stream does not depend on what is encrypted, so that the
    // ciphertext is the recorded one's; the tag was computed by another implementation.
    let plain =
        hex::decode("980410000000004201051c00000002000400030109050148167b0d12d1140d000000620000002100")
            .unwrap();
    let cipher = hex::decode("2e0523dc9b9343d4fce47d9b28b404ff2db5b96722284de9bd356d7590f6c9f9d9f534b6c93b5d5085e7a75a2fb6ccd40fa1894a71f17bbc").unwrap();
    let (encrypter, decrypter) = pair();
    assert_eq!(hex::encode(encrypter.encrypt(&plain)), hex::encode(&cipher));
    assert_eq!(decrypter.decrypt(&cipher).unwrap(), plain);

    // Test case 14 of the GCM specification, with a key and nonce of zeros.
    let zeros = AesEncrypter::new(&[0; 32], &"00".repeat(12)).unwrap();
    let expected = "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919";
    assert_eq!(hex::encode(zeros.encrypt(&[0; 16])), expected);
}

#[test]
fn a_key_or_nonce_that_cannot_be_is_refused_with_what_is_wrong_and_not_with_what_it_was() {
    let check = |key: &[u8], nonce: &str, expected: ConfigError, message: &str| {
        let errors = [AesEncrypter::new(key, nonce).unwrap_err(), AesDecrypter::new(key, nonce).unwrap_err()];
        for error in errors {
            assert_eq!(error, expected);
            assert_eq!(error.to_string(), message);
        }
    };
    check(b"", NONCE, ConfigError::KeySize { got: 0 }, "the private key has 0 bytes, it must have 32");
    check(
        &KEY[1..],
        NONCE,
        ConfigError::KeySize { got: 31 },
        "the private key has 31 bytes, it must have 32",
    );
    let too_many = "the private key has 64 bytes, it must have 32";
    check(&KEY.repeat(2), NONCE, ConfigError::KeySize { got: 64 }, too_many);
    let at_3 = "the nonce must be hex digits, character 3 is none";
    check(KEY, "37xx", ConfigError::NonceNotHex { at: 3 }, at_3);
    check(KEY, "37é8e8a308c354048d245f6", ConfigError::NonceNotHex { at: 3 }, at_3);
    for digits in [0, 23, 22, 26] {
        let nonce = "0".repeat(digits);
        let message = format!("the nonce has {digits} hex digits, it must have 24");
        check(KEY, &nonce, ConfigError::NonceSize { digits }, &message);
    }
    assert!(AesEncrypter::new(KEY, &NONCE.to_uppercase()).is_ok());
}

#[test]
fn what_was_cut_changed_or_sealed_with_another_key_does_not_decrypt() {
    let (encrypter, decrypter) = pair();
    let cipher = encrypter.encrypt(b"some plain bytes");
    for length in 0..cipher.len() {
        let expected = match length {
            0..16 => DecryptError::TooShort { got: length },
            _ => DecryptError::Rejected(OpenError),
        };
        assert_eq!(decrypter.decrypt(&cipher[..length]).unwrap_err(), expected);
    }
    for bit in 0..cipher.len() * 8 {
        let mut changed = cipher.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decrypter.decrypt(&changed).unwrap_err(), DecryptError::Rejected(OpenError));
    }
    let other_key = AesDecrypter::new(&[1; 32], NONCE).unwrap();
    assert!(other_key.decrypt(&cipher).is_err());
    let other_nonce = AesDecrypter::new(KEY, "37b8e8a308c354048d245f6e").unwrap();
    assert!(other_nonce.decrypt(&cipher).is_err());
}

#[test]
fn debug_shows_no_secret() {
    let (encrypter, decrypter) = pair();
    assert_eq!(format!("{encrypter:?}"), "AesEncrypter(<secret>)");
    assert_eq!(format!("{decrypter:?}"), "AesDecrypter(<secret>)");
}

proptest! {
    #[test]
    fn what_is_encrypted_decrypts(plain in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (encrypter, decrypter) = pair();
        let cipher = encrypter.encrypt(&plain);
        prop_assert_eq!(cipher.len(), plain.len() + 16);
        prop_assert_eq!(decrypter.decrypt(&cipher).unwrap(), plain);
    }
}
