//! Real servers and real commands, in directories that go away.

pub mod gate;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tlog_client::ClientOptions;

/// A directory in which a server and the tool find the same log.
pub struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn store(&self, number: usize) -> PathBuf {
        self.path().join(format!("tlog-data/store-{number}"))
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.path()).env_clear();
        command
    }

    /// Runs `tlog`, and answers when it is done.
    pub fn tlog(&self, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_tlog"), arguments).output().unwrap()
    }

    /// Runs `tlog`, which must succeed, and answers what it printed.
    pub fn tlog_ok(&self, arguments: &[&str]) -> String {
        let output = self.tlog(arguments);
        assert!(output.status.success(), "tlog {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `tlog`, which must fail with 1, and answers what it said.
    pub fn tlog_fails(&self, arguments: &[&str]) -> String {
        let output = self.tlog(arguments);
        assert_eq!(output.status.code(), Some(1), "tlog {arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts `tlog` and does not wait.
    pub fn tlog_begin(&self, arguments: &[&str]) -> Child {
        self.tlog_begin_with(arguments, Stdio::null())
    }

    /// The same, with something to read.
    pub fn tlog_begin_with(&self, arguments: &[&str], input: Stdio) -> Child {
        let mut command = self.command(env!("CARGO_BIN_EXE_tlog"), arguments);
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Starts a server that must not come up, and answers what it said.
    pub fn server_fails(&self, arguments: &[&str]) -> String {
        let listen: &[&str] =
            if arguments.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
        let arguments = [listen, arguments].concat();
        let output = self.command(env!("CARGO_BIN_EXE_tlog-server"), &arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts a server on ports of its own, and answers when it listens.
    pub fn server(&self, arguments: &[&str]) -> Server {
        let arguments = [&["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"], arguments].concat();
        Server::start(self.command(env!("CARGO_BIN_EXE_tlog-server"), &arguments), true)
    }

    /// The same, with a log that can be read.
    pub fn server_with_log(&self, arguments: &[&str]) -> Server {
        self.server_on("127.0.0.1:0", arguments)
    }

    /// The same on another address than this machine's own.
    pub fn server_on(&self, listen: &str, arguments: &[&str]) -> Server {
        let arguments = [&["--listen", listen, "--admin-listen", "127.0.0.1:0"], arguments].concat();
        let mut command = self.command(env!("CARGO_BIN_EXE_tlog-server"), &arguments);
        command.stderr(Stdio::piped());
        Server::start_as_is(command, true)
    }

    /// The same without an admin endpoint.
    pub fn server_without_admin(&self) -> Server {
        Server::start(self.command(env!("CARGO_BIN_EXE_tlog-server"), &["--listen", "127.0.0.1:0"]), false)
    }
}

/// A client that ends when it loses its server: what it is told then is what these tests are about.
pub fn of_one_connection() -> ClientOptions {
    ClientOptions { reconnect_deadline: Some(Duration::ZERO), ..ClientOptions::default() }
}

/// A running `tlog-server`; killed when dropped.
pub struct Server {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    log: Option<mpsc::Receiver<String>>,
    pub address: SocketAddr,
    pub admin: Option<SocketAddr>,
}

impl Server {
    fn start(mut command: Command, admin: bool) -> Self {
        command.stderr(Stdio::null());
        Self::start_as_is(command, admin)
    }

    fn start_as_is(mut command: Command, admin: bool) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let log = child.stderr.take().map(lines_of);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut after = |words: &str| {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            let address = line.trim().strip_prefix(words);
            address.unwrap_or_else(|| panic!("the server said {line:?}")).parse().unwrap()
        };
        let address = after("listening on ");
        let admin = admin.then(|| after("admin endpoint on "));
        Self { child, out, log, address, admin }
    }

    /// Reads its log, where it has one, until a line has these words in it, and answers that line.
    pub fn waits_for_log(&mut self, words: &str) -> String {
        let log = self.log.as_ref().unwrap();
        let mut read = Vec::new();
        loop {
            match log.recv_timeout(Duration::from_secs(60)) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => read.push(line),
                Err(_) => panic!("no {words:?} in:\n{}", read.join("\n")),
            }
        }
    }

    pub fn addr(&self) -> String {
        self.address.to_string()
    }

    pub fn admin(&self) -> String {
        self.admin.unwrap().to_string()
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal such as `-TERM`.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// SIGSTOP, and waits until none of its threads runs any more: the signal alone only asks for that.
    pub fn pause(&self) {
        self.signal("-STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        let stands = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            // The state is behind the name, which is in brackets and may have anything in it.
            stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
        };
        while !std::fs::read_dir(&tasks).unwrap().all(stands) {
            std::thread::yield_now();
        }
    }

    /// Waits for its end; answers its exit status and what else it printed.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }

    /// SIGTERM, and waits until it has stopped as it should.
    pub fn stop(self) {
        self.signal("-TERM");
        let (status, said) = self.wait();
        assert_eq!(status.code(), Some(0), "{said}");
    }
}

/// Each line as it comes, read along so that whoever writes never waits.
fn lines_of(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (line, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for text in BufReader::new(from).lines().map_while(Result::ok) {
            if line.send(text).is_err() {
                return;
            }
        }
    });
    lines
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
