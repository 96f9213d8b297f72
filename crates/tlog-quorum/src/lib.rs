//! What the n stores of a vdisk's log hold together.
//!
//! One store knows numbers, epochs and bytes. What a log *is* follows from looking at all of them: how many must answer for
//! what ([`Quorums`]), which of them count and which came back empty ([`Survey`]), which shard under a number counts where
//! several disagree, and how an aggregation is put together from any k of them ([`StoreSet::aggregation`]). Writers and
//! readers share these rules; `docs/commit-and-recovery.md` explains them.
//!
//! For logs of stored format 1 it finds where their chain ends and walks it ([`ChainWalk`]), with the keys that it is given: there
//! nothing can be told without.
//!
//! It does not write, does not decide what to commit, and holds no keys. What it keeps between calls is only how quickly each store
//! has answered lately, which decides who is asked first, never what counts.

mod chain;
mod health;
mod hedged;
mod named;
mod pacer;
mod parts;
mod quorums;
mod read;
mod shards_read;
mod soon;
mod survey;

pub use chain::{
    ChainEnd, ChainEndError, ChainSurvey, ChainWalk, Link, LinkCondition, LinkError, LinkFault, LinkRead,
};
pub use hedged::NotOpened;
pub use named::HeadsRead;
pub use pacer::Pacer;
pub use quorums::{InvalidQuorum, Quorums};
pub use read::{Candidate, HeadCandidate, Located, ReadError, ShardCondition};
pub use survey::{
    MAX_IN_FLIGHT, OtherShape, Standing, StoreSet, StoreView, Survey, TooFewStores, covers, doubtful,
    place_of,
};
