//! Programs that a measurement starts, and what a process has cost so far.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::open_files;

/// How long a program may take to say that it is ready.
const START: Duration = Duration::from_secs(30);

/// How long one may take to stop.
const STOP: Duration = Duration::from_secs(60);

/// How many of its last lines are shown where a program fails.
const SHOWN_LINES: usize = 5;

/// Where a program is, by the directories of `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// A program that was started here. It is killed when this is dropped, and, where `setpriv` is there, also when this process is.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    name: &'static str,
    child: Child,
    /// What it prints, line by line, on standard output.
    lines: mpsc::UnboundedReceiver<String>,
    printed: VecDeque<String>,
    /// What it prints on standard error.
    errors: PathBuf,
}

impl ChildProcess {
    /// Starts a program in a directory, which also gets what it prints on standard error. Settings of tlog in the environment are not
    /// passed on. Call it on the main thread: the system kills the child with the *thread* that started it.
    pub(crate) fn start(
        name: &'static str,
        program: &Path,
        arguments: &[String],
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = match find_program("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("TLOG_")) {
            command.env_remove(key);
        }
        let errors = directory.join(format!("{name}.log"));
        let log = File::create(&errors).with_context(|| format!("cannot write {}", errors.display()))?;
        command.args(arguments).current_dir(directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child =
            command.spawn().with_context(|| format!("{name} cannot be started ({})", program.display()))?;
        let (line, lines) = mpsc::unbounded_channel();
        if let Some(out) = child.stdout.take() {
            // It is read to its end, or the program would stand still once the pipe is full.
            thread::spawn(move || {
                BufReader::new(out).lines().map_while(Result::ok).for_each(|text| drop(line.send(text)));
            });
        }
        Ok(Self { name, child, lines, printed: VecDeque::new(), errors })
    }

    /// Waits for a line with these words in it, and answers that line. An error has what was printed instead.
    pub(crate) async fn line_with(&mut self, words: &str) -> anyhow::Result<String> {
        let end = Instant::now() + START;
        loop {
            match tokio::time::timeout_at(end, self.lines.recv()).await {
                Ok(Some(line)) if line.contains(words) => return Ok(line),
                Ok(Some(line)) => {
                    self.printed.push_back(line);
                    if self.printed.len() > SHOWN_LINES {
                        self.printed.pop_front();
                    }
                }
                Ok(None) => bail!("{} did not start: {}", self.name, self.said()),
                Err(_) => bail!("{} did not start within {START:?}: {}", self.name, self.said()),
            }
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, then waits for its end.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::TERM).with_context(|| format!("{} has ended early", self.name))?;
        let end = Instant::now() + STOP;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} did not stop within {STOP:?}", self.name);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The last lines that it printed.
    pub(crate) fn said(&self) -> String {
        let errors = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let errors: Vec<&str> = errors.lines().collect();
        let errors = errors.iter().skip(errors.len().saturating_sub(SHOWN_LINES)).map(|line| line.trim());
        let said: Vec<&str> = self.printed.iter().map(String::as_str).chain(errors).collect();
        if said.is_empty() { "it said nothing".to_owned() } else { said.join("; ") }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// User and system time of a process and all its threads since it began, in seconds, in steps of the system's clock tick
/// (10 ms). None where there is no such process, or no `/proc`.
pub(crate) fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may have anything in it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / rustix::param::clock_ticks_per_second() as f64)
}

/// Most memory that a process ever had, in bytes.
pub(crate) fn peak_memory(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

/// Memory that a process has now, in bytes.
pub(crate) fn memory(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Lets this process, and those that it starts from now on, have so many files and connections open at once.
pub(crate) fn allow_open_files(files: u64) -> anyhow::Result<()> {
    match open_files::raise_limit() {
        Some(most) if most < files => bail!(
            "{files} files and connections are to be open at once, and the system allows {most}: raise that (ulimit -Hn), or take fewer vdisks"
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_cost_something_and_one_that_is_not_there_nothing() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).unwrap() >= 0.0);
        assert!(peak_memory(pid).unwrap() > 100_000);
        assert!(memory(pid).unwrap() > 100_000 && memory(pid) <= peak_memory(pid));
        assert!(cpu_seconds(u32::MAX).is_none() && peak_memory(u32::MAX).is_none());
    }

    #[tokio::test]
    async fn a_program_is_started_heard_and_stopped_and_one_that_fails_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let shell = find_program("sh").unwrap();
        let start = |script: &str| {
            ChildProcess::start("sh", &shell, &["-c".to_owned(), script.to_owned()], directory.path())
                .unwrap()
        };
        let mut program = start("echo one; echo ready now; exec sleep 100");
        assert_eq!(program.line_with("ready").await.unwrap(), "ready now");
        assert!(!program.stop().await.unwrap().success());
        let error =
            start("echo on the way; echo no stores >&2; exit 1").line_with("ready").await.unwrap_err();
        assert_eq!(error.to_string(), "sh did not start: on the way; no stores");
        assert!(find_program("no program has this name").is_none());
    }
}
