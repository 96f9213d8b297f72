//! What the log holds, against what was acknowledged.

use anyhow::{Context, bail};
use tlog_player::{OpenError, ReplayOptions};
use tlog_proto::{AggregationNumber, Block, Operation, Sequence, VdiskId};

use super::data::Content;
use super::load::Acknowledged;
use crate::reading;
use crate::settings::Settings;

/// Reads a log back and compares every block with what was sent: the same sequences, in order, each once, at the same index and
/// with the same bytes, and nothing else. `after` is the last aggregation that was there before. Answers how many blocks there are.
pub(crate) async fn check(
    settings: &Settings,
    acknowledged: &Acknowledged,
    content: &Content,
    after: AggregationNumber,
) -> anyhow::Result<u64> {
    let vdisk = &acknowledged.vdisk;
    let reader = reading::open(settings, vdisk).await?;
    let extent = reader.extent();
    if let Some(end) = &extent.uncertain {
        bail!("vdisk {vdisk}: the end of its log is uncertain: {} cannot be asked", end.missing.join(", "));
    }
    let keys = reading::keys_of(settings, vdisk)?;
    let mut replay =
        reader.replay(extent.first.max(after.next())..=extent.last, &keys, ReplayOptions::default());
    let mut comparison = Comparison { acknowledged, content, found: 0 };
    while let Some(replayed) = replay.next().await? {
        for block in &replayed.blocks {
            comparison.next(block).with_context(|| format!("vdisk {vdisk}"))?;
        }
    }
    comparison.end().with_context(|| format!("vdisk {vdisk}"))
}

/// Why a log is not what was acknowledged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Difference {
    #[error("the log has sequence {found} where {expected} follows")]
    OutOfOrder { expected: Sequence, found: Sequence },
    #[error("sequence {0} is not in the log as it was sent")]
    Changed(Sequence),
    #[error("sequence {0} is in the log and was not sent")]
    NotSent(Sequence),
    #[error("{acknowledged} blocks were acknowledged as durable, and the log has {found} of them")]
    Missing { acknowledged: u64, found: u64 },
}

/// What was acknowledged, and how much of it was found.
struct Comparison<'a> {
    acknowledged: &'a Acknowledged,
    content: &'a Content,
    found: u64,
}

impl Comparison<'_> {
    /// Takes the next block of the log.
    fn next(&mut self, block: &Block) -> Result<(), Difference> {
        let Acknowledged { number, first, blocks, .. } = *self.acknowledged;
        if self.found == 0 && block.sequence < first {
            // Another client had sent it before, and it was flushed when this one came.
            return Ok(());
        }
        if self.found == blocks {
            return Err(Difference::NotSent(block.sequence));
        }
        let expected = Sequence(first.0 + self.found);
        if block.sequence != expected {
            return Err(Difference::OutOfOrder { expected, found: block.sequence });
        }
        let (index, data) = self.content.write(number, self.found);
        if block.index != index || block.operation != Operation::Set || block.data != data {
            return Err(Difference::Changed(block.sequence));
        }
        self.found += 1;
        Ok(())
    }

    /// The log is over. Answers how many blocks were found, which are all.
    fn end(self) -> Result<u64, Difference> {
        let (acknowledged, found) = (self.acknowledged.blocks, self.found);
        if found == acknowledged { Ok(found) } else { Err(Difference::Missing { acknowledged, found }) }
    }
}

/// The last aggregation of a vdisk's log; 0 where there is no log yet.
pub(crate) async fn last_aggregation(
    settings: &Settings,
    vdisk: &VdiskId,
) -> anyhow::Result<AggregationNumber> {
    match reading::try_open(settings, vdisk).await? {
        Ok(reader) => Ok(reader.extent().last),
        Err(OpenError::UnknownVdisk { .. }) => Ok(AggregationNumber(0)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::data::DataKind;
    use tlog_proto::Timestamp;

    #[test]
    fn anything_but_what_was_acknowledged_is_a_difference() {
        let content = Content::new(DataKind::Random, 64, 1000, 1).unwrap();
        let vdisk = VdiskId::new("vda").unwrap();
        let acknowledged = Acknowledged { vdisk, number: 3, first: Sequence(11), blocks: 4 };
        let block = |sequence: u64, number: u64| {
            let (index, data) = content.write(3, number);
            Block::set(Sequence(sequence), index, Timestamp(1), data)
        };
        let log: Vec<Block> = (0..4).map(|number| block(11 + number, number)).collect();
        let check = |log: &[Block], expected: Result<u64, Difference>| {
            let mut comparison = Comparison { acknowledged: &acknowledged, content: &content, found: 0 };
            let compared = log.iter().try_for_each(|block| comparison.next(block));
            assert_eq!(compared.and_then(|()| comparison.end()), expected);
        };
        check(&log, Ok(4));
        let [a, b, c, d] = [0, 1, 2, 3].map(|at: usize| log[at].clone());
        // Somebody else's, flushed when the client came.
        check(&[block(9, 100), block(10, 200), a.clone(), b.clone(), c.clone(), d.clone()], Ok(4));
        check(&log[..3], Err(Difference::Missing { acknowledged: 4, found: 3 }));
        check(&[], Err(Difference::Missing { acknowledged: 4, found: 0 }));
        let out_of_order = |expected, found| {
            Err(Difference::OutOfOrder { expected: Sequence(expected), found: Sequence(found) })
        };
        check(&log[1..], out_of_order(11, 12));
        check(&[a.clone(), a.clone()], out_of_order(12, 11));
        check(&[a.clone(), c, b, d], out_of_order(12, 13));
        check(&[log.clone(), vec![block(15, 4)]].concat(), Err(Difference::NotSent(Sequence(15))));
        let changed = || Err(Difference::Changed(Sequence(12)));
        check(&[a.clone(), block(12, 2)], changed());
        let elsewhere = Block { index: Default::default(), ..log[1].clone() };
        check(&[a.clone(), elsewhere], changed());
        check(&[a, Block::delete(Sequence(12), log[1].index, Timestamp(1))], changed());
    }
}
