//! Slaves, read with another client and compared with what the journals say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use redis::Commands;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::checking::{ASK_EVERY, Calm};
use crate::fault::{Blow, Fault, Who};
use crate::report::Tally;
use crate::site::Site;
use crate::striking;

/// Within this a command that is under way arrives, if one is.
const ARRIVAL: Duration = Duration::from_millis(50);

/// What is on a slave: content by index of its block.
type Blocks = BTreeMap<u64, Vec<u8>>;

/// Waits until the slave holds everything, and compares it. Nothing may be written meanwhile.
pub(crate) async fn slave_is_the_disk(site: &Arc<Site>, calm: Calm) -> anyhow::Result<Duration> {
    let mut longest = Duration::ZERO;
    for client in &site.clients {
        let journal = client.journal()?;
        let vdisk = &client.disk.vdisk;
        let what = format!("slave of {vdisk} up to date");
        let took = calm.until(site, ASK_EVERY, &what, async || {
            let (state, sequence, told) = site.tool.slave(vdisk).await?;
            ensure!(state != "needs_resync" && state != "stopped", "the slave of vdisk {vdisk}: {told}");
            let is = state == "filled" && sequence == Some(journal.handed());
            Ok(if is { Ok(()) } else { Err(told.to_string()) })
        });
        longest = longest.max(took.await?);
        let blocks = blocks_of(site, vdisk).await?;
        let found = blocks.iter().map(|(index, data)| (*index, &data[..]));
        let compared = client.disk.compare_blocks(&client.disk.after(&journal.writes), found);
        if let Err(wrong) = compared {
            bail!("the slave of vdisk {vdisk} after write {}: {wrong}", journal.handed());
        }
    }
    Ok(longest)
}

/// Stops the servers for a moment, wherever their syncers are: each slave is the disk after some write, at or after the position that it
/// names.
pub(crate) async fn slave_is_a_moment(site: &Arc<Site>, tally: &Tally) -> anyhow::Result<()> {
    let stops: Vec<_> =
        (0..site.servers.len()).map(|number| Fault::Process(Who::Server(number), Blow::Stopped)).collect();
    for stop in &stops {
        striking::begin(site, stop).await?;
    }
    for client in &site.clients {
        let vdisk = &client.disk.vdisk;
        // Each syncer waits for the answer to one command before it sends the next.
        let (mut position, mut blocks) = (position_of(site, vdisk).await?, blocks_of(site, vdisk).await?);
        loop {
            sleep(ARRIVAL).await;
            let now = (position_of(site, vdisk).await?, blocks_of(site, vdisk).await?);
            if now == (position, blocks.clone()) {
                break;
            }
            (position, blocks) = now;
        }
        let journal = client.journal()?;
        client.disk.moment_of(&journal.writes, &blocks, position).map_err(|wrong| {
            anyhow::anyhow!("the slave of vdisk {vdisk}, which says that it has everything up to write {position}: {wrong}")
        })?;
        tally.slave_compared();
    }
    for stop in &stops {
        striking::end(site, stop).await?;
    }
    Ok(())
}

/// The sequence up to which everything is on a slave, as it says itself; 0 where it says nothing.
async fn position_of(site: &Arc<Site>, vdisk: &str) -> anyhow::Result<u64> {
    let (site, key) = (Arc::clone(site), format!("tlog:last_slave_sync_seq:{vdisk}"));
    let position = spawn_blocking(move || {
        let store = site.slave.first().context("no slave")?;
        let position: Option<u64> = connect(&store.redis.address())?.get(key)?;
        anyhow::Ok(position.unwrap_or_default())
    });
    position.await?
}

/// Every block of a vdisk on its slave, by the documented layout.
async fn blocks_of(site: &Arc<Site>, vdisk: &str) -> anyhow::Result<Blocks> {
    let (site, key) = (Arc::clone(site), format!("nondedup:{vdisk}"));
    let blocks = spawn_blocking(move || {
        let stores = site.slave.len() as u64;
        let mut blocks = Blocks::new();
        for (number, store) in (0..).zip(&site.slave) {
            let held: Blocks = connect(&store.redis.address())?.hgetall(&key)?;
            ensure!(
                held.keys().all(|index| index % stores == number),
                "{key}: a block is on another store of the slave"
            );
            blocks.extend(held);
        }
        Ok(blocks)
    });
    blocks.await?
}

fn connect(address: &str) -> anyhow::Result<redis::Connection> {
    Ok(redis::Client::open(format!("redis://{address}/"))?.get_connection()?)
}
