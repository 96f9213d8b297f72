//! Deterministic simulation of the whole: the real client, server, writer, recovery, reader and slave syncer, in virtual time, on a
//! simulated network and simulated stores, all from one seed.
//!
//! ```text
//!  front_end  the real client --+  net: byte streams: late, in pieces, broken,   +-- machine: the real server and writer
//!             killed, restarted +--   silent, held back while a newer one is up  +--          killed, stopped, restarted
//!                                                                                          |
//!  reading    the real reader  --+  stores: requests and answers late, lost, twice,  <-----+
//!  slave      the real syncer  --+    overtaking; disks down, slow, torn, wiped, set back, put back
//!  model      what was handed over, acknowledged and seen: everything that comes out is compared with it
//! ```
//!
//! TCP keeps the order of bytes and does not repeat them within a connection. So *lost, delayed, reordered, duplicated* means for clients
//! and servers: bytes arrive late and in other pieces than they were written in; connections break in the middle of a message, or go silent;
//! what was written on an old connection arrives when a newer one is up. For stores, which are asked and answer, each request and
//! answer has its own fate.
//!
//! # What is checked
//!
//! - Nothing acknowledged is lost or changed; nothing is in the log that nobody wrote; nothing is there twice.
//! - The writes of a client are in their order and without gaps; generations and sequences rise; what was acknowledged before something
//!   else was handed over is before it; what a client left that is gone does not come back behind the end that a later one was told.
//! - Under each number there is one aggregation for ever: no fork, and what a reader was certain of stays.
//! - What is restored is the disk that the writes up to that moment make.
//! - A slave is, at any time, the disk after the write that it names, and its record is not ahead.
//! - A client that nobody disturbs is never told of a gap or of another client, and no opening says that data is lost.
//! - Once faults stop, everything handed over becomes durable, and the slave is brought up to date.
//! - Nothing panics.
//!
//! # How it repeats
//!
//! One thread, tokio's paused time, and `tlog-ambient` in place of the system's clock, random numbers and threads. `select!` of the code that
//! takes part is biased. What is left to chance is which of several waiters of one `watch` channel runs first; nothing that
//! is told or decided here depends on it, and a test compares stories.
//!
//! # Broken rules
//!
//! [`Rule`] lists rules of the product that can be broken on purpose; the simulator must find each. The switches exist with the feature
//! `simulation` of the crates only, and are set per thread.
//!
//! # Failpoints
//!
//! [`Point`] lists moments in the product at which a process may die; with [`Options::failpoint`] it does, at a hit that the seed
//! draws. Those of who removes history are not among them ([`failpoints`]): that is done by the program around these crates, whose own
//! tests kill it there.
//!
//! What it deliberately does not do: TLS, stored format 1, real stores, the documents of vdisks and clusters. It depends on no adapter
//! and nothing depends on it.

mod failpoint;
mod faults;
mod front_end;
mod machine;
mod many;
mod model;
mod net;
mod reading;
mod rule;
mod run;
mod scenario;
mod slave;
mod stores;
mod story;
mod world;

pub use failpoint::failpoints;
pub use many::{Many, run_many};
pub use rule::{NoSuchRule, Rule};
pub use run::{Options, Outcome, run};
pub use tlog_ambient::Point;
pub use world::Tally;
