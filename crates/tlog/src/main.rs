//! `tlog`: records, shows, restores and checks the logs of virtual disks.

use std::process::ExitCode;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    tlog::memory::keep_large_buffers();
    match tlog::cli::Cli::from_process() {
        Ok(cli) => cli.run(),
        Err(code) => code,
    }
}
