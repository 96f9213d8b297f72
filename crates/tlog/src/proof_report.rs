//! What a proof that a disk can be restored says, as it is kept, shown as JSON and told to a person.

use std::fmt;

use serde::{Deserialize, Serialize};
use tlog_player::{DiskStateError, MomentReached, Proof, ProveError, ProveFault};
use tlog_proto::Timestamp;

use crate::moment;
use crate::settings::show_size;
use crate::words;

/// A disk that can be restored: what was proven of it, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProofReport {
    /// The vdisk.
    pub vdisk: String,
    /// "proven"; "degraded" where a store took no part, or it cannot be told whether later writes were acknowledged.
    pub verdict: String,
    /// When it was begun: what was in the log then is what was proven. Nanoseconds since 1970.
    pub began_ns: u64,
    /// How long it took.
    pub seconds: f64,
    /// Where in the log the proven moment is; none where the log is empty.
    pub moment: Option<ProvenMoment>,
    /// Highest aggregation that the log certainly had.
    pub last_aggregation: u64,
    /// First aggregation of which it could not be told whether it was acknowledged.
    pub uncertain_beyond: Option<u64>,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes up to where content ends.
    pub length: u64,
    /// Blocks that have content.
    pub blocks: u64,
    /// Bytes of that.
    pub bytes: u64,
    /// Aggregations that were read.
    pub aggregations_read: u64,
    /// What the content is, in hexadecimal digits.
    pub digest: String,
    /// Stores that took no part.
    pub absent_stores: Vec<String>,
}

/// Where in a log a moment is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProvenMoment {
    /// Timestamp of the last block that is part of it, as a person reads it.
    pub time: String,
    /// The same in nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// Format in which that is stored.
    pub format: u8,
    /// Its aggregation; in format 1 counted from the oldest.
    pub aggregation: u64,
    /// Generation of that block.
    pub generation: u64,
    /// Its sequence.
    pub sequence: u64,
}

impl From<&MomentReached> for ProvenMoment {
    fn from(reached: &MomentReached) -> Self {
        Self {
            time: moment::show(reached.timestamp),
            timestamp_ns: reached.timestamp.0,
            format: reached.format.number(),
            aggregation: reached.aggregation.0,
            generation: reached.position.generation.0,
            sequence: reached.position.sequence.0,
        }
    }
}

impl ProofReport {
    /// As it is told to others. `began` is when the log was opened for it.
    pub fn new(proof: &Proof, began: Timestamp) -> Self {
        Self {
            vdisk: proof.vdisk.to_string(),
            verdict: if proof.is_degraded() { "degraded" } else { "proven" }.to_owned(),
            began_ns: began.0,
            seconds: proof.took.as_secs_f64(),
            moment: proof.reached.as_ref().map(ProvenMoment::from),
            last_aggregation: proof.last.0,
            uncertain_beyond: proof.uncertain_beyond.map(|number| number.0),
            block_size: proof.block_size,
            length: proof.disk_len,
            blocks: proof.blocks,
            bytes: proof.bytes,
            aggregations_read: proof.aggregations,
            digest: proof.digest.to_string(),
            absent_stores: proof.absent_stores.clone(),
        }
    }
}

/// For a person, on several lines.
impl fmt::Display for ProofReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vdisk, aggregations_read, seconds, digest, .. } = self;
        let (blocks, bytes, length) = (self.blocks, show_size(self.bytes), show_size(self.length));
        match &self.moment {
            None => return write!(f, "vdisk {vdisk}: its log is empty, and so is the disk"),
            Some(ProvenMoment { time, aggregation, generation, sequence, .. }) => writeln!(
                f,
                "vdisk {vdisk} as it was at {time} (aggregation {aggregation}, generation {generation}, sequence {sequence}) can be \
                 restored: {length} long, {blocks} blocks ({bytes}), read from {aggregations_read} aggregations in {seconds:.2} s"
            )?,
        }
        write!(f, "digest of its content: {digest}")?;
        if !self.absent_stores.is_empty() {
            let absent = self.absent_stores.join(", ");
            write!(f, "\nwithout {absent}, out of reach or empty; 'tlog verify {vdisk}' says what to do")?;
        }
        if let Some(beyond) = self.uncertain_beyond {
            write!(f, "\naggregation {beyond} may belong to the log too, and is not in it")?;
        }
        Ok(())
    }
}

/// What a fault is called in JSON.
pub(crate) fn name_of(fault: ProveFault) -> &'static str {
    match fault {
        ProveFault::Lost => "lost",
        ProveFault::Pruned => "pruned",
        ProveFault::Unknown => "unknown",
    }
}

/// Why it could not be proven, and what to do, as one sentence. `tell` is how the caller tells what is wrong with a disk state.
pub(crate) fn in_words(
    vdisk: &str,
    error: ProveError,
    tell: impl Fn(DiskStateError) -> anyhow::Error,
) -> String {
    let fault = error.fault();
    let why = words::of_error(&match error {
        ProveError::DiskState(error) => tell(error),
        error => error.into(),
    });
    match fault {
        ProveFault::Lost => {
            format!(
                "it CANNOT BE RESTORED from the stores in reach: {why}; 'tlog verify {vdisk} --deep' says what each store has"
            )
        }
        ProveFault::Pruned => format!("{why} when its history is not being pruned"),
        ProveFault::Unknown => why,
    }
}
