//! Getting a connection, and what is asked on it first.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tlog_config::{RedisServer, Secret};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::LinkLimits;
use crate::conversation::Conversation;
use crate::durability::{Told, ask};
use crate::failure::{DialFailure, deadline_passed};

/// What dials a server.
pub(crate) struct Dialler {
    server: RedisServer,
    limit: Duration,
    /// For `rediss://`.
    tls: Option<Arc<ClientConfig>>,
}

impl Dialler {
    /// Does not dial yet.
    pub(crate) fn new(server: &RedisServer, limits: &LinkLimits, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { server: server.clone(), limit: limits.connect, tls }
    }

    /// Dials. The server has let us in, and told of itself.
    pub(crate) async fn dial(&self) -> Result<(Conversation, Told), DialFailure> {
        let dialled = async {
            let conversation = self.connect().await?;
            let told = introduce(&conversation, &self.server).await?;
            Ok((conversation, told))
        };
        let result = match tokio::time::timeout(self.limit, dialled).await {
            Ok(result) => result,
            Err(_) => Err(deadline_passed(self.limit)),
        };
        result.map_err(|error| DialFailure::of(error, &self.server))
    }

    async fn connect(&self) -> RedisResult<Conversation> {
        let RedisServer { host, port, .. } = &self.server;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        if !self.server.tls {
            return Ok(Conversation::over(stream));
        }
        let config =
            self.tls.as_ref().ok_or_else(|| std::io::Error::other("TLS cannot be set up on this system"))?;
        let name = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
        Ok(Conversation::over(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?))
    }
}

/// Says who we are and which database we want, and asks what the server is.
async fn introduce(conversation: &Conversation, server: &RedisServer) -> RedisResult<Told> {
    if let Some(password) = &server.password {
        let mut command = redis::cmd("AUTH");
        if let Some(user) = &server.user {
            command.arg(user);
        }
        command.arg(Secret::reveal(password));
        conversation.query(&command).await.map_err(|error| match error.is_io_error() {
            true => error,
            // In which words it does so differs between versions.
            false => refused(&error),
        })?;
    }
    if server.database != 0 {
        conversation.query(redis::cmd("SELECT").arg(server.database)).await?;
    }
    // For whoever looks at the server's list of clients. Nothing depends on it, but that we were let in.
    let named = conversation.query(redis::cmd("CLIENT").arg("SETNAME").arg("tlog")).await;
    if let Err(error) = named
        && (error.code() == Some("NOAUTH") || error.is_io_error())
    {
        return Err(error);
    }
    ask(|command| async move { conversation.query(&command).await }).await
}

fn refused(error: &RedisError) -> RedisError {
    (ErrorKind::AuthenticationFailed, "the server does not take the password", error.to_string()).into()
}

impl fmt::Debug for Dialler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialler({})", self.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialler_shows_no_password() {
        let server = RedisServer {
            user: Some("anna".into()),
            password: Some(Secret::new("open sesame")),
            ..RedisServer::new("127.0.0.1", 1)
        };
        let dialler = Dialler::new(&server, &LinkLimits::default(), None);
        assert_eq!(format!("{dialler:?}"), "Dialler(redis://127.0.0.1:1/0)");
    }
}
