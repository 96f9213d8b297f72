//! What is done wrong on purpose, and must be found.

use std::fmt;
use std::str::FromStr;

/// Something that must be found; else the checks are worth nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// At the end of the faults three of six stores lose everything, where any four are needed.
    WipedStores,
    /// Of every twentieth write a client hands over other bytes than it notes.
    OtherContent,
    /// A client notes writes as acknowledged when it hands them over. At the end of the faults one is killed that writes while no server is there.
    EarlyAcknowledgement,
}

impl Wrong {
    /// All of them.
    pub const ALL: [Wrong; 3] = [Wrong::WipedStores, Wrong::OtherContent, Wrong::EarlyAcknowledgement];

    /// Its name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Wrong::WipedStores => "wiped-stores",
            Wrong::OtherContent => "other-content",
            Wrong::EarlyAcknowledgement => "early-acknowledgement",
        }
    }

    /// Whether something was found for this, and for no other reason.
    pub fn explains(self, found: &str) -> bool {
        let words: &[&str] = match self {
            // The log does not open any more.
            Wrong::WipedStores => &["after faults had stopped"],
            Wrong::OtherContent => &["left it", "that nobody wrote there"],
            Wrong::EarlyAcknowledgement => {
                &["says that the log ends with", "was acknowledged, and", "not accepted"]
            }
        };
        words.iter().any(|words| found.contains(words))
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is nothing of that name.
#[derive(Debug, thiserror::Error)]
#[error("there are {}", Wrong::ALL.map(Wrong::name).join(", "))]
pub struct NoSuchWrong;

impl FromStr for Wrong {
    type Err = NoSuchWrong;

    fn from_str(text: &str) -> Result<Self, NoSuchWrong> {
        Wrong::ALL.into_iter().find(|wrong| wrong.name() == text).ok_or(NoSuchWrong)
    }
}
