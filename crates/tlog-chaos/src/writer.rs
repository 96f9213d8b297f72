//! A client in a process of its own: writes a disk with the real client library, and keeps a journal.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tlog_client::{Client, ClientOptions, Durable, Start};
use tlog_proto::{Block, Operation, Sequence, SessionId, VdiskId};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::journal::{Handed, Journal, JournalWriter};
use crate::model::Disk;
use crate::wrong::Wrong;

/// What the process is told on its command line.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct WriterArguments {
    /// Which vdisk
    #[arg(long)]
    vdisk: String,
    /// Bytes of a block
    #[arg(long)]
    block_size: u32,
    /// Blocks of the disk
    #[arg(long)]
    blocks: u64,
    /// What contents and places follow from
    #[arg(long)]
    seed: u64,
    /// Writes in a second, about
    #[arg(long)]
    rate: u32,
    /// Servers, in the order in which they are tried
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
    /// What was handed over and acknowledged, also by those before
    #[arg(long)]
    journal: PathBuf,
    /// What it does that it must not
    #[arg(long)]
    wrong: Option<Wrong>,
}

/// What is read from standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Nothing yet: what is left from before is sent again, and that is all.
    Wait,
    Write,
    /// Nothing more is written, and everything becomes durable.
    BeQuiet,
}

impl WriterArguments {
    /// The command line of a process that writes this disk.
    pub(crate) fn of(
        disk: &Disk,
        rate: u32,
        servers: &[String],
        journal: &Path,
        wrong: Option<Wrong>,
    ) -> Vec<String> {
        let options = [
            ("vdisk", disk.vdisk.clone()),
            ("block-size", disk.block_size.to_string()),
            ("blocks", disk.blocks.to_string()),
            ("seed", disk.seed.to_string()),
            ("rate", rate.to_string()),
            ("servers", servers.join(",")),
            ("journal", journal.display().to_string()),
        ];
        let wrong = wrong.map(|wrong| ("wrong", wrong.to_string()));
        let options = options.into_iter().chain(wrong);
        let options = options.flat_map(|(name, value)| [format!("--{name}"), value]);
        ["write".to_owned()].into_iter().chain(options).collect()
    }

    fn disk(&self) -> Disk {
        let Self { vdisk, block_size, blocks, seed, .. } = self.clone();
        Disk { vdisk, block_size, blocks, seed }
    }

    fn options(&self, session: SessionId, first: u64) -> ClientOptions {
        ClientOptions {
            start: Start::At(Sequence(first)),
            session: Some(session),
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(10),
            // Until it is killed.
            connect_deadline: Duration::from_secs(24 * 3600),
            answer_timeout: Duration::from_secs(2),
            resend_timeout: Duration::from_secs(1),
            max_unflushed_bytes: 256 << 10,
            ..ClientOptions::default()
        }
    }
}

/// Goes on with a journal until standard input ends, or it is killed.
pub fn write(arguments: &WriterArguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (journal, before) = JournalWriter::open(&arguments.journal)?;
    let journal = Arc::new(journal);
    let orders = orders();
    let written = runtime.block_on(go_on(arguments, Arc::clone(&journal), before, orders));
    if let Err(error) = &written {
        // Whoever reads the journal hears of it, and ends everything.
        journal.say(&format!("wrong {}", format!("{error:#}").replace('\n', " ")))?;
    }
    written
}

fn orders() -> watch::Receiver<Order> {
    let (give, orders) = watch::channel(Order::Wait);
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let order = match line.as_str() {
                "quiet" => Order::BeQuiet,
                _ => Order::Write,
            };
            give.send_replace(order);
        }
    });
    orders
}

async fn go_on(
    arguments: &WriterArguments,
    journal: Arc<JournalWriter>,
    before: Journal,
    orders: watch::Receiver<Order>,
) -> anyhow::Result<()> {
    let session = match before.session {
        Some(session) => session,
        None => {
            let session = SessionId(getrandom::u64().context("no random numbers")?);
            journal.say(&format!("session {session:016x}", session = session.0))?;
            session
        }
    };
    let disk = arguments.disk();
    let first = before.acknowledged + 1;
    let options = arguments.options(session, first);
    let vdisk = VdiskId::new(&disk.vdisk)?;
    let client =
        Client::connect(arguments.servers.join(","), vdisk, options).await.context("not accepted")?;
    check_end(&client, &before)?;
    let (watch_over, watched) = mpsc::unbounded_channel();
    let noting = tokio::spawn(note(Arc::clone(&journal), watched));
    let wrong = arguments.wrong;
    let mut writing = Writing { client, disk, journal, watch_over, next: first, orders, wrong };
    for write in before.writes.iter().skip(before.acknowledged as usize) {
        writing.send(write).await?;
    }
    let rate = arguments.rate;
    tokio::select! {
        written = writing.run(rate) => written,
        noted = noting => noted?,
    }
}

/// What the server says of the log's end must be what was acknowledged or handed over.
fn check_end(client: &Client, before: &Journal) -> anyhow::Result<()> {
    let end = client.last_flushed_at_connect().map_or(0, |end| end.0);
    if end < before.acknowledged || end > before.handed() {
        bail!(
            "{:?} says that the log ends with {end}, and up to {} was acknowledged, up to {} handed over",
            client.server(),
            before.acknowledged,
            before.handed()
        );
    }
    Ok(())
}

/// Notes acknowledgements, in their order.
async fn note(
    journal: Arc<JournalWriter>,
    mut watched: mpsc::UnboundedReceiver<Durable>,
) -> anyhow::Result<()> {
    while let Some(durable) = watched.recv().await {
        let sequence = durable.sequence();
        durable.await.with_context(|| format!("write {sequence}"))?;
        journal.say(&format!("acknowledged {sequence}"))?;
    }
    // Everything is over.
    std::future::pending().await
}

struct Writing {
    client: Client,
    disk: Disk,
    journal: Arc<JournalWriter>,
    watch_over: mpsc::UnboundedSender<Durable>,
    next: u64,
    orders: watch::Receiver<Order>,
    wrong: Option<Wrong>,
}

impl Writing {
    /// Sends what is in the journal.
    async fn send(&mut self, write: &Handed) -> anyhow::Result<()> {
        let mut block = self.disk.block(self.next, write);
        match self.wrong {
            Some(Wrong::OtherContent) if self.next.is_multiple_of(20) && !block.data.is_empty() => {
                block = Block::set(block.sequence, block.index, block.timestamp, self.disk.content(0));
            }
            Some(Wrong::EarlyAcknowledgement) => self.journal.say(&format!("acknowledged {}", self.next))?,
            Some(Wrong::OtherContent | Wrong::WipedStores) | None => {}
        }
        let durable = self.client.send(block).await.context("it is not taken")?;
        self.next += 1;
        let _ = self.watch_over.send(durable);
        Ok(())
    }

    async fn run(&mut self, rate: u32) -> anyhow::Result<()> {
        let mut random = SmallRng::seed_from_u64(self.disk.seed ^ self.next.rotate_left(32));
        loop {
            let order = *self.orders.borrow_and_update();
            match order {
                Order::Wait => {}
                Order::Write => self.burst(&mut random, rate).await?,
                Order::BeQuiet => self.be_quiet().await?,
            }
            let over = match order {
                Order::Write => self.orders.has_changed().is_err(),
                Order::Wait | Order::BeQuiet => self.orders.changed().await.is_err(),
            };
            if over {
                return Ok(());
            }
        }
    }

    /// Some writes, and a pause that makes the rate.
    async fn burst(&mut self, random: &mut SmallRng, rate: u32) -> anyhow::Result<()> {
        let count = random.random_range(1..=8);
        for _ in 0..count {
            let operation = if random.random_bool(0.1) { Operation::Delete } else { Operation::Set };
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            let write = Handed {
                index: random.random_range(0..self.disk.blocks),
                operation,
                nanos: u64::try_from(now.as_nanos())?,
            };
            self.journal.hand_over(self.next, &write)?;
            self.send(&write).await?;
        }
        if random.random_bool(0.1) {
            // Who does not wait any longer goes on writing.
            let patience = Duration::from_millis(random.random_range(1..1000));
            if let Ok(flushed) = timeout(patience, self.client.flush()).await {
                flushed.context("it cannot be flushed")?;
            }
        }
        sleep(Duration::from_secs_f64(f64::from(count) / f64::from(rate))).await;
        Ok(())
    }

    async fn be_quiet(&mut self) -> anyhow::Result<()> {
        self.client.flush().await.context("it cannot be flushed")?;
        let stats = self.client.stats();
        ensure!(stats.unexpected_responses == 0, "a server has answered what was not asked: {stats:?}");
        self.journal.say(&format!("quiet {}", self.next - 1))
    }
}
