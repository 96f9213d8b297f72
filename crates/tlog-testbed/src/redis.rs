//! A real `redis-server`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::port::ReservedPort;
use crate::running::Running;
use crate::{RedisOptions, TlsFiles};

/// A `redis-server` of this test's own. It is killed, and its files are removed, when this is dropped or the process ends.
///
/// Every method blocks for as long as it takes (milliseconds) and panics where something does not work.
#[derive(Debug)]
pub struct RedisProcess {
    options: RedisOptions,
    port: ReservedPort,
    /// Its files; those for TLS are beside the data.
    directory: TempDir,
    tls: Option<TlsFiles>,
    running: Mutex<Option<Running>>,
}

impl RedisProcess {
    /// Starts one, and answers when it takes connections.
    pub fn start(options: RedisOptions) -> Self {
        let started = Self::begin(options);
        started.await_ready();
        started
    }

    /// Starts one and does not wait for it.
    fn begin(options: RedisOptions) -> Self {
        let parent = options.parent.clone().unwrap_or_else(std::env::temp_dir);
        let directory = tempfile::Builder::new().prefix("tlog-redis-").tempdir_in(parent).unwrap();
        let tls = options.tls.as_ref().map(|tls| TlsFiles::make(directory.path(), &tls.names));
        let process = Self { options, port: ReservedPort::new(), directory, tls, running: Mutex::default() };
        fs::create_dir(process.data()).unwrap();
        process.spawn();
        process
    }

    fn spawn(&self) {
        let line = self.options.command_line(self.port(), &self.data(), self.tls.as_ref());
        *self.running() = Some(Running::spawn("redis-server", line));
    }

    /// Waits until the server that was spawned says that it takes connections.
    fn await_ready(&self) {
        // The port is ours (see `ReservedPort`), so a server that says so is the one behind it.
        self.running().as_mut().unwrap().await_line("Ready to accept connections");
    }

    /// Where it listens, `127.0.0.1:port`; also while it does not run.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host(), self.port())
    }

    /// `127.0.0.1`.
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// Its port; the same after every restart.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Certificates and keys for clients, where it speaks TLS.
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// Its process id. Panics while it does not run.
    pub fn pid(&self) -> u32 {
        self.running().as_ref().expect("redis-server is not running").pid()
    }

    /// Whether it was started and not killed since.
    pub fn is_running(&self) -> bool {
        self.running().is_some()
    }

    /// Whether it was started and has ended by itself, such as for a full disk.
    pub fn has_ended(&self) -> bool {
        self.running().as_mut().is_some_and(Running::has_ended)
    }

    /// The folder with its data.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// What it has printed since it was started last.
    pub fn printed(&self) -> String {
        self.running().as_ref().map(Running::printed).unwrap_or_default()
    }

    /// SIGKILL. Does nothing where it does not run.
    pub fn kill(&self) {
        // What is dropped is killed.
        drop(self.running().take());
    }

    /// SIGSTOP: it hangs. Its port still accepts connections, as the system does that for it.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT: it goes on.
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        self.running().as_ref().expect("redis-server is not running").signal(signal);
    }

    /// Kills it if it runs, and starts it again with the files it has.
    pub fn restart(&self) {
        self.kill();
        self.spawn();
        self.await_ready();
    }

    /// Kills it if it runs, and starts it again without any files.
    pub fn restart_empty(&self) {
        self.kill();
        fs::remove_dir_all(self.data()).unwrap();
        fs::create_dir(self.data()).unwrap();
        self.spawn();
        self.await_ready();
    }

    /// Starts it again with other options (not those of TLS) and the files it has.
    pub fn restart_with(&mut self, options: RedisOptions) {
        self.kill();
        self.options = options;
        self.spawn();
        self.await_ready();
    }

    /// What `redis-cli` prints for a command, as the default user, without the last line break. Panics where the server answers an error.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-e", "-h", self.host(), "-p"]).arg(self.port().to_string());
        if let Some(files) = &self.tls {
            command.arg("--tls").arg("--cacert").arg(&files.ca);
            command.arg("--cert").arg(&files.client_certificate).arg("--key").arg(&files.client_key);
        }
        if let Some(password) = &self.options.password {
            command.env("REDISCLI_AUTH", password);
        }
        let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "redis-cli {arguments:?}: {out}{err}");
        out
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Several servers, alike.
#[derive(Debug)]
pub struct RedisServers {
    servers: Vec<RedisProcess>,
}

impl RedisServers {
    /// Starts `count` of them side by side, and answers when all take connections.
    pub fn start(count: usize, options: &RedisOptions) -> Self {
        let servers: Vec<_> = (0..count).map(|_| RedisProcess::begin(options.clone())).collect();
        servers.iter().for_each(RedisProcess::await_ready);
        Self { servers }
    }

    /// Their addresses, in order.
    pub fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(RedisProcess::address).collect()
    }
}

impl std::ops::Deref for RedisServers {
    type Target = [RedisProcess];

    fn deref(&self) -> &[RedisProcess] {
        &self.servers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tls;
    use crate::running::{START_LIMIT, is_alive};
    use std::io::{BufRead, BufReader};
    use std::thread;
    use std::time::Instant;

    #[test]
    fn a_durable_server_keeps_what_it_has_when_it_is_killed_and_another_does_not() {
        let check = |options: RedisOptions, kept: &str| {
            let server = RedisProcess::start(options);
            assert_eq!(server.cli(&["SET", "key", "value"]), "OK");
            server.kill();
            assert!(!server.is_running());
            server.restart();
            assert_eq!(server.cli(&["GET", "key"]), kept);
            server.restart_empty();
            assert_eq!(server.cli(&["GET", "key"]), "");
        };
        check(RedisOptions::durable(), "value");
        check(RedisOptions::default(), "");
    }

    #[test]
    fn a_server_keeps_its_files_where_it_is_told_to_and_shows_that_it_ended_by_itself() {
        let parent = tempfile::tempdir().unwrap();
        let options = RedisOptions { parent: Some(parent.path().to_owned()), ..RedisOptions::durable() };
        let server = RedisProcess::start(options);
        assert!(server.data().starts_with(parent.path()) && server.data().join("appendonlydir").is_dir());
        assert!(!server.has_ended());
        // It does not answer, and the connection is closed: an error for who asks.
        std::panic::catch_unwind(|| server.cli(&["SHUTDOWN"])).ok();
        let begun = Instant::now();
        while !server.has_ended() {
            assert!(begun.elapsed() < START_LIMIT);
            thread::yield_now();
        }
        server.restart();
        assert!(!server.has_ended());
    }

    #[test]
    fn password_users_and_memory_are_as_asked_for() {
        let server = RedisProcess::start(RedisOptions {
            password: Some("open sesame".into()),
            users: vec!["anna on >secret ~* +@all".into()],
            max_memory: Some(10 << 20),
            ..RedisOptions::default()
        });
        assert_eq!(server.cli(&["PING"]), "PONG");
        assert_eq!(server.cli(&["CONFIG", "GET", "maxmemory"]), "maxmemory\n10485760");
        assert!(server.cli(&["ACL", "LIST"]).contains("user anna on"));
    }

    #[test]
    fn a_server_speaks_tls() {
        let server =
            RedisProcess::start(RedisOptions { tls: Some(Tls::default()), ..RedisOptions::default() });
        assert_eq!(server.cli(&["PING"]), "PONG");
    }

    #[test]
    fn a_stopped_server_is_killed_like_another_and_several_start_side_by_side() {
        let servers = RedisServers::start(6, &RedisOptions::default());
        servers[0].stop();
        servers[1].stop();
        servers[1].cont();
        assert_eq!(servers[1].cli(&["PING"]), "PONG");
        let (pids, folder) = (servers.iter().map(RedisProcess::pid).collect::<Vec<_>>(), servers[0].data());
        assert!(pids.iter().all(|&pid| is_alive(pid)) && folder.exists());
        drop(servers);
        assert!(!pids.iter().any(|&pid| is_alive(pid)) && !folder.exists());
    }

    #[test]
    fn a_server_dies_with_the_process_that_started_it_however_that_ends() {
        const CHILD: &str = "TLOG_TESTBED_CHILD";
        if std::env::var_os(CHILD).is_some() {
            let server = RedisProcess::start(RedisOptions::default());
            println!("server {} in {}.", server.pid(), server.directory.path().display());
            // Until it is killed.
            let _ = std::io::stdin().read_line(&mut String::new());
            return;
        }
        let name = "redis::tests::a_server_dies_with_the_process_that_started_it_however_that_ends";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let found = lines.filter_map(|line| Some(line.split_once("server ")?.1.to_owned())).next().unwrap();
        let (pid, folder) = found.split_once(" in ").unwrap();
        let pid = pid.parse().unwrap();
        assert!(is_alive(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        let begun = Instant::now();
        while is_alive(pid) {
            assert!(begun.elapsed() < START_LIMIT);
            thread::yield_now();
        }
        // Nobody was left to remove it.
        fs::remove_dir_all(folder.trim_end_matches('.')).unwrap();
    }
}
