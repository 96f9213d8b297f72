//! `tlog keygen`: a new master key.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use tlog_crypto::MasterKey;

use crate::keys;

/// Makes a new master key.
///
/// Prints it, or with -o writes it to a new file that only its owner can read. A file that is there already is never
/// overwritten. Without its key a log cannot be read: keep a copy on another machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog keygen -o /etc/tlog/tlog.key      then set key-file = \"/etc/tlog/tlog.key\"\n  \
    tlog keygen >> new.key                 a key that only you have seen is as secret as your terminal")]
pub(crate) struct Arguments {
    /// File to make, and its directory where that is not there
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match &arguments.output {
        Some(path) => {
            let id = keys::write_new(path)?;
            writeln!(out, "made key {id} in {}; keep a copy on another machine", path.display())?;
        }
        None => out.write_all(keys::key_text(&MasterKey::generate()?).as_bytes())?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
