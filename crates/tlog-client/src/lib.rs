//! Sends the writes of a virtual disk to a tlog server, and tells when they are durable.
//!
//! [`Client`] hands blocks over without waiting for each: it writes many of them at once, keeps every one until the server
//! says that it is durable, and holds a bounded number of bytes while doing so. What a caller wants to know it can
//! have in three ways: for one block ([`Durable`], a future), for everything up to a point ([`Client::flush`],
//! [`Client::durable_up_to`]), or by watching ([`Client::events`], [`Client::stats`]).
//!
//! ```no_run
//! use tlog_client::{Client, ClientOptions};
//! use tlog_proto::{BlockIndex, VdiskId};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let vdisk = VdiskId::new("myimg")?;
//! let client = Client::connect_continuing("127.0.0.1:11211", vdisk, ClientOptions::default()).await?;
//! for number in 0..100_u8 {
//!     let index = BlockIndex::new(number.into()).ok_or("index too high")?;
//!     client.set(index, vec![number; 4096]).await?;
//! }
//! client.delete(BlockIndex::default()).await?;
//! client.flush().await?;
//! println!("durable from {} to before {}", client.first_sequence(), client.next_sequence());
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! What it deliberately does not do: reconnect, or choose among servers. When the connection ends, every handle fails with an
//! [`Ending`] that says why and which sequences were not acknowledged, and [`Client::unflushed`] gives these blocks
//! back; nothing that was handed over is lost without a word. It does not read logs either.

mod client;
mod connection;
mod durable;
mod error;
mod event;
mod handshake;
mod metrics;
mod options;
mod set;
mod shared;
mod state;
mod stats;

pub use client::Client;
pub use durable::Durable;
pub use error::{
    AppendError, ConnectError, EndCause, Ending, FlushError, ResendError, SlaveSyncError, Unacknowledged,
};
pub use event::{Event, Events};
pub use options::ClientOptions;
pub use set::SequenceSet;
pub use state::BLOCK_OVERHEAD;
pub use stats::Stats;
