//! `tlog restore` in real processes: killed and gone on with, to devices and pipes, and images compared.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

#[path = "../support/mod.rs"]
mod support;

mod file_system;
mod kills;
mod targets;

use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use support::Place;

const BLOCK: usize = 4096;

/// A log of one image, and the image.
struct Scene {
    place: Place,
    image: Vec<u8>,
}

impl Scene {
    /// So many blocks, a few of them zeros, in aggregations of a few blocks each.
    fn record(blocks: usize) -> Self {
        let place = Place::new();
        let mut image = vec![0; blocks * BLOCK + 100];
        SmallRng::seed_from_u64(5).fill(&mut image[..]);
        image[3 * BLOCK..6 * BLOCK].fill(0);
        std::fs::write(place.path().join("disk.img"), &image).unwrap();
        let server = place.server(&["--flush-size", "4"]);
        place.tlog_ok(&["record", "vda", "disk.img", "--server", &server.addr()]);
        server.stop();
        Self { place, image }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.place.path().join(name)
    }

    fn is_the_disk(&self, name: &str) {
        assert!(std::fs::read(self.path(name)).unwrap() == self.image, "{name} is not the disk");
    }
}

fn json(said: &str) -> Value {
    serde_json::from_str(said).unwrap()
}

fn names(directory: &Path, with: &str) -> Vec<String> {
    let names = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(with)).collect()
}
