//! Opening a log for reading.

use std::fmt;
use std::sync::Arc;

use tlog_codec::format1::Keys;
use tlog_proto::{AggregationId, AggregationNumber, VdiskId};
use tlog_quorum::{
    Candidate, ChainEndError, Link, LinkError, LinkRead, NotOpened, OtherShape, Pacer, ReadError,
    ShardCondition, Standing, StoreSet, Survey, TooFewStores,
};
use tlog_store::NumberRanges;

use crate::extent::{Extent, determine};
use crate::format1::{
    Before, Format1Error, Format1Progress, Format1Walk, OnProgress, count_read, may_be_back,
};
use crate::history::HistoryError;
use crate::metric;
use crate::restore::blocking;
use crate::walk::Forward;

/// A vdisk's log as it was when it was opened for reading. What is written or pruned afterwards it does not see; open
/// another one for that. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader {
    /// As they were given: with the quorums of the settings.
    given: StoreSet,
    /// With those that the log needs.
    stores: StoreSet,
    survey: Arc<Survey>,
    extent: Extent,
    last_id: Option<AggregationId>,
    before: Before,
    /// What opens history of format 1, should there be any.
    format1: Option<Keys>,
    on_progress: Option<OnProgress>,
    pacer: Option<Arc<Pacer>>,
}

/// A log cannot be opened for reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// No store in reach knows the vdisk.
    UnknownVdisk {
        /// The vdisk.
        vdisk: VdiskId,
        /// Stores that do not answer, and why. With as many as did answer, an acknowledged write would be known.
        unreachable: Vec<String>,
    },
    /// Too few stores answer, or count, to know what was acknowledged.
    TooFewStores(TooFewStores),
    /// The log has other numbers of shards than it is read with.
    OtherShape(OtherShape),
    /// All there is is history of format 1, and the keys to read it were not given.
    Format1KeysMissing {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// All there is is history of format 1, and nothing of it can be read.
    Format1End(ChainEndError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::UnknownVdisk { vdisk, unreachable } => {
                write!(f, "vdisk {vdisk} is not known: nothing was ever logged for it on these stores")?;
                if !unreachable.is_empty() {
                    write!(f, " (not asked: {})", unreachable.join("; "))?;
                }
                write!(f, "; check its name and the storage settings")
            }
            OpenError::TooFewStores(error) => error.fmt(f),
            OpenError::OtherShape(error) => error.fmt(f),
            OpenError::Format1KeysMissing { vdisk } => write!(
                f,
                "vdisk {vdisk}: its history is one of format 1; set private-key and nonce, those of the server that wrote it"
            ),
            OpenError::Format1End(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::TooFewStores(error) => Some(error),
            OpenError::Format1End(error) => Some(error),
            _ => None,
        }
    }
}

impl LogReader {
    /// Asks all stores what they have and finds where the log begins and ends. Needs no key, promises nothing and changes
    /// nothing. Data that is lost in the middle is no error here, but when it is read.
    ///
    /// Where the log began in format 1, use [`LogReader::open_with`].
    pub async fn open(stores: StoreSet) -> Result<Self, OpenError> {
        Self::open_with(stores, None).await
    }

    /// The same, with what opens history of format 1, should there be any. Nobody has to say whether there is: where the log has
    /// aggregations of format 2 the first of them tells, else the stores' lists. Without `format1` what is in format 2 can be read
    /// as far as it does not take what is before it.
    pub async fn open_with(stores: StoreSet, format1: Option<Keys>) -> Result<Self, OpenError> {
        let given = stores;
        let (stores, survey) = surveyed(&given).await?;
        let may_have_format1 = stores.may_have_chain();
        let before = if may_have_format1 { Before::Unknown } else { Before::Nothing };
        let (extent, last_id) = determine(&stores, &survey, before.id()).await;
        let is_unknown = survey.is_new() && survey.identities().iter().all(Option::is_none);
        let mut reader = Self {
            given,
            stores,
            survey: Arc::new(survey),
            extent,
            last_id,
            before,
            format1,
            on_progress: None,
            pacer: None,
        };
        if may_have_format1 {
            reader.before = reader.find_before().await?;
        }
        if is_unknown && reader.before.chain().is_none() {
            let unreachable = reader.survey.views.iter().filter_map(|view| view.answer.as_ref().err());
            return Err(OpenError::UnknownVdisk {
                vdisk: reader.vdisk().clone(),
                unreachable: unreachable.map(ToString::to_string).collect(),
            });
        }
        let Extent { first, last, uncertain, .. } = &reader.extent;
        tracing::debug!(vdisk = %reader.vdisk(), first = first.0, last = last.0, uncertain = uncertain.is_some(),
            format1 = reader.has_format1(), "log opened for reading");
        Ok(reader)
    }

    /// The log as it is now. Cheaper than opening it anew: what is before aggregation 1 is known already, once there is one.
    pub async fn refreshed(&self) -> Result<Self, OpenError> {
        let (stores, survey) = surveyed(&self.given).await?;
        let (extent, last_id) = determine(&stores, &survey, self.before.id()).await;
        let mut reader = Self { stores, survey: Arc::new(survey), extent, last_id, ..self.clone() };
        if (self.extent.is_empty() || reader.extent.is_empty()) && reader.stores.may_have_chain() {
            reader.before = reader.find_before().await?;
        }
        Ok(reader)
    }

    /// What is before aggregation 1.
    async fn find_before(&self) -> Result<Before, OpenError> {
        let keys = self.format1.clone();
        if self.extent.is_empty() && self.extent.first.0 <= 1 {
            return Before::of_lists(&self.stores, keys).await;
        }
        if self.extent.first.0 > 1 {
            return Ok(Before::Nothing); // pruned, and with it whatever was before
        }
        let first = Forward::new(self.clone(), AggregationNumber(1), AggregationNumber(1)).next().await;
        let first = first.first().and_then(|resolved| resolved.chosen.as_ref());
        // Where it is lost, that is what reading finds out first.
        let anchor = first.map_or(AggregationId::BEFORE_FIRST, |first| first.head.header.prev);
        Ok(Before::of_anchor(anchor, keys))
    }

    /// Whether the log begins with history of format 1.
    pub fn has_format1(&self) -> bool {
        self.before.chain().is_some()
    }

    /// Aggregations of format 1 that may have been acknowledged and cannot be read from the stores in reach; they lie beyond the
    /// end of the log. Empty where the log has gone on in format 2.
    pub fn format1_doubts(&self) -> &[LinkError] {
        self.before.chain().map(|chain| chain.doubts.as_slice()).unwrap_or_default()
    }

    /// Has it told how far it is, while it reads history of format 1: that takes all bytes of it, and one aggregation after
    /// the other.
    #[must_use]
    pub fn on_format1_progress(self, tell: impl Fn(&Format1Progress) + Send + Sync + 'static) -> Self {
        Self { on_progress: Some(OnProgress(Arc::new(tell))), ..self }
    }

    /// Has it read no faster than that, with whoever else shares the pacer: what a disk state and a restore read counts, of both
    /// formats. Everything that is read at once may be read before the first wait.
    #[must_use]
    pub fn paced(self, pacer: Arc<Pacer>) -> Self {
        Self { pacer: Some(pacer), ..self }
    }

    /// So many bytes were read: waits where that was too fast.
    pub(crate) async fn keep_pace(&self, bytes: u64) {
        if let Some(pacer) = &self.pacer {
            pacer.read(bytes).await;
        }
    }

    pub(crate) fn before(&self) -> &Before {
        &self.before
    }

    /// A walk over the part of the log that is in format 1, from new to old; none where it has no such part.
    pub(crate) fn format1_walk(&self, read: LinkRead) -> Result<Option<Format1Walk>, Format1Error> {
        let chain = self.before.chain();
        chain.map(|chain| Format1Walk::new(&self.stores, chain, read, self.on_progress.clone())).transpose()
    }

    /// The vdisk.
    pub fn vdisk(&self) -> &VdiskId {
        self.stores.vdisk()
    }

    /// Which aggregations of format 2 the log has, and whether that is certain.
    pub fn extent(&self) -> &Extent {
        &self.extent
    }

    /// The id of the last aggregation, which stands for everything before it; none where the log is empty, or no store in
    /// reach has it any more.
    pub fn last_id(&self) -> Option<AggregationId> {
        self.last_id.filter(|_| !self.extent.is_empty())
    }

    /// The stores that it reads from.
    pub fn stores(&self) -> &StoreSet {
        &self.stores
    }

    /// What the stores said when it was opened.
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Addresses of stores that answer, but were wiped or replaced, and of those that do not answer.
    pub fn absent_stores(&self) -> Vec<(String, Standing)> {
        let absent = self.survey.views.iter().filter(|view| view.standing != Standing::Member);
        absent.map(|view| (view.address.clone(), view.standing)).collect()
    }

    /// Reads enough shards of an aggregation of the log and opens it: `open` is called, where `opens` says, until it answers something; what it takes is proven by that alone. Asks the stores once more before it gives up: one may be back,
    /// and another may have been pruned. Answers how many bytes of shards were read, too.
    pub(crate) async fn fetch<T: Send + 'static>(
        &self,
        number: AggregationNumber,
        id: AggregationId,
        opens: Opens,
        open: impl Fn(&Candidate) -> Result<T, tlog_codec::OpenError> + Send + Sync + 'static,
    ) -> Result<(T, u64), Unreadable> {
        let open = Arc::new(open);
        let opening = |candidate: Candidate| {
            let open = Arc::clone(&open);
            async move {
                match opens == Opens::InTask && candidate.body_bytes() <= OPENED_IN_TASK {
                    true => open(&candidate),
                    false => blocking(move || open(&candidate)).await,
                }
            }
        };
        let read = match self.stores.opened(&self.survey, number, id, opening).await {
            Err(NotOpened::Unreadable(error)) => {
                tracing::warn!(vdisk = %self.vdisk(), number = number.0, %error, "asking the stores again");
                metric::read_repeated();
                let survey = self.stores.survey().await;
                if survey.first() > number {
                    return Err(Unreadable::Pruned { first: survey.first() });
                }
                self.stores.opened(&survey, number, id, opening).await
            }
            read => read,
        };
        let (candidate, opened) = read.map_err(|error| match error {
            NotOpened::Unreadable(error) => Unreadable::Lost(error),
            NotOpened::Refused(error) => Unreadable::Refused(error),
        })?;
        let bytes = candidate.payloads.iter().flatten().map(|payload| payload.len() as u64).sum();
        metric::aggregation_read(bytes);
        if candidate.payloads.iter().take(candidate.head.header.redundancy.data()).any(Option::is_none) {
            metric::aggregation_made_up();
        }
        self.keep_pace(bytes).await;
        Ok((opened, bytes))
    }

    /// Reads an aggregation of format 1 of the log; asks the stores once more before it gives up.
    pub(crate) async fn fetch_link(&self, id: AggregationId) -> Result<Link, Format1Error> {
        let (vdisk, chain) = (self.vdisk(), self.before.chain());
        let Some(keys) = chain.and_then(|chain| chain.keys.as_ref()) else {
            return Err(Format1Error::KeysMissing { vdisk: vdisk.clone(), newest: id });
        };
        let mut read = self.stores.link(id, keys, LinkRead::Enough).await;
        if let Err(error) = &read
            && may_be_back(&error.fault)
        {
            tracing::warn!(%error, "asking the stores again");
            metric::read_repeated();
            read = self.stores.link(id, keys, LinkRead::Enough).await;
        }
        let link = read.map_err(|source| Format1Error::Unreadable { source })?;
        self.keep_pace(count_read(&link)).await;
        Ok(link)
    }

    /// The error for numbers that no store in reach has the right head of any more, by what was found under the first.
    pub(crate) async fn lost(&self, numbers: NumberRanges, conditions: &[ShardCondition]) -> HistoryError {
        let first_lost = numbers.first().unwrap_or_default();
        let first = self.stores.survey().await.first();
        if first > first_lost {
            return HistoryError::Pruned { vdisk: self.vdisk().clone(), first };
        }
        metric::data_lost(numbers.count());
        let source = self.stores.unreadable(first_lost, &[], conditions);
        HistoryError::DataLost { vdisk: self.vdisk().clone(), numbers, source }
    }
}

/// What enough stores say for reading, and the stores with the quorums that the log needs.
async fn surveyed(given: &StoreSet) -> Result<(StoreSet, Survey), OpenError> {
    let survey = given.survey().await;
    given.check_shape(&survey).map_err(OpenError::OtherShape)?;
    let stores = given.as_written(&survey);
    survey.require(stores.quorums().reading()).map_err(OpenError::TooFewStores)?;
    Ok((stores, survey))
}

/// Where an aggregation is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opens {
    /// On a thread for what computes or blocks for long.
    OnThread,
    /// In the task that asks, which has nothing else to do meanwhile; but for large ones. Going to a thread and back costs about as much
    /// as a tenth of opening 100 KB.
    InTask,
}

/// Bytes of a body that is opened in a task: half a millisecond for which others wait.
const OPENED_IN_TASK: u64 = 1 << 20;

/// Why an aggregation could not be fetched.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// Too few shards.
    Lost(ReadError),
    /// It does not open: the key is not there, or is not the right one.
    Refused(tlog_codec::OpenError),
    /// Removed since the log was opened.
    Pruned {
        /// Lowest number that is kept now.
        first: AggregationNumber,
    },
}
