//! `fuzz`: builds the fuzz targets, and has libFuzzer run each of them for a bounded time.
//!
//! The programs are built for speed, with what counts coverage, debug assertions and overflow checks, in a folder of their own
//! (`target/fuzz`). The flags are those with which `cargo fuzz` builds without a sanitizer; a stable compiler takes them. What a target
//! finds worth keeping goes to `target/fuzz/corpus`, and it begins with that the next time, too; an input that makes it fail goes to
//! `target/fuzz/found`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::setup;

const USAGE: &str = "\
usage: cargo xtask fuzz [TARGET...] [--seconds N | --executions N] [--jobs J] [--json]
       cargo xtask fuzz TARGET --input FILE
       cargo xtask fuzz --list

  Runs each target, or those that are named, on its corpus (fuzz/corpus) and on what libFuzzer makes of it: for N
  seconds, 10 unless told otherwise, or N executions; J targets at the same time, as many as there are processors
  unless told otherwise. With an input it runs the target on that alone.
";

/// Where the targets are, relative to the workspace.
const FOLDER: &str = "fuzz";

/// Coverage of edges, counters in line, and what is compared with what.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Longest that one input may take, in seconds: far beyond what any takes, on a busy machine, too.
const TIMEOUT: u64 = 30;

/// Most memory of a program, in MiB. What one input makes the code hold has a closer bound, which the target states.
const MOST_MEMORY: u64 = 2048;

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    /// All where none is named.
    targets: Vec<String>,
    seconds: Option<u64>,
    executions: Option<u64>,
    jobs: Option<usize>,
    input: Option<PathBuf>,
    json: bool,
    list: bool,
}

/// What came of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    target: String,
    executions: u64,
    seconds: u64,
    /// Edges that were reached by what it began with, and beyond that.
    covered: u64,
    newly_covered: u64,
    /// MiB of the whole process.
    peak_memory: u64,
    /// Bytes that one input made the code hold.
    held: u64,
    /// Why it failed; none where it did not.
    failure: Option<String>,
}

pub(crate) fn run(root: &Path, arguments: &[&str]) -> Result<()> {
    if matches!(arguments, ["--help" | "-h"]) {
        print!("{USAGE}");
        return Ok(());
    }
    let asked = Asked::parse(arguments)?;
    let all = targets(root)?;
    if asked.list {
        all.iter().for_each(|target| println!("{target}"));
        return Ok(());
    }
    if let Some(unknown) = asked.targets.iter().find(|target| !all.contains(target)) {
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    let targets = if asked.targets.is_empty() { all } else { asked.targets.clone() };
    let programs = build(root, &targets)?;
    if let Some(input) = &asked.input {
        let [target] = targets.as_slice() else { bail!("one input goes to one target: name it\n\n{USAGE}") };
        let status = Command::new(programs.join(program(target))).arg(input).status()?;
        ensure!(status.success(), "{target} fails with {}", input.display());
        return Ok(());
    }
    let outcomes = fuzz_all(root, &programs, &targets, &asked)?;
    match asked.json {
        true => println!("{:#}", outcomes.iter().map(Outcome::json).collect::<serde_json::Value>()),
        false => print!("{}", table(&outcomes)),
    }
    let failures: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.failure.as_deref()).collect();
    for failure in &failures {
        eprintln!("{failure}");
    }
    ensure!(failures.is_empty(), "{} of {} targets failed", failures.len(), outcomes.len());
    Ok(())
}

impl Asked {
    fn parse(arguments: &[&str]) -> Result<Self> {
        let mut asked = Self::default();
        let mut arguments = arguments.iter();
        while let Some(&argument) = arguments.next() {
            let mut value =
                || arguments.next().with_context(|| format!("{argument} needs a value\n\n{USAGE}"));
            match argument {
                "--seconds" => asked.seconds = Some(value()?.parse().context("--seconds takes a number")?),
                "--executions" => {
                    asked.executions = Some(value()?.parse().context("--executions takes a number")?)
                }
                "--jobs" => asked.jobs = Some(value()?.parse().context("--jobs takes a number")?),
                "--input" => asked.input = Some(value()?.into()),
                "--json" => asked.json = true,
                "--list" => asked.list = true,
                other if other.starts_with('-') => bail!("fuzz does not take {other}\n\n{USAGE}"),
                target => asked.targets.push(target.to_owned()),
            }
        }
        Ok(asked)
    }

    /// For libFuzzer; it stops at whichever comes first.
    fn bounds(&self) -> Vec<String> {
        let seconds = self.seconds.map(|seconds| format!("-max_total_time={seconds}"));
        let executions = self.executions.map(|executions| format!("-runs={executions}"));
        let bounds: Vec<String> = seconds.into_iter().chain(executions).collect();
        if bounds.is_empty() { vec!["-max_total_time=10".to_owned()] } else { bounds }
    }
}

/// The names of all targets: those of their files.
fn targets(root: &Path) -> Result<Vec<String>> {
    let folder = root.join(FOLDER).join("fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        targets.extend(path.file_stem().map(|name| name.to_string_lossy().replace('_', "-")));
    }
    targets.sort_unstable();
    Ok(targets)
}

fn program(target: &str) -> String {
    format!("fuzz-{target}")
}

/// Builds the programs. Answers the folder that they are in.
fn build(root: &Path, targets: &[String]) -> Result<PathBuf> {
    ensure!(setup::program("c++").is_some(), "a C++ compiler is not there: cargo xtask setup");
    let (host, folder) = (host()?, root.join("target/fuzz"));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "-p", "tlog-fuzz", "--features", "programs"]);
    // With a target of its own the flags do not go to build scripts, which would not link.
    command.args(["--profile", "fuzz", "--target", &host, "--target-dir"]).arg(&folder);
    for target in targets {
        command.args(["--bin", &program(target)]);
    }
    let status =
        command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", FLAGS).current_dir(root).status();
    ensure!(status.context("cannot run cargo")?.success(), "the fuzz targets do not build");
    Ok(folder.join(host).join("fuzz"))
}

/// What this machine's compiler builds for.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not tell what it builds for")?.to_owned())
}

/// Runs the targets, several at the same time. Answers in their order.
fn fuzz_all(root: &Path, programs: &Path, targets: &[String], asked: &Asked) -> Result<Vec<Outcome>> {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = asked.jobs.unwrap_or_else(processors).clamp(1, targets.len().max(1));
    let waiting: Mutex<VecDeque<&String>> = Mutex::new(targets.iter().collect());
    let next = || waiting.lock().ok().and_then(|mut waiting| waiting.pop_front());
    let work = || {
        let mut done = Vec::new();
        while let Some(target) = next() {
            done.push(fuzz(root, programs, target, &asked.bounds())?);
        }
        anyhow::Ok(done)
    };
    let mut outcomes = Vec::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            outcomes.extend(worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??);
        }
        anyhow::Ok(())
    })?;
    outcomes.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(outcomes)
}

/// Runs one target until it is done or fails.
fn fuzz(root: &Path, programs: &Path, target: &str, bounds: &[String]) -> Result<Outcome> {
    let ours = root.join("target/fuzz");
    let (kept, found, logs) = (ours.join("corpus").join(target), ours.join("found"), ours.join("logs"));
    for folder in [&kept, &found, &logs] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let log = logs.join(format!("{target}.log"));
    let said = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let dictionary = root.join(FOLDER).join("dictionaries").join(format!("{target}.dict"));
    let mut command = Command::new(programs.join(program(target)));
    command.arg(&kept).arg(root.join(FOLDER).join("corpus").join(target)).args(bounds);
    command.arg(format!("-artifact_prefix={}/{target}-", found.display()));
    command.args(["-print_final_stats=1".to_owned(), format!("-timeout={TIMEOUT}")]);
    command.arg(format!("-rss_limit_mb={MOST_MEMORY}"));
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    // Targets that need files need them fast.
    if Path::new("/dev/shm").is_dir() {
        command.env("TMPDIR", "/dev/shm");
    }
    let start = std::time::Instant::now();
    let status = command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).status();
    let status = status.with_context(|| format!("cannot run {}", program(target)))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let mut outcome = Outcome { seconds: start.elapsed().as_secs(), ..Outcome::read(target, &text) };
    if !status.success() {
        outcome.failure = Some(failure(target, &text, &log));
    }
    Ok(outcome)
}

/// What a person is told of a failure: what was said, and how to see it again.
fn failure(target: &str, text: &str, log: &Path) -> String {
    let says = |line: &&str| {
        ["panicked at", "too much memory", "ERROR: libFuzzer", "SUMMARY"]
            .iter()
            .any(|what| line.contains(what))
    };
    // What a panic says stands in the line behind it.
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(says).unwrap_or(lines.len().saturating_sub(3));
    let told: Vec<&str> = lines.iter().skip(at).take(3).copied().collect();
    let input = text.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path);
    let repeat = match input {
        Some(input) => format!("again: cargo xtask fuzz {target} --input {input}"),
        None => "no input was written".to_owned(),
    };
    format!("\n{target} failed ({} has all of it):\n  {}\n{repeat}", log.display(), told.join("\n  "))
}

impl Outcome {
    /// From what libFuzzer and the target have said.
    fn read(target: &str, text: &str) -> Self {
        let number = |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok());
        let last = |what: &str| {
            text.lines().rev().find_map(|line| line.split_once(what).and_then(|(_, value)| number(value)))
        };
        let covered = |line: &str| line.split_once("cov: ").and_then(|(_, value)| number(value));
        let first = text.lines().find(|line| line.contains("INITED")).and_then(covered).unwrap_or(0);
        let all = text.lines().rev().find_map(covered).unwrap_or(first);
        Self {
            target: target.to_owned(),
            executions: last("stat::number_of_executed_units:").unwrap_or(0),
            covered: first,
            newly_covered: all.saturating_sub(first),
            peak_memory: last("stat::peak_rss_mb:").unwrap_or(0),
            held: last("held for one input:").unwrap_or(0),
            ..Self::default()
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "target": self.target, "executions": self.executions, "seconds": self.seconds,
            "covered": self.covered, "newly_covered": self.newly_covered, "peak_memory_mib": self.peak_memory,
            "held_bytes": self.held, "failure": self.failure,
        })
    }
}

/// For people.
fn table(outcomes: &[Outcome]) -> String {
    let mut table = format!(
        "{:<18}{:>12}{:>9}{:>12}{:>9}{:>7}{:>12}{:>12}\n",
        "target", "executions", "seconds", "a second", "covered", "new", "peak, MiB", "held, KiB"
    );
    for outcome in outcomes {
        let Outcome { target, executions, seconds, covered, newly_covered, peak_memory, held, failure } =
            outcome;
        let (rate, held) = (executions / (*seconds).max(1), held / 1024);
        let failed = if failure.is_some() { "  FAILED" } else { "" };
        table += &format!(
            "{target:<18}{executions:>12}{seconds:>9}{rate:>12}{covered:>9}{newly_covered:>7}{peak_memory:>12}{held:>12}{failed}\n"
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
INFO: Loaded 1 PC tables
held for one input: 1000 bytes
#15\tINITED cov: 812 ft: 2290 corp: 12/3Kb exec/s: 0 rss: 44Mb
held for one input: 70000 bytes
#300\tNEW    cov: 820 ft: 2301 corp: 13/3Kb lim: 4096 exec/s: 0 rss: 45Mb
#51200\tDONE   cov: 831 ft: 2400 corp: 14/3Kb lim: 4096 exec/s: 5120 rss: 46Mb
stat::number_of_executed_units: 51200
stat::average_exec_per_sec:     5120
stat::peak_rss_mb:              47
";

    #[test]
    fn what_a_run_has_said_is_read() {
        let outcome = Outcome::read("messages", SAID);
        assert_eq!((outcome.executions, outcome.covered, outcome.newly_covered), (51200, 812, 19));
        assert_eq!((outcome.peak_memory, outcome.held), (47, 70000));
        assert!(table(&[outcome]).lines().nth(1).unwrap().starts_with("messages "));
        assert_eq!(Outcome::read("a", "nothing").executions, 0);
    }

    #[test]
    fn a_failure_names_what_was_said_and_how_to_see_it_again() {
        let said = "INFO: Seed: 1\nthread '<unnamed>' panicked at src/a.rs:1:2:\nleft and right\n\
            ==1== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='x'; Test unit written to /f/found/messages-crash-1\n";
        let told = failure("messages", said, Path::new("/f/messages.log"));
        assert!(told.contains("src/a.rs:1:2:\n  left and right"), "{told}");
        assert!(told.contains("cargo xtask fuzz messages --input /f/found/messages-crash-1"), "{told}");
    }

    #[test]
    fn bounds_are_seconds_or_executions() {
        let bounds = |arguments: &[&str]| Asked::parse(arguments).unwrap().bounds();
        assert_eq!(bounds(&[]), ["-max_total_time=10"]);
        assert_eq!(bounds(&["messages", "--executions", "5"]), ["-runs=5"]);
        assert_eq!(bounds(&["--seconds", "3", "--json"]), ["-max_total_time=3"]);
        assert_eq!(Asked::parse(&["a", "b"]).unwrap().targets, ["a", "b"]);
        assert!(Asked::parse(&["--seconds"]).is_err());
        assert!(Asked::parse(&["--sanitizer"]).is_err());
    }
}
