//! The blocks of a disk state, as they were written: for whoever stores them elsewhere.

use bytes::Bytes;
use tlog_codec::{Opener, VdiskKeys};
use tlog_proto::Block;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::disk_state::DiskState;
use crate::in_flight::run_bounded;
use crate::job::{Job, jobs};
use crate::reader::LogReader;
use crate::restore::RestoreError;

/// Groups of blocks that wait to be taken.
const WAITING: usize = 4;

/// Reads the blocks of a disk state, aggregation by aggregation, several ahead. Dropped, it stops.
#[derive(Debug)]
pub struct BlockReader {
    blocks: mpsc::Receiver<Result<Vec<Block>, RestoreError>>,
    task: JoinHandle<()>,
}

impl BlockReader {
    /// The next few, in no order that means anything; none at the end. Nothing comes after an error.
    pub async fn next(&mut self) -> Option<Result<Vec<Block>, RestoreError>> {
        self.blocks.recv().await
    }
}

impl Drop for BlockReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LogReader {
    /// The blocks of a disk state with their data, each proven by its hash, with the sequence and timestamp that they were written
    /// with. `state` must come from a reader of the same log. Takes about `memory` bytes for what is being read.
    pub fn read_blocks(&self, keys: &VdiskKeys, state: &DiskState, memory: u64) -> BlockReader {
        let (tell, blocks) = mpsc::channel(WAITING);
        let (reader, opener, jobs) = (self.clone(), Opener::new(keys.clone()), jobs(state));
        let task = tokio::spawn(async move {
            let read = run_bounded(
                jobs,
                memory,
                |job| {
                    let own_all =
                        |_: &Job, blocks: &[Block]| Ok(blocks.iter().map(own).collect::<Vec<Block>>());
                    let blocks = reader.with_blocks(job, opener.clone(), own_all);
                    let tell = tell.clone();
                    async move {
                        let blocks = blocks.await?;
                        // Nobody takes it any more: then this task is stopped, too.
                        let _ = tell.send(Ok(blocks)).await;
                        Ok::<(), RestoreError>(())
                    }
                },
                |()| {},
            );
            if let Err(error) = read.await {
                let _ = tell.send(Err(error)).await;
            }
        });
        BlockReader { blocks, task }
    }
}

/// The block without the memory of the aggregation that it came in.
fn own(block: &Block) -> Block {
    Block { data: Bytes::copy_from_slice(&block.data), ..block.clone() }
}
