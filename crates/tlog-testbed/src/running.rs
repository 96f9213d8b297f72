//! A server that runs, and what it prints.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::spawn::spawn;

/// More than a start takes on a machine that does ten other things.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(20);

/// A process of this test's own. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    program: &'static str,
    child: Child,
    /// What it printed.
    printed: Arc<Mutex<String>>,
}

impl Running {
    /// Starts a program; does not wait for it.
    pub(crate) fn spawn(program: &'static str, arguments: Vec<String>) -> Self {
        let child = spawn(program, |command| {
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        });
        let child =
            child.unwrap_or_else(|e| panic!("cannot start {program}: {e}; `cargo xtask setup` installs it"));
        Self { program, child, printed: Arc::default() }
    }

    /// Waits until it prints a line with this in it. Once only.
    pub(crate) fn await_line(&mut self, ready: &'static str) {
        let (say, is_ready) = mpsc::sync_channel(1);
        // It is read to its end, or the server would stand still once the pipe is full.
        read_along(BufReader::new(self.child.stdout.take().unwrap()), &self.printed, ready, say.clone());
        read_along(BufReader::new(self.child.stderr.take().unwrap()), &self.printed, ready, say);
        // The senders are gone when the process ends.
        if let Err(error) = is_ready.recv_timeout(START_LIMIT) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            panic!("{} did not start ({error}); it printed:\n{}", self.program, self.printed());
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    pub(crate) fn printed(&self) -> String {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects what a process prints; says so when it is ready.
fn read_along(
    mut from: impl BufRead + Send + 'static,
    printed: &Arc<Mutex<String>>,
    ready: &'static str,
    say: mpsc::SyncSender<()>,
) {
    let printed = Arc::clone(printed);
    let work = move || {
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line);
            printed.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            if text.contains(ready) {
                let _ = say.try_send(());
            }
            line.clear();
        }
    };
    thread::Builder::new().name("testbed-reader".into()).spawn(work).unwrap();
}

/// Whether a process is there, a zombie aside.
#[cfg(test)]
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(std::path::Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
