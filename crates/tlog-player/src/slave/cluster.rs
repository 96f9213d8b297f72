//! The stores of a slave, for one vdisk.

use std::fmt;
use std::sync::Arc;

use futures::future::{join_all, try_join_all};
use tlog_proto::{BlockIndex, Epoch, VdiskId};
use tlog_store::StoreError;
use tlog_store::slave::{
    BlockChange, Claim, FillId, PartState, RecordState, SlaveMark, SlaveOutcome, SlaveOwner, SlavePart,
    SlavePoint, SlavePosition, SlaveRecord, SlaveStep, SlaveStore,
};

/// Who commands are to the stores: they hold a slave no longer than they run, so that a syncer may go on after them.
pub(crate) const COMMAND: SlaveOwner = SlaveOwner([0; 16]);

/// How often a stop is tried while syncers take the slave.
const MOST_STOPS: u32 = 8;

/// The stores of a slave, for one vdisk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SlaveCluster {
    vdisk: VdiskId,
    data: Arc<[Arc<dyn SlaveStore>]>,
    metadata: Arc<dyn SlaveStore>,
}

/// What all stores of a slave have; what each of them said where not all answer.
#[derive(Debug)]
pub struct SlaveSurvey {
    /// The metadata store: its address and what it said.
    pub record: (String, Result<RecordState, StoreError>),
    /// The data stores, in order.
    pub parts: Vec<(String, Result<PartState, StoreError>)>,
}

/// What all stores of a slave have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlaveState {
    /// Address of the metadata store.
    pub metadata: String,
    /// What it has.
    pub record: RecordState,
    /// Address of each data store, and what it has.
    pub parts: Vec<(String, PartState)>,
}

/// An operation on a slave failed.
#[derive(Debug, thiserror::Error)]
pub enum SlaveError {
    /// A store failed; or another took the slave over ([`StoreError::is_fenced`]).
    #[error("slave: {0}")]
    Store(#[from] StoreError),
    /// A store is not any more as it was a moment ago.
    #[error(
        "slave: store {address} has forgotten what it was told a moment ago: it was wiped, or set back by a restart"
    )]
    Changed {
        /// The store.
        address: String,
    },
    /// A restore has not filled it completely.
    #[error(
        "vdisk {vdisk}: the slave holds half of a restored disk; let the restore finish, or begin it again, first"
    )]
    HalfRestored {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// The system gives no random numbers.
    #[error("cannot make a name for a fill: {0}")]
    Random(String),
}

impl SlaveError {
    /// Whether another has taken the slave over.
    pub fn is_fenced(&self) -> bool {
        matches!(self, SlaveError::Store(error) if error.is_fenced())
    }
}

impl SlaveSurvey {
    /// What all stores have; none where not all answer.
    pub fn state(&self) -> Option<SlaveState> {
        let parts =
            self.parts.iter().map(|(address, part)| Some((address.clone(), part.as_ref().ok()?.clone())));
        let record = self.record.1.as_ref().ok()?.clone();
        Some(SlaveState { metadata: self.record.0.clone(), record, parts: parts.collect::<Option<_>>()? })
    }

    /// What all stores have; what the first said that did not answer.
    pub fn into_state(self) -> Result<SlaveState, StoreError> {
        let Self { record: (metadata, record), parts } = self;
        let parts = parts.into_iter().map(|(address, part)| Ok((address, part?)));
        Ok(SlaveState { metadata, record: record?, parts: parts.collect::<Result<_, StoreError>>()? })
    }
}

impl SlaveState {
    /// Blocks on all data stores.
    pub fn blocks(&self) -> u64 {
        self.parts.iter().map(|(_, part)| part.blocks).sum()
    }

    /// How far the log is applied, at least; none where no fill is complete.
    pub fn position(&self) -> Option<SlavePosition> {
        self.record.record.position
    }

    /// Whether a syncer may write.
    pub fn mark(&self) -> &SlaveMark {
        &self.record.record.mark
    }

    /// Whether every data store has promised what the metadata store has, so that a stop cannot be forgotten unnoticed.
    pub(crate) fn is_promised_by_all(&self) -> bool {
        self.parts.iter().all(|(_, part)| part.epoch == self.record.epoch)
    }

    pub(crate) fn highest_epoch(&self) -> Epoch {
        let parts = self.parts.iter().map(|(_, part)| part.epoch);
        parts.max().unwrap_or_default().max(self.record.epoch)
    }
}

impl SlaveCluster {
    /// The slave of a vdisk. None where there is no data store.
    pub fn new(
        vdisk: VdiskId,
        data: Vec<Arc<dyn SlaveStore>>,
        metadata: Arc<dyn SlaveStore>,
    ) -> Option<Self> {
        (!data.is_empty()).then(|| Self { vdisk, data: data.into(), metadata })
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        &self.vdisk
    }

    /// The data stores, in order.
    pub fn data(&self) -> &[Arc<dyn SlaveStore>] {
        &self.data
    }

    /// Which data store a block is on.
    pub fn store_of(&self, index: BlockIndex) -> usize {
        (index.get() % self.data.len() as u64) as usize
    }

    /// Asks all stores what they have, whether all answer or not. Changes nothing.
    pub async fn survey(&self) -> SlaveSurvey {
        let part = |store: &Arc<dyn SlaveStore>| {
            let store = Arc::clone(store);
            async move { (store.address().to_string(), store.part(&self.vdisk).await) }
        };
        let (record, parts) =
            futures::future::join(self.metadata.record(&self.vdisk), join_all(self.data.iter().map(part)))
                .await;
        SlaveSurvey { record: (self.metadata.address().to_string(), record), parts }
    }

    /// What all stores have. Changes nothing.
    pub async fn state(&self) -> Result<SlaveState, SlaveError> {
        Ok(self.survey().await.into_state()?)
    }

    /// Says that the slave is somebody's primary from now on: whoever applies a log to it is fenced, and nobody may begin to, also
    /// after restarts, until [`Self::start`]. Answers when every store knows.
    pub async fn stop(&self) -> Result<(), SlaveError> {
        let mut tries = 1;
        loop {
            match self.try_stop().await {
                // A syncer that was fenced by this came back before the mark was there.
                Err(error) if error.is_fenced() && tries < MOST_STOPS => tries += 1,
                stopped => return stopped,
            }
        }
    }

    async fn try_stop(&self) -> Result<(), SlaveError> {
        let half = SlaveError::HalfRestored { vdisk: self.vdisk.clone() };
        let state = self.state().await?;
        if let SlaveMark::Restoring(_) = state.mark() {
            return Err(half);
        }
        let epoch = self.promise(&state, COMMAND, Claim::Over).await?;
        // From here on nobody else keeps a record; before, a syncer may have, and the position must not step back.
        let record = self.metadata.record(&self.vdisk).await?.record;
        if let SlaveMark::Restoring(_) = record.mark {
            return Err(half);
        }
        // The mark first: who is fenced looks why.
        self.keep(epoch, &SlaveRecord { mark: SlaveMark::Stopped, ..record }).await?;
        self.raise(epoch).await?;
        tracing::info!(vdisk = %self.vdisk, "the slave is stopped: nothing is applied to it any more");
        Ok(())
    }

    /// Has every data store of a stopped slave promise what the metadata store has: a stop may have been interrupted before that, and
    /// until then nobody would notice a metadata store that forgets it.
    pub(crate) async fn settle_stop(&self, state: &SlaveState) -> Result<(), SlaveError> {
        let epoch = state.record.epoch;
        let parts = self.data.iter().zip(&state.parts);
        let behind = parts.filter(|(_, (_, part))| part.epoch < epoch).map(|(store, _)| store);
        let raise = async |store: &Arc<dyn SlaveStore>| match store.raise(&self.vdisk, epoch).await {
            // Somebody else did it meanwhile.
            Err(error) if error.is_fenced() => Ok(()),
            raised => raised,
        };
        try_join_all(behind.map(raise)).await?;
        Ok(())
    }

    /// Takes [`Self::stop`] back. Where the caller does not vouch that nothing was written to the slave meanwhile, its position is
    /// forgotten, and it needs a resync.
    pub async fn start(&self, vouch_unchanged: bool) -> Result<(), SlaveError> {
        let state = self.state().await?;
        if *state.mark() != SlaveMark::Stopped {
            return Ok(());
        }
        let epoch = self.promise(&state, COMMAND, Claim::Over).await?;
        let mut record = SlaveRecord { mark: SlaveMark::Running, ..state.record.record };
        if !vouch_unchanged {
            if record.fill.is_none() {
                // What an existing server's syncer has left is not to be adopted either.
                record.fill = Some(new_fill()?);
            }
            (record.position, record.applied) = (None, Vec::new());
        }
        self.keep(epoch, &record).await
    }

    /// Has an epoch promised that is higher than all on the metadata store, which decides between two who ask. [`Self::raise`] is
    /// next: only then nobody else can write.
    pub(crate) async fn promise(
        &self,
        state: &SlaveState,
        owner: SlaveOwner,
        claim: Claim,
    ) -> Result<Epoch, SlaveError> {
        let epoch = state.highest_epoch().next();
        self.metadata.promise(&self.vdisk, epoch, owner, claim).await?;
        Ok(epoch)
    }

    /// Has it promised on all data stores.
    pub(crate) async fn raise(&self, epoch: Epoch) -> Result<(), SlaveError> {
        try_join_all(self.data.iter().map(|store| store.raise(&self.vdisk, epoch))).await?;
        Ok(())
    }

    pub(crate) async fn keep(&self, epoch: Epoch, record: &SlaveRecord) -> Result<(), SlaveError> {
        let outcome = self.metadata.keep(&self.vdisk, epoch, record).await?;
        done(&self.metadata, outcome)
    }

    /// Says on all data stores that they belong to a fill.
    pub(crate) async fn begin(
        &self,
        epoch: Epoch,
        fill: FillId,
        applied: Option<SlavePoint>,
    ) -> Result<(), SlaveError> {
        let stores = self.data.len() as u32;
        let begin = async |(index, store): (u32, &Arc<dyn SlaveStore>)| {
            let part = SlavePart { fill, index, stores, applied };
            done(store, store.begin(&self.vdisk, epoch, &part).await?)
        };
        try_join_all((0..).zip(self.data.iter()).map(begin)).await.map(drop)
    }

    /// Removes all blocks.
    pub(crate) async fn clear(&self, epoch: Epoch) -> Result<(), SlaveError> {
        let clear = async |store: &Arc<dyn SlaveStore>| done(store, store.clear(&self.vdisk, epoch).await?);
        try_join_all(self.data.iter().map(clear)).await.map(drop)
    }

    /// Changes blocks of one data store, and how far the log is applied to it.
    pub(crate) async fn apply(
        &self,
        store: usize,
        epoch: Epoch,
        step: &SlaveStep,
        changes: &[BlockChange],
    ) -> Result<(), SlaveError> {
        let Some(store) = self.data.get(store) else { return Ok(()) };
        done(store, store.apply(&self.vdisk, epoch, step, changes).await?)
    }
}

pub(crate) fn new_fill() -> Result<FillId, SlaveError> {
    FillId::random().map_err(|error| SlaveError::Random(error.to_string()))
}

fn done(store: &Arc<dyn SlaveStore>, outcome: SlaveOutcome) -> Result<(), SlaveError> {
    match outcome {
        SlaveOutcome::Done => Ok(()),
        SlaveOutcome::Changed => Err(SlaveError::Changed { address: store.address().to_string() }),
    }
}

impl fmt::Display for SlaveCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.data.iter().map(|store| store.address().to_string()).collect();
        f.write_str(&addresses.join(", "))
    }
}
