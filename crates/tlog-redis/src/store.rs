//! [`RedisStore`]: the operations of the port, each a script on the server.

mod known;
mod reply;
mod staging;

use std::fmt;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, FromRedisValue, Value as Answer};
use tlog_proto::{AggregationNumber, Epoch, VdiskId};
use tlog_store::observe::answered;
use tlog_store::{
    ChainStore, FillOutcome, HeadSlot, LogState, Members, Shard, ShardSlot, ShardStore, StartRecord,
    StoreDurability, StoreError, StoreErrorKind, StoreIdentity,
};

pub(crate) use self::known::Known;
pub(crate) use self::reply::{Reply, damaged, garbled};
use self::staging::Staging;
use crate::layout::{HIGHEST, Keys, LAYOUT, VDISKS, Value, epoch_of, head_in, members_text, shard_in};
use crate::scripts::{self, Call};
use crate::{Link, kind_of};

/// How many numbers one script looks at or deletes. It holds up everybody else on that server meanwhile: about a millisecond.
const NUMBERS_AT_ONCE: usize = 512;
/// Bytes of head parts that one script answers, or a little more.
const BYTES_AT_ONCE: usize = 1 << 20;
/// How many names are looked up by one script.
const NAMES_AT_ONCE: usize = 256;
/// How often an operation looks again because another client changed what it had seen.
pub(crate) const ATTEMPTS: usize = 16;

/// A [`ShardStore`] on one Redis or compatible server. Cheap to clone; clones share the link.
///
/// What it has answered is as durable as the server makes it: see [`ShardStore::durability`]. An operation is one script, so that
/// any number of clients can use one log at once. `docs/redis-store.md` has the keys.
///
/// Numbers and epochs go up to 2^53 - 1, the highest that a script can tell from its neighbours; writing a higher one is refused.
#[derive(Clone)]
pub struct RedisStore {
    link: Link,
    staging: Arc<Staging>,
    pub(crate) known: Arc<Known>,
}

impl RedisStore {
    /// The store on the server at the other end of `link`. Does not talk to it yet.
    pub fn new(link: Link) -> Self {
        Self { link, staging: Arc::new(Staging::new()), known: Arc::default() }
    }

    /// The way to its server.
    pub fn link(&self) -> &Link {
        &self.link
    }

    pub(crate) fn answered<T>(
        &self,
        operation: &'static str,
        result: Result<T, StoreErrorKind>,
    ) -> Result<T, StoreError> {
        answered(&self.link.address(), operation, result)
    }

    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Reply, StoreErrorKind> {
        call.run(&self.link).await.map_err(kind_of).and_then(Reply::of)
    }

    /// Runs one plain command, which takes `key` to be of a certain type.
    pub(crate) async fn run<T: FromRedisValue>(&self, command: &Cmd, key: &str) -> Result<T, StoreErrorKind> {
        self.link.run(command).await.map_err(|error| match error.code() {
            Some("WRONGTYPE") => damaged(format!("{key} is of another type")),
            _ => kind_of(error),
        })
    }

    async fn promised(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreErrorKind> {
        sendable("epoch", epoch.0)?;
        let keys = Keys::of(vdisk);
        let mut identity = String::new();
        for _ in 0..ATTEMPTS {
            let names = [&keys.log, &keys.held, &keys.deleted, &VDISKS.to_owned()];
            let call = self.meaning(vdisk, &scripts::PROMISE, &names).arg(epoch.0).arg(&identity);
            let reply = match self.change(vdisk, &keys, call.arg(vdisk.as_str())).await {
                Err(StoreErrorKind::NoLog) => continue,
                answered => answered?,
            };
            match reply.word() {
                "none" => {
                    // Before there is a log, so that there is none that is not listed.
                    self.register(vdisk).await?;
                    identity = new_identity()?.to_string();
                }
                "sweep" => self.sweep_deleted(&keys).await?,
                _ => {
                    let state = reply.granted(AggregationNumber(0))?.state(&keys)?;
                    self.known.set(vdisk, state.identity);
                    // Again: a delete can have taken the name out meanwhile, or an eviction. It is in the way of nobody, not even on
                    // a full server, if that cannot be done.
                    if let Err(error) = self.register(vdisk).await {
                        tracing::debug!(store = %self.link.address(), %vdisk, %error, "cannot list the vdisk");
                    }
                    return Ok(state);
                }
            }
        }
        Err(contended())
    }

    async fn register(&self, vdisk: &VdiskId) -> Result<(), StoreErrorKind> {
        self.run(redis::cmd("SADD").arg(VDISKS).arg(vdisk.as_str()), VDISKS).await
    }

    async fn started(
        &self,
        vdisk: &VdiskId,
        record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreErrorKind> {
        sendable("epoch", record.epoch.0)?;
        sendable("number", record.number.0)?;
        let members =
            members_text(members).ok_or_else(|| too_high("version of a list of members", HIGHEST + 1))?;
        let keys = Keys::of(vdisk);
        let mut from = record.number.0;
        // All steps are for one log.
        let (mut meant, mut others) = (self.known.text(vdisk), 0);
        loop {
            let call = scripts::START.call(&[&keys.log, &keys.held]).arg(&meant).arg(record.epoch.0);
            let call = call.arg(record.number.0).arg(&members).arg(from).arg(NUMBERS_AT_ONCE);
            let reply = match self.change(vdisk, &keys, call).await {
                // Of that one nothing was looked at yet.
                Err(StoreErrorKind::NoLog) if others < ATTEMPTS => {
                    others += 1;
                    (meant, from) = (self.known.text(vdisk), record.number.0);
                    continue;
                }
                answered => answered?,
            };
            let mut reply = reply.granted(record.number)?;
            if reply.word() == "ok" {
                let identity = reply.identity(&keys)?;
                self.known.set(vdisk, Some(identity));
                return Ok(identity);
            }
            // There was much to drop.
            from = Some(reply.number()?).filter(|&next| next > from).ok_or_else(garbled)?;
        }
    }

    async fn appended(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: &Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreErrorKind> {
        sendable("number", number.0)?;
        sendable("number", committed.0)?;
        let keys = Keys::of(vdisk);
        let key = keys.shard(number);
        let value = value_of(shard, &key)?;
        if let Some(staged) = self.staging.name(&value) {
            let staged = keys.staged(staged);
            let put = (staged.as_str(), &value, staging::LIFETIME_MS);
            let names = [&keys.log, &keys.held, &key, &staged];
            let before = number.0.saturating_sub(1);
            let call = self.meaning(vdisk, &scripts::APPEND_NEXT, &names).arg(shard.epoch.0).arg(number.0);
            let call = call.arg(before).arg(committed.0).arg(LAYOUT);
            let mut reply = self.write_behind(put, vdisk, &keys, call).await?;
            if reply.word() == "slow" {
                let call = self.meaning(vdisk, &scripts::APPEND, &names).arg(shard.epoch.0).arg(number.0);
                reply = self.write(vdisk, &keys, call.arg(committed.0).arg("").arg("")).await?;
            }
            // Where the value was refused, it is missing.
            if !matches!(reply.word(), "unstaged" | "newer") {
                return reply.granted(number)?.identity(&keys);
            }
            metrics::counter!("tlog_redis_values_sent_again_total", "store" => self.link.address())
                .increment(1);
        }
        let mut known_damaged = Vec::new();
        for _ in 0..ATTEMPTS {
            let call = self.meaning(vdisk, &scripts::APPEND, &[&keys.log, &keys.held, &key]);
            let call = call.arg(shard.epoch.0).arg(number.0).arg(committed.0).arg(&value).arg(&known_damaged);
            let reply = self.write(vdisk, &keys, call).await?;
            let mut reply = reply.granted(number)?;
            if reply.word() == "ok" {
                return reply.identity(&keys);
            }
            // A shard in the way says that it is of a newer epoch. Rot must not fence anybody.
            known_damaged = reply.bytes()?;
            if let Some(promised) = epoch_of(&known_damaged, &key) {
                return Err(StoreErrorKind::Fenced { promised });
            }
        }
        Err(contended())
    }

    async fn filled(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: &Shard,
    ) -> Result<FillOutcome, StoreErrorKind> {
        sendable("number", number.0)?;
        let keys = Keys::of(vdisk);
        let key = keys.shard(number);
        let value = value_of(shard, &key)?;
        // Most of what is filled is empty.
        let mut replaces = Vec::new();
        for _ in 0..ATTEMPTS {
            let call = self.meaning(vdisk, &scripts::FILL, &[&keys.log, &keys.held, &key]).arg(number.0);
            let call = call.arg(&value).arg(&replaces).arg(shard.epoch.0);
            let mut reply = self.change(vdisk, &keys, call).await?.granted(number)?;
            match reply.word() {
                "stored" => return Ok(FillOutcome::Stored),
                "pruned" => return Ok(FillOutcome::AlreadyHeld),
                _ => {}
            }
            let there = shard_in(reply.bytes()?, &key);
            if there.is_some_and(|there| there.id == shard.id) {
                return Ok(FillOutcome::AlreadyHeld);
            }
            replaces = reply.bytes()?;
        }
        Err(contended())
    }

    async fn pruned(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        first: AggregationNumber,
    ) -> Result<(), StoreErrorKind> {
        sendable("epoch", epoch.0)?;
        sendable("number", first.0)?;
        let keys = Keys::of(vdisk);
        let call = self.meaning(vdisk, &scripts::PRUNE, &[&keys.log, &keys.held]).arg(epoch.0).arg(first.0);
        self.change(vdisk, &keys, call).await?.granted(first)?;
        loop {
            let sweep = scripts::SWEEP.call(&[&keys.log, &keys.held]).arg(NUMBERS_AT_ONCE);
            if self.call(sweep).await?.granted(first)?.word() == "ok" {
                return Ok(());
            }
        }
    }

    async fn deleted(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreErrorKind> {
        // Nothing is written, and the store's own epoch is never higher than this.
        let epoch = epoch.0.min(HIGHEST);
        let keys = Keys::of(vdisk);
        let mut gone = false;
        for _ in 0..ATTEMPTS {
            let call =
                self.meaning(vdisk, &scripts::DELETE, &[&keys.log, &keys.held, &keys.deleted]).arg(epoch);
            let reply = match self.change(vdisk, &keys, call).await {
                Err(StoreErrorKind::NoLog) => continue,
                answered => answered?,
            };
            gone = match reply.word() {
                "none" => true,
                "sweep" => false,
                _ => reply.granted(AggregationNumber(0)).map(|_| true)?,
            };
            self.sweep_deleted(&keys).await?;
            if gone {
                break;
            }
        }
        if !gone {
            return Err(contended());
        }
        self.known.set(vdisk, None);
        let call = scripts::UNLIST.call(&[&keys.log, VDISKS]).arg(vdisk.as_str());
        self.call(call).await?.granted(AggregationNumber(0)).map(|_| ())
    }

    async fn sweep_deleted(&self, keys: &Keys) -> Result<(), StoreErrorKind> {
        loop {
            let sweep = scripts::SWEEP_DELETED.call(&[&keys.log, &keys.deleted]).arg(NUMBERS_AT_ONCE);
            if self.call(sweep).await?.granted(AggregationNumber(0))?.word() == "ok" {
                return Ok(());
            }
        }
    }

    async fn read_heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreErrorKind> {
        let keys = Keys::of(vdisk);
        // An empty range is asked for as well: there may be no log.
        let (mut from, to) = if range.is_empty() || range.start().0 > HIGHEST {
            (1, 0)
        } else {
            (range.start().0, range.end().0.min(HIGHEST))
        };
        let (mut heads, mut bytes) = (Vec::new(), 0);
        loop {
            let call = scripts::HEADS.call(&[&keys.log, &keys.held]).arg(from).arg(to);
            let call = call.arg((max_bytes - bytes).min(BYTES_AT_ONCE)).arg(NUMBERS_AT_ONCE);
            let mut reply = self.call(call).await?.granted(AggregationNumber(from))?;
            let next = reply.number_or_none()?;
            while reply.left() > 0 {
                let number = reply.number()?;
                if number < from || number > to {
                    return Err(garbled());
                }
                from = number + 1;
                let number = AggregationNumber(number);
                let slot = match head_in(reply.bytes()?, &keys.shard(number)) {
                    Some(head) => {
                        bytes += head.head.len();
                        HeadSlot::Held(head)
                    }
                    None => HeadSlot::Damaged,
                };
                heads.push((number, slot));
                if bytes >= max_bytes {
                    return Ok(heads);
                }
            }
            match next {
                None => return Ok(heads),
                Some(next) if next < from || next > to => return Err(garbled()),
                // It found that much, or that little.
                Some(next) => from = next,
            }
        }
    }

    async fn read_shard(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
    ) -> Result<ShardSlot, StoreErrorKind> {
        let keys = Keys::of(vdisk);
        let key = keys.shard(number);
        // 0 stands for what cannot be held.
        let asked = if number.0 > HIGHEST { 0 } else { number.0 };
        let reply = self.call(scripts::SHARD.call(&[&keys.log, &keys.held, &key]).arg(asked)).await?;
        let mut reply = reply.granted(number)?;
        Ok(match reply.word() {
            "empty" => ShardSlot::Empty,
            "ok" => shard_in(reply.bytes()?, &key).map_or(ShardSlot::Damaged, ShardSlot::Held),
            _ => ShardSlot::Damaged,
        })
    }

    async fn read_parts(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Result<Option<Vec<Bytes>>, StoreErrorKind> {
        // To the server a range ends with its last byte, so that it cannot tell of an empty one.
        if number.0 > HIGHEST || parts.iter().any(Range::is_empty) {
            return Ok(None);
        }
        let keys = Keys::of(vdisk);
        let mut call = scripts::PARTS.call(&[&keys.log, &keys.held, &keys.shard(number)]).arg(number.0);
        for part in parts {
            call = call.arg(part.start).arg(part.end - 1);
        }
        let mut reply = self.call(call).await?.granted(number)?;
        if reply.word() != "ok" {
            return Ok(None);
        }
        let mut read = Vec::with_capacity(parts.len());
        for part in parts {
            let bytes = reply.bytes()?;
            if bytes.len() != part.len() {
                return Ok(None); // it is shorter
            }
            read.push(bytes.into());
        }
        Ok(Some(read))
    }

    async fn read_status(&self, vdisk: &VdiskId) -> Result<LogState, StoreErrorKind> {
        let keys = Keys::of(vdisk);
        let reply = self.call(scripts::STATUS.call(&[&keys.log, &keys.held])).await?;
        match reply.word() {
            "none" => Ok(LogState { first: AggregationNumber(1), ..LogState::default() }),
            _ => {
                let state = reply.granted(AggregationNumber(0))?.state(&keys)?;
                self.known.suggest(vdisk, state.identity);
                Ok(state)
            }
        }
    }

    async fn list_vdisks(&self) -> Result<Vec<VdiskId>, StoreErrorKind> {
        let names: Vec<Vec<u8>> = self.run(redis::cmd("SMEMBERS").arg(VDISKS), VDISKS).await?;
        let named: Vec<VdiskId> = names.iter().filter_map(|name| VdiskId::from_bytes(name).ok()).collect();
        let mut vdisks = Vec::new();
        for some in named.chunks(NAMES_AT_ONCE) {
            let logs: Vec<String> = some.iter().map(|vdisk| Keys::of(vdisk).log).collect();
            let answer = scripts::EXISTING.call(&logs).run(&self.link).await.map_err(kind_of)?;
            let Answer::Array(there) = answer else { return Err(garbled()) };
            let known = some.iter().zip(there).filter(|(_, there)| *there == Answer::Int(1));
            vdisks.extend(known.map(|(vdisk, _)| vdisk.clone()));
        }
        vdisks.sort_unstable();
        Ok(vdisks)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisStore({})", self.link.address())
    }
}

fn value_of<'a>(shard: &'a Shard, key: &str) -> Result<Value<'a>, StoreErrorKind> {
    sendable("epoch", shard.epoch.0)?;
    Value::of(shard, key).ok_or_else(|| not_sendable("a part of a shard is longer than 4 GiB".to_owned()))
}

/// Above, a script would take a number for one of its neighbours.
pub(crate) fn sendable(what: &str, number: u64) -> Result<(), StoreErrorKind> {
    if number > HIGHEST { Err(too_high(what, number)) } else { Ok(()) }
}

fn too_high(what: &str, number: u64) -> StoreErrorKind {
    not_sendable(format!("{what} {number} is above {HIGHEST}, the highest that a Redis store can keep"))
}

pub(crate) fn not_sendable(why: String) -> StoreErrorKind {
    StoreErrorKind::Unavailable { source: io::Error::new(io::ErrorKind::InvalidInput, why) }
}

pub(crate) fn contended() -> StoreErrorKind {
    let why = "other clients change what is there as fast as it is looked at";
    StoreErrorKind::Unavailable { source: io::Error::new(io::ErrorKind::ResourceBusy, why) }
}

fn new_identity() -> Result<StoreIdentity, StoreErrorKind> {
    let mut identity = [0; 16];
    getrandom::fill(&mut identity)
        .map_err(|error| StoreErrorKind::Unavailable { source: io::Error::other(error.to_string()) })?;
    Ok(StoreIdentity(identity))
}

#[async_trait]
impl ShardStore for RedisStore {
    fn address(&self) -> Arc<str> {
        self.link.address()
    }

    async fn promise(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<LogState, StoreError> {
        self.answered("promise", self.promised(vdisk, epoch).await)
    }

    async fn start(
        &self,
        vdisk: &VdiskId,
        record: StartRecord,
        members: &Members,
    ) -> Result<StoreIdentity, StoreError> {
        self.answered("start", self.started(vdisk, record, members).await)
    }

    async fn append(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        let begun = Instant::now();
        let result = self.appended(vdisk, number, &shard, committed).await;
        self.link.appends().answered(&self.link.address(), begun.elapsed(), result)
    }

    async fn publish(
        &self,
        vdisk: &VdiskId,
        epoch: Epoch,
        committed: AggregationNumber,
    ) -> Result<StoreIdentity, StoreError> {
        let keys = Keys::of(vdisk);
        let published = async {
            sendable("epoch", epoch.0)?;
            sendable("number", committed.0)?;
            let call = self.meaning(vdisk, &scripts::PUBLISH, &[&keys.log, &keys.held]);
            let call = call.arg(epoch.0).arg(committed.0);
            self.write(vdisk, &keys, call).await?.granted(committed)?.identity(&keys)
        };
        self.answered("publish", published.await)
    }

    async fn fill(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        shard: Shard,
    ) -> Result<FillOutcome, StoreError> {
        self.answered("fill", self.filled(vdisk, number, &shard).await)
    }

    async fn prune(&self, vdisk: &VdiskId, epoch: Epoch, first: AggregationNumber) -> Result<(), StoreError> {
        self.answered("prune", self.pruned(vdisk, epoch, first).await)
    }

    async fn delete(&self, vdisk: &VdiskId, epoch: Epoch) -> Result<(), StoreError> {
        self.answered("delete", self.deleted(vdisk, epoch).await)
    }

    async fn heads(
        &self,
        vdisk: &VdiskId,
        range: RangeInclusive<AggregationNumber>,
        max_bytes: usize,
    ) -> Result<Vec<(AggregationNumber, HeadSlot)>, StoreError> {
        self.answered("heads", self.read_heads(vdisk, range, max_bytes).await)
    }

    async fn shard(&self, vdisk: &VdiskId, number: AggregationNumber) -> Result<ShardSlot, StoreError> {
        self.answered("shard", self.read_shard(vdisk, number).await)
    }

    async fn payload_parts(
        &self,
        vdisk: &VdiskId,
        number: AggregationNumber,
        parts: &[Range<u32>],
    ) -> Result<Option<Vec<Bytes>>, StoreError> {
        self.answered("payload_parts", self.read_parts(vdisk, number, parts).await)
    }

    async fn status(&self, vdisk: &VdiskId) -> Result<LogState, StoreError> {
        self.answered("status", self.read_status(vdisk).await)
    }

    async fn vdisks(&self) -> Result<Vec<VdiskId>, StoreError> {
        self.answered("vdisks", self.list_vdisks().await)
    }

    async fn durability(&self) -> Result<StoreDurability, StoreError> {
        self.answered("durability", crate::durability(&self.link).await.map_err(kind_of))
    }

    fn chains(&self) -> Option<Arc<dyn ChainStore>> {
        Some(Arc::new(self.clone()))
    }
}
