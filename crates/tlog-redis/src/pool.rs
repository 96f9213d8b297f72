//! The stores of one vdisk's log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tlog_config::RedisServer;
use tlog_store::{ReplaceableStore, ShardStore};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::closed::ClosedStore;
use crate::{Link, RedisStore};

/// The data connections of one vdisk: number i is the store that holds shard i. Cheap to clone; clones are the same pool.
///
/// Where its factory follows a configuration, a store can be exchanged for another one while it is in use: what
/// [`RedisPool::data_connection_at`] answered goes on with the new one.
#[derive(Clone, Debug)]
pub struct RedisPool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stores: Vec<Arc<ReplaceableStore>>,
    state: Mutex<State>,
    closed: CancellationToken,
    /// Ends what follows the configuration for a pool that was dropped without being closed.
    _closed_when_dropped: DropGuard,
}

#[derive(Debug)]
struct State {
    closed: bool,
    /// Link i is that of store i; none where that one is no Redis, or the pool is closed.
    links: Vec<Option<Link>>,
}

/// Why a pool has no such connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisPoolError {
    /// It was closed.
    #[error("the pool is closed")]
    Closed,
    /// There are fewer.
    #[error("there is no data connection {index}: the pool has {count}")]
    NoSuchConnection {
        /// Asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// It has no link: it is a store in memory or on this machine.
    #[error("data connection {0} is no Redis server")]
    NotRedis(usize),
}

impl RedisPool {
    /// A pool of stores of any kind, for factories outside this crate.
    pub fn of_stores(stores: impl IntoIterator<Item = Arc<dyn ShardStore>>) -> Self {
        Self::new(stores.into_iter().map(|store| (store, None)))
    }

    pub(crate) fn of_links(links: impl IntoIterator<Item = Link>) -> Self {
        Self::new(links.into_iter().map(|link| (store_on(&link), Some(link))))
    }

    fn new(connections: impl Iterator<Item = (Arc<dyn ShardStore>, Option<Link>)>) -> Self {
        let replaceable = |(store, link)| (Arc::new(ReplaceableStore::new(store)), link);
        let (stores, links) = connections.map(replaceable).unzip();
        let closed = CancellationToken::new();
        let _closed_when_dropped = closed.clone().drop_guard();
        let state = Mutex::new(State { closed: false, links });
        Self { inner: Arc::new(Inner { stores, state, closed, _closed_when_dropped }) }
    }

    /// How many there are: k + m.
    pub fn data_connection_count(&self) -> usize {
        self.inner.stores.len()
    }

    /// The store that holds shard `index`. It refuses everything once the pool is closed.
    pub fn data_connection_at(&self, index: usize) -> Result<Arc<dyn ShardStore>, RedisPoolError> {
        let state = self.inner.open_state()?;
        let store = self.inner.stores.get(index).ok_or_else(|| self.none_at(index))?;
        drop(state);
        Ok(Arc::clone(store) as _)
    }

    /// The link to the server of that store, for commands of one's own. Not exchanged when the store is.
    pub fn link_at(&self, index: usize) -> Result<Link, RedisPoolError> {
        let state = self.inner.open_state()?;
        let link = state.links.get(index).ok_or_else(|| self.none_at(index))?;
        link.clone().ok_or(RedisPoolError::NotRedis(index))
    }

    /// All stores, in order; those of a closed pool refuse everything.
    pub fn stores(&self) -> Vec<Arc<dyn ShardStore>> {
        self.inner.stores.iter().map(|store| Arc::clone(store) as _).collect()
    }

    /// Closes it at once: it gives out no connection any more, and what it gave out refuses everything. Operations that are under way
    /// end by themselves, or with the time limits. Links that nobody else uses are closed.
    pub fn close(&self) {
        self.inner.close();
    }

    fn none_at(&self, index: usize) -> RedisPoolError {
        RedisPoolError::NoSuchConnection { index, count: self.data_connection_count() }
    }

    pub(crate) fn downgrade(&self) -> WeakPool {
        WeakPool { inner: Arc::downgrade(&self.inner), closed: self.inner.closed.clone() }
    }
}

/// A pool that is there as long as somebody uses it.
#[derive(Debug)]
pub(crate) struct WeakPool {
    inner: Weak<Inner>,
    closed: CancellationToken,
}

impl WeakPool {
    /// Ends when the pool is closed or dropped.
    pub(crate) async fn gone(&self) {
        self.closed.cancelled().await;
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.closed.is_cancelled()
    }

    pub(crate) fn close(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.close();
        }
    }

    /// The servers of its stores, in order; none once it is gone.
    pub(crate) fn servers(&self) -> Option<Vec<RedisServer>> {
        let inner = self.inner.upgrade()?;
        let state = inner.open_state().ok()?;
        Some(state.links.iter().flatten().map(|link| link.server().clone()).collect())
    }

    /// Exchanges the store at `index` for the one behind `link`.
    pub(crate) fn replace(&self, index: usize, link: Link) {
        let Some(inner) = self.inner.upgrade() else { return };
        let Ok(mut state) = inner.open_state() else { return };
        if let (Some(place), Some(store)) = (state.links.get_mut(index), inner.stores.get(index)) {
            store.replace(store_on(&link));
            *place = Some(link);
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, RedisPoolError> {
        let state = self.state();
        if state.closed { Err(RedisPoolError::Closed) } else { Ok(state) }
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.links.fill(None);
        for store in &self.stores {
            store.replace(Arc::new(ClosedStore::new(store.address())));
        }
        self.closed.cancel();
    }
}

fn store_on(link: &Link) -> Arc<dyn ShardStore> {
    Arc::new(RedisStore::new(link.clone()))
}
