//! Writes the first inputs of each target into a folder: `cargo run -p tlog-fuzz --example write_seeds -- FOLDER`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use tlog_fuzz::TARGETS;

fn main() {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).expect("a folder to write to");
    for target in &TARGETS {
        let folder = folder.join(target.name);
        fs::create_dir_all(&folder).unwrap();
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:02}")), seed).unwrap();
        }
    }
}
