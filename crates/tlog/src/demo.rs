//! The whole path on one machine: a server, an image that changes, stores that are destroyed, every moment restored.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::stream;
use tlog_player::{Moment, ReadOptions, Verdict};
use tlog_proto::{Timestamp, VdiskId};
use tokio_util::sync::CancellationToken;

use crate::commands::{restore, verify};
use crate::demo_image::DemoImage;
use crate::reading;
use crate::recording::{DEFAULT_BLOCK_SIZE, Recording};
use crate::service::Service;
use crate::settings::{Settings, SettingsArgs, show_size};

/// The stores that are destroyed: as many as may be.
const DESTROYED: [usize; 2] = [1, 4];

/// How often the image changes.
const CHANGES: u32 = 4;

/// Runs the demo in an empty directory and tells `out` about it. Answers whether everything restored was equal.
///
/// The image is a file system where the tools for that are there and `generated` is not set.
pub async fn run(
    scratch: &Path,
    image_bytes: u64,
    generated: bool,
    out: &mut (impl Write + Send),
) -> anyhow::Result<bool> {
    let began = Instant::now();
    let vdisk = VdiskId::new("demo")?;
    let data_dir = scratch.join("tlog-data");
    let data_dir_text = data_dir.to_str().context("the scratch directory's name is not UTF-8")?;
    let settings = SettingsArgs::default().with("data-dir", data_dir_text).with("listen", "127.0.0.1:0");
    let settings = Settings::from_flags(&settings)?;

    let mut steps = Steps { out, number: 0 };
    let service = Service::start(&settings).await?;
    let server = service.address().to_string();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(service.run(shutdown.clone()));
    steps.tell(
        &format!(
            "a server on {server}, with {} directory stores ({}) in {}",
            settings.stores().len(),
            settings.redundancy,
            data_dir.display()
        ),
        began.elapsed(),
    )?;

    let at = Instant::now();
    let mut image = DemoImage::make(scratch, image_bytes, generated)?;
    steps.tell(&format!("an image of {}: {}", show_size(image_bytes), image.what()), at.elapsed())?;

    let recording = Recording {
        vdisk: vdisk.clone(),
        image: image.path().to_owned(),
        block_size: None,
        new_block_size: DEFAULT_BLOCK_SIZE,
        servers: server.into(),
        give_up_after: Duration::from_secs(30),
    };
    let mut moments =
        vec![record(&recording, &settings, &image, scratch, "recorded all of it", &mut steps).await?];
    for change in 1..=CHANGES {
        let what = image.change(change)?;
        let what = format!("{what}; recorded what changed");
        moments.push(record(&recording, &settings, &image, scratch, &what, &mut steps).await?);
    }

    let at = Instant::now();
    wait_until_stored(&settings, &vdisk).await?;
    steps.tell("waited until all six stores have all of it, and know that", at.elapsed())?;

    let at = Instant::now();
    for store in DESTROYED {
        std::fs::remove_dir_all(data_dir.join(format!("store-{store}")))?;
    }
    let [one, other] = DESTROYED;
    steps.tell(&format!("destroyed store-{one} and store-{other}, while the server runs"), at.elapsed())?;

    let mut equal = true;
    for number in 1..=moments.len() {
        equal &=
            restore_and_compare(&settings, &vdisk, scratch, number, &moments, &image, &mut steps).await?;
    }

    let report = verify_log(&settings, &vdisk, &mut steps, "verified, every byte").await?;
    equal &= report == Verdict::Degraded;

    let at = Instant::now();
    shutdown.cancel();
    let stopped = serving.await.context("the server broke")?;
    if !stopped.all_durable() {
        bail!("the server stopped and not everything is durable");
    }
    steps.tell("stopped the server: everything is durable", at.elapsed())?;

    let total = began.elapsed().as_secs_f64();
    let verdict = match equal {
        true => {
            format!("all {} moments restored byte for byte after the loss of 2 of 6 stores", moments.len())
        }
        false => "NOT EVERYTHING WAS EQUAL: see above".to_owned(),
    };
    writeln!(steps.out, "{verdict} ({total:.1} s)")?;
    Ok(equal)
}

/// What was done, and what it cost.
struct Steps<'a, W> {
    out: &'a mut W,
    number: u32,
}

impl<W: Write> Steps<'_, W> {
    fn tell(&mut self, what: &str, took: Duration) -> anyhow::Result<()> {
        self.number += 1;
        writeln!(self.out, "{:>2}. {what}  [{:.2} s]", self.number, took.as_secs_f64())?;
        self.out.flush()?;
        Ok(())
    }
}

/// A moment to come back to: when, and what the image was then.
struct Kept {
    at: Timestamp,
    image: PathBuf,
}

async fn record(
    recording: &Recording,
    settings: &Settings,
    image: &DemoImage,
    scratch: &Path,
    what: &str,
    steps: &mut Steps<'_, impl Write>,
) -> anyhow::Result<Kept> {
    let recorded = recording.run(settings, stream::empty(), |_, _| {}, |_| {}).await?;
    let now = jiff::Timestamp::now();
    let at = Timestamp(u64::try_from(now.as_nanosecond()).context("the clock is before 1970")?);
    let what = format!(
        "{what}: {} blocks set, {} deleted, {}",
        recorded.set,
        recorded.deleted,
        show_size(recorded.bytes)
    );
    steps.tell(&what, recorded.took)?;
    let kept = scratch.join(format!("kept-{}", steps.number));
    std::fs::copy(image.path(), &kept)?;
    Ok(Kept { at, image: kept })
}

async fn restore_and_compare(
    settings: &Settings,
    vdisk: &VdiskId,
    scratch: &Path,
    number: usize,
    moments: &[Kept],
    image: &DemoImage,
    steps: &mut Steps<'_, impl Write>,
) -> anyhow::Result<bool> {
    let moment = moments.get(number - 1).context("no such moment")?;
    let output = scratch.join("restored");
    let options = ReadOptions::default();
    let restored = restore::restore(settings, vdisk, Moment::At(moment.at), &options, &output, true).await?;
    let equal = same_content(&output, &moment.image)?;
    let verdict = if equal { "equal, byte for byte" } else { "NOT EQUAL" };
    let checked = image.check(&output)?;
    let what = format!("restored moment {number}: {verdict}{checked}");
    steps.tell(&what, restored.took)?;
    Ok(equal)
}

/// An acknowledgement says that five of the six stores have it, and survives the loss of one. What the demo shows, the loss of
/// two, is promised as soon as the sixth has it too, which is a moment later.
async fn wait_until_stored(settings: &Settings, vdisk: &VdiskId) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let reader = reading::open(settings, vdisk).await?;
        let report = verify::look(&reader, settings, false).await?;
        if report.verdict == Verdict::Whole && report.extent.committed == report.extent.last {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(30) {
            bail!("a store lags behind: {}", verify::verdict_in_words(&report));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn verify_log(
    settings: &Settings,
    vdisk: &VdiskId,
    steps: &mut Steps<'_, impl Write>,
    what: &str,
) -> anyhow::Result<Verdict> {
    let at = Instant::now();
    let reader = reading::open(settings, vdisk).await?;
    let report = verify::look(&reader, settings, true).await?;
    let what = format!(
        "{what}: {} aggregations, {} blocks: {}",
        report.aggregations,
        report.blocks_checked,
        verify::verdict_in_words(&report)
    );
    steps.tell(&what, at.elapsed())?;
    Ok(report.verdict)
}

fn same_content(one: &Path, other: &Path) -> anyhow::Result<bool> {
    let (mut one, mut other) = (std::fs::File::open(one)?, std::fs::File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let length = read_full(&mut one, &mut left)?;
        if read_full(&mut other, &mut right)? != length || left.get(..length) != right.get(..length) {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
    }
}

fn read_full(from: &mut impl std::io::Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
