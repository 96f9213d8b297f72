//! [`RedisSlave`]: the operations of a slave's port, each a script on the server.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use redis::Value as Answer;
use tlog_config::{RedisServer, StorageCluster, StoreAddress};
use tlog_proto::{AggregationNumber, Epoch, Sequence, VdiskId};
use tlog_store::observe::answered;
use tlog_store::slave::{
    BlockChange, Claim, FillId, MOST_CHANGES, PartState, RecordState, SlaveOutcome, SlaveOwner, SlavePart,
    SlavePosition, SlaveRecord, SlaveStep, SlaveStore,
};
use tlog_store::{StoreError, StoreErrorKind};

use crate::factory::twice;
use crate::layout::parse_number;
use crate::scripts::{self, Call, Script};
use crate::slave_text::{
    SlaveKeys, decimal, last_text, mark_name, parse_last, parse_mark, parse_optional, parse_point,
    parse_points, points_text, restoring_text, text_of,
};
use crate::store::{Reply, damaged, garbled, not_sendable, sendable};
use crate::{Link, Links, TlsError, kind_of};

/// A [`SlaveStore`] on one Redis or compatible server. Cheap to clone; clones share the link.
#[derive(Clone)]
pub struct RedisSlave {
    link: Link,
}

/// The stores of a slave cluster.
#[derive(Clone, Debug)]
pub struct SlaveServers {
    /// The data stores, in order.
    pub data: Vec<Arc<dyn SlaveStore>>,
    /// The metadata store; the first data store where the cluster names none.
    pub metadata: Arc<dyn SlaveStore>,
}

/// A cluster cannot be a slave.
#[derive(Debug, thiserror::Error)]
pub enum SlaveServersError {
    /// It has nothing to put blocks on.
    #[error("storage cluster {cluster} has no data stores; name at least one, or another slave cluster")]
    NoDataStores {
        /// The cluster.
        cluster: String,
    },
    /// A store that is not reached over the network.
    #[error("storage cluster {cluster} has {address} among its stores: a slave is on Redis servers only")]
    NotRedis {
        /// The cluster.
        cluster: String,
        /// The store's address.
        address: String,
    },
    /// Blocks of two data stores would be in one hash.
    #[error(
        "data stores {first} and {second} of storage cluster {cluster} are the same, {address}: each needs a server or database of its own"
    )]
    Twice {
        /// The cluster.
        cluster: String,
        /// The one.
        first: usize,
        /// The other.
        second: usize,
        /// Their address.
        address: String,
    },
    /// The files for TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The stores of a cluster that is to be a slave. Does not dial.
pub fn slave_servers(links: &Links, cluster: &StorageCluster) -> Result<SlaveServers, SlaveServersError> {
    let redis = |address: &StoreAddress| match address {
        StoreAddress::Redis(server) => Ok(server.clone()),
        StoreAddress::Directory(_) | StoreAddress::Memory => {
            Err(SlaveServersError::NotRedis { cluster: cluster.id.clone(), address: address.to_string() })
        }
    };
    let store = |server: &RedisServer| -> Result<Arc<dyn SlaveStore>, SlaveServersError> {
        Ok(Arc::new(RedisSlave::new(links.link(server)?)))
    };
    let servers: Vec<RedisServer> = cluster.data.iter().map(redis).collect::<Result<_, _>>()?;
    if let Some((first, second, server)) = twice(&servers) {
        let (cluster, address) = (cluster.id.clone(), server.to_string());
        return Err(SlaveServersError::Twice { cluster, first, second, address });
    }
    let data: Vec<_> = servers.iter().map(store).collect::<Result<_, _>>()?;
    let metadata = match (&cluster.metadata, data.first()) {
        (_, None) => return Err(SlaveServersError::NoDataStores { cluster: cluster.id.clone() }),
        (None, Some(first)) => Arc::clone(first),
        (Some(address), _) => store(&redis(address)?)?,
    };
    Ok(SlaveServers { data, metadata })
}

impl RedisSlave {
    /// The store on the server at the other end of `link`. Does not talk to it yet.
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    /// The way to its server.
    pub fn link(&self) -> &Link {
        &self.link
    }

    async fn call(&self, call: Call<'_>) -> Result<Reply, StoreErrorKind> {
        let reply = call.run(&self.link).await.map_err(kind_of).and_then(Reply::of)?;
        reply.granted(AggregationNumber(0))
    }

    /// Runs what answers nothing but whether it was done.
    async fn change(&self, call: Call<'_>) -> Result<SlaveOutcome, StoreErrorKind> {
        match self.call(call).await?.word() {
            "ok" => Ok(SlaveOutcome::Done),
            "changed" => Ok(SlaveOutcome::Changed),
            _ => Err(garbled()),
        }
    }

    fn answered<T>(
        &self,
        operation: &'static str,
        result: Result<T, StoreErrorKind>,
    ) -> Result<T, StoreError> {
        answered(&self.link.address(), operation, result)
    }

    async fn read_part(&self, vdisk: &VdiskId) -> Result<PartState, StoreErrorKind> {
        let keys = SlaveKeys::of(vdisk);
        let mut reply = self.call(scripts::SLAVE_PART.call(&[&keys.part, &keys.blocks])).await?;
        let mut fields = Fields::of(&keys.part, reply.value())?;
        let blocks = match reply.value() {
            Some(Answer::Int(blocks)) => u64::try_from(blocks).map_err(|_| garbled())?,
            _ => return Err(garbled()),
        };
        let epoch = fields.next("epoch", |text| parse_optional(text, parse_number))?;
        let fill = fields.next("fill", |text| parse_optional(text, FillId::parse))?;
        let part = match fill {
            None => None,
            Some(fill) => Some(SlavePart {
                fill,
                index: fields.next("index", |text| text.parse().ok())?,
                stores: fields.next("stores", |text| text.parse().ok())?,
                applied: fields.next("applied", |text| parse_optional(text, parse_point))?,
            }),
        };
        let counted = match part {
            None => 0,
            Some(_) => fields.next("blocks", decimal)?,
        };
        Ok(PartState { epoch: Epoch(epoch.unwrap_or_default()), part, blocks, counted })
    }

    async fn read_record(&self, vdisk: &VdiskId) -> Result<RecordState, StoreErrorKind> {
        let keys = SlaveKeys::of(vdisk);
        let mut reply = self.call(scripts::SLAVE_RECORD.call(&[&keys.record, &keys.sequence])).await?;
        let mut fields = Fields::of(&keys.record, reply.value())?;
        let mut sequence =
            Fields::of(&keys.sequence, Some(Answer::Array(reply.value().into_iter().collect())))?;
        let epoch = fields.next("epoch", |text| parse_optional(text, parse_number))?;
        let owner = fields.next("owner", |text| parse_optional(text, SlaveOwner::parse))?;
        let mark = fields.next("mark", |text| Some(text.to_owned()))?;
        let fill = fields.next("fill", |text| parse_optional(text, FillId::parse))?;
        let point = fields.next("point", |text| parse_optional(text, parse_point))?;
        let last = fields.next("last", |text| parse_optional(text, parse_last))?;
        let applied = fields.next("applied", parse_points)?;
        let mark = fields.next("restoring", |text| parse_mark(&mark, text))?;
        let legacy = sequence.next("value", |text| parse_optional(text, decimal))?;
        Ok(RecordState {
            epoch: Epoch(epoch.unwrap_or_default()),
            owner,
            record: SlaveRecord {
                mark,
                fill,
                position: point.map(|point| SlavePosition { point, last }),
                applied,
            },
            legacy_sequence: legacy.map(Sequence),
        })
    }

    /// Promises an epoch under a key, to an owner who may have to be the one that is there.
    async fn promised(
        &self,
        key: &str,
        epoch: Epoch,
        owner: Option<SlaveOwner>,
        claim: Claim,
    ) -> Result<(), StoreErrorKind> {
        sendable("epoch", epoch.0)?;
        let back = if claim == Claim::Back { "1" } else { "" };
        let call = scripts::SLAVE_RAISE.call(&[key]).arg(epoch.0).arg(text_of(owner)).arg(back);
        match self.change(call).await? {
            SlaveOutcome::Done => Ok(()),
            SlaveOutcome::Changed => Err(garbled()),
        }
    }

    async fn applied(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        step: &SlaveStep,
        changes: &[BlockChange],
    ) -> Result<SlaveOutcome, StoreErrorKind> {
        if changes.len() > MOST_CHANGES {
            let why = format!("{} changes at once are more than {MOST_CHANGES}", changes.len());
            return Err(not_sendable(why));
        }
        let keys = SlaveKeys::of(vdisk);
        let sets = || changes.iter().filter_map(|change| Some((change.index, change.data.as_ref()?)));
        let SlaveStep { fill, from, to } = step;
        let mut call = within(&scripts::SLAVE_APPLY, &[&keys.part, &keys.blocks], epoch)?
            .arg(fill.to_string())
            .arg(text_of(*from))
            .arg(text_of(*to))
            .arg(sets().count());
        for (index, data) in sets() {
            call = call.arg(index.get()).arg(&data[..]);
        }
        for change in changes.iter().filter(|change| change.data.is_none()) {
            call = call.arg(change.index.get());
        }
        self.change(call).await
    }

    async fn kept(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        record: &SlaveRecord,
    ) -> Result<SlaveOutcome, StoreErrorKind> {
        use tlog_store::slave::SlaveMark;

        let keys = SlaveKeys::of(vdisk);
        let SlaveRecord { mark, fill, position, applied } = record;
        let last = position.as_ref().and_then(|position| position.last);
        let restoring = match mark {
            SlaveMark::Restoring(restoring) => restoring_text(restoring),
            SlaveMark::Running | SlaveMark::Stopped => String::new(),
        };
        let sequence = match fill {
            Some(_) => text_of(last.map(|last| last.position.sequence)),
            None => "-".to_owned(),
        };
        let call = within(&scripts::SLAVE_KEEP, &[&keys.record, &keys.sequence], epoch)?
            .arg(mark_name(mark))
            .arg(text_of(*fill))
            .arg(text_of(position.as_ref().map(|position| position.point)))
            .arg(last.as_ref().map(last_text).unwrap_or_default())
            .arg(points_text(applied))
            .arg(restoring)
            .arg(sequence);
        self.change(call).await
    }
}

/// A call for whoever was promised an epoch.
fn within<'a>(script: &'a Script, keys: &[&String], epoch: Epoch) -> Result<Call<'a>, StoreErrorKind> {
    sendable("epoch", epoch.0)?;
    Ok(script.call(keys).arg(epoch.0))
}

/// The fields of a hash as a script answers them; what is not there is empty.
struct Fields<'a> {
    key: &'a str,
    values: std::vec::IntoIter<Answer>,
}

impl<'a> Fields<'a> {
    fn of(key: &'a str, answer: Option<Answer>) -> Result<Self, StoreErrorKind> {
        match answer {
            Some(Answer::Array(values)) => Ok(Self { key, values: values.into_iter() }),
            _ => Err(garbled()),
        }
    }

    fn next<T>(&mut self, name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, StoreErrorKind> {
        let text = match self.values.next() {
            Some(Answer::BulkString(bytes)) => String::from_utf8(bytes).ok(),
            Some(Answer::Nil) => Some(String::new()),
            Some(Answer::Boolean(false)) => Some(String::new()),
            _ => None,
        };
        text.as_deref().and_then(parse).ok_or_else(|| damaged(format!("{} {name}", self.key)))
    }
}

impl fmt::Debug for RedisSlave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisSlave({})", self.link.address())
    }
}

#[async_trait]
impl SlaveStore for RedisSlave {
    fn address(&self) -> Arc<str> {
        self.link.address()
    }

    async fn part(&self, vdisk: &VdiskId) -> Result<PartState, StoreError> {
        self.answered("slave_part", self.read_part(vdisk).await)
    }

    async fn raise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        let keys = SlaveKeys::of(vdisk);
        self.answered("slave_raise", self.promised(&keys.part, epoch, None, Claim::Over).await)
    }

    async fn begin(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        part: &SlavePart,
    ) -> Result<SlaveOutcome, StoreError> {
        let keys = SlaveKeys::of(vdisk);
        let SlavePart { fill, index, stores, applied } = part;
        let result = match within(&scripts::SLAVE_BEGIN, &[&keys.part, &keys.blocks], epoch) {
            Ok(call) => {
                let call = call.arg(fill.to_string()).arg(*index).arg(*stores).arg(text_of(*applied));
                self.change(call).await
            }
            Err(error) => Err(error),
        };
        self.answered("slave_begin", result)
    }

    async fn clear(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<SlaveOutcome, StoreError> {
        let keys = SlaveKeys::of(vdisk);
        let result = match within(&scripts::SLAVE_CLEAR, &[&keys.part, &keys.blocks], epoch) {
            Ok(call) => self.change(call).await,
            Err(error) => Err(error),
        };
        self.answered("slave_clear", result)
    }

    async fn apply(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        step: &SlaveStep,
        changes: &[BlockChange],
    ) -> Result<SlaveOutcome, StoreError> {
        self.answered("slave_apply", self.applied(vdisk, epoch, step, changes).await)
    }

    async fn record(&self, vdisk: &VdiskId) -> Result<RecordState, StoreError> {
        self.answered("slave_record", self.read_record(vdisk).await)
    }

    async fn promise(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        owner: SlaveOwner,
        claim: Claim,
    ) -> Result<(), StoreError> {
        let keys = SlaveKeys::of(vdisk);
        self.answered("slave_promise", self.promised(&keys.record, epoch, Some(owner), claim).await)
    }

    async fn keep(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        record: &SlaveRecord,
    ) -> Result<SlaveOutcome, StoreError> {
        self.answered("slave_keep", self.kept(vdisk, epoch, record).await)
    }
}
