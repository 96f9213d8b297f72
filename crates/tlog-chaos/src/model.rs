//! What a disk must hold after each of its writes, by the journal alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tlog_proto::{Block, BlockIndex, Operation, Sequence, Timestamp};

use crate::journal::Handed;

/// A disk that is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Its vdisk.
    pub(crate) vdisk: String,
    /// Bytes of a block.
    pub(crate) block_size: u32,
    /// How many blocks it has.
    pub(crate) blocks: u64,
    /// What its contents follow from.
    pub(crate) seed: u64,
}

impl Disk {
    /// What the write with this sequence puts into its block. No two are alike.
    pub(crate) fn content(&self, sequence: u64) -> Bytes {
        let mut data = vec![0; self.block_size as usize];
        let seed = self.seed ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        SmallRng::seed_from_u64(seed).fill_bytes(&mut data);
        Bytes::from(data)
    }

    /// A write as it goes to the server.
    pub(crate) fn block(&self, sequence: u64, write: &Handed) -> Block {
        let index = BlockIndex::new(write.index).unwrap_or_default();
        let timestamp = Timestamp(write.nanos);
        match write.operation {
            Operation::Set => Block::set(Sequence(sequence), index, timestamp, self.content(sequence)),
            Operation::Delete => Block::delete(Sequence(sequence), index, timestamp),
        }
    }

    /// The disk after these writes: for each block that has content the sequence of the write that it is from.
    pub(crate) fn after(&self, writes: &[Handed]) -> BTreeMap<u64, u64> {
        let mut disk = BTreeMap::new();
        for (sequence, write) in (1..).zip(writes) {
            match write.operation {
                Operation::Set => disk.insert(write.index, sequence),
                Operation::Delete => disk.remove(&write.index),
            };
        }
        disk
    }

    /// Compares an image with the disk after these writes. It must end with the last block that has content.
    pub(crate) fn compare(&self, writes: &[Handed], image: &[u8]) -> Result<(), String> {
        let disk = self.after(writes);
        let size = self.block_size as usize;
        let expected = disk.keys().next_back().map_or(0, |last| (*last as usize + 1) * size);
        if image.len() != expected {
            return Err(format!("{} bytes instead of {expected}", image.len()));
        }
        let found = (0..).zip(image.chunks(size)).filter(|(_, data)| data.iter().any(|byte| *byte != 0));
        self.compare_blocks(&disk, found)
    }

    /// Compares blocks, those that have content, with the disk after these writes.
    pub(crate) fn compare_blocks<'a>(
        &self,
        disk: &BTreeMap<u64, u64>,
        found: impl Iterator<Item = (u64, &'a [u8])>,
    ) -> Result<(), String> {
        let mut missing = disk.clone();
        for (index, data) in found {
            let Some(sequence) = missing.remove(&index) else {
                return Err(format!(
                    "block {index} has content{}, and must have none",
                    self.whose(disk, data)
                ));
            };
            if self.content(sequence) != data {
                let whose = self.whose(disk, data);
                return Err(format!("block {index} is not as write {sequence} left it{whose}"));
            }
        }
        match missing.first_key_value() {
            Some((index, sequence)) => Err(format!(
                "block {index}, from write {sequence}, and {} more are not there",
                missing.len() - 1
            )),
            None => Ok(()),
        }
    }

    /// The first moment, at or after a write, of which these blocks are the disk: after how many writes.
    pub(crate) fn moment_of(
        &self,
        writes: &[Handed],
        found: &BTreeMap<u64, Vec<u8>>,
        at_least: u64,
    ) -> Result<u64, String> {
        let mut held = BTreeMap::new();
        for (index, data) in found {
            let is_it = |(sequence, write): &(u64, &Handed)| {
                write.index == *index && self.content(*sequence) == *data
            };
            let written = (1..=writes.len() as u64).rev().zip(writes.iter().rev()).find(is_it);
            let Some((sequence, _)) = written else {
                return Err(format!("block {index} has content that nobody wrote there"));
            };
            held.insert(*index, sequence);
        }
        // Blocks that are not as they are held, after each write.
        let mut differing = held.len();
        let mut disk = BTreeMap::new();
        if differing == 0 && at_least == 0 {
            return Ok(0);
        }
        for (sequence, write) in (1..).zip(writes) {
            let was = disk.get(&write.index) == held.get(&write.index);
            match write.operation {
                Operation::Set => disk.insert(write.index, sequence),
                Operation::Delete => disk.remove(&write.index),
            };
            match (was, disk.get(&write.index) == held.get(&write.index)) {
                (true, false) => differing += 1,
                (false, true) => differing -= 1,
                _ => {}
            }
            if differing == 0 && sequence >= at_least {
                return Ok(sequence);
            }
        }
        Err(format!(
            "{differing} blocks are those of no moment at or after write {at_least} of {}",
            writes.len()
        ))
    }

    /// In words, which write this is the content of.
    fn whose(&self, disk: &BTreeMap<u64, u64>, data: &[u8]) -> String {
        let newest = disk.values().max().copied().unwrap_or_default();
        // Some that are newer than the disk, too: what was handed over later.
        let is_of = (1..=newest + 1000).rev().find(|sequence| self.content(*sequence) == data);
        is_of.map(|sequence| format!(" (it is as write {sequence} left it)")).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Vec<u8>), expected: &str) {
        let disk = Disk { vdisk: "a".to_owned(), block_size: 16, blocks: 8, seed: 5 };
        let write = |index, operation| Handed { index, operation, nanos: 1 };
        let writes = [
            write(0, Operation::Set),
            write(5, Operation::Set),
            write(3, Operation::Set),
            write(5, Operation::Delete),
            write(0, Operation::Set),
        ];
        let mut image = [disk.content(5).to_vec(), vec![0; 32], disk.content(3).to_vec()].concat();
        assert_eq!(disk.compare(&writes, &image), Ok(()));
        change(&mut image);
        let found = disk.compare(&writes, &image).unwrap_err();
        assert!(found.contains(expected), "{found}");
        // What must be there is what is sent.
        assert_eq!(disk.block(5, &writes[4]).data, disk.content(5));
    }

    #[test]
    fn blocks_are_a_moment_or_they_are_not() {
        let disk = Disk { vdisk: "a".to_owned(), block_size: 16, blocks: 8, seed: 5 };
        let write = |index, operation| Handed { index, operation, nanos: 1 };
        let writes = [
            write(0, Operation::Set),
            write(1, Operation::Set),
            write(0, Operation::Delete),
            write(0, Operation::Set),
        ];
        let held = |blocks: &[(u64, u64)]| -> BTreeMap<u64, Vec<u8>> {
            blocks.iter().map(|(index, sequence)| (*index, disk.content(*sequence).to_vec())).collect()
        };
        let check = |blocks: &[(u64, u64)], at_least, expected: Result<u64, &str>| {
            let moment = disk.moment_of(&writes, &held(blocks), at_least);
            match expected {
                Ok(expected) => assert_eq!(moment, Ok(expected)),
                Err(expected) => assert!(moment.unwrap_err().contains(expected)),
            }
        };
        check(&[], 0, Ok(0));
        check(&[(0, 1)], 0, Ok(1));
        check(&[(0, 1), (1, 2)], 1, Ok(2));
        check(&[(1, 2)], 1, Ok(3));
        check(&[(0, 4), (1, 2)], 4, Ok(4));
        // Older than it says, two halves of different moments, and content of another block.
        check(&[(0, 1)], 2, Err("no moment at or after write 2 of 4"));
        check(&[(0, 4)], 0, Err("no moment"));
        check(&[(1, 4)], 0, Err("nobody wrote there"));
    }

    #[test]
    fn whatever_is_wrong_with_an_image_is_told() {
        check(|image| image[7] ^= 1, "block 0 is not as write 5 left it");
        check(|image| image[20] = 1, "block 1 has content, and must have none");
        check(|image| image[48..].fill(0), "block 3, from write 3, and 0 more are not there");
        check(|image| image.truncate(63), "63 bytes instead of 64");
        let older = Disk { vdisk: "a".to_owned(), block_size: 16, blocks: 8, seed: 5 }.content(1);
        check(|image| image[..16].copy_from_slice(&older), "it is as write 1 left it");
    }
}
