//! Chaos from a command line: `cargo xtask chaos`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tlog_chaos::{Options, WriterArguments, Wrong, random_seed, run, write};

/// Kills, stops, cuts off and fills up servers, stores, clients and a slave, and compares what is left with what was handed over.
#[derive(Parser)]
#[command(
    name = "cargo xtask chaos",
    after_help = "Examples:\n  \
        cargo xtask chaos                          three minutes\n  \
        cargo xtask chaos --minutes 30\n  \
        cargo xtask chaos --seed 42 --keep /tmp/chaos    the faults of that seed; journals and logs are left there\n  \
        cargo xtask chaos --minutes 0.3 --recovery 20 --break wiped-stores    must be found\n\n\
        Exit status: 0 nothing was found (with --break: it was found, and for that reason); 1 something was, or it could not be run."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// For how long, about; the last round of faults is always finished
    #[arg(long, default_value_t = 3.0)]
    minutes: f64,
    /// What faults, writes and moments are decided by. Default: a random one
    #[arg(long)]
    seed: Option<u64>,
    /// Leaves journals, logs and what was restored in this directory. Default: only where something is found
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// How many seconds everything may take to recover by itself once faults have stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 240)]
    recovery: u64,
    /// Does something wrong that must be found: wiped-stores, other-content, early-acknowledgement
    #[arg(long = "break", value_name = "WHAT")]
    wrong: Option<Wrong>,
    /// Prints the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// A client; started by this program itself
    #[command(hide = true)]
    Write(WriterArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.command {
        Some(Command::Write(writer)) => write(writer).map(|()| ExitCode::SUCCESS),
        None => chaos(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn chaos(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let here = std::env::current_exe()?;
    let options = Options {
        length: Duration::try_from_secs_f64(arguments.minutes * 60.0).context("--minutes")?,
        seed: match arguments.seed {
            Some(seed) => seed,
            None => random_seed()?,
        },
        keep: arguments.keep.clone(),
        binaries: here.parent().context("no directory of programs")?.to_owned(),
        recovery: Duration::from_secs(arguments.recovery),
        wrong: arguments.wrong,
    };
    let report = run(&options)?;
    match arguments.json {
        true => println!("{}", report.as_json()),
        false => print!("{report}"),
    }
    match &report.found {
        Some(found) => eprintln!("FOUND, with seed {}: {found}", options.seed),
        None => {
            eprintln!("nothing was found, with seed {}, in {:.0} s", options.seed, report.took.as_secs_f64())
        }
    }
    let is_well = match (options.wrong, &report.found) {
        (None, found) => found.is_none(),
        (Some(wrong), found) => found.as_ref().is_some_and(|found| wrong.explains(found)),
    };
    if let (Some(wrong), false) = (options.wrong, is_well) {
        eprintln!("this is not what {wrong} must lead to");
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
