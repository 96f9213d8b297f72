//! Several master keys, so that a new one can take over while old aggregations stay readable.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::{KeyId, KeyTextError, MasterKey};

/// One master key or more. The first is *active*: it seals what is new; the others only open what is old.
///
/// As text: a key in hex on each line, the active one first. Whatever follows a `#`, and empty lines, are ignored.
///
/// ```text
/// # since March
/// 6c1a...64 digits...
/// 00d4...64 digits...   # before
/// ```
pub struct Keyring {
    active: MasterKey,
    /// No two keys of a ring have the same id.
    older: Vec<MasterKey>,
}

/// A key that something was sealed under is not in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "master key {id} is not in the keyring; add its line to the key file to read what was sealed under it"
)]
pub struct MissingKey {
    /// Which one.
    pub id: KeyId,
}

/// A text that is no keyring. Names the line and never repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// No line has a key.
    #[error("no key in it; expected one master key of 64 hex digits on each line")]
    Empty,
    /// A line that is no key.
    #[error("line {line}: {fault}")]
    Key {
        /// Which one, counted from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        fault: KeyTextError,
    },
    /// A line repeats the key of another.
    #[error("line {line}: key {id} is there already, on line {first_line}")]
    Duplicate {
        /// The second line with it, counted from 1.
        line: usize,
        /// The first line with it.
        first_line: usize,
        /// Which key.
        id: KeyId,
    },
}

impl Keyring {
    /// A ring of one key.
    pub fn new(active: MasterKey) -> Self {
        Self { active, older: Vec::new() }
    }

    /// Parses the text of a key file.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let mut keys: Vec<(usize, MasterKey)> = Vec::new();
        for (line, content) in (1..).zip(text.lines()) {
            let content = content.split('#').next().unwrap_or_default().trim();
            if content.is_empty() {
                continue;
            }
            let key = MasterKey::from_hex(content).map_err(|fault| KeyringError::Key { line, fault })?;
            let id = key.id();
            if let Some(&(first_line, _)) = keys.iter().find(|(_, other)| other.id() == id) {
                return Err(KeyringError::Duplicate { line, first_line, id });
            }
            keys.push((line, key));
        }
        let mut keys = keys.into_iter().map(|(_, key)| key);
        let active = keys.next().ok_or(KeyringError::Empty)?;
        Ok(Self { active, older: keys.collect() })
    }

    /// The ring as [`Keyring::parse`] takes it, secrets and all: for writing a key file, never for a log.
    pub fn to_text(&self) -> Zeroizing<String> {
        const LINE: usize = 2 * crate::KEY_SIZE + 1;
        // With room for everything from the start: a string that grows leaves copies of its content behind.
        let mut text = Zeroizing::new(String::with_capacity(LINE * (1 + self.older.len())));
        for key in self.keys() {
            text.push_str(&key.expose_hex());
            text.push('\n');
        }
        text
    }

    /// Makes `key` the active one; the one that was active stays as an older one. A key that the ring has already
    /// moves to the front.
    pub fn activate(&mut self, key: MasterKey) {
        self.older.retain(|older| older.id() != key.id());
        if key.id() != self.active.id() {
            let previous = std::mem::replace(&mut self.active, key);
            self.older.insert(0, previous);
        }
    }

    /// The key that seals what is new.
    pub fn active(&self) -> &MasterKey {
        &self.active
    }

    /// The key of that name.
    pub fn get(&self, id: KeyId) -> Result<&MasterKey, MissingKey> {
        self.keys().find(|key| key.id() == id).ok_or(MissingKey { id })
    }

    /// Names of all keys, the active one first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys().map(MasterKey::id)
    }

    fn keys(&self) -> impl Iterator<Item = &MasterKey> {
        std::iter::once(&self.active).chain(&self.older)
    }
}

impl FromStr for Keyring {
    type Err = KeyringError;

    fn from_str(text: &str) -> Result<Self, KeyringError> {
        Self::parse(text)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("active", &self.active.id())
            .field("older", &self.older.iter().map(MasterKey::id).collect::<Vec<_>>())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> MasterKey {
        MasterKey::from_bytes([byte; 32])
    }

    fn line(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    #[test]
    fn the_first_key_is_active_and_all_are_found() {
        let text = format!("# mine\r\n\r\n  {}  # since March\r\n{}\n\n{}", line(1), line(2), line(3));
        let ring: Keyring = text.parse().unwrap();
        assert_eq!(ring.active().id(), key(1).id());
        assert_eq!(ring.ids().collect::<Vec<_>>(), [1, 2, 3].map(|byte| key(byte).id()));
        assert_eq!(ring.get(key(3).id()).unwrap().expose_hex().as_str(), line(3));
        let missing = ring.get(key(4).id()).unwrap_err();
        assert_eq!(missing, MissingKey { id: key(4).id() });
        assert!(missing.to_string().contains(&key(4).id().to_string()));
    }

    #[test]
    fn a_ring_survives_its_text() {
        let mut ring = Keyring::new(key(1));
        ring.activate(key(2));
        let text = ring.to_text();
        assert_eq!(text.as_str(), format!("{}\n{}\n", line(2), line(1)));
        assert_eq!(Keyring::parse(&text).unwrap().ids().collect::<Vec<_>>(), ring.ids().collect::<Vec<_>>());
    }

    #[test]
    fn a_new_active_key_keeps_the_older_ones_and_none_twice() {
        let mut ring = Keyring::new(key(1));
        for (byte, expected) in [(2, vec![2, 1]), (3, vec![3, 2, 1]), (1, vec![1, 3, 2]), (1, vec![1, 3, 2])]
        {
            ring.activate(key(byte));
            let expected: Vec<_> = expected.into_iter().map(|byte| key(byte).id()).collect();
            assert_eq!(ring.ids().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_bad_line_is_named_and_no_secret_is_repeated() {
        let check = |text: String, expected: KeyringError, says: &str| {
            let error = Keyring::parse(&text).unwrap_err();
            assert_eq!(error, expected);
            for shown in [error.to_string(), format!("{error:?}")] {
                // Key ids are shown; any other run of hex digits would be a piece of a secret.
                let shown = shown.replace(&key(0x5e).id().to_string(), "ID");
                assert!(!shown.contains("5e5e"), "{shown}");
            }
            assert!(error.to_string().starts_with(says), "{error}");
        };
        let secret = line(0x5e);
        let short = KeyTextError::Length { got: 63 };
        check(format!("# x\n{}", &secret[1..]), KeyringError::Key { line: 2, fault: short }, "line 2: ");
        let not_hex = KeyTextError::NotHex { at: 65 };
        check(format!("{secret}x\n"), KeyringError::Key { line: 1, fault: not_hex }, "line 1: ");
        check(
            format!("{secret}\n\n{secret}\n"),
            KeyringError::Duplicate { line: 3, first_line: 1, id: key(0x5e).id() },
            "line 3: ",
        );
        check(" \n# only words\n".to_owned(), KeyringError::Empty, "no key");
    }

    #[test]
    fn debug_shows_ids_only() {
        let mut ring = Keyring::new(key(0x5e));
        ring.activate(key(0x5f));
        let shown = format!("{ring:?}");
        let expected = format!("Keyring {{ active: {:?}, older: [{:?}] }}", key(0x5f).id(), key(0x5e).id());
        assert_eq!(shown, expected);
    }
}
