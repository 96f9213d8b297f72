//! Storing what has no writes: it takes its place among the aggregations of the log.

use tlog_codec::{Content, Record, WithoutWrites};
use tlog_proto::Timestamp;
use tokio::time::Instant;

use super::{Writer, wall_clock};
use crate::extra::{Extra, ExtraContent, ExtraError};

impl Writer {
    pub(super) fn handle_extra(&mut self, extra: Extra) {
        self.extras.push_back(extra);
    }

    /// Seals and sends it. What cannot be sealed is no fault of the log.
    pub(super) fn seal_extra(&mut self, extra: Extra, now: Instant) {
        let Extra { content, permit, told } = extra;
        match self.try_seal_extra(content, permit, now) {
            Ok(()) => {
                if let Some(sent) = self.in_flight.back_mut() {
                    sent.told = Some(told);
                }
            }
            // Who asked may be gone.
            Err(error) => drop(told.send(Err(error))),
        }
    }

    fn try_seal_extra(
        &mut self,
        content: ExtraContent,
        permit: tokio::sync::OwnedSemaphorePermit,
        now: Instant,
    ) -> Result<(), ExtraError> {
        let (after, session) = self.end.ok_or(ExtraError::EmptyLog)?;
        let mut nonce = [0; 12];
        tlog_ambient::fill_random(&mut nonce)
            .map_err(|error| ExtraError::Seal(format!("no random numbers: {error}")))?;
        let (content, about, bytes) = match &content {
            ExtraContent::Checkpoint { blocks, about } => {
                (Content::Checkpoint(blocks), *about, blocks.iter().map(|block| block.size() as u64).sum())
            }
            ExtraContent::Record(record) => (Content::Record(record), time_of(record), 0),
        };
        let number = self.next_number();
        // Taken back where it cannot be sealed: the number is then another one's.
        let before = self.reaches.clone();
        let request = WithoutWrites {
            number,
            after,
            session,
            about,
            sealed_at: wall_clock(),
            block_size: self.block_size,
            nonce,
            finding: self.finding(number, about, false),
            content,
        };
        let sealed = self.sealer.seal_without_writes(request).map_err(|error| {
            self.reaches = before;
            ExtraError::Seal(error.to_string())
        })?;
        self.send(sealed.link(self.last_id), bytes, vec![permit], now);
        Ok(())
    }
}

/// The time of the moment that a record is about.
fn time_of(record: &Record) -> Timestamp {
    match record {
        Record::Mark(mark) => mark.place.timestamp,
        Record::Checkpoint(checkpoint) => checkpoint.place.timestamp,
        Record::MarkRemoved(_) => wall_clock(),
    }
}
