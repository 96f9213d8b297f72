//! YAML as a tree in which everything knows its line and column.
//!
//! Just what documents need: texts, lists, and mappings whose names are texts. Nothing is guessed from how a text looks; whoever reads a
//! field knows what it must be.

mod parse;
mod write;

pub(crate) use parse::{Limits, parse};
pub(crate) use write::write;

use crate::Fault;

/// Line and column, from 1.
pub(crate) type Mark = (usize, usize);

/// One value, and where it begins. Two are equal if they say the same, wherever it is.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) mark: Mark,
    pub(crate) value: Value,
}

/// What a value can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Any single value.
    Scalar {
        text: String,
        /// Written without quotes: only such a one is a number, a switch or nothing.
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// In the order in which they are written, each name once.
    Mapping(Vec<Field>),
}

/// A name in a mapping, and what it is given.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) mark: Mark,
    pub(crate) name: String,
    pub(crate) value: Node,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for Node {}

impl PartialEq for Field {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.value == other.value
    }
}

impl Eq for Field {}

impl Node {
    /// Whether nothing is there: `field:` and no more, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }
}

/// Why a text is no tree, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct YamlError {
    pub(crate) mark: Mark,
    pub(crate) fault: Fault,
}
