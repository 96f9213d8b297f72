//! Opening a log of format 1 for writing.
//!
//! ```text
//! status of all stores: no log of format 2 -> the lists of all stores -> the newest aggregation that counts
//!   -> its shard and its id in front of the list on every store that lacks one of them -> the last blocks
//! ```
//! What a writer left that died between the stores is settled by that: after an opening every list begins with the aggregation
//! that the next one follows, and what was passed over never comes back in front.

use std::time::Duration;

use tlog_codec::format1::Keys;
use tlog_proto::{AggregationId, VdiskId};
use tlog_quorum::{ChainEndError, LinkCondition, LinkError, LinkRead, StoreSet, TooFewStores};

use super::storing::{Trouble, store_link};
use super::tail::ChainTail;
use crate::settings::InvalidSettings;

/// Why a log of format 1 cannot be opened for writing.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Settings under which a writer cannot work.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    /// Some stores are of a kind that existing servers do not know.
    #[error(
        "vdisk {vdisk}: format 1 is written to Redis only, and these stores are something else: {}; choose other stores, or format = 2",
        stores.join(", ")
    )]
    WrongStores {
        /// The vdisk.
        vdisk: VdiskId,
        /// Their addresses.
        stores: Vec<String>,
    },
    /// Not all stores answer.
    #[error("{0}; format 1 is written to all stores or not at all")]
    TooFewStores(#[from] TooFewStores),
    /// The log has gone on in format 2.
    #[error(
        "vdisk {vdisk}: its log is one of format 2 on {}, and does not go back to format 1; set format = 2",
        stores.join(", ")
    )]
    Format2 {
        /// The vdisk.
        vdisk: VdiskId,
        /// Addresses of stores that know it.
        stores: Vec<String>,
    },
    /// Where it ends cannot be told.
    #[error(transparent)]
    End(#[from] ChainEndError),
    /// The last aggregation could be read, and then not again.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The end of the log could not be made the same on all stores.
    #[error("vdisk {vdisk}: the end of its log could not be settled: {why}")]
    NotSettled {
        /// The vdisk.
        vdisk: VdiskId,
        /// What the stores said.
        why: String,
    },
}

/// Finds the end of the log and settles it.
pub(super) async fn settled_end(
    set: &StoreSet,
    keys: &Keys,
    pause: Duration,
) -> Result<ChainTail, OpenError> {
    let vdisk = set.vdisk();
    let wrong = set.stores().iter().filter(|store| store.chains().is_none());
    let wrong: Vec<String> = wrong.map(|store| store.address().to_string()).collect();
    if !wrong.is_empty() {
        return Err(OpenError::WrongStores { vdisk: vdisk.clone(), stores: wrong });
    }
    let (survey, chain) = tokio::join!(set.survey(), set.chain_survey());
    let of_format2 =
        survey.views.iter().filter(|view| view.answer.as_ref().is_ok_and(|state| state.identity.is_some()));
    let of_format2: Vec<String> = of_format2.map(|view| view.address.clone()).collect();
    if !of_format2.is_empty() {
        return Err(OpenError::Format2 { vdisk: vdisk.clone(), stores: of_format2 });
    }
    let all = set.stores().len();
    // Nobody knows a log of format 2, so that every store which answers counts.
    survey.require(all)?;
    chain.require(all)?;
    let Some(newest) = set.chain_end(&chain, keys).await?.certain()? else {
        return Ok(ChainTail::empty());
    };
    let link = set.link(newest, keys, LinkRead::All).await?;
    let in_front: Vec<bool> = chain
        .lists
        .iter()
        .map(|list| list.as_ref().is_ok_and(|list| list.first() == Some(&newest)))
        .collect();
    let is_settled = |store: usize| {
        in_front.get(store) == Some(&true) && link.conditions.get(store) == Some(&LinkCondition::Held)
    };
    if !(0..all).all(is_settled) {
        let stores = set.stores().iter().enumerate().filter(|(i, _)| !is_settled(*i));
        let stores: Vec<_> = stores.map(|(_, store)| store.address()).collect();
        tracing::warn!(%vdisk, id = %newest, ?stores, "the last aggregation of format 1 is stored again there");
        let settled =
            store_link(set, newest, &link.shards, |store| !is_settled(store), pause, &Trouble::default())
                .await;
        settled.map_err(|why| OpenError::NotSettled { vdisk: vdisk.clone(), why: why.to_string() })?;
    }
    warn_of_empty_lists(set, newest, &chain.lists);
    Ok(ChainTail::read(set, newest, keys).await?)
}

fn warn_of_empty_lists<E>(set: &StoreSet, newest: AggregationId, lists: &[Result<Vec<AggregationId>, E>]) {
    let empty = set.stores().iter().zip(lists).filter(|(_, list)| list.as_ref().is_ok_and(Vec::is_empty));
    let stores: Vec<_> = empty.map(|(store, _)| store.address()).collect();
    if !stores.is_empty() {
        tracing::warn!(vdisk = %set.vdisk(), ?stores, %newest,
            "these stores had no list: where they came back empty, older history has lost their shards");
    }
}
