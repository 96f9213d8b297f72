//! The project's tasks, and the only door to them: `cargo xtask <task>`.
//!
//! It is compiled before anything else can run, so it stays light: no argument parser, no async, few crates. It
//! deliberately does not know how the project works inside; it builds, checks and tests it.

mod bench_report;
mod codegen;
mod counts;
mod fuzz;
mod setup;
mod steps;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask <task>

  setup               check for the system packages that building and testing need; as root on Debian
                      and Ubuntu install what is missing, else print the commands
  codegen [--check]   make the Rust code of schema/tlog.capnp; --check only compares it with what is committed
  tidy                check layering, file heads and sizes, documentation links and generated code
  test [ARGUMENT...]  setup, then cargo test --workspace --locked with the arguments; without arguments chaos
                      for three minutes, counts and fuzz, too
  sim [ARGUMENT...]   run seeds of the simulation, such as --seeds 10000; --help says more
  chaos [--release] [ARGUMENT...]
                      kill, stop, cut off and fill up real servers, stores, clients and a slave, such as for --minutes 30; --help
                      says more; --release with programs that are built for speed
  counts [--update]   count the instructions of a block in each stage and fail where one has grown by more than
                      10 %; --update writes down what was counted
  fuzz [TARGET...]    feed the fuzz targets what libFuzzer makes, for 10 seconds each; --help says more
  bench-report [--quick | --from DIR]
                      measure how cost grows with vdisks, block size, flush-size, shards and history, and write the charts
                      and tables of docs/performance.md; --from takes files of an earlier one (target/bench-report)
  ci [--skip-test]    formatting, clippy, tidy, documentation, licences, then test
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    let root = root();
    match arguments {
        ["setup"] => setup::run(),
        ["codegen"] => codegen::write(root),
        ["codegen", "--check"] => codegen::check(root),
        ["tidy"] => tidy::run(root),
        ["counts"] => counts::run(root, false),
        ["counts", "--update"] => counts::run(root, true),
        ["bench-report", arguments @ ..] => bench_report::run(root, arguments),
        ["test", arguments @ ..] => steps::test(root, arguments),
        ["sim", arguments @ ..] => steps::sim(root, arguments),
        ["fuzz", arguments @ ..] => fuzz::run(root, arguments),
        ["chaos", arguments @ ..] => steps::chaos(root, arguments),
        ["ci"] => steps::ci(root, true),
        ["ci", "--skip-test"] => steps::ci(root, false),
        [] | ["help" | "-h" | "--help"] => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("no such task: {}\n\n{USAGE}", other.join(" ")),
    }
}

/// The folder of the workspace.
fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}
