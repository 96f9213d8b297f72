//! What is wrong with a document, and where.

use std::fmt;
use std::sync::Arc;

use tlog_proto::{IllegalVdiskId, VdiskId};

use crate::StoreAddressFault;

/// One thing that is wrong, for a person: where it is, and what was expected there. Never has a value of a document in it but names
/// of vdisks and clusters: any other may be, or be next to, a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub fault: Fault,
}

/// A place in a document. Shown as `FILE:12:7: vdisks.data.type` or `data:vdisk:conf:static:2:7: type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, or the key in etcd.
    pub origin: Arc<str>,
    /// Fields and entries that lead there, such as `storageClusters.main.dataStorage[1].address`; empty for the document itself.
    pub path: String,
    /// Line in the origin and column in that line, from 1; none where it is about all of it.
    pub at: Option<(usize, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key may have anything in it.
        write!(f, "{}", self.origin.escape_debug())?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        Ok(())
    }
}

/// Which kind of cluster a reference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClusterKind {
    /// One with stores.
    Storage,
    /// One with tlog servers.
    Tlog,
}

impl fmt::Display for ClusterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Storage => "storage cluster",
            Self::Tlog => "tlog cluster",
        })
    }
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The text is no YAML.
    #[error("this is not YAML; look at indentation, colons, quotes and brackets here and just before")]
    NotYaml,
    /// The text is not UTF-8.
    #[error("this is not UTF-8 text")]
    NotText,
    /// More bytes than are read.
    #[error("it has more than {limit} bytes")]
    TooLarge {
        /// How many it may have.
        limit: usize,
    },
    /// Lists and mappings in each other, deeper than any document has.
    #[error("lists and mappings are more than {limit} deep in each other")]
    TooDeep {
        /// How deep they may be.
        limit: usize,
    },
    /// More values than are read, those that aliases repeat included.
    #[error("it has more than {limit} values, with what aliases repeat")]
    TooManyValues {
        /// How many it may have.
        limit: usize,
    },
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// No document at all, where there were some.
    #[error(
        "there is no document of a vdisk or cluster any more, as if it had been set up anew; what was in force stays. Put the documents back"
    )]
    NothingLeft,
    /// A second document behind `---`.
    #[error("there is a second YAML document; put everything into one, without ---")]
    SeveralDocuments,
    /// An alias of something that is not whole before it.
    #[error("this alias has no anchor before it")]
    UnknownAlias,
    /// A tag.
    #[error("tags (!...) have no meaning here; take it away")]
    Tag,
    /// The name of a field that is no text.
    #[error("the name of a field must be a text")]
    FieldName,
    /// Twice the same field.
    #[error("this field is there twice, first in line {first}; keep one")]
    Duplicate {
        /// Line of the first one.
        first: usize,
    },
    /// A field that nobody knows. Its name is not repeated: it may be a part of something else.
    #[error("there is no such field{}; known here: {}", nearest_of(.nearest), .known.join(", "))]
    UnknownField {
        /// The known one that it looks like.
        nearest: Option<&'static str>,
        /// All of them.
        known: Vec<&'static str>,
    },
    /// A field that must be there is not.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// Something else is expected.
    #[error("it must be {0}")]
    Expected(&'static str),
    /// No number of bytes that a block can have.
    #[error("a block size is a power of two from {min} to {max}, such as 4096", min = crate::MIN_BLOCK_SIZE, max = crate::MAX_BLOCK_SIZE)]
    BlockSize,
    /// Less than one block.
    #[error("the vdisk must have at least one block: make size larger or blockSize smaller")]
    NoBlock,
    /// No address of a store.
    #[error("{0}")]
    Address(#[from] StoreAddressFault),
    /// `db` beside something that has its own or none.
    #[error("db goes with host:port alone; take it away, or the database out of the address")]
    Database,
    /// No name of a vdisk.
    #[error("{0}")]
    VdiskName(#[from] IllegalVdiskId),
    /// No name of a cluster or of an NBD server.
    #[error("such a name has 1 to {max} ASCII letters, digits and -_.:@+ and begins with a letter or digit", max = VdiskId::MAX_LEN)]
    Name,
    /// The key of a document in which the name is none.
    #[error("no vdisk, cluster or server can have this name; it has 1 to {max} ASCII letters, digits and -_.:@+ and begins with a letter or digit", max = VdiskId::MAX_LEN)]
    KeyName,
    /// A cluster that is not there.
    #[error("there is no {kind} {}", .name.as_deref().unwrap_or("of this name"))]
    NoSuchCluster {
        /// Of this kind.
        kind: ClusterKind,
        /// Of this name; none where it may be an address in the wrong place, `user:password@host:port`.
        name: Option<String>,
    },
    /// A slave that is where the disk itself or its log is.
    #[error(
        "the slave must be on another cluster than {of}: {}; after a switch take the slave away here, or name another cluster",
        store.as_ref().map_or_else(|| "it is the same one".to_owned(), |store| format!("both have {store}"))
    )]
    SlaveInPlace {
        /// The field of the document that names the other cluster.
        of: &'static str,
        /// A store that both have; none where it is one cluster.
        store: Option<String>,
    },
    /// A vdisk that is not there.
    #[error("there is no vdisk {0}")]
    NoSuchVdisk(VdiskId),
    /// Parts of a vdisk of which the one that makes it a vdisk is missing.
    #[error("there is no vdisk {0}: its static document (type, blockSize, size) is missing")]
    NoStaticPart(VdiskId),
}

fn nearest_of(nearest: &Option<&'static str>) -> String {
    nearest.map(|nearest| format!(", did you mean {nearest}?")).unwrap_or_default()
}
