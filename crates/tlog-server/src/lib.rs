//! The tlog server as a library.
//!
//! A tlog server takes the writes of virtual disks over TCP, plain or with TLS, puts them in order, hands them to a log, and tells each
//! client which of its writes are durable. [`Server`] is that: give it [`ServerSettings`] and a [`LogStorage`], a
//! listener and a token for shutdown. `docs/sessions.md` says what clients may rely on. With a [`ServerTls`] it speaks TLS and
//! nothing else, and may ask clients for a certificate; [`Permissions`] say which of them may write which vdisk.
//!
//! What it deliberately does not do: store, encode or encrypt anything (that is behind the port [`LogStorage`]), decide when
//! a log is flushed unless somebody asks or memory runs short, read settings, or handle signals. It depends on nothing of
//! this project but `tlog-proto`.
//!
//! How it is built, from the outside in:
//!
//! ```text
//!  Server::run     accepts                                   server.rs, places.rs
//!   connection     one task each: reads, checks, writes      connection.rs, connection/, verify.rs, outbox.rs, budget.rs
//!                  before that, TLS and who may write what   tls.rs, tls/, permissions.rs
//!    vdisk         one task for each open log                vdisk.rs, live.rs, registry.rs
//!     session      decides; pure                             session.rs, tail.rs, window.rs
//!      VdiskLog    the port                                  port.rs
//! ```

mod budget;
mod connection;
mod live;
mod metric;
mod outbox;
mod permissions;
mod places;
mod port;
mod registry;
mod seldom;
mod server;
mod session;
mod settings;
mod status;
mod tail;
mod tls;
mod vdisk;
mod verify;
mod window;

pub use permissions::{PermissionRule, PermissionRuleError, Permissions};
pub use port::{
    BlockDigest, CloseReason, Closed, Durability, LogEnd, LogStorage, OpenError, OrderedBlock, SlaveSync,
    SlaveSyncError, SlaveSyncOutcome, VdiskLog,
};
pub use server::Server;
pub use settings::{ServerSettings, SettingsError};
pub use status::{RunReport, ServerStatus, VdiskReport, VdiskStatus};
pub use tls::{ServerCertificate, ServerCertificateFault, ServerTls, TlsError, TlsFiles};
