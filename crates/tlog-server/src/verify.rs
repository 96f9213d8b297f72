//! Checking the blocks that arrived together.

use tlog_proto::{Block, BlockFault, BlockHash, ClientMessage, Sequence, UnverifiedBlock, hash_many_into};

use crate::metric::Metrics;
use crate::registry::Incoming;

/// Bytes of data from which on hashing is moved off the tasks that serve others.
const HASH_ELSEWHERE: usize = 1 << 20;

/// Messages for which memory is kept.
const KEPT: usize = 32;

/// What came, checked.
pub(crate) enum Verified {
    Block(Block),
    Command(Incoming),
    Bad(Sequence, BlockFault),
}

/// Checks what arrives on one connection, and keeps the memory that it takes for that.
#[derive(Default)]
pub(crate) struct Verifier {
    messages: Vec<ClientMessage>,
    hashes: Vec<BlockHash>,
    verified: Vec<Verified>,
}

impl Verifier {
    /// Takes a message that has come.
    pub(crate) fn push(&mut self, message: ClientMessage) {
        self.messages.push(message);
    }

    /// Messages that are not checked.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Checks all blocks together, elsewhere if it takes long. What comes out is to be taken with [`Verifier::drain`].
    pub(crate) async fn verify(&mut self, metrics: &Metrics) {
        if self.verified.capacity() > KEPT {
            (self.hashes, self.verified) = Default::default();
        }
        let bytes: usize = self.messages.iter().map(|message| data(message).map_or(0, <[u8]>::len)).sum();
        metrics.received_bytes.increment(bytes as u64);
        if bytes < HASH_ELSEWHERE {
            self.verify_here();
        } else {
            let mut elsewhere = std::mem::take(self);
            let verified = tokio::task::spawn_blocking(move || {
                elsewhere.verify_here();
                elsewhere
            });
            // It fails only where the runtime is shutting down, and then nobody wants the answer.
            *self = verified.await.unwrap_or_default();
        }
        let blocks = self.verified.iter().filter(|verified| !matches!(verified, Verified::Command(_)));
        metrics.blocks_received.increment(blocks.count() as u64);
    }

    /// Takes out what was checked, in order.
    pub(crate) fn drain(&mut self) -> std::vec::Drain<'_, Verified> {
        self.verified.drain(..)
    }

    /// Bytes that the checked blocks are counted with.
    pub(crate) fn cost(&self) -> usize {
        let blocks = self.verified.iter().filter_map(|verified| match verified {
            Verified::Block(block) => Some(crate::session::cost(block)),
            _ => None,
        });
        blocks.sum()
    }

    fn verify_here(&mut self) {
        self.hashes.clear();
        hash_many_into(self.messages.iter().filter_map(data), &mut self.hashes);
        let mut hashes = self.hashes.drain(..);
        self.verified.clear();
        self.verified.extend(self.messages.drain(..).filter_map(|message| {
            Some(match message {
                ClientMessage::Block(block) => {
                    let sequence = block.sequence;
                    match block.verify_with(hashes.next()?) {
                        Ok(block) => Verified::Block(block),
                        Err(fault) => Verified::Bad(sequence, fault),
                    }
                }
                ClientMessage::ForceFlushAtSeq(sequence) => Verified::Command(Incoming::ForceFlush(sequence)),
                ClientMessage::WaitNbdSlaveSync => Verified::Command(Incoming::WaitSlaveSync),
            })
        }));
    }
}

fn data(message: &ClientMessage) -> Option<&[u8]> {
    match message {
        ClientMessage::Block(UnverifiedBlock { data, .. }) => Some(data),
        _ => None,
    }
}
