//! Who may be connected: clients, and those that have not said yet who they are.
//!
//! ```text
//!  accepted --> newcomer --> greeted --> one of max_connections
//!                  |
//!                  +--> not in time, no handshake, gone, or the oldest of too many
//! ```
//!
//! Anybody who reaches the server can open one, so they have places of their own: however many come and say nothing, they take none from
//! those who do. Who is a client says so at once, and is a newcomer for a moment only; where all places are taken, the oldest of them has
//! shown for the longest time that it is none, and goes. It goes after [`CHANCE`] at the earliest: until then nobody is accepted, and whoever
//! comes waits at the listener.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::registry::lock;

/// How long a newcomer is not taken for the oldest of too many. Thousands of clients that come back at once are newcomers together, and
/// over TLS it takes a while until it is the turn of each.
pub(crate) const CHANCE: Duration = Duration::from_secs(1);

/// The places of a server's connections.
#[derive(Debug)]
pub(crate) struct Places {
    most_newcomers: usize,
    most_clients: usize,
    taken: Mutex<Taken>,
    /// A newcomer's place has become free.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// In the order in which they came.
    newcomers: BTreeMap<u64, Newcomer>,
    clients: usize,
}

#[derive(Debug)]
struct Newcomer {
    since: Instant,
    /// Tells it that it has to go.
    go: oneshot::Sender<()>,
}

/// One of the places, first that of a newcomer. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    is_client: bool,
}

/// Resolves where a newcomer has to go, and never once it is none any more.
#[derive(Debug)]
pub(crate) struct Crowded(oneshot::Receiver<()>);

impl Places {
    /// So many of each kind.
    pub(crate) fn new(most_newcomers: usize, most_clients: usize) -> Self {
        Self { most_newcomers, most_clients, taken: Mutex::default(), freed: Notify::new() }
    }

    /// Waits until one more may come: a place is free, or the oldest newcomer has had its [`CHANCE`]. Cancel safe. For one caller.
    pub(crate) async fn room(&self) {
        loop {
            let until = {
                let taken = lock(&self.taken);
                match taken.newcomers.first_key_value() {
                    Some((_, oldest)) if taken.newcomers.len() >= self.most_newcomers => {
                        oldest.since + CHANCE
                    }
                    _ => return,
                }
            };
            if until <= Instant::now() {
                return;
            }
            tokio::select! {
                () = self.freed.notified() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// One more. Where all places are taken, the oldest newcomer has to go.
    pub(crate) fn enter(self: &Arc<Self>) -> (Place, Crowded) {
        let (go, crowded) = oneshot::channel();
        let mut taken = lock(&self.taken);
        if taken.newcomers.len() >= self.most_newcomers
            && let Some((_, oldest)) = taken.newcomers.pop_first()
        {
            metrics::gauge!("tlog_server_newcomers").decrement(1.0);
            let _gone_already = oldest.go.send(());
        }
        let number = taken.next;
        taken.next += 1;
        taken.newcomers.insert(number, Newcomer { since: Instant::now(), go });
        metrics::gauge!("tlog_server_newcomers").increment(1.0);
        (Place { places: Arc::clone(self), number, is_client: false }, Crowded(crowded))
    }

    /// How many newcomers there are.
    pub(crate) fn newcomers(&self) -> usize {
        lock(&self.taken).newcomers.len()
    }
}

impl Place {
    /// Whoever has it has said who it is, and gets the place of a client. False where all of those are taken.
    pub(crate) fn greeted(&mut self) -> bool {
        let mut taken = lock(&self.places.taken);
        if self.is_client || taken.clients >= self.places.most_clients {
            return self.is_client;
        }
        taken.clients += 1;
        self.is_client = true;
        self.leave_newcomers(&mut taken);
        true
    }

    fn leave_newcomers(&self, taken: &mut Taken) {
        if taken.newcomers.remove(&self.number).is_some() {
            metrics::gauge!("tlog_server_newcomers").decrement(1.0);
            self.places.freed.notify_one();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        if self.is_client {
            taken.clients -= 1;
        }
        self.leave_newcomers(&mut taken);
    }
}

impl Crowded {
    /// Waits for it. Cancel safe.
    pub(crate) async fn out(&mut self) {
        if (&mut self.0).await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    async fn has_room(places: &Places) -> bool {
        timeout(Duration::ZERO, places.room()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_too_many_goes_once_it_has_had_its_chance() {
        let places = Arc::new(Places::new(2, 10));
        let (_first, mut first_out) = places.enter();
        advance(CHANCE / 2).await;
        let (mut second, mut second_out) = places.enter();
        assert!(!has_room(&places).await, "both have just come");
        advance(CHANCE / 2).await;
        assert!(has_room(&places).await, "the first has had its chance");
        let (_third, mut third_out) = places.enter();
        first_out.out().await;
        assert_eq!(places.newcomers(), 2);

        // Who has greeted makes room at once, and is not sent away later.
        let waiting = places.room();
        assert!(second.greeted());
        waiting.await;
        let _fourth = places.enter();
        advance(CHANCE).await;
        let _fifth = places.enter();
        third_out.out().await;
        assert!(timeout(CHANCE, second_out.out()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_room_gets_it_as_soon_as_the_oldest_may_go() {
        let places = Arc::new(Places::new(1, 10));
        let _first = places.enter();
        let begun = Instant::now();
        places.room().await;
        assert_eq!(begun.elapsed().as_secs_f64().round(), CHANCE.as_secs_f64());
    }

    #[tokio::test]
    async fn clients_have_places_of_their_own() {
        let places = Arc::new(Places::new(10, 1));
        let ((mut first, _), (mut second, _)) = (places.enter(), places.enter());
        assert!(first.greeted() && !second.greeted());
        assert_eq!(places.newcomers(), 1);
        drop(first);
        assert!(second.greeted());
        drop(second);
        assert_eq!(places.newcomers(), 0);
    }
}
