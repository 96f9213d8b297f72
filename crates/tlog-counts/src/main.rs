//! Does every stage a fixed number of times. Run by `cargo xtask counts` under callgrind, which writes down what was counted
//! each time that [`mark`] is called: before a stage, and after it.
//!
//! ```text
//! features avx2 aes pclmulqdq          what the processor has, as this process sees it
//! stage NAME BLOCKS                    in the order of the work: blocks of all rounds together
//! ```

use std::hint::black_box;

use anyhow::Context;
use tlog_counts::{NAMES, Stage};

fn main() -> anyhow::Result<()> {
    println!("features {}", features().join(" "));
    for name in NAMES {
        let mut stage = Stage::new(name).with_context(|| format!("stage {name}"))?;
        // What is made at the first use is no cost of a block.
        stage.round()?;
        mark();
        for _ in 0..stage.rounds() {
            stage.round()?;
        }
        mark();
        println!("stage {name} {}", stage.rounds() * stage.blocks());
    }
    Ok(())
}

/// Tells what was counted so far from what is counted from here on.
#[inline(never)]
fn mark() {
    black_box(());
}

/// Extensions that decide which code is run.
fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("aes", std::arch::is_x86_feature_detected!("aes")),
            ("pclmulqdq", std::arch::is_x86_feature_detected!("pclmulqdq")),
        ];
        found.into_iter().filter_map(|(name, is_there)| is_there.then_some(name)).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}
