//! Redis servers for a measurement.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::Context;

use super::process::{ChildProcess, find_program};

/// How often another port is tried where somebody else took it between asking for it and using it.
const TRIES: usize = 5;

/// A `redis-server` on a free port of this machine.
#[derive(Debug)]
pub(crate) struct RedisServer {
    process: ChildProcess,
    port: u16,
}

impl RedisServer {
    /// Starts one with its files in a new directory. With `append_only` what it has answered is on disk (`appendfsync always`), else
    /// everything is in memory alone.
    pub(crate) async fn start(directory: &Path, append_only: bool) -> anyhow::Result<Self> {
        let program = find_program("redis-server").context(
            "redis-server is not installed (nothing of that name in PATH): install it, as with 'apt-get install redis-server', or \
             measure with --stores directory",
        )?;
        std::fs::create_dir(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut tries = 1;
        loop {
            let port = free_port()?;
            let arguments = command_line(port, append_only);
            let mut process = ChildProcess::start("redis-server", &program, &arguments, directory)?;
            match process.line_with("Ready to accept connections").await {
                Ok(_) => return Ok(Self { process, port }),
                Err(error) if tries >= TRIES || !error.to_string().contains("already in use") => {
                    return Err(error);
                }
                Err(_) => tries += 1,
            }
        }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

fn command_line(port: u16, append_only: bool) -> Vec<String> {
    let append_only = if append_only { "yes" } else { "no" };
    let port = port.to_string();
    let settings = [
        ("port", port.as_str()),
        ("bind", "127.0.0.1"),
        ("save", ""),
        ("appendonly", append_only),
        ("appendfsync", "always"),
        ("maxmemory-policy", "noeviction"),
    ];
    settings.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]).collect()
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on this machine")?;
    Ok(listener.local_addr()?.port())
}
