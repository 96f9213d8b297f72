//! A source in memory, changed by calls.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{Document, DocumentKey, DocumentSource, DocumentWatch, Snapshot, SourceError, SourceEvent};

/// Documents in memory, for tests and for programs that know their clusters themselves. Clones are the same source.
#[derive(Debug, Clone)]
pub struct MemorySource {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    snapshot: Snapshot,
    away: bool,
}

impl Default for MemorySource {
    fn default() -> Self {
        Self { state: Arc::new(watch::Sender::new(State::default())) }
    }
}

impl MemorySource {
    /// Puts a document, as YAML text, under the key that it has in etcd. A key that is none of ours is ignored, as there.
    pub fn put(&self, key: &str, text: &str) {
        if let Some(known) = DocumentKey::parse(key) {
            self.change(|state| drop(state.snapshot.documents.insert(known, Document::parse(key, text))));
        }
    }

    /// Takes a document away.
    pub fn remove(&self, key: &str) {
        if let Some(known) = DocumentKey::parse(key) {
            self.change(|state| drop(state.snapshot.documents.remove(&known)));
        }
    }

    /// From now on it cannot be read, until [`MemorySource::set_back`].
    pub fn set_away(&self) {
        self.change(|state| state.away = true);
    }

    /// From now on it can be read again.
    pub fn set_back(&self) {
        self.change(|state| state.away = false);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            state.snapshot.revision += 1;
            change(state);
        });
    }
}

#[async_trait]
impl DocumentSource for MemorySource {
    async fn get(&self) -> Result<Snapshot, SourceError> {
        let state = self.state.borrow();
        if state.away { Err(SourceError::Told) } else { Ok(state.snapshot.clone()) }
    }

    fn watch(&self, since: u64) -> Box<dyn DocumentWatch> {
        Box::new(MemoryWatch { state: self.state.subscribe(), since })
    }
}

#[derive(Debug)]
struct MemoryWatch {
    state: watch::Receiver<State>,
    since: u64,
}

#[async_trait]
impl DocumentWatch for MemoryWatch {
    async fn next(&mut self) -> SourceEvent {
        let since = self.since;
        if self.state.wait_for(|state| state.snapshot.revision != since).await.is_err() {
            // Nobody is left who could change it.
            std::future::pending::<()>().await;
        }
        self.reread().await
    }

    async fn reread(&mut self) -> SourceEvent {
        let state = self.state.borrow_and_update();
        self.since = state.snapshot.revision;
        if state.away {
            SourceEvent::Away(SourceError::Told)
        } else {
            SourceEvent::All(state.snapshot.clone())
        }
    }
}
