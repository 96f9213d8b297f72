//! A way to a server on which connections can be cut, held back and slowed down.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tlog_testbed::ReservedPort;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::fault::Cut;

/// Bytes that are passed on at once.
const PIECE: usize = 16 << 10;

/// A port that leads to another one, as well as it is told to. Gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    port: ReservedPort,
    cut: watch::Sender<Option<Cut>>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Relay {
    /// A new one on a free port of this machine. Nothing is wrong with it.
    pub(crate) fn to(target: SocketAddr) -> Self {
        let port = ReservedPort::new();
        let (cut, orders) = watch::channel(None);
        let here = SocketAddr::from(([127, 0, 0, 1], port.number()));
        Self { port, cut, task: tokio::spawn(serve(here, target, orders)) }
    }

    /// Where to connect.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// What is wrong from now on; none: nothing.
    pub(crate) fn set(&self, cut: Option<Cut>) {
        self.cut.send_replace(cut);
    }

    /// Fails where it does not work any more.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.task.is_finished(), "the relay on {} has ended", self.address());
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    here: SocketAddr,
    target: SocketAddr,
    mut orders: watch::Receiver<Option<Cut>>,
) -> anyhow::Result<()> {
    loop {
        orders.wait_for(|cut| *cut != Some(Cut::Refused)).await?;
        let listener = TcpListener::bind(here).await.with_context(|| format!("cannot listen on {here}"))?;
        // Dropped with the listener, which ends all of them.
        let mut connections = JoinSet::new();
        loop {
            let refused = async { orders.wait_for(|cut| *cut == Some(Cut::Refused)).await.map(drop) };
            tokio::select! {
                told = refused => break told?,
                accepted = listener.accept() => {
                    // Out of descriptors, or reset before it was accepted: the one who connects sees it.
                    let Ok((stream, _)) = accepted else { continue };
                    connections.spawn(connection(stream, target, orders.clone()));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// Both directions, until one of them breaks or both have ended.
async fn connection(
    from: TcpStream,
    target: SocketAddr,
    orders: watch::Receiver<Option<Cut>>,
) -> std::io::Result<()> {
    let to = TcpStream::connect(target).await?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
    let there = pass(from_read, to_write, orders.clone(), |cut| match cut {
        Some(Cut::Silent | Cut::OneWay { answers: true }) => false,
        Some(Cut::OneWay { answers: false } | Cut::Slow(_) | Cut::Refused) | None => true,
    });
    let back = pass(to_read, from_write, orders, |cut| match cut {
        Some(Cut::Silent | Cut::OneWay { answers: false }) => false,
        Some(Cut::OneWay { answers: true } | Cut::Slow(_) | Cut::Refused) | None => true,
    });
    tokio::try_join!(there, back).map(drop)
}

/// One direction, to its end.
async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut orders: watch::Receiver<Option<Cut>>,
    passes: impl Fn(&Option<Cut>) -> bool,
) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await?;
        if let Some(by) = slowness(&orders) {
            sleep(by).await;
        }
        // Nobody gives orders any more: the relay is gone, and this with it.
        let _ = orders.wait_for(&passes).await;
        match piece.get(..length) {
            Some([]) | None => return to.shutdown().await,
            Some(bytes) => to.write_all(bytes).await?,
        }
    }
}

fn slowness(orders: &watch::Receiver<Option<Cut>>) -> Option<Duration> {
    match *orders.borrow() {
        Some(Cut::Slow(by)) => Some(by),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, timeout};

    const LONG: Duration = Duration::from_secs(30);

    /// A server that sends back what it is sent, and a relay to it.
    async fn echo() -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        Relay::to(address)
    }

    async fn connect(relay: &Relay) -> TcpStream {
        // It listens soon.
        let connecting = async {
            loop {
                match TcpStream::connect(relay.address()).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        timeout(LONG, connecting).await.unwrap()
    }

    async fn ask(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_all(&[7]).await?;
        timeout(LONG, stream.read_u8()).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_refused_is_reset_and_works_again_afterwards() {
        let relay = echo().await;
        let mut stream = connect(&relay).await;
        assert_eq!(ask(&mut stream).await.unwrap(), 7);
        relay.set(Some(Cut::Refused));
        timeout(LONG, stream.read_u8()).await.unwrap().unwrap_err();
        let refused = async { while TcpStream::connect(relay.address()).await.is_ok() {} };
        timeout(LONG, refused).await.unwrap();
        relay.set(None);
        assert_eq!(ask(&mut connect(&relay).await).await.unwrap(), 7);
        relay.check().unwrap();
    }

    #[tokio::test]
    async fn what_is_silent_is_held_back_and_arrives_later() {
        for cut in [Cut::Silent, Cut::OneWay { answers: true }, Cut::OneWay { answers: false }] {
            let relay = echo().await;
            let mut stream = connect(&relay).await;
            assert_eq!(ask(&mut stream).await.unwrap(), 7);
            relay.set(Some(cut));
            stream.write_all(&[9]).await.unwrap();
            // That nothing comes can be waited for only for so long.
            timeout(Duration::from_millis(50), stream.read_u8()).await.unwrap_err();
            relay.set(None);
            assert_eq!(timeout(LONG, stream.read_u8()).await.unwrap().unwrap(), 9);
        }
    }

    #[tokio::test]
    async fn what_is_slow_takes_that_much_longer() {
        let relay = echo().await;
        let mut stream = connect(&relay).await;
        relay.set(Some(Cut::Slow(Duration::from_millis(30))));
        let began = Instant::now();
        assert_eq!(ask(&mut stream).await.unwrap(), 7);
        assert!(began.elapsed() >= Duration::from_millis(60));
    }
}
