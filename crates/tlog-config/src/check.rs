//! Saying everything that is wrong with a source.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::configuration::State;
use crate::file::split;
use crate::{Document, DocumentKey, DocumentSource, Problem, Snapshot, SourceError};

/// Reads a source once and answers everything that is wrong with it: documents that are not valid, references that lead nowhere, a file
/// that makes no sense as a whole. None: it can be used. An error: it cannot be read.
pub async fn check(source: &dyn DocumentSource) -> Result<Vec<Problem>, SourceError> {
    match source.get().await {
        Ok(snapshot) => Ok(problems_of(snapshot)),
        Err(SourceError::Malformed(problems)) => Ok(problems),
        Err(error) => Err(error),
    }
}

/// The same for the text of a YAML file. `origin` is how places in it are shown, such as its path.
pub fn check_text(origin: &str, text: &str) -> Vec<Problem> {
    read_text(origin, text).map_or_else(|problems| problems, |_| Vec::new())
}

/// The documents in the text of a YAML file, or everything that is wrong with them.
pub(crate) fn read_text(origin: &str, text: &str) -> Result<BTreeMap<DocumentKey, Document>, Vec<Problem>> {
    let documents = split(&Arc::from(origin), text)?;
    let problems = problems_of(Snapshot { documents: documents.clone(), revision: 0 });
    if problems.is_empty() { Ok(documents) } else { Err(problems) }
}

/// In the order of the lines in which they are.
fn problems_of(snapshot: Snapshot) -> Vec<Problem> {
    let mut state = State::default();
    state.handle_all(snapshot);
    let mut problems = state.problems();
    problems.sort_by(|a, b| (&a.place.origin, a.place.at).cmp(&(&b.place.origin, b.place.at)));
    problems
}
