//! Moments as a person writes them.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

/// Why a text is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MomentError {
    /// Not one of the forms.
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
}

/// What a text means, seen from `now`: nanoseconds since 1970.
///
/// RFC 3339 with an offset, `now`, or how long ago: `5m ago`, `2h30m ago`, `1 week ago`. Days and longer are those of the
/// calendar in `now`'s time zone.
pub fn parse(text: &str, now: &Zoned) -> Result<tlog_proto::Timestamp, MomentError> {
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

/// [`parse`], seen from this moment on this machine.
pub fn parse_now(text: &str) -> Result<tlog_proto::Timestamp, MomentError> {
    parse(text, &Zoned::now())
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
        let check = |text: &str, shown: &str| assert_eq!(show(parse(text, &now()).unwrap()), shown, "{text}");
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
        assert_eq!(parse("2024-03-01T12:30:00.123456789Z", &now()).unwrap().0, 1_709_296_200_123_456_789);
    }

    #[test]
    fn what_is_no_moment_is_refused_with_the_reason() {
        let check = |text: &str, error: fn(String) -> MomentError| {
            assert_eq!(parse(text, &now()), Err(error(text.to_owned())));
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
            prop_assert_eq!(parse(&text, &now()).unwrap().0, nanoseconds);
        }
    }
}
