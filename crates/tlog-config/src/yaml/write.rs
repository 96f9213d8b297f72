//! From tree to text.

use super::{Node, Value};

/// YAML takes no longer ones, quotes and escapes included, without being told that a name comes.
const LONGEST_NAME: usize = 1024 - 2;

/// The tree as YAML that reads back as the same tree.
pub(crate) fn write(node: &Node) -> String {
    let mut out = String::new();
    write_node(&mut out, node, 0);
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

/// Behind `name:` or `-`, or at the beginning. Calls itself as deep as the tree is, and `parse` builds none that is deep.
fn write_node(out: &mut String, node: &Node, indent: usize) {
    match &node.value {
        Value::Scalar { .. } if node.is_null() => out.push_str("null"),
        Value::Scalar { text, plain } => write_scalar(out, text, *plain),
        Value::Sequence(nodes) if nodes.is_empty() => out.push_str("[]"),
        Value::Mapping(fields) if fields.is_empty() => out.push_str("{}"),
        Value::Sequence(nodes) => {
            for node in nodes {
                begin_line(out, indent);
                out.push_str("- ");
                write_node(out, node, indent + 1);
            }
        }
        Value::Mapping(fields) => {
            for field in fields {
                begin_line(out, indent);
                write_name(out, &field.name, indent);
                write_node(out, &field.value, indent + 1);
            }
        }
    }
}

/// Up to where the value goes. Of a name that is long YAML wants to be told that it is one.
fn write_name(out: &mut String, name: &str, indent: usize) {
    let mut written = String::new();
    write_scalar(&mut written, name, true);
    if written.len() <= LONGEST_NAME {
        out.push_str(&written);
    } else {
        out.push_str("? ");
        out.push_str(&written);
        begin_line(out, indent);
    }
    out.push_str(": ");
}

/// A new line, unless this goes behind the dash of a list.
fn begin_line(out: &mut String, indent: usize) {
    if out.ends_with("- ") {
        return;
    }
    let kept = out.trim_end_matches(' ').len();
    out.truncate(kept);
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.extend(std::iter::repeat_n("  ", indent));
}

/// Without quotes where it was so and that is safe everywhere, or where it cannot be mistaken for anything else.
fn write_scalar(out: &mut String, text: &str, plain: bool) {
    let starts_well =
        text.starts_with(|c: char| if plain { c.is_ascii_alphanumeric() } else { c.is_ascii_alphabetic() });
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '@' | '+');
    let mistaken = !plain
        && ["null", "true", "false", "yes", "no", "on", "off", "y", "n"]
            .contains(&text.to_ascii_lowercase().as_str());
    if starts_well && text.chars().all(safe) && !mistaken {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::super::{Field, Limits, parse};
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { bytes: 1 << 20, values: 100_000 };

    #[test]
    fn what_is_written_looks_as_a_person_would_write_it() {
        let text = "dataStorage:\n  - address: \"127.0.0.1:1\"\n    db: 2\n  - address: store/1\nempty: []\n";
        assert_eq!(write(&parse(text, LIMITS).unwrap()), text);
    }

    #[test]
    fn a_name_that_is_long_or_only_written_long_reads_back() {
        for (character, count) in [("n", 3000), ("\u{1c}", 150), ("\u{1c}", 102), ("\u{1c}", 103)] {
            let name = character.repeat(count);
            let field = |name: &str, value| Field { mark: (1, 1), name: name.to_owned(), value };
            let scalar = Node { mark: (1, 1), value: Value::Scalar { text: "1".into(), plain: true } };
            let inner = Node { mark: (1, 1), value: Value::Mapping(vec![field(&name, scalar.clone())]) };
            let list = Node { mark: (1, 1), value: Value::Sequence(vec![inner.clone(), scalar]) };
            let fields = vec![field("a", inner), field(&name, list)];
            let node = Node { mark: (1, 1), value: Value::Mapping(fields) };
            assert_eq!(parse(&write(&node), LIMITS).unwrap(), node, "{count} of {character:?}");
        }
    }

    fn any_node() -> impl Strategy<Value = Node> {
        let text = || prop_oneof!["\\PC{0,12}", "[ a-z0-9:#'\"\n\t-]{0,12}", "true|null|~|10|0x1f|\\.5|---"];
        let scalar = text().prop_map(|text| Value::Scalar { text, plain: false });
        let plain = "[a-z0-9][a-z0-9._/@+-]{0,12}|null|".prop_map(|text| Value::Scalar { text, plain: true });
        let at = |value| Node { mark: (1, 1), value };
        prop_oneof![scalar, plain].prop_map(at).prop_recursive(4, 40, 5, move |inner| {
            let fields = proptest::collection::btree_map(text(), inner.clone(), 0..5).prop_map(|fields| {
                let field = |(name, value)| Field { mark: (1, 1), name, value };
                Value::Mapping(fields.into_iter().map(field).collect())
            });
            prop_oneof![proptest::collection::vec(inner, 0..5).prop_map(Value::Sequence), fields].prop_map(at)
        })
    }

    /// What a plain nothing is does not matter, and whether a text needed its quotes neither.
    fn same(a: &Node, b: &Node) -> bool {
        match (&a.value, &b.value) {
            (Value::Scalar { text, .. }, Value::Scalar { text: other, .. }) => {
                a.is_null() == b.is_null() && (a.is_null() || text == other)
            }
            (Value::Sequence(a), Value::Sequence(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Value::Mapping(a), Value::Mapping(b)) => {
                a.len() == b.len()
                    && a.iter().zip(b).all(|(a, b)| a.name == b.name && same(&a.value, &b.value))
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_as_the_same(node in any_node()) {
            let text = write(&node);
            let read = parse(&text, LIMITS).unwrap();
            prop_assert!(same(&node, &read), "{text}\n{node:?}\n{read:?}");
        }
    }
}
