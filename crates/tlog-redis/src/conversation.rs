//! What goes over one connection: requests in the order in which they are made, and answers in the same order.
//!
//! ```text
//! callers -> requests (parts of memory, shards among them) -> one vectored write of whatever waits
//! callers <- answers, each to who asked                    <- one read of whatever came
//! ```
//! A shard goes from where it was made to the socket without being copied; that is what this is for (docs/adr/0011). How much may be on
//! the way is for the caller to bound, and when to give up waiting, too.

mod frame;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::request::Request;

/// Requests that are taken at once from those that wait.
const TAKEN_AT_ONCE: usize = 64;
/// Parts that one write names.
const PARTS_AT_ONCE: usize = 64;
/// Bytes of room for what comes in.
const READ_BUFFER: usize = 16 << 10;
/// Most that is read before others have their turn.
const READ_AT_ONCE: usize = 1 << 20;

/// Where commands are put on a connection. The connection is closed when it is dropped, or [`Conversation::close`] is called; what was not
/// answered by then fails.
#[derive(Debug)]
pub(crate) struct Conversation {
    requests: mpsc::UnboundedSender<Asked>,
    closed: CancellationToken,
    _close_when_dropped: DropGuard,
}

/// A request with whom to tell.
struct Asked {
    request: Request,
    reply: oneshot::Sender<RedisResult<Value>>,
}

impl Conversation {
    /// Talks over `stream`, in a task of its own.
    pub(crate) fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (requests, asked) = mpsc::unbounded_channel();
        let closed = CancellationToken::new();
        let driver = Driver {
            stream,
            asked,
            taken: Vec::with_capacity(TAKEN_AT_ONCE),
            out: VecDeque::new(),
            flushed: true,
            awaited: VecDeque::new(),
            input: BytesMut::new(),
            wanted: 0,
        };
        tokio::spawn(driver.run(closed.clone()));
        Self { requests, _close_when_dropped: closed.clone().drop_guard(), closed }
    }

    /// Sends a request and waits for its answer. An error is one of the connection: what the server answers, errors too, is a value. May be
    /// dropped at any time; the request is sent all the same.
    pub(crate) async fn ask(&self, request: Request) -> RedisResult<Value> {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Asked { request, reply }).is_err() {
            return Err(broken());
        }
        answer.await.unwrap_or_else(|_| Err(broken()))
    }

    /// The same for one command, and an error that the server answers is one, too.
    pub(crate) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        self.ask(Request::of(command)).await?.extract_error()
    }

    /// Closes the connection now.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }
}

struct Driver<S> {
    stream: S,
    asked: mpsc::UnboundedReceiver<Asked>,
    /// On their way from `asked` to `out`; empty between turns.
    taken: Vec<Asked>,
    /// What is to be written, none of them empty.
    out: VecDeque<Bytes>,
    flushed: bool,
    /// Of each request that was taken and not answered: how many answers it still gets, and whom the last one is for.
    awaited: VecDeque<(usize, oneshot::Sender<RedisResult<Value>>)>,
    /// What came in and is no whole answer yet.
    input: BytesMut,
    /// Before so many bytes have come in there is no whole one: a long answer is not looked through again for each piece of it.
    wanted: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    async fn run(mut self, closed: CancellationToken) {
        let error = tokio::select! {
            biased;
            () = closed.cancelled() => return,
            error = poll_fn(|context| self.poll_turns(context)) => error,
        };
        self.asked.close();
        while let Ok(Asked { reply, .. }) = self.asked.try_recv() {
            drop(reply.send(Err(error.clone())));
        }
        for (_, reply) in self.awaited {
            drop(reply.send(Err(error.clone()))); // who asked may be gone
        }
    }

    /// Ends with why nothing can be asked any more.
    fn poll_turns(&mut self, context: &mut Context<'_>) -> Poll<RedisError> {
        // Each waits for its own; none of them keeps another from its turn.
        let taken = self.poll_taken(context);
        let written = self.poll_written(context);
        let read = self.poll_read(context);
        match (written, read, taken) {
            (Poll::Ready(Err(error)), ..) | (_, Poll::Ready(Err(error)), _) => Poll::Ready(error),
            (_, _, Poll::Ready(())) => Poll::Ready(broken()),
            _ => Poll::Pending,
        }
    }

    /// Takes what is asked. Ready where nobody can ask any more.
    fn poll_taken(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if ready!(self.asked.poll_recv_many(context, &mut self.taken, TAKEN_AT_ONCE)) == 0 {
                return Poll::Ready(());
            }
            for Asked { request: Request { parts, answers }, reply } in self.taken.drain(..) {
                self.out.extend(parts.into_iter().filter(|part| !part.is_empty()));
                self.awaited.push_back((answers, reply));
            }
        }
    }

    /// Writes what waits. Never ready but for an error.
    fn poll_written(&mut self, context: &mut Context<'_>) -> Poll<RedisResult<()>> {
        while !self.out.is_empty() {
            let mut parts = [IoSlice::new(&[]); PARTS_AT_ONCE];
            let named = self.out.len().min(PARTS_AT_ONCE);
            for (slot, part) in parts.iter_mut().zip(&self.out) {
                *slot = IoSlice::new(part);
            }
            let parts = parts.get(..named).unwrap_or_default();
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts))?;
            if written == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            self.flushed = false;
            advance(&mut self.out, written);
        }
        if !self.flushed {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.flushed = true;
        }
        Poll::Pending
    }

    /// Reads and hands out what came. Never ready but for an error.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<RedisResult<()>> {
        let mut read = 0;
        loop {
            self.hand_out()?;
            let missing = self.wanted.saturating_sub(self.input.len());
            self.input.reserve(missing.clamp(READ_BUFFER, READ_AT_ONCE));
            let came = ready!(poll_read_buf(Pin::new(&mut self.stream), context, &mut self.input))?;
            if came == 0 {
                return Poll::Ready(Err(broken()));
            }
            read += came;
            if read >= READ_AT_ONCE {
                self.hand_out()?;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Hands out the answers that are whole.
    fn hand_out(&mut self) -> RedisResult<()> {
        while self.input.len() >= self.wanted {
            let length = match frame::of(&self.input)? {
                frame::Extent::Whole(length) => length,
                frame::Extent::Missing(bytes) => {
                    self.wanted = self.input.len() + bytes;
                    return Ok(());
                }
            };
            self.wanted = 0;
            let Some((answers, _)) = self.awaited.front_mut() else {
                return Err(frame::garbled("it answers what was not asked"));
            };
            *answers -= 1;
            if *answers == 0
                && let Some((_, reply)) = self.awaited.pop_front()
                && !reply.is_closed()
            {
                let answer = self.input.get(..length).unwrap_or_default();
                drop(reply.send(frame::value(answer))); // who asked may be gone
            }
            self.input.advance(length);
        }
        Ok(())
    }
}

/// Takes what was written off the front.
fn advance(out: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(part) = out.front_mut() {
        if written < part.len() {
            part.advance(written);
            return;
        }
        written -= part.len();
        out.pop_front();
    }
}

/// The first answer in bytes and its length; none where it is not whole yet.
#[cfg(feature = "fuzzing")]
pub(crate) fn first_answer(bytes: &[u8]) -> RedisResult<Option<(usize, RedisResult<Value>)>> {
    Ok(match frame::of(bytes)? {
        frame::Extent::Missing(_) => None,
        frame::Extent::Whole(length) => Some((length, frame::value(bytes.get(..length).unwrap_or_default()))),
    })
}

fn broken() -> RedisError {
    io::Error::new(io::ErrorKind::BrokenPipe, "the connection was closed before an answer came").into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn begin(room: usize) -> (Arc<Conversation>, DuplexStream) {
        let (ours, theirs) = duplex(room);
        (Arc::new(Conversation::over(ours)), theirs)
    }

    fn asking(
        conversation: &Arc<Conversation>,
        request: Request,
    ) -> tokio::task::JoinHandle<RedisResult<Value>> {
        let conversation = Arc::clone(conversation);
        tokio::spawn(async move { conversation.ask(request).await })
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn answers_go_to_who_asked_however_they_are_cut() {
        let (conversation, mut server) = begin(7);
        let asked: Vec<_> = ["a", "b", "c"]
            .map(|name| asking(&conversation, Request::of(redis::cmd("GET").arg(name))))
            .into();
        let expected: String =
            ["a", "b", "c"].map(|name| format!("*2\r\n$3\r\nGET\r\n$1\r\n{name}\r\n")).concat();
        let mut got = vec![0; expected.len()];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), expected);
        for byte in b"$1\r\nx\r\n-ERR no\r\n*2\r\n:1\r\n$-1\r\n" {
            server.write_all(&[*byte]).await.unwrap();
        }
        let mut answers = Vec::new();
        for asked in asked {
            answers.push(asked.await.unwrap().unwrap());
        }
        assert_eq!(answers[0], bulk("x"));
        assert!(answers[1].clone().extract_error().is_err());
        assert_eq!(answers[2], Value::Array(vec![Value::Int(1), Value::Nil]));
    }

    #[tokio::test]
    async fn a_large_request_goes_out_whole_and_only_its_last_answer_counts() {
        let (conversation, mut server) = begin(1000);
        let large = Bytes::from((0..200_000_u32).map(|at| at as u8).collect::<Vec<u8>>());
        let parts: Vec<Bytes> = (0..150).map(|at| large.slice(at * 1000..(at + 1) * 1000)).collect();
        let asked = asking(&conversation, Request { parts: parts.clone(), answers: 2 });
        let next = asking(&conversation, Request { parts: vec![Bytes::new()], answers: 1 });
        let mut got = vec![0; 150_000];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(got, large[..150_000]);
        server.write_all(b"+first\r\n+second\r\n+third\r\n").await.unwrap();
        assert_eq!(asked.await.unwrap().unwrap(), Value::SimpleString("second".into()));
        assert_eq!(next.await.unwrap().unwrap(), Value::SimpleString("third".into()));
    }

    #[tokio::test]
    async fn one_that_is_dropped_leaves_its_answer_to_nobody() {
        let (conversation, mut server) = begin(1000);
        let first = asking(&conversation, Request::of(&redis::cmd("ONE")));
        let mut got = [0; 13];
        server.read_exact(&mut got).await.unwrap();
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let second = asking(&conversation, Request::of(&redis::cmd("TWO")));
        server.read_exact(&mut got).await.unwrap();
        server.write_all(b"+1\r\n+2\r\n").await.unwrap();
        assert_eq!(second.await.unwrap().unwrap(), Value::SimpleString("2".into()));
    }

    #[tokio::test]
    async fn everything_on_the_way_fails_when_it_ends() {
        let fails = |answer: RedisResult<Value>| {
            let error = answer.unwrap_err();
            assert!(error.is_connection_dropped(), "{error}");
        };
        let (conversation, server) = begin(10);
        let asked = asking(&conversation, Request::of(&redis::cmd("LONGER THAN THE PIPE")));
        drop(server);
        fails(asked.await.unwrap());
        fails(conversation.ask(Request::of(&redis::cmd("LATER"))).await);

        let (conversation, mut server) = begin(1000);
        let asked = asking(&conversation, Request::of(&redis::cmd("ONE")));
        server.read_exact(&mut [0; 13]).await.unwrap();
        conversation.close();
        fails(asked.await.unwrap());
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0, "it is closed");

        let (conversation, mut server) = begin(1000);
        drop(conversation);
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0, "it is closed");
    }

    #[tokio::test]
    async fn what_is_no_answer_ends_it() {
        for (nonsense, said) in [
            ("+to nobody\r\n+again\r\n", "was not asked"),
            ("!\r\n", "no answer of a Redis server"),
            ("$99999999999999\r\n", "longer than any answer"),
        ] {
            let (conversation, mut server) = begin(1000);
            let asked = asking(&conversation, Request::of(&redis::cmd("ONE")));
            server.read_exact(&mut [0; 13]).await.unwrap();
            server.write_all(nonsense.as_bytes()).await.unwrap();
            let first = asked.await.unwrap();
            let second = conversation.ask(Request::of(&redis::cmd("TWO"))).await;
            let error = [first, second].into_iter().find_map(Result::err).unwrap().to_string();
            assert!(error.contains(said) || error.contains("was closed"), "{error}");
        }
    }
}
