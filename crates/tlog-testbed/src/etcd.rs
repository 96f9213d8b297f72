//! A real `etcd`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::port::ReservedPort;
use crate::running::Running;
use crate::{Tls, TlsFiles};

/// How an `etcd` is to be started. The default speaks plain HTTP and asks for no password.
#[derive(Clone, Debug, Default)]
pub struct EtcdOptions {
    /// TLS instead of plain HTTP.
    pub tls: Option<Tls>,
    /// Password of the user `root`, without whom nobody gets in then.
    pub root_password: Option<String>,
    /// More settings, as on the command line: `--max-txn-ops`, `10`.
    pub arguments: Vec<String>,
}

/// An `etcd` of one member of this test's own, which keeps its files through restarts. It is killed, and they are removed, when this is
/// dropped or the process ends.
///
/// Every method blocks for as long as it takes (milliseconds) and panics where something does not work.
#[derive(Debug)]
pub struct EtcdProcess {
    options: EtcdOptions,
    port: ReservedPort,
    /// For other members, of which there are none.
    peer_port: ReservedPort,
    directory: TempDir,
    tls: Option<TlsFiles>,
    running: Mutex<Option<Running>>,
}

impl EtcdProcess {
    /// Starts one, and answers when it takes requests.
    pub fn start(options: EtcdOptions) -> Self {
        let directory = tempfile::Builder::new().prefix("tlog-etcd-").tempdir().unwrap();
        let tls = options.tls.as_ref().map(|tls| TlsFiles::make(directory.path(), &tls.names));
        let (port, peer_port) = (ReservedPort::new(), ReservedPort::new());
        let etcd = Self { options, port, peer_port, directory, tls, running: Mutex::default() };
        etcd.run();
        if let Some(password) = &etcd.options.root_password {
            let login: [&str; 0] = [];
            etcd.etcdctl(&login, &["user", "add", &format!("root:{password}")]);
            etcd.etcdctl(&login, &["user", "grant-role", "root", "root"]);
            etcd.etcdctl(&login, &["auth", "enable"]);
        }
        etcd
    }

    fn run(&self) {
        let mut running = Running::spawn("etcd", self.command_line());
        // Securely or insecurely; the sockets listen by then.
        running.await_line("serving client traffic");
        *self.running() = Some(running);
    }

    fn command_line(&self) -> Vec<String> {
        let mut line: Vec<String> = Vec::new();
        let mut set = |name: &str, value: &str| line.extend([format!("--{name}"), value.to_owned()]);
        set("name", "testbed");
        set("data-dir", &self.directory.path().join("data").display().to_string());
        set("listen-client-urls", &self.url());
        set("advertise-client-urls", &self.url());
        let peers = format!("http://127.0.0.1:{}", self.peer_port.number());
        set("listen-peer-urls", &peers);
        set("initial-advertise-peer-urls", &peers);
        set("initial-cluster", &format!("testbed={peers}"));
        set("logger", "zap");
        set("log-outputs", "stderr");
        // It has nobody to wait for when it elects itself.
        set("heartbeat-interval", "10");
        set("election-timeout", "100");
        set("bcrypt-cost", "4");
        if let (Some(files), Some(tls)) = (&self.tls, &self.options.tls) {
            set("cert-file", &files.certificate.display().to_string());
            set("key-file", &files.key.display().to_string());
            if tls.client_certificates {
                set("trusted-ca-file", &files.ca.display().to_string());
                line.push("--client-cert-auth".into());
            }
        }
        line.extend(self.options.arguments.iter().cloned());
        line
    }

    /// `127.0.0.1:port`; also while it does not run.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// `http://127.0.0.1:port`, or `https://` with TLS.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// Certificates and keys for clients, where it speaks TLS.
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// Its process id; none while it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.running().as_ref().map(Running::pid)
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
        self.running().as_ref().expect("etcd is not running").signal(Signal::STOP);
    }

    /// SIGCONT: it goes on.
    pub fn cont(&self) {
        self.running().as_ref().expect("etcd is not running").signal(Signal::CONT);
    }

    /// Kills it if it runs, and starts it again with the files it has.
    pub fn restart(&self) {
        self.kill();
        self.run();
    }

    /// Kills it if it runs, and starts it again without any files: without users too.
    pub fn restart_empty(&self) {
        self.kill();
        fs::remove_dir_all(self.data()).unwrap();
        self.run();
    }

    /// What `etcdctl` prints for a command, as `root`, without the last line break. Panics where the server answers an error.
    pub fn cli(&self, arguments: &[&str]) -> String {
        match &self.options.root_password {
            Some(password) => self.etcdctl(&["--user", &format!("root:{password}")], arguments),
            None => self.etcdctl(&[], arguments),
        }
    }

    fn etcdctl(&self, login: &[&str], arguments: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url()]).args(login);
        if let Some(files) = &self.tls {
            command.arg("--cacert").arg(&files.ca);
            command.arg("--cert").arg(&files.client_certificate).arg("--key").arg(&files.client_key);
        }
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let output =
            output.unwrap_or_else(|e| panic!("cannot run etcdctl: {e}; `cargo xtask setup` installs it"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "etcdctl {arguments:?}: {out}{err}");
        out
    }

    /// The revision that it is at.
    pub fn revision(&self) -> u64 {
        let status = self.cli(&["get", "--keys-only", "--write-out", "fields", "x"]);
        let line = status.lines().find_map(|line| line.strip_prefix("\"Revision\" : "));
        line.unwrap_or_else(|| panic!("no revision in {status}")).parse().unwrap()
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::running::is_alive;

    #[test]
    fn what_is_put_is_kept_through_a_kill_and_gone_with_the_files() {
        let etcd = EtcdProcess::start(EtcdOptions::default());
        assert_eq!(etcd.cli(&["put", "key", "value"]), "OK");
        let revision = etcd.revision();
        etcd.restart();
        assert_eq!(etcd.cli(&["get", "--print-value-only", "key"]), "value");
        assert_eq!(etcd.revision(), revision);
        etcd.stop();
        etcd.cont();
        etcd.restart_empty();
        assert_eq!(etcd.cli(&["get", "--print-value-only", "key"]), "");
    }

    #[test]
    fn users_and_tls_are_as_asked_for() {
        let tls = Tls { client_certificates: true, ..Tls::default() };
        let etcd = EtcdProcess::start(EtcdOptions {
            tls: Some(tls),
            root_password: Some("open sesame".into()),
            ..EtcdOptions::default()
        });
        assert_eq!(etcd.cli(&["put", "key", "value"]), "OK");
        assert_eq!(etcd.cli(&["user", "list"]), "root");
        let wrong = std::panic::catch_unwind(|| etcd.etcdctl(&["--user", "root:wrong"], &["get", "key"]));
        wrong.unwrap_err();
    }

    #[test]
    fn it_ends_when_it_is_dropped_also_while_it_hangs() {
        let etcd = EtcdProcess::start(EtcdOptions::default());
        let (pid, folder) = (etcd.pid().unwrap(), etcd.data());
        etcd.stop();
        drop(etcd);
        assert!(!is_alive(pid) && !folder.exists());
    }
}
