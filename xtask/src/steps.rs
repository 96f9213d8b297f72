//! `test` and `ci`: one cargo command after the other, each with its name and time.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{counts, fuzz, setup, tidy};

/// What a plain build leaves out, as it needs more than Rust and a C compiler.
const FEATURES: [&str; 2] = ["--features", "tlog-config/etcd,tlog/etcd"];

/// Everything that the tests need, then all tests: of units, of crates, of the documentation. Builds the examples. Where nobody asks for
/// some tests only, three more steps: chaos, what a block costs, and the fuzz targets for a moment each.
pub(crate) fn test(root: &Path, arguments: &[&str]) -> Result<()> {
    step("setup", setup::run)?;
    step("test", || {
        cargo(root, &[&["test", "--workspace", "--locked"], &FEATURES[..], arguments].concat(), &[])
    })?;
    if arguments.is_empty() {
        step("chaos", || {
            chaos(root, &[])?;
            // What must be found, or the checks are worth nothing.
            for wrong in ["other-content", "early-acknowledgement"] {
                chaos(root, &["--minutes", "0.3", "--break", wrong])?;
            }
            // It shows in that nothing recovers: there is nothing to wait for.
            chaos(root, &["--minutes", "0.3", "--recovery", "20", "--break", "wiped-stores"])
        })?;
        step("counts", || counts::run(root, false))?;
        step("fuzz", || fuzz::run(root, &["--seconds", "10"]))?;
    }
    Ok(())
}

/// Builds the simulator for speed and runs seeds with it.
pub(crate) fn sim(root: &Path, arguments: &[&str]) -> Result<()> {
    let run = ["run", "--quiet", "--release", "--locked", "--package", "tlog-sim", "--bin", "tlog-sim", "--"];
    cargo(root, &[&run[..], arguments].concat(), &[])
}

/// Builds what the tests build, so that nothing is built twice where they were run, and strikes real processes with it.
pub(crate) fn chaos(root: &Path, arguments: &[&str]) -> Result<()> {
    let (mut build, mut profile, mut arguments) =
        (vec!["build", "--workspace", "--locked"], "debug", arguments);
    match arguments {
        ["--release", rest @ ..] => {
            build.extend(["--release", "--bins"]);
            (profile, arguments) = ("release", rest);
        }
        _ => build.extend(["--bins", "--tests"]),
    }
    cargo(root, &[&build[..], &["--quiet"], &FEATURES].concat(), &[])?;
    let metadata = tidy::metadata(root)?;
    let target = metadata.get("target_directory").and_then(|target| target.as_str());
    let program =
        Path::new(target.context("cargo tells no target directory")?).join(profile).join("tlog-chaos");
    let status = Command::new(&program).args(arguments).status();
    let status = status.with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        bail!("`chaos {}` ended with {status}", arguments.join(" "));
    }
    Ok(())
}

/// Every check, the cheap ones first; stops at the first that fails.
pub(crate) fn ci(root: &Path, with_test: bool) -> Result<()> {
    step("fmt", || cargo(root, &["fmt", "--all", "--check"], &[]))?;
    step("tidy", || tidy::run(root))?;
    step("setup", setup::run)?;
    let denied = ["--", "-D", "warnings"];
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked"];
    step("clippy", || cargo(root, &[&clippy[..], &FEATURES, &denied].concat(), &[]))?;
    // A plain build leaves out code, and what only that code uses must not be missed.
    let plain = ["clippy", "-p", "tlog-config", "-p", "tlog", "--all-targets", "--locked"];
    step("clippy without features", || cargo(root, &[&plain[..], &denied].concat(), &[]))?;
    let doc = ["doc", "--no-deps", "--workspace", "--locked"];
    let denied = [("RUSTDOCFLAGS", "-D warnings")];
    step("doc", || cargo(root, &[&doc[..], &FEATURES].concat(), &denied))?;
    if setup::program("cargo-deny").is_some() {
        step("deny", || cargo(root, &["deny", "--locked", "check"], &[]))?;
    } else {
        println!("== deny: skipped, cargo-deny is not installed (cargo install --locked cargo-deny)");
    }
    if with_test {
        test(root, &[])?;
    }
    Ok(())
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let start = Instant::now();
    run().with_context(|| format!("{name} failed"))?;
    println!("== {name}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs cargo in the workspace.
pub(crate) fn cargo(root: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("`cargo {}` ended with {status}", arguments.join(" "));
    }
    Ok(())
}
