//! Runs seeds of the simulation from a command line: `cargo xtask sim`.

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use tlog_sim::{Many, Options, Point, Rule, Tally, failpoints, run, run_many};

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
    /// Processes die at this point of the code, such as before-append; with all, at each in turn, 20 seeds or --seeds
    #[arg(long, value_name = "POINT", conflicts_with = "rule")]
    failpoint: Option<FailpointArgument>,
    /// Print one line of JSON at the end, and no story
    #[arg(long)]
    json: bool,
}

/// A point, or all of them.
#[derive(Clone, Copy)]
struct FailpointArgument(Option<Point>);

impl FromStr for FailpointArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match failpoints().find(|point| point.name() == text) {
            Some(point) => Ok(Self(Some(point))),
            None if text == "all" => Ok(Self(None)),
            None => {
                let names: Vec<_> = failpoints().map(Point::name).collect();
                Err(format!("the points are {}, or all of them: all", names.join(", ")))
            }
        }
    }
}

/// At each point so many seeds die, one after the other; false where something was found, or a point was not reached in so many times more.
fn at_all_points(arguments: &Arguments) -> bool {
    let (first, count) = (arguments.seed.unwrap_or(1), arguments.seeds.unwrap_or(20));
    let mut fine = true;
    for point in failpoints() {
        let options = Options { failpoint: Some(point), ..Options::default() };
        let (mut killed, mut kills, mut found) = (0, 0, None);
        for seed in first..first.saturating_add(count.saturating_mul(50)) {
            let outcome = run(seed, options);
            kills += outcome.tally.killed_at_point;
            killed += u64::from(outcome.tally.killed_at_point > 0);
            found = outcome.found.map(|what| (seed, what));
            if killed == count || found.is_some() {
                break;
            }
        }
        fine &= killed == count && found.is_none();
        if arguments.json {
            let found = found.map(|(seed, what)| json!({ "seed": seed, "what": what }));
            println!("{}", json!({ "point": point.name(), "seeds": killed, "kills": kills, "found": found }));
            continue;
        }
        println!("{:<24} died in {killed} seeds, {kills} times", point.name());
        if let Some((seed, what)) = found {
            println!(
                "seed {seed}: {what}\nagain: cargo xtask sim --seed {seed} --failpoint {}",
                point.name()
            );
        }
    }
    fine
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.failpoint, Some(FailpointArgument(None))) {
        return if at_all_points(&arguments) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let failpoint = arguments.failpoint.as_ref().and_then(|FailpointArgument(point)| *point);
    let Arguments { rule, obeyed, log, .. } = arguments;
    let options = Options { rule, obeyed, told: false, log, failpoint };
    let many = match (arguments.seed, arguments.seeds) {
        (Some(seed), None) => one(seed, options, arguments.json),
        (first, count) => several(first.unwrap_or(1), count.unwrap_or(1000), &arguments, options),
    };
    if arguments.json {
        let found = many.found.as_ref().map(|(seed, what)| json!({ "seed": seed, "what": what }));
        let Tally { acknowledged, lives, openings, faults, reads, restores, slave_looks, killed_at_point } =
            many.tally;
        let did = json!({
            "acknowledged": acknowledged, "clients": lives, "openings": openings, "faults": faults, "reads": reads,
            "restores": restores, "slave_looks": slave_looks,
            "killed_at_point": killed_at_point,
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
    let Tally { acknowledged, lives, openings, faults, reads, restores, slave_looks, killed_at_point } =
        many.tally;
    println!(
        "{} seeds in {:.1} s: {acknowledged} writes acknowledged to {lives} clients, {openings} openings, {faults} faults, {reads} reads, \
         {restores} restores, {slave_looks} looks at slaves",
        many.seeds,
        many.took.as_secs_f64()
    );
    if arguments.failpoint.is_some() {
        println!("{killed_at_point} times that processes died at the failpoint");
    }
    match &many.found {
        None => println!("nothing was found"),
        Some((seed, what)) => {
            let rule = arguments.rule.map(|rule| format!(" --break {rule}")).unwrap_or_default();
            let obeyed = if arguments.obeyed { " --obeyed" } else { "" };
            let point = arguments.failpoint.and_then(|FailpointArgument(point)| point);
            let point = point.map(|point| format!(" --failpoint {}", point.name())).unwrap_or_default();
            println!("seed {seed}: {what}\nagain: cargo xtask sim --seed {seed}{rule}{obeyed}{point}");
        }
    }
}
