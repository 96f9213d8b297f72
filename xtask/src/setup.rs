//! `setup`: the programs that tests and features need and that do not come with Rust.
//!
//! A plain `cargo build` needs none of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A program, the Debian package that has it, and what needs it.
struct Tool {
    program: &'static str,
    /// A file that must be there too, in the `include` folder that belongs to the program.
    include: Option<&'static str>,
    package: &'static str,
    needed_for: &'static str,
    /// The service that comes with the package and starts by itself. Tests start their own; this one would only hold a port.
    service: Option<&'static str>,
}

/// What must be there. Whoever writes a test that starts another program adds its line.
const TOOLS: &[Tool] = &[
    Tool { needed_for: "building jemalloc", ..tool("make", "make") },
    Tool { needed_for: "cargo xtask codegen", ..tool("capnp", "capnproto") },
    Tool { needed_for: "the demo and its test", ..tool("mkfs.ext4", "e2fsprogs") },
    Tool {
        needed_for: "tests of stores on Redis",
        service: Some("redis-server"),
        ..tool("redis-server", "redis-server")
    },
    Tool { needed_for: "tests of stores on Redis", ..tool("redis-cli", "redis-tools") },
    Tool { needed_for: "building the feature etcd", ..tool("protoc", "protobuf-compiler") },
    Tool {
        needed_for: "building the feature etcd",
        include: Some("google/protobuf/descriptor.proto"),
        ..tool("protoc", "libprotobuf-dev")
    },
    Tool { needed_for: "tests of documents in etcd", service: Some("etcd"), ..tool("etcd", "etcd-server") },
    Tool { needed_for: "tests of documents in etcd", ..tool("etcdctl", "etcd-client") },
    Tool { needed_for: "cargo xtask counts", ..tool("valgrind", "valgrind") },
    Tool { needed_for: "cargo xtask fuzz", ..tool("c++", "g++") },
];

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, include: None, package, needed_for: "", service: None }
}

impl Tool {
    fn is_there(&self) -> bool {
        let Some(program) = program(self.program) else { return false };
        let Some(include) = self.include else { return true };
        // Beside the folder of the program, where protoc looks too.
        let folder = program.parent().and_then(Path::parent);
        folder.is_some_and(|folder| folder.join("include").join(include).is_file())
    }

    /// What is missing, for a person.
    fn name(&self) -> &'static str {
        self.include.unwrap_or(self.program)
    }
}

/// Checks, and installs where it may; fails with the commands to type where it may not.
pub(crate) fn run() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        let all: Vec<_> = TOOLS.iter().map(Tool::name).collect();
        println!("setup: everything is there ({})", all.join(", "));
        return Ok(());
    }
    for tool in &missing {
        println!("setup: {} is missing, needed for {}", tool.name(), tool.needed_for);
    }
    let packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    if program("apt-get").is_none() {
        bail!("install these, by the names that they have on this system: {}", packages.join(", "));
    }
    let install = [&["install", "-y", "--no-install-recommends"], &packages[..]].concat();
    let services: Vec<_> = missing.iter().filter_map(|tool| tool.service).collect();
    if !is_root() {
        let stop = services.iter().map(|service| format!("  sudo systemctl disable --now {service}\n"));
        let stop: String = stop.collect();
        bail!("run:\n\n  sudo apt-get update\n  sudo apt-get {}\n{stop}", install.join(" "));
    }
    apt_get(&["update"])?;
    apt_get(&install)?;
    services.into_iter().for_each(stop_service);
    match self::missing().first() {
        None => Ok(()),
        Some(tool) => {
            bail!("package {} was installed and {} is still not found", tool.package, tool.name())
        }
    }
}

fn missing() -> Vec<&'static Tool> {
    TOOLS.iter().filter(|tool| !tool.is_there()).collect()
}

/// Where a program is. Looks beyond PATH too: without root's PATH, mkfs.ext4 is there and not found.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    println!("setup: apt-get {}", arguments.join(" "));
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("`apt-get {}` ended with {status}", arguments.join(" "));
    }
    Ok(())
}

/// Stops a service that an installation has just started, and keeps it from starting with the machine. Where that does not work there
/// is, as in a container, no service that was started.
fn stop_service(service: &str) {
    println!("setup: systemctl disable --now {service} (tests start their own)");
    match Command::new("systemctl").args(["disable", "--now", service]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => println!("setup: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => println!("setup: cannot run systemctl: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name_and_others_are_not() {
        assert!(program("cargo").is_some());
        assert!(program("no-such-program").is_none());
    }

    #[test]
    fn a_file_that_belongs_to_a_program_is_looked_for_beside_it() {
        let without = Tool { include: Some("no-such-file"), ..tool("cargo", "cargo") };
        assert!(!without.is_there());
        assert!(tool("cargo", "cargo").is_there());
    }
}
