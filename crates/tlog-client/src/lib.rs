//! Sends the writes of a virtual disk to tlog servers, and tells when they are durable.
//!
//! [`Client`] hands blocks over without waiting for each: it writes many of them at once, keeps every one until a server
//! says that it is durable, and holds a bounded number of bytes while doing so. It survives its servers: where one dies, hangs, is cut off
//! or cannot store any more, it goes on with the next one of its list, and every block is in the log once. What a caller
//! wants to know it can have in three ways: for one block ([`Durable`], a future), for everything up to a point
//! ([`Client::flush`], [`Client::durable_up_to`]), or by watching ([`Client::events`], [`Client::stats`]). Without a
//! runtime: [`blocking`].
//!
//! ```no_run
//! use tlog_client::{Client, ClientOptions};
//! use tlog_proto::{BlockIndex, VdiskId};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let servers = ["tlog-1:11211", "tlog-2:11211"];
//! let client = Client::connect(servers, VdiskId::new("myimg")?, ClientOptions::default()).await?;
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
//! What it deliberately does not do: go on where that would be wrong. It ends when another client has taken the vdisk over, and when
//! the servers lack what was acknowledged; then every handle fails with an [`Ending`] that says why and which sequences were
//! not acknowledged, and [`Client::unflushed`] gives these blocks back. It does not read logs either.
//!
//! How it is built:
//!
//! ```text
//!  Client, Durable, Events       what callers hold                       client.rs, durable.rs, event.rs, blocking.rs
//!   shared                       what they and the task have in common   shared.rs
//!    driver                      the task: online, offline, the end      driver.rs, driver/online.rs
//!     state, plan                decide; pure                            state.rs, state/, plan.rs
//!     dial, tls                  from an address to a handshake          dial.rs, tls.rs
//! ```

pub mod blocking;
mod client;
mod dial;
mod driver;
mod durable;
mod error;
mod event;
mod metrics;
mod options;
mod plan;
mod servers;
mod set;
mod shared;
mod state;
mod stats;
mod tls;

pub use client::Client;
pub use dial::{Connecting, Connector, Reader, Writer};
pub use durable::Durable;
pub use error::{AppendError, ConnectError, EndCause, Ending, LostCause, SlaveSyncError, Unacknowledged};
pub use event::{Event, Events};
pub use options::{Backoff, ClientOptions, Start};
pub use servers::Servers;
pub use set::SequenceSet;
pub use state::BLOCK_OVERHEAD;
pub use stats::Stats;
pub use tls::{ClientCertificate, TlsFailure, TlsOptions};

/// What the documents show compiles.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../../README.md")]
    struct Readme;
    #[doc = include_str!("../../../docs/client.md")]
    struct ClientPage;
}
