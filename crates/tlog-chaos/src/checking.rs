//! Restores and slaves, compared with what the journals say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use crate::journal::Journal;
use crate::report::Tally;
use crate::site::{Client, Site};
use crate::tool::Restored;

/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The same, of looks that start a program.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(500);

/// Moments that are restored of each vdisk at the end of a round, beside the newest.
const EARLIER_MOMENTS: usize = 4;

/// Nothing goes wrong any more, and everything has to recover by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calm {
    /// After what.
    after: &'static str,
    /// Since when.
    since: Instant,
    /// How long it may take.
    limit: Duration,
}

impl Calm {
    /// From now on.
    pub(crate) fn begin(after: &'static str, limit: Duration) -> Self {
        Self { after, since: Instant::now(), limit }
    }

    /// Waits for something; answers how long after the beginning it was so. Nothing may end by itself meanwhile.
    pub(crate) async fn until(
        &self,
        site: &Site,
        every: Duration,
        what: &str,
        mut is: impl AsyncFnMut() -> anyhow::Result<Result<(), String>>,
    ) -> anyhow::Result<Duration> {
        loop {
            let missing = match is().await? {
                Ok(()) => return Ok(self.since.elapsed()),
                Err(missing) => missing,
            };
            site.check_runs().await?;
            let Self { after, since, limit } = self;
            ensure!(since.elapsed() < *limit, "not within {limit:?} after {after}: {what}: {missing}");
            sleep(every).await;
        }
    }
}

/// Waits until every client has had something acknowledged that was not handed over before this.
pub(crate) async fn writes_go_on(site: &Site, calm: Calm) -> anyhow::Result<Duration> {
    let mut goals = Vec::new();
    for client in &site.clients {
        goals.push(client.look(Journal::handed)? + 1);
    }
    calm.until(site, LOOK_EVERY, "acknowledgements", async || {
        for (client, goal) in site.clients.iter().zip(&goals) {
            let (handed, acknowledged) = client.look(|journal| (journal.handed(), journal.acknowledged))?;
            if acknowledged < *goal {
                let vdisk = &client.disk.vdisk;
                return Ok(Err(format!(
                    "vdisk {vdisk}: {acknowledged} acknowledged, {handed} handed over, {goal} waited for"
                )));
            }
        }
        Ok(Ok(()))
    })
    .await
}

/// Waits until a client has noted something as acknowledged that was not before this.
pub(crate) async fn something_is_acknowledged(
    site: &Site,
    client: usize,
    calm: Calm,
) -> anyhow::Result<Duration> {
    let client = site.clients.get(client).context("no such client")?;
    let before = client.look(|journal| journal.acknowledged)?;
    calm.until(site, LOOK_EVERY, "an acknowledgement", async || {
        let (acknowledged, vdisk) = (client.look(|journal| journal.acknowledged)?, &client.disk.vdisk);
        let missing = || format!("vdisk {vdisk}: {acknowledged} acknowledged");
        Ok(if acknowledged > before { Ok(()) } else { Err(missing()) })
    })
    .await
}

/// Lets the clients write.
pub(crate) async fn write(site: &Site) -> anyhow::Result<()> {
    for client in &site.clients {
        client.program.lock().await.tell("write")?;
    }
    Ok(())
}

/// Lets the clients stop writing, and waits until all that was handed over is durable.
pub(crate) async fn be_quiet(site: &Site, calm: Calm) -> anyhow::Result<Duration> {
    for client in &site.clients {
        client.program.lock().await.tell("quiet")?;
    }
    calm.until(site, LOOK_EVERY, "everything durable", async || {
        for client in &site.clients {
            let is_quiet = client.look(|journal| {
                journal.quiet == Some(journal.handed()) && journal.acknowledged == journal.handed()
            })?;
            if !is_quiet {
                let vdisk = &client.disk.vdisk;
                return Ok(Err(format!("vdisk {vdisk} is not")));
            }
        }
        Ok(Ok(()))
    })
    .await
}

/// Waits until every store has everything, and knows so.
pub(crate) async fn stores_are_whole(site: &Site, calm: Calm) -> anyhow::Result<Duration> {
    calm.until(site, ASK_EVERY, "stores that have everything", async || {
        for client in &site.clients {
            let (code, said) = site.tool.verify(&client.disk.vdisk, &[]).await?;
            if code != Some(0) {
                return Ok(Err(said));
            }
        }
        Ok(Ok(()))
    })
    .await
}

/// Restores the newest moment and some earlier ones of each vdisk, and compares. All must be possible.
pub(crate) async fn restores_are_the_disk(
    site: &Site,
    random: &mut SmallRng,
    tally: &Tally,
) -> anyhow::Result<()> {
    for client in &site.clients {
        let handed = client.look(Journal::handed)?;
        let earlier = (0..EARLIER_MOMENTS).map(|_| Some(random.random_range(1..=handed)));
        for sequence in [None].into_iter().chain(earlier) {
            let restored = site.tool.restore(&client.disk.vdisk, sequence, "round.img").await?;
            let vdisk = &client.disk.vdisk;
            let restored =
                restored.map_err(|said| anyhow::anyhow!("vdisk {vdisk} cannot be restored: {said}"))?;
            let reached = sequence.unwrap_or(handed);
            ensure!(
                restored.sequence == reached,
                "vdisk {vdisk} was restored after write {}, not {reached}",
                restored.sequence
            );
            compare(client, &restored)?;
            tally.compared();
        }
    }
    Ok(())
}

fn compare(client: &Client, restored: &Restored) -> anyhow::Result<()> {
    let (vdisk, sequence) = (&client.disk.vdisk, restored.sequence);
    ensure!(restored.generation == 1, "vdisk {vdisk} has a generation {}", restored.generation);
    let compared = client.look(|journal| {
        let writes = journal.writes.get(..sequence as usize);
        writes.map(|writes| client.disk.compare(writes, &restored.image))
    })?;
    match compared
        .with_context(|| format!("vdisk {vdisk} has a write {sequence} that nobody has handed over"))?
    {
        Ok(()) => Ok(()),
        Err(wrong) => bail!("vdisk {vdisk} restored after write {sequence}: {wrong}"),
    }
}

/// Each write is in the log once, in order, in one generation.
pub(crate) async fn history_is_whole(site: &Site) -> anyhow::Result<()> {
    for client in &site.clients {
        let vdisk = &client.disk.vdisk;
        let output = site.tool.run(&["history", vdisk, "--json"]).await?;
        ensure!(output.status.success(), "tlog history {vdisk}: {}", String::from_utf8_lossy(&output.stderr));
        let mut next = 1;
        for line in String::from_utf8(output.stdout)?.lines() {
            let line: serde_json::Value = serde_json::from_str(line)?;
            let number = |field: &str| line.get(field).and_then(serde_json::Value::as_u64);
            ensure!(
                number("generation") == Some(1) && number("first_sequence") == Some(next),
                "sequence {next} comes next: {line}"
            );
            next = number("last_sequence").context("no last_sequence")? + 1;
        }
        let handed = client.look(Journal::handed)?;
        ensure!(
            next == handed + 1,
            "the history of vdisk {vdisk} ends with {}, and {handed} were handed over",
            next - 1
        );
        let (code, said) = site.tool.verify(vdisk, &["--deep"]).await?;
        ensure!(code == Some(0), "tlog verify {vdisk} --deep: {said}");
    }
    Ok(())
}

/// Restores moments all the time, whatever happens to the stores, and compares what comes out. That too few stores are in reach is no error.
pub(crate) async fn keep_looking(site: Arc<Site>, seed: u64, tally: Arc<Tally>) -> anyhow::Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    loop {
        for client in &site.clients {
            let acknowledged = client.look(|journal| journal.acknowledged)?;
            if acknowledged == 0 {
                continue;
            }
            let sequence = random.random_bool(0.6).then(|| random.random_range(1..=acknowledged));
            match site.tool.restore(&client.disk.vdisk, sequence, "meanwhile.img").await? {
                Ok(restored) => {
                    let vdisk = &client.disk.vdisk;
                    let at_least = sequence.unwrap_or(acknowledged);
                    ensure!(
                        restored.sequence >= at_least
                            && sequence.is_none_or(|sequence| sequence == restored.sequence),
                        "vdisk {vdisk}: {sequence:?} was asked for when {acknowledged} was acknowledged, and {} restored",
                        restored.sequence
                    );
                    compare(client, &restored)?;
                    tally.compared_meanwhile();
                }
                Err(said) => tally.not_possible(said),
            }
            sleep(Duration::from_millis(random.random_range(500..1500))).await;
        }
        sleep(LOOK_EVERY).await;
    }
}
