//! The composition root: everything that `tlog-server` and `tlog` are made of and that only makes sense where all crates
//! meet.
//!
//! - [`settings`]: defaults, file, environment, flags.
//! - [`keys`]: the key file.
//! - [`moment`]: moments as a person writes them.
//! - [`logging`], [`words`]: log lines, and errors as a person reads them.
//! - [`stores`], [`places`], [`storage`], [`filling`], [`open_log`]: from addresses to the server's port.
//! - [`documents`], [`storages`]: vdisks and clusters as documents describe them, followed as they change.
//! - [`slaves`]: storage clusters that are kept up to date with logs.
//! - [`inventory`], [`running`], [`background_scrub`]: which vdisks there are, who has them open, and whether they are whole.
//! - [`proofs`], [`proof_report`]: that vdisks can be restored, proven before that is needed.
//! - [`pins`], [`admin_pins`]: history that stays while somebody reads it.
//! - [`recording`], [`reading`]: an image into the log, and the log opened for reading.
//! - [`demo`]: the whole path on one machine.
//! - `bench`: what `tlog bench` measures with: loads, the processes they go to, what these cost.
//! - [`service`], [`admin`]: what `tlog-server` runs, and what it tells of itself.
//!
//! What it deliberately does not do: anything that one of the other crates could do. It names adapters, wires them
//! together, and talks to people.

pub mod admin;
pub mod admin_client;
pub mod admin_pins;
pub mod background_scrub;
mod bench;
pub mod cli;
mod commands;
pub mod deleting;
pub mod demo;
mod demo_image;
pub mod documents;
pub mod filling;
pub mod inventory;
pub mod keys;
pub mod logging;
pub mod memory;
pub mod metrics_table;
pub mod moment;
mod open_files;
pub mod open_log;
mod pinned;
pub mod pins;
pub mod places;
pub mod proof_report;
pub mod proofs;
pub mod reading;
pub mod recording;
pub mod replacing;
pub mod retention;
pub mod running;
pub mod scrub_report;
pub mod service;
pub mod settings;
mod show_status;
pub mod slaves;
pub mod storage;
pub mod storages;
pub mod stores;
pub mod words;
