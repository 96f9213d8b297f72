//! A way to a server that can be shut: then its port refuses, and whoever was connected is cut off.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tlog_testbed::ReservedPort;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub struct Gate {
    port: ReservedPort,
    target: Arc<Mutex<String>>,
    open: Option<JoinHandle<()>>,
}

impl Gate {
    /// An open one.
    pub async fn to(target: impl ToString) -> Self {
        let target = Arc::new(Mutex::new(target.to_string()));
        let mut gate = Self { port: ReservedPort::new(), target, open: None };
        gate.open().await;
        gate
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port.number()))
    }

    /// From now on new connections lead there.
    pub fn lead_to(&self, target: impl ToString) {
        *self.target.lock().unwrap() = target.to_string();
    }

    pub async fn open(&mut self) {
        let listener = TcpListener::bind(self.address()).await.unwrap();
        let target = Arc::clone(&self.target);
        self.open = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((mut client, _)) = listener.accept().await else { continue };
                let target = target.lock().unwrap().clone();
                connections.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(target).await {
                        let _ = (client.set_nodelay(true), server.set_nodelay(true));
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        }));
    }

    /// Answers when nobody is connected any more.
    pub async fn shut(&mut self) {
        if let Some(open) = self.open.take() {
            open.abort();
            let _ = open.await;
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.abort();
        }
    }
}
