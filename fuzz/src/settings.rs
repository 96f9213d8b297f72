//! Settings of a file and of flags, and the key file: settings that are taken make sense together.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use tlog::keys;
use tlog::settings::{SETTINGS, Settings, SettingsArgs};
use tlog_crypto::Keyring;

use crate::Target;
use crate::input::Input;

/// The first byte says what the rest is: a file of settings, lines of flags, or a key file.
pub const TARGET: Target = Target { name: "settings", memory: 16 << 20, check, seeds };

fn check(input: &[u8]) {
    let mut input = Input::new(input);
    match input.below(3) {
        0 => {
            let file = file(input.rest());
            settings(Settings::from_file(&file));
        }
        1 => {
            let Ok(text) = std::str::from_utf8(input.rest()) else { return };
            settings(Settings::from_flags(&flags(text)));
        }
        _ => {
            let file = file(input.rest());
            if let Ok(loaded) = keys::read(&file) {
                let again = Keyring::parse(&loaded.keyring.to_text()).expect("what was written");
                assert!(again.ids().eq(loaded.keyring.ids()));
            }
        }
    }
}

/// `name=value` in each line. A name may be a number: that of a setting in the table.
fn flags(text: &str) -> SettingsArgs {
    text.lines().filter_map(|line| line.split_once('=')).fold(
        SettingsArgs::default(),
        |flags, (name, value)| {
            let by_number =
                name.parse::<usize>().ok().and_then(|number| SETTINGS.get(number % SETTINGS.len()));
            // Those with a file behind them would read one of this machine.
            let name = by_number.map_or(name, |setting| setting.key);
            if name.ends_with("-file") { flags } else { flags.with(name, value) }
        },
    )
}

fn settings<E: std::fmt::Display>(read: Result<Settings, E>) {
    match read {
        Ok(settings) => {
            let of = settings.redundancy;
            assert!(of.data_shards >= 1 && of.stores() <= 255);
            assert!(of.write_quorum >= of.data_shards && usize::from(of.write_quorum) <= of.stores());
            assert!(settings.flush_size >= 1 && settings.in_flight >= 1 && !settings.flush_time.is_zero());
            assert!(settings.warnings().iter().all(|warning| !warning.is_empty()));
            let _ = settings.stores();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A file with that content, the same one each time.
fn file(content: &[u8]) -> PathBuf {
    thread_local! {
        static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
    }
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| tempfile::tempdir().expect("a temporary folder"));
        let path = folder.path().join("file");
        fs::write(&path, content).expect("a file in a temporary folder");
        path
    })
}

fn seeds() -> Vec<Vec<u8>> {
    let key = "42".repeat(32);
    let all = tlog::settings::default_file();
    let texts: Vec<(u8, &str)> = vec![
        (0, &all),
        (0, "data-shards = 2\nparity-shards = 1\nwrite-quorum = 3\nflush-size = 10\nflush-time = \"2s\"\n"),
        (0, "stores = [\"file:/srv/0\", \"127.0.0.1:1@2\"]\ndata-shards = 1\nparity-shards = 1\n"),
        (0, "[server]\nlisten = \"127.0.0.1:1\"\n"),
        (0, "admin-listen = \"off\"\nkeep-within = \"30d\"\nkeep-hourly = 24\n"),
        (1, "data-shards=2\nparity-shards=2\nwrite-quorum=3"),
        (1, "listen=[::1]:1\nflush-size=16\nin-flight=2\nmax-block-size=1MiB"),
        (1, "0=1\n1=2\n2=3\n30=off\n31=1h"),
        (2, &key),
    ];
    texts.into_iter().map(|(kind, text)| [&[kind], text.as_bytes()].concat()).collect()
}
