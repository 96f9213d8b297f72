//! `tlog`: records, shows, restores and checks the logs of virtual disks.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tlog::cli::Cli::from_process() {
        Ok(cli) => cli.run(),
        Err(code) => code,
    }
}
