//! `tlog demo`: the whole path, in one command.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::demo;
use crate::settings::{LogFormat, LogSettings};

/// Shows the whole path on this machine, in under a minute, with no server or file of yours.
///
/// Starts a server on 4+2 directory stores in a scratch directory, makes a disk image (with a real file system where mkfs.ext4 is
/// there), records it, changes it a few times and records each change, destroys two of the six stores, restores every moment
/// and compares it byte for byte, and verifies every byte of the log. Exit status 0 says that everything was equal.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog demo\n  \
    tlog demo --keep                       leaves the scratch directory for you to look at\n  \
    tlog demo --size 256                   a larger image")]
pub(crate) struct Arguments {
    /// Size of the image in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(8..=4096))]
    size: u64,
    /// Where the scratch directory is made [default: the system's directory for temporary files]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Generates the image, also where mkfs.ext4 is there
    #[arg(long)]
    generated: bool,
    /// Keeps the scratch directory
    #[arg(long)]
    keep: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    // Destroyed stores are what it is about; the server's warnings would only be in the way.
    let logging = LogSettings { filter: "off".to_owned(), filter_is_set: false, format: LogFormat::Text };
    crate::logging::init(&logging);
    let parent = arguments.scratch.unwrap_or_else(std::env::temp_dir);
    let scratch = tempfile::Builder::new().prefix("tlog-demo-").tempdir_in(&parent).with_context(|| {
        format!("no scratch directory can be made in {}; name another with --scratch", parent.display())
    })?;
    let done = demo::run(scratch.path(), arguments.size << 20, arguments.generated, &mut io::stdout()).await;
    if arguments.keep {
        println!("kept {}", scratch.keep().display());
    } else if let Err(error) = scratch.close() {
        eprintln!("tlog: the scratch directory could not be removed: {error}");
    }
    Ok(if done? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
