//! Times every stage, in one thread: `cargo bench -p tlog-counts`, or one of them: `cargo bench -p tlog-counts -- seal-25`.
//!
//! Each is shown with the time of a whole round, and, where there is a budget, with what the round may take: a budget of 117 us for 25 blocks is
//! 4.7 us a block. On a shared machine look at `fastest`: it is what the code costs, the rest is the neighbours.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use tlog_counts::{NAMES, Stage};

fn main() {
    divan::Divan::from_args().max_time(Duration::from_secs(1)).main();
}

/// A stage, and what it may take, for people.
struct Named {
    name: &'static str,
    budget: Option<Duration>,
    blocks: usize,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.budget {
            Some(budget) => write!(f, "{} (budget {} us)", self.name, budget.as_micros()),
            None => f.write_str(self.name),
        }
    }
}

fn named() -> impl Iterator<Item = Named> {
    NAMES.into_iter().map(|name| {
        let stage = Stage::new(name).unwrap();
        let budget =
            stage.budget().map(|micros| Duration::from_secs_f64(micros * stage.blocks() as f64 / 1e6));
        Named { name, budget, blocks: stage.blocks() }
    })
}

#[divan::bench(args = named())]
fn stages(bencher: Bencher, stage: &Named) {
    let mut ready = Stage::new(stage.name).unwrap();
    bencher.counter(ItemsCount::new(stage.blocks)).bench_local(|| ready.round().unwrap());
}
