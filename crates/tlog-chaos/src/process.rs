//! Programs that are started, killed, stopped, and started again.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

/// A program with its arguments, running or not. What it prints goes to a file, start after start. It is killed when this is dropped,
/// and when this process ends.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) binary: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Where it runs, with its log, `NAME.log`.
    pub(crate) directory: PathBuf,
    pub(crate) child: Option<Child>,
}

impl Program {
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.name))
    }

    /// Starts it; does not wait until it is ready.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        let log = self.log();
        let file = OpenOptions::new().append(true).create(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        let errors = file.try_clone()?;
        let binary = self.binary.to_str().context("a path that is no text")?;
        let child = tlog_testbed::spawn(binary, |command| {
            // Settings of tlog, which whoever runs this may have.
            for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("TLOG_"))
            {
                command.env_remove(key);
            }
            command.args(&self.arguments).current_dir(&self.directory);
            command.stdin(Stdio::piped()).stdout(file).stderr(errors);
        });
        self.child = Some(child.with_context(|| format!("{binary} cannot be started"))?);
        Ok(())
    }

    /// SIGKILL. Does nothing where it does not run.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child.as_ref().with_context(|| format!("{} does not run", self.name))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("{} cannot be sent a signal", self.name))
    }

    /// Waits for its end, which was asked for.
    pub(crate) async fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            let child = self.child.as_mut().with_context(|| format!("{} does not run", self.name))?;
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} does not end within {limit:?}", self.name);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Gives a line to its standard input.
    pub(crate) fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let input: Option<&mut ChildStdin> = self.child.as_mut().and_then(|child| child.stdin.as_mut());
        let input = input.with_context(|| format!("{} does not run", self.name))?;
        writeln!(input, "{line}").with_context(|| format!("{} cannot be told to {line}", self.name))
    }

    /// Fails where it has ended though nobody asked for that.
    pub(crate) fn check_runs(&mut self) -> anyhow::Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            bail!("{} has ended by itself, with {status}: see {}", self.name, self.log().display());
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ended_already = self.kill();
    }
}
