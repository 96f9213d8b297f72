//! Moments as a person writes them.
//!
//! ```text
//! newest               after the last write of the log
//! TIME                 2024-03-01T12:30:00Z, '2h30m ago', now: after the last write at or before it
//! seq:N                after the write with this sequence, in the newest generation that has it
//! gen:G/seq:N          after the write with this sequence of this generation
//! agg:N                after this aggregation
//! id:HEX               after the aggregation with this id, of either format
//! NAME                 what somebody called so
//! ```
//!
//! All commands read them here.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use tlog_codec::VdiskKeys;
use tlog_player::{LogReader, Moment, RecordsError};
use tlog_proto::{AggregationId, AggregationNumber, Generation, LogPosition, Sequence, VdiskId};

/// Why a text is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MomentError {
    /// Not one of the forms of a time.
    #[error(
        "{0:?} is no moment; write it as RFC 3339, such as 2024-03-01T12:30:00Z or 2024-03-01T12:30:00+02:00, or as \
         '5m ago', '2h30m ago', '3 days ago', or 'now'"
    )]
    Unknown(String),
    /// A date and time of day, somewhere on earth.
    #[error("{0:?} does not say in which time zone; put Z (UTC) or an offset such as +02:00 behind it")]
    NoOffset(String),
    /// A duration without a direction.
    #[error("{0:?} is a duration and no moment; did you mean '{0} ago'?")]
    NoAgo(String),
    /// Before anything that a log can hold.
    #[error("{0:?} is before 1970, when the clocks that a log is written by begin")]
    TooEarly(String),
    /// It begins like a place in the log and does not go on like one.
    #[error(
        "{0:?} is no place in a log; write it as seq:1204, gen:2/seq:1204, agg:17, or id: with the 64 digits that 'tlog history --json' shows"
    )]
    NoPlace(String),
}

/// Which moment a text means cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is no mark of that name.
    #[error(transparent)]
    NoSuchMark(#[from] NoSuchMark),
    /// The marks cannot be read.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

/// No moment of the vdisk has that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "vdisk {vdisk} has no mark {name:?}; a moment is a mark, a time such as 2024-03-01T12:30:00Z or '5m ago', or seq:N, gen:G/seq:N, agg:N, \
     id:HEX or newest; 'tlog points {vdisk}' shows some"
)]
pub struct NoSuchMark {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// What was asked for.
    pub name: String,
}

/// A moment as it was written: what it means may be up to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WrittenMoment {
    /// It says itself which it is.
    Itself(Moment),
    /// What the vdisk has under a name.
    Named(String),
}

impl From<Moment> for WrittenMoment {
    fn from(moment: Moment) -> Self {
        Self::Itself(moment)
    }
}

impl FromStr for WrittenMoment {
    type Err = MomentError;

    /// [`parse`], seen from this moment on this machine.
    fn from_str(text: &str) -> Result<Self, MomentError> {
        parse(text, &Zoned::now())
    }
}

impl WrittenMoment {
    /// Which moment of a log it is.
    pub async fn resolve(&self, reader: &LogReader, keys: &VdiskKeys) -> Result<Moment, ResolveError> {
        let name = match self {
            Self::Itself(moment) => return Ok(*moment),
            Self::Named(name) => name,
        };
        let marks = reader.marks(keys).await?;
        let mark = marks.iter().find(|mark| mark.name.as_str() == name);
        let mark = mark.ok_or_else(|| NoSuchMark { vdisk: reader.vdisk().clone(), name: name.clone() })?;
        let LogPosition { generation, sequence } = mark.place.position;
        Ok(Moment::Sequence { generation: Some(generation), sequence })
    }
}

/// What a text means, seen from `now`: one of the forms above.
pub fn parse(text: &str, now: &Zoned) -> Result<WrittenMoment, MomentError> {
    let text = text.trim();
    if text == "newest" {
        return Ok(Moment::Newest.into());
    }
    if let Some(place) = place(text) {
        return place.map(WrittenMoment::from).ok_or_else(|| MomentError::NoPlace(text.to_owned()));
    }
    match parse_time(text, now) {
        Ok(time) => Ok(Moment::At(time).into()),
        Err(MomentError::Unknown(text)) if is_name(&text) => Ok(WrittenMoment::Named(text)),
        Err(error) => Err(error),
    }
}

/// Whether a text can be a name: a letter, then letters, digits, dots, underscores and hyphens, 64 at most, all of ASCII.
fn is_name(text: &str) -> bool {
    let goes_on = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    text.len() <= 64 && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(goes_on)
}

/// None where it does not begin like a place in a log; none within where it does and is none.
fn place(text: &str) -> Option<Option<Moment>> {
    let (kind, value) = text.split_once(':')?;
    match kind {
        "seq" => Some(number(value).map(|n| Moment::Sequence { generation: None, sequence: Sequence(n) })),
        "agg" => Some(number(value).map(|n| Moment::Aggregation(AggregationNumber(n)))),
        "gen" => {
            let both = value.split_once("/seq:").and_then(|(g, s)| Some((number(g)?, number(s)?)));
            Some(both.map(|(generation, sequence)| Moment::Sequence {
                generation: Some(Generation(generation)),
                sequence: Sequence(sequence),
            }))
        }
        "id" => Some(AggregationId::parse(value).map(Moment::Id)),
        _ => None,
    }
}

/// Digits alone.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A moment in the form in which [`parse`] takes it back: what `--at` is given.
pub fn argument(moment: &Moment) -> impl fmt::Display {
    match *moment {
        Moment::Newest => "newest".to_owned(),
        Moment::At(time) => match Timestamp::from_nanosecond(i128::from(time.0)) {
            Ok(time) => time.to_string(),
            Err(_) => "newest".to_owned(), // beyond any calendar, and so is no write
        },
        Moment::Sequence { generation: None, sequence } => format!("seq:{sequence}"),
        Moment::Sequence { generation: Some(generation), sequence } => {
            format!("gen:{generation}/seq:{sequence}")
        }
        Moment::Aggregation(number) => format!("agg:{number}"),
        Moment::Id(id) => format!("id:{id}"),
    }
}

/// What a text means as a time, seen from `now`: nanoseconds since 1970.
///
/// RFC 3339 with an offset, `now`, or how long ago: `5m ago`, `2h30m ago`, `1 week ago`. Days and longer are those of the
/// calendar in `now`'s time zone.
pub fn parse_time(text: &str, now: &Zoned) -> Result<tlog_proto::Timestamp, MomentError> {
    let text = text.trim();
    let too_early = || MomentError::TooEarly(text.to_owned());
    let moment = if text == "now" {
        now.timestamp()
    } else if let Ok(moment) = text.parse::<Timestamp>() {
        moment
    } else if let Ok(span) = text.parse::<Span>() {
        if !text.ends_with("ago") {
            return Err(MomentError::NoAgo(text.to_owned()));
        }
        now.checked_add(span).map_err(|_| too_early())?.timestamp()
    } else if text.parse::<jiff::civil::DateTime>().is_ok() {
        return Err(MomentError::NoOffset(text.to_owned()));
    } else {
        return Err(MomentError::Unknown(text.to_owned()));
    };
    let nanoseconds = u64::try_from(moment.as_nanosecond()).map_err(|_| too_early())?;
    Ok(tlog_proto::Timestamp(nanoseconds))
}

/// [`parse_time`], seen from this moment on this machine.
pub fn parse_time_now(text: &str) -> Result<tlog_proto::Timestamp, MomentError> {
    parse_time(text, &Zoned::now())
}

/// This moment, as this machine's clock has it; 0 where that is before 1970.
pub fn now() -> tlog_proto::Timestamp {
    tlog_proto::Timestamp(u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0))
}

/// As RFC 3339 in UTC, to the millisecond; a moment that no calendar has, as its number.
pub fn show(moment: tlog_proto::Timestamp) -> String {
    match Timestamp::from_nanosecond(i128::from(moment.0)) {
        Ok(moment) => moment.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        Err(_) => format!("{} ns", moment.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now() -> Zoned {
        "2024-03-31T12:00:00+02:00[Europe/Berlin]".parse().unwrap()
    }

    #[test]
    fn every_form_of_a_moment_is_read() {
        let check =
            |text: &str, shown: &str| assert_eq!(show(parse_time(text, &now()).unwrap()), shown, "{text}");
        check("now", "2024-03-31T10:00:00.000Z");
        check("5m ago", "2024-03-31T09:55:00.000Z");
        check("2h30m ago", "2024-03-31T07:30:00.000Z");
        check(" 2h 30m ago ", "2024-03-31T07:30:00.000Z");
        check("90 seconds ago", "2024-03-31T09:58:30.000Z");
        check("1.5s ago", "2024-03-31T09:59:58.500Z");
        // The clocks went forward that night: a day before was 23 hours earlier.
        check("1 day ago", "2024-03-30T11:00:00.000Z");
        check("1 week ago", "2024-03-24T11:00:00.000Z");
        check("2024-03-01T12:30:00Z", "2024-03-01T12:30:00.000Z");
        check("2024-03-01T12:30:00.123456789+02:00", "2024-03-01T10:30:00.123Z");
        check("2024-03-01 12:30:00Z", "2024-03-01T12:30:00.000Z");
        check("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z");
        assert_eq!(
            parse_time("2024-03-01T12:30:00.123456789Z", &now()).unwrap().0,
            1_709_296_200_123_456_789
        );
    }

    #[test]
    fn what_is_no_moment_is_refused_with_the_reason() {
        let check = |text: &str, error: fn(String) -> MomentError| {
            assert_eq!(parse_time(text, &now()), Err(error(text.to_owned())));
        };
        for text in [
            "",
            "yesterday",
            "5 ago",
            "ago",
            "5x ago",
            "2024-13-01T00:00:00Z",
            "12:30",
            "-5",
            "5m ago ago",
            "now ago",
        ] {
            check(text, MomentError::Unknown);
        }
        check("2024-03-01T12:30:00", MomentError::NoOffset);
        check("2024-03-01", MomentError::NoOffset);
        check("5m", MomentError::NoAgo);
        check("1969-12-31T23:59:59Z", MomentError::TooEarly);
        check("100 years ago", MomentError::TooEarly);
        check("19000 years ago", MomentError::TooEarly);
    }

    #[test]
    fn places_in_a_log_are_read_and_written_in_one_form() {
        let id = AggregationId([0xa5; 32]);
        let at = |generation: Option<u64>, sequence| Moment::Sequence {
            generation: generation.map(Generation),
            sequence: Sequence(sequence),
        };
        let check = |text: &str, moment: Moment| {
            assert_eq!(parse(text, &now()), Ok(moment.into()), "{text}");
            assert_eq!(argument(&moment).to_string(), text);
        };
        check("newest", Moment::Newest);
        check("seq:0", at(None, 0));
        check("seq:18446744073709551615", at(None, u64::MAX));
        check("gen:2/seq:1204", at(Some(2), 1204));
        check("agg:17", Moment::Aggregation(AggregationNumber(17)));
        check(&format!("id:{}", "a5".repeat(32)), Moment::Id(id));
        check("2024-03-01T12:30:00.123456789Z", Moment::At(tlog_proto::Timestamp(1_709_296_200_123_456_789)));
        let bad = [
            "seq:",
            "seq:-1",
            "seq:+1",
            "seq:1/gen:2",
            "gen:1",
            "gen:1/seq:",
            "agg:x",
            "id:a5",
            "seq:18446744073709551616",
        ];
        for text in bad {
            assert_eq!(parse(text, &now()), Err(MomentError::NoPlace(text.to_owned())));
        }
    }

    #[test]
    fn what_is_neither_a_time_nor_a_place_may_be_a_name() {
        for name in ["before-upgrade", "v2.3_final", "yesterday", "a"] {
            assert_eq!(parse(name, &now()), Ok(WrittenMoment::Named(name.to_owned())));
        }
        let long = "a".repeat(65);
        for text in ["", "12:30", "-5", "5x ago", "two words", "v\u{e9}lo", "mark:x", &long] {
            assert_eq!(parse(text, &now()), Err(MomentError::Unknown(text.to_owned())));
        }
        assert_eq!(parse("5m", &now()), Err(MomentError::NoAgo("5m".to_owned())));
        assert_eq!(parse("2024-03-01", &now()), Err(MomentError::NoOffset("2024-03-01".to_owned())));
    }

    #[test]
    fn a_moment_beyond_the_calendar_is_shown_as_its_number() {
        assert_eq!(show(tlog_proto::Timestamp(u64::MAX)), "2554-07-21T23:34:33.709Z");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = parse(&text, &now());
        }

        #[test]
        fn a_moment_in_full_precision_is_read_back(nanoseconds in 0..i64::MAX as u64) {
            let text = Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap().to_string();
            prop_assert_eq!(parse_time(&text, &now()).unwrap().0, nanoseconds);
        }
    }
}
