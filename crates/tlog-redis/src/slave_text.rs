//! What a slave keeps beside its blocks: the names of keys, and the texts in them.
//!
//! ```text
//! nondedup:V                    hash     blocks: field is the index in decimal, value the content; on the data stores
//! tlog:slave_part:V             hash     SlavePart, on each data store: layout, epoch, fill, index, stores, applied,
//!                                        blocks
//! tlog:slave:V                  hash     SlaveRecord, on the metadata store: layout, epoch, owner, mark, fill, point, last, applied,
//!                                        restoring
//! tlog:last_slave_sync_seq:V    string   sequence of `last`, in decimal; on the metadata store. Existing servers read and write it
//! ```
//! A point is `aggregation:blocks:id`, a write `generation:sequence:timestamp`; what is not there is empty, or `-` in a list.

use tlog_proto::{AggregationNumber, Generation, LogPosition, Sequence, Timestamp, VdiskId};
use tlog_store::slave::{LastWrite, Restoring, SlaveMark, SlavePoint, SlavePosition};

use crate::layout::parse_number;

/// The keys of one vdisk. The first is that of existing servers, so that they do not share a hash tag.
#[derive(Clone, Debug)]
pub(crate) struct SlaveKeys {
    pub(crate) blocks: String,
    pub(crate) part: String,
    pub(crate) record: String,
    pub(crate) sequence: String,
}

impl SlaveKeys {
    pub(crate) fn of(vdisk: &VdiskId) -> Self {
        Self {
            blocks: format!("nondedup:{vdisk}"),
            part: format!("tlog:slave_part:{vdisk}"),
            record: format!("tlog:slave:{vdisk}"),
            sequence: format!("tlog:last_slave_sync_seq:{vdisk}"),
        }
    }
}

/// A value, or nothing where there is none.
pub(crate) fn text_of<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// What [`text_of`] wrote: none where it is neither empty nor a value.
pub(crate) fn parse_optional<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    if text.is_empty() { Some(None) } else { parse(text).map(Some) }
}

pub(crate) fn parse_point(text: &str) -> Option<SlavePoint> {
    text.parse().ok()
}

pub(crate) fn points_text(points: &[SlavePoint]) -> String {
    points.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

pub(crate) fn parse_points(text: &str) -> Option<Vec<SlavePoint>> {
    if text.is_empty() { Some(Vec::new()) } else { text.split(' ').map(parse_point).collect() }
}

pub(crate) fn last_text(last: &LastWrite) -> String {
    let LastWrite { position: LogPosition { generation, sequence }, timestamp } = last;
    format!("{generation}:{sequence}:{timestamp}")
}

pub(crate) fn parse_last(text: &str) -> Option<LastWrite> {
    let mut numbers = text.split(':').map(decimal);
    let mut next = || numbers.next().flatten();
    let position = LogPosition { generation: Generation(next()?), sequence: Sequence(next()?) };
    let last = LastWrite { position, timestamp: Timestamp(next()?) };
    numbers.next().is_none().then_some(last)
}

pub(crate) fn mark_name(mark: &SlaveMark) -> &'static str {
    match mark {
        SlaveMark::Running => "running",
        SlaveMark::Stopped => "stopped",
        SlaveMark::Restoring(_) => "restoring",
    }
}

/// Point and last write of the target, the last source that is done, how many there are and are done, and blocks.
pub(crate) fn restoring_text(restoring: &Restoring) -> String {
    let Restoring { target, done, aggregations: (total, completed), blocks } = restoring;
    let last = target.last.as_ref().map_or_else(|| "-".to_owned(), last_text);
    let done = done.map_or_else(|| "-".to_owned(), |(format, number)| format!("{format}:{number}"));
    format!("{} {last} {done} {total} {completed} {blocks}", target.point)
}

pub(crate) fn parse_mark(name: &str, restoring: &str) -> Option<SlaveMark> {
    match name {
        "running" | "" => Some(SlaveMark::Running),
        "stopped" => Some(SlaveMark::Stopped),
        "restoring" => parse_restoring(restoring).map(SlaveMark::Restoring),
        _ => None,
    }
}

fn parse_restoring(text: &str) -> Option<Restoring> {
    let words: Vec<&str> = text.split(' ').collect();
    let &[point, last, done, total, completed, blocks] = words.as_slice() else { return None };
    let or_none = |word: &str| if word == "-" { String::new() } else { word.to_owned() };
    let parse_done = |text: &str| {
        let (format, number) = text.split_once(':')?;
        Some((format.parse().ok()?, AggregationNumber(decimal(number)?)))
    };
    Some(Restoring {
        target: SlavePosition {
            point: parse_point(point)?,
            last: parse_optional(&or_none(last), parse_last)?,
        },
        done: parse_optional(&or_none(done), parse_done)?,
        aggregations: (parse_number(total)?, parse_number(completed)?),
        blocks: decimal(blocks)?,
    })
}

/// A number of up to 64 bits, which no script computes with.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlog_proto::AggregationId;

    #[test]
    fn texts_come_back_and_what_is_none_is_refused() {
        let position = LogPosition { generation: Generation(2), sequence: Sequence(u64::MAX) };
        let last = LastWrite { position, timestamp: Timestamp(5) };
        assert_eq!(parse_last(&last_text(&last)), Some(last));
        let point = SlavePoint { aggregation: AggregationNumber(9), blocks: 3, id: AggregationId([7; 32]) };
        let points = [point, SlavePoint::START];
        assert_eq!(parse_points(&points_text(&points)).as_deref(), Some(&points[..]));
        assert_eq!(parse_points(""), Some(Vec::new()));
        for (last, done) in [(Some(last), None), (None, Some((2, AggregationNumber(8))))] {
            let target = SlavePosition { point, last };
            let restoring = Restoring { target, done, aggregations: (12, 7), blocks: 99 };
            let text = restoring_text(&restoring);
            assert_eq!(parse_mark("restoring", &text), Some(SlaveMark::Restoring(restoring)), "{text}");
        }
        for bad in ["", "1:2", "1:2:3:4", "1:2:-3", "1:2:", "1:2:99999999999999999999"] {
            assert_eq!(parse_last(bad), None, "{bad:?}");
        }
        for bad in ["", "- - - 1 1 1", "x", "1 2 3 4 5 6 7"] {
            assert_eq!(parse_mark("restoring", bad), None, "{bad:?}");
        }
        assert_eq!(parse_mark("paused", ""), None);
        assert_eq!(parse_points("1:2 3"), None);
    }
}
