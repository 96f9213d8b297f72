//! What each kind of document says, once it has been checked.

use tlog_proto::VdiskId;

use crate::address::host_and_port;
use crate::document::Item;
use crate::key::is_legal_name;
use crate::{ClusterShards, Document, Fault, Place, Problem, StorageCluster, StoreAddress};

/// Smallest block of a vdisk, in bytes.
pub const MIN_BLOCK_SIZE: u32 = 512;
/// Largest block of a vdisk, in bytes: what one message may carry unless told otherwise.
pub const MAX_BLOCK_SIZE: u32 = 16 << 20;

const GIB: u128 = 1 << 30;

/// What a vdisk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VdiskType {
    /// A machine starts from it.
    Boot,
    /// A database's.
    Db,
    /// It may be lost.
    Cache,
    /// It is lost when its machine stops.
    Tmp,
}

impl VdiskType {
    /// How it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Db => "db",
            Self::Cache => "cache",
            Self::Tmp => "tmp",
        }
    }
}

/// What a vdisk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VdiskStatic {
    pub(crate) vdisk_type: VdiskType,
    pub(crate) block_size: u32,
    /// Bytes: whole blocks, at least one.
    pub(crate) size: u64,
    pub(crate) read_only: bool,
}

/// The name of a cluster, and where it stands. Two are equal if they name the same.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) place: Place,
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Reference {}

/// Where the blocks of a vdisk are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VdiskNbd {
    pub(crate) storage: Reference,
    pub(crate) template: Option<Reference>,
    pub(crate) slave: Option<Reference>,
    pub(crate) tlog: Option<Reference>,
}

/// Where the log of a vdisk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VdiskTlog {
    pub(crate) storage: Reference,
    pub(crate) slave: Option<Reference>,
}

/// The vdisks of an NBD server, and where each stands.
#[derive(Debug, Clone)]
pub(crate) struct NbdServerVdisks {
    pub(crate) vdisks: Vec<(VdiskId, Place)>,
}

impl PartialEq for NbdServerVdisks {
    fn eq(&self, other: &Self) -> bool {
        self.vdisks.iter().map(|(vdisk, _)| vdisk).eq(other.vdisks.iter().map(|(vdisk, _)| vdisk))
    }
}

type Read<T> = Result<T, Vec<Problem>>;

pub(crate) fn read_vdisk_static(document: &Document) -> Read<VdiskStatic> {
    document.read(&["type", "blockSize", "size", "readOnly"], |fields| {
        // All are looked at before any that is missing ends it, so that a person is told of everything.
        let vdisk_type = fields.required("type").and_then(read_type);
        let block_size = fields.required("blockSize").and_then(read_block_size);
        let gib = fields.required("size").and_then(read_gib);
        let read_only = fields.optional("readOnly").map_or(Some(false), read_switch);
        let (vdisk_type, block_size, read_only) = (vdisk_type?, block_size?, read_only?);
        // Whole blocks: what is left of a fraction of a GiB is no block.
        let size = gib? / u64::from(block_size) * u64::from(block_size);
        if size == 0 {
            fields.wrong(Fault::NoBlock);
            return None;
        }
        Some(VdiskStatic { vdisk_type, block_size, size, read_only })
    })
}

fn read_type(item: Item<'_, '_, '_>) -> Option<VdiskType> {
    const EXPECTED: &str = "boot, db, cache or tmp";
    let (text, item) = item.text(EXPECTED)?;
    match text {
        "boot" => Some(VdiskType::Boot),
        "db" => Some(VdiskType::Db),
        "cache" => Some(VdiskType::Cache),
        "tmp" => Some(VdiskType::Tmp),
        _ => item.wrong(Fault::Expected(EXPECTED)),
    }
}

fn read_block_size(item: Item<'_, '_, '_>) -> Option<u32> {
    let (text, item) = item.plain("a number of bytes such as 4096, without quotes")?;
    let legal = |size: &u32| size.is_power_of_two() && (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(size);
    match number(text).and_then(|number| u32::try_from(number).ok()).filter(legal) {
        Some(size) => Some(size),
        None => item.wrong(Fault::BlockSize),
    }
}

/// GiB, such as 10 or 0.5, as bytes, rounded down.
fn read_gib(item: Item<'_, '_, '_>) -> Option<u64> {
    const EXPECTED: &str = "a number of GiB above zero, such as 10 or 0.5, without quotes";
    let (text, item) = item.plain(EXPECTED)?;
    match gib(text) {
        Some(bytes) => Some(bytes),
        None => item.wrong(Fault::Expected(EXPECTED)),
    }
}

fn gib(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.len() > 18 {
        return None;
    }
    // 2^63 bytes are 2^33 GiB, and 18 digits more fit 128 bits with room.
    let whole = u128::from(number(whole)?.min(1 << 33));
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction = u128::from(number(fraction)?);
    let bytes = whole * GIB + fraction * GIB / scale;
    let nothing = whole == 0 && fraction == 0;
    // A block's index is signed in messages, so that no vdisk has more bytes than that.
    i64::try_from(bytes).ok().and_then(|bytes| u64::try_from(bytes).ok()).filter(|_| !nothing)
}

/// Digits and nothing else: no sign, no separators, no other bases.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn read_switch(item: Item<'_, '_, '_>) -> Option<bool> {
    const EXPECTED: &str = "true or false";
    let (text, item) = item.plain(EXPECTED)?;
    match text.to_ascii_lowercase().as_str() {
        // What YAML 1.1, which other writers of these documents have, takes too.
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => item.wrong(Fault::Expected(EXPECTED)),
    }
}

pub(crate) fn read_vdisk_nbd(document: &Document) -> Read<VdiskNbd> {
    const FIELDS: &[&str] =
        &["storageClusterID", "templateStorageClusterID", "slaveStorageClusterID", "tlogServerClusterID"];
    document.read(FIELDS, |fields| {
        let storage = fields.required("storageClusterID").and_then(read_reference);
        let template =
            fields.optional("templateStorageClusterID").map_or(Some(None), read_optional_reference);
        let slave = fields.optional("slaveStorageClusterID").map_or(Some(None), read_optional_reference);
        let tlog = fields.optional("tlogServerClusterID").map_or(Some(None), read_optional_reference);
        Some(VdiskNbd { storage: storage?, template: template?, slave: slave?, tlog: tlog? })
    })
}

pub(crate) fn read_vdisk_tlog(document: &Document) -> Read<VdiskTlog> {
    document.read(&["storageClusterID", "slaveStorageClusterID"], |fields| {
        let storage = fields.required("storageClusterID").and_then(read_reference);
        let slave = fields.optional("slaveStorageClusterID").map_or(Some(None), read_optional_reference);
        Some(VdiskTlog { storage: storage?, slave: slave? })
    })
}

const CLUSTER: &str = "the name of a cluster";

fn read_reference(item: Item<'_, '_, '_>) -> Option<Reference> {
    let (text, item) = item.text(CLUSTER)?;
    if !is_legal_name(text) {
        return item.wrong(Fault::Name);
    }
    Some(Reference { name: text.to_owned(), place: item.place() })
}

/// An empty text is none: so programs that know all fields write those that are not set.
fn read_optional_reference(item: Item<'_, '_, '_>) -> Option<Option<Reference>> {
    let (text, item) = item.text(CLUSTER)?;
    if text.is_empty() { Some(None) } else { read_reference(item).map(Some) }
}

pub(crate) fn read_cluster_storage(id: &str, document: &Document) -> Read<StorageCluster> {
    const FIELDS: &[&str] = &["dataStorage", "metadataStorage", "dataShards", "parityShards", "writeQuorum"];
    document.read(FIELDS, |fields| {
        let data = fields
            .required("dataStorage")
            .and_then(|item| item.list("a list of at least one store, each with an address", 1, read_store));
        let metadata =
            fields.optional("metadataStorage").map_or(Some(None), |item| read_store(item).map(Some));
        // Extensions of ours; existing programs pass over them.
        let mut shards = |name| fields.optional(name).map_or(Some(None), |item| read_shards(item).map(Some));
        let (k, m, w) = (shards("dataShards"), shards("parityShards"), shards("writeQuorum"));
        let shards = ClusterShards { data: k?, parity: m?, write_quorum: w? };
        Some(StorageCluster { id: id.to_owned(), data: data?, metadata: metadata?, shards })
    })
}

fn read_shards(item: Item<'_, '_, '_>) -> Option<u8> {
    const EXPECTED: &str = "a number from 0 to 255, without quotes";
    let (text, item) = item.plain(EXPECTED)?;
    match number(text).and_then(|number| u8::try_from(number).ok()) {
        Some(shards) => Some(shards),
        None => item.wrong(Fault::Expected(EXPECTED)),
    }
}

fn read_store(mut item: Item<'_, '_, '_>) -> Option<StoreAddress> {
    let mut fields = item.fields(&["address", "db"])?;
    let address = fields.required("address").and_then(|item| {
        let (text, item) = item.text("the address of a store, such as 127.0.0.1:16379")?;
        match StoreAddress::parse(text) {
            Ok(address) => Some((address, text)),
            Err(fault) => item.wrong(fault.into()),
        }
    });
    let database = match fields.optional("db") {
        None => Some(None),
        Some(item) => read_database(item).map(Some),
    };
    let ((mut address, text), database) = (address?, database?);
    if let Some(database) = database {
        match &mut address {
            StoreAddress::Redis(server) if !text.contains(['@', '/']) => server.database = database,
            _ => return fields.optional("db")?.wrong(Fault::Database),
        }
    }
    Some(address)
}

fn read_database(item: Item<'_, '_, '_>) -> Option<u32> {
    const EXPECTED: &str = "the number of a database, such as 0, without quotes";
    let (text, item) = item.plain(EXPECTED)?;
    match number(text).and_then(|number| u32::try_from(number).ok()) {
        Some(database) => Some(database),
        None => item.wrong(Fault::Expected(EXPECTED)),
    }
}

pub(crate) fn read_cluster_tlog(document: &Document) -> Read<Vec<String>> {
    document.read(&["servers"], |fields| {
        fields.required("servers")?.list("a list of at least one server, each as host:port", 1, |item| {
            const EXPECTED: &str =
                "the host and port of a tlog server, such as 127.0.0.1:11211 or [::1]:11211";
            let (text, item) = item.text(EXPECTED)?;
            if is_server(text) { Some(text.to_owned()) } else { item.wrong(Fault::Expected(EXPECTED)) }
        })
    })
}

/// Whether it is `host:port`.
fn is_server(text: &str) -> bool {
    // A number may have a sign to Rust, and not to other readers of the document.
    host_and_port(text).is_some() && text.rsplit_once(':').is_some_and(|(_, port)| number(port).is_some())
}

pub(crate) fn read_nbd_server_vdisks(document: &Document) -> Read<NbdServerVdisks> {
    document.read(&["vdisks"], |fields| {
        let vdisks = fields.required("vdisks")?.list("a list of vdisks", 0, |item| {
            let (text, item) = item.text("the id of a vdisk")?;
            match VdiskId::new(text) {
                Ok(vdisk) => Some((vdisk, item.place())),
                Err(fault) => item.wrong(fault.into()),
            }
        })?;
        Some(NbdServerVdisks { vdisks })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::Mark;

    /// What is wrong, as (line and column, path, beginning of what is said); nothing where it is right.
    fn check<T>(
        read: impl Fn(&Document) -> Read<T>,
        text: &str,
        expected: &[(Mark, &str, &str)],
    ) -> Option<T> {
        match read(&Document::parse("key", text)) {
            Ok(value) => {
                assert!(expected.is_empty(), "{text}");
                Some(value)
            }
            Err(problems) => {
                assert_eq!(problems.len(), expected.len(), "{text}: {problems:?}");
                for (problem, (mark, path, fault)) in problems.iter().zip(expected) {
                    let place = (problem.place.at.unwrap(), problem.place.path.as_str());
                    assert_eq!(place, (*mark, *path), "{text}: {problem}");
                    assert!(problem.fault.to_string().starts_with(fault), "{text}: {problem}");
                }
                None
            }
        }
    }

    #[test]
    fn what_a_vdisk_is_is_read() {
        let check = |text: &str, size: u64, read_only: bool| {
            let read = check(read_vdisk_static, text, &[]).unwrap();
            assert_eq!((read.size, read.read_only), (size, read_only), "{text}");
        };
        check("{type: boot, blockSize: 4096, size: 10}", 10 << 30, false);
        check("{type: db, blockSize: 512, size: 0.5, readOnly: true}", 1 << 29, true);
        check("{type: 'cache', blockSize: 16777216, size: 1, readOnly: no}", 1 << 30, false);
        // A tenth of a GiB is no whole number of blocks, nor of bytes.
        check("{type: tmp, blockSize: 4096, size: 0.1}", 107_372_544, false);
        check("{type: tmp, blockSize: 512, size: 0.0000005}", 512, false);
        check("{type: tmp, blockSize: 512, size: 8589934591}", 8_589_934_591 << 30, false);
    }

    #[test]
    fn what_no_vdisk_can_be_is_refused() {
        let check = |text: &str, expected: &[(Mark, &str, &str)]| {
            assert_eq!(check(read_vdisk_static, text, expected), None);
        };
        check(
            "{type: disk, blockSize: 4096, size: 1}",
            &[((1, 8), "type", "it must be boot, db, cache or tmp")],
        );
        check("{type: db, blockSize: 4096}", &[((1, 1), "", "the field size is missing")]);
        check("[1, 2]", &[((1, 1), "", "it must be fields")]);
        check("db", &[((1, 1), "", "it must be fields")]);
        for block_size in ["4097", "256", "33554432", "0", "99999999999999999999", "-4096", "4k", "1e3"] {
            let text = format!("{{type: db, blockSize: {block_size}, size: 1}}");
            check(&text, &[((1, 23), "blockSize", "a block size is a power of two from 512 to 16777216")]);
        }
        check(
            "{type: db, blockSize: '4096', size: 1}",
            &[((1, 23), "blockSize", "it must be a number of bytes")],
        );
        for size in ["0", "0.0", "-1", "ten", "1.", ".5", "1e3", "8589934592", "1.5.5", "10 GiB", "''", "~"] {
            let text = format!("{{type: db, blockSize: 4096, size: {size}}}");
            check(&text, &[((1, 35), "size", "it must be a number of GiB above zero")]);
        }
        check(
            "{type: db, blockSize: 4096, size: 0.0000001}",
            &[((1, 1), "", "the vdisk must have at least one block")],
        );
        check(
            "type: db\nblocksize: 4096\nsize: 1\nreadOnly: perhaps\n",
            &[
                ((2, 1), "", "there is no such field, did you mean blockSize?"),
                ((1, 1), "", "the field blockSize is missing"),
                ((4, 11), "readOnly", "it must be true or false"),
            ],
        );
    }

    #[test]
    fn references_are_names_and_an_empty_one_is_none() {
        let nbd = "{storageClusterID: c1, templateStorageClusterID: '', slaveStorageClusterID: c2, tlogServerClusterID: t}";
        let read = check(read_vdisk_nbd, nbd, &[]).unwrap();
        let name = |reference: Option<Reference>| reference.map(|reference| reference.name);
        assert_eq!(
            (read.storage.name.as_str(), name(read.template), name(read.slave), name(read.tlog)),
            ("c1", None, Some("c2".into()), Some("t".into()))
        );
        let wrong = |text: &str, expected: &[(Mark, &str, &str)]| {
            assert_eq!(check(read_vdisk_tlog, text, expected), None);
        };
        wrong("storageClusterID: ''", &[((1, 19), "storageClusterID", "such a name has")]);
        wrong("storageClusterID:", &[((1, 17), "storageClusterID", "it must be the name of a cluster")]);
        wrong("storageClusterID: [c]", &[((1, 19), "storageClusterID", "it must be the name of a cluster")]);
        wrong(
            "{storageClusterID: c, tlogServerClusterID: t}",
            &[((1, 23), "", "there is no such field; known here: storageClusterID, slaveStorageClusterID")],
        );
    }

    #[test]
    fn stores_of_a_cluster_are_read_in_order() {
        let read = |document: &Document| read_cluster_storage("c", document);
        let text = "dataStorage:\n- address: h:1\n  db: 2\n- {address: 'redis://u:p@h:2/3'}\n- address: file:/srv\n\
                    metadataStorage: {address: 'h:4@5'}\n";
        let cluster = check(read, text, &[]).unwrap();
        let shown: Vec<_> = cluster.data.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["redis://h:1/2", "redis://h:2/3", "file:/srv"]);
        assert_eq!(cluster.metadata.unwrap().to_string(), "redis://h:4/5");

        let wrong =
            |text: &str, expected: &[(Mark, &str, &str)]| assert_eq!(check(read, text, expected), None);
        wrong("{}", &[((1, 1), "", "the field dataStorage is missing")]);
        wrong("dataStorage: []", &[((1, 14), "dataStorage", "it must be a list of at least one store")]);
        wrong("dataStorage: h:1", &[((1, 14), "dataStorage", "it must be a list of at least one store")]);
        wrong(
            "dataStorage:\n- address: h\n- h:1\n- db: 1\n- {address: h:1, db: one}\n- {address: 'h:1@2', db: 1}\n\
             - {address: 'file:/srv', db: 1}\nmetadataStorage:\n",
            &[
                ((2, 12), "dataStorage[0].address", "a store is host:port[@db]"),
                ((3, 3), "dataStorage[1]", "it must be fields"),
                ((4, 3), "dataStorage[2]", "the field address is missing"),
                ((5, 22), "dataStorage[3].db", "it must be the number of a database"),
                ((6, 26), "dataStorage[4].db", "db goes with host:port alone"),
                ((7, 30), "dataStorage[5].db", "db goes with host:port alone"),
                ((8, 16), "metadataStorage", "it must be fields"),
            ],
        );
    }

    #[test]
    fn tlog_servers_and_vdisks_of_a_server_are_lists() {
        let servers = "servers: [127.0.0.1:11211, tlog-2.lan:11212, '[::1]:11213']";
        let read = check(read_cluster_tlog, servers, &[]).unwrap();
        assert_eq!(read, ["127.0.0.1:11211", "tlog-2.lan:11212", "[::1]:11213"]);
        let wrong = |text: &str, expected: &[(Mark, &str, &str)]| {
            assert_eq!(check(read_cluster_tlog, text, expected), None);
        };
        wrong("servers: []", &[((1, 10), "servers", "it must be a list of at least one server")]);
        wrong(
            "servers: [host, 'host:0', '1.2.3.256:1', ok:1, 'redis://u:p@h:1']",
            &[
                ((1, 11), "servers[0]", "it must be the host and port"),
                ((1, 17), "servers[1]", "it must be the host and port"),
                ((1, 27), "servers[2]", "it must be the host and port"),
                ((1, 48), "servers[4]", "it must be the host and port"),
            ],
        );
        let vdisks = check(read_nbd_server_vdisks, "vdisks: [a, b]", &[]).unwrap();
        assert_eq!(vdisks.vdisks.len(), 2);
        assert!(check(read_nbd_server_vdisks, "vdisks: []", &[]).unwrap().vdisks.is_empty());
        let expected = [((1, 10), "vdisks[0]", "a vdisk id is made of ASCII letters")];
        assert_eq!(check(read_nbd_server_vdisks, "vdisks: [a b]", &expected), None);
    }
}
