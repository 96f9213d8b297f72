//! `tlog config`: a settings file to start from, a check of one, and what is in force.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::settings::{self, Settings, SettingsArgs};

/// Prints a settings file in which every setting stands, with what it means, at its default.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog config > tlog.toml                a file to start from: everything in it is commented out\n  \
    tlog config --check tlog.toml          exit status 0 where the file is right\n  \
    tlog config --show                     what is in force here, and where each value comes from")]
pub(crate) struct Arguments {
    /// Says whether this file is right, and what is wrong with it
    #[arg(long, value_name = "FILE", conflicts_with = "show")]
    check: Option<PathBuf>,
    /// Prints what is in force, from file, variables and flags; no secrets
    #[arg(long)]
    show: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match &arguments.check {
        Some(path) => {
            let settings = Settings::from_file(path)?;
            for warning in settings.warnings() {
                eprintln!("tlog: warning: {warning}");
            }
            writeln!(out, "{} is right: {}", path.display(), settings.redundancy)?;
        }
        None if arguments.show => out.write_all(settings::effective(&arguments.settings)?.as_bytes())?,
        None => out.write_all(settings::default_file().as_bytes())?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
