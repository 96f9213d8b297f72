//! Logging what changed in an image since what the log holds.
//!
//! | block of the image | in the log | what is sent |
//! |---|---|---|
//! | first or last | not there, or other content or length | set, zeros too |
//! | any other, not zero | not there, or other content | set |
//! | any other, zero | has content | delete |
//! | beyond the end | has content | delete |
//!
//! The first block tells the block size to whoever restores, and the last one, which may be short, where the image ends.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures::Stream;
use tlog_client::{
    Client, ClientCertificate, ClientOptions, ConnectError, Event, Events, Servers, TlsOptions,
};
use tlog_player::{DiskState, DiskStateError, Moment, MomentError, OpenError, ReadOptions};
use tlog_proto::{BlockIndex, Limits, Sequence, VdiskId};

use crate::reading;
use crate::settings::{ClientTlsSettings, Settings, show_size};

/// Block size where neither the log nor a person says another.
pub const DEFAULT_BLOCK_SIZE: u32 = 4096;

/// Smallest block size that is taken: that of a disk's sector.
const MIN_BLOCK_SIZE: u64 = 512;

/// Bytes of the image that are read at once.
const BATCH_BYTES: usize = 1 << 20;

/// Batches that are read ahead.
const BATCHES_AHEAD: usize = 4;

/// How long the end of the log may be uncertain before that is told.
const PATIENCE: Duration = Duration::from_secs(3);

const NOT_ALL: &str = "not everything is durable; the server's log says more. What is in the log stays there: record again to send the rest";

/// What is to be recorded.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Into which log.
    pub vdisk: VdiskId,
    /// From which file or block device.
    pub image: PathBuf,
    /// In blocks of so many bytes; none: those of the log, or `new_block_size`.
    pub block_size: Option<u32>,
    /// Bytes of a block of a log that begins.
    pub new_block_size: u32,
    /// The servers, in the order in which they are tried.
    pub servers: Servers,
    /// How long it goes on without a server that works, before it fails.
    pub give_up_after: Duration,
}

/// What was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Bytes of the image.
    pub image_bytes: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks that were sent with their content.
    pub set: u64,
    /// Blocks that were deleted.
    pub deleted: u64,
    /// Bytes of content that were sent.
    pub bytes: u64,
    /// The last block of the log; none where the log is empty, which it is not after a recording.
    pub last_sequence: Option<Sequence>,
    /// How long it took, waiting for durability included.
    pub took: Duration,
}

impl Recording {
    /// Records, and answers when all of it is durable. `lists` are those of the servers as they change, `progress` is told how many bytes of how many were looked at, `notice` in
    /// words when a server is lost and when another one is there.
    pub async fn run(
        &self,
        settings: &Settings,
        lists: impl Stream<Item = Vec<String>> + Send + 'static,
        mut progress: impl FnMut(u64, u64),
        notice: impl Fn(String) + Send + 'static,
    ) -> anyhow::Result<Recorded> {
        let began = Instant::now();
        let (file, image_bytes) = open_image(&self.image)?;
        let options = ClientOptions {
            limits: Limits { max_block_bytes: settings.limits.max_block_bytes, ..Limits::default() },
            // Opening a log after a crash can take a server a while.
            handshake_timeout: settings.limits.open_timeout + Duration::from_secs(5),
            reconnect_deadline: Some(self.give_up_after),
            tls: settings.client_tls.as_ref().map(tls_options),
            ..ClientOptions::default()
        };
        // Connected first: from then on nobody else writes, and all that the server had is durable and can be read.
        let client = Client::connect(self.servers.clone(), self.vdisk.clone(), options).await;
        let client = client.map_err(|error| match error {
            ConnectError::ServerFailed { server, vdisk, .. } => anyhow!(
                "the server at {server} could not open the log of vdisk {vdisk}; its log says why, \
                 'tlog verify {vdisk}' shows the stores"
            ),
            error => error.into(),
        })?;
        tokio::spawn(watch(client.events(), notice));
        client.follow_servers(lists);
        let state = self.state(settings, &client).await?;
        let block_size = self.block_size(settings, &state)?;

        let mut sent = Sent { client: &client, set: 0, deleted: 0, bytes: 0 };
        let count = image_bytes.div_ceil(u64::from(block_size));
        let mut batches = read_in_batches(file, image_bytes, block_size);
        let mut next = 0;
        while let Some(batch) = batches.recv().await {
            let batch = batch.with_context(|| format!("{} cannot be read", self.image.display()))?;
            next = sent.send_changes(&state, next, count, block_size, &batch).await.context(NOT_ALL)?;
            progress((next * u64::from(block_size)).min(image_bytes), image_bytes);
        }
        if next != count {
            bail!("{} became shorter while it was read; record it again", self.image.display());
        }
        for (index, _) in state.blocks_from(index_of(count)?) {
            sent.delete(index).await.context(NOT_ALL)?;
        }
        let Sent { set, deleted, bytes, .. } = sent;
        let last_sequence = match set + deleted {
            0 => client.last_flushed_at_connect(),
            _ => client.next_sequence().0.checked_sub(1).map(Sequence),
        };
        client.close_after_flush().await.context(NOT_ALL)?;
        Ok(Recorded { image_bytes, block_size, set, deleted, bytes, last_sequence, took: began.elapsed() })
    }

    /// The disk as the log has it, all that the server holds included.
    async fn state(&self, settings: &Settings, client: &Client) -> anyhow::Result<DiskState> {
        let keys = reading::keys_of(settings, &self.vdisk)?;
        // What was removed from the beginning of history is taken as zeros: then it is sent again, which is only too much.
        let options = ReadOptions { accept_pruned_base: true, ..ReadOptions::default() };
        let theirs = client.last_flushed_at_connect();
        let began = Instant::now();
        loop {
            let reader = match reading::try_open(settings, &self.vdisk).await? {
                // A server that writes format 1 makes nothing on the stores before the first block.
                Err(OpenError::UnknownVdisk { .. }) if theirs.is_none() => {
                    return Ok(DiskState::empty(self.vdisk.clone(), 0));
                }
                reader => reader?,
            };
            let state = reader.disk_state(&keys, Moment::Newest, &options).await;
            let ours = match &state {
                Ok(state) => state.reached().map(|reached| reached.position.sequence),
                // While a store is away, what was committed last is certain to readers once the server has told the others.
                Err(DiskStateError::Moment(MomentError::UncertainEnd { .. }))
                    if began.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Err(_) => None,
            };
            let state = state.map_err(reading::tell)?;
            if ours == theirs {
                return Ok(state);
            }
            let show = |end: Option<Sequence>| {
                end.map_or("nothing".to_owned(), |end| format!("up to sequence {end}"))
            };
            bail!(
                "the server at {} holds {} of vdisk {}, and the stores of these settings hold {}: they are not the same log; \
                 use the settings of the server (-c FILE, data-dir, storage), or name another server",
                self.servers,
                show(theirs),
                self.vdisk,
                show(ours)
            );
        }
    }

    fn block_size(&self, settings: &Settings, state: &DiskState) -> anyhow::Result<u32> {
        let block_size = match (self.block_size, state.block_size()) {
            (None, 0) => self.new_block_size,
            (Some(wanted), 0) => wanted,
            (None, known) => known,
            (Some(wanted), known) if wanted == known => known,
            (Some(wanted), known) => bail!(
                "the log of vdisk {} has blocks of {known} bytes, not {wanted}; leave --block-size out, or record into another vdisk",
                self.vdisk
            ),
        };
        let bytes = u64::from(block_size);
        let most = settings.limits.max_block_bytes as u64;
        if !bytes.is_power_of_two() || bytes < MIN_BLOCK_SIZE || bytes > most {
            bail!(
                "blocks of {bytes} bytes cannot be recorded; take a power of two from {MIN_BLOCK_SIZE} to {}",
                show_size(most)
            );
        }
        Ok(block_size)
    }
}

/// Until the client ends.
async fn watch(mut events: Events, notice: impl Fn(String)) {
    let mut last = String::new();
    while let Some(event) = events.next().await {
        let words = match event {
            Event::Reconnecting { server, cause } => format!("{server}: {cause}; trying on"),
            Event::NotReconnected(error) => error.to_string(),
            Event::Reconnected { server, .. } => format!("going on with {server}"),
            _ => continue,
        };
        if words != last {
            notice(words.clone());
        }
        last = words;
    }
}

/// How a client speaks TLS, by the settings.
pub(crate) fn tls_options(tls: &ClientTlsSettings) -> TlsOptions {
    let ClientTlsSettings { ca_file, client, server_name } = tls.clone();
    let client = client.map(|(certificate, key)| ClientCertificate { certificate, key });
    TlsOptions { ca_file: Some(ca_file), client, server_name }
}

struct Sent<'a> {
    client: &'a Client,
    set: u64,
    deleted: u64,
    bytes: u64,
}

impl Sent<'_> {
    /// Sends what differs of a batch that begins with block `first` of `count`; answers what comes after it.
    async fn send_changes(
        &mut self,
        state: &DiskState,
        first: u64,
        count: u64,
        block_size: u32,
        batch: &Bytes,
    ) -> anyhow::Result<u64> {
        let mut blocks = Vec::with_capacity(batch.len().div_ceil(block_size as usize));
        for (index, data) in (first..).zip(batch.chunks(block_size as usize)) {
            blocks.push((index_of(index)?, data));
        }
        let differs = state.differ(blocks.iter().copied());
        for (&(index, data), differs) in blocks.iter().zip(differs) {
            let edge = index.get() == 0 || index.get() + 1 == count;
            let held = state.get(index).map(|place| place.length as usize);
            let sets = match edge {
                true => differs || held != Some(data.len()),
                false => differs && !is_zero(data),
            };
            if sets {
                self.client.set(index, batch.slice_ref(data)).await?;
                self.set += 1;
                self.bytes += data.len() as u64;
            } else if differs {
                self.delete(index).await?;
            }
        }
        Ok(first + blocks.len() as u64)
    }

    async fn delete(&mut self, index: BlockIndex) -> anyhow::Result<()> {
        self.client.delete(index).await?;
        self.deleted += 1;
        Ok(())
    }
}

fn index_of(index: u64) -> anyhow::Result<BlockIndex> {
    BlockIndex::new(index).context("the image has more blocks than a vdisk can have")
}

fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// The image, and its length. A block device says its length only at its end.
fn open_image(path: &Path) -> anyhow::Result<(File, u64)> {
    let cannot = || format!("{} cannot be read", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    if file.metadata().with_context(cannot)?.is_dir() {
        bail!("{} is a directory; name a disk image or a block device", path.display());
    }
    let bytes = file.seek(SeekFrom::End(0)).with_context(cannot)?;
    file.rewind().with_context(cannot)?;
    if bytes == 0 {
        bail!("{} is empty; a disk image has at least one byte", path.display());
    }
    Ok((file, bytes))
}

/// Reads the image on a thread of its own, whole blocks at a time but for the last.
fn read_in_batches(
    mut file: File,
    bytes: u64,
    block_size: u32,
) -> tokio::sync::mpsc::Receiver<io::Result<Bytes>> {
    let (give, batches) = tokio::sync::mpsc::channel(BATCHES_AHEAD);
    let batch_bytes = (BATCH_BYTES / block_size as usize).max(1) * block_size as usize;
    tokio::task::spawn_blocking(move || {
        let mut left = bytes;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(batch_bytes);
            let mut batch = vec![0; length];
            let read = file.read_exact(&mut batch).map(|()| Bytes::from(batch));
            let failed = read.is_err();
            if give.blocking_send(read).is_err() || failed {
                return;
            }
            left -= length as u64;
        }
    });
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_told_from_anything_else() {
        for length in [0, 1, 63, 64, 65, 4096, 4097] {
            assert!(is_zero(&vec![0; length]));
            for at in [0, length / 2, length.saturating_sub(1)] {
                let mut data = vec![0; length.max(1)];
                data[at] = 1;
                assert!(!is_zero(&data), "{length} {at}");
            }
        }
    }
}
