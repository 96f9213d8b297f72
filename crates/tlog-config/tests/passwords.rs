//! Whatever somebody writes, and wherever in it a password is: no problem repeats it, and nothing panics.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // tests want to fail, loudly

use proptest::prelude::*;
use tlog_config::{Document, DocumentKey, MemorySource, Problem, check, check_text};

const PASSWORD: &str = "Open5esame";

/// A file that is right, with the password in its addresses, in the styles in which people write.
const FILE: &str = "\
# stores
storageClusters:
  logs:
    dataStorage:
      - address: redis://anna:Open5esame@host-1:6379/2
      - {address: \"rediss://:Open5esame@host-2:6379\"}
      - address: 'redis://:Open5esame@host-3:6379'
    metadataStorage: { address: redis://:Open5esame@host-4:6379 }
  spare:
    dataStorage: [{ address: host-5:6379 }]
tlogClusters:
  main:
    servers: [127.0.0.1:11211]
vdisks:
  data:
    type: db
    blockSize: 4096
    size: 10
    tlog: &log { storageClusterID: logs, slaveStorageClusterID: spare }
    nbd: { storageClusterID: logs, tlogServerClusterID: main }
  copy: { type: db, blockSize: 4096, size: 10, tlog: *log }
nbdServers:
  default: { vdisks: [data] }
";

fn check_problems(problems: &[Problem]) {
    for problem in problems {
        let (shown, debug) = (problem.to_string(), format!("{problem:?}"));
        assert!(!shown.contains(PASSWORD) && !debug.contains("Open5"), "{shown} {debug}");
    }
}

#[test]
fn the_file_is_right_before_anything_is_done_to_it() {
    assert_eq!(check_text("f.yaml", FILE), []);
}

#[test]
fn a_password_in_the_wrong_place_is_not_repeated() {
    let wrong = [
        ("redis://anna:Open5esame@host-1:6379/2", "redis://anna:Open5esame@host-1"),
        ("redis://anna:Open5esame@host-1:6379/2", "mysql://anna:Open5esame@host-1:6379/2"),
        ("redis://anna:Open5esame@host-1:6379/2", "anna:Open5esame@host-1:6379"),
        ("redis://anna:Open5esame@host-1:6379/2", "redis://anna: Open5esame@host-1:6379/2"),
        ("redis://anna:Open5esame@host-1:6379/2", "[redis://anna:Open5esame@host-1:6379/2]"),
        ("redis://anna:Open5esame@host-1:6379/2", "{redis://anna:Open5esame@host-1: 6379/2}"),
        ("redis://anna:Open5esame@host-1:6379/2", "{Open5esame: 1}"),
        ("redis://anna:Open5esame@host-1:6379/2", "!Open5esame x"),
        ("redis://anna:Open5esame@host-1:6379/2", "*Open5esame"),
        ("redis://anna:Open5esame@host-1:6379/2", "host:1\n        password: Open5esame"),
        ("redis://anna:Open5esame@host-1:6379/2", "host:1\n        Open5esame: password"),
        ("127.0.0.1:11211", "'redis://anna:Open5esame@host-1:6379'"),
        ("type: db", "type: Open5esame"),
        ("size: 10\n    tlog", "size: Open5esame\n    tlog"),
        ("blockSize: 4096\n", "blockSize: Open5esame\n"),
        ("storageClusterID: logs, tlog", "storageClusterID: 'redis://anna:Open5esame@host-1:6379', tlog"),
        ("storageClusterID: logs, tlog", "storageClusterID: 'anna:Open5esame@host-1:6379', tlog"),
        ("vdisks: [data]", "vdisks: ['redis://anna:Open5esame@host-1:6379']"),
        ("# stores", "Open5esame: x"),
        ("  main:\n", "  'redis://anna:Open5esame@host-1:6379':\n"),
    ];
    for (right, wrong) in wrong {
        let text = FILE.replacen(right, wrong, 1);
        assert_ne!(text, FILE, "{right}");
        let problems = check_text("f.yaml", &text);
        assert!(!problems.is_empty(), "{wrong}");
        check_problems(&problems);
    }
    let document = Document::parse("key", "address: redis://:Open5esame@host:1");
    assert!(!format!("{document:?}").contains(PASSWORD));
}

/// Puts characters in and takes some out, but none of the password.
fn damaged(mut text: String, damage: &[(prop::sample::Index, Option<char>)]) -> String {
    for (at, put) in damage {
        let at = at.index(text.len());
        if !text.is_char_boundary(at) {
            continue;
        }
        match put {
            Some(put) => text.insert(at, *put),
            None => drop(text.remove(at)),
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_files_are_refused_without_repeating_a_password(
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::option::of(prop::sample::select(
            vec![':', ' ', '\n', '-', '{', '}', '[', ']', '"', '\'', '#', '&', '*', '!', '|', '>', '%', '@', ',', '?', '\t', 'x', '9', 'ü'],
        ))), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut text = damaged(FILE.to_owned(), &damage);
        if let Some(cut) = cut {
            let mut end = cut.index(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
        }
        for problem in check_text("f.yaml", &text) {
            prop_assert!(!problem.to_string().contains(PASSWORD), "{}", problem);
        }
    }

    #[test]
    fn no_document_under_any_key_makes_anything_panic(
        key in prop::sample::select(vec![
            "a:vdisk:conf:static", "a:vdisk:conf:storage:nbd", "a:vdisk:conf:storage:tlog",
            "c:cluster:conf:storage", "c:cluster:conf:tlog", "s:nbdserver:conf:vdisks", "/:vdisk:conf:static",
        ]),
        names in prop::collection::vec(prop::sample::select(vec![
            "type", "blockSize", "size", "readOnly", "storageClusterID", "dataStorage", "address", "db", "servers", "vdisks",
        ]), 0..5),
        values in prop::collection::vec("(\\PC{0,10}|[0-9.]{1,30}|\\[\\PC{0,10}\\]|\\{a: \\PC{0,5}\\})", 5),
    ) {
        let fields: Vec<_> = names.iter().zip(&values).map(|(name, value)| format!("{name}: {value}\n")).collect();
        let text = fields.concat();
        let source = MemorySource::default();
        source.put(key, &text);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let problems = runtime.block_on(check(&source)).unwrap();
        prop_assert!(!problems.is_empty() || DocumentKey::parse(key).is_some());
    }
}
