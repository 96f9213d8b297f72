//! What a client was about to hand over and what was acknowledged to it, in a file of its own that survives the client.
//!
//! Lines of text, each written with one call:
//!
//! ```text
//! session SESSION                       16 hexadecimal digits; drawn once, before the first connection
//! handed SEQUENCE INDEX set|delete NANOS   before the write is handed to the client library
//! acknowledged SEQUENCE                 after its handle has resolved
//! quiet SEQUENCE                        everything up to there is durable, and nothing more is written
//! wrong WORDS                           the client was told something that must not be
//! ```
//! A line without its end was cut off by a kill and counts as not written: what it was to say had not happened yet, or may be
//! said again.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use tlog_proto::{Operation, SessionId};

/// A write as it was handed over. Its sequence is its place in the journal, from 1; its content follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    /// Which block of the disk.
    pub(crate) index: u64,
    pub(crate) operation: Operation,
    /// Nanoseconds since 1970.
    pub(crate) nanos: u64,
}

/// What a journal says so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Journal {
    pub(crate) session: Option<SessionId>,
    /// In order: that with sequence 1 first.
    pub(crate) writes: Vec<Handed>,
    /// Everything up to this sequence was acknowledged; 0 is nothing.
    pub(crate) acknowledged: u64,
    /// The sequence of the newest line `quiet`.
    pub(crate) quiet: Option<u64>,
    /// What the client found to be wrong.
    pub(crate) wrong: Vec<String>,
}

impl Journal {
    /// The last sequence that may have been handed over; 0 is none.
    pub(crate) fn handed(&self) -> u64 {
        self.writes.len() as u64
    }

    /// Takes one line, without its end.
    pub(crate) fn take(&mut self, line: &str) -> anyhow::Result<()> {
        let taken = self.try_take(line);
        taken.with_context(|| format!("the journal has a line that makes no sense: {line:?}"))
    }

    fn try_take(&mut self, line: &str) -> anyhow::Result<()> {
        let (kind, rest) = line.split_once(' ').context("one word")?;
        match kind {
            "session" => self.session = Some(SessionId(u64::from_str_radix(rest, 16)?)),
            "handed" => {
                let mut words = rest.split(' ');
                let mut word = || words.next().context("too short");
                let (sequence, index): (u64, u64) = (word()?.parse()?, word()?.parse()?);
                let operation = match word()? {
                    "set" => Operation::Set,
                    "delete" => Operation::Delete,
                    other => bail!("{other} is no operation"),
                };
                let nanos = word()?.parse()?;
                if sequence != self.handed() + 1 {
                    bail!("sequence {} comes next", self.handed() + 1);
                }
                self.writes.push(Handed { index, operation, nanos });
            }
            "acknowledged" => {
                let sequence: u64 = rest.parse()?;
                if sequence > self.handed() {
                    bail!("it was never handed over");
                }
                self.acknowledged = self.acknowledged.max(sequence);
            }
            "quiet" => self.quiet = Some(rest.parse()?),
            "wrong" => self.wrong.push(rest.to_owned()),
            other => bail!("{other} is no kind of line"),
        }
        Ok(())
    }
}

/// Reads a journal along while a client writes it.
#[derive(Debug)]
pub(crate) struct JournalReader {
    file: File,
    /// The line that has not come to its end yet.
    partial: Vec<u8>,
    pub(crate) journal: Journal,
    /// Bytes before `partial`.
    complete: u64,
}

impl JournalReader {
    /// Of a file that is there.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { file, partial: Vec::new(), journal: Journal::default(), complete: 0 })
    }

    /// Takes every line that is complete by now. What was cut off is read again: whoever goes on with the journal removes it.
    pub(crate) fn catch_up(&mut self) -> anyhow::Result<&Journal> {
        self.partial.clear();
        self.file.seek(SeekFrom::Start(self.complete))?;
        self.file.read_to_end(&mut self.partial)?;
        let Some(end) = self.partial.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(&self.journal);
        };
        let lines = self.partial.get(..end).unwrap_or_default();
        for line in std::str::from_utf8(lines).context("the journal is no text")?.split('\n') {
            self.journal.take(line)?;
        }
        self.complete += end as u64 + 1;
        Ok(&self.journal)
    }
}

/// Writes a journal on.
#[derive(Debug)]
pub(crate) struct JournalWriter(Mutex<File>);

impl JournalWriter {
    /// Opens the journal, makes it where it is not there, removes a line that was cut off, and answers what it says.
    pub(crate) fn open(path: &Path) -> anyhow::Result<(Self, Journal)> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut reader = JournalReader::open(path)?;
        reader.catch_up()?;
        file.set_len(reader.complete)?;
        Ok((Self(Mutex::new(file)), reader.journal))
    }

    /// Appends a line. It is there when this returns, whatever becomes of this process.
    pub(crate) fn say(&self, line: &str) -> anyhow::Result<()> {
        let line = format!("{line}\n");
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).context("cannot write to the journal")
    }

    /// Appends that a write is about to be handed over.
    pub(crate) fn hand_over(&self, sequence: u64, write: &Handed) -> anyhow::Result<()> {
        let operation = match write.operation {
            Operation::Set => "set",
            Operation::Delete => "delete",
        };
        self.say(&format!("handed {sequence} {} {operation} {}", write.index, write.nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_by_a_kill_is_not_there_for_whoever_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (writer, found) = JournalWriter::open(&path).unwrap();
        assert_eq!(found, Journal::default());
        let mut reader = JournalReader::open(&path).unwrap();
        let write = Handed { index: 7, operation: Operation::Delete, nanos: 12 };
        writer.say("session 00000000000000ab").unwrap();
        writer.hand_over(1, &write).unwrap();
        writer.say("acknowledged 1").unwrap();
        assert_eq!(reader.catch_up().unwrap().acknowledged, 1);
        // A kill in the middle of a line.
        writer.0.lock().unwrap().write_all(b"handed 2 9 set").unwrap();
        assert_eq!(reader.catch_up().unwrap().handed(), 1);
        drop(writer);

        let (writer, found) = JournalWriter::open(&path).unwrap();
        assert_eq!((found.session, found.handed(), found.acknowledged), (Some(SessionId(0xab)), 1, 1));
        assert_eq!(found.writes, [write]);
        writer.hand_over(2, &Handed { index: 3, operation: Operation::Set, nanos: 13 }).unwrap();
        writer.say("quiet 2").unwrap();
        writer.say("wrong two words").unwrap();
        let journal = reader.catch_up().unwrap();
        assert_eq!(
            (journal.handed(), journal.quiet, journal.wrong.as_slice()),
            (2, Some(2), &["two words".to_owned()][..])
        );
        assert_eq!(journal.writes[1].index, 3);
    }

    #[test]
    fn lines_that_make_no_sense_are_errors() {
        let check = |line: &str| assert!(Journal::default().take(line).is_err(), "{line}");
        check("handed 2 9 set 1");
        check("handed 1 9 move 1");
        check("handed 1 9 set");
        check("acknowledged 1");
        check("something else");
        check("nothing");
    }
}
