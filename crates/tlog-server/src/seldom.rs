//! Warnings that anybody on the network can cause, as often as they like.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::registry::lock;

/// So many warnings of a kind ...
const AT_MOST: u32 = 10;

/// ... in so long.
const WITHIN: Duration = Duration::from_secs(1);

/// Bounds how often each kind of warning is logged, so that who connects ten thousand times a second does not fill the disk of the log.
/// Each is counted in the metrics, logged or not.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<HashMap<&'static str, Kind>>);

/// Logs a warning of a kind, unless there were too many of that kind just now.
macro_rules! warn_seldom {
    ($seldom:expr, $kind:expr, $($what:tt)+) => {
        if let Some(left_out) = $seldom.log($kind) {
            let left_out = (left_out > 0).then_some(left_out);
            tracing::warn!(left_out, $($what)+);
        }
    };
}
pub(crate) use warn_seldom;

#[derive(Debug)]
struct Kind {
    since: Instant,
    logged: u32,
    left_out: u64,
}

impl Seldom {
    /// Whether a warning of this kind is to be logged now; then, how many of its kind were left out since the last one.
    pub(crate) fn log(&self, kind: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut kinds = lock(&self.0);
        let kind = kinds.entry(kind).or_insert(Kind { since: now, logged: 0, left_out: 0 });
        if now.duration_since(kind.since) >= WITHIN {
            (kind.since, kind.logged) = (now, 0);
        }
        if kind.logged < AT_MOST {
            kind.logged += 1;
            return Some(std::mem::take(&mut kind.left_out));
        }
        kind.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_many_warnings_ten_are_logged_in_a_second_and_the_others_counted() {
        let seldom = Seldom::default();
        let logged = (0..100).filter(|_| seldom.log("timeout") == Some(0)).count();
        assert_eq!((logged, seldom.log("timeout")), (10, None));
        assert_eq!(seldom.log("tls"), Some(0), "another kind");
        tokio::time::advance(WITHIN).await;
        assert_eq!((seldom.log("timeout"), seldom.log("timeout")), (Some(91), Some(0)));
    }
}
