//! One link for each server, for everybody in this process.

use std::sync::{Arc, Mutex, PoisonError};

use tlog_config::RedisServer;

use crate::link::WeakLink;
use crate::{Link, LinkLimits, TlsError, TlsOptions};

/// Hands out links: one for each server, shared by all who ask for it, closed when the last of them is done. Cheap to clone; clones
/// share their links.
#[derive(Clone, Debug, Default)]
pub struct Links {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    limits: LinkLimits,
    tls: TlsOptions,
    open: Mutex<Vec<(RedisServer, WeakLink)>>,
}

impl Links {
    /// Links within `limits`, those of `rediss://` with the files of `tls`.
    pub fn new(limits: LinkLimits, tls: TlsOptions) -> Self {
        Self { inner: Arc::new(Inner { limits, tls, open: Mutex::default() }) }
    }

    /// The link to a server; does not dial. One with another user, password, database or TLS is another server.
    ///
    /// # Errors
    ///
    /// The files for TLS cannot be used.
    pub fn link(&self, server: &RedisServer) -> Result<Link, TlsError> {
        let mut open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, link)| link.is_open());
        let shared = open.iter().find(|(known, _)| known == server).and_then(|(_, link)| link.upgrade());
        if let Some(link) = shared {
            return Ok(link);
        }
        let link = Link::with_tls(server.clone(), self.inner.limits, &self.inner.tls)?;
        open.push((server.clone(), link.downgrade()));
        Ok(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlog_config::Secret;

    #[test]
    fn a_server_has_one_link_until_nobody_uses_it() {
        let links = Links::default();
        let server = RedisServer::new("127.0.0.1", 1);
        let (one, two) = (links.link(&server).unwrap(), links.clone().link(&server).unwrap());
        assert!(one.is_same(&two));
        let with_password = RedisServer { password: Some(Secret::new("secret")), ..server.clone() };
        let database = RedisServer { database: 1, ..server.clone() };
        for other in [with_password, database, RedisServer::new("127.0.0.1", 2)] {
            assert!(!one.is_same(&links.link(&other).unwrap()));
        }
        drop((one, two));
        assert!(!links.inner.open.lock().unwrap().iter().any(|(_, link)| link.is_open()));
        links.link(&server).unwrap();
    }
}
