//! The same values with nothing around them: what the stores themselves could take.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::{Buf, Bytes};
use futures::future::try_join_all;
use rustix::fs::{FallocateFlags, fallocate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Values on the way to a server that has not answered them.
const PIPELINED: usize = 64;

/// Values, as many for each store.
#[derive(Debug, Clone)]
pub(crate) struct PlainValues {
    /// Bytes of each.
    pub(crate) bytes: usize,
    /// How many for each store.
    pub(crate) count: u64,
    /// What they are cut out of; longer than a value.
    pub(crate) pool: Bytes,
}

impl PlainValues {
    /// Bytes for all of so many stores.
    pub(crate) fn total_bytes(&self, stores: usize) -> u64 {
        self.bytes as u64 * self.count * stores as u64
    }

    /// One of them; the next one is another.
    pub(crate) fn value(&self, number: u64) -> Bytes {
        let room = (self.pool.len() - self.bytes) as u64 + 1;
        let begin = usize::try_from(number.wrapping_mul(self.bytes as u64 + 8) % room).unwrap_or_default();
        self.pool.slice(begin..begin + self.bytes)
    }

    /// SETs to each of these Redis servers, all on one connection each, pipelined. Answers how long it took until the last was answered.
    pub(crate) async fn set(&self, addresses: &[String]) -> anyhow::Result<Duration> {
        if self.pool.len() < self.bytes {
            bail!("values of {} bytes are too large to compare with", self.bytes);
        }
        let connecting = addresses.iter().map(TcpStream::connect);
        let connections = try_join_all(connecting).await.context("a Redis server does not answer")?;
        let begun = Instant::now();
        let setting = connections.into_iter().map(|connection| {
            let values = self.clone();
            async move { tokio::spawn(values.set_one(connection)).await.context("a connection broke")? }
        });
        try_join_all(setting).await?;
        Ok(begun.elapsed())
    }

    async fn set_one(self, connection: TcpStream) -> anyhow::Result<()> {
        connection.set_nodelay(true)?;
        let (read, mut write) = connection.into_split();
        let room = Arc::new(Semaphore::new(PIPELINED));
        let answers = tokio::spawn(await_answers(read, self.count, Arc::clone(&room)));
        for number in 0..self.count {
            let Ok(permit) = room.acquire().await else { break };
            permit.forget();
            let (key, value) = (format!("plain-{number}"), self.value(number));
            let command = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
            let mut wire = Bytes::from(command).chain(value).chain(Bytes::from_static(b"\r\n"));
            write.write_all_buf(&mut wire).await.context("a Redis server closed the connection")?;
        }
        answers.await.context("a connection broke")?
    }

    /// Writes to a file for each store, preallocated, with one fdatasync for so many values. Answers how long it took.
    pub(crate) async fn write(&self, files: Vec<PathBuf>, in_one_sync: u64) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let writing = files.into_iter().map(|path| {
            let values = self.clone();
            async move {
                let done = tokio::task::spawn_blocking(move || values.write_one(&path, in_one_sync)).await;
                done.context("a file's writer broke")?.context("a plain file")
            }
        });
        try_join_all(writing).await?;
        Ok(begun.elapsed())
    }

    fn write_one(&self, path: &PathBuf, in_one_sync: u64) -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        fallocate(&file, FallocateFlags::empty(), 0, (self.count * self.bytes as u64).max(1))?;
        for number in 0..self.count {
            file.write_all_at(&self.value(number), number * self.bytes as u64)?;
            if (number + 1).is_multiple_of(in_one_sync.max(1)) || number + 1 == self.count {
                file.sync_data()?;
            }
        }
        std::fs::remove_file(path)
    }
}

/// Reads `+OK` so many times.
async fn await_answers(
    mut read: impl AsyncReadExt + Unpin,
    count: u64,
    room: Arc<Semaphore>,
) -> anyhow::Result<()> {
    const OK: &[u8] = b"+OK\r\n";
    let mut buffer = vec![0; 16 << 10];
    let (mut answered, mut begun) = (0, 0);
    while answered < count {
        let length = read.read(&mut buffer).await?;
        let Some(came) = buffer.get(..length).filter(|came| !came.is_empty()) else {
            room.close();
            bail!("a Redis server closed the connection");
        };
        let before = answered;
        for byte in came {
            if OK.get(begun) != Some(byte) {
                room.close();
                bail!("a Redis server answered SET with {:?}", String::from_utf8_lossy(came));
            }
            begun += 1;
            if begun == OK.len() {
                (answered, begun) = (answered + 1, 0);
            }
        }
        room.add_permits(usize::try_from(answered - before).unwrap_or_default());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_counted_however_they_arrive_and_errors_are_told() {
        let check = async |arrives: &'static [u8], count: u64| {
            let (mut there, here) = tokio::io::duplex(3);
            let writing = tokio::spawn(async move { there.write_all(arrives).await });
            let done = await_answers(here, count, Arc::new(Semaphore::new(0))).await;
            let _ = writing.await;
            done.map_err(|error| error.to_string())
        };
        assert_eq!(check(b"+OK\r\n+OK\r\n", 2).await, Ok(()));
        assert!(check(b"+OK\r\n", 2).await.unwrap_err().contains("closed"));
        assert!(check(b"+OK\r\n-OOM", 2).await.unwrap_err().contains("answered SET"));
    }

    #[tokio::test]
    async fn values_differ_and_files_of_them_go_away() {
        let directory = tempfile::tempdir().unwrap();
        let pool: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let values = PlainValues { bytes: 100, count: 10, pool: pool.into() };
        assert_ne!(values.value(0), values.value(1));
        assert_eq!(values.total_bytes(6), 6000);
        values.write(vec![directory.path().join("a"), directory.path().join("b")], 4).await.unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
