//! From text to tree.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::{Field, Mark, Node, Value, YamlError};
use crate::Fault;

/// How much is read of a text that somebody else wrote.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of text.
    pub(crate) bytes: usize,
    /// Values in it, those that aliases repeat counted each time: a small text can mean a very large tree.
    pub(crate) values: usize,
}

/// Deeper than any document; it also bounds how deep the functions on trees call themselves.
const DEPTH: usize = 16;

/// Reads a text of one YAML document.
pub(crate) fn parse(text: &str, limits: Limits) -> Result<Node, YamlError> {
    if text.len() > limits.bytes {
        return Err(YamlError { mark: (1, 1), fault: Fault::TooLarge { limit: limits.bytes } });
    }
    let mut builder = Builder { limit: limits.values, ..Builder::default() };
    // A mark of byte order is a character to the parser.
    for event in Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        match event {
            Ok((event, span)) => builder.handle_event(event, mark(&span.start))?,
            Err(error) => return Err(YamlError { mark: mark(error.marker()), fault: Fault::NotYaml }),
        }
    }
    builder.root.ok_or(YamlError { mark: (1, 1), fault: Fault::Empty })
}

fn mark(marker: &Marker) -> Mark {
    (marker.line().max(1), marker.col() + 1)
}

/// Builds the tree from what the parser comes across, without calling itself.
#[derive(Default)]
struct Builder {
    /// Lists and mappings that are not closed yet, the outermost first.
    open: Vec<Open>,
    /// What anchors stand for, by the parser's number, once it is whole.
    anchors: HashMap<usize, Anchored>,
    root: Option<Node>,
    limit: usize,
    values: usize,
}

struct Open {
    anchor: usize,
    mark: Mark,
    inside: Inside,
}

enum Inside {
    Sequence(Vec<Node>),
    Mapping {
        fields: Vec<Field>,
        /// The lines of the names that are there.
        lines: HashMap<String, usize>,
        /// A name whose value comes next.
        name: Option<(String, Mark)>,
    },
}

struct Anchored {
    node: Node,
    values: usize,
}

impl Builder {
    fn handle_event(&mut self, event: Event<'_>, mark: Mark) -> Result<(), YamlError> {
        let fail = |fault| Err(YamlError { mark, fault });
        match event {
            Event::Scalar(.., Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => fail(Fault::Tag),
            Event::DocumentStart(_) if self.root.is_some() => fail(Fault::SeveralDocuments),
            Event::Scalar(text, style, anchor, None) => {
                let value = Value::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                self.add(Node { mark, value }, anchor)
            }
            Event::SequenceStart(anchor, None) => self.open(anchor, mark, Inside::Sequence(Vec::new())),
            Event::MappingStart(anchor, None) => {
                let inside = Inside::Mapping { fields: Vec::new(), lines: HashMap::new(), name: None };
                self.open(anchor, mark, inside)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(mark),
            Event::Alias(anchor) => {
                // What is still open is no anchor yet, so that nothing can contain itself.
                let Some(anchored) = self.anchors.get(&anchor) else { return fail(Fault::UnknownAlias) };
                let (node, values) = (anchored.node.clone(), anchored.values);
                self.count(values, mark)?;
                if self.open.len() + depth(&node) > DEPTH {
                    return fail(Fault::TooDeep { limit: DEPTH });
                }
                self.add(node, 0)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn count(&mut self, values: usize, mark: Mark) -> Result<(), YamlError> {
        self.values = self.values.saturating_add(values);
        if self.values > self.limit {
            return Err(YamlError { mark, fault: Fault::TooManyValues { limit: self.limit } });
        }
        Ok(())
    }

    fn open(&mut self, anchor: usize, mark: Mark, inside: Inside) -> Result<(), YamlError> {
        if self.open.len() >= DEPTH {
            return Err(YamlError { mark, fault: Fault::TooDeep { limit: DEPTH } });
        }
        // A list or a mapping is no name of a field.
        if let Some(Open { inside: Inside::Mapping { name: None, .. }, .. }) = self.open.last() {
            return Err(YamlError { mark, fault: Fault::FieldName });
        }
        self.open.push(Open { anchor, mark, inside });
        Ok(())
    }

    fn close(&mut self, mark: Mark) -> Result<(), YamlError> {
        let Some(open) = self.open.pop() else { return Err(YamlError { mark, fault: Fault::NotYaml }) };
        let value = match open.inside {
            Inside::Sequence(nodes) => Value::Sequence(nodes),
            Inside::Mapping { fields, .. } => Value::Mapping(fields),
        };
        self.add(Node { mark: open.mark, value }, open.anchor)
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), YamlError> {
        let mark = node.mark;
        self.count(1, mark)?;
        if anchor != 0 {
            let values = values(&node);
            self.count(values, mark)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), values });
        }
        match self.open.last_mut().map(|open| &mut open.inside) {
            None => self.root = Some(node),
            Some(Inside::Sequence(nodes)) => nodes.push(node),
            Some(Inside::Mapping { fields, lines, name }) => match name.take() {
                Some((name, mark)) => fields.push(Field { mark, name, value: node }),
                None => {
                    let Value::Scalar { text, .. } = node.value else {
                        return Err(YamlError { mark, fault: Fault::FieldName });
                    };
                    if let Some(&first) = lines.get(&text) {
                        return Err(YamlError { mark, fault: Fault::Duplicate { first } });
                    }
                    lines.insert(text.clone(), mark.0);
                    *name = Some((text, mark));
                }
            },
        }
        Ok(())
    }
}

/// How many lists and mappings are in each other; bounded by [`DEPTH`], as nothing deeper is ever built.
fn depth(node: &Node) -> usize {
    match &node.value {
        Value::Scalar { .. } => 0,
        Value::Sequence(nodes) => 1 + nodes.iter().map(depth).max().unwrap_or_default(),
        Value::Mapping(fields) => {
            1 + fields.iter().map(|field| depth(&field.value)).max().unwrap_or_default()
        }
    }
}

fn values(node: &Node) -> usize {
    match &node.value {
        Value::Scalar { .. } => 1,
        Value::Sequence(nodes) => 1 + nodes.iter().map(values).sum::<usize>(),
        Value::Mapping(fields) => 1 + fields.iter().map(|field| 1 + values(&field.value)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { bytes: 1 << 20, values: 10_000 };

    fn scalar(text: &str, plain: bool) -> Value {
        Value::Scalar { text: text.into(), plain }
    }

    #[test]
    fn lines_and_columns_are_those_of_the_text() {
        let root = parse("\u{feff}# comment\na:\n  - x\n  - 'y': [1, \"2\"]\nb: ~\n", LIMITS).unwrap();
        let Value::Mapping(fields) = &root.value else { panic!("{root:?}") };
        assert_eq!((fields[0].name.as_str(), fields[0].mark), ("a", (2, 1)));
        let Value::Sequence(entries) = &fields[0].value.value else { panic!("{root:?}") };
        assert_eq!((&entries[0].value, entries[0].mark), (&scalar("x", true), (3, 5)));
        let Value::Mapping(inner) = &entries[1].value else { panic!("{root:?}") };
        assert_eq!((inner[0].name.as_str(), inner[0].mark), ("y", (4, 5)));
        let Value::Sequence(numbers) = &inner[0].value.value else { panic!("{root:?}") };
        assert_eq!((&numbers[1].value, numbers[1].mark), (&scalar("2", false), (4, 14)));
        assert!(fields[1].value.is_null());
    }

    #[test]
    fn an_alias_stands_for_what_its_anchor_does() {
        let aliased = parse("a: &x {b: [1, 2]}\nc: *x\n", LIMITS).unwrap();
        assert_eq!(aliased, parse("a: {b: [1, 2]}\nc: {b: [1, 2]}\n", LIMITS).unwrap());
    }

    #[test]
    fn what_is_no_document_is_refused_where_it_is() {
        let check = |text: &str, fault: Fault, mark: Mark| {
            assert_eq!(parse(text, LIMITS), Err(YamlError { mark, fault }), "{text}");
        };
        check("", Fault::Empty, (1, 1));
        check("# nothing\n", Fault::Empty, (1, 1));
        check("a: 1\n---\nb: 2\n", Fault::SeveralDocuments, (2, 1));
        check("a: 1\nb: 2\na: 3\n", Fault::Duplicate { first: 1 }, (3, 1));
        check("a: !!str 1\n", Fault::Tag, (1, 4));
        check("? [a]\n: 1\n", Fault::FieldName, (1, 3));
        check("a: &x [*x]\n", Fault::UnknownAlias, (1, 8));
        check("a: [1, 2\n", Fault::NotYaml, (2, 1));
        check(&"[".repeat(DEPTH + 1), Fault::TooDeep { limit: DEPTH }, (1, DEPTH + 1));
    }

    #[test]
    fn too_much_is_refused_before_it_is_built() {
        let long = "a".repeat(LIMITS.bytes + 1);
        assert_eq!(parse(&long, LIMITS).unwrap_err().fault, Fault::TooLarge { limit: LIMITS.bytes });
        // Each line means ten times the one before it.
        let mut bomb = "a0: &a0 [x]\n".to_owned();
        for line in 1..=9 {
            let aliases = vec![format!("*a{}", line - 1); 10].join(", ");
            bomb.push_str(&format!("a{line}: &a{line} [{aliases}]\n"));
        }
        assert_eq!(parse(&bomb, LIMITS).unwrap_err().fault, Fault::TooManyValues { limit: LIMITS.values });
        // A few lines, each one deeper than the one before it.
        let mut deep = "a0: &a0 [x]\n".to_owned();
        for line in 1..=DEPTH {
            deep.push_str(&format!("a{line}: &a{line} [*a{}]\n", line - 1));
        }
        assert_eq!(parse(&deep, LIMITS).unwrap_err().fault, Fault::TooDeep { limit: DEPTH });
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([a-c:#&*!|>'\"%@`{}\\[\\],?~ \\-\\\\\t\r\n]|\\PC){0,80}") {
            let _ = parse(&text, LIMITS);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&String::from_utf8_lossy(&bytes), LIMITS);
        }
    }
}
