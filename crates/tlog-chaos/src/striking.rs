//! Faults, carried out and undone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use tokio::task::spawn_blocking;

use crate::fault::{Blow, Cut, Fault, Who};
use crate::process::Program;
use crate::relay::Relay;
use crate::site::{Site, Store};

/// How long a server may take to end where that was asked for, on a machine that does ten other things: it gives up after 5 s.
const TERMINATION: Duration = Duration::from_secs(120);

/// Lets something go wrong.
pub(crate) async fn begin(site: &Arc<Site>, fault: &Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Process(who, blow) => strike(site, *who, *blow).await,
        Fault::DiskFull(number) => {
            with_store(site, Who::Store(*number), |store| {
                store.disk.as_ref().context("no small disk")?.fill()
            })
            .await
        }
        Fault::StoreWiped(number) => strike(site, Who::Store(*number), Blow::Killed).await,
        Fault::StoresCut { .. } | Fault::SlaveCut { .. } | Fault::ClientsCut { .. } => cut(site, fault, true),
        Fault::PowerFails => {
            for who in site.shape().machines() {
                strike(site, who, Blow::Killed).await?;
            }
            Ok(())
        }
    }
}

/// Undoes it; answers when what was killed is started again.
pub(crate) async fn end(site: &Arc<Site>, fault: &Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Process(who, blow) => recover(site, *who, *blow).await,
        Fault::DiskFull(number) => {
            // Redis ends where it cannot write to its file, and may be about to.
            with_store(site, Who::Store(*number), |store| {
                store.disk.as_ref().context("no small disk")?.free()?;
                store.keep_log()?;
                store.redis.restart();
                Ok(())
            })
            .await
        }
        Fault::StoreWiped(number) => {
            with_store(site, Who::Store(*number), |store| {
                store.redis.restart_empty();
                Ok(())
            })
            .await
        }
        Fault::StoresCut { .. } | Fault::SlaveCut { .. } | Fault::ClientsCut { .. } => {
            cut(site, fault, false)
        }
        Fault::PowerFails => {
            for who in site.shape().machines() {
                recover(site, who, Blow::Killed).await?;
            }
            Ok(())
        }
    }
}

async fn strike(site: &Arc<Site>, who: Who, blow: Blow) -> anyhow::Result<()> {
    let blow_to = |program: &mut Program| match blow {
        Blow::Killed => program.kill(),
        Blow::Stopped => program.signal(Signal::STOP),
        Blow::Terminated => program.signal(Signal::TERM),
    };
    match who {
        Who::Server(_) | Who::Client(_) => blow_to(&mut *program(site, who)?.lock().await),
        Who::Store(_) | Who::SlaveStore(_) => {
            with_store(site, who, move |store| match blow {
                Blow::Killed | Blow::Terminated => {
                    store.keep_log()?;
                    store.redis.kill();
                    Ok(())
                }
                Blow::Stopped => {
                    store.redis.stop();
                    Ok(())
                }
            })
            .await
        }
    }
}

async fn recover(site: &Arc<Site>, who: Who, blow: Blow) -> anyhow::Result<()> {
    match who {
        Who::Server(_) | Who::Client(_) => {
            let mut program = program(site, who)?.lock().await;
            match blow {
                Blow::Stopped => return program.signal(Signal::CONT),
                Blow::Killed => {}
                Blow::Terminated => {
                    let status = program.wait(TERMINATION).await?;
                    // 1: not everything is durable, which clients know.
                    if !matches!(status.code(), Some(0 | 1)) {
                        bail!(
                            "{who} was asked to end, and did with {status}: see {}",
                            program.log().display()
                        );
                    }
                }
            }
            program.start()?;
            match who {
                Who::Client(_) => program.tell("write"),
                _ => Ok(()),
            }
        }
        Who::Store(_) | Who::SlaveStore(_) => {
            with_store(site, who, move |store| {
                match blow {
                    Blow::Stopped => store.redis.cont(),
                    Blow::Killed | Blow::Terminated => store.redis.restart(),
                }
                Ok(())
            })
            .await
        }
    }
}

fn cut(site: &Site, fault: &Fault, begins: bool) -> anyhow::Result<()> {
    let (relays, how): (Vec<&Relay>, Cut) = match fault {
        Fault::StoresCut { server, stores, how } => {
            let links = &site.servers.get(*server).context("no such server")?.stores;
            (stores.iter().filter_map(|store| links.get(*store)).collect(), *how)
        }
        Fault::SlaveCut { server, how } => {
            (site.servers.get(*server).context("no such server")?.slave.iter().collect(), *how)
        }
        Fault::ClientsCut { server, how } => {
            (vec![&site.servers.get(*server).context("no such server")?.front], *how)
        }
        Fault::Process(..) | Fault::DiskFull(_) | Fault::StoreWiped(_) | Fault::PowerFails => return Ok(()),
    };
    relays.into_iter().for_each(|relay| relay.set(begins.then_some(how)));
    Ok(())
}

fn program(site: &Site, who: Who) -> anyhow::Result<&tokio::sync::Mutex<Program>> {
    let found = match who {
        Who::Server(number) => site.servers.get(number).map(|server| &server.program),
        Who::Client(number) => site.clients.get(number).map(|client| &client.program),
        Who::Store(_) | Who::SlaveStore(_) => None,
    };
    found.with_context(|| format!("there is no {who}"))
}

/// Does something to a store that blocks.
async fn with_store(
    site: &Arc<Site>,
    who: Who,
    work: impl FnOnce(&Store) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    let site = Arc::clone(site);
    let worked = spawn_blocking(move || {
        let store = match who {
            Who::Store(number) => site.stores.get(number),
            Who::SlaveStore(number) => site.slave.get(number),
            Who::Server(_) | Who::Client(_) => None,
        };
        work(store.with_context(|| format!("there is no {who}"))?)
    });
    worked.await.with_context(|| format!("{who}"))?
}
