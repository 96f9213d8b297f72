//! The file that has the master keys: reading it, and making it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tlog_config::StoreAddress;
use tlog_crypto::{KeyId, Keyring, KeyringError, MasterKey, RandomSourceError};
use zeroize::Zeroizing;

use crate::settings::{Settings, Storage};

/// The key file of the embedded store, in its data directory.
pub const EMBEDDED_KEY: &str = "tlog.key";

/// Longest key file that is read; a keyring of a thousand keys is shorter.
const MAX_KEY_FILE: u64 = 1 << 20;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file is not there.
    #[error(
        "the key file {} is not there; bring it back from a copy, or name the right one with key-file (for stores that are \
         still empty 'tlog keygen -o {}' makes a new one; it opens nothing that was written under another)",
        .path.display(), .path.display()
    )]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// The embedded store has history, and its key is gone.
    #[error(
        "the key file {} is not there, but {} is: without the key that it was written with it cannot be read, and a new key \
         would not help; bring the key file back from a copy, or name it with key-file",
        .path.display(), .store.display()
    )]
    Lost {
        /// Where the key should be.
        path: PathBuf,
        /// A store that has something.
        store: PathBuf,
    },
    /// Stores were named, and no key.
    #[error(
        "storage names stores, and there is no key: key-file is not set and {} is not there; make one with 'tlog keygen -o {}', \
         or name yours with key-file (only the embedded store makes a key by itself)",
        .path.display(), .path.display()
    )]
    NotSet {
        /// Where one would be found.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("the key file {} cannot be read: {source}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is no keyring.
    #[error("the key file {}: {source}", .path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Which line, and what is wrong with it.
        #[source]
        source: KeyringError,
    },
    /// The file cannot be made.
    #[error("the key file {} cannot be written: {source}", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is there already.
    #[error("{} is there already and may be the only copy of a key; name another file, or move it away", .path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] RandomSourceError),
}

/// A keyring, and what a person should hear about its file.
#[derive(Debug)]
pub struct LoadedKeys {
    /// The keys.
    pub keyring: Keyring,
    /// Where they came from.
    pub path: PathBuf,
    /// Whether the file was made just now.
    pub made: bool,
    /// Whether others than its owner can read the file.
    pub exposed: bool,
}

impl LoadedKeys {
    /// What a person should hear at start.
    pub fn warnings(&self) -> Vec<String> {
        let path = self.path.display();
        let mut warnings = Vec::new();
        if self.made {
            warnings.push(format!(
                "made a new key in {path}; the log cannot be read without it, keep a copy on another machine"
            ));
        }
        if self.exposed {
            warnings.push(format!("others can read the key file {path}; run 'chmod 600 {path}'"));
        }
        warnings
    }
}

/// Reads the keys that these settings name. Makes none.
pub fn load(settings: &Settings) -> Result<LoadedKeys, KeysError> {
    match (&settings.key_file, &settings.storage) {
        (Some(path), _) => read(path),
        (None, Storage::Embedded { data_dir }) => read(&data_dir.join(EMBEDDED_KEY)),
        (None, Storage::Stores(_) | Storage::Documents) => {
            match read(&settings.data_dir.join(EMBEDDED_KEY)) {
                Err(KeysError::Missing { path }) => Err(KeysError::NotSet { path }),
                read => read,
            }
        }
    }
}

/// Reads the keys that these settings name; at the first start of the embedded store, makes its key.
pub fn load_or_make(settings: &Settings) -> Result<LoadedKeys, KeysError> {
    let path = match (&settings.key_file, &settings.storage) {
        (None, Storage::Embedded { data_dir }) => data_dir.join(EMBEDDED_KEY),
        _ => return load(settings),
    };
    match read(&path) {
        Err(KeysError::Missing { .. }) => {}
        read => return read,
    }
    if let Some(store) = settings.stores().iter().find_map(|store| match store {
        StoreAddress::Directory(directory) if !is_empty(directory) => Some(directory.clone()),
        _ => None,
    }) {
        // Another server may have made key and stores since the look at the key.
        return match read(&path) {
            Err(KeysError::Missing { path }) => Err(KeysError::Lost { path, store }),
            read => read,
        };
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .map_err(|source| KeysError::Write { path: path.clone(), source })?;
    }
    match write_new(&path) {
        Ok(_) => Ok(LoadedKeys { made: true, ..read(&path)? }),
        // Another server was first: its key is as good.
        Err(KeysError::Exists { .. }) => read(&path),
        Err(error) => Err(error),
    }
}

/// Reads a key file.
pub fn read(path: &Path) -> Result<LoadedKeys, KeysError> {
    let fault = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeysError::Missing { path: path.to_owned() },
        _ => KeysError::Read { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    if metadata.len() > MAX_KEY_FILE {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it is too long for a key file");
        return Err(fault(source));
    }
    // With room for everything from the start: a string that grows leaves copies of its content behind.
    let mut text = Zeroizing::new(String::with_capacity(metadata.len() as usize + 1));
    io::Read::read_to_string(&mut io::Read::take(file, MAX_KEY_FILE), &mut text).map_err(fault)?;
    let keyring =
        Keyring::parse(&text).map_err(|source| KeysError::Parse { path: path.to_owned(), source })?;
    let exposed = metadata.permissions().mode() & 0o077 != 0;
    Ok(LoadedKeys { keyring, path: path.to_owned(), made: false, exposed })
}

/// Makes a key and writes it to a new file that only its owner can read. Never overwrites: either the whole file is there
/// and on disk, or none.
pub fn write_new(path: &Path) -> Result<KeyId, KeysError> {
    let key = MasterKey::generate()?;
    let id = key.id();
    let text = key_text(&key);
    let fault = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => KeysError::Exists { path: path.to_owned() },
        _ => KeysError::Write { path: path.to_owned(), source },
    };
    if path.symlink_metadata().is_ok() {
        return Err(KeysError::Exists { path: path.to_owned() });
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(directory)
        .map_err(|source| KeysError::Write { path: path.to_owned(), source })?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}.{id}", std::process::id()));
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            // A rename would replace a file that somebody made meanwhile; a link refuses.
            std::fs::hard_link(&temporary, path)
        });
    let removed = std::fs::remove_file(&temporary);
    written.map_err(fault)?;
    removed.map_err(fault)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(fault)?;
    Ok(id)
}

/// A new key as it stands in a key file.
pub fn key_text(key: &MasterKey) -> Zeroizing<String> {
    let hex = key.expose_hex();
    let mut text = Zeroizing::new(String::with_capacity(256));
    text.push_str("# tlog master key ");
    text.push_str(&key.id().to_string());
    text.push_str(". Without it the log cannot be read: keep a copy elsewhere, and secret.\n");
    text.push_str(&hex);
    text.push('\n');
    text
}

/// Whether a store has no log. Its lock, whose name begins with a dot, is there from the first start.
fn is_empty(directory: &Path) -> bool {
    match std::fs::read_dir(directory) {
        Ok(mut entries) => entries
            .all(|entry| entry.is_ok_and(|entry| entry.file_name().as_encoded_bytes().starts_with(b"."))),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::SettingsArgs;

    fn embedded(data_dir: &Path) -> Settings {
        let args = SettingsArgs::default().with("data-dir", data_dir.to_str().unwrap());
        Settings::from_flags(&args).unwrap()
    }

    #[test]
    fn the_first_start_makes_a_key_that_only_its_owner_can_read_and_the_second_finds_it() {
        let directory = tempfile::tempdir().unwrap();
        let settings = embedded(&directory.path().join("new/data"));
        assert!(matches!(load(&settings), Err(KeysError::Missing { .. })));
        let first = load_or_make(&settings).unwrap();
        assert!(first.made && !first.exposed);
        assert!(first.warnings().join(" ").contains("keep a copy"));
        assert_eq!(first.path, directory.path().join("new/data/tlog.key"));
        assert_eq!(first.path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        for again in [load_or_make(&settings).unwrap(), load(&settings).unwrap()] {
            assert!(!again.made && again.warnings().is_empty());
            assert_eq!(again.keyring.active().id(), first.keyring.active().id());
        }
        let left: Vec<_> = std::fs::read_dir(directory.path().join("new/data")).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file is left: {left:?}");
    }

    #[test]
    fn servers_that_start_at_the_same_time_get_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let settings = embedded(directory.path());
        let ids: Vec<KeyId> = std::thread::scope(|scope| {
            let start = || load_or_make(&settings).unwrap().keyring.active().id();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn a_lost_key_is_not_replaced_by_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let settings = embedded(directory.path());
        std::fs::create_dir_all(directory.path().join("store-3/vda")).unwrap();
        std::fs::create_dir_all(directory.path().join("store-0")).unwrap();
        let error = load_or_make(&settings).unwrap_err();
        assert!(matches!(&error, KeysError::Lost { store, .. } if store.ends_with("store-3")), "{error}");
        assert!(!directory.path().join(EMBEDDED_KEY).exists());
        // Stores in which nothing was ever written need no old key.
        std::fs::remove_dir_all(directory.path().join("store-3")).unwrap();
        std::fs::write(directory.path().join("store-0/.lock"), "").unwrap();
        assert!(load_or_make(&settings).unwrap().made);
    }

    #[test]
    fn named_stores_need_a_named_key() {
        let args = SettingsArgs::default().with("storage", "memory:,memory:").with("data-shards", "1");
        let directory = tempfile::tempdir().unwrap();
        let args = args.with("parity-shards", "1").with("data-dir", directory.path().to_str().unwrap());
        let settings = Settings::from_flags(&args).unwrap();
        let error = load_or_make(&settings).unwrap_err();
        let here = directory.path().join(EMBEDDED_KEY);
        assert!(error.to_string().contains(&format!("tlog keygen -o {}", here.display())), "{error}");
        let id = write_new(&here).unwrap();
        assert_eq!(
            load_or_make(&settings).unwrap().keyring.active().id(),
            id,
            "it is used where it is there"
        );
        let error =
            load_or_make(&Settings::from_flags(&args.with("key-file", "/nowhere/key")).unwrap()).unwrap_err();
        assert!(error.to_string().contains("tlog keygen -o /nowhere/key"), "{error}");
    }

    #[test]
    fn a_key_file_is_never_overwritten_not_even_a_dangling_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let id = write_new(&path).unwrap();
        assert!(matches!(write_new(&path), Err(KeysError::Exists { .. })));
        assert_eq!(read(&path).unwrap().keyring.active().id(), id);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(matches!(write_new(&link), Err(KeysError::Exists { .. })));
        write_new(&directory.path().join("new/directory/key")).unwrap();
        assert!(matches!(write_new(&path.join("below-a-file")), Err(KeysError::Write { .. })));
    }

    #[test]
    fn a_file_that_others_can_read_is_warned_of() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write_new(&path).unwrap();
        for (mode, exposed) in [(0o644, true), (0o640, true), (0o604, true), (0o600, false), (0o400, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let keys = read(&path).unwrap();
            assert_eq!(keys.exposed, exposed, "{mode:o}");
            assert_eq!(!keys.warnings().is_empty(), exposed);
        }
    }

    #[test]
    fn what_is_no_key_file_is_refused_without_being_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let check = |content: &[u8], says: &str| {
            std::fs::write(&path, content).unwrap();
            let error = read(&path).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(says) && !shown.contains("hush"), "{shown}");
        };
        check(b"", "no key in it");
        check(b"hush", "line 1");
        check(b"\xff\xfe", "cannot be read");
        check(&vec![b'#'; 2 << 20], "too long");
        assert!(matches!(read(directory.path()), Err(KeysError::Read { .. })));
    }
}
