//! `tlog bench`: how fast, and at what cost.

mod codec;
mod hostile;
mod load_arguments;
mod report;
mod restore;
mod scale;
mod store;
mod write;

use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use tokio::signal::unix::{SignalKind, signal};

use self::report::Machine;

/// Measures writing, restoring, the codec, the stores, many vdisks at once and hostile clients, and checks that the log holds exactly what was acknowledged.
///
/// Each kind of measurement has a help of its own. What is started for one - stores, a server - is on free ports of this machine and in a
/// directory for temporary files, and is gone afterwards, also after Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog bench write                       a server on six Redis servers, random blocks of 4 KiB for 3 s\n  \
    tlog bench write --stores directory --flush-size 250 --runs 5\n  \
    tlog bench restore                     reads a log back that it has written\n  \
    tlog bench codec --data text           microseconds per block of each stage\n  \
    tlog bench store --stores redis-aof    what the stores alone can take\n  \
    tlog bench scale                       many vdisks on one server, and a long log\n  \
    tlog bench hostile                     a good client beside ten thousand that are not")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Write(write::Arguments),
    Restore(restore::Arguments),
    Codec(codec::Arguments),
    Store(store::Arguments),
    Scale(scale::Arguments),
    Hostile(hostile::Arguments),
    /// What 'tlog bench hostile' starts
    #[command(hide = true)]
    Swarm(hostile::SwarmArguments),
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    // It has its own way to end.
    if let Command::Swarm(arguments) = arguments.command {
        return hostile::swarm(arguments).await;
    }
    // Whoever is interrupted must not leave servers behind: what was started ends as the measurement is dropped.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let machine = Machine::now();
    let measuring = async {
        match arguments.command {
            Command::Write(arguments) => write::run(arguments, machine).await,
            Command::Restore(arguments) => restore::run(arguments, machine).await,
            Command::Codec(arguments) => codec::run(arguments, machine).await,
            Command::Store(arguments) => store::run(arguments, machine).await,
            Command::Scale(arguments) => scale::run(arguments, machine).await,
            Command::Hostile(arguments) => hostile::run(arguments, machine).await,
            Command::Swarm(arguments) => hostile::swarm(arguments).await,
        }
    };
    tokio::select! {
        done = measuring => done,
        _ = interrupt.recv() => bail!("interrupted; what was started has been stopped and removed"),
        _ = terminate.recv() => bail!("asked to stop; what was started has been stopped and removed"),
    }
}
