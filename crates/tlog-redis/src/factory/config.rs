//! Pools that follow a configuration.

use std::sync::Arc;

use async_trait::async_trait;
use tlog_config::{ClusterSource, StorageCluster};
use tlog_proto::VdiskId;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::servers::{linked, of_cluster};
use super::{Pools, RedisPoolFactory, RedisPoolFactoryError};
use crate::pool::WeakPool;
use crate::{Links, RedisPool};

/// The servers that a configuration gives each vdisk, as it changes.
///
/// A changed address replaces that one store, in use and without a restart; the others are not touched. A change to something that
/// cannot be used (too few stores, one that is no Redis server, one twice) is logged and counted, and what was there before
/// stays.
#[derive(Debug)]
pub struct ConfigRedisPoolFactory {
    source: Arc<dyn ClusterSource>,
    needed: usize,
    links: Links,
    pools: Pools,
}

impl ConfigRedisPoolFactory {
    /// Pools of `needed` (k + m) stores.
    pub fn new(source: Arc<dyn ClusterSource>, needed: usize, links: Links) -> Self {
        Self { source, needed, links, pools: Pools::default() }
    }
}

#[async_trait]
impl RedisPoolFactory for ConfigRedisPoolFactory {
    async fn new_redis_pool(&self, vdisk: &VdiskId) -> Result<RedisPool, RedisPoolFactoryError> {
        let mut clusters = self.source.tlog_cluster(vdisk).await?;
        let cluster = Arc::clone(&clusters.borrow_and_update());
        let servers = of_cluster(&cluster, self.needed)?;
        let pool = self.pools.add(RedisPool::of_links(linked(&self.links, &servers)?))?;
        let follower = Follower {
            vdisk: vdisk.clone(),
            clusters,
            needed: self.needed,
            links: self.links.clone(),
            pool: pool.downgrade(),
        };
        tokio::spawn(follower.run());
        Ok(pool)
    }

    fn close(&self) {
        self.pools.close();
    }
}

/// Brings changes of the configuration to a pool, as long as that is used.
struct Follower {
    vdisk: VdiskId,
    clusters: watch::Receiver<Arc<StorageCluster>>,
    needed: usize,
    links: Links,
    pool: WeakPool,
}

impl Follower {
    async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.pool.gone() => return,
                changed = self.clusters.changed() => if changed.is_err() {
                    debug!(vdisk = %self.vdisk, "the configuration ended; the stores stay as they are");
                    return;
                },
            }
            let cluster = Arc::clone(&self.clusters.borrow_and_update());
            if let Err(error) = self.apply(&cluster) {
                metrics::counter!("tlog_redis_pool_changes_total", "outcome" => "refused").increment(1);
                warn!(
                    vdisk = %self.vdisk,
                    cluster = cluster.id,
                    %error,
                    "the changed storage cluster cannot be used; the stores stay as they are"
                );
            }
        }
    }

    /// All of it or nothing.
    fn apply(&self, cluster: &StorageCluster) -> Result<(), RedisPoolFactoryError> {
        let servers = of_cluster(cluster, self.needed)?;
        let links = linked(&self.links, &servers)?;
        let Some(before) = self.pool.servers() else { return Ok(()) };
        for (index, (link, before)) in links.into_iter().zip(&before).enumerate() {
            if link.server() != before {
                info!(vdisk = %self.vdisk, index, store = %link.address(), %before, "replacing a store");
                metrics::counter!("tlog_redis_pool_changes_total", "outcome" => "replaced").increment(1);
                self.pool.replace(index, link);
            }
        }
        Ok(())
    }
}
