//! What tlog peers say to each other, and the words everything else is built from.
//!
//! A tlog client sends every write of a virtual disk to a tlog server over TCP, as Cap'n Proto messages; the
//! server answers when it has received a block and when the block is durable. This crate has those messages as
//! plain types ([`HandshakeRequest`], [`ClientMessage`], [`Response`], ...), the identifiers they use
//! ([`VdiskId`], [`Sequence`], ...), the rules that any reader of a stream must apply ([`Limits`]) and the framing
//! itself ([`FrameReader`]). `docs/wire-protocol.md` describes the bytes.
//!
//! What it deliberately does not do: open sockets, keep time, decide what a server or client does next, or touch
//! storage. It is usable from any tool that reads or writes a tlog stream:
//!
//! ```
//! use tlog_proto::{Block, BlockIndex, ClientMessage, Sequence, Timestamp};
//!
//! let block = Block::set(Sequence(7), BlockIndex::new(42).unwrap(), Timestamp(1), vec![1, 2, 3].into());
//! let mut wire = bytes::BytesMut::new();
//! block.encode_into(&mut wire);
//!
//! let (message, used) = ClientMessage::decode_from_slice(&wire, &Default::default()).unwrap();
//! assert_eq!(used, wire.len());
//! assert_eq!(message, ClientMessage::from(block));
//! ```

mod aggregation;
mod block;
mod flat;
mod frame;
mod hash;
mod ids;
mod limits;
mod message;
mod status;
mod version;
mod wire;

/// Code that `cargo xtask codegen` makes from `schema/tlog.capnp`.
#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::all,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic
)]
mod generated {
    #[rustfmt::skip] // must stay what the generator makes
    pub mod tlog_capnp;
}

pub use aggregation::{Aggregation, AggregationError, AggregationParts};
pub use block::{Block, BlockFault, Operation, UnverifiedBlock};
pub use frame::{FrameError, FrameReader};
pub use hash::{BlockHash, hash_many, hash_many_into};
pub use ids::{
    AggregationId, AggregationNumber, BlockIndex, Epoch, Generation, IllegalVdiskId, LogPosition, Sequence,
    SessionId, Timestamp, VdiskId,
};
pub use limits::Limits;
pub use message::{
    ClientMessage, DecodeError, HandshakeRequest, HandshakeResponse, MessageType, Response,
    UnknownMessageType,
};
pub use status::{BlockStatus, HandshakeStatus, Refusal, UnknownStatus};
pub use version::{ParseVersionError, Stage, Version};

/// Port that a tlog server listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 11211;
