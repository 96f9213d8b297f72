//! The keys of vdisks, and what is sealed under them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use aes::Aes256;
use ctr::cipher::{InnerIvInit, KeyInit, StreamCipher, StreamCipherCoreWrapper, StreamCipherSeek};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::hash::keyed;
use crate::{KeyId, MasterKey, NONCE_SIZE, TAG_SIZE};

/// Most messages that one data key seals.
///
/// With random 96-bit nonces, NIST SP 800-38D (section 8.3) allows 2^32: the chance that two of them share a nonce
/// stays below 2^-32.
pub const MAX_SEALS_PER_KEY: u64 = 1 << 32;

/// What seals the aggregations of one vdisk: an AES-256-GCM key derived from a master key.
///
/// ```text
/// key = BLAKE2b-256(key = master key, personalisation = "tlog data key v1",
///                   u64 LE length of the vdisk id | vdisk id | u64 LE window)
/// ```
///
/// `window` makes several keys of one vdisk, for whoever would seal more than [`MAX_SEALS_PER_KEY`] messages: a
/// log moves to the next window before it gets there. The AES key schedule is made once. Unlike a
/// [`MasterKey`] it is not wiped when dropped: `ring`, which has it, does not do that (docs/adr/0010).
///
/// The count of seals is that of this value, not of the key: a second value derived from the same inputs begins at
/// zero. Make one, share it, and choose the window from something that outlives the process.
pub struct DataKey {
    cipher: LessSafeKey,
    /// The same key without the authentication, for parts of what it sealed.
    stream: Aes256,
    master: KeyId,
    window: u64,
    seals: AtomicU64,
}

/// Why something is not sealed. It is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key has sealed as many messages as it may.
    #[error(
        "the data key of window {window} under master key {master} has sealed {MAX_SEALS_PER_KEY} messages, no more \
         are safe; go on with the next window"
    )]
    KeyExhausted {
        /// The master key it is derived from.
        master: KeyId,
        /// Its window.
        window: u64,
    },
    /// More than AES-GCM can seal at once, 64 GiB.
    #[error("{bytes} bytes are more than one seal can hold")]
    TooLong {
        /// Bytes given.
        bytes: usize,
    },
}

/// The seal does not fit: another key, nonce or associated data, or the bytes were changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the seal does not fit: the bytes were changed, or were sealed under another key or in another place"
)]
pub struct OpenError;

/// No seal has bytes there: it has at most 64 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes beyond what one seal can have")]
pub struct BeyondSeal;

type CtrCore = ctr::CtrCore<Aes256, ctr::flavors::Ctr32BE>;
type Ctr32BE = StreamCipherCoreWrapper<CtrCore>;

impl DataKey {
    /// Derives the key of a vdisk. The same inputs give the same key, for ever.
    pub fn derive(master: &MasterKey, vdisk_id: &[u8], window: u64) -> Self {
        let length = vdisk_id.len() as u64;
        let parts = [&length.to_le_bytes()[..], vdisk_id, &window.to_le_bytes()[..]];
        let key = keyed(master.secret(), b"tlog data key v1", &parts);
        let cipher = UnboundKey::new(&AES_256_GCM, &*key).expect("an AES-256 key has 32 bytes");
        let cipher = LessSafeKey::new(cipher); // less safe as the caller chooses the nonces
        let stream = Aes256::new((&*key).into());
        Self { cipher, stream, master: master.id(), window, seals: AtomicU64::new(0) }
    }

    /// Encrypts `bytes` where they are and answers the tag that proves them and `associated`.
    ///
    /// A nonce must never be used twice under one key, not even after a restart: take it from a random source. Can be
    /// called from several threads at once.
    pub fn seal_in_place(
        &self,
        bytes: &mut [u8],
        nonce: [u8; NONCE_SIZE],
        associated: &[u8],
    ) -> Result<[u8; TAG_SIZE], SealError> {
        // Taken before the work and never given back, so that no number of threads gets past the bound.
        let take = |seals: u64| (seals < MAX_SEALS_PER_KEY).then_some(seals + 1);
        self.seals
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_err(|_| SealError::KeyExhausted { master: self.master, window: self.window })?;
        let length = bytes.len();
        let tag = self
            .cipher
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(associated), bytes)
            .map_err(|_| SealError::TooLong { bytes: length })?;
        Ok(tag.as_ref().try_into().expect("a tag of AES-GCM has 16 bytes"))
    }

    /// Checks the tag and decrypts `bytes` where they are. After an error they are anything but what was sealed: not to be used.
    pub fn open_in_place(
        &self,
        bytes: &mut [u8],
        nonce: [u8; NONCE_SIZE],
        associated: &[u8],
        tag: &[u8; TAG_SIZE],
    ) -> Result<(), OpenError> {
        let (nonce, associated) = (Nonce::assume_unique_for_key(nonce), Aad::from(associated));
        let opened = self.cipher.open_in_place_separate_tag(nonce, associated, (*tag).into(), bytes, 0..);
        opened.map(drop).map_err(|_| OpenError)
    }

    /// Decrypts some bytes of what was sealed under a nonce, `offset` bytes into it. **Proves nothing**: whoever calls it must know in
    /// another way, as by a hash, what is right.
    ///
    /// GCM encrypts as counter mode does, from the counter block nonce | 2 on (NIST SP 800-38D, 7.1).
    pub fn decrypt_part(
        &self,
        bytes: &mut [u8],
        nonce: [u8; NONCE_SIZE],
        offset: u64,
    ) -> Result<(), BeyondSeal> {
        const FIRST_COUNTER: u32 = 2;
        let mut block = [0; 16];
        let (start, counter) = block.split_at_mut(NONCE_SIZE);
        start.copy_from_slice(&nonce);
        counter.copy_from_slice(&FIRST_COUNTER.to_be_bytes());
        let mut stream = Ctr32BE::from_core(CtrCore::inner_iv_init(self.stream.clone(), &block.into()));
        stream.try_seek(offset).map_err(|_| BeyondSeal)?;
        stream.try_apply_keystream(bytes).map_err(|_| BeyondSeal)
    }

    /// How many messages this value has sealed.
    pub fn seals(&self) -> u64 {
        self.seals.load(Ordering::Relaxed)
    }

    /// The master key that it is derived from.
    pub fn master_id(&self) -> KeyId {
        self.master
    }

    /// The window that it is for.
    pub fn window(&self) -> u64 {
        self.window
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey")
            .field("master", &self.master)
            .field("window", &self.window)
            .field("seals", &self.seals())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes_gcm::aead::inout::InOutBuf;
    use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
    use proptest::prelude::*;

    const NONCE: [u8; NONCE_SIZE] = *b"twelve bytes";

    fn key(master: u8, vdisk: &str, window: u64) -> DataKey {
        DataKey::derive(&MasterKey::from_bytes([master; 32]), vdisk.as_bytes(), window)
    }

    #[test]
    fn derivation_never_changes() {
        // Another value here means that everything sealed so far can no longer be read.
        let mut bytes = *b"some plain bytes";
        let tag = key(1, "myimg", 2).seal_in_place(&mut bytes, NONCE, b"header").unwrap();
        assert_eq!(hex::encode(bytes), "421562139e1b9f0fc1cbfa5f90e76801");
        assert_eq!(hex::encode(tag), "4a291529dd949df3cf50a35b626eddc8");
    }

    #[test]
    fn only_the_same_master_key_vdisk_window_nonce_and_associated_data_open_a_seal() {
        let mut sealed = *b"some plain bytes";
        let tag = key(1, "a", 0).seal_in_place(&mut sealed, NONCE, b"header").unwrap();
        let check = |key: DataKey, nonce: [u8; NONCE_SIZE], associated: &[u8], opens: bool| {
            let mut bytes = sealed;
            let opened = key.open_in_place(&mut bytes, nonce, associated, &tag);
            assert_eq!(opened, if opens { Ok(()) } else { Err(OpenError) });
            assert_eq!(&bytes == b"some plain bytes", opens);
        };
        check(key(1, "a", 0), NONCE, b"header", true);
        check(key(2, "a", 0), NONCE, b"header", false);
        check(key(1, "b", 0), NONCE, b"header", false);
        check(key(1, "a", 1), NONCE, b"header", false);
        check(key(1, "a\0", 0), NONCE, b"header", false);
        check(key(1, "a", 0), [0; NONCE_SIZE], b"header", false);
        check(key(1, "a", 0), NONCE, b"headeR", false);
        check(key(1, "a", 0), NONCE, b"", false);
    }

    #[test]
    fn a_key_stops_at_its_bound_and_leaves_the_bytes_alone() {
        let key = key(1, "a", 3);
        key.seals.store(MAX_SEALS_PER_KEY - 1, Ordering::Relaxed);
        let mut bytes = *b"plain";
        key.seal_in_place(&mut bytes, NONCE, b"").unwrap();
        assert_eq!(key.seals(), MAX_SEALS_PER_KEY);
        let mut bytes = *b"plain";
        let refused = key.seal_in_place(&mut bytes, [1; NONCE_SIZE], b"").unwrap_err();
        assert_eq!(refused, SealError::KeyExhausted { master: key.master_id(), window: 3 });
        assert_eq!(&bytes, b"plain");
        assert_eq!(key.seals(), MAX_SEALS_PER_KEY, "a refused seal does not count");
    }

    #[test]
    fn seals_of_several_threads_are_all_counted() {
        let key = key(1, "a", 0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let key = &key;
                scope.spawn(move || {
                    for i in 0..100 {
                        let mut nonce = [0; NONCE_SIZE];
                        (nonce[0], nonce[1]) = (thread, i);
                        key.seal_in_place(&mut [0; 16], nonce, b"").unwrap();
                    }
                });
            }
        });
        assert_eq!(key.seals(), 400);
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", key(0x5e, "a", 4));
        let id = MasterKey::from_bytes([0x5e; 32]).id();
        assert_eq!(shown, format!("DataKey {{ master: {id:?}, window: 4, seals: 0, .. }}"));
    }

    proptest! {
        #[test]
        fn a_part_decrypts_to_what_was_sealed_there(
            plain in prop::collection::vec(any::<u8>(), 1..3000),
            nonce: [u8; NONCE_SIZE],
            (from, to) in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let key = key(1, "a", 0);
            let mut bytes = plain.clone();
            key.seal_in_place(&mut bytes, nonce, b"x").unwrap();
            let (from, to) = (from.index(plain.len()), to.index(plain.len()));
            let range = from.min(to)..from.max(to);
            let mut part = bytes[range.clone()].to_vec();
            key.decrypt_part(&mut part, nonce, range.start as u64).unwrap();
            prop_assert_eq!(&part[..], &plain[range]);
            prop_assert_eq!(key.decrypt_part(&mut part, nonce, u64::MAX), Err(BeyondSeal));
        }

        #[test]
        fn a_seal_is_what_another_implementation_makes(
            plain in prop::collection::vec(any::<u8>(), 0..300),
            associated in prop::collection::vec(any::<u8>(), 0..40),
            nonce: [u8; NONCE_SIZE],
        ) {
            let secret = keyed(&[1; 32], b"tlog data key v1", &[&1u64.to_le_bytes(), b"a", &0u64.to_le_bytes()]);
            let mut expected = plain.clone();
            let expected_tag: [u8; TAG_SIZE] = Aes256Gcm::new((&*secret).into())
                .encrypt_inout_detached(&nonce.into(), &associated, InOutBuf::from(&mut expected[..]))
                .unwrap()
                .into();
            let mut bytes = plain;
            let tag = key(1, "a", 0).seal_in_place(&mut bytes, nonce, &associated).unwrap();
            prop_assert_eq!((bytes, tag), (expected, expected_tag));
        }

        #[test]
        fn what_is_sealed_opens_and_one_flipped_bit_anywhere_does_not(
            plain in prop::collection::vec(any::<u8>(), 0..300),
            associated in prop::collection::vec(any::<u8>(), 0..40),
            nonce: [u8; NONCE_SIZE],
            flip: prop::sample::Index,
        ) {
            let key = key(1, "a", 0);
            let mut bytes = plain.clone();
            let tag = key.seal_in_place(&mut bytes, nonce, &associated).unwrap();

            let flip = flip.index((bytes.len() + associated.len() + NONCE_SIZE + TAG_SIZE) * 8);
            let mut all = [&bytes[..], &associated, &nonce, &tag].concat();
            all[flip / 8] ^= 1 << (flip % 8);
            let (bad_bytes, rest) = all.split_at_mut(bytes.len());
            let (bad_associated, rest) = rest.split_at(associated.len());
            let (bad_nonce, bad_tag) = rest.split_first_chunk::<NONCE_SIZE>().unwrap();
            let bad_tag = bad_tag.try_into().unwrap();
            prop_assert_eq!(key.open_in_place(bad_bytes, *bad_nonce, bad_associated, bad_tag), Err(OpenError));

            prop_assert_eq!(key.open_in_place(&mut bytes, nonce, &associated, &tag), Ok(()));
            prop_assert_eq!(bytes, plain);
        }
    }
}
