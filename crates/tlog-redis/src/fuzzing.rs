//! Entrances for fuzz targets, with the feature `fuzzing` only, which `tlog-fuzz` alone may ask for: what a server sends, without a
//! server.

use redis::{Cmd, RedisResult, Value};
use tlog_proto::{AggregationNumber, VdiskId};
use tlog_store::{Head, LogState, Shard, StoreErrorKind};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::conversation::{Conversation, first_answer as first_of};
use crate::layout::{self, Keys};
use crate::request::Request;
use crate::slave_text;
use crate::store::Reply;

/// The first answer in bytes and its length; none where it is not whole yet.
pub fn first_answer(bytes: &[u8]) -> RedisResult<Option<(usize, RedisResult<Value>)>> {
    first_of(bytes)
}

/// One connection, on which a server sends what it likes.
#[derive(Debug)]
pub struct Talk(Conversation);

impl Talk {
    /// Over a stream that is connected.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Conversation::over(stream))
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        self.0.ask(Request::of(command)).await
    }
}

/// The key of a shard.
pub fn shard_key(vdisk: &VdiskId, number: AggregationNumber) -> String {
    Keys::of(vdisk).shard(number)
}

/// The value of a shard; none where no server's string is as long.
pub fn shard_value(shard: &Shard, key: &str) -> Option<Vec<u8>> {
    Some(layout::Value::of(shard, key)?.parts().concat())
}

/// The shard in a value.
pub fn shard_in(value: Vec<u8>, key: &str) -> Option<Shard> {
    layout::shard_in(value, key)
}

/// The head part in the beginning of a value.
pub fn head_in(value: Vec<u8>, key: &str) -> Option<Head> {
    layout::head_in(value, key)
}

/// What an answer says of a log.
pub fn state_in(answer: Value, vdisk: &VdiskId) -> Result<LogState, StoreErrorKind> {
    Reply::of(answer)?.granted(AggregationNumber(1))?.state(&Keys::of(vdisk))
}

/// A text of a log or of a slave as it is written by who has read it; for each form in which it can be read.
pub fn rewritten(text: &str) -> Vec<String> {
    let members = layout::parse_members(text).and_then(|members| layout::members_text(&members));
    let starts = layout::parse_starts(text).map(|starts| {
        let starts: Vec<_> = starts.iter().map(|start| format!("{}:{}", start.epoch, start.number)).collect();
        starts.join(" ")
    });
    let run = layout::parse_run(text).map(|(first, last)| format!("{first}-{last}"));
    let identity = layout::parse_identity(text).map(|identity| identity.to_string());
    let points = slave_text::parse_points(text).map(|points| slave_text::points_text(&points));
    let last = slave_text::parse_last(text).map(|last| slave_text::last_text(&last));
    let restoring = slave_text::parse_mark("restoring", text).and_then(|mark| match mark {
        tlog_store::slave::SlaveMark::Restoring(restoring) => Some(slave_text::restoring_text(&restoring)),
        _ => None,
    });
    [members, starts, run, identity, points, last, restoring].into_iter().flatten().collect()
}
