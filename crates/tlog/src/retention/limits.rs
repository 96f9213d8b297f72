//! Who still needs history that could be removed.

use async_trait::async_trait;
use tlog_config::Configuration;
use tlog_player::slave::SlaveSyncState;
use tlog_proto::{AggregationNumber, VdiskId};

use crate::pins::Pins;
use crate::slaves::{NoSyncer, Slaves};

/// Somebody who still needs history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The lowest aggregation that is needed.
    pub from: AggregationNumber,
    /// Who needs it, for a person.
    pub who: String,
}

/// Knows who needs history.
#[async_trait]
pub trait Limits: Send + Sync {
    /// What a slave needs. An error says why that is not known.
    async fn slave(&self, vdisk: &VdiskId) -> Result<Option<Limit>, String>;
    /// What running restores need, to look at.
    fn readers(&self, vdisk: &VdiskId) -> Option<Limit>;
    /// Below which number history may be removed, of that below `wanted`. From then on nobody is promised what is below.
    fn decide(&self, vdisk: &VdiskId, wanted: AggregationNumber) -> AggregationNumber;
}

/// A server knows how far its slaves are.
pub struct ServerLimits {
    /// None where there are no documents, and so no slaves.
    pub slaves: Option<Slaves>,
    /// What restores hold.
    pub pins: Pins,
}

#[async_trait]
impl Limits for ServerLimits {
    async fn slave(&self, vdisk: &VdiskId) -> Result<Option<Limit>, String> {
        let Some(slaves) = &self.slaves else { return Ok(None) };
        let Some(shown) = slaves.show().into_iter().find(|slave| slave.vdisk == *vdisk) else {
            return Ok(None);
        };
        let cluster = shown.cluster;
        let status = match shown.syncer {
            Ok(status) => status,
            Err(NoSyncer::NoLog) => return Ok(None),
            Err(why) => {
                return Err(format!(
                    "how far the slave on storage cluster {cluster} is is not known ({})",
                    why.kind()
                ));
            }
        };
        match (&status.state, status.position) {
            // It is a disk of its own now, or is filled anew in any case.
            (SlaveSyncState::Stopped | SlaveSyncState::NeedsResync(_), _) => Ok(None),
            (_, Some(position)) => Ok(Some(Limit {
                from: position.point.aggregation.max(AggregationNumber(1)),
                who: format!("the slave on storage cluster {cluster}"),
            })),
            (_, None) => Err(format!("how far the slave on storage cluster {cluster} is is not known yet")),
        }
    }

    fn readers(&self, vdisk: &VdiskId) -> Option<Limit> {
        let from = self.pins.lowest(vdisk)?;
        Some(Limit { from, who: "a restore that is running".to_owned() })
    }

    fn decide(&self, vdisk: &VdiskId, wanted: AggregationNumber) -> AggregationNumber {
        self.pins.decide(vdisk, wanted)
    }
}

/// Where no server runs nobody restores through it, and how far a slave is nobody knows.
pub struct OfflineLimits {
    /// The documents of vdisks, where there are some.
    pub configuration: Option<Configuration>,
}

#[async_trait]
impl Limits for OfflineLimits {
    async fn slave(&self, vdisk: &VdiskId) -> Result<Option<Limit>, String> {
        let Some(configuration) = &self.configuration else { return Ok(None) };
        let document = configuration.vdisk(vdisk).borrow().clone();
        let slave = document.as_ref().and_then(|document| document.tlog.as_ref()?.slave.as_ref());
        match slave {
            Some(cluster) => Err(format!(
                "how far the slave on storage cluster {} is is known to the server that keeps it, and none runs; start it",
                cluster.id
            )),
            None => Ok(None),
        }
    }

    fn readers(&self, _: &VdiskId) -> Option<Limit> {
        None
    }

    fn decide(&self, _: &VdiskId, wanted: AggregationNumber) -> AggregationNumber {
        wanted
    }
}
