//! Chaos on real processes: servers, stores, clients and a slave are killed, stopped, cut off and filled up for minutes, and what is left
//! is compared with what was handed over.
//!
//! ```text
//!  run        rounds: faults, then none; everything recovers by itself, and is compared
//!  plan       which faults, when: from the seed      striking   carries them out
//!  site       Redis servers, tlog servers, relays between all of them, clients, the tool
//!  writer     a client in a process of its own       journal    what it handed over, and what was acknowledged
//!  checking   restores against journals; slaves      model      what a disk must hold after each write
//! ```
//!
//! # What is checked
//!
//! - In the middle of everything: whatever a restore gives is the disk after the write that it names, and not an older one than was
//!   acknowledged when it was asked for. Wherever its syncer is: a slave is the disk after some write, at or after the one that it names.
//! - When faults have stopped: within a stated time writes are acknowledged again, everything handed over becomes durable, every store has
//!   everything, the slave is up to date, all by itself. Then the newest disk and earlier ones are restored, and the slave is read with
//!   another client: byte for byte what the journals say.
//! - A client that nobody disturbs is never told of a gap or of another client, also after a restart with its journal.
//! - At the end the history has each write once, in order, and every byte is opened.
//! - No process ends by itself, none panics.
//!
//! What is handed over and acknowledged is known from journals that clients write, and from nobody else. The faults are the same for the
//! same seed; what the machine makes of them is not.
//!
//! What it deliberately does not do: simulate anything (`tlog-sim` does). Nothing depends on it.

mod checking;
mod fault;
mod journal;
mod model;
mod plan;
mod process;
mod relay;
mod report;
mod run;
mod site;
mod slaves;
mod small_disk;
mod striking;
mod tool;
mod writer;
mod wrong;

pub use report::Report;
pub use run::{Options, random_seed, run};
pub use writer::{WriterArguments, write};
pub use wrong::{NoSuchWrong, Wrong};
