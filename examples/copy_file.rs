//! Copies a file, or with `-` standard input, into a vdisk's log, block by block. Without a runtime.
//!
//! ```text
//! cargo run -p tlog-client --example copy_file -- 127.0.0.1:11211 myimg disk.img
//! zcat disk.img.gz | cargo run -p tlog-client --example copy_file -- tlog-1:11211,tlog-2:11211 myimg -
//! ```
//!
//! Goes on behind whatever the log holds: a second copy is a later moment of the same disk. What the disk had beyond
//! the end of the file stays there; `tlog record` is for images that become shorter, and sends only what has changed.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::process::ExitCode;
use std::time::Duration;

use tlog_client::blocking::Client;
use tlog_client::{ClientOptions, Start};
use tlog_proto::{BlockIndex, VdiskId};

const BLOCK_SIZE: u64 = 4096;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [servers, vdisk, file] = &arguments[..] else {
        eprintln!("usage: copy_file SERVER,... VDISK FILE   (FILE '-': standard input)");
        return ExitCode::from(64);
    };
    match copy(servers, vdisk, file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("copy_file: {error}");
            ExitCode::FAILURE
        }
    }
}

fn copy(servers: &str, vdisk: &str, file: &str) -> Result<(), Box<dyn Error>> {
    let unreadable = |error: io::Error| format!("{file} cannot be read: {error}");
    let mut input: Box<dyn Read> = match file {
        "-" => Box::new(io::stdin().lock()),
        path => Box::new(File::open(path).map_err(unreadable)?),
    };
    let options = ClientOptions {
        start: Start::Continue,
        // A person waits for it.
        reconnect_deadline: Some(Duration::from_secs(60)),
        ..ClientOptions::default()
    };
    let client = Client::connect(servers, VdiskId::new(vdisk)?, options)?;
    let (mut blocks, mut bytes) = (0, 0);
    loop {
        let mut data = Vec::with_capacity(BLOCK_SIZE as usize);
        // Full, but for the last one, which may be short: then the restored image ends where the file does.
        input.by_ref().take(BLOCK_SIZE).read_to_end(&mut data).map_err(unreadable)?;
        if data.is_empty() {
            break;
        }
        (blocks, bytes) = (blocks + 1, bytes + data.len());
        let index = BlockIndex::new(blocks - 1).ok_or("the file has more blocks than a vdisk can have")?;
        client.set(index, data)?; // waits only while too much is not durable yet
    }
    client.close_after_flush()?;
    println!("{blocks} blocks, {bytes} bytes: durable");
    Ok(())
}
