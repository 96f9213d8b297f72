//! Checking the blocks that arrived together.

use tlog_proto::{Block, BlockFault, ClientMessage, Sequence, UnverifiedBlock, hash_many};

use crate::registry::Incoming;

/// Bytes of data from which on hashing is moved off the tasks that serve others.
const HASH_ELSEWHERE: usize = 1 << 20;

/// What came, checked.
pub(crate) enum Verified {
    Block(Block),
    Command(Incoming),
    Bad(Sequence, BlockFault),
}

/// Checks all blocks together, elsewhere if it takes long.
pub(crate) async fn verified(messages: Vec<ClientMessage>) -> Vec<Verified> {
    let bytes: usize = messages.iter().map(|message| data(message).map_or(0, <[u8]>::len)).sum();
    metrics::counter!("tlog_server_received_bytes_total").increment(bytes as u64);
    if bytes < HASH_ELSEWHERE {
        return verify(messages);
    }
    // It fails only where the runtime is shutting down, and then nobody wants the answer.
    tokio::task::spawn_blocking(|| verify(messages)).await.unwrap_or_default()
}

fn verify(messages: Vec<ClientMessage>) -> Vec<Verified> {
    let mut hashes = hash_many(messages.iter().filter_map(data)).into_iter();
    let mut blocks = 0;
    let verified = messages
        .into_iter()
        .filter_map(|message| {
            Some(match message {
                ClientMessage::Block(block) => {
                    blocks += 1;
                    let sequence = block.sequence;
                    match block.verify_with(hashes.next()?) {
                        Ok(block) => Verified::Block(block),
                        Err(fault) => Verified::Bad(sequence, fault),
                    }
                }
                ClientMessage::ForceFlushAtSeq(sequence) => Verified::Command(Incoming::ForceFlush(sequence)),
                ClientMessage::WaitNbdSlaveSync => Verified::Command(Incoming::WaitSlaveSync),
            })
        })
        .collect();
    metrics::counter!("tlog_server_blocks_received_total").increment(blocks);
    verified
}

fn data(message: &ClientMessage) -> Option<&[u8]> {
    match message {
        ClientMessage::Block(UnverifiedBlock { data, .. }) => Some(data),
        _ => None,
    }
}
