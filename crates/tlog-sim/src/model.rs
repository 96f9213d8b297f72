//! What must be true, known without the product: what was handed over, what was acknowledged, and what readers have seen.
//!
//! Every write has a mark, unique in the run, in its timestamp. Whatever comes out of a log is compared with what was handed over under its
//! mark; nothing here asks the product how it sees things.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tlog_proto::{AggregationId, AggregationNumber, Block, Generation, Operation, Sequence, Timestamp};

/// Bits of a timestamp that are the mark.
const MARK_BITS: u32 = 20;

/// The disk: content by index of its block.
pub(crate) type Disk = BTreeMap<u64, Bytes>;

/// What a timestamp near `nanos` looks like that carries a mark.
pub(crate) fn timestamp(nanos: u64, mark: u64) -> Timestamp {
    Timestamp((nanos >> MARK_BITS << MARK_BITS) | mark)
}

fn mark_of(block: &Block) -> u64 {
    block.timestamp.0 & ((1 << MARK_BITS) - 1)
}

/// A write that was handed to a client.
#[derive(Debug)]
struct Write {
    life: usize,
    /// Which of its life.
    nth: usize,
    block: Block,
    issued: u64,
    acknowledged: Option<u64>,
}

/// One front-end of the disk, from its first connection until it is gone; restarts that send again what was not acknowledged included.
#[derive(Debug)]
struct Life {
    /// Marks of its writes, in order.
    writes: Vec<u64>,
    /// When it asked a server first: what it is told is at least as new.
    began: u64,
    /// When it was gone; nothing that it sends later may count.
    ended: Option<u64>,
    /// The first sequence of its first connection, where it went on behind the log's end.
    goes_on_at: Option<Sequence>,
}

/// A write as a reader found it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) number: AggregationNumber,
    pub(crate) id: AggregationId,
    pub(crate) generation: Generation,
    pub(crate) block: Block,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// Logical time: rises with everything that happens.
    tick: u64,
    writes: Vec<Write>,
    lives: Vec<Life>,
    /// The aggregations that a reader was certain of, by number.
    seen: BTreeMap<AggregationNumber, AggregationId>,
    pub(crate) acknowledged: usize,
}

impl Model {
    fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// A front-end was accepted that had asked at a time of [`Self::now`].
    pub(crate) fn begin_life(&mut self, began: u64, goes_on_at: Option<Sequence>) -> usize {
        self.tick();
        self.lives.push(Life { writes: Vec::new(), began, ended: None, goes_on_at });
        self.lives.len() - 1
    }

    /// A front-end is gone for good.
    pub(crate) fn end_life(&mut self, life: usize) {
        let now = self.tick();
        if let Some(life) = self.lives.get_mut(life) {
            life.ended.get_or_insert(now);
        }
    }

    /// The mark that the next write gets.
    pub(crate) fn next_mark(&self) -> u64 {
        self.writes.len() as u64
    }

    /// A write is handed over.
    pub(crate) fn issue(&mut self, life: usize, block: Block) -> u64 {
        let (mark, issued) = (self.next_mark(), self.tick());
        let Some(of) = self.lives.get_mut(life) else { return mark };
        of.writes.push(mark);
        let nth = of.writes.len() - 1;
        self.writes.push(Write { life, nth, block, issued, acknowledged: None });
        mark
    }

    /// The client says that a write is durable.
    pub(crate) fn acknowledge(&mut self, mark: u64) {
        let now = self.tick();
        if let Some(write) = usize::try_from(mark).ok().and_then(|mark| self.writes.get_mut(mark))
            && write.acknowledged.is_none()
        {
            write.acknowledged = Some(now);
            self.acknowledged += 1;
        }
    }

    /// Writes of a life that are not acknowledged, in order.
    pub(crate) fn unacknowledged(&self, life: usize) -> Vec<(u64, Block)> {
        let marks = self.lives.get(life).map(|life| life.writes.as_slice()).unwrap_or_default();
        let write = |mark: &u64| Some((*mark, self.writes.get(usize::try_from(*mark).ok()?)?));
        let open = marks.iter().filter_map(write).filter(|(_, write)| write.acknowledged.is_none());
        open.map(|(mark, write)| (mark, write.block.clone())).collect()
    }

    /// Logical time, to compare acknowledgements with.
    pub(crate) fn now(&self) -> u64 {
        self.tick
    }

    /// Checks what a reader was certain of. `complete_at`: everything that was acknowledged up to then must be in it.
    pub(crate) fn check(&mut self, log: &[Entry], complete_at: Option<u64>) -> Result<(), String> {
        self.check_kept(log, complete_at.is_some())?;
        self.check_writes(log)?;
        self.check_order(log)?;
        let Some(at) = complete_at else { return Ok(()) };
        let there: BTreeSet<u64> = log.iter().map(|entry| mark_of(&entry.block)).collect();
        let is_due = |write: &&Write| write.acknowledged.is_some_and(|acknowledged| acknowledged <= at);
        let lost = self.writes.iter().zip(0..).filter(|(write, mark)| is_due(write) && !there.contains(mark));
        let lost: Vec<String> =
            lost.map(|(write, mark)| format!("{mark} (sequence {})", write.block.sequence)).collect();
        match lost.is_empty() {
            true => Ok(()),
            false => {
                Err(format!("acknowledged and lost: writes {}; the log has {}", lost.join(", "), marks(log)))
            }
        }
    }

    /// What a reader saw stays, and under every number there is one aggregation for ever.
    fn check_kept(&mut self, log: &[Entry], complete: bool) -> Result<(), String> {
        for entry in log {
            let known = *self.seen.entry(entry.number).or_insert(entry.id);
            if known != entry.id {
                let number = entry.number;
                return Err(format!(
                    "the log has forked: aggregation {number} was {known} and is {}",
                    entry.id
                ));
            }
        }
        let last = log.last().map(|entry| entry.number).unwrap_or_default();
        match self.seen.last_key_value() {
            Some((seen, _)) if complete && *seen > last => {
                Err(format!("a reader has seen aggregation {seen}, and the log ends with {last}"))
            }
            _ => Ok(()),
        }
    }

    /// Every write is one that was handed over, unchanged, once.
    fn check_writes(&self, log: &[Entry]) -> Result<(), String> {
        let mut found = BTreeSet::new();
        for entry in log {
            let mark = mark_of(&entry.block);
            let write = usize::try_from(mark).ok().and_then(|mark| self.writes.get(mark));
            let Some(write) = write else {
                return Err(format!(
                    "nobody wrote what is in aggregation {}: {:?}",
                    entry.number, entry.block
                ));
            };
            if write.block != entry.block {
                return Err(format!(
                    "write {mark} was changed: it was {:?} and is {:?}",
                    write.block, entry.block
                ));
            }
            if !found.insert(mark) {
                return Err(format!(
                    "write {mark} (sequence {}) is there twice: {}",
                    write.block.sequence,
                    marks(log)
                ));
            }
        }
        Ok(())
    }

    /// The writes of a life in their order and without gaps; what was acknowledged before another was handed over, before it; and
    /// nothing of a life that was over where a later one was told that the log ended before it.
    fn check_order(&self, log: &[Entry]) -> Result<(), String> {
        let mut next = vec![0; self.lives.len()];
        let mut newest_issued = (0, 0);
        let mut before: Option<(Generation, Sequence)> = None;
        for entry in log {
            let mark = mark_of(&entry.block);
            let Some(write) = usize::try_from(mark).ok().and_then(|mark| self.writes.get(mark)) else {
                continue;
            };
            let at = (entry.generation, entry.block.sequence);
            let follows = before.is_none_or(|(generation, sequence)| match at.0 == generation {
                true => at.1 == sequence.next(),
                false => at.0 > generation,
            });
            if !follows {
                return Err(format!("{at:?} comes behind {before:?}: {}", marks(log)));
            }
            before = Some(at);
            if let Some(next) = next.get_mut(write.life) {
                if write.nth != *next {
                    return Err(format!(
                        "write {mark} is number {} of its client, and {next} comes next: {}",
                        write.nth,
                        marks(log)
                    ));
                }
                *next += 1;
            }
            if write.acknowledged.is_some_and(|acknowledged| acknowledged < newest_issued.0) {
                return Err(format!(
                    "write {mark} was acknowledged before write {} was handed over, and comes behind it",
                    newest_issued.1
                ));
            }
            newest_issued = newest_issued.max((write.issued, mark));
            self.check_ruled_out(write, mark, entry)?;
        }
        Ok(())
    }

    fn check_ruled_out(&self, write: &Write, mark: u64, entry: &Entry) -> Result<(), String> {
        let Some(ended) = self.lives.get(write.life).and_then(|life| life.ended) else { return Ok(()) };
        let later =
            self.lives.iter().filter(|life| life.began >= ended).filter_map(|life| life.goes_on_at).min();
        match later {
            // A client that came when this one was gone was told that the log ended before it.
            Some(goes_on_at) if entry.block.sequence >= goes_on_at && self.one_generation() => Err(format!(
                "write {mark} (sequence {}) came back: its client was gone when another one was told that the log goes on with {goes_on_at}",
                entry.block.sequence
            )),
            _ => Ok(()),
        }
    }

    /// Whether no life began a generation of its own, so that sequences name writes.
    fn one_generation(&self) -> bool {
        self.lives.iter().all(|life| life.goes_on_at.is_some())
    }
}

/// The marks of a log, for people.
pub(crate) fn marks(log: &[Entry]) -> String {
    let mut text = String::new();
    let mut number = None;
    for entry in log {
        if number != Some(entry.number) {
            number = Some(entry.number);
            text.push_str(&format!(" [{}]", entry.number));
        }
        text.push_str(&format!(" {}", mark_of(&entry.block)));
    }
    text
}

/// The disk after the first `count` writes.
pub(crate) fn disk_after(log: &[Entry], count: usize) -> Disk {
    let mut disk = Disk::new();
    for entry in log.iter().take(count) {
        let index = entry.block.index.get();
        match entry.block.operation {
            Operation::Set => disk.insert(index, entry.block.data.clone()),
            Operation::Delete => disk.remove(&index),
        };
    }
    disk
}

#[cfg(test)]
mod tests {
    use tlog_proto::BlockIndex;

    use super::*;

    /// A log of one write an aggregation, as handed over by a model.
    fn written(model: &mut Model, life: usize, sequences: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
        let entry = |sequence: u64| {
            let (mark, index) = (model.next_mark(), BlockIndex::new(sequence).unwrap());
            let block =
                Block::set(Sequence(sequence), index, timestamp(1 << 30, mark), vec![mark as u8; 8].into());
            model.issue(life, block.clone());
            let (number, id) = (AggregationNumber(sequence), AggregationId([sequence as u8; 32]));
            Entry { number, id, generation: Generation(1), block }
        };
        sequences.map(entry).collect()
    }

    fn check(change: impl FnOnce(&mut Model, &mut Vec<Entry>), expected: &str) {
        let mut model = Model::default();
        let life = model.begin_life(0, Some(Sequence(1)));
        let mut log = written(&mut model, life, 1..=5);
        (0..4).for_each(|mark| model.acknowledge(mark));
        model.check(&log, Some(model.now())).unwrap();
        change(&mut model, &mut log);
        let now = model.now();
        let found = model.check(&log, Some(now)).unwrap_err();
        assert!(found.contains(expected), "{found}");
    }

    #[test]
    fn whatever_is_wrong_with_a_log_is_found() {
        check(|_, log| drop(log.drain(3..)), "a reader has seen aggregation 5");
        check(|_, log| log[2].id.0[0] ^= 1, "forked: aggregation 3");
        check(|_, log| log[2].block.data = vec![1].into(), "was changed");
        check(|_, log| log[1].block = log[0].block.clone(), "there twice");
        check(|_, log| log[2].block.timestamp.0 += 100, "nobody wrote");
        check(|_, log| log[3].block.sequence.0 += 1, "was changed");
    }

    #[test]
    fn what_was_acknowledged_and_is_not_there_is_found_also_where_nobody_saw_it() {
        let mut model = Model::default();
        let life = model.begin_life(0, Some(Sequence(1)));
        let mut log = written(&mut model, life, 1..=5);
        model.acknowledge(4);
        log.pop();
        model.check(&log, None).unwrap();
        let found = model.check(&log, Some(model.now())).unwrap_err();
        assert!(found.contains("acknowledged and lost: writes 4"), "{found}");
    }

    #[test]
    fn an_order_that_nobody_can_have_seen_is_found() {
        let mut model = Model::default();
        let life = model.begin_life(0, Some(Sequence(1)));
        let log = written(&mut model, life, 1..=3);
        let gap = [log[0].clone(), log[2].clone()];
        assert!(model.check(&gap, None).unwrap_err().contains("comes behind"));
        let mut model = Model::default();
        let life = model.begin_life(0, Some(Sequence(1)));
        let dead = written(&mut model, life, 1..=3);
        model.end_life(life);
        model.begin_life(model.now(), Some(Sequence(2)));
        model.check(&dead[..1], None).unwrap();
        assert!(model.check(&dead, None).unwrap_err().contains("came back"));
    }
}
