//! Moments as a person writes them: what is read is written so that it is read as the same again.

use jiff::Zoned;
use tlog::moment::{WrittenMoment, argument, parse, parse_time, show};
use tlog_player::Moment;

use crate::Target;

/// All of it is the text.
pub const TARGET: Target = Target { name: "moments", memory: 256 << 10, check, seeds };

thread_local! {
    /// Noon of a day whose night had 23 hours.
    static NOW: Zoned = "2024-03-31T12:00:00+02:00[Europe/Berlin]".parse().expect("a time zone that systems know");
}

fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    NOW.with(|now| {
        match parse(text, now) {
            Ok(WrittenMoment::Itself(moment)) => {
                let written = argument(&moment).to_string();
                assert_eq!(parse(&written, now), Ok(WrittenMoment::Itself(moment)), "{text:?}, {written:?}");
                if let Moment::At(time) = moment {
                    assert!(!show(time).is_empty());
                }
            }
            Ok(WrittenMoment::Named(name)) => {
                assert!(name.is_ascii() && name.len() <= 64, "{name:?}");
                assert_eq!(parse(&name, now), Ok(WrittenMoment::Named(name.clone())));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        let _ = parse_time(text, now);
    });
}

fn seeds() -> Vec<Vec<u8>> {
    let id = format!("id:{}", "a5".repeat(32));
    let texts = [
        "newest",
        "now",
        "seq:1204",
        "gen:2/seq:1204",
        "agg:17",
        &id,
        "2024-03-01T12:30:00Z",
        "2024-03-01T12:30:00.123456789+02:00",
        "2024-03-01 12:30:00Z",
        "2024-03-01T12:30:00",
        "5m ago",
        " 2h 30m ago ",
        "1.5s ago",
        "3 days ago",
        "P1Y2M3DT4H5M6S",
        "5m",
        "before-upgrade",
        "100 years ago",
    ];
    texts.into_iter().map(|text| text.as_bytes().to_vec()).collect()
}
