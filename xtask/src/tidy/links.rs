//! Links between the documents of the project.

use super::{Faults, TextFile};

/// Links in a Markdown file that point to no file of the project. `exists` takes a path relative to the workspace.
///
/// Looks at `[text](target)` and `[label]: target`, not at code and not at the network.
pub(super) fn broken(file: &TextFile, exists: &dyn Fn(&str) -> bool) -> Faults {
    let mut faults = Faults::new();
    if !file.path.ends_with(".md") {
        return faults;
    }
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut in_code = false;
    for (number, line) in (1..).zip(file.text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            for target in targets(&without_code(line)) {
                let fault = match resolve(folder, &target) {
                    None => "leads out of the project",
                    Some(path) if !path.is_empty() && !exists(&path) => "leads to no file",
                    Some(_) => continue,
                };
                faults.push(format!("{}:{number}: the link to {target} {fault}", file.path));
            }
        }
    }
    faults
}

/// The line without what stands between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// Where the links of a line lead, as far as it is to files: without anchors and titles.
fn targets(line: &str) -> Vec<String> {
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let label = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target);
    inline
        .chain(label)
        .filter_map(|target| target.split_whitespace().next())
        .map(|target| target.trim_matches(['<', '>']))
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .filter_map(|target| target.split('#').next())
        .filter(|target| !target.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A target as seen from a folder of the project, as a path of the project; none where it leads out.
fn resolve(folder: &str, target: &str) -> Option<String> {
    let mut path: Vec<&str> = folder.split('/').collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                while path.last() == Some(&"") {
                    path.pop();
                }
                path.pop()?;
            }
            part => path.push(part),
        }
    }
    path.retain(|part| !part.is_empty());
    (!target.starts_with('/')).then(|| path.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_must_lead_to_a_file_of_the_project() {
        let check = |path: &str, text: &str, faults: usize| {
            let there = ["README.md", "docs", "docs/wire-protocol.md", "docs/adr/0001-x.md"];
            let file = TextFile { path: path.to_owned(), text: text.to_owned() };
            let found = broken(&file, &|path| there.contains(&path));
            assert_eq!(found.len(), faults, "{text}: {found:?}");
        };
        check("README.md", "see [the protocol](docs/wire-protocol.md#framing) and [x](#here)", 0);
        check("README.md", "see [that](docs/nothing.md) and [this](docs/wire-protocol.md)", 1);
        check("README.md", "[a](nothing.md) [b](neither.md)", 2);
        check("README.md", "[ref]: docs/nothing.md \"title\"", 1);
        check("README.md", "[web](https://example.org/x.md) <mailto:a@b.c> [mail](mailto:a@b.c)", 0);
        check("README.md", "`[a](nothing.md)`\n```text\n[a](nothing.md)\n```\n", 0);
        check("docs/wire-protocol.md", "[up](../README.md) [side](adr/0001-x.md) [folder](.)", 0);
        check("docs/adr/0001-x.md", "[up](../../README.md) [wrong](../README.md)", 1);
        check("docs/wire-protocol.md", "[out](../../elsewhere.md)", 1);
        check("README.md", "[out](../x.md) [absolute](/docs)", 2);
        check("src/lib.rs", "[a](nothing.md)", 0);
    }
}
