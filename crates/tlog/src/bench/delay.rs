//! A slow way to a store.

use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::settings::TimeSpan;

/// Which store answers late, and by how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DelayedStore {
    pub(crate) number: usize,
    pub(crate) by: Duration,
}

impl FromStr for DelayedStore {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(number, by)| {
            Some(Self { number: number.parse().ok()?, by: by.parse::<TimeSpan>().ok()?.0 })
        });
        parsed
            .ok_or_else(|| "it must be the number of a store, from 0, and a time, such as 0=100ms".to_owned())
    }
}

/// Leads to a server, whose answers arrive so much later; as many as before are on the way, as over a long line. What is asked goes
/// through at once. Over when this is dropped.
#[derive(Debug)]
pub(crate) struct Delay {
    address: String,
    serving: AbortHandle,
}

impl Delay {
    /// Leads to `target`. With no time at all it only costs what passing on costs.
    pub(crate) async fn start(target: String, by: Duration) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no free port")?;
        let address = listener.local_addr()?.to_string();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                let target = target.clone();
                connections.spawn(async move {
                    if let Ok(server) = TcpStream::connect(target).await {
                        let _either_is_gone = pass_on(client, server, by).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, serving: serving.abort_handle() })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn pass_on(client: TcpStream, server: TcpStream, by: Duration) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        done = pass_one_way(from_client, to_server, Duration::ZERO) => done,
        done = pass_one_way(from_server, to_client, by) => done,
    }
}

async fn pass_one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, by: Duration) -> std::io::Result<()> {
    // Unbounded, or what is on the way would be bounded by more than time; a store's answers are small.
    let (put, mut on_the_way) = mpsc::unbounded_channel::<(Instant, Bytes)>();
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(64 << 10);
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            if put.send((Instant::now() + by, buffer.split().freeze())).is_err() {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((at, bytes)) = on_the_way.recv().await {
            if !by.is_zero() {
                sleep_until(at).await;
            }
            to.write_all(&bytes).await?;
        }
        Ok(())
    };
    futures::future::try_join(reading, writing).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delayed_store_is_named_by_its_number_and_the_time() {
        let delayed = DelayedStore { number: 2, by: Duration::from_millis(100) };
        assert_eq!("2=100ms".parse(), Ok(delayed));
        assert!("100ms".parse::<DelayedStore>().is_err() && "0=fast".parse::<DelayedStore>().is_err());
    }

    #[tokio::test]
    async fn answers_come_that_much_later_and_together_where_they_were_asked_together() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() {
                stream.write_all(&byte).await.unwrap();
            }
        });
        let delay = Delay::start(target, Duration::from_millis(50)).await.unwrap();
        let mut stream = TcpStream::connect(delay.address()).await.unwrap();
        let begun = Instant::now();
        stream.write_all(b"ab").await.unwrap();
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ab");
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }
}
