//! Documents of vdisks and clusters: what is wrong is told without what was written, and what is right is written so that it is read as
//! the same again.

use tlog_config::{Document, MemorySource, Problem, check as check_source, check_text};

use crate::Target;
use crate::input::Input;
use crate::time::runtime;

/// The first byte says whether the rest is a file, or the document under one of the keys.
pub const TARGET: Target = Target { name: "documents", memory: 16 << 20, check, seeds };

const KEYS: [&str; 6] = [
    "a:cluster:conf:storage",
    "b:cluster:conf:tlog",
    "v:vdisk:conf:static",
    "v:vdisk:conf:storage:nbd",
    "v:vdisk:conf:storage:tlog",
    "n:nbdserver:conf:vdisks",
];

/// What stands for a password, in the dictionary and in the first inputs.
const PASSWORD: &str = "Pa55w0rd";

fn check(input: &[u8]) {
    let mut input = Input::new(input);
    let kind = input.below(KEYS.len() + 1);
    let bytes = input.rest();
    let document = Document::from_bytes("here", bytes);
    assert!(!format!("{document:?}").contains(PASSWORD));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let problems = problems(kind, text);
    tell(&problems, is_only_a_password(text));
    if let Some(written) = document.text() {
        assert_eq!(Document::parse("here", &written).text().as_ref(), Some(&written), "it has one form");
        let of_written = self::problems(kind, &written);
        assert!(of_written.is_empty() || !problems.is_empty(), "{written:?}: {of_written:?}");
    }
}

fn problems(kind: usize, text: &str) -> Vec<Problem> {
    match KEYS.get(kind.wrapping_sub(1)) {
        None => check_text("vdisks.yaml", text),
        Some(key) => {
            let source = MemorySource::default();
            source.put(key, text);
            runtime().block_on(check_source(&source)).expect("a source that is there")
        }
    }
}

fn tell(problems: &[Problem], is_only_a_password: bool) {
    for problem in problems {
        let told = problem.to_string();
        assert!(!is_only_a_password || !told.contains(PASSWORD), "a password is told: {told}");
        assert!(told.len() < 4096, "{} bytes are told of one problem", told.len());
    }
}

/// Whether it stands nowhere but where passwords do: the name of a vdisk or a cluster is told.
fn is_only_a_password(text: &str) -> bool {
    let behind = ["password: ", "password: '", "password: \"", "://u:"];
    text.match_indices(PASSWORD).all(|(at, _)| behind.iter().any(|behind| text[..at].ends_with(behind)))
}

fn seeds() -> Vec<Vec<u8>> {
    let file = include_str!("../../examples/vdisks.yaml");
    let documents: [(usize, &str); 10] = [
        (0, file),
        (0, "vdisks:\n  a: {type: db, blockSize: 4096, size: 1}\n"),
        (1, "dataStorage:\n  - address: \"127.0.0.1:16379\"\n    db: 0\n    password: Pa55w0rd\n"),
        (1, "dataStorage: [{address: 'redis://u:Pa55w0rd@h:1'}]\nmetadataStorage: {address: 'h:2'}\n"),
        (2, "storage: [\"127.0.0.1:1@2\", 'rediss://u:Pa55w0rd@h:1/3', \"file:/srv\"]\n"),
        (3, "type: boot\nblockSize: 4096\nsize: 10\nreadOnly: true\n"),
        (4, "storageClusterID: a\ntemplateStorageClusterID: b\ntemplateVdiskID: v\n"),
        (5, "storageClusterID: b\nslaveStorageClusterID: a\n"),
        (6, "vdisks: [v, w]\n"),
        (0, "a: &x [1, {b: \"\\u00e9\"}]\nb: *x\n"),
    ];
    documents.into_iter().map(|(kind, text)| [&[kind as u8], text.as_bytes()].concat()).collect()
}
