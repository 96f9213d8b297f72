//! Shows what a tlog client sent: reads a recorded client stream and prints one line for each message.
//!
//! ```text
//! cargo run -p tlog-proto --example decode_stream -- stream.bin
//! cat stream.bin | cargo run -p tlog-proto --example decode_stream
//! ```

use std::error::Error;
use std::io::{self, Write};

use tlog_proto::{ClientMessage, FrameReader, HandshakeRequest, Limits, Operation, UnverifiedBlock};
use tokio::io::AsyncRead;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let out = io::stdout().lock();
    match std::env::args_os().nth(1) {
        Some(path) => print_stream(tokio::fs::File::open(path).await?, out).await,
        None => print_stream(tokio::io::stdin(), out).await,
    }
}

/// A client stream is a handshake request, then messages, each behind a byte that says what it is.
async fn print_stream(stream: impl AsyncRead + Unpin, mut out: impl Write) -> Result<(), Box<dyn Error>> {
    let mut frames = FrameReader::new(stream, Limits::default());
    let Some(request) = frames.handshake_request().await? else {
        return Ok(writeln!(out, "an empty stream")?);
    };
    let HandshakeRequest { version, vdisk_id, first_sequence, session, .. } = request;
    let reset = if request.reset_first_sequence { ", reset" } else { "" };
    let returning = if request.returning.is_some() { ", was here before" } else { "" };
    writeln!(
        out,
        "handshake: {version}, vdisk {vdisk_id}, from sequence {first_sequence}{reset}, session {session}{returning}"
    )?;
    while let Some(message) = frames.client_message().await? {
        match message {
            ClientMessage::Block(block) => writeln!(out, "{}", describe(block))?,
            ClientMessage::ForceFlushAtSeq(sequence) => writeln!(out, "force flush up to {sequence}")?,
            ClientMessage::WaitNbdSlaveSync => writeln!(out, "wait for the slave")?,
        }
    }
    Ok(())
}

/// A block is only worth something once its hash has been checked.
fn describe(block: UnverifiedBlock) -> String {
    let (sequence, bytes) = (block.sequence, block.data.len());
    match block.verify() {
        Ok(block) => match block.operation {
            Operation::Set => {
                format!("{sequence}: set block {} to {bytes} bytes {}", block.index, block.hash)
            }
            Operation::Delete => format!("{sequence}: delete block {}", block.index),
        },
        Err(fault) => format!("{sequence}: refused, {fault}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlog_proto::{Block, BlockIndex, LogPosition, Sequence, SessionId, Timestamp, VdiskId};

    #[tokio::test]
    async fn each_message_of_a_stream_is_a_line() {
        let index = BlockIndex::new(42).unwrap();
        let request = HandshakeRequest {
            reset_first_sequence: true,
            session: SessionId(5),
            returning: Some(LogPosition::default()),
            ..HandshakeRequest::new(VdiskId::new("myimg").unwrap(), Sequence(7))
        };
        let block = Block::set(Sequence(7), index, Timestamp(1), "abc".into());
        let mut changed = UnverifiedBlock::from(block.clone());
        changed.data = "abd".into();

        let mut stream = bytes::BytesMut::new();
        request.encode_into(&mut stream);
        block.encode_into(&mut stream);
        Block::delete(Sequence(8), index, Timestamp(2)).encode_into(&mut stream);
        ClientMessage::Block(changed).encode_into(&mut stream);
        ClientMessage::ForceFlushAtSeq(Sequence(8)).encode_into(&mut stream);
        ClientMessage::WaitNbdSlaveSync.encode_into(&mut stream);

        let mut out = Vec::new();
        print_stream(&stream[..], &mut out).await.unwrap();
        let lines: Vec<_> = std::str::from_utf8(&out).unwrap().lines().collect();
        let hash = "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319";
        let [handshake, set, delete, refused, flush, wait] = lines[..] else { panic!("{lines:#?}") };
        assert_eq!(
            handshake,
            "handshake: 1.1.0-alpha, vdisk myimg, from sequence 7, reset, session 5, was here before"
        );
        assert_eq!(set, format!("7: set block 42 to 3 bytes {hash}"));
        assert_eq!(delete, "8: delete block 42");
        assert!(refused.starts_with("7: refused, the hash of the data is "), "{refused}");
        assert_eq!(flush, "force flush up to 8");
        assert_eq!(wait, "wait for the slave");

        stream.truncate(stream.len() - 1);
        let error = print_stream(&stream[..], io::sink()).await.unwrap_err();
        assert_eq!(error.to_string(), "the stream ends in the middle of a message");
    }
}
