//! `tlog restore --verify-against`: whether an image is the disk of a moment.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value, json};
use tlog_player::{Comparison, compare_with_image};

use super::{Arguments, Disk, progress, report};
use crate::settings::{Settings, show_size};
use crate::{logging, moment, words};

const EQUAL: u8 = 0;
const DIFFERS: u8 = 1;
/// It could not be told.
const UNKNOWN: u8 = 3;

pub(super) async fn run(arguments: &Arguments, image: &Path) -> ExitCode {
    match compare(arguments, image).await {
        Ok(code) => ExitCode::from(code),
        // Told apart from "differs", which is 1.
        Err(error) => {
            eprintln!("tlog: {}", words::of_error(&error));
            ExitCode::from(UNKNOWN)
        }
    }
}

async fn compare(arguments: &Arguments, image: &Path) -> anyhow::Result<u8> {
    let settings = Settings::load(&arguments.settings)?;
    logging::init_for_tool(&settings.logging);
    let settings = settings.of_vdisk(&arguments.vdisk).await?;
    let disk = Disk::of(arguments, &settings).await?;
    let bar = progress::of_bytes("comparing");
    let found = compare_with_image(&disk.state, image, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })
    .await;
    bar.finish_and_clear();
    let found = found.with_context(|| format!("{} cannot be read", image.display()))?;
    let told = match arguments.json {
        true => as_json(arguments, image, &disk, &found).to_string(),
        false => in_words(arguments, image, &disk, &found),
    };
    let shown = writeln!(io::stdout().lock(), "{told}");
    match shown {
        // What was found counts, not whether anybody reads it.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ if found.is_equal() => Ok(EQUAL),
        _ => Ok(DIFFERS),
    }
}

fn in_words(arguments: &Arguments, image: &Path, disk: &Disk, found: &Comparison) -> String {
    let (image, place) = (image.display(), report::place(&disk.reached));
    let of = format!("vdisk {} as it was at {place}", arguments.vdisk);
    if found.is_equal() {
        return format!(
            "{image} is {of}: {} blocks with content compared, everything else is zeros ({} in all)",
            found.blocks,
            show_size(found.image_len)
        );
    }
    let mut words = format!("{image} is NOT {of}");
    if found.is_shorter() {
        words.push_str(&format!(": it has {} bytes, and the disk {}", found.image_len, found.disk_len));
    }
    if found.different > 0 {
        let named: Vec<_> = found.first_different.iter().map(ToString::to_string).collect();
        let more = if found.different > named.len() as u64 { ", ..." } else { "" };
        words.push_str(&format!(": {} blocks differ ({}{more})", found.different, named.join(", ")));
    }
    words
}

fn as_json(arguments: &Arguments, image: &Path, disk: &Disk, found: &Comparison) -> Value {
    let reached = &disk.reached;
    json!({
        "vdisk": arguments.vdisk.as_str(),
        "image": image,
        "moment": moment::show(reached.timestamp),
        "moment_ns": reached.timestamp.0,
        "format": reached.format.number(),
        "aggregation": reached.aggregation.0,
        "generation": reached.position.generation.0,
        "sequence": reached.position.sequence.0,
        "block_size": disk.state.block_size(),
        "equal": found.is_equal(),
        "image_length": found.image_len,
        "disk_length": found.disk_len,
        "blocks": found.blocks,
        "blocks_different": found.different,
        "first_different": found.first_different.iter().map(|index| index.get()).collect::<Vec<_>>(),
        "seconds": disk.began.elapsed().as_secs_f64(),
    })
}
