//! One direction of a connection: bytes that arrive late, in other pieces than they were written in, or not at all.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes that may be on their way before the writer has to wait.
const CAPACITY: usize = 64 << 10;

/// One direction of a connection. Bytes stay in order and arrive once, or the connection breaks, as TCP has it.
#[derive(Debug)]
pub(crate) struct Pipe {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rng: SmallRng,
    /// Longest way of a piece.
    latency: Duration,
    /// Pieces, and when each can be read; rising.
    pieces: VecDeque<(Instant, Bytes)>,
    /// Bytes on their way, those that are lost included.
    queued: usize,
    /// Nothing arrives before.
    held_until: Option<Instant>,
    /// When the writer's end arrives, once it is gone.
    end: Option<Instant>,
    /// Nothing that is written arrives any more, and nobody is told.
    silent: bool,
    broken: Option<io::ErrorKind>,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// When what is written now arrives.
    fn arrival(&mut self) -> Instant {
        let way = self.latency.mul_f64(self.rng.random());
        let at = Instant::now() + way;
        let behind = self.pieces.back().map_or(at, |(before, _)| at.max(*before));
        self.held_until.map_or(behind, |until| behind.max(until))
    }
}

impl Pipe {
    pub(crate) fn new(seed: u64, latency: Duration) -> Arc<Self> {
        let state = State {
            rng: SmallRng::seed_from_u64(seed),
            latency,
            pieces: VecDeque::new(),
            queued: 0,
            held_until: None,
            end: None,
            silent: false,
            broken: None,
            reader_gone: false,
            reader: None,
            writer: None,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Both ends get an error, and what is on its way is lost.
    pub(crate) fn break_now(&self, kind: io::ErrorKind) {
        let mut state = self.state();
        state.broken = Some(kind);
        state.pieces.clear();
        state.wake();
    }

    /// What is written from now on never arrives; of what is on its way so many pieces still do, the last one perhaps cut short.
    pub(crate) fn go_silent(&self, pieces: usize) {
        let mut state = self.state();
        state.silent = true;
        state.pieces.truncate(pieces);
        if let Some((_, last)) = state.pieces.back_mut() {
            last.truncate(last.len().div_ceil(2));
        }
    }

    /// Nothing arrives before `until`, and then all that was written does.
    pub(crate) fn hold(&self, until: Instant) {
        let mut state = self.state();
        state.held_until = Some(until);
        for (at, _) in &mut state.pieces {
            *at = (*at).max(until);
        }
        state.wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        let mut state = self.state();
        if state.end.is_none() {
            let at = state.arrival();
            state.end = Some(at);
            state.wake();
        }
    }
}

/// Where bytes come out.
#[derive(Debug)]
pub(crate) struct ReadEnd {
    pipe: Arc<Pipe>,
    sleep: Pin<Box<Sleep>>,
}

/// Where bytes go in. Dropping it ends the direction, behind what was written.
#[derive(Debug)]
pub(crate) struct WriteEnd {
    pipe: Arc<Pipe>,
}

/// The two ends of a direction.
pub(crate) fn ends(pipe: Arc<Pipe>) -> (WriteEnd, ReadEnd) {
    let sleep = Box::pin(sleep_until(Instant::now()));
    (WriteEnd { pipe: Arc::clone(&pipe) }, ReadEnd { pipe, sleep })
}

impl AsyncRead for ReadEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let mut locked = this.pipe.state();
            let state = &mut *locked;
            if let Some(kind) = state.broken {
                return Poll::Ready(Err(kind.into()));
            }
            let now = Instant::now();
            let next = match state.pieces.front_mut() {
                Some((at, piece)) if *at <= now => {
                    let count = piece.len().min(buffer.remaining());
                    buffer.put_slice(&piece.split_to(count));
                    if !piece.has_remaining() {
                        state.pieces.pop_front();
                    }
                    state.queued = state.queued.saturating_sub(count);
                    if let Some(writer) = state.writer.take() {
                        writer.wake();
                    }
                    return Poll::Ready(Ok(()));
                }
                Some((at, _)) => Some(*at),
                None if state.silent => None,
                None => match state.end {
                    Some(at) if at <= now => return Poll::Ready(Ok(())),
                    end => end,
                },
            };
            state.reader = Some(context.waker().clone());
            drop(locked);
            let Some(at) = next else { return Poll::Pending };
            this.sleep.as_mut().reset(at);
            if this.sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for ReadEnd {
    fn drop(&mut self) {
        let mut state = self.pipe.state();
        state.reader_gone = true;
        state.pieces.clear();
        state.wake();
    }
}

impl AsyncWrite for WriteEnd {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.pipe.state();
        if let Some(kind) = state.broken {
            return Poll::Ready(Err(kind.into()));
        }
        if state.reader_gone && !state.silent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = CAPACITY.saturating_sub(state.queued).min(data.len());
        if room == 0 && !data.is_empty() {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        // Sometimes all of it, sometimes a part.
        let taken = if state.rng.random_bool(0.8) { room } else { state.rng.random_range(1..=room.max(1)) };
        state.queued += taken;
        if !state.silent {
            let mut rest = Bytes::copy_from_slice(data.get(..taken).unwrap_or_default());
            while !rest.is_empty() {
                let whole = state.rng.random_bool(0.7);
                let count = if whole { rest.len() } else { state.rng.random_range(1..=rest.len()) };
                let at = state.arrival();
                state.pieces.push_back((at, rest.split_to(count)));
            }
            if let Some(reader) = state.reader.take() {
                reader.wake();
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for WriteEnd {
    fn drop(&mut self) {
        self.pipe.end();
    }
}
