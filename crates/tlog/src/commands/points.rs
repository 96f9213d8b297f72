//! `tlog points`: moments worth restoring.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::{Value, json};
use tlog_player::{LogReader, Point, PointOptions, PointReason, Points, StoredFormat};
use tlog_proto::VdiskId;

use super::progress;
use crate::keys::{self, KeysError};
use crate::moment::{self, argument};
use crate::settings::{Settings, SettingsArgs, TimeSpan};
use crate::{logging, reading, words};

/// Shows moments of a vdisk that are worth restoring, from old to new, each with the exact argument for 'tlog restore'.
///
/// Where the log begins and ends, where a client began its sequences anew (a new generation) or another one went on, where nothing was
/// written for a while, where clocks stepped back, and moments that have a mark or a checkpoint. The last two take the key; without it the
/// rest is shown, by what aggregations say in the clear (what older servers wrote in format 1 takes private-key and nonce). Times are those
/// of whoever wrote; the argument leads to that moment whatever they say.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tlog points vda\n  \
    tlog points vda --since '1 day ago' --gap 1h\n  \
    tlog points vda --json                 one JSON object on each line\n  \
    tlog restore vda -o disk.img --at agg:17    as it was at a moment that 'tlog points' names\n\n\
    Exit status: 0 shown; 1 not all of it could be read, or there is a key and it does not open marks and checkpoints.")]
pub(crate) struct Arguments {
    /// Which vdisk
    vdisk: VdiskId,
    /// Only moments at or after this time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Nothing written for longer than this is a pause
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    gap: TimeSpan,
    /// Prints one JSON object for each moment
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let since = arguments.since.as_deref().map(moment::parse_time_now).transpose()?;
    let settings = settings.of_vdisk(&arguments.vdisk).await?;
    let reader = reading::open(&settings, &arguments.vdisk).await?;
    let bar = progress::counting("reading");
    bar.set_length(reader.extent().count());
    let options = PointOptions { since, gap: arguments.gap.0 };
    let with_records = with_records(&settings, &reader, options).await;
    let (points, missing) = match with_records {
        Ok(Some(points)) => (points, None),
        Ok(None) => {
            (reader.points(options), Some(("they take the key (key-file)".to_owned(), ExitCode::SUCCESS)))
        }
        Err(error) => (reader.points(options), Some((words::of_error(&error), ExitCode::FAILURE))),
    };
    let shown = show(points, arguments.json, &bar).await;
    bar.finish_and_clear();
    shown?;
    reading::tell_uncertain_end(&reader);
    let Some((why, status)) = missing else { return Ok(ExitCode::SUCCESS) };
    eprintln!("tlog: marks and checkpoints are not among them: {why}");
    Ok(status)
}

/// None where there is no key.
async fn with_records(
    settings: &Settings,
    reader: &LogReader,
    options: PointOptions,
) -> anyhow::Result<Option<Points>> {
    let none_is_named = settings.key_file.is_none();
    if let Err(KeysError::NotSet { .. } | KeysError::Missing { .. }) = keys::load(settings)
        && none_is_named
    {
        return Ok(None);
    }
    let keys = reading::keys_of(settings, reader.vdisk())?;
    Ok(Some(reader.points_with_records(&keys, options).await?))
}

async fn show(mut points: Points, json: bool, bar: &ProgressBar) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if !json {
        writeln!(out, "{HEADING}")?;
    }
    while let Some(batch) = points.next_batch().await? {
        bar.set_position(points.aggregations());
        for point in batch {
            bar.suspend(|| match json {
                true => writeln!(out, "{}", as_json(&point)),
                false => writeln!(out, "{}", as_line(&point)),
            })?;
        }
    }
    Ok(())
}

const HEADING: &str = "time                      number    generation:sequence   for tlog restore       why";

fn as_line(point: &Point) -> String {
    let number = match point.format {
        StoredFormat::Two => point.aggregation.to_string(),
        StoredFormat::One if point.aggregation.0 == 0 => "old".to_owned(),
        StoredFormat::One => format!("old {}", point.aggregation),
    };
    let why: Vec<String> = point.reasons.iter().map(in_words).collect();
    format!(
        "{:<24}  {number:<8}  {:<20}  --at {:<16}  {}",
        moment::show(point.timestamp),
        point.position.to_string(),
        argument_of(point),
        why.join("; "),
    )
}

/// What leads there: the name, where it has one.
fn argument_of(point: &Point) -> String {
    let name = point.reasons.iter().find_map(|reason| match reason {
        PointReason::Mark(name) => Some(name.to_string()),
        _ => None,
    });
    name.unwrap_or_else(|| argument(&point.moment).to_string())
}

fn in_words(reason: &PointReason) -> String {
    match reason {
        PointReason::Beginning => "history begins".to_owned(),
        PointReason::End => "the log ends".to_owned(),
        PointReason::Mark(name) => format!("mark {name}"),
        PointReason::Checkpoint { record, is_base: true } => format!("checkpoint {record}"),
        PointReason::Checkpoint { record, is_base: false } => format!("image {record}, of this moment alone"),
        PointReason::BeforeGeneration(next) => format!("last before generation {next}"),
        PointReason::FirstOfGeneration(generation) => format!("first write of generation {generation}"),
        PointReason::BeforeSession(session) => format!("another client ({session}) goes on"),
        PointReason::BeforePause(pause) => format!("nothing written for {}", show_span(*pause)),
        PointReason::BeforeStepBack(by) => format!("then clocks step back by {}", show_span(*by)),
        PointReason::EndOfFormat1 => "last that was written in format 1".to_owned(),
    }
}

fn as_json(point: &Point) -> Value {
    let why = |reason: &PointReason| {
        let name = reason.name();
        match reason {
            PointReason::BeforeGeneration(next) => json!({ "reason": name, "next_generation": next.0 }),
            PointReason::BeforeSession(next) => json!({ "reason": name, "next_session": next.0 }),
            PointReason::BeforePause(span) | PointReason::BeforeStepBack(span) => {
                json!({ "reason": name, "seconds": span.as_secs_f64() })
            }
            PointReason::Mark(mark) => json!({ "reason": name, "name": mark.as_str() }),
            PointReason::Checkpoint { record, is_base } => {
                json!({ "reason": name, "checkpoint": record.0, "later_moments": is_base })
            }
            PointReason::Beginning
            | PointReason::End
            | PointReason::FirstOfGeneration(_)
            | PointReason::EndOfFormat1 => json!({ "reason": name }),
        }
    };
    json!({
        "moment": argument_of(point),
        "time": moment::show(point.timestamp),
        "time_ns": point.timestamp.0,
        "format": point.format.number(),
        "aggregation": point.aggregation.0,
        "generation": point.position.generation.0,
        "sequence": point.position.sequence.0,
        "id": point.id.to_string(),
        "why": point.reasons.iter().map(why).collect::<Vec<_>>(),
    })
}

/// A span of time as a person reads it: its two largest units.
fn show_span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{:.1} ms", span.as_secs_f64() * 1000.0),
        1..60 => format!("{:.1} s", span.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} days {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_shown_in_units_that_fit_them() {
        let check = |millis: u64, shown: &str| assert_eq!(show_span(Duration::from_millis(millis)), shown);
        check(2, "2.0 ms");
        check(1_500, "1.5 s");
        check(61_000, "1 min 1 s");
        check(2 * 3_600_000 + 180_000, "2 h 3 min");
        check(50 * 3_600_000, "2 days 2 h");
    }

    #[test]
    fn the_gap_on_the_command_line_is_that_of_the_library() {
        assert_eq!("5m".parse::<TimeSpan>().unwrap().0, PointOptions::DEFAULT_GAP);
    }
}
