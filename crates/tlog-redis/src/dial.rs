//! Getting a connection: the pool that dials it, and what is asked on it first.

use std::time::Duration;

use deadpool_redis::{Connection, Manager, Pool, Runtime, Timeouts};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo,
    RedisResult, TlsCertificates,
};
use tlog_config::{RedisServer, Secret};

use crate::LinkLimits;
use crate::durability::{Told, ask};
use crate::failure::{DialFailure, deadline_passed};

/// Commands are gathered up to this many bytes before they are written to the socket: some shards of usual size.
const WRITE_BUFFER: usize = 128 << 10;

/// What dials a server. Of the pool one connection is ever taken, and held until it breaks; the pool makes the next one.
pub(crate) struct Dialler {
    pool: Pool,
    server: RedisServer,
    limit: Duration,
}

impl Dialler {
    /// Does not dial yet.
    pub(crate) fn new(
        server: &RedisServer,
        limits: &LinkLimits,
        tls: Option<&TlsCertificates>,
    ) -> RedisResult<Self> {
        let mut info = connection_info(server)?;
        if let Some(certificates) = tls.filter(|_| server.tls) {
            // The client is made only for what it makes of the certificates.
            info = Client::build_with_tls(info, certificates.clone())?.get_connection_info().clone();
        }
        let config = AsyncConnectionConfig::new()
            // Both limits are the link's: it must know which one was passed, and what else is on the way.
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(limits.commands)
            .set_write_backpressure_boundary(WRITE_BUFFER);
        let timeouts = Timeouts { wait: Some(limits.connect), create: Some(limits.connect), recycle: None };
        let pool = Pool::builder(Manager::new_with_config(info, config)?)
            .max_size(1)
            .timeouts(timeouts)
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a pool with time limits has a runtime for them, and that is all that is checked");
        Ok(Self { pool, server: server.clone(), limit: limits.connect })
    }

    /// Dials. The server has let us in, and told of itself.
    pub(crate) async fn dial(&self) -> Result<(Connection, Told), DialFailure> {
        let dialled = async {
            let mut connection = self.pool.get().await.map_err(|error| match error {
                deadpool_redis::PoolError::Backend(error) => error,
                deadpool_redis::PoolError::Timeout(_) => deadline_passed(self.limit),
                other => std::io::Error::other(other.to_string()).into(),
            })?;
            match introduce(&mut connection).await {
                Ok(told) => Ok((connection, told)),
                Err(error) => {
                    // It must not go back into the pool, to be handed out again.
                    drop(Connection::take(connection));
                    Err(error)
                }
            }
        };
        let result = match tokio::time::timeout(self.limit, dialled).await {
            Ok(result) => result,
            Err(_) => Err(deadline_passed(self.limit)),
        };
        result.map_err(|error| DialFailure::of(error, &self.server))
    }
}

/// Says who we are, and asks what the server is.
async fn introduce(connection: &mut MultiplexedConnection) -> RedisResult<Told> {
    // For whoever looks at the server's list of clients. Nothing depends on it, but that we were let in.
    let named = redis::cmd("CLIENT").arg("SETNAME").arg("tlog").query_async::<()>(connection).await;
    if let Err(error) = named
        && (error.code() == Some("NOAUTH") || error.is_io_error())
    {
        return Err(error);
    }
    let answers = ask(|command| {
        let mut connection = connection.clone();
        async move { command.query_async(&mut connection).await }
    });
    answers.await
}

fn connection_info(server: &RedisServer) -> RedisResult<ConnectionInfo> {
    let address = if server.tls {
        let (host, port) = (server.host.clone(), server.port);
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(server.host.clone(), server.port)
    };
    let mut settings = RedisConnectionInfo::default().set_db(i64::from(server.database));
    if let Some(user) = &server.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &server.password {
        settings = settings.set_password(Secret::reveal(password));
    }
    let info = address.into_connection_info()?;
    Ok(info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The pool's own Debug shows user and password.
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
        let dialler = Dialler::new(&server, &LinkLimits::default(), None).unwrap();
        assert_eq!(format!("{dialler:?}"), "Dialler(redis://127.0.0.1:1/0)");
    }
}
