//! Putting other stores in the place of some: `tlog store replace`, in the tool and in a running server.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tlog_config::{StoreAddress, StoreAddressFault};
use tlog_proto::VdiskId;
use tlog_store::ShardStore;

use crate::storage::FlusherStorage;
use crate::stores::{StoreOpener, StoresError};

/// What is to be replaced. Addresses as a person writes them; they may have passwords in them.
#[derive(Clone, Serialize, Deserialize)]
pub struct ReplaceRequest {
    /// For this vdisk alone; none: for all.
    pub vdisk: Option<String>,
    /// Old and new address.
    pub replace: Vec<(String, String)>,
}

/// Not derived: the addresses may have passwords in them.
impl fmt::Debug for ReplaceRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplaceRequest").field("vdisk", &self.vdisk).finish_non_exhaustive()
    }
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceReport {
    /// Every vdisk whose log was to be filled into the new stores, in order of name.
    pub vdisks: Vec<ReplacedVdisk>,
}

/// One vdisk of a [`ReplaceReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplacedVdisk {
    /// Its name.
    pub vdisk: String,
    /// Why its log is not on the new stores yet; none: it is, and they count.
    pub error: Option<String>,
    /// It also has history of format 1, which is not filled into new stores.
    pub format1: bool,
}

impl ReplaceReport {
    /// Whether the new stores count in every log.
    pub fn is_done(&self) -> bool {
        self.vdisks.iter().all(|vdisk| vdisk.error.is_none())
    }
}

/// For a person, on several lines.
impl fmt::Display for ReplaceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ReplacedVdisk { vdisk, error, format1 } in &self.vdisks {
            match error {
                None => writeln!(f, "vdisk {vdisk}: filled, and the new stores count")?,
                Some(error) => writeln!(f, "vdisk {vdisk}: NOT filled: {error}")?,
            }
            if *format1 {
                writeln!(
                    f,
                    "vdisk {vdisk}: its history of format 1 is not on the new stores; it has one shard less to lose for each"
                )?;
            }
        }
        match self.is_done() {
            true => write!(f, "{} vdisks are on the new stores", self.vdisks.len()),
            false => f.write_str("not done; mend what is said above and do the same again"),
        }
    }
}

/// Why nothing was replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// No vdisk has such a name.
    #[error("{0:?} is no name of a vdisk")]
    Vdisk(String),
    /// An address that is none.
    #[error(transparent)]
    Address(#[from] StoreAddressFault),
    /// A store that is not among those in use.
    #[error("{address} is not one of the stores, which are {}; addresses are compared as they are shown there", .have.join(", "))]
    Unknown {
        /// As asked for.
        address: String,
        /// Those in use.
        have: Vec<String>,
    },
    /// A new store that is in use.
    #[error("{0} is one of the stores already; each shard needs a store of its own")]
    InUse(String),
    /// A new store that is in use, by another name.
    #[error(
        "{new} is the same store as {other}, which has another place in the log of vdisk {vdisk}: nothing was replaced"
    )]
    SameStore {
        /// As asked for.
        new: String,
        /// The name by which it is in use.
        other: String,
        /// In whose log.
        vdisk: VdiskId,
    },
    /// The new store cannot be opened.
    #[error(transparent)]
    Open(#[from] StoresError),
    /// The new store does not answer.
    #[error("the new {0}; start it, and try again: nothing was replaced")]
    Away(tlog_store::StoreError),
    /// No store has a log of it.
    #[error("no store that answers has a log of vdisk {0}; 'tlog vdisks' lists what there is")]
    NoLog(VdiskId),
    /// The stores that are left do not tell which vdisks there are.
    #[error("too few stores answer to tell which vdisks there are: {}", .0.join("; "))]
    TooFewStores(Vec<String>),
}

/// Puts the new stores in the place of the old ones, for one vdisk or all, and has each log filled into them. The same address twice
/// is an empty store in the place of a lost one. Answers once
/// all are. `progress` is told how many shards a vdisk's log lacks on them, from time to time.
pub async fn replace(
    storage: &FlusherStorage,
    opener: &StoreOpener,
    request: &ReplaceRequest,
    mut progress: impl FnMut(&VdiskId, u64) + Send,
) -> Result<ReplaceReport, ReplaceError> {
    let named = request.vdisk.as_ref();
    let named = named.map(|name| VdiskId::new(name).map_err(|_| ReplaceError::Vdisk(name.clone())));
    let vdisk = named.transpose()?;
    let places = storage.places();
    let mut replaced: Vec<(usize, Arc<dyn ShardStore>)> = Vec::new();
    // Places that are only filled.
    let mut filled: Vec<usize> = Vec::new();
    for (old, new) in &request.replace {
        let (old, new) = (StoreAddress::parse(old)?, StoreAddress::parse(new)?);
        let (was, shown) = (old.to_string(), new.to_string());
        let position = places.position(vdisk.as_ref(), &was).filter(|_| was != shown);
        let Some(position) = position else {
            // It is in its place already: an empty store under the old address, or this was asked for before.
            let Some(position) = places.position(vdisk.as_ref(), &shown) else {
                let have = places.addresses(vdisk.as_ref());
                return Err(ReplaceError::Unknown { address: was, have });
            };
            filled.push(position);
            continue;
        };
        let taken = replaced.iter().any(|(_, store)| *store.address() == *shown);
        if taken || places.position(vdisk.as_ref(), &shown).is_some() {
            return Err(ReplaceError::InUse(shown));
        }
        let store = opener.store(&new, position).await?;
        // Before anything is changed: it has to be there.
        store.vdisks().await.map_err(ReplaceError::Away)?;
        replaced.push((position, store));
    }
    let inventory = storage.inventory().await;
    let mut vdisks: Vec<(VdiskId, bool)> = Vec::new();
    match &vdisk {
        Some(vdisk) => {
            let known = inventory.vdisks.get(vdisk).copied().unwrap_or_default();
            if known.logs == 0 {
                return Err(ReplaceError::NoLog(vdisk.clone()));
            }
            vdisks.push((vdisk.clone(), known.chains > 0));
        }
        None => {
            if inventory.silent.len() >= storage.quorums().opening() {
                return Err(ReplaceError::TooFewStores(inventory.silent));
            }
            let known = inventory.vdisks.into_iter().filter(|(_, known)| known.logs > 0);
            vdisks.extend(known.map(|(vdisk, known)| (vdisk, known.chains > 0)));
        }
    }
    for (vdisk, _) in &vdisks {
        refuse_twins(storage, vdisk, &replaced).await?;
    }
    for (position, store) in &replaced {
        tracing::info!(vdisk = vdisk.as_ref().map(VdiskId::as_str), position, store = %store.address(), "a store is replaced");
        places.replace(vdisk.as_ref(), *position, store);
    }
    let positions: Vec<usize> = replaced.iter().map(|(position, _)| *position).chain(filled).collect();
    let mut report = ReplaceReport::default();
    for (vdisk, format1) in vdisks {
        let filled =
            storage.fill_replaced(&vdisk, &positions, true, |missing| progress(&vdisk, missing)).await;
        let error = filled.err().map(|error| error.to_string());
        report.vdisks.push(ReplacedVdisk { vdisk: vdisk.to_string(), error, format1 });
    }
    Ok(report)
}

/// Two names can mean one server; only the identity that it gave the log tells.
pub(crate) async fn refuse_twins(
    storage: &FlusherStorage,
    vdisk: &VdiskId,
    replaced: &[(usize, Arc<dyn ShardStore>)],
) -> Result<(), ReplaceError> {
    let Some(set) = storage.store_set(vdisk) else { return Ok(()) };
    let survey = set.survey().await;
    for (position, new) in replaced {
        let identity = new.status(vdisk).await.map_err(ReplaceError::Away)?.identity;
        let others = survey.views.iter().enumerate().filter(|(other, _)| other != position);
        let twin = others.map(|(_, view)| view).find(|view| {
            identity.is_some() && view.answer.as_ref().is_ok_and(|state| state.identity == identity)
        });
        if let Some(twin) = twin {
            let (new, other) = (new.address().to_string(), twin.address.clone());
            return Err(ReplaceError::SameStore { new, other, vdisk: vdisk.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_is_left_to_do_and_a_request_shows_no_address() {
        let vdisk = |name: &str, error: Option<&str>| ReplacedVdisk {
            vdisk: name.to_owned(),
            error: error.map(str::to_owned),
            format1: false,
        };
        let mut report = ReplaceReport { vdisks: vec![vdisk("a", None)] };
        assert!(report.is_done() && report.to_string().ends_with("1 vdisks are on the new stores"));
        report.vdisks.push(vdisk("b", Some("store x: is not available")));
        assert!(!report.is_done());
        assert!(report.to_string().contains("vdisk b: NOT filled: store x"), "{report}");
        let replace = vec![("a:1".to_owned(), "redis://:hush@b:2".to_owned())];
        assert!(!format!("{:?}", ReplaceRequest { vdisk: None, replace }).contains("hush"));
    }
}
