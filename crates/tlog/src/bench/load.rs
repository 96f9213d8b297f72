//! The load: blocks, by as many clients as there are vdisks.
//!
//! ```text
//!  permits ---> hands over: client.set ---(when, handle)---> waits for the handle, in order ---> FlushOK latency
//!     ^                        |                                        |
//!     |                     events of the client ---> RecvOK latency    |
//!     +------- closed loop: a block became durable ---------------------+
//!     +------- open loop: its time has come (a thread that sleeps)
//! ```
//!
//! In the open loop latency counts from when a block was due, also where the client or the server could not take it then: what waits
//! in front of a server that stands still is not left out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::FutureExt;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use tlog_client::{BLOCK_OVERHEAD, Client, ClientOptions, Durable, Event, Events, TlsOptions};
use tlog_proto::{Sequence, VdiskId};
use tokio::sync::{Semaphore, mpsc};

use super::data::Content;
use super::latency::Latencies;

/// How long the open loop's clock sleeps at least: so much later than due are blocks handed over at most, while it is in time.
const TICK: Duration = Duration::from_micros(200);

/// How many clients connect at the same time.
const CONNECTING: usize = 64;

/// Blocks that may be outstanding in the open loop: the client's bound on bytes lets no more through, however small they are.
const MOST_OUTSTANDING: usize = 1 << 18;

/// When blocks are handed over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// As many as this are not durable, on every vdisk, at any time.
    Outstanding(usize),
    /// One, then a flush, and the next one once it is durable.
    FlushEach,
    /// So many per second, on all vdisks together, whatever becomes of them.
    Rate(f64),
}

/// When a load ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
    /// After so long.
    Time(Duration),
    /// After so many blocks, on all vdisks together.
    Blocks(u64),
}

/// What to write.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) server: String,
    pub(crate) tls: Option<TlsOptions>,
    pub(crate) vdisks: Vec<VdiskId>,
    pub(crate) content: Arc<Content>,
    pub(crate) pace: Pace,
    pub(crate) limit: Limit,
}

/// What was written to one vdisk and acknowledged as durable.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledged {
    pub(crate) vdisk: VdiskId,
    /// Which of the load's vdisks it is.
    pub(crate) number: u32,
    /// Sequence of the first block.
    pub(crate) first: Sequence,
    pub(crate) blocks: u64,
}

/// What came of a load.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) vdisks: Vec<Acknowledged>,
    /// Blocks of all of them.
    pub(crate) blocks: u64,
    /// Bytes of their data.
    pub(crate) bytes: u64,
    /// From the first hand-over until the last block was durable.
    pub(crate) elapsed: Duration,
    /// From hand-over to RecvOK.
    pub(crate) received: Latencies,
    /// From hand-over to FlushOK.
    pub(crate) durable: Latencies,
    /// Events that came too fast to be looked at: their RecvOK is not in `received`.
    pub(crate) missed_events: u64,
}

/// Clients that are connected; nothing is sent yet.
#[derive(Debug)]
pub(crate) struct Connected {
    load: Load,
    clients: Vec<Client>,
}

impl Load {
    /// Connects all clients, which opens the logs.
    pub(crate) async fn connect(self) -> anyhow::Result<Connected> {
        let block = self.content.block_size() + BLOCK_OVERHEAD;
        let default = ClientOptions::default();
        let room = match self.pace {
            Pace::Outstanding(outstanding) => outstanding.saturating_add(1).saturating_mul(block),
            Pace::FlushEach | Pace::Rate(_) => 0,
        };
        // A client that comes back would be measured as one that was never away.
        let options = ClientOptions {
            tls: self.tls.clone(),
            max_unflushed_bytes: default.max_unflushed_bytes.max(room),
            reconnect_deadline: Some(Duration::ZERO),
            ..default
        };
        let connecting = self.vdisks.iter().map(|vdisk| {
            let (server, options) = (self.server.as_str(), options.clone());
            async move {
                let client = Client::connect(server, vdisk.clone(), options).await;
                client.with_context(|| format!("vdisk {vdisk} at {server}"))
            }
        });
        // Not all at once: with more than the system lets wait at a listener it drops some, and resets them later.
        let clients = stream::iter(connecting).buffered(CONNECTING).try_collect().await?;
        Ok(Connected { load: self, clients })
    }
}

impl Connected {
    /// Writes, and waits until everything is durable.
    pub(crate) async fn run(self) -> anyhow::Result<Written> {
        let begun = Instant::now();
        let writers = self.clients.iter().zip(0..).map(|(client, number)| {
            let share = self.load.share(number);
            let writer = Writer::new(client.clone(), number, &self.load, share, begun);
            async move { tokio::spawn(writer.run()).await.context("a client of the measurement broke")? }
        });
        let done: Vec<Done> = try_join_all(writers).await?;
        let elapsed = done.iter().map(|done| done.last).max().unwrap_or(begun).duration_since(begun);
        for client in &self.clients {
            client.close().await;
        }
        let (mut received, mut durable) = (Latencies::new()?, Latencies::new()?);
        for done in &done {
            received.add_all(&done.received)?;
            durable.add_all(&done.durable)?;
        }
        let blocks: u64 = done.iter().map(|done| done.acknowledged.blocks).sum();
        Ok(Written {
            blocks,
            bytes: blocks * self.load.content.block_size() as u64,
            elapsed,
            received,
            durable,
            missed_events: done.iter().map(|done| done.missed_events).sum(),
            vdisks: done.into_iter().map(|done| done.acknowledged).collect(),
        })
    }
}

impl Load {
    /// Most blocks of one of the vdisks.
    fn share(&self, number: u32) -> u64 {
        let vdisks = self.vdisks.len() as u64;
        match (self.limit, self.pace) {
            (Limit::Blocks(blocks), _) => blocks / vdisks + u64::from(u64::from(number) < blocks % vdisks),
            (Limit::Time(time), Pace::Rate(rate)) => {
                (rate * time.as_secs_f64() / vdisks as f64).ceil() as u64
            }
            (Limit::Time(_), _) => u64::MAX,
        }
    }
}

/// Times at which blocks were handed over, until their RecvOK comes: nanoseconds since the load began, by the block's number.
#[derive(Debug)]
struct HandOvers {
    times: Vec<AtomicU64>,
}

impl HandOvers {
    /// Room for all that are outstanding, and for those whose events wait for a reader: a block that comes must not take the place of one
    /// whose RecvOK was not looked at yet, or that would be called quick.
    fn new(outstanding: usize) -> Self {
        let length = (outstanding + Events::CAPACITY + 1).next_power_of_two();
        Self { times: (0..length).map(|_| AtomicU64::new(0)).collect() }
    }

    fn of(&self, number: u64) -> Option<&AtomicU64> {
        self.times.get(usize::try_from(number).ok()? & (self.times.len() - 1))
    }
}

/// One client, and what it has to write.
struct Writer {
    client: Client,
    number: u32,
    content: Arc<Content>,
    pace: Pace,
    blocks: u64,
    /// No block is handed over after it.
    end: Option<Instant>,
    begun: Instant,
    /// Between two blocks of the open loop.
    gap: Duration,
}

/// What one client has done.
struct Done {
    acknowledged: Acknowledged,
    last: Instant,
    received: Latencies,
    durable: Latencies,
    missed_events: u64,
}

impl Writer {
    fn new(client: Client, number: u32, load: &Load, blocks: u64, begun: Instant) -> Self {
        let end = match (load.limit, load.pace) {
            (Limit::Time(time), Pace::Outstanding(_) | Pace::FlushEach) => Some(begun + time),
            _ => None,
        };
        let gap = match load.pace {
            Pace::Rate(rate) => Duration::from_secs_f64(load.vdisks.len() as f64 / rate),
            _ => Duration::ZERO,
        };
        let content = Arc::clone(&load.content);
        Self { client, number, content, pace: load.pace, blocks, end, begun, gap }
    }

    async fn run(self) -> anyhow::Result<Done> {
        let outstanding = match self.pace {
            Pace::Outstanding(outstanding) => outstanding,
            Pace::FlushEach => 1,
            Pace::Rate(_) => MOST_OUTSTANDING,
        };
        let hand_overs = Arc::new(HandOvers::new(outstanding));
        let first = self.client.next_sequence();
        let watching = tokio::spawn(watch(
            self.client.events(),
            Arc::clone(&hand_overs),
            first,
            self.begun,
            Latencies::new()?,
        ));
        let (blocks, last, durable) = match self.pace {
            Pace::FlushEach => self.flush_each(&hand_overs).await?,
            Pace::Outstanding(_) | Pace::Rate(_) => self.stream(&hand_overs, outstanding).await?,
        };
        self.client.close().await;
        let (received, missed_events) = watching.await.context("what watched a client broke")?;
        let vdisk = self.client.vdisk().clone();
        let acknowledged = Acknowledged { vdisk, number: self.number, first, blocks };
        Ok(Done { acknowledged, last, received, durable, missed_events })
    }

    /// Whether another block is to be handed over.
    fn goes_on(&self, number: u64) -> bool {
        number < self.blocks && self.end.is_none_or(|end| Instant::now() < end)
    }

    /// Hands over block `number` as of some moment. The sequence cannot be another: nobody else hands over to this client.
    async fn hand_over(&self, number: u64, at: Instant, hand_overs: &HandOvers) -> anyhow::Result<Durable> {
        if let Some(time) = hand_overs.of(number) {
            // Before it is sent: its RecvOK may come before this task goes on.
            let nanos = at.saturating_duration_since(self.begun).as_nanos();
            time.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        let (index, data) = self.content.write(self.number, number);
        Ok(self.client.set(index, data).await?)
    }

    async fn flush_each(&self, hand_overs: &HandOvers) -> anyhow::Result<(u64, Instant, Latencies)> {
        let (mut number, mut last, mut durable) = (0, self.begun, Latencies::new()?);
        while self.goes_on(number) {
            let at = Instant::now();
            let handle = self.hand_over(number, at, hand_overs).await?;
            self.client.flush().await?;
            last = Instant::now();
            durable.add(last - at);
            handle.await?;
            number += 1;
        }
        Ok((number, last, durable))
    }

    async fn stream(
        &self,
        hand_overs: &HandOvers,
        outstanding: usize,
    ) -> anyhow::Result<(u64, Instant, Latencies)> {
        let is_open = matches!(self.pace, Pace::Rate(_));
        let permits = Arc::new(Semaphore::new(if is_open { 0 } else { outstanding }));
        let clock = is_open.then(|| Clock::start(Arc::clone(&permits), self.begun, self.gap, self.blocks));
        let (handles, waiting) = mpsc::unbounded_channel();
        let released = (!is_open).then(|| Arc::clone(&permits));
        let waiting = tokio::spawn(wait(waiting, released, self.begun, Latencies::new()?));
        let mut number = 0;
        while self.goes_on(number) {
            let permit = permits.acquire().await.context("the clock of the open loop is gone")?;
            permit.forget();
            let at = if is_open { due(self.begun, self.gap, number) } else { Instant::now() };
            let handle = self.hand_over(number, at, hand_overs).await?;
            if handles.send((at, handle)).is_err() {
                break; // it has ended, and says why
            }
            number += 1;
        }
        drop((handles, clock));
        let flushed = self.client.flush().await;
        let (last, durable, blocks) = waiting.await.context("what waited for a client broke")??;
        flushed?;
        if blocks != number {
            bail!("{number} blocks were handed over, and {blocks} became durable");
        }
        Ok((blocks, last, durable))
    }
}

/// When a block of the open loop is due.
fn due(begun: Instant, gap: Duration, number: u64) -> Instant {
    begun + Duration::from_secs_f64(gap.as_secs_f64() * number as f64)
}

/// Waits for every handle in turn, which is how they resolve. Answers when the last did, the latencies, and how many there were.
async fn wait(
    mut handles: mpsc::UnboundedReceiver<(Instant, Durable)>,
    released: Option<Arc<Semaphore>>,
    begun: Instant,
    mut durable: Latencies,
) -> anyhow::Result<(Instant, Latencies, u64)> {
    let mut pending: VecDeque<(Instant, Durable)> = VecDeque::new();
    let (mut last, mut blocks) = (begun, 0);
    loop {
        let next = match pending.pop_front() {
            Some(next) => Some(next),
            None => handles.recv().await,
        };
        let Some((at, handle)) = next else { return Ok((last, durable, blocks)) };
        handle.await?;
        last = Instant::now();
        durable.add(last.saturating_duration_since(at));
        let mut resolved = 1;
        // The rest of its aggregation resolved in the same moment.
        while let Ok(next) = handles.try_recv() {
            pending.push_back(next);
        }
        while let Some((at, handle)) = pending.front_mut() {
            let Some(outcome) = handle.now_or_never() else { break };
            outcome?;
            durable.add(last.saturating_duration_since(*at));
            resolved += 1;
            pending.pop_front();
        }
        blocks += resolved;
        if let Some(released) = &released {
            released.add_permits(usize::try_from(resolved).unwrap_or_default());
        }
    }
}

/// Looks at every RecvOK until the client ends. Answers the latencies, and how many events came too fast.
async fn watch(
    mut events: Events,
    hand_overs: Arc<HandOvers>,
    first: Sequence,
    begun: Instant,
    mut received: Latencies,
) -> (Latencies, u64) {
    let mut missed = 0;
    while let Some(event) = events.next().await {
        match event {
            Event::Received(sequence) => {
                let number = sequence.0.wrapping_sub(first.0);
                if let Some(at) = hand_overs.of(number) {
                    let at = Duration::from_nanos(at.load(Ordering::Relaxed));
                    received.add(begun.elapsed().saturating_sub(at));
                }
            }
            Event::Missed(events) => missed += events,
            _ => {}
        }
    }
    (received, missed)
}

/// The clock of the open loop: gives a permit for each block that is due. Ends when this is dropped.
struct Clock {
    permits: Arc<Semaphore>,
}

impl Clock {
    fn start(permits: Arc<Semaphore>, begun: Instant, gap: Duration, blocks: u64) -> Self {
        let given = Arc::clone(&permits);
        // A thread: timers of the runtime are a millisecond coarse.
        thread::spawn(move || {
            let mut next = 0;
            while next < blocks && !given.is_closed() {
                let until = due(begun, gap, next).max(Instant::now() + TICK);
                thread::sleep(
                    until.saturating_duration_since(Instant::now()).min(Duration::from_millis(100)),
                );
                let now = Instant::now();
                let mut come = 0;
                while next < blocks && due(begun, gap, next) <= now {
                    (next, come) = (next + 1, come + 1);
                }
                given.add_permits(come);
            }
        });
        Self { permits }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.permits.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_hand_over_stays_until_its_event_was_read() {
        let check = |outstanding: usize| {
            let hand_overs = HandOvers::new(outstanding);
            let newest = 1_000_000 + (outstanding + Events::CAPACITY) as u64;
            for number in 1_000_000..=newest {
                hand_overs.of(number).unwrap().store(number, Ordering::Relaxed);
            }
            assert_eq!(hand_overs.of(1_000_000).unwrap().load(Ordering::Relaxed), 1_000_000);
        };
        check(1);
        check(50);
        check(1024);
        check(MOST_OUTSTANDING);
    }

    #[test]
    fn blocks_of_the_open_loop_are_due_in_even_steps_and_no_later_for_being_many() {
        let (begun, gap) = (Instant::now(), Duration::from_secs_f64(1.0 / 30_000.0));
        assert_eq!(due(begun, gap, 0), begun);
        let hour = due(begun, gap, 30_000 * 3600) - begun;
        assert!((hour.as_secs_f64() - 3600.0).abs() < 1.0, "{hour:?}");
    }

    #[tokio::test]
    async fn the_clock_gives_a_permit_for_each_block_and_ends_with_its_load() {
        let permits = Arc::new(Semaphore::new(0));
        let clock = Clock::start(Arc::clone(&permits), Instant::now(), Duration::from_millis(1), 20);
        permits.acquire_many(20).await.unwrap().forget();
        assert_eq!(permits.available_permits(), 0);
        drop(clock);
        assert!(permits.is_closed());
    }
}
