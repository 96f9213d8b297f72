//! Fuzz targets: bytes from a peer, a store, a file or a person go into the code that must bear them.
//!
//! A [`Target`] takes any bytes and panics where the code does what it must not: where it panics itself, takes more memory than such an
//! input is worth, or answers what is wrong. `docs/reliability.md` has the list, and what each of them checks. libFuzzer makes the bytes:
//! `cargo xtask fuzz`; the programs that it drives are built with the feature `programs` alone. The inputs in `corpus`, which it begins
//! with, are run by this crate's test, too.
//!
//! What it deliberately does not do: look at how the code works inside. It goes in where a peer, a store or a person does.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a target fails by a panic")]

mod input;
mod memory;
// A log in memory that an input makes wait, fail and be taken over: that of the server's own tests.
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../crates/tlog-server/tests/support/log.rs"]
mod memory_log;
mod time;
mod v2;

pub mod addresses;
pub mod client_answers;
pub mod client_bytes;
pub mod directory_files;
pub mod documents;
pub mod format1;
pub mod framing;
pub mod manifests;
pub mod messages;
pub mod moments;
pub mod redis_answers;
pub mod redis_values;
pub mod server_bytes;
pub mod server_messages;
pub mod settings;
pub mod shards;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// One place at which bytes go in.
pub struct Target {
    /// Its name, which that of its folder in `corpus` and of its program is made of.
    pub name: &'static str,
    /// Most bytes of memory that an input may make the code hold. An input has 4 KiB at most, unless one in the corpus is longer.
    pub memory: usize,
    /// Takes an input; panics where something is found.
    pub check: fn(&[u8]),
    /// What to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

impl Target {
    /// Takes one input. Panics, or ends the process, where something is found.
    pub fn run(&self, input: &[u8]) {
        /// What was told of.
        static TOLD: AtomicUsize = AtomicUsize::new(0);
        let most = memory::most_during(self.memory, || (self.check)(input));
        if most > TOLD.load(Relaxed) {
            // Not for every byte more.
            TOLD.store(most + most / 16, Relaxed);
            eprintln!("held for one input: {most} bytes");
        }
    }
}

/// All of them, by name.
pub const TARGETS: [Target; 16] = [
    addresses::TARGET,
    client_answers::TARGET,
    client_bytes::TARGET,
    directory_files::TARGET,
    documents::TARGET,
    format1::TARGET,
    framing::TARGET,
    manifests::TARGET,
    messages::TARGET,
    moments::TARGET,
    redis_answers::TARGET,
    redis_values::TARGET,
    server_bytes::TARGET,
    server_messages::TARGET,
    settings::TARGET,
    shards::TARGET,
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::TARGETS;

    #[test]
    fn every_target_has_a_program_and_every_corpus_a_target() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let names = |folder: &str| {
            let entries = fs::read_dir(here.join(folder)).unwrap();
            let names = entries
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned());
            let mut names: Vec<String> = names.map(|name| name.replace('_', "-")).collect();
            names.sort_unstable();
            names
        };
        let targets: Vec<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
        assert_eq!(names("fuzz_targets"), targets);
        assert_eq!(names("corpus"), targets);
        assert!(names("dictionaries").iter().all(|name| targets.contains(name)));
    }
}
