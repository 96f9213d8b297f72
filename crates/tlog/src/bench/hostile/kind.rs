//! What hostile clients do.

use std::fmt;

/// A kind of hostile client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum HostileKind {
    /// Sends one byte of a greeting a second
    Drip,
    /// Connects and says nothing; at a server with TLS, not even hello
    Silent,
    /// Connects and vanishes, with a reset or without, over and over
    Vanish,
    /// Claims messages of 2^60 bytes, of billions of segments, or as large as they may be, and sends nothing of them
    Claim,
    /// Greets, sends one byte of a block a second
    Stall,
    /// Greets, sends blocks and reads no answer
    Unread,
}

impl HostileKind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Drip, Self::Silent, Self::Vanish, Self::Claim, Self::Stall, Self::Unread];

    /// As on the command line and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Drip => "drip",
            Self::Silent => "silent",
            Self::Vanish => "vanish",
            Self::Claim => "claim",
            Self::Stall => "stall",
            Self::Unread => "unread",
        }
    }

    /// Whether it is let in first, as a client of a vdisk of its own.
    pub(crate) fn greets(self) -> bool {
        matches!(self, Self::Claim | Self::Stall | Self::Unread)
    }

    /// How many there are where nobody says.
    pub(crate) fn usual_count(self) -> usize {
        match self {
            Self::Drip => 10_000,
            Self::Silent | Self::Vanish => 1000,
            Self::Claim => 100,
            Self::Stall => 200,
            Self::Unread => 50,
        }
    }
}

impl fmt::Display for HostileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
