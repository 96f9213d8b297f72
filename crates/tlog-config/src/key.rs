//! Which document is which, and the key that each has in etcd.

use std::fmt;

use tlog_proto::VdiskId;

/// Names one document. Ordered so that documents come after those that they refer to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DocumentKey {
    /// The stores of a cluster: `<cluster>:cluster:conf:storage`.
    ClusterStorage(String),
    /// The tlog servers of a cluster: `<cluster>:cluster:conf:tlog`.
    ClusterTlog(String),
    /// Where the blocks of a vdisk are: `<vdisk>:vdisk:conf:storage:nbd`.
    VdiskNbd(VdiskId),
    /// Where the log of a vdisk is: `<vdisk>:vdisk:conf:storage:tlog`.
    VdiskTlog(VdiskId),
    /// What a vdisk is, and that it is: `<vdisk>:vdisk:conf:static`.
    VdiskStatic(VdiskId),
    /// The vdisks of an NBD server: `<server id>:nbdserver:conf:vdisks`.
    NbdServerVdisks(String),
    /// A key that ends like one of these and begins with a name that none of them can have.
    Misnamed(String),
}

const CLUSTER_STORAGE: &str = ":cluster:conf:storage";
const CLUSTER_TLOG: &str = ":cluster:conf:tlog";
const VDISK_STATIC: &str = ":vdisk:conf:static";
const VDISK_NBD: &str = ":vdisk:conf:storage:nbd";
const VDISK_TLOG: &str = ":vdisk:conf:storage:tlog";
const NBD_SERVER_VDISKS: &str = ":nbdserver:conf:vdisks";

impl DocumentKey {
    /// Reads a key; none where it is none of ours.
    pub fn parse(key: &str) -> Option<Self> {
        let vdisk = |name: &str, of: fn(VdiskId) -> Self| {
            VdiskId::new(name).map_or_else(|_| Self::Misnamed(key.to_owned()), of)
        };
        let named = |name: &str, of: fn(String) -> Self| {
            if is_legal_name(name) { of(name.to_owned()) } else { Self::Misnamed(key.to_owned()) }
        };
        if let Some(name) = key.strip_suffix(VDISK_STATIC) {
            Some(vdisk(name, Self::VdiskStatic))
        } else if let Some(name) = key.strip_suffix(VDISK_NBD) {
            Some(vdisk(name, Self::VdiskNbd))
        } else if let Some(name) = key.strip_suffix(VDISK_TLOG) {
            Some(vdisk(name, Self::VdiskTlog))
        } else if let Some(name) = key.strip_suffix(CLUSTER_STORAGE) {
            Some(named(name, Self::ClusterStorage))
        } else if let Some(name) = key.strip_suffix(CLUSTER_TLOG) {
            Some(named(name, Self::ClusterTlog))
        } else {
            key.strip_suffix(NBD_SERVER_VDISKS).map(|name| named(name, Self::NbdServerVdisks))
        }
    }

    /// The vdisk that this is a document of.
    pub fn vdisk(&self) -> Option<&VdiskId> {
        match self {
            Self::VdiskStatic(vdisk) | Self::VdiskNbd(vdisk) | Self::VdiskTlog(vdisk) => Some(vdisk),
            Self::ClusterStorage(_) | Self::ClusterTlog(_) | Self::NbdServerVdisks(_) | Self::Misnamed(_) => {
                None
            }
        }
    }
}

/// The key as it is in etcd.
impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterStorage(cluster) => write!(f, "{cluster}{CLUSTER_STORAGE}"),
            Self::ClusterTlog(cluster) => write!(f, "{cluster}{CLUSTER_TLOG}"),
            Self::VdiskNbd(vdisk) => write!(f, "{vdisk}{VDISK_NBD}"),
            Self::VdiskTlog(vdisk) => write!(f, "{vdisk}{VDISK_TLOG}"),
            Self::VdiskStatic(vdisk) => write!(f, "{vdisk}{VDISK_STATIC}"),
            Self::NbdServerVdisks(server) => write!(f, "{server}{NBD_SERVER_VDISKS}"),
            Self::Misnamed(key) => f.write_str(key),
        }
    }
}

/// Whether a cluster or an NBD server can have this name: what a vdisk can be called, so that it can be shown and logged like one.
pub(crate) fn is_legal_name(name: &str) -> bool {
    VdiskId::new(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written_and_others_are_none_of_ours() {
        let vdisk = |name: &str| VdiskId::new(name).unwrap();
        let check = |text: &str, key: Option<DocumentKey>| {
            assert_eq!(DocumentKey::parse(text), key, "{text}");
            assert!(key.is_none_or(|key| key.to_string() == text));
        };
        check("a:vdisk:conf:static", Some(DocumentKey::VdiskStatic(vdisk("a"))));
        check("a:b:vdisk:conf:static", Some(DocumentKey::VdiskStatic(vdisk("a:b"))));
        check("a:vdisk:conf:storage:nbd", Some(DocumentKey::VdiskNbd(vdisk("a"))));
        check("a:vdisk:conf:storage:tlog", Some(DocumentKey::VdiskTlog(vdisk("a"))));
        check("c1:cluster:conf:storage", Some(DocumentKey::ClusterStorage("c1".into())));
        check("c1:cluster:conf:tlog", Some(DocumentKey::ClusterTlog("c1".into())));
        check("default:nbdserver:conf:vdisks", Some(DocumentKey::NbdServerVdisks("default".into())));
        check("a/b:vdisk:conf:static", Some(DocumentKey::Misnamed("a/b:vdisk:conf:static".into())));
        check(":cluster:conf:tlog", Some(DocumentKey::Misnamed(":cluster:conf:tlog".into())));
        check("a:vdisk:conf", None);
        check("a:vdisk:conf:static:old", None);
        check("/registry/pods/x", None);
        check("", None);
    }
}
