//! Every input that is committed, and every first input, goes through its target.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use tlog_fuzz::TARGETS;

/// The only test of this program: what an input makes the code hold is counted in the whole process.
#[test]
fn no_committed_input_makes_a_target_fail() {
    // A task that panics is a finding, too, and nobody would hear of it.
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        std::process::abort();
    }));
    for target in &TARGETS {
        for seed in (target.seeds)() {
            target.run(&seed);
        }
        let inputs = inputs(target.name);
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        for path in inputs {
            // A test that fails ends the process; this is what tells with which input.
            eprintln!("{}", path.display());
            target.run(&fs::read(&path).unwrap());
        }
    }
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort_unstable();
    inputs
}
