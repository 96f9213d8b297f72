//! Whether all of a log is still there, and how much more may be lost.

use std::collections::BTreeMap;

use tlog_codec::{ChainBreak, ChainVerifier, Opener, VdiskKeys};
use tlog_proto::{AggregationNumber, VdiskId};
use tlog_quorum::{Candidate, HeadCandidate, ShardCondition, Standing};
use tlog_store::NumberRanges;

use crate::extent::Extent;
use crate::format1::Format1Error;
use crate::in_flight::run_bounded;
use crate::metric;
use crate::reader::LogReader;
use crate::resolve::Resolved;
use crate::verify_format1::Format1Report;
use crate::walk::Forward;

/// Bytes of memory that a deep verification takes for what it is reading, about.
const DEEP_MEMORY: u64 = 128 << 20;

/// How much is read.
#[derive(Clone, Copy, Debug)]
pub enum Depth<'a> {
    /// Head parts: proves the chain and finds what is missing. Rot in payloads is not seen. Needs no key. Of a part in format 1
    /// everything is read all the same, with the keys that the reader was opened with.
    Chain,
    /// Every byte of every shard; and every aggregation is opened and the hash of every block checked.
    Deep(&'a VdiskKeys),
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Aggregations of format 1 that were looked at; they come first. How many there are is not known before the end.
    pub format1: u64,
    /// Aggregations of format 2 that were looked at.
    pub aggregations: u64,
    /// Aggregations of format 2 that the log has.
    pub aggregations_total: u64,
    /// Blocks whose hash was checked; 0 unless deep.
    pub blocks: u64,
}

/// What it comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every store holds its whole shard of everything.
    Whole,
    /// Everything can be read, but something is missing: scrub, or bring back stores.
    Degraded,
    /// Something cannot be read from the stores in reach, or is not what was written.
    Lost {
        /// Which aggregations of format 2. Empty where all that is lost is in format 1, see [`VerifyReport::format1`].
        numbers: NumberRanges,
    },
}

/// What one store has of a log, by aggregation numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreReport {
    /// What a person calls the store.
    pub address: String,
    /// Whether it counts. The numbers below are empty where it does not.
    pub standing: Standing,
    /// Shards that it holds whole, as far as they were read.
    pub held: u64,
    /// Nothing is there.
    pub missing: NumberRanges,
    /// What is there is not what was written, or belongs to something else.
    pub damaged: NumberRanges,
    /// How that was known of the first of them.
    pub damage: Option<String>,
    /// What is there was ruled out by a later opening; the right shard is missing.
    pub ruled_out: NumberRanges,
    /// It could not be read although the store counts.
    pub unread: NumberRanges,
}

/// An aggregation has enough whole shards and does not open.
#[derive(Debug)]
pub struct ContentFault {
    /// Which aggregation.
    pub number: AggregationNumber,
    /// What is wrong with it.
    pub source: tlog_codec::OpenError,
}

/// What a verification found.
#[derive(Debug)]
pub struct VerifyReport {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// What was found in the part of the log that is in format 1; none where it has no such part. Everything else here, but for
    /// the verdict and the losses survived, is about format 2.
    pub format1: Option<Format1Report>,
    /// Which aggregations the log has, and whether its end is certain.
    pub extent: Extent,
    /// Whether payloads were read and aggregations opened.
    pub deep: bool,
    /// Aggregations that were looked at.
    pub aggregations: u64,
    /// Blocks in them, by their headers.
    pub blocks: u64,
    /// Blocks whose hash was checked.
    pub blocks_checked: u64,
    /// Where the chain is broken.
    pub chain_breaks: Vec<ChainBreak>,
    /// What does not open. Empty unless deep.
    pub content_faults: Vec<ContentFault>,
    /// The stores, in order.
    pub stores: Vec<StoreReport>,
    /// So many more of the stores may be lost, whichever, and everything can still be read. None where something is lost
    /// already, or the log is empty.
    pub losses_survived: Option<usize>,
    /// What it comes to.
    pub verdict: Verdict,
}

/// A verification cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A key is not there, so nothing can be said about what was sealed under it.
    #[error("vdisk {vdisk}, aggregation {number}: {source}")]
    Key {
        /// The vdisk.
        vdisk: VdiskId,
        /// Which aggregation.
        number: AggregationNumber,
        /// Which key.
        #[source]
        source: tlog_codec::OpenError,
    },
    /// The reader was opened without the keys of format 1, and the log begins in it.
    #[error(transparent)]
    Format1Keys(#[from] Format1Error),
}

impl LogReader {
    /// Looks at every aggregation of the log on every store. What is lost, missing or damaged is in the report; an error is
    /// only what makes that impossible. `progress` is called now and then.
    pub async fn verify(
        &self,
        depth: Depth<'_>,
        mut progress: impl FnMut(&VerifyProgress) + Send,
    ) -> Result<VerifyReport, VerifyError> {
        let mut tally = Tally::new(self, matches!(depth, Depth::Deep(_)));
        let mut so_far = tally.progress();
        let format1 = self.verify_format1(|report| {
            so_far.format1 = report.aggregations;
            progress(&so_far);
        });
        tally.report.format1 = format1.await?;
        let mut walk = Forward::new(self.clone(), self.extent().first, self.extent().last);
        progress(&tally.progress());
        loop {
            let run = walk.next().await;
            if run.is_empty() {
                break;
            }
            for resolved in &run {
                tally.handle_chain(resolved);
            }
            match depth {
                Depth::Chain => {
                    for Resolved { number, chosen, conditions, .. } in run {
                        let head = chosen.as_ref();
                        tally.handle(Looked::at_heads(number, head, conditions));
                    }
                    progress(&tally.progress());
                }
                Depth::Deep(keys) => {
                    let opener = Opener::new(keys.clone());
                    let jobs = run.into_iter().map(|resolved| (cost(&resolved), resolved));
                    run_bounded(
                        jobs,
                        DEEP_MEMORY,
                        |resolved| self.look_deep(resolved, &opener),
                        |looked| {
                            tally.handle(looked);
                            progress(&tally.progress());
                        },
                    )
                    .await?;
                }
            }
        }
        Ok(tally.finish(self).await)
    }

    async fn look_deep(&self, resolved: Resolved, opener: &Opener) -> Result<Looked, VerifyError> {
        let Resolved { number, chosen, conditions, .. } = resolved;
        let Some(HeadCandidate { head, .. }) = &chosen else {
            return Ok(Looked::at_heads(number, None, conditions));
        };
        let (candidates, conditions) = self.stores().all_shards(self.survey(), number).await;
        let mut looked = Looked::at_heads(number, chosen.as_ref(), conditions);
        let candidate = candidates.into_iter().find(|candidate| candidate.head.id == head.id);
        let Some(candidate) = candidate.filter(Candidate::is_whole) else { return Ok(looked) };
        let opener = opener.clone();
        match crate::restore::blocking(move || opener.blocks(&candidate.head, &candidate.payloads)).await {
            Ok(blocks) => looked.blocks_checked = blocks.len() as u64,
            Err(source @ tlog_codec::OpenError::Key(_)) => {
                return Err(VerifyError::Key { vdisk: self.vdisk().clone(), number, source });
            }
            Err(source) => looked.fault = Some(ContentFault { number, source }),
        }
        Ok(looked)
    }
}

/// Bytes of memory that looking at all its shards takes, about.
fn cost(resolved: &Resolved) -> u64 {
    resolved.chosen.as_ref().map_or(0, |chosen| {
        let header = &chosen.head.header;
        let shards = u64::from(header.payload_len) * header.redundancy.total() as u64;
        shards.saturating_add((header.body_sealed + header.body_plain).saturating_mul(2))
    })
}

/// What was found under one number.
struct Looked {
    number: AggregationNumber,
    blocks: u64,
    blocks_checked: u64,
    /// Shards that may be lost; none where it is lost.
    spare: Option<usize>,
    conditions: Vec<Shard>,
    fault: Option<ContentFault>,
}

/// What a store has, after it is known what it should have.
enum Shard {
    Held,
    Missing,
    RuledOut,
    Damaged(String),
    Unread,
}

impl Looked {
    fn at_heads(
        number: AggregationNumber,
        chosen: Option<&HeadCandidate>,
        found: Vec<ShardCondition>,
    ) -> Self {
        let shard = |condition| match condition {
            ShardCondition::Held(id) if chosen.is_some_and(|c| c.head.id == id) => Shard::Held,
            ShardCondition::Held(id) => {
                Shard::Damaged(format!("it is a shard of {id}, which is not in the log"))
            }
            ShardCondition::RuledOut(_) => Shard::RuledOut,
            ShardCondition::Missing => Shard::Missing,
            ShardCondition::Damaged(how) => Shard::Damaged(how),
            ShardCondition::Unreachable => Shard::Unread,
        };
        let conditions: Vec<Shard> = found.into_iter().map(shard).collect();
        let held = conditions.iter().filter(|shard| matches!(shard, Shard::Held)).count();
        let header = chosen.map(|c| &c.head.header);
        Self {
            number,
            blocks: header.map_or(0, |header| header.block_count.into()),
            blocks_checked: 0,
            spare: header.and_then(|header| held.checked_sub(header.redundancy.data())),
            conditions,
            fault: None,
        }
    }
}

/// The report while it grows. Chain and shards are handled on their own: the chain in order, shards as they were read.
struct Tally {
    chain: ChainVerifier,
    /// Fewer than k shards of what the chain was last proven to are in reach.
    before_is_lost: bool,
    spare: BTreeMap<usize, u64>,
    lost: NumberRanges,
    report: VerifyReport,
}

impl Tally {
    fn new(reader: &LogReader, deep: bool) -> Self {
        let extent = reader.extent().clone();
        let chain = reader.chain_from(extent.first);
        let stores = reader.survey().views.iter().map(|view| StoreReport {
            address: view.address.clone(),
            standing: view.standing,
            held: 0,
            missing: NumberRanges::new(),
            damaged: NumberRanges::new(),
            damage: None,
            ruled_out: NumberRanges::new(),
            unread: NumberRanges::new(),
        });
        let report = VerifyReport {
            vdisk: reader.vdisk().clone(),
            format1: None,
            deep,
            aggregations: 0,
            blocks: 0,
            blocks_checked: 0,
            chain_breaks: Vec::new(),
            content_faults: Vec::new(),
            stores: stores.collect(),
            losses_survived: None,
            verdict: Verdict::Whole,
            extent,
        };
        Self { chain, before_is_lost: false, spare: BTreeMap::new(), lost: NumberRanges::new(), report }
    }

    fn progress(&self) -> VerifyProgress {
        let VerifyReport { aggregations, blocks_checked, extent, .. } = &self.report;
        VerifyProgress {
            format1: self.report.format1.as_ref().map_or(0, |report| report.aggregations),
            aggregations: *aggregations,
            aggregations_total: extent.count(),
            blocks: *blocks_checked,
        }
    }

    fn handle_chain(&mut self, resolved: &Resolved) {
        let Some(chosen) = &resolved.chosen else {
            // What follows a lost one is taken on trust.
            self.chain = ChainVerifier::from_pruned(resolved.number.next());
            return;
        };
        if let Err(broken) = self.chain.handle(&chosen.head) {
            self.report.chain_breaks.push(broken);
            // Where the one before is lost anyway, what is left of it is what does not fit.
            if !self.before_is_lost {
                self.lost.insert(resolved.number);
            }
            self.chain = ChainVerifier::after(resolved.number.next(), chosen.head.id);
        }
        self.before_is_lost = chosen.holders.len() < chosen.head.header.redundancy.data();
    }

    fn handle(&mut self, looked: Looked) {
        let Looked { number, blocks, blocks_checked, spare, conditions, fault } = looked;
        self.report.aggregations += 1;
        self.report.blocks += blocks;
        self.report.blocks_checked += blocks_checked;
        match spare {
            Some(spare) if fault.is_none() => *self.spare.entry(spare).or_default() += 1,
            _ => self.lost.insert(number),
        }
        self.report.content_faults.extend(fault);
        for (store, shard) in self.report.stores.iter_mut().zip(conditions) {
            if store.standing != Standing::Member {
                continue;
            }
            match shard {
                Shard::Held => store.held += 1,
                Shard::Missing => store.missing.insert(number),
                Shard::RuledOut => store.ruled_out.insert(number),
                Shard::Unread => store.unread.insert(number),
                Shard::Damaged(how) => {
                    store.damaged.insert(number);
                    store.damage.get_or_insert(how);
                }
            }
        }
    }

    async fn finish(mut self, reader: &LogReader) -> VerifyReport {
        let all_there = |store: &StoreReport| {
            store.standing == Standing::Member
                && store.missing.is_empty()
                && store.damaged.is_empty()
                && store.ruled_out.is_empty()
                && store.unread.is_empty()
        };
        if !self.report.stores.iter().all(all_there) {
            self.forget_pruned(reader).await;
        }
        let whole = self.report.stores.iter().all(all_there) && self.report.extent.uncertain.is_none();
        self.report.content_faults.sort_by_key(|fault| fault.number);
        let format1 = self.report.format1.as_ref();
        let nothing_lost = self.lost.is_empty() && format1.is_none_or(|report| report.broken.is_none());
        let whole = whole && format1.is_none_or(Format1Report::is_whole);
        if nothing_lost {
            let of_format2 = self.spare.first_key_value().map(|(spare, _)| *spare);
            let of_format1 = format1.and_then(|report| report.losses_survived);
            self.report.losses_survived = of_format2.into_iter().chain(of_format1).min();
        }
        self.report.verdict = match (nothing_lost, whole) {
            (true, true) => Verdict::Whole,
            (true, false) => Verdict::Degraded,
            (false, _) => {
                metric::data_lost(self.lost.count());
                Verdict::Lost { numbers: self.lost }
            }
        };
        self.report
    }

    /// What was pruned while it was looked at is not missing.
    async fn forget_pruned(&mut self, reader: &LogReader) {
        let first = reader.stores().survey().await.first();
        if first <= self.report.extent.first {
            return;
        }
        self.report.extent.first = first;
        let pruned = AggregationNumber(0)..=first.previous().unwrap_or_default();
        self.lost.remove_range(pruned.clone());
        for store in &mut self.report.stores {
            for numbers in [&mut store.missing, &mut store.damaged, &mut store.ruled_out, &mut store.unread] {
                numbers.remove_range(pruned.clone());
            }
        }
    }
}
