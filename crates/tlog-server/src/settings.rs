//! What a server may be told, and what it does when it is not told.

use std::time::Duration;

use tlog_proto::Limits;

use crate::session::BLOCK_OVERHEAD;

/// Bounds of a server. All of them are per server unless they say otherwise.
///
/// A block counts with its data and 256 bytes. Memory for blocks is at most `max_total_unflushed_bytes` +
/// `max_total_window_bytes`, and for each connection a buffer of 64 KiB. A message that is larger counts twice while it arrives, as it is
/// in a buffer and becomes a block, and all of those together take `max_total_message_bytes` at most. Who has not said yet who it is
/// gets a buffer of 512 bytes, and of 16 KiB at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Connections at the same time that have said who they are; one more is refused. Default 1024.
    pub max_connections: usize,
    /// Connections at the same time that have not said yet who they are. One more takes the place of the oldest of them, once that has had
    /// a second. Default 1024.
    pub max_newcomers: usize,
    /// How long a client may take for its handshake request. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long a client waits for its vdisk's log to open, or for what must be durable before its handshake is answered,
    /// before it gets `InternalServerError`. Default 60 s.
    pub open_timeout: Duration,
    /// How long a message may take from its first byte to its last, measured to within a quarter, and a second more for each
    /// [`ServerSettings::LEAST_MESSAGE_RATE`] bytes of it that have come: a large one may take its time on a slow network, and one that
    /// hardly moves may not. Default 20 s.
    pub message_timeout: Duration,
    /// How long a client may be silent between two messages. None, the default, is for ever: a vdisk need not be
    /// written to for days, and clients that have vanished are found by `keepalive`.
    pub idle_timeout: Option<Duration>,
    /// Silence after which TCP asks whether the other end still lives, and between further questions. None leaves
    /// it to the operating system's settings, usually off. Default 30 s.
    pub keepalive: Option<Duration>,
    /// How long a client may take to read some of what is written to it. Default 20 s.
    pub write_timeout: Duration,
    /// What is accepted of a single message.
    pub limits: Limits,
    /// How far past the expected sequence a block may be. Per vdisk. Default 16384.
    pub max_window_span: u64,
    /// Bytes of blocks that wait for an earlier one. Per vdisk. Default 32 MiB.
    pub max_window_bytes: usize,
    /// The same for all vdisks together. Default 256 MiB.
    pub max_total_window_bytes: usize,
    /// Bytes of blocks that are not durable; at the bound the connection is not read. Per vdisk. Default 64 MiB.
    pub max_unflushed_bytes: usize,
    /// The same for all vdisks together. Default 512 MiB.
    pub max_total_unflushed_bytes: usize,
    /// Bytes for messages of more than 64 KiB that are just arriving, each counted twice; those for which there is no room wait. Default
    /// 256 MiB.
    pub max_total_message_bytes: usize,
    /// How long a vdisk stays open that has no connection and nothing that is not durable. Default 60 s.
    pub vdisk_idle: Duration,
    /// How long a shutdown may take to make everything durable. Default 30 s.
    pub shutdown_grace: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_newcomers: 1024,
            handshake_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(60),
            message_timeout: Duration::from_secs(20),
            idle_timeout: None,
            keepalive: Some(Duration::from_secs(30)),
            write_timeout: Duration::from_secs(20),
            limits: Limits::default(),
            max_window_span: 16384,
            max_window_bytes: 32 << 20,
            max_total_window_bytes: 256 << 20,
            max_unflushed_bytes: 64 << 20,
            max_total_unflushed_bytes: 512 << 20,
            max_total_message_bytes: 256 << 20,
            vdisk_idle: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

/// Settings with which a server could not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Nothing would ever be let in, or in time.
    #[error("{setting} cannot be zero")]
    Zero {
        /// Name of the field.
        setting: &'static str,
    },
    /// A whole block would not fit, so that it would wait for ever.
    #[error("{setting} is {bytes} bytes; the largest block takes {least}")]
    NoRoomForABlock {
        /// Name of the field.
        setting: &'static str,
        /// What was asked for.
        bytes: usize,
        /// What it takes at least.
        least: usize,
    },
    /// Larger than what can be counted.
    #[error("limits.max_block_bytes is {bytes}; at most {most} can be counted")]
    BlockTooLarge {
        /// What was asked for.
        bytes: usize,
        /// What can be counted.
        most: usize,
    },
}

impl ServerSettings {
    /// Bytes per second of a message that give it another second to arrive in.
    pub const LEAST_MESSAGE_RATE: usize = 64 << 10;

    /// Largest block that can be counted.
    const MOST_BLOCK_BYTES: usize = 1 << 30;

    /// Whether a server can work with them.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let durations = [
            ("handshake_timeout", self.handshake_timeout),
            ("open_timeout", self.open_timeout),
            ("message_timeout", self.message_timeout),
            ("idle_timeout", self.idle_timeout.unwrap_or(Duration::MAX)),
            ("keepalive", self.keepalive.unwrap_or(Duration::MAX)),
            ("write_timeout", self.write_timeout),
            ("shutdown_grace", self.shutdown_grace),
        ];
        let numbers = [
            ("max_connections", self.max_connections as u64),
            ("max_newcomers", self.max_newcomers as u64),
            ("max_total_message_bytes", self.max_total_message_bytes as u64),
            ("limits.max_block_bytes", self.limits.max_block_bytes as u64),
            ("limits.max_segments", self.limits.max_segments as u64),
            ("max_window_span", self.max_window_span),
        ];
        let zero_durations = durations.iter().filter(|(_, value)| value.is_zero()).map(|(name, _)| *name);
        let zero_numbers = numbers.iter().filter(|(_, value)| *value == 0).map(|(name, _)| *name);
        if let Some(setting) = zero_durations.chain(zero_numbers).next() {
            return Err(SettingsError::Zero { setting });
        }
        if self.limits.max_block_bytes > Self::MOST_BLOCK_BYTES {
            let (bytes, most) = (self.limits.max_block_bytes, Self::MOST_BLOCK_BYTES);
            return Err(SettingsError::BlockTooLarge { bytes, most });
        }
        // A message has a little more room than the largest block needs, and it may be filled with data.
        let least = self.limits.max_message_bytes() + BLOCK_OVERHEAD;
        let sizes = [
            ("max_window_bytes", self.max_window_bytes),
            ("max_total_window_bytes", self.max_total_window_bytes),
            ("max_unflushed_bytes", self.max_unflushed_bytes),
            ("max_total_unflushed_bytes", self.max_total_unflushed_bytes),
        ];
        match sizes.into_iter().find(|&(_, bytes)| bytes < least) {
            Some((setting, bytes)) => Err(SettingsError::NoRoomForABlock { setting, bytes, least }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_and_settings_that_cannot_work_are_named() {
        assert_eq!(ServerSettings::default().validate(), Ok(()));
        let check = |change: &dyn Fn(&mut ServerSettings), name: &str| {
            let mut settings = ServerSettings::default();
            change(&mut settings);
            let error = settings.validate().unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        };
        check(&|s| s.max_connections = 0, "max_connections");
        check(&|s| s.max_newcomers = 0, "max_newcomers");
        check(&|s| s.message_timeout = Duration::ZERO, "message_timeout");
        check(&|s| s.idle_timeout = Some(Duration::ZERO), "idle_timeout");
        check(&|s| s.max_window_span = 0, "max_window_span");
        check(&|s| s.max_window_bytes = 16 << 20, "max_window_bytes");
        check(&|s| s.max_unflushed_bytes = 1, "max_unflushed_bytes");
        check(&|s| s.limits.max_block_bytes = 2 << 30, "limits.max_block_bytes");
    }
}
