//! Runs seeds of the simulation from a command line: `cargo xtask sim`.

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use tlog_sim::{Many, Options, Rule, Tally, run, run_many};

/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Runs client, server, writer, reader and slave in virtual time, from seeds, and says what is found to be wrong.
#[derive(Parser)]
#[command(name = "cargo xtask sim")]
struct Arguments {
    /// How many seeds to run. Default: 1000, or, with --seed, that one alone
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed; alone, it is run and tells its story
    #[arg(long)]
    seed: Option<u64>,
    /// Threads. Default: one for each core
    #[arg(long)]
    jobs: Option<usize>,
    /// Do without a rule of the product, which must then be found: no-start-records, no-majority, w-too-small, ack-before-w,
    /// position-before-data
    #[arg(long = "break", value_name = "RULE")]
    rule: Option<Rule>,
    /// With --break: run the seeds that are about the rule while it holds
    #[arg(long, requires = "rule")]
    obeyed: bool,
    /// Tell in the story what the product logs, from this level on: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL")]
    log: Option<tracing::Level>,
    /// Print one line of JSON at the end, and no story
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options { rule: arguments.rule, obeyed: arguments.obeyed, told: false, log: arguments.log };
    let many = match (arguments.seed, arguments.seeds) {
        (Some(seed), None) => one(seed, options, arguments.json),
        (first, count) => several(first.unwrap_or(1), count.unwrap_or(1000), &arguments, options),
    };
    if arguments.json {
        let found = many.found.as_ref().map(|(seed, what)| json!({ "seed": seed, "what": what }));
        let Tally { acknowledged, lives, openings, faults, reads, restores, slave_looks } = many.tally;
        let did = json!({
            "acknowledged": acknowledged, "clients": lives, "openings": openings, "faults": faults, "reads": reads,
            "restores": restores, "slave_looks": slave_looks,
        });
        println!(
            "{}",
            json!({ "seeds": many.seeds, "seconds": many.took.as_secs_f64(), "found": found, "did": did })
        );
    } else {
        report(&many, &arguments);
    }
    let expected = arguments.rule.is_some() && !arguments.obeyed;
    if many.found.is_some() == expected { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, options: Options, json: bool) -> Many {
    let began = Instant::now();
    let outcome = run(seed, Options { told: !json, ..options });
    outcome.story.iter().for_each(|line| println!("{line}"));
    let found = outcome.found.map(|what| (seed, what));
    Many { seeds: 1, found, tally: outcome.tally, took: began.elapsed() }
}

fn several(first: u64, count: u64, arguments: &Arguments, options: Options) -> Many {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.jobs.unwrap_or_else(cores);
    let (began, shown) = (Instant::now(), Mutex::new(Instant::now()));
    let many = run_many(first, count, jobs, options, |done| {
        let Ok(mut shown) = shown.try_lock() else { return };
        if shown.elapsed() >= PROGRESS_EVERY {
            *shown = Instant::now();
            let rate = done as f64 / began.elapsed().as_secs_f64();
            eprintln!("{done} of {count} seeds, {rate:.0} a second");
        }
    });
    if let (Some((seed, _)), false) = (&many.found, arguments.json) {
        // The same run once more, with its story.
        one(*seed, options, false);
    }
    many
}

fn report(many: &Many, arguments: &Arguments) {
    let Tally { acknowledged, lives, openings, faults, reads, restores, slave_looks } = many.tally;
    println!(
        "{} seeds in {:.1} s: {acknowledged} writes acknowledged to {lives} clients, {openings} openings, {faults} faults, {reads} reads, \
         {restores} restores, {slave_looks} looks at slaves",
        many.seeds,
        many.took.as_secs_f64()
    );
    match &many.found {
        None => println!("nothing was found"),
        Some((seed, what)) => {
            let rule = arguments.rule.map(|rule| format!(" --break {rule}")).unwrap_or_default();
            let obeyed = if arguments.obeyed { " --obeyed" } else { "" };
            println!("seed {seed}: {what}\nagain: cargo xtask sim --seed {seed}{rule}{obeyed}");
        }
    }
}
