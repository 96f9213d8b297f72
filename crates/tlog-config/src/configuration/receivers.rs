//! Those who wait for one name of many to change.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// A sender for each name that somebody has asked for. Names that nobody waits for any more are forgotten in time, so that a peer that
/// asks for one name after the other does not fill the memory.
#[derive(Debug)]
pub(super) struct Receivers<K, V> {
    senders: BTreeMap<K, watch::Sender<V>>,
    /// From so many on it is looked which of them are still waited for.
    sweep_at: usize,
}

const LEAST_SWEPT: usize = 64;

impl<K, V> Default for Receivers<K, V> {
    fn default() -> Self {
        Self { senders: BTreeMap::new(), sweep_at: LEAST_SWEPT }
    }
}

impl<K: Ord + Clone, V> Receivers<K, V> {
    /// A receiver for a name, with what it is now.
    pub(super) fn subscribe(&mut self, key: &K, now: impl FnOnce() -> V) -> watch::Receiver<V> {
        if let Some(sender) = self.senders.get(key) {
            return sender.subscribe();
        }
        if self.senders.len() >= self.sweep_at {
            self.senders.retain(|_, sender| sender.receiver_count() > 0);
            // Twice as many: then looking costs nothing worth counting, however many there are.
            self.sweep_at = (2 * self.senders.len()).max(LEAST_SWEPT);
        }
        let (sender, receiver) = watch::channel(now());
        self.senders.insert(key.clone(), sender);
        receiver
    }

    /// Tells those who wait for a name.
    pub(super) fn send(&self, key: &K, value: V) {
        if let Some(sender) = self.senders.get(key) {
            sender.send_replace(value);
        }
    }

    /// The same, unless it is what they know.
    pub(super) fn send_if_other(&self, key: &K, value: &V)
    where
        V: Clone + PartialEq,
    {
        if let Some(sender) = self.senders.get(key) {
            sender.send_if_modified(|now| {
                let other = *now != *value;
                if other {
                    now.clone_from(value);
                }
                other
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_waits_for_are_forgotten_and_others_are_not() {
        let mut receivers = Receivers::<u32, u32>::default();
        let mut kept = receivers.subscribe(&0, || 0);
        for name in 1..10_000 {
            drop(receivers.subscribe(&name, || 0));
        }
        assert!(receivers.senders.len() <= LEAST_SWEPT);
        receivers.send(&0, 7);
        assert!(kept.has_changed().unwrap());
        assert_eq!(*kept.borrow_and_update(), 7);
    }
}
