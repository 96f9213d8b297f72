//! What writes the disk: the real client, in a process that is killed and started again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use tlog_client::{Client, ClientOptions, ConnectError, Durable, EndCause, Start};
use tlog_proto::{Block, BlockIndex, Operation, Sequence, SessionId};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::machine::ClientHost;
use crate::model;
use crate::net::Host;
use crate::scenario::one_of;
use crate::world::World;

/// What front-ends are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Rises with every kill.
    pub(crate) kills: u64,
    /// They write nothing more, and have everything flushed.
    pub(crate) finish: bool,
}

/// Gives orders to all front-ends, in their order: each has a channel of its own, since which of several that wait at one channel runs first
/// is left to chance.
pub(crate) struct Command(Vec<watch::Sender<Orders>>);

impl Command {
    pub(crate) fn new(front_ends: usize) -> Self {
        Self((0..front_ends).map(|_| watch::Sender::new(Orders::default())).collect())
    }

    /// What each front-end listens to.
    pub(crate) fn listen(&self) -> impl Iterator<Item = watch::Receiver<Orders>> {
        self.0.iter().map(watch::Sender::subscribe)
    }

    pub(crate) fn give(&self, change: impl Fn(&mut Orders)) {
        self.0.iter().for_each(|orders| orders.send_modify(&change));
    }
}

/// A life that goes on: its session, and the first sequence that is not acknowledged.
struct Kept {
    life: usize,
    session: SessionId,
}

/// How one process of a front-end ended.
enum Over {
    Killed(Kept),
    Ended(Kept, EndCauseKind),
    /// Everything is durable.
    Finished(Client),
    /// Nobody gives orders any more.
    Alone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndCauseKind {
    TakenOver,
    Other,
}

/// Writes the disk until it is told to finish; answers once everything is durable then, with the client, which has the log kept open.
pub(crate) async fn run(world: Arc<World>, mut orders: watch::Receiver<Orders>) -> Option<Client> {
    let mut rng = world.rng();
    let mut kept: Option<Kept> = None;
    loop {
        let host = world.host();
        let over = match connect(&world, host, &mut rng, kept.take()).await {
            Some((client, life)) => {
                let over = live(&world, &client, life, &mut rng, &mut orders).await;
                if let Over::Killed(_) = over {
                    let unknown_for = world.net.cut_off(Host::Client(host));
                    // A server that has not answered its handshake yet may do so after it is gone.
                    if client.server().is_none() {
                        world.expect_ghost(unknown_for);
                    }
                }
                drop(client);
                over
            }
            None => {
                sleep(Duration::from_millis(rng.random_range(10..500))).await;
                continue;
            }
        };
        kept = match over {
            Over::Finished(client) => return Some(client),
            Over::Alone => return None,
            // Whoever was thrown out does not come back as who it was.
            Over::Ended(of, EndCauseKind::TakenOver) => {
                world.model().end_life(of.life);
                None
            }
            Over::Killed(of) | Over::Ended(of, EndCauseKind::Other) => {
                // A front-end with a journal sends again what was not acknowledged; others begin behind the log's end.
                let journal = !world.scenario.rivals && !world.scenario.resets && rng.random_bool(0.4);
                if !journal {
                    world.model().end_life(of.life);
                }
                journal.then_some(of)
            }
        };
        sleep(Duration::from_millis(rng.random_range(0..1500))).await;
    }
}

fn options(world: &World, rng: &mut SmallRng) -> ClientOptions {
    ClientOptions {
        connect_timeout: Duration::from_secs(2),
        handshake_timeout: Duration::from_secs(10),
        answer_timeout: Duration::from_millis(one_of(rng, &[500, 2000, 5000]).unwrap_or(2000)),
        resend_timeout: Duration::from_millis(one_of(rng, &[400, 2000]).unwrap_or(400)),
        flush_after: Duration::from_secs(4),
        max_unflushed_bytes: one_of(rng, &[2048, 64 << 10]).unwrap_or(2048),
        limits: tlog_proto::Limits { max_block_bytes: world.scenario.block_bytes, ..Default::default() },
        ..ClientOptions::default()
    }
}

/// None where no server accepts just now.
async fn connect(
    world: &Arc<World>,
    host: u64,
    rng: &mut SmallRng,
    kept: Option<Kept>,
) -> Option<(Client, usize)> {
    let mut options = options(world, rng);
    let again = kept.as_ref().map(|kept| (kept.life, world.model().unacknowledged(kept.life)));
    let reset = kept.is_none() && world.scenario.resets && rng.random_bool(0.3);
    if let (Some(kept), Some((_, open))) = (&kept, &again) {
        match open.first() {
            Some((_, block)) => {
                options.start = Start::At(block.sequence);
                options.session = Some(kept.session);
            }
            // Everything was acknowledged: it is a new client like any other.
            None => world.model().end_life(kept.life),
        }
    } else if reset {
        options.start = Start::Reset(Sequence(rng.random_range(0..3)));
    }
    let again = again.filter(|(_, open)| !open.is_empty());
    let connector = Arc::new(ClientHost { world: Arc::clone(world), number: host });
    let mut servers: Vec<String> = (0..world.machines.len()).map(|number| format!("s{number}:1")).collect();
    if rng.random_bool(0.5) {
        servers.reverse();
    }
    let goes_on = !reset && again.is_none();
    let asked = world.model().now();
    let start = options.start;
    let client = match Client::connect_over(connector, servers, world.vdisk.clone(), options).await {
        Ok(client) => client,
        Err(error) => {
            world.tell(|| format!("client {host} is not accepted ({start:?}): {error}"));
            check_refusal(world, &error);
            if let Some((life, _)) = again {
                world.model().end_life(life);
            }
            return None;
        }
    };
    let first = client.first_sequence();
    world.tally(|tally| tally.lives += 1);
    let life = match &again {
        Some((life, _)) => *life,
        None => world.model().begin_life(asked, goes_on.then_some(first)),
    };
    world.tell(|| {
        let (server, session) = (client.server(), client.session());
        format!("client {host} (life {life}, session {session}) is accepted by {server:?} and begins with {first} ({start:?})")
    });
    for (mark, block) in again.map(|(_, open)| open).unwrap_or_default() {
        let sequence = block.sequence;
        match client.send(block).await {
            Ok(durable) => watch_over(world, vec![(mark, durable)]),
            Err(error) => {
                world.tell(|| format!("client {host} cannot send {sequence} again: {error}"));
                break;
            }
        }
    }
    Some((client, life))
}

/// A client is told of a gap or of another client only where that is so.
fn check_refusal(world: &World, error: &ConnectError) {
    let all = match error {
        ConnectError::NoneOf(errors) => errors.as_slice(),
        error => std::slice::from_ref(error),
    };
    if world.scenario.rivals || world.scenario.resets {
        return;
    }
    for error in all {
        if let ConnectError::Gap { .. }
        | ConnectError::TakenOver { .. }
        | ConnectError::LogEndUnknown { .. } = error
        {
            world.find(format!("a client that nobody disturbs is refused: {error}"));
        }
    }
}

/// Notes what becomes durable.
fn watch_over(world: &Arc<World>, writes: Vec<(u64, Durable)>) {
    let world = Arc::clone(world);
    tokio::spawn(async move {
        for (mark, durable) in writes {
            if durable.await.is_ok() {
                world.model().acknowledge(mark);
                world.tell(|| format!("write {mark} is acknowledged"));
            }
        }
    });
}

async fn live(
    world: &Arc<World>,
    client: &Client,
    life: usize,
    rng: &mut SmallRng,
    orders: &mut watch::Receiver<Orders>,
) -> Over {
    let kept = Kept { life, session: client.session() };
    let kills = orders.borrow_and_update().kills;
    // Who connects does not always write soon.
    let mut idle =
        if rng.random_bool(0.3) { Duration::from_millis(rng.random_range(0..4000)) } else { Duration::ZERO };
    loop {
        let now = *orders.borrow_and_update();
        if now.kills != kills {
            world.tell(|| format!("the client of life {life} is killed"));
            return Over::Killed(kept);
        }
        if let Some(ending) = client.ending() {
            world.tell(|| format!("the client of life {life} has ended: {ending}"));
            return Over::Ended(kept, check_ending(world, ending.cause()));
        }
        if now.finish {
            return finish(world, client, kept, rng).await;
        }
        let step = async {
            match rng.random_range(0..10) {
                _ if !idle.is_zero() => sleep(std::mem::take(&mut idle)).await,
                0..6 => write(world, client, life, rng).await,
                6..8 => {
                    let patience = Duration::from_millis(rng.random_range(1..2000));
                    // Who does not wait any longer goes on writing.
                    let _ = timeout(patience, client.flush()).await;
                }
                _ => sleep(Duration::from_millis(rng.random_range(1..800))).await,
            }
        };
        tokio::select! {
            biased;
            changed = orders.changed() => if changed.is_err() { return Over::Alone },
            () = step => {}
        }
    }
}

/// A client that nobody disturbs does not end by itself.
fn check_ending(world: &World, cause: &EndCause) -> EndCauseKind {
    let disturbed = world.scenario.rivals || world.scenario.resets;
    match cause {
        // The one that is gone came back last, as far as anybody can tell.
        EndCause::TakenOver { .. } if world.expects_ghost() => EndCauseKind::TakenOver,
        EndCause::TakenOver { .. } if disturbed => EndCauseKind::TakenOver,
        EndCause::Gap { .. } if disturbed => EndCauseKind::TakenOver,
        EndCause::Closed => EndCauseKind::Other,
        cause => {
            world.find(format!("a client that nobody disturbs has ended: {cause}"));
            EndCauseKind::Other
        }
    }
}

async fn write(world: &Arc<World>, client: &Client, life: usize, rng: &mut SmallRng) {
    let count = rng.random_range(1..=5);
    let mut writes = Vec::with_capacity(count);
    for _ in 0..count {
        let sequence = client.next_sequence();
        let mark = world.model().next_mark();
        let block = block(world, sequence, mark, rng);
        // Only what is taken is handed over, so there is no waiting between the two.
        match client.try_send(block.clone()) {
            Ok(durable) => {
                let index = block.index;
                world.model().issue(life, block);
                world.tell(|| format!("life {life} writes {mark}: sequence {sequence}, block {index}"));
                writes.push((mark, durable));
            }
            Err(_) => break, // full, or over: it is looked at next
        }
    }
    let full = writes.is_empty();
    watch_over(world, writes);
    if full {
        sleep(Duration::from_millis(20)).await;
    }
}

/// A write that nobody else makes.
fn block(world: &World, sequence: Sequence, mark: u64, rng: &mut SmallRng) -> Block {
    let index = BlockIndex::new(rng.random_range(0..world.scenario.blocks)).unwrap_or_default();
    let timestamp = model::timestamp(tlog_ambient::unix_nanos(), mark);
    if rng.random_bool(0.15) {
        return Block::delete(sequence, index, timestamp);
    }
    let mut data = vec![0; world.scenario.block_bytes];
    rng.fill(data.as_mut_slice());
    let block = Block::set(sequence, index, timestamp, Bytes::from(data));
    debug_assert_eq!(block.operation, Operation::Set);
    block
}

/// Writes once more, so that it shows that the log is open, and has everything flushed.
async fn finish(world: &Arc<World>, client: &Client, kept: Kept, rng: &mut SmallRng) -> Over {
    write(world, client, kept.life, rng).await;
    match client.flush().await {
        Ok(()) => {
            // Those who watch over writes are told before they note it.
            sleep(Duration::from_millis(5)).await;
            Over::Finished(client.clone())
        }
        Err(ending) => {
            world.tell(|| format!("the client of life {} has ended: {ending}", kept.life));
            let cause = check_ending(world, ending.cause());
            Over::Ended(kept, cause)
        }
    }
}
