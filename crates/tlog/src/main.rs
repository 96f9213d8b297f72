//! `tlog`: records, shows, restores and checks the logs of virtual disks.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tlog::cli::Cli::parse().run()
}
