//! The client as its callers see it.

use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tlog_proto::{
    Block, BlockFault, BlockHash, BlockIndex, HandshakeRequest, Operation, Refusal, Sequence, SessionId,
    UnverifiedBlock, VdiskId,
};
use tokio::sync::{SemaphorePermit, TryAcquireError, mpsc, oneshot};
use tokio::time::timeout;

use crate::connection::{Connection, Names, Request};
use crate::handshake::{self, Greeted};
use crate::shared::{Draft, Handed, Shared, Ticket};
use crate::{
    AppendError, ClientOptions, ConnectError, Durable, Ending, Events, FlushError, ResendError,
    SlaveSyncError, Stats,
};

/// A connection to a tlog server, for the log of one vdisk.
///
/// Cheap to clone, and any number of tasks may use it: blocks get their sequences in the order in which they are handed
/// over. A task in the background does the reading and writing; it ends with the connection, with [`Client::close`], or
/// when the last clone is dropped, which is like `close`.
///
/// # What is guaranteed
///
/// A block is durable when its [`Durable`] handle, or a [`Client::flush`] begun after it was handed over, resolves to `Ok`;
/// nothing else says so. Blocks that are not durable are kept in memory, and when the connection ends
/// [`Client::unflushed`] gives them back. This client does not reconnect by itself.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    max_block_bytes: usize,
    vdisk: VdiskId,
    first_sequence: Sequence,
    session: SessionId,
    last_flushed: Option<Sequence>,
}

impl Client {
    /// Connects to the server at `addr` (`host:port`) and shakes hands for `vdisk`, starting at
    /// [`ClientOptions::first_sequence`]. Must be called within a tokio runtime, on which the connection then lives.
    ///
    /// Waits for the server's answer, for as long as the two timeouts of the options allow. The server hands the vdisk over
    /// to the newest connection: an older one, of whomever, is closed by it.
    pub async fn connect(
        addr: impl Display,
        vdisk: VdiskId,
        options: ClientOptions,
    ) -> Result<Client, ConnectError> {
        Self::connect_at(&addr.to_string(), vdisk, options.first_sequence, &options).await
    }

    /// Connects and goes on after the last sequence that the log durably holds. For an empty log that is
    /// [`ClientOptions::first_sequence`]. `reset_first_sequence` and `session` are not looked at.
    ///
    /// The session is always a new one. This takes two connections: the first asks where the log ends, by naming a first sequence that no log can continue
    /// with. An empty log takes even that; nothing is sent then and nothing has changed.
    ///
    /// What another client has sent and the server has not flushed yet lies before this client's first block in the log all
    /// the same: the server flushes it, and begins a new generation.
    pub async fn connect_continuing(
        addr: impl Display,
        vdisk: VdiskId,
        options: ClientOptions,
    ) -> Result<Client, ConnectError> {
        let addr = addr.to_string();
        // A new session always: with that of an earlier client, whose last blocks the server may hold and not have flushed,
        // ours would be taken for those blocks sent again, and be acknowledged without being stored.
        let options = ClientOptions { reset_first_sequence: false, session: None, ..options };
        let question = HandshakeRequest {
            // Not the session that will write: where the log is empty it must not be known for having begun at the end.
            session: handshake::random_session()?,
            ..HandshakeRequest::new(vdisk.clone(), Sequence(u64::MAX))
        };
        let Greeted { response, .. } = handshake::greet(&addr, &question, &options).await?;
        let last_flushed = match handshake::accepted(&question, &response) {
            Ok(()) => response.last_flushed,
            Err(ConnectError::Gap { last_flushed, .. }) => Some(last_flushed),
            Err(_) if response.refusal == Some(Refusal::Gap) => None,
            Err(ConnectError::ServerFailed { .. }) => return Err(ConnectError::LogEndUnknown { vdisk }),
            Err(error) => return Err(error),
        };
        let first = last_flushed.map_or(options.first_sequence, Sequence::next);
        Self::connect_at(&addr, vdisk, first, &options).await
    }

    async fn connect_at(
        addr: &str,
        vdisk: VdiskId,
        first_sequence: Sequence,
        options: &ClientOptions,
    ) -> Result<Client, ConnectError> {
        let session = match options.session {
            Some(session) => session,
            None => handshake::random_session()?,
        };
        let request = HandshakeRequest {
            reset_first_sequence: options.reset_first_sequence,
            session,
            ..HandshakeRequest::new(vdisk.clone(), first_sequence)
        };
        let Greeted { reader, writer, response } = handshake::greet(addr, &request, options).await?;
        handshake::accepted(&request, &response)?;
        let peer_version = response.version;
        tracing::debug!(%vdisk, peer = addr, %peer_version, %first_sequence, %session, "connected");

        let shared = Arc::new(Shared::new(first_sequence, options.max_unflushed_bytes));
        let (requests, questions) = mpsc::channel(16);
        let names = Names { vdisk: vdisk.clone(), peer: addr.to_owned() };
        let connection =
            Connection::new(shared.clone(), questions, reader, writer, options.write_timeout, names);
        tokio::spawn(connection.run());
        let inner = Inner {
            shared,
            requests,
            max_block_bytes: options.limits.max_block_bytes,
            vdisk,
            first_sequence,
            session,
            last_flushed: response.last_flushed,
        };
        Ok(Client { inner: Arc::new(inner) })
    }

    /// Hands over a write of `data` to block `index`, with the next sequence and the current time. It is on its way when this
    /// returns, and durable when the handle resolves; the handle may be dropped.
    ///
    /// Waits while [`ClientOptions::max_unflushed_bytes`] are not durable, and then asks the server to flush at once rather
    /// than when its aggregation is full or old. Callers get room in the order in which they wait. On an error, and where
    /// the future is dropped before it resolves, nothing was handed over.
    pub async fn set(&self, index: BlockIndex, data: impl Into<Bytes>) -> Result<Durable, AppendError> {
        let draft = self.draft_set(index, data.into())?;
        self.append(draft).await
    }

    /// Hands over a deletion of block `index`: from then on it reads as zeros. Else like [`Client::set`].
    pub async fn delete(&self, index: BlockIndex) -> Result<Durable, AppendError> {
        self.append(draft_delete(index)).await
    }

    /// Hands over a block with the caller's own sequence and timestamp. Else like [`Client::set`].
    ///
    /// The sequence must be [`Client::next_sequence`]. The block is checked as the server will, its hash included.
    pub async fn send(&self, block: Block) -> Result<Durable, AppendError> {
        let draft = self.draft_block(block)?;
        self.append(draft).await
    }

    /// Like [`Client::set`], but [`AppendError::Full`] where it would wait.
    pub fn try_set(&self, index: BlockIndex, data: impl Into<Bytes>) -> Result<Durable, AppendError> {
        self.try_append(self.draft_set(index, data.into())?)
    }

    /// Like [`Client::delete`], but [`AppendError::Full`] where it would wait.
    pub fn try_delete(&self, index: BlockIndex) -> Result<Durable, AppendError> {
        self.try_append(draft_delete(index))
    }

    /// Like [`Client::send`], but [`AppendError::Full`] where it would wait.
    pub fn try_send(&self, block: Block) -> Result<Durable, AppendError> {
        self.try_append(self.draft_block(block)?)
    }

    /// Asks the server to flush everything handed over so far, by any clone, and waits until it is durable.
    ///
    /// Fails as soon as that cannot happen any more, or not before a refused block is sent again. There is no timeout of its
    /// own; dropping the future takes nothing back.
    pub async fn flush(&self) -> Result<(), FlushError> {
        let Some(last) = self.next_sequence().previous() else {
            return Ok(());
        };
        if let Some(answer) = self.shared().progress.borrow().answer(last) {
            return answer;
        }
        self.force_flush_at(last).await?;
        self.durable_up_to(last).await
    }

    /// Waits until every block up to and including `sequence` is durable, without asking the server to flush. A block that
    /// was not handed over yet is waited for; what lies before this client's first sequence is not.
    pub async fn durable_up_to(&self, sequence: Sequence) -> Result<(), FlushError> {
        let mut progress = self.shared().progress.subscribe();
        let found = progress.wait_for(|progress| progress.answer(sequence).is_some()).await;
        found
            .ok()
            .and_then(|progress| progress.answer(sequence))
            .unwrap_or_else(|| Err(self.shared().ending().into()))
    }

    /// Asks the server to flush as soon as it has every block up to `sequence`, be it handed over or not. The bare command:
    /// returns as soon as it is queued behind what was handed over before, and waits only while a thousand commands are.
    pub async fn force_flush_at(&self, sequence: Sequence) -> Result<(), Ending> {
        let shared = self.shared();
        let slot = shared.command_slots.acquire().await.map_err(|_| shared.ending())?;
        self.queue(Handed::ForceFlush(sequence))?;
        slot.forget();
        Ok(())
    }

    /// Waits until the slave cluster holds everything that was flushed before this call.
    ///
    /// After it the server no longer syncs the vdisk to the slave, which is then somebody's primary; this cannot be taken
    /// back, not by a timeout either. A server without a slave for the vdisk answers at once.
    pub async fn wait_nbd_slave_sync(&self, timeout_after: Duration) -> Result<(), SlaveSyncError> {
        let shared = self.shared();
        let synced = async {
            let unanswered = shared.slave_sync_slots.acquire().await.map_err(|_| shared.ending())?;
            let slot = shared.command_slots.acquire().await.map_err(|_| shared.ending())?;
            let (done, synced) = oneshot::channel();
            self.queue(Handed::WaitSlaveSync(done))?;
            unanswered.forget();
            slot.forget();
            Ok(synced.await.map_err(|_| shared.ending())?)
        };
        match timeout(timeout_after, synced).await {
            Ok(answer) => answer,
            Err(_) => Err(SlaveSyncError::TimedOut { timeout: timeout_after }),
        }
    }

    /// Sends a block again that the server refused, and answers a new handle for it.
    ///
    /// The server refuses a block where what arrived does not match its hash; all blocks are checked before they are handed
    /// over, so it was damaged on the way, or in memory. That is rare and worth knowing, so nothing is resent without the
    /// caller's word. Until then the refused sequence is a hole: what comes after it stays in the server's memory and does not become
    /// durable. A block that is refused again and again has changed in this program's memory; close, and write it anew.
    pub async fn resend(&self, sequence: Sequence) -> Result<Durable, ResendError> {
        let (ticket, outcome) = Ticket::new();
        let (reply, answer) = oneshot::channel();
        let _ = self.inner.requests.send(Request::Resend { sequence, ticket, reply }).await;
        match answer.await {
            Ok(true) => Ok(Durable { sequence, outcome }),
            Ok(false) => Err(ResendError::NotRefused { sequence }),
            Err(_) => Err(self.shared().ending().into()),
        }
    }

    /// Every block that was handed over and is not known to be durable, in order; refused ones too. Their data is shared, not
    /// copied. Does not wait for the server.
    ///
    /// After the connection has ended this is what a new client has to send. Some of it may be durable all the same, where the
    /// acknowledgement was lost: with the same session and [`Client::send`] the server knows these for duplicates.
    pub async fn unflushed(&self) -> Vec<Block> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inner.requests.send(Request::Unflushed { reply }).await;
        match answer.await {
            Ok(blocks) => blocks,
            Err(_) => {
                self.shared().intake().ended.as_ref().map(|ended| ended.unflushed.clone()).unwrap_or_default()
            }
        }
    }

    /// What happens from now on. Nobody has to read them: see [`Events`].
    pub fn events(&self) -> Events {
        // Under the lock, so that the end is either seen here or comes as an event.
        let intake = self.shared().intake();
        Events::new(self.shared().events.subscribe(), intake.ended.as_ref().map(|ended| ended.ending.clone()))
    }

    /// Numbers of this connection so far.
    pub fn stats(&self) -> Stats {
        self.shared().stats()
    }

    /// The sequence that the next block gets.
    pub fn next_sequence(&self) -> Sequence {
        self.shared().intake().next
    }

    /// The sequence that the connection began with.
    pub fn first_sequence(&self) -> Sequence {
        self.inner.first_sequence
    }

    /// The last sequence that the log durably held at the connect, as the server said; none where it held nothing, or the
    /// server does not tell.
    pub fn last_flushed_at_connect(&self) -> Option<Sequence> {
        self.inner.last_flushed
    }

    /// Whose log it is.
    pub fn vdisk(&self) -> &VdiskId {
        &self.inner.vdisk
    }

    /// Which client instance the server knows this one as.
    pub fn session(&self) -> SessionId {
        self.inner.session
    }

    /// Ends the connection at once, in any state, for all clones. Does not wait for the server: what is not durable by now
    /// fails, and [`Client::unflushed`] has it. Answers how the connection ended, which may have been earlier.
    pub async fn close(&self) -> Ending {
        self.shared().close.cancel();
        let mut progress = self.shared().progress.subscribe();
        let found = progress.wait_for(|progress| progress.ending.is_some()).await;
        found.ok().and_then(|progress| progress.ending.clone()).unwrap_or_else(|| self.shared().ending())
    }

    /// Takes no more blocks, flushes what was handed over, and closes, also where the flush fails. `Ok` says that everything
    /// handed over is durable. As long as the server takes; [`Client::close`] may be called meanwhile to cut it short.
    pub async fn close_after_flush(&self) -> Result<(), FlushError> {
        self.shared().intake().closing = true;
        let flushed = self.flush().await;
        self.close().await;
        flushed
    }

    fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    fn check_size(&self, bytes: usize) -> Result<(), AppendError> {
        // A list on the wire has 29 bits for its length.
        let max = self.inner.max_block_bytes.min((1 << 29) - 1);
        if bytes > max { Err(AppendError::TooLarge { bytes, max }) } else { Ok(()) }
    }

    fn draft_set(&self, index: BlockIndex, data: Bytes) -> Result<Draft, AppendError> {
        self.check_size(data.len())?;
        if data.is_empty() {
            return Err(BlockFault::SetWithoutData.into());
        }
        Ok(Draft { own: None, index, operation: Operation::Set, hash: BlockHash::of(&data), data })
    }

    fn draft_block(&self, block: Block) -> Result<Draft, AppendError> {
        self.check_size(block.size())?;
        self.shared().intake().check(Some(block.sequence))?;
        let Block { sequence, index, operation, timestamp, hash, data } =
            UnverifiedBlock::from(block).verify()?;
        Ok(Draft { own: Some((sequence, timestamp)), index, operation, hash, data })
    }

    async fn append(&self, draft: Draft) -> Result<Durable, AppendError> {
        let shared = self.shared();
        // A caller that always finds room must not keep its thread from the task that writes.
        tokio::task::consume_budget().await;
        let cost = shared.cost(draft.data.len());
        let room = match shared.room.try_acquire_many(cost) {
            Ok(room) => room,
            Err(TryAcquireError::Closed) => return Err(shared.ending().into()),
            Err(TryAcquireError::NoPermits) => {
                let _waits = shared.wait_for_room();
                let mut progress = shared.progress.subscribe();
                let refused = progress.wait_for(|progress| progress.refused.is_some());
                tokio::select! {
                    biased;
                    room = shared.room.acquire_many(cost) => room.map_err(|_| shared.ending())?,
                    Ok(Some(sequence)) = async { refused.await.map(|progress| progress.refused) } => {
                        return Err(AppendError::Refused { sequence });
                    }
                }
            }
        };
        self.hand_over(draft, cost, room)
    }

    fn try_append(&self, draft: Draft) -> Result<Durable, AppendError> {
        let shared = self.shared();
        let cost = shared.cost(draft.data.len());
        match shared.room.try_acquire_many(cost) {
            Ok(room) => self.hand_over(draft, cost, room),
            Err(TryAcquireError::Closed) => Err(shared.ending().into()),
            Err(TryAcquireError::NoPermits) => Err(AppendError::Full),
        }
    }

    fn hand_over(&self, draft: Draft, cost: u32, room: SemaphorePermit<'_>) -> Result<Durable, AppendError> {
        let (ticket, outcome) = Ticket::new();
        let sequence = self.shared().intake().hand_over(draft, cost as usize, ticket)?;
        room.forget(); // comes back when the block is durable
        self.shared().wake.notify_one();
        Ok(Durable { sequence, outcome })
    }

    fn queue(&self, handed: Handed) -> Result<(), Ending> {
        let mut intake = self.shared().intake();
        if let Some(ended) = &intake.ended {
            return Err(ended.ending.clone());
        }
        intake.queue.push(handed);
        drop(intake);
        self.shared().wake.notify_one();
        Ok(())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("vdisk", self.vdisk())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close.cancel();
    }
}

fn draft_delete(index: BlockIndex) -> Draft {
    let data = Bytes::new();
    Draft { own: None, index, operation: Operation::Delete, hash: BlockHash::of(&data), data }
}
