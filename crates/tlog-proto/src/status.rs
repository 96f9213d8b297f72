//! The two families of statuses: of a handshake, and of blocks.

use std::fmt;

/// A status number that this version of the protocol does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown status {0}")]
pub struct UnknownStatus(pub i8);

macro_rules! statuses {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $number),*
        }

        impl $name {
            /// Every status of this family.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The number on the wire. The original calls it `Int8`.
            pub fn number(self) -> i8 {
                self as i8
            }

            /// The name as documented. The original calls it `String`.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => stringify!($variant)),*
                }
            }

            /// Whether it stands for a failure: the number is below zero. The original calls it `Error`.
            pub fn is_error(self) -> bool {
                self.number() < 0
            }
        }

        impl TryFrom<i8> for $name {
            type Error = UnknownStatus;

            fn try_from(number: i8) -> Result<Self, UnknownStatus> {
                match number {
                    $($number => Ok($name::$variant),)*
                    other => Err(UnknownStatus(other)),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

statuses! {
    /// How a handshake ended. After an error the server closes the connection.
    HandshakeStatus {
        /// The client may send blocks.
        Ok = 1,
        /// The request could not be read.
        InvalidRequest = -1,
        /// The client's version is older than the oldest one served.
        InvalidVersion = -2,
        /// The vdisk id is not legal, or not known to the server's config source.
        InvalidVdiskId = -3,
        /// The server could not open the log, or `firstSequence` would leave a gap.
        InternalServerError = -4,
    }
}

statuses! {
    /// What became of blocks or of a command.
    BlockStatus {
        /// Received, hash checked, in memory. **Not durable.**
        RecvOk = 1,
        /// Durable: the named sequences are stored.
        FlushOk = 2,
        /// A force flush was understood; `FlushOk` follows when it is done.
        ForceFlushReceived = 3,
        /// The slave holds everything that was flushed before the command.
        WaitNbdSlaveSyncReceived = 4,
        /// The named block was refused: wrong hash, unknown operation, or malformed.
        RecvFailed = -1,
        /// What is not durable yet cannot be made durable here; the server closes the vdisk.
        FlushFailed = -2,
    }
}

/// Why a handshake was refused, closer than its status says. Servers of 1.1.0-alpha do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// `firstSequence` would leave a gap, or the client must continue and the log is empty.
    Gap,
    /// Another client has written, or has connected, since this one was there.
    TakenOver,
    /// The log cannot be opened, or not in time, or it has just closed.
    LogUnavailable,
    /// The client's certificate does not permit this vdisk.
    NotPermitted,
    /// The server speaks nothing but TLS, and this was said without it.
    TlsWanted,
}

impl Refusal {
    /// All of them.
    pub const ALL: &'static [Refusal] =
        &[Self::Gap, Self::TakenOver, Self::LogUnavailable, Self::NotPermitted, Self::TlsWanted];

    /// None where nothing was told, or something that this version does not know.
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|refusal| refusal.to_wire() == number)
    }

    /// As it stands in messages; 0 stands for none.
    pub fn to_wire(self) -> u8 {
        match self {
            Refusal::Gap => 1,
            Refusal::TakenOver => 2,
            Refusal::LogUnavailable => 3,
            Refusal::NotPermitted => 4,
            Refusal::TlsWanted => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_survives_the_wire_and_errors_are_below_zero() {
        for &status in HandshakeStatus::ALL {
            assert_eq!(HandshakeStatus::try_from(status.number()), Ok(status));
            assert_eq!(status.is_error(), status != HandshakeStatus::Ok);
        }
        for &status in BlockStatus::ALL {
            assert_eq!(BlockStatus::try_from(status.number()), Ok(status));
            assert_eq!(
                status.is_error(),
                matches!(status, BlockStatus::RecvFailed | BlockStatus::FlushFailed)
            );
        }
        assert_eq!(BlockStatus::try_from(0), Err(UnknownStatus(0)));
        assert_eq!(HandshakeStatus::try_from(2), Err(UnknownStatus(2)));
        assert_eq!(BlockStatus::FlushOk.to_string(), "FlushOk");
        for &refusal in Refusal::ALL {
            assert_eq!(Refusal::from_wire(refusal.to_wire()), Some(refusal));
        }
        assert_eq!((Refusal::from_wire(0), Refusal::from_wire(99)), (None, None));
    }
}
