//! What a broken or hostile Redis sends on a connection: each question gets its answer or an error, in whatever pieces it comes.

use redis::{RedisResult, Value};
use tlog_proto::VdiskId;
use tlog_redis::fuzzing::{Talk, first_answer, state_in};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Target;
use crate::input::Input;
use crate::time::runtime;

/// How many questions, and pieces; the rest is what the server sends.
pub const TARGET: Target = Target { name: "redis-answers", memory: 4 << 20, check, seeds };

fn check(input: &[u8]) {
    let mut input = Input::new(input);
    let (questions, lengths) = (input.below(5), input.bytes(3));
    let stream = input.rest();
    let expected = by_hand(stream, questions);
    for answer in expected.iter().flatten() {
        let _ = state_in(answer.clone(), &VdiskId::new("v").unwrap());
    }
    // Most of what is wrong is wrong without a connection, too, and found out faster.
    if questions > 0 {
        let answers = runtime().block_on(talk(stream, questions, lengths));
        let answers: Vec<Option<Value>> = answers.into_iter().map(Result::ok).collect();
        assert_eq!(answers, expected, "{questions} questions, in pieces of {lengths:?}");
    }
}

/// The answers that are in the stream, one for each question; none where there is none any more.
fn by_hand(mut stream: &[u8], questions: usize) -> Vec<Option<Value>> {
    let mut answers = Vec::new();
    let mut broken = false;
    loop {
        let next = if broken { None } else { first_answer(stream).ok().flatten() };
        let Some((length, value)) = next else { break };
        assert!(length <= stream.len() && length > 0);
        let (answer, rest) = stream.split_at(length);
        // The library's own parser is the second opinion.
        match (&value, redis::parse_redis_value(answer)) {
            (Ok(value), Ok(theirs)) => assert_eq!(*value, theirs),
            (Err(_), Err(_)) => {}
            (ours, theirs) => panic!("{answer:?}: {ours:?} and {theirs:?}"),
        }
        for shorter in [0, length / 2, length - 1] {
            assert!(matches!(first_answer(&stream[..shorter]), Ok(None)), "it is whole with its last byte");
        }
        stream = rest;
        broken = answers.len() == questions;
        if !broken {
            answers.push(value.ok());
        }
    }
    answers.resize(questions, None);
    answers
}

async fn talk(stream: &[u8], questions: usize, lengths: &[u8]) -> Vec<RedisResult<Value>> {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let talk = std::sync::Arc::new(Talk::over(ours));
    let asked: Vec<_> = (0..questions)
        .map(|_| {
            let talk = std::sync::Arc::clone(&talk);
            tokio::spawn(async move { talk.ask(redis::cmd("GET").arg("a")).await })
        })
        .collect();
    let (mut questions_come, mut answers_go) = tokio::io::split(theirs);
    let mut question = vec![0; "*2\r\n$3\r\nGET\r\n$1\r\na\r\n".len()];
    for _ in 0..questions {
        if questions_come.read_exact(&mut question).await.is_err() {
            break;
        }
    }
    let (mut rest, mut at) = (stream, 0);
    while !rest.is_empty() {
        let length =
            lengths.get(at % lengths.len().max(1)).map_or(rest.len(), |length| usize::from(*length) * 8 + 1);
        let (piece, later) = rest.split_at(length.min(rest.len()));
        if answers_go.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
        (rest, at) = (later, at + 1);
    }
    let _ = answers_go.shutdown().await;
    let mut answers = Vec::new();
    for asked in asked {
        answers.push(asked.await.expect("it does not panic"));
    }
    answers
}

fn seeds() -> Vec<Vec<u8>> {
    let streams = [
        "+OK\r\n",
        "-ERR what?\r\n:-17\r\n",
        "$5\r\nab\r\nc\r\n$0\r\n\r\n$-1\r\n",
        "*-1\r\n*0\r\n*3\r\n:1\r\n*2\r\n$1\r\nx\r\n+y\r\n$-1\r\n",
        "*2\r\n$2\r\nok\r\n-NOSCRIPT no\r\n",
        "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:0\r\n",
        "*3\r\n$5\r\nstate\r\n*2\r\n$1\r\n1\r\n$1\r\n2\r\n*1\r\n$3\r\n1-2\r\n",
        "*16777216\r\n*16777216\r\n",
        "$536870912\r\nabc",
    ];
    let of = |(at, stream): (u8, &str)| [&[at % 5, 0, 2, 30], stream.as_bytes()].concat();
    (1..).zip(streams).map(of).collect()
}
