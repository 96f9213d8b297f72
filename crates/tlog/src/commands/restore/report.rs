//! What a restore did, in words and as JSON.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};
use tlog_player::{MomentReached, RestoreSummary, Unfinished};

use super::{Arguments, Restored};
use crate::moment;
use crate::settings::show_size;

/// On standard output, but where the disk itself went there.
pub(super) fn tell(arguments: &Arguments, output: &Path, restored: &Restored) -> io::Result<()> {
    let words = match arguments.json {
        true => as_json(arguments, output, restored).to_string(),
        false => in_words(arguments, output, restored),
    };
    match output.as_os_str() == "-" {
        true => writeln!(io::stderr().lock(), "{words}"),
        false => writeln!(io::stdout().lock(), "{words}"),
    }
}

/// That an interrupted restore is gone on with. `as_begun`: its moment was the newest, which may be another one now.
pub(super) fn goes_on(path: &Path, begun: &Unfinished, as_begun: bool) -> String {
    let anew = match as_begun {
        true => "; --fresh begins anew, with the disk as it is now",
        false => "",
    };
    let (path, of) = (path.display(), moment_of(begun));
    match begun.aggregations {
        0 => format!("going on with the restore to {path} that was begun, of {of}{anew}"),
        done => format!(
            "going on with the restore to {path} that was begun, of {of}: {done} aggregations are noted as done{anew}"
        ),
    }
}

/// Which disk of when it is.
pub(super) fn moment_of(begun: &Unfinished) -> String {
    format!("vdisk {} as it was at {}", begun.vdisk, place(&begun.reached))
}

pub(super) fn place(reached: &MomentReached) -> String {
    format!(
        "{} (aggregation {}, generation {}, sequence {})",
        moment::show(reached.timestamp),
        reached.aggregation,
        reached.position.generation,
        reached.position.sequence,
    )
}

fn in_words(arguments: &Arguments, output: &Path, restored: &Restored) -> String {
    let Restored { reached, summary, took, .. } = restored;
    let RestoreSummary { aggregations, aggregations_needed, blocks, bytes, read_bytes, before, .. } =
        *summary;
    let to = match output.as_os_str() == "-" {
        true => "standard output".into(),
        false => output.display().to_string(),
    };
    let mut words = format!(
        "vdisk {} as it was at {}, restored to {to}: {} long, {} blocks ({}) in {:.2} s ({}/s)",
        arguments.vdisk,
        place(reached),
        show_size(summary.len),
        blocks + before.blocks,
        show_size(bytes + before.bytes),
        took.as_secs_f64(),
        show_size(rate(restored)),
    );
    if before.aggregations > 0 {
        words.push_str(&format!(
            "; {} blocks ({}) of {} aggregations were there from before",
            before.blocks,
            show_size(before.bytes),
            before.aggregations
        ));
    }
    words.push_str(&format!("; {aggregations} aggregations ({}) read", show_size(read_bytes)));
    if let Some(skipped) = skipped(summary) {
        words.push_str(&format!(
            ", {skipped} of {} skipped, as nothing in them counts any more",
            skipped + aggregations_needed
        ));
    }
    if arguments.check {
        words.push_str("; read back, and equal");
    }
    words
}

/// Bytes in a second, of those that were restored this time.
fn rate(restored: &Restored) -> u64 {
    (restored.summary.bytes as f64 / restored.took.as_secs_f64().max(1e-9)) as u64
}

/// Aggregations up to the moment of which nothing is needed.
fn skipped(summary: &RestoreSummary) -> Option<u64> {
    Some(summary.aggregations_of_history?.saturating_sub(summary.aggregations_needed))
}

fn as_json(arguments: &Arguments, output: &Path, restored: &Restored) -> Value {
    let Restored { reached, block_size, summary, took } = restored;
    json!({
        "vdisk": arguments.vdisk.as_str(),
        "output": output,
        "moment": moment::show(reached.timestamp),
        "moment_ns": reached.timestamp.0,
        "format": reached.format.number(),
        "aggregation": reached.aggregation.0,
        "generation": reached.position.generation.0,
        "sequence": reached.position.sequence.0,
        "block_size": block_size,
        "length": summary.len,
        "blocks": summary.blocks + summary.before.blocks,
        "bytes": summary.bytes + summary.before.bytes,
        "blocks_before": summary.before.blocks,
        "bytes_before": summary.before.bytes,
        "aggregations_read": summary.aggregations,
        "aggregations_before": summary.before.aggregations,
        "aggregations_needed": summary.aggregations_needed,
        "aggregations_skipped": skipped(summary),
        "bytes_read": summary.read_bytes,
        "checked": arguments.check,
        "seconds": took.as_secs_f64(),
        "bytes_per_second": rate(restored),
    })
}
