//! What goes wrong with a server, in words for a person and as the port's errors.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError};
use rustls::CertificateError;
use tlog_config::RedisServer;
use tlog_store::StoreErrorKind;

/// What an answer that is an error means to the port.
///
/// `OOM` and a full disk are [`StoreErrorKind::Full`]; a replica takes no writes ([`StoreErrorKind::ReadOnly`]); everything
/// else, a user who may not run a command among it, is [`StoreErrorKind::Unavailable`] with what the server said.
pub fn kind_of(error: RedisError) -> StoreErrorKind {
    let text = error.to_string();
    // A script's error comes as the server's text around that of the command in it, in ways that differ between versions.
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if error.is_io_error() {
        let kind = if error.is_timeout() { io::ErrorKind::TimedOut } else { io::ErrorKind::NotConnected };
        return StoreErrorKind::Unavailable { source: io::Error::new(kind, text) };
    }
    if error.code() == Some("OOM") || says(&["OOM command not allowed", "No space left on device"]) {
        return StoreErrorKind::Full { source: io::Error::new(io::ErrorKind::StorageFull, text) };
    }
    match error.code() {
        Some("READONLY") => StoreErrorKind::ReadOnly,
        _ if says(&["READONLY You can't write"]) => StoreErrorKind::ReadOnly,
        _ => StoreErrorKind::Unavailable { source: io::Error::other(text) },
    }
}

pub(crate) fn deadline_passed(limit: Duration) -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")).into()
}

/// Why a dial failed.
#[derive(Clone, Debug)]
pub(crate) struct DialFailure {
    /// For counters.
    pub(crate) kind: &'static str,
    /// For a person; without the address.
    text: String,
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl DialFailure {
    /// Puts it into words.
    pub(crate) fn of(error: RedisError, server: &RedisServer) -> Self {
        let text = error.to_string();
        let failure = |kind, text: String| Self { kind, text };
        if error.kind() == ErrorKind::AuthenticationFailed || text.contains("WRONGPASS") {
            let user = server
                .user
                .as_deref()
                .map_or_else(|| "the default user".into(), |user| format!("user {user}"));
            return failure(
                "authentication",
                format!("refuses {user} with the password of its address (WRONGPASS)"),
            );
        }
        if error.code() == Some("NOAUTH") {
            let hint =
                "asks for a password (NOAUTH): give it with its address, redis://user:password@host:port";
            return failure("authentication", hint.into());
        }
        if let Some(error) = tls_error(&error) {
            return failure("tls", tls_text(error, server));
        }
        if error.is_timeout() {
            // A server that waits for a line of text takes the beginning of TLS for half of one.
            let hint = if server.tls { "; if it does not speak TLS, use redis://" } else { "" };
            return failure("timeout", format!("{text}{hint}"));
        }
        if error.is_connection_refusal() {
            return failure("refused", "refuses connections: nothing listens there".into());
        }
        if error.is_connection_dropped() {
            let hint = if server.tls { "" } else { "; if it speaks TLS, use rediss://" };
            return failure("closed", format!("closes the connection ({text}){hint}"));
        }
        failure("other", text)
    }
}

/// The error of TLS in that of the connection, if it is one.
fn tls_error(error: &RedisError) -> Option<&rustls::Error> {
    let source = error.source()?;
    // What the error shares with its clones is its source as it stands, with the `Arc`.
    let source = match source.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        Some(shared) => shared.downcast_ref::<io::Error>(),
        None => source.downcast_ref(),
    };
    source?.get_ref()?.downcast_ref()
}

fn tls_text(error: &rustls::Error, server: &RedisServer) -> String {
    let hint = match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "its certificate comes from no authority that is trusted here: check the CA file".to_owned(),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("its certificate is not made out for {}", server.host),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS: use redis://".to_owned(),
        rustls::Error::AlertReceived(_) => {
            "it does not accept this client: does it ask for a certificate?".to_owned()
        }
        _ => "TLS failed".to_owned(),
    };
    format!("{hint} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_a_full_or_read_only_server_are_told_apart() {
        let check = |line: &str, name: &str| {
            let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
            let error = value.extract_error().unwrap_err();
            let kind = kind_of(error);
            assert_eq!(kind.name(), name, "{line}: {kind}");
        };
        check("OOM command not allowed when used memory > 'maxmemory'.", "full");
        check(
            "OOM command not allowed when used memory > 'maxmemory'. script: 5c, on @user_script:1.",
            "full",
        );
        check(
            "ERR Error running script (call to f_5c): @user_script:1: @user_script: 1: -OOM command not allowed when used memory > 'maxmemory'.",
            "full",
        );
        check("MISCONF Errors writing to the AOF file: No space left on device", "full");
        check(
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "unavailable",
        );
        check("READONLY You can't write against a read only replica.", "read_only");
        check(
            "ERR Error running script: -READONLY You can't write against a read only replica.",
            "read_only",
        );
        check("NOPERM User anna has no permissions to run the 'evalsha' command", "unavailable");
        check(
            "ERR The user executing the script can't run this command or subcommand script: 5c",
            "unavailable",
        );
        check("LOADING Redis is loading the dataset in memory", "unavailable");
        check("BUSY Redis is busy running a script.", "unavailable");
        check("NOAUTH Authentication required.", "unavailable");
        check("WRONGPASS invalid username-password pair or user is disabled.", "unavailable");
        check("SOMETHING new", "unavailable");
    }

    #[test]
    fn a_time_limit_is_told_apart_from_a_broken_connection() {
        let kind = |error: RedisError| match kind_of(error) {
            StoreErrorKind::Unavailable { source } => source.kind(),
            other => panic!("{other}"),
        };
        assert_eq!(kind(deadline_passed(Duration::from_secs(1))), io::ErrorKind::TimedOut);
        assert_eq!(kind(io::Error::from(io::ErrorKind::BrokenPipe).into()), io::ErrorKind::NotConnected);
    }
}
