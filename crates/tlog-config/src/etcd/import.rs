//! Writing documents to etcd.

use std::collections::BTreeMap;

use etcd_client::TxnOp;

use super::{EtcdSource, Found, Want};
use crate::{Document, DocumentKey, ImportOptions, ImportReport, SourceError};

/// Operations in one transaction, of which etcd takes 128 unless told otherwise.
const OPERATIONS: usize = 100;
/// Bytes in one, of which it takes 1.5 MiB.
const BYTES: usize = 1 << 20;

/// What is done to one key.
struct Change {
    key: DocumentKey,
    /// None: deleted.
    text: Option<String>,
}

impl Change {
    fn size(&self) -> usize {
        self.key.to_string().len() + self.text.as_ref().map_or(0, String::len)
    }
}

/// Makes etcd have these documents.
pub(crate) async fn import(
    etcd: &EtcdSource,
    documents: &BTreeMap<DocumentKey, Document>,
    options: ImportOptions,
) -> Result<ImportReport, SourceError> {
    let Found { mut link, snapshot, .. } = etcd.settings.find(0, Want::All).await?;
    let there = snapshot.unwrap_or_default();
    let mut report = ImportReport::default();
    let mut put = Vec::new();
    for (key, document) in documents {
        let Some(text) = document.text() else { continue };
        // As somebody else wrote it, or as it was written by an import, with quotes that the file does not have.
        let found = there.documents.get(key);
        if found == Some(document) || found == Some(&Document::parse(&key.to_string(), &text)) {
            report.unchanged.push(key.clone());
        } else {
            report.put.push(key.clone());
            put.push(Change { key: key.clone(), text: Some(text) });
        }
    }
    let others = there.documents.into_keys().filter(|key| !documents.contains_key(key));
    let mut delete = Vec::new();
    if options.prune {
        report.deleted = others.collect();
        delete.extend(report.deleted.iter().map(|key| Change { key: key.clone(), text: None }));
    } else {
        report.others = others.collect();
    }
    if !options.dry_run {
        for changes in transactions(put, delete) {
            link.write(changes.iter().map(operation).collect()).await?;
            report.transactions += 1;
        }
    }
    Ok(report)
}

fn operation(change: &Change) -> TxnOp {
    match &change.text {
        Some(text) => TxnOp::put(change.key.to_string(), text.as_str(), None),
        None => TxnOp::delete(change.key.to_string(), None),
    }
}

/// One transaction if it all fits; else several, in an order in which what is referred to is there before it is, and as long as it is.
/// The documents of one vdisk stay together.
fn transactions(put: Vec<Change>, delete: Vec<Change>) -> Vec<Vec<Change>> {
    // Keys are ordered so that clusters come first and the lists of NBD servers last; between them the parts of all vdisks are sorted by
    // kind, and here each vdisk's are put together.
    let (clusters, rest): (Vec<_>, Vec<_>) = put.into_iter().partition(|change| is_cluster(&change.key));
    let (vdisks, servers): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|change| change.key.vdisk().is_some());
    let (old_clusters, rest): (Vec<_>, Vec<_>) =
        delete.into_iter().partition(|change| is_cluster(&change.key));
    let (old_vdisks, old_servers): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|change| change.key.vdisk().is_some());

    let one = |change| vec![change];
    let units = clusters.into_iter().map(one).chain(by_vdisk(vdisks)).chain(servers.into_iter().map(one));
    let units = units.chain(old_servers.into_iter().map(one)).chain(by_vdisk(old_vdisks));
    let units = units.chain(old_clusters.into_iter().map(one));

    let mut transactions: Vec<Vec<Change>> = Vec::new();
    let (mut operations, mut bytes) = (usize::MAX, 0);
    for unit in units {
        let size: usize = unit.iter().map(Change::size).sum();
        match transactions.last_mut() {
            Some(last) if operations + unit.len() <= OPERATIONS && bytes + size <= BYTES => {
                operations += unit.len();
                bytes += size;
                last.extend(unit);
            }
            _ => {
                (operations, bytes) = (unit.len(), size);
                transactions.push(unit);
            }
        }
    }
    transactions
}

fn is_cluster(key: &DocumentKey) -> bool {
    matches!(key, DocumentKey::ClusterStorage(_) | DocumentKey::ClusterTlog(_))
}

fn by_vdisk(changes: Vec<Change>) -> impl Iterator<Item = Vec<Change>> {
    let mut vdisks: BTreeMap<_, Vec<Change>> = BTreeMap::new();
    for change in changes {
        vdisks.entry(change.key.vdisk().cloned()).or_default().push(change);
    }
    vdisks.into_values()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(keys: &[&str], text: Option<&str>) -> Vec<Change> {
        let mut keys: Vec<_> = keys.iter().map(|key| DocumentKey::parse(key).unwrap()).collect();
        keys.sort();
        keys.into_iter().map(|key| Change { key, text: text.map(str::to_owned) }).collect()
    }

    fn shown(transactions: &[Vec<Change>]) -> Vec<Vec<String>> {
        transactions
            .iter()
            .map(|changes| changes.iter().map(|change| change.key.to_string()).collect())
            .collect()
    }

    #[test]
    fn what_fits_is_one_transaction_with_what_is_referred_to_first() {
        let put = changes(
            &[
                "s:nbdserver:conf:vdisks",
                "b:vdisk:conf:static",
                "a:vdisk:conf:static",
                "b:vdisk:conf:storage:tlog",
                "c:cluster:conf:storage",
                "a:vdisk:conf:storage:nbd",
            ],
            Some("x"),
        );
        let delete = changes(&["old:cluster:conf:storage", "old:vdisk:conf:static"], None);
        let expected = [
            "c:cluster:conf:storage",
            "a:vdisk:conf:storage:nbd",
            "a:vdisk:conf:static",
            "b:vdisk:conf:storage:tlog",
            "b:vdisk:conf:static",
            "s:nbdserver:conf:vdisks",
            "old:vdisk:conf:static",
            "old:cluster:conf:storage",
        ];
        assert_eq!(shown(&transactions(put, delete)), [expected]);
        assert!(transactions(Vec::new(), Vec::new()).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_split_between_vdisks() {
        let keys: Vec<_> = (0..100)
            .flat_map(|index| {
                ["static", "storage:tlog", "storage:nbd"].map(|part| format!("v{index}:vdisk:conf:{part}"))
            })
            .collect();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let split = transactions(changes(&keys, Some("x")), Vec::new());
        assert_eq!(split.iter().map(Vec::len).collect::<Vec<_>>(), [99, 99, 99, 3]);
        for changes in split {
            let vdisks: Vec<_> = changes.iter().map(|change| change.key.vdisk().unwrap().clone()).collect();
            assert!(vdisks.chunks(3).all(|vdisk| vdisk[0] == vdisk[2]));
        }
        let large = "x".repeat(BYTES / 2);
        let split = transactions(changes(&keys[..9], Some(&large)), Vec::new());
        assert_eq!(split.len(), 3);
    }
}
