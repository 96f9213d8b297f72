//! How long a link waits, and how much it holds.

use std::time::Duration;

/// Bounds of one [`Link`](crate::Link).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// A connection must be there, let in and have answered the first questions within this time.
    pub connect: Duration,
    /// A connection on which commands wait and nothing is answered for this long is given up: its server hangs.
    pub response: Duration,
    /// A connection that was not used for this long is asked whether it is still there before a command is sent on it:
    /// its server may have been restarted meanwhile.
    pub idle: Duration,
    /// Pause after the first failed dial. It doubles with each one that follows, up to [`Self::longest_pause`]; each time
    /// somewhere between a half and the whole of it is waited.
    pub first_pause: Duration,
    /// The longest pause between two dials.
    pub longest_pause: Duration,
    /// So many commands are on the way at once; more wait.
    pub commands: usize,
    /// So many bytes of commands are on the way at once; more wait. One command that is larger goes alone.
    pub bytes: usize,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            response: Duration::from_secs(5),
            idle: Duration::from_secs(1),
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(5),
            commands: 1024,
            bytes: 32 << 20,
        }
    }
}

impl LinkLimits {
    /// How long to wait after this many failures in a row, before jitter.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let doubled =
            2_u32.checked_pow(failures.saturating_sub(1)).and_then(|n| self.first_pause.checked_mul(n));
        doubled.unwrap_or(self.longest_pause).min(self.longest_pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_one() {
        let limits = LinkLimits::default();
        let pauses: Vec<_> = (1..=9).map(|failures| limits.pause(failures).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(limits.pause(u32::MAX), limits.longest_pause);
    }
}
