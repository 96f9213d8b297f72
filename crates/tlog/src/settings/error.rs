//! Why settings are refused.

use std::path::PathBuf;

use super::table::{Kind, Setting};
use super::{Contradiction, ValueFault};

/// Why settings are refused. Never has a secret in it.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Nobody knows this setting.
    #[error("there is no setting {key} ({place}){}", did_you_mean(.nearest))]
    Unknown {
        /// As it was written.
        key: String,
        /// In which layer.
        place: String,
        /// The known one that is most like it.
        nearest: Option<String>,
    },
    /// A value that is none.
    #[error("{key}{} ({place}): {fault}", shown(.value))]
    Value {
        /// Which setting.
        key: &'static str,
        /// What was given; none where it is secret or has no short form.
        value: Option<String>,
        /// In which layer.
        place: String,
        /// What is wrong with it.
        #[source]
        fault: ValueFault,
    },
    /// A secret, and the file that has it, both in one layer.
    #[error("both {first} and {second} are given ({place}); leave one of them out")]
    Both {
        /// One.
        first: String,
        /// The other.
        second: String,
        /// In which layer.
        place: String,
    },
    /// The file with the settings cannot be read.
    #[error("the settings file {} cannot be read: {source}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the settings file {}: {what}", .path.display())]
    Toml {
        /// Which file.
        path: PathBuf,
        /// Where, and what is wrong, without the line itself.
        what: String,
    },
    /// The file of a secret cannot be read.
    #[error("the file {} that {key} names cannot be read: {source}", .path.display())]
    SecretFile {
        /// The setting that names the file.
        key: String,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A variable that is not UTF-8.
    #[error("the environment variable {name} is not UTF-8")]
    NotText {
        /// Which one.
        name: String,
    },
    /// The layers cannot be laid over each other.
    #[error("the settings cannot be put together: {0}")]
    Merge(#[source] config::ConfigError),
    /// Every value is fine, and together they make no sense.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
}

impl SettingsError {
    pub(super) fn unknown(key: String, place: String, known: impl Iterator<Item = String>) -> Self {
        let near = known.map(|known| (strsim::jaro_winkler(&plain(&key), &plain(&known)), known));
        let nearest = near.filter(|(likeness, _)| *likeness > 0.75).max_by(|a, b| a.0.total_cmp(&b.0));
        Self::Unknown { key, place, nearest: nearest.map(|(_, known)| known) }
    }

    pub(super) fn value(key: &'static str, value: Option<&str>, place: &str, fault: ValueFault) -> Self {
        // The address of a store may have a password in it, so a list is not shown either.
        let shown =
            Setting::find(key).is_some_and(|setting| matches!(setting.kind, Kind::One | Kind::Switch));
        let value = value.filter(|_| shown).map(str::to_owned);
        Self::Value { key, value, place: place.to_owned(), fault }
    }
}

/// Spelling differences that do not make a key less like another.
fn plain(key: &str) -> String {
    key.trim_start_matches("TLOG_").to_lowercase().replace(['_', '-'], "")
}

fn did_you_mean(nearest: &Option<String>) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean {nearest}?"),
        None => "; 'tlog config' lists them all".to_owned(),
    }
}

fn shown(value: &Option<String>) -> String {
    match value {
        Some(value) => format!(" = {value:?}"),
        None => String::new(),
    }
}
