//! Puts what arrives into sequence order. Pure.
//!
//! ```text
//!            next                next + span
//!   below     |   held, waiting    |   too far
//!  -----------+--------------------+-----------> sequence
//! ```
//!
//! What is offered at `next` comes back at once and is not kept. What is ahead of it is kept, bounded in span and in
//! bytes, until its turn comes. Everything else is handed back: nothing beyond the bounds takes memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use tlog_proto::Sequence;

/// How much may wait for an earlier sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowLimits {
    /// How far past the expected sequence something may be; the expected one itself counts as the first.
    pub(crate) span: u64,
    /// Bytes of everything that waits.
    pub(crate) bytes: usize,
}

/// What waits for an earlier sequence, and which sequence that is.
///
/// After [`Offered::Expected`] call [`Window::take_next`] until it answers none.
///
/// Invariant: every key of `waiting` is at or past `next`; at `next` only between an expected one and the calls of
/// `take_next` that follow it. `bytes` is the sum over `waiting`.
#[derive(Debug)]
pub(crate) struct Window<T> {
    limits: WindowLimits,
    next: Sequence,
    waiting: BTreeMap<Sequence, (usize, T)>,
    bytes: usize,
}

/// What became of something offered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offered<T> {
    /// It is its turn. The window now expects the one after it.
    Expected(T),
    /// It is kept until its turn.
    Waits,
    /// Something waits under this sequence already; it has been replaced by what was offered, and this is the old one.
    Replaced(T),
    /// Its turn is over.
    Below(T),
    /// Beyond the span. Nothing is kept.
    TooFar,
    /// There is no room in bytes. Nothing is kept.
    Full,
}

impl<T> Window<T> {
    /// An empty one that expects `next`.
    pub(crate) fn new(next: Sequence, limits: WindowLimits) -> Self {
        Self { limits, next, waiting: BTreeMap::new(), bytes: 0 }
    }

    /// The sequence whose turn it is.
    pub(crate) fn next(&self) -> Sequence {
        self.next
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Offers what arrived, of the given size.
    pub(crate) fn offer(&mut self, sequence: Sequence, bytes: usize, item: T) -> Offered<T> {
        if sequence < self.next {
            return Offered::Below(item);
        }
        let free = self.limits.bytes.saturating_sub(self.bytes);
        let expected = sequence == self.next;
        match self.waiting.entry(sequence) {
            Entry::Occupied(mut entry) => {
                let (held, _) = entry.get();
                if bytes > free.saturating_add(*held) {
                    return Offered::Full;
                }
                let (held, old) = entry.insert((bytes, item));
                self.bytes = self.bytes - held + bytes;
                Offered::Replaced(old)
            }
            Entry::Vacant(_) if expected => {
                self.next = self.next.next();
                Offered::Expected(item)
            }
            Entry::Vacant(_) if sequence.0 - self.next.0 >= self.limits.span => Offered::TooFar,
            Entry::Vacant(_) if bytes > free => Offered::Full,
            Entry::Vacant(entry) => {
                entry.insert((bytes, item));
                self.bytes += bytes;
                Offered::Waits
            }
        }
    }

    /// Whether it would be kept, or be refused for want of room: it is ahead and not held yet.
    pub(crate) fn is_ahead(&self, sequence: Sequence) -> bool {
        sequence > self.next && !self.waiting.contains_key(&sequence)
    }

    /// What has waited and whose turn has come, if it is there.
    pub(crate) fn take_next(&mut self) -> Option<T> {
        let (bytes, item) = self.waiting.remove(&self.next)?;
        self.bytes -= bytes;
        self.next = self.next.next();
        Some(item)
    }

    /// Expects an earlier sequence from now on. What waits goes on waiting.
    pub(crate) fn rewind(&mut self, next: Sequence) {
        debug_assert!(next <= self.next, "a window never skips");
        self.next = next;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: WindowLimits = WindowLimits { span: 4, bytes: 100 };

    fn window() -> Window<&'static str> {
        Window::new(Sequence(10), LIMITS)
    }

    fn drain<T>(window: &mut Window<T>) -> Vec<T> {
        std::iter::from_fn(|| window.take_next()).collect()
    }

    #[test]
    fn what_comes_early_waits_for_what_is_expected() {
        let mut window = window();
        assert_eq!(window.offer(Sequence(12), 10, "c"), Offered::Waits);
        assert_eq!(window.offer(Sequence(11), 10, "b"), Offered::Waits);
        assert_eq!(drain(&mut window), Vec::<&str>::new());
        assert_eq!(window.offer(Sequence(10), 10, "a"), Offered::Expected("a"));
        assert_eq!(drain(&mut window), ["b", "c"]);
        assert_eq!((window.next(), window.bytes(), window.len()), (Sequence(13), 0, 0));
        assert_eq!(window.offer(Sequence(12), 10, "c"), Offered::Below("c"));
    }

    #[test]
    fn the_later_of_two_under_one_sequence_is_kept() {
        let mut window = window();
        assert_eq!(window.offer(Sequence(11), 10, "b"), Offered::Waits);
        assert_eq!(window.offer(Sequence(11), 20, "B"), Offered::Replaced("b"));
        assert_eq!(window.bytes(), 20);
        assert_eq!(window.offer(Sequence(11), 101, "too big"), Offered::Full);
        window.offer(Sequence(10), 1, "a");
        assert_eq!(drain(&mut window), ["B"]);
    }

    #[test]
    fn beyond_the_span_or_the_bytes_nothing_is_kept_and_the_expected_one_always_gets_in() {
        let mut window = window();
        assert_eq!(window.offer(Sequence(14), 1, "far"), Offered::TooFar);
        assert_eq!(window.offer(Sequence(u64::MAX), 1, "far"), Offered::TooFar);
        assert_eq!(window.offer(Sequence(13), 100, "d"), Offered::Waits);
        assert_eq!(window.offer(Sequence(12), 1, "c"), Offered::Full);
        assert_eq!(window.offer(Sequence(10), 1000, "a"), Offered::Expected("a"));
    }

    #[test]
    fn after_a_rewind_what_waits_still_waits() {
        let mut window = window();
        window.offer(Sequence(12), 10, "c");
        window.rewind(Sequence(10));
        window.rewind(Sequence(9));
        assert!(window.is_ahead(Sequence(10)) && !window.is_ahead(Sequence(12)));
        window.offer(Sequence(9), 1, "-");
        window.offer(Sequence(10), 1, "a");
        assert_eq!(drain(&mut window), Vec::<&str>::new());
        window.offer(Sequence(11), 1, "b");
        assert_eq!(drain(&mut window), ["c"]);
    }

    proptest! {
        /// The oracle keeps everything that ever arrived within the bounds, in one list, and walks it.
        #[test]
        fn any_order_comes_out_in_order_once_and_within_bounds(
            arrivals in prop::collection::vec((0_u64..40, 1_usize..40), 0..200),
        ) {
            let mut window = Window::new(Sequence(5), LIMITS);
            let mut out = Vec::new();
            let mut kept: Vec<(u64, usize)> = Vec::new();
            let mut next = 5;
            for (sequence, bytes) in arrivals {
                let waiting: usize = kept.iter().map(|(_, bytes)| bytes).sum();
                let held = kept.iter().find(|(held, _)| *held == sequence).copied();
                let offered = window.offer(Sequence(sequence), bytes, (sequence, bytes));
                match (sequence, held) {
                    (sequence, _) if sequence < next => {
                        prop_assert_eq!(offered, Offered::Below((sequence, bytes)));
                    }
                    (_, Some((_, old))) => {
                        if waiting - old + bytes > 100 {
                            prop_assert_eq!(offered, Offered::Full);
                        } else {
                            prop_assert_eq!(offered, Offered::Replaced((sequence, old)));
                            kept.retain(|(held, _)| *held != sequence);
                            kept.push((sequence, bytes));
                        }
                    }
                    (sequence, None) if sequence == next => {
                        prop_assert_eq!(offered, Offered::Expected((sequence, bytes)));
                        out.push(sequence);
                        next += 1;
                        while let Some(at) = kept.iter().position(|(held, _)| *held == next) {
                            prop_assert_eq!(window.take_next(), Some(kept.remove(at)));
                            out.push(next);
                            next += 1;
                        }
                        prop_assert_eq!(window.take_next(), None);
                    }
                    (sequence, None) if sequence >= next + 4 => prop_assert_eq!(offered, Offered::TooFar),
                    (_, None) if waiting + bytes > 100 => prop_assert_eq!(offered, Offered::Full),
                    (sequence, None) => {
                        prop_assert_eq!(offered, Offered::Waits);
                        kept.push((sequence, bytes));
                    }
                }
                prop_assert_eq!(window.bytes(), kept.iter().map(|(_, bytes)| bytes).sum::<usize>());
                prop_assert!(window.bytes() <= 100 && window.len() == kept.len());
            }
            prop_assert_eq!(&out, &(5..next).collect::<Vec<_>>());
            prop_assert_eq!(out.iter().collect::<BTreeSet<_>>().len(), out.len());
        }
    }
}
