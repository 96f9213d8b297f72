//! What is kept up to date bit by bit, against what is made from nothing.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tlog_proto::VdiskId;

use super::State;
use crate::{Document, DocumentKey, Snapshot};

/// Each key with what can be under it; most of it is valid.
const DOCUMENTS: &[(&str, &[&str])] = &[
    (
        "a:vdisk:conf:static",
        &["{type: db, blockSize: 512, size: 1}", "{type: tmp, blockSize: 512, size: 2}", "{type: x}"],
    ),
    ("b:vdisk:conf:static", &["{type: db, blockSize: 512, size: 1}", "["]),
    (
        "a:vdisk:conf:storage:tlog",
        &["storageClusterID: c", "{storageClusterID: d, slaveStorageClusterID: c}", "x"],
    ),
    (
        "b:vdisk:conf:storage:tlog",
        &["storageClusterID: d", "{storageClusterID: d, slaveStorageClusterID: e}"],
    ),
    ("a:vdisk:conf:storage:nbd", &["{storageClusterID: c, tlogServerClusterID: t}", "storageClusterID: e"]),
    ("b:vdisk:conf:storage:nbd", &["{storageClusterID: d, tlogServerClusterID: u}", "{}"]),
    (
        "c:cluster:conf:storage",
        &["dataStorage: [{address: 'c:1'}]", "dataStorage: [{address: 'c:2'}]", "dataStorage: 7"],
    ),
    ("d:cluster:conf:storage", &["dataStorage: [{address: 'd:1'}]", "dataStorage: [{address: 'd:2'}]"]),
    ("e:cluster:conf:storage", &["dataStorage: [{address: 'e:1'}]"]),
    ("t:cluster:conf:tlog", &["servers: ['t:1']", "servers: ['t:2']", "servers: []"]),
    ("u:cluster:conf:tlog", &["servers: ['u:1']"]),
];

/// One key, and which of its texts it gets; none where it is deleted.
type Change = (usize, Option<usize>);

fn any_change() -> impl Strategy<Value = Change> {
    (0..DOCUMENTS.len()).prop_flat_map(|key| {
        let texts = DOCUMENTS[key].1.len();
        (Just(key), prop::option::weighted(0.8, 0..texts))
    })
}

fn document((key, text): Change) -> (DocumentKey, Option<Document>) {
    let (key, texts) = DOCUMENTS[key];
    (DocumentKey::parse(key).unwrap(), text.map(|text| Document::parse(key, texts[text])))
}

/// What vdisks get, for comparing.
fn vdisks(state: &State) -> BTreeMap<VdiskId, String> {
    let config = |vdisk: VdiskId| (vdisk.clone(), format!("{:?}", state.vdisk(&vdisk)));
    state.vdisk_names().into_iter().map(config).collect()
}

fn fresh(snapshot: &Snapshot) -> State {
    let mut state = State::default();
    state.handle_all(snapshot.clone());
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_was_followed_is_what_is_read_anew(
        steps in prop::collection::vec((prop::collection::vec(any_change(), 1..4), any::<bool>()), 1..30),
        mending in Just((0..DOCUMENTS.len()).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut state = State::default();
        let mut snapshot = Snapshot::default();
        for (changes, as_a_whole) in steps {
            let before = vdisks(&state);
            for change in &changes {
                match document(*change) {
                    (key, Some(document)) => drop(snapshot.documents.insert(key, document)),
                    (key, None) => drop(snapshot.documents.remove(&key)),
                }
            }
            // As etcd brings it, or as a file does.
            let effects = if as_a_whole {
                state.handle_all(snapshot.clone())
            } else {
                state.handle_changes(changes.iter().map(|change| document(*change)))
            };

            // Who is told is who got something else, and nobody is left out.
            let after = vdisks(&state);
            let told: BTreeSet<_> = effects.vdisks.keys().cloned().collect();
            let all: BTreeSet<_> = before.keys().chain(after.keys()).cloned().collect();
            let other = all.into_iter().filter(|vdisk| before.get(vdisk) != after.get(vdisk)).collect();
            prop_assert_eq!(told, other);
            prop_assert_eq!(effects.names, !before.keys().eq(after.keys()));
            state.check_index();

            // Where everything is valid, nothing is left of what was; else there is more in force than from nothing, never less.
            let anew = fresh(&snapshot);
            let problems: Vec<_> = state.problems().iter().map(ToString::to_string).collect();
            let expected: Vec<_> = anew.problems().iter().map(ToString::to_string).collect();
            // Of a document that is not valid, what is in force may name clusters that are gone.
            prop_assert!(problems.len() >= expected.len());
            if expected.is_empty() {
                prop_assert_eq!(&problems, &expected);
                prop_assert_eq!(vdisks(&state), vdisks(&anew));
                prop_assert_eq!(state.problem_count(), 0);
            }
            prop_assert!(anew.vdisk_names().is_subset(&state.vdisk_names()));
        }

        // Whatever has happened, and in whatever order it is mended: nothing is left of it.
        for key in mending {
            let (key, document) = document((key, Some(0)));
            snapshot.documents.extend(document.clone().map(|document| (key.clone(), document)));
            state.handle_changes([(key, document)]);
        }
        state.check_index();
        prop_assert_eq!(state.problems(), []);
        prop_assert_eq!(vdisks(&state), vdisks(&fresh(&snapshot)));
    }
}
