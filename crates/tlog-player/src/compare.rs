//! Comparing an image with a disk at a moment, without its data: by the hashes in the manifests.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{SeekFrom as Place, seek};
use rustix::io::Errno;
use tlog_proto::BlockIndex;

use crate::disk_state::{DiskState, is_zero};
use crate::restore::blocking;

/// Bytes that are read at once.
const BATCH: u64 = 1 << 20;
/// Batches from one telling of progress to the next.
const BATCHES: usize = 16;
/// How many of the blocks that differ are named.
const NAMED: usize = 10;
/// Bytes of a block, where the log is empty and does not tell.
const ANY_BLOCK_SIZE: u32 = 4096;

/// How an image differs from a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Bytes of the disk, as far as the log knows.
    pub disk_len: u64,
    /// Bytes of the image. It may be longer than the disk, if there are only zeros.
    pub image_len: u64,
    /// Blocks with content that were compared.
    pub blocks: u64,
    /// How many blocks differ, those without content included.
    pub different: u64,
    /// The first few of these, by rising index.
    pub first_different: Vec<BlockIndex>,
}

impl Comparison {
    /// Whether the image is the disk. One that is shorter is not, whatever it has.
    pub fn is_equal(&self) -> bool {
        self.different == 0 && !self.is_shorter()
    }

    /// Whether the image ends before the disk does.
    pub fn is_shorter(&self) -> bool {
        self.image_len < self.disk_len
    }
}

/// Compares a file or block device with a disk, all of both. Reads the image and nothing else, holes of it not; `progress` is told how
/// many bytes of how many were looked at. A block counts as equal by 128 bits of its hash. A person who changes the image meanwhile
/// gets an answer that is worth nothing.
pub async fn compare_with_image(
    state: &Arc<DiskState>,
    path: &Path,
    progress: impl FnMut(u64, u64) + Send,
) -> io::Result<Comparison> {
    compare_with_file(state, Arc::new(File::open(path)?), progress).await
}

/// The same for what is open already.
pub(crate) async fn compare_with_file(
    state: &Arc<DiskState>,
    file: Arc<File>,
    mut progress: impl FnMut(u64, u64) + Send,
) -> io::Result<Comparison> {
    // A block device says its length only at its end.
    let image_len = (&*file).seek(SeekFrom::End(0))?;
    let block_size = u64::from(if state.block_size() == 0 { ANY_BLOCK_SIZE } else { state.block_size() });
    let disk_len = state.disk_len().ok_or(io::ErrorKind::FileTooLarge)?;
    let end = image_len.max(disk_len);
    let found = Comparison { disk_len, image_len, ..Comparison::default() };
    let mut walk = Walk { state: state.clone(), file, block_size, end, at: 0, found };
    while walk.at < walk.end {
        walk = blocking(move || walk.step()).await?;
        progress(walk.at.min(end), end);
    }
    Ok(walk.found)
}

struct Walk {
    state: Arc<DiskState>,
    file: Arc<File>,
    block_size: u64,
    end: u64,
    /// A multiple of the block size: what is before it was compared.
    at: u64,
    found: Comparison,
}

impl Walk {
    fn step(mut self) -> io::Result<Self> {
        let left = (self.end - self.at).div_ceil(self.block_size);
        let blocks = (BATCH / self.block_size).clamp(1, left);
        let mut batch = vec![0; usize::try_from(blocks * self.block_size).unwrap_or(usize::MAX)];
        for _ in 0..BATCHES {
            self.skip()?;
            if self.at >= self.end {
                break;
            }
            let has = usize::try_from(self.found.image_len.saturating_sub(self.at)).unwrap_or(usize::MAX);
            let has = has.min(batch.len());
            let (image, beyond) = batch.split_at_mut(has);
            self.file.read_exact_at(image, self.at)?;
            beyond.fill(0);
            self.compare(&batch);
            self.at += batch.len() as u64;
        }
        Ok(self)
    }

    /// Goes on to where the disk has content or the image has data.
    fn skip(&mut self) -> io::Result<()> {
        let Some(index) = BlockIndex::new(self.at / self.block_size) else { return Ok(()) };
        let content = self.state.blocks_from(index).next();
        let content = content.map_or(self.end, |(index, _)| index.get() * self.block_size);
        let data = match seek(&*self.file, Place::Data(self.at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => self.end,
            // Whoever knows no holes has data everywhere.
            Err(_) => self.at,
        };
        let next = content.min(data).min(self.end);
        self.at = if next >= self.end { self.end } else { next - next % self.block_size }.max(self.at);
        Ok(())
    }

    fn compare(&mut self, batch: &[u8]) {
        let first = self.at / self.block_size;
        let numbered = (first..).zip(batch.chunks(self.block_size as usize));
        let mut known = Vec::new();
        for (number, data) in numbered {
            match BlockIndex::new(number) {
                Some(index) => known.push((index, data)),
                // No vdisk has such a block.
                None => self.found.different += u64::from(!is_zero(data)),
            }
        }
        let differs = self.state.differ(known.iter().copied());
        for ((index, _), differs) in known.into_iter().zip(differs) {
            self.found.blocks += u64::from(self.state.get(index).is_some());
            if differs {
                self.found.different += 1;
                if self.found.first_different.len() < NAMED {
                    self.found.first_different.push(index);
                }
            }
        }
    }
}
