//! The tlog server as a library.
//!
//! A tlog server takes the writes of virtual disks over TCP, puts them in order, hands them to a log, and tells each
//! client which of its writes are durable. [`Server`] is that: give it [`ServerSettings`] and a [`LogStorage`], a
//! listener and a token for shutdown. `docs/sessions.md` says what clients may rely on.
//!
//! What it deliberately does not do: store, encode or encrypt anything (that is behind the port [`LogStorage`]), decide when
//! a log is flushed unless somebody asks or memory runs short, read settings, or handle signals. It depends on nothing of
//! this project but `tlog-proto`.
//!
//! How it is built, from the outside in:
//!
//! ```text
//!  Server::run     accepts                                   server.rs
//!   connection     one task each: reads, checks, writes      connection.rs, outbox.rs, budget.rs
//!    vdisk         one task for each open log                vdisk.rs, live.rs, registry.rs
//!     session      decides; pure                             session.rs, tail.rs, window.rs
//!      VdiskLog    the port                                  port.rs
//! ```

mod budget;
mod connection;
mod live;
mod outbox;
mod port;
mod registry;
mod server;
mod session;
mod settings;
mod status;
mod tail;
mod vdisk;
mod window;

pub use port::{
    BlockDigest, CloseReason, Closed, Durability, LogEnd, LogStorage, OpenError, OrderedBlock, SlaveSync,
    SlaveSyncError, SlaveSyncOutcome, VdiskLog,
};
pub use server::Server;
pub use settings::{ServerSettings, SettingsError};
pub use status::{RunReport, ServerStatus, VdiskReport, VdiskStatus};
