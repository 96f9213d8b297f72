//! How a server is to be started.

use std::path::{Path, PathBuf};

use crate::TlsFiles;

/// How a `redis-server` is to be started. The default keeps everything in memory and asks for no password.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// `appendonly yes` and `appendfsync always`: what it has answered survives SIGKILL. Else nothing is ever written to disk.
    pub append_only: bool,
    /// Password of the default user.
    pub password: Option<String>,
    /// More users, as the lines of an ACL file: `anna on >secret ~* +@all`.
    pub users: Vec<String>,
    /// TLS instead of plain TCP.
    pub tls: Option<Tls>,
    /// `maxmemory`, in bytes.
    pub max_memory: Option<u64>,
    /// `maxmemory-policy`; `noeviction` where there is none.
    pub eviction: Option<String>,
    /// Where its directory is made; among the temporary ones of the system where this is none.
    pub parent: Option<PathBuf>,
    /// More settings, as on the command line: `--maxclients`, `10`. They win over those above.
    pub arguments: Vec<String>,
}

/// TLS with a certificate of a CA of its own.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Names and IP addresses that the server's certificate is made out for.
    pub names: Vec<String>,
    /// Whether clients must show a certificate of the same CA.
    pub client_certificates: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Self { names: vec!["127.0.0.1".into(), "localhost".into()], client_certificates: false }
    }
}

impl RedisOptions {
    /// Durable: [`RedisOptions::append_only`].
    pub fn durable() -> Self {
        Self { append_only: true, ..Self::default() }
    }

    /// The command line for a server on `port` in `directory`.
    pub(crate) fn command_line(&self, port: u16, directory: &Path, tls: Option<&TlsFiles>) -> Vec<String> {
        let mut line: Vec<String> = Vec::new();
        let mut set = |name: &str, values: &[&str]| {
            line.push(format!("--{name}"));
            line.extend(values.iter().map(ToString::to_string));
        };
        set("bind", &["127.0.0.1"]);
        set("dir", &[&directory.display().to_string()]);
        set("save", &[""]);
        // A test machine's disk and memory are small, and nobody reads these.
        set("loglevel", &["notice"]);
        set("always-show-logo", &["no"]);
        let port = port.to_string();
        match tls {
            None => set("port", &[&port]),
            Some(files) => {
                set("port", &["0"]);
                set("tls-port", &[&port]);
                set("tls-cert-file", &[&files.certificate.display().to_string()]);
                set("tls-key-file", &[&files.key.display().to_string()]);
                set("tls-ca-cert-file", &[&files.ca.display().to_string()]);
                let clients = self.tls.as_ref().is_some_and(|tls| tls.client_certificates);
                set("tls-auth-clients", &[if clients { "yes" } else { "no" }]);
            }
        }
        if self.append_only {
            set("appendonly", &["yes"]);
            set("appendfsync", &["always"]);
        } else {
            set("appendonly", &["no"]);
        }
        if let Some(bytes) = self.max_memory {
            set("maxmemory", &[&bytes.to_string()]);
        }
        set("maxmemory-policy", &[self.eviction.as_deref().unwrap_or("noeviction")]);
        if let Some(password) = &self.password {
            set("requirepass", &[password]);
        }
        for user in &self.users {
            set("user", &user.split_whitespace().collect::<Vec<_>>());
        }
        line.extend(self.arguments.iter().cloned());
        line
    }
}
