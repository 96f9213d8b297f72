//! One file as the documents that etcd has under keys of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::document::{Fields, Found, join};
use crate::key::is_legal_name;
use crate::yaml::{self, Field, Limits, Node, Value};
use crate::{Document, DocumentKey, Fault, Place, Problem};

const FILE: Limits = Limits { bytes: super::MAX_BYTES, values: 1_000_000 };

const STORAGE_CLUSTERS: &str = "storageClusters";
const TLOG_CLUSTERS: &str = "tlogClusters";
const VDISKS: &str = "vdisks";
const NBD_SERVERS: &str = "nbdServers";
const SECTIONS: &[&str] = &[STORAGE_CLUSTERS, TLOG_CLUSTERS, VDISKS, NBD_SERVERS];

/// What stands beside a vdisk's own fields and is a document of its own.
const NBD: &str = "nbd";
const TLOG: &str = "tlog";

/// Splits a file. What is wrong inside a document is left to whoever reads that; a file whose frame is wrong is refused as a whole, since a
/// section that is not understood would otherwise be one without vdisks.
pub(crate) fn split(origin: &Arc<str>, text: &str) -> Result<BTreeMap<DocumentKey, Document>, Vec<Problem>> {
    let root = yaml::parse(text, FILE).map_err(|error| {
        let place = Place { origin: Arc::clone(origin), path: String::new(), at: Some(error.mark) };
        vec![Problem { place, fault: error.fault }]
    })?;
    let mut found = Found::new(origin);
    // Only for what is wrong with it: a name that is not known, or no names at all.
    let _ = Fields::of(&root, String::new(), SECTIONS, &[], &mut found);
    if let Value::Mapping(sections) = &root.value
        && !sections.iter().any(|section| section.name == VDISKS)
    {
        // A file that was cut off must not be one that removes every vdisk.
        found.add("", root.mark, Fault::Missing(VDISKS));
    }
    let sections = if let Value::Mapping(sections) = root.value { sections } else { Vec::new() };
    let mut documents = BTreeMap::new();
    for section in sections.into_iter().filter(|section| SECTIONS.contains(&section.name.as_str())) {
        if let Value::Mapping(entries) = section.value.value {
            for entry in entries {
                documents.extend(documents_of(origin, &section.name, entry));
            }
        } else {
            let expected = "entries, each as name: and its fields, or {} for none";
            found.add(&section.name, section.value.mark, Fault::Expected(expected));
        }
    }
    let problems = found.into_problems();
    if problems.is_empty() { Ok(documents) } else { Err(problems) }
}

/// What one entry of a section is in etcd.
fn documents_of(origin: &Arc<str>, section: &str, entry: Field) -> Vec<(DocumentKey, Document)> {
    let Field { mark, name, value } = entry;
    if !is_legal_name(&name) {
        // Where and not what: it may be a part of something that is not to be shown.
        let key = DocumentKey::Misnamed(format!("{section} in line {}, column {}", mark.0, mark.1));
        let node = Node { mark, value: value.value };
        return vec![(key, Document::part(origin, section.to_owned(), node, &[]))];
    }
    let path = join(section, &name);
    let keyed = |ending: &str, path: String, node: Node, beside| {
        let key = DocumentKey::parse(&format!("{name}{ending}"));
        key.map(|key| (key, Document::part(origin, path, node, beside)))
    };
    let mut documents = Vec::new();
    match section {
        STORAGE_CLUSTERS => documents.extend(keyed(":cluster:conf:storage", path, value, &[])),
        TLOG_CLUSTERS => documents.extend(keyed(":cluster:conf:tlog", path, value, &[])),
        NBD_SERVERS => documents.extend(keyed(":nbdserver:conf:vdisks", path, value, &[])),
        _ => {
            let Node { mark, value } = value;
            let value = match value {
                Value::Mapping(fields) => {
                    let part = |field: &Field| field.name == NBD || field.name == TLOG;
                    let (parts, fields): (Vec<_>, Vec<_>) = fields.into_iter().partition(part);
                    for part in parts {
                        let ending = format!(":vdisk:conf:storage:{}", part.name);
                        documents.extend(keyed(&ending, join(&path, &part.name), part.value, &[]));
                    }
                    Value::Mapping(fields)
                }
                other => other,
            };
            documents.extend(keyed(":vdisk:conf:static", path, Node { mark, value }, &[NBD, TLOG]));
        }
    }
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let documents = split(&"f.yaml".into(), text).unwrap();
        let found: Vec<_> =
            documents.iter().map(|(key, document)| (key.to_string(), document.text().unwrap())).collect();
        let expected: Vec<_> = expected.iter().map(|(key, text)| ((*key).into(), (*text).into())).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn a_file_has_the_documents_that_etcd_has() {
        check("vdisks: {}", &[]);
        check(
            "storageClusters: {c: {dataStorage: [{address: h:1}]}}\n\
             tlogClusters: {t: {servers: [h:2]}}\n\
             vdisks:\n  a: {type: db, tlog: {storageClusterID: c}, size: 1, nbd: {storageClusterID: c}}\n  b: 7\n\
             nbdServers: {default: {vdisks: [a]}}\n",
            &[
                ("c:cluster:conf:storage", "dataStorage:\n  - address: \"h:1\"\n"),
                ("t:cluster:conf:tlog", "servers:\n  - \"h:2\"\n"),
                ("a:vdisk:conf:storage:nbd", "storageClusterID: c\n"),
                ("a:vdisk:conf:storage:tlog", "storageClusterID: c\n"),
                ("a:vdisk:conf:static", "type: db\nsize: 1\n"),
                ("b:vdisk:conf:static", "7\n"),
                ("default:nbdserver:conf:vdisks", "vdisks:\n  - a\n"),
            ],
        );
    }

    #[test]
    fn a_file_whose_frame_is_wrong_is_refused_as_a_whole() {
        let check = |text: &str, expected: &[&str]| {
            let problems = split(&"f.yaml".into(), text).unwrap_err();
            let shown: Vec<_> = problems.iter().map(ToString::to_string).collect();
            assert_eq!(shown.len(), expected.len(), "{shown:?}");
            for (shown, expected) in shown.iter().zip(expected) {
                assert!(shown.starts_with(expected), "{shown}");
            }
        };
        check("", &["f.yaml:1:1: it is empty"]);
        check(
            "vdisks:\n",
            &["f.yaml:1:7: vdisks: it must be entries, each as name: and its fields, or {} for none"],
        );
        check("- a\n", &["f.yaml:1:1: it must be fields"]);
        check(
            "vdisk: {}\nsecret: x\ntlogClusters: []\n",
            &[
                "f.yaml:1:1: there is no such field, did you mean vdisks?; known here: storageClusters, ",
                "f.yaml:2:1: there is no such field; known here: ",
                "f.yaml:1:1: the field vdisks is missing",
                "f.yaml:3:15: tlogClusters: it must be entries",
            ],
        );
        check("vdisks: {a: {}\n", &["f.yaml:2:1: this is not YAML"]);
        check("storageClusters: {}\n", &["f.yaml:1:1: the field vdisks is missing"]);
    }
}
