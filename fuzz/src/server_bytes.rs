//! A server to which any bytes are sent: what it answers can be read, and it lives on.

use bytes::{Bytes, BytesMut};
use tlog_proto::{
    Block, BlockIndex, ClientMessage, HandshakeRequest, Sequence, SessionId, Timestamp, VdiskId,
};

use crate::Target;
use crate::input::Input;
use crate::server_messages::Scene;
use crate::time::runtime;

/// Whether a good handshake goes before, and pieces; the rest is what is sent.
pub const TARGET: Target = Target { name: "server-bytes", memory: 8 << 20, check, seeds };

fn check(input: &[u8]) {
    runtime().block_on(async {
        let mut input = Input::new(input);
        let vdisk = VdiskId::new("a").expect("a legal id");
        let mut scene = Scene::new();
        scene.connects(vdisk.clone());
        if input.flag() {
            scene.sends_unknown(0, &greeting(vdisk)).await;
        }
        let lengths = input.bytes(3);
        for at in 0.. {
            if input.is_empty() {
                break;
            }
            let length = lengths.get(at % lengths.len().max(1)).map_or(64, |length| usize::from(*length));
            scene.sends_unknown(0, input.bytes(1 + length * 4)).await;
            tokio::task::yield_now().await;
        }
        scene.end().await;
    });
}

fn greeting(vdisk: VdiskId) -> BytesMut {
    let mut bytes = BytesMut::new();
    HandshakeRequest { session: SessionId(1), ..HandshakeRequest::new(vdisk, Sequence(1)) }
        .encode_into(&mut bytes);
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let index = BlockIndex::new(3).expect("a low index");
    let mut messages = BytesMut::new();
    Block::set(Sequence(1), index, Timestamp(5), Bytes::from_static(b"some text")).encode_into(&mut messages);
    Block::delete(Sequence(2), index, Timestamp(6)).encode_into(&mut messages);
    ClientMessage::ForceFlushAtSeq(Sequence(2)).encode_into(&mut messages);
    ClientMessage::WaitNbdSlaveSync.encode_into(&mut messages);
    let greeting = greeting(VdiskId::new("a").expect("a legal id"));
    vec![
        [&[1, 255, 0, 9], &messages[..]].concat(),
        [&[0, 255, 255, 255], &greeting[..], &messages[..]].concat(),
        vec![1, 0, 0, 0],
        [&[0, 0, 1, 7], &b"GET / HTTP/1.1\r\n\r\n"[..]].concat(),
    ]
}
