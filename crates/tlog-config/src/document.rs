//! Documents as a source has them, and reading their fields one by one.

use std::fmt;
use std::sync::Arc;

use crate::yaml::{self, Limits, Mark, Node, Value, YamlError};
use crate::{Fault, Place, Problem};

/// A document that is a value of its own; etcd takes 1.5 MiB at most.
const DOCUMENT: Limits = Limits { bytes: 1 << 20, values: 50_000 };

/// Of one document no more is told: what is wrong more often is mostly wrong in the same way, and somebody may have written a million of them.
const MOST_TOLD: usize = 100;

/// One document as a source has it: YAML, and what it says not looked at yet. Two are equal if they say the same, however it is written.
#[derive(Clone)]
pub struct Document {
    /// The file, or the key.
    origin: Arc<str>,
    /// Where in the origin it is; empty where it is all of it.
    path: String,
    /// Fields that stand beside its own and are other documents.
    beside: &'static [&'static str],
    content: Result<Node, Problem>,
}

/// Where it is and not what it says: there may be a password in it.
impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, path, .. } = self;
        f.debug_struct("Document").field("origin", origin).field("path", path).finish_non_exhaustive()
    }
}

impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

impl Eq for Document {}

impl Document {
    /// A document under a key of its own. A text that is no YAML is kept as that.
    pub fn parse(key: &str, text: &str) -> Self {
        Self::of(key, yaml::parse(text, DOCUMENT))
    }

    /// The same, from bytes that may be no text.
    pub fn from_bytes(key: &str, bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::parse(key, text),
            Err(_) => Self::of(key, Err(YamlError { mark: (1, 1), fault: Fault::NotText })),
        }
    }

    fn of(key: &str, content: Result<Node, YamlError>) -> Self {
        let origin: Arc<str> = key.into();
        let content = content.map_err(|YamlError { mark, fault }| Problem {
            place: Place { origin: Arc::clone(&origin), path: String::new(), at: Some(mark) },
            fault,
        });
        Self { origin, path: String::new(), beside: &[], content }
    }

    /// A part of a file.
    pub(crate) fn part(origin: &Arc<str>, path: String, node: Node, beside: &'static [&'static str]) -> Self {
        Self { origin: Arc::clone(origin), path, beside, content: Ok(node) }
    }

    /// It as YAML text of its own, passwords included; none where it is no YAML.
    pub fn text(&self) -> Option<String> {
        self.content.as_ref().ok().map(yaml::write)
    }

    /// It as text of its own, if one of that length is read again.
    pub(crate) fn text_of_its_own(&self) -> Result<String, Problem> {
        let text = self.content.as_ref().map(yaml::write).map_err(Clone::clone)?;
        let limit = DOCUMENT.bytes;
        if text.len() > limit { Err(self.problem(Fault::TooLarge { limit })) } else { Ok(text) }
    }

    /// A problem with it as a whole.
    pub(crate) fn problem(&self, fault: Fault) -> Problem {
        let at = match &self.content {
            Ok(node) => Some(node.mark),
            Err(problem) => problem.place.at,
        };
        Problem { place: Place { origin: Arc::clone(&self.origin), path: self.path.clone(), at }, fault }
    }

    /// Reads it with a function that takes its fields, and answers that or everything that is wrong.
    pub(crate) fn read<T>(
        &self,
        known: &'static [&'static str],
        read: impl FnOnce(&mut Fields<'_, '_>) -> Option<T>,
    ) -> Result<T, Vec<Problem>> {
        let node = self.content.as_ref().map_err(|problem| vec![problem.clone()])?;
        let mut found = Found { origin: &self.origin, problems: Vec::new() };
        let beside = self.beside;
        let value = Fields::of(node, self.path.clone(), known, beside, &mut found)
            .and_then(|mut fields| read(&mut fields));
        match value {
            Some(value) if found.problems.is_empty() => Ok(value),
            // A function that answers nothing has said why.
            _ => Err(found.problems),
        }
    }
}

/// What is wrong so far.
pub(crate) struct Found<'f> {
    origin: &'f Arc<str>,
    problems: Vec<Problem>,
}

impl<'f> Found<'f> {
    pub(crate) fn new(origin: &'f Arc<str>) -> Self {
        Self { origin, problems: Vec::new() }
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    pub(crate) fn add(&mut self, path: &str, mark: Mark, fault: Fault) {
        if self.problems.len() >= MOST_TOLD {
            return;
        }
        self.problems.push(Problem { place: self.place(path, mark), fault });
    }

    fn place(&self, path: &str, mark: Mark) -> Place {
        Place { origin: Arc::clone(self.origin), path: path.to_owned(), at: Some(mark) }
    }
}

/// The fields of one mapping. What is asked for and is not as it must be is added to what is wrong.
pub(crate) struct Fields<'a, 'f> {
    node: &'a Node,
    fields: &'a [yaml::Field],
    path: String,
    found: &'a mut Found<'f>,
}

impl<'a, 'f> Fields<'a, 'f> {
    /// None where it is no mapping. Fields that are not known are wrong, whatever is asked for later.
    pub(crate) fn of(
        node: &'a Node,
        path: String,
        known: &[&'static str],
        beside: &[&'static str],
        found: &'a mut Found<'f>,
    ) -> Option<Self> {
        let Value::Mapping(fields) = &node.value else {
            found.add(&path, node.mark, Fault::Expected("fields, each as name: value"));
            return None;
        };
        for field in fields {
            if !known.contains(&field.name.as_str()) {
                let all: Vec<_> = known.iter().chain(beside).copied().collect();
                let fault = Fault::UnknownField { nearest: nearest(&field.name, &all), known: all };
                found.add(&path, field.mark, fault);
            }
        }
        Some(Self { node, fields, path, found })
    }

    /// A field that may be missing.
    pub(crate) fn optional(&mut self, name: &'static str) -> Option<Item<'_, 'a, 'f>> {
        let field = self.fields.iter().find(|field| field.name == name)?;
        let path = join(&self.path, name);
        Some(Item { node: &field.value, path, found: self.found })
    }

    /// A field that must be there.
    pub(crate) fn required(&mut self, name: &'static str) -> Option<Item<'_, 'a, 'f>> {
        if !self.fields.iter().any(|field| field.name == name) {
            self.found.add(&self.path, self.node.mark, Fault::Missing(name));
        }
        self.optional(name)
    }

    /// Something is wrong with all of it.
    pub(crate) fn wrong(&mut self, fault: Fault) {
        self.found.add(&self.path, self.node.mark, fault);
    }
}

/// One value that is there.
pub(crate) struct Item<'i, 'a, 'f> {
    node: &'a Node,
    path: String,
    found: &'i mut Found<'f>,
}

impl<'a, 'f> Item<'_, 'a, 'f> {
    /// Says what is wrong with it, and that there is no value.
    pub(crate) fn wrong<T>(self, fault: Fault) -> Option<T> {
        self.found.add(&self.path, self.node.mark, fault);
        None
    }

    /// Where it is.
    pub(crate) fn place(&self) -> Place {
        self.found.place(&self.path, self.node.mark)
    }

    /// A text, with quotes or without, or nothing but quotes.
    pub(crate) fn text(self, expected: &'static str) -> Option<(&'a str, Self)> {
        match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => Some((text, self)),
            _ => self.wrong(Fault::Expected(expected)),
        }
    }

    /// What can only be written without quotes.
    pub(crate) fn plain(self, expected: &'static str) -> Option<(&'a str, Self)> {
        match &self.node.value {
            Value::Scalar { text, plain: true } if !self.node.is_null() => Some((text, self)),
            _ => self.wrong(Fault::Expected(expected)),
        }
    }

    /// Its fields.
    pub(crate) fn fields(&mut self, known: &[&'static str]) -> Option<Fields<'_, 'f>> {
        Fields::of(self.node, self.path.clone(), known, &[], self.found)
    }

    /// Each entry of a list that has at least `least` of them. None where any is wrong; all are looked at.
    pub(crate) fn list<T>(
        self,
        expected: &'static str,
        least: usize,
        mut read: impl FnMut(Item<'_, '_, 'f>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::Sequence(nodes) = &self.node.value else { return self.wrong(Fault::Expected(expected)) };
        if nodes.len() < least {
            return self.wrong(Fault::Expected(expected));
        }
        let mut entries = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let path = format!("{}[{index}]", self.path);
            entries.push(read(Item { node, path, found: self.found }));
        }
        entries.into_iter().collect()
    }
}

/// The path of a field.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The known name that another looks like, if it does look like one.
fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let distance =
        |known: &str| strsim::damerau_levenshtein(&known.to_ascii_lowercase(), &name.to_ascii_lowercase());
    // Long ones are not compared at all: what somebody wrote is not bounded, and this takes the square of it.
    let near = known.iter().filter(|_| name.len() <= 64).map(|&known| (distance(known), known)).min()?;
    Some(near).filter(|(distance, known)| *distance <= 1 + known.len() / 4).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_a_known_one_is_told_apart_from_another() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(nearest(name, &["type", "blockSize", "size", "readOnly"]), expected, "{name}");
        };
        check("blocksize", Some("blockSize"));
        check("block_size", Some("blockSize"));
        check("readonly", Some("readOnly"));
        check("typ", Some("type"));
        check("password", None);
        check(&"size".repeat(1000), None);
    }

    #[test]
    fn documents_are_equal_if_they_say_the_same() {
        let check = |a: &str, b: &str, equal: bool| {
            assert_eq!(Document::parse("a", a) == Document::parse("b", b), equal, "{a} {b}");
        };
        check("a: [1, 2]", "# here\na:\n  - 1\n  - 2\n", true);
        check("a: 1", "a: 2", false);
        check("a: 1", "a: \"1\"", false);
    }
}
