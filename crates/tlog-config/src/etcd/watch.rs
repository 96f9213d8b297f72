//! Following an etcd.
//!
//! ```text
//!             everything is read              a server ends the connection, or hangs
//!  looking  ---------------------> following ----------------------------------------> looking
//!     |  \                             |
//!     |   `- none answers: away,       `- the revision was compacted: looking, at once
//!     |      then again after a pause
//!     `- at first, instead of reading: following from the revision that is known
//! ```
//!
//! After any interruption everything is read again and compared. That costs little, and covers all that can have happened meanwhile: a
//! compaction, a server that is behind, an etcd that was set up anew or from a backup, whose revisions say nothing about ours.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{EventType, WatchResponse, WatchStream};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::link::{Link, document_of, fault};
use super::{Found, Settings, Want};
use crate::{
    DocumentChange, DocumentKey, DocumentWatch, EtcdFault, Fault, Place, Problem, Snapshot, SourceError,
    SourceEvent,
};

/// The pause after the first round in which no server answered; then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Follows an etcd through all of its servers.
#[derive(Debug)]
pub(super) struct EtcdWatch {
    settings: Arc<Settings>,
    following: Option<Following>,
    /// The revision that is known, as long as nothing was missed since.
    known: Option<u64>,
    /// The server to try next.
    next: usize,
    pause: Duration,
    retry_at: Instant,
}

#[derive(Debug)]
struct Following {
    /// The connection lives as long as this does.
    link: Link,
    stream: WatchStream,
    since: Instant,
}

impl EtcdWatch {
    pub(super) fn new(settings: Arc<Settings>, since: u64) -> Self {
        Self {
            settings,
            following: None,
            known: Some(since),
            next: 0,
            pause: FIRST_PAUSE,
            retry_at: Instant::now(),
        }
    }

    /// Finds a server to follow. What it had to read is answered.
    async fn find(&mut self) -> Result<Option<SourceEvent>, SourceError> {
        let want = self.known.map_or(Want::AllAndWatch, Want::Watch);
        match self.settings.find(self.next, want).await {
            Ok(Found { index, link, snapshot, stream }) => {
                self.next = index;
                self.known = snapshot.as_ref().map(|snapshot| snapshot.revision).or(self.known);
                debug!(endpoint = link.endpoint(), revision = self.known, "following etcd");
                self.following = stream.map(|stream| Following { link, stream, since: Instant::now() });
                Ok(snapshot.map(|snapshot| self.everything(snapshot)))
            }
            Err(error) => {
                self.known = None;
                self.rest();
                Err(error)
            }
        }
    }

    /// All that there is. Nothing at all, where there was something, is an etcd that was set up anew, and not somebody who removed every
    /// vdisk while nobody looked.
    fn everything(&self, snapshot: Snapshot) -> SourceEvent {
        if !snapshot.documents.is_empty() {
            self.settings.had_documents.store(true, Ordering::Relaxed);
        } else if self.settings.had_documents.load(Ordering::Relaxed) {
            let endpoints: Vec<String> = self.settings.endpoints.iter().map(ToString::to_string).collect();
            let place = Place {
                origin: format!("etcd at {}", endpoints.join(",")).into(),
                path: String::new(),
                at: None,
            };
            return SourceEvent::Refused(SourceError::Malformed(vec![Problem {
                place,
                fault: Fault::NothingLeft,
            }]));
        }
        SourceEvent::All(snapshot)
    }

    /// What one message says; none where it is nothing to us.
    fn handle_response(&mut self, response: &WatchResponse) -> Option<SourceEvent> {
        if response.canceled() {
            if response.compact_revision() > 0 {
                info!(
                    compacted = response.compact_revision(),
                    "etcd has forgotten what is to be followed; reading everything"
                );
                self.following = None;
                self.known = None;
            } else {
                self.lose(&EtcdFault::Refused(response.cancel_reason().to_owned()));
            }
            return None;
        }
        let changes: Vec<DocumentChange> = response
            .events()
            .iter()
            .filter_map(|event| {
                let kv = event.kv()?;
                match event.event_type() {
                    EventType::Put => {
                        document_of(kv.key(), kv.value()).map(|(key, document)| (key, Some(document)))
                    }
                    EventType::Delete => {
                        Some((DocumentKey::parse(std::str::from_utf8(kv.key()).ok()?)?, None))
                    }
                }
            })
            .collect();
        if changes.iter().any(|(_, document)| document.is_some()) {
            self.settings.had_documents.store(true, Ordering::Relaxed);
        }
        let revision = u64::try_from(response.header()?.revision()).ok()?;
        self.known = Some(revision);
        if changes.is_empty() { None } else { Some(SourceEvent::Changed { changes, revision }) }
    }

    /// The connection is of no use any more.
    fn lose(&mut self, why: &EtcdFault) {
        self.known = None;
        let Some(following) = self.following.take() else { return };
        info!(endpoint = following.link.endpoint(), %why, "lost the connection to etcd");
        // Where there are others, they come first.
        self.next += 1;
        if following.since.elapsed() > LONGEST_PAUSE {
            self.pause = FIRST_PAUSE;
            self.retry_at = Instant::now();
        } else {
            // It would be lost again, and again.
            self.rest();
        }
    }

    /// Not at once.
    fn rest(&mut self) {
        self.retry_at = Instant::now() + self.pause.mul_f64(0.5 + jitter());
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
    }
}

/// From 0 to 1, so that those who lost the same server do not all come back at once.
fn jitter() -> f64 {
    f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX)
}

#[async_trait]
impl DocumentWatch for EtcdWatch {
    async fn next(&mut self) -> SourceEvent {
        loop {
            match &mut self.following {
                Some(following) => match following.stream.message().await {
                    Ok(Some(response)) => {
                        if let Some(event) = self.handle_response(&response) {
                            return event;
                        }
                    }
                    Ok(None) => self.lose(&EtcdFault::Ended),
                    Err(error) => self.lose(&fault(&error)),
                },
                None => {
                    sleep_until(self.retry_at).await;
                    match self.find().await {
                        Ok(None) => {}
                        Ok(Some(event)) => return event,
                        Err(error) => return SourceEvent::Away(error),
                    }
                }
            }
        }
    }

    async fn reread(&mut self) -> SourceEvent {
        self.following = None;
        self.known = None;
        match self.find().await {
            Ok(Some(event)) => event,
            // Cannot be: nothing was known, so everything was read.
            Ok(None) => SourceEvent::Away(SourceError::NoServer),
            Err(error) => SourceEvent::Away(error),
        }
    }
}
