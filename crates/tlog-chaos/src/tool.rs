//! `tlog`, as a person runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::timeout;

/// No command takes so long, whatever the machine does beside it.
const LIMIT: Duration = Duration::from_secs(300);

/// The tool, with settings of its own.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    binary: PathBuf,
    /// Where it runs: it finds its settings there, and what it restores goes there.
    directory: PathBuf,
}

/// A disk that was restored.
#[derive(Clone, Debug)]
pub(crate) struct Restored {
    pub(crate) image: Vec<u8>,
    /// The moment, as the tool says it.
    pub(crate) generation: u64,
    pub(crate) sequence: u64,
}

impl Tool {
    pub(crate) fn new(binary: PathBuf, directory: PathBuf) -> Self {
        Self { binary, directory }
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let child = self.spawn(arguments)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        let output = tokio::task::spawn_blocking(move || child.wait_with_output());
        match timeout(LIMIT, output).await {
            Ok(output) => Ok(output??),
            Err(_) => {
                kill_process(pid, Signal::KILL)?;
                bail!("tlog {} does not end within {LIMIT:?}", arguments.join(" "))
            }
        }
    }

    fn spawn(&self, arguments: &[&str]) -> anyhow::Result<std::process::Child> {
        let binary = self.binary.to_str().context("a path that is no text")?;
        let child = tlog_testbed::spawn(binary, |command| {
            for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("TLOG_"))
            {
                command.env_remove(key);
            }
            command.args(arguments).current_dir(&self.directory);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        });
        child.with_context(|| format!("{binary} cannot be started"))
    }

    /// Makes a key. Blocks.
    pub(crate) fn make_key(&self, path: &Path) -> anyhow::Result<()> {
        let path = path.to_str().context("a path that is no text")?;
        let output = self.spawn(&["keygen", "-o", path])?.wait_with_output()?;
        anyhow::ensure!(output.status.success(), "tlog keygen: {}", said(&output));
        Ok(())
    }

    /// Restores a moment, the newest where there is none, to a file of this name. The inner error is what the tool said where it did not restore it.
    pub(crate) async fn restore(
        &self,
        vdisk: &str,
        sequence: Option<u64>,
        name: &str,
    ) -> anyhow::Result<Result<Restored, String>> {
        let sequence = sequence.map(|sequence| sequence.to_string());
        let mut arguments = vec!["restore", vdisk, "-o", name, "--force", "--fresh", "--json"];
        if let Some(sequence) = &sequence {
            arguments.extend(["--sequence", sequence]);
        }
        let output = self.run(&arguments).await?;
        if !output.status.success() {
            return Ok(Err(said(&output)));
        }
        let told: Value = serde_json::from_slice(&output.stdout).context("tlog restore --json")?;
        let number = |field: &str| {
            told.get(field).and_then(Value::as_u64).with_context(|| format!("no {field} in {told}"))
        };
        let (generation, sequence) = (number("generation")?, number("sequence")?);
        let image = fs::read(self.directory.join(name)).context("tlog restore said that it was done")?;
        Ok(Ok(Restored { image, generation, sequence }))
    }

    /// What `tlog verify` answers with, and says.
    pub(crate) async fn verify(
        &self,
        vdisk: &str,
        options: &[&str],
    ) -> anyhow::Result<(Option<i32>, String)> {
        let output = self.run(&[&["verify", vdisk], options].concat()).await?;
        Ok((output.status.code(), said(&output)))
    }

    /// What a slave is, by `tlog slave status`: its state, and the last sequence that it has.
    pub(crate) async fn slave(&self, vdisk: &str) -> anyhow::Result<(String, Option<u64>, Value)> {
        let output = self.run(&["slave", "status", vdisk, "--json"]).await?;
        let told: Value = serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
        let state = told.get("state").and_then(Value::as_str).context("no state")?.to_owned();
        let sequence = told.pointer("/position/sequence").and_then(Value::as_u64);
        Ok((state, sequence, told))
    }
}

fn said(output: &Output) -> String {
    let text = [&*output.stdout, b" ", &*output.stderr].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}
