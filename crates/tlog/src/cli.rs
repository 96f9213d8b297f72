//! The command line of `tlog`, a person's tool.

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{
    bench, blame, checkpoint, config, delete, demo, diff, history, keygen, mark, points, prune, record,
    replay, restore, scrub, slave, store, vdisks, verify,
};
use crate::words;

/// Records virtual disks in a transaction log, and restores them to any moment.
#[derive(Debug, Parser)]
#[command(
    name = "tlog",
    version,
    arg_required_else_help = true,
    after_help = "Each command has a help of its own: 'tlog record -h' shows what is usual, 'tlog record --help' everything.\n\
        Exit status: 0 done; 1 not done, with the reason on standard error; 64 wrong usage. 'tlog verify' has its own: 0 whole, \
        1 degraded, 2 data lost, 3 could not be checked; so has 'tlog restore --verify-against': 0 equal, 1 differs, 3 could not be told."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Bench(bench::Arguments),
    Record(record::Arguments),
    History(history::Arguments),
    Points(points::Arguments),
    Diff(diff::Arguments),
    Blame(blame::Arguments),
    Restore(restore::Arguments),
    Replay(replay::Arguments),
    Verify(verify::Arguments),
    Scrub(scrub::Arguments),
    Vdisks(vdisks::Arguments),
    Store(store::Arguments),
    Slave(slave::Arguments),
    Mark(mark::Arguments),
    Checkpoint(checkpoint::Arguments),
    Prune(prune::Arguments),
    Delete(delete::Arguments),
    Keygen(keygen::Arguments),
    Config(config::Arguments),
}

/// Exit status of a command line that makes no sense; the usual 2 would be taken for a verdict of `tlog verify`.
pub(crate) const USAGE: u8 = 64;

impl Cli {
    /// Takes the arguments of this process; where they make no sense, or ask for help, says so and answers the exit status.
    pub fn from_process() -> Result<Self, ExitCode> {
        Self::try_parse().map_err(|error| {
            let _nobody_reads = error.print();
            if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
        })
    }

    /// Does what was asked for, and tells a person on standard error if that failed.
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Demo(arguments) => blocking(demo::run(arguments)),
            Command::Bench(arguments) => blocking(bench::run(arguments)),
            Command::Record(arguments) => blocking(record::run(arguments)),
            Command::History(arguments) => blocking(history::run(arguments)),
            Command::Points(arguments) => blocking(points::run(arguments)),
            Command::Diff(arguments) => blocking(diff::run(arguments)),
            Command::Blame(arguments) => blocking(blame::run(arguments)),
            Command::Restore(arguments) => blocking(restore::run(arguments)),
            Command::Replay(arguments) => blocking(replay::run(arguments)),
            Command::Verify(arguments) => blocking(verify::run(arguments)),
            Command::Scrub(arguments) => blocking(scrub::run(arguments)),
            Command::Vdisks(arguments) => blocking(vdisks::run(arguments)),
            Command::Store(arguments) => blocking(store::run(arguments)),
            Command::Slave(arguments) => blocking(slave::run(arguments)),
            Command::Mark(arguments) => blocking(mark::run(arguments)),
            Command::Checkpoint(arguments) => blocking(checkpoint::run(arguments)),
            Command::Prune(arguments) => blocking(prune::run(arguments)),
            Command::Delete(arguments) => blocking(delete::run(arguments)),
            Command::Keygen(arguments) => keygen::run(&arguments),
            Command::Config(arguments) => blocking(config::run(arguments)),
        };
        match done {
            Ok(code) => code,
            // Whoever read the output has seen enough, as in 'tlog history vda | head'.
            Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("tlog: {}", words::of_error(&error));
                ExitCode::FAILURE
            }
        }
    }
}

fn blocking<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_fits_together_and_every_command_shows_examples() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            let help = subcommand.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{help}");
            assert!(help.contains(&format!("tlog {}", subcommand.get_name())), "{help}");
        }
    }
}
