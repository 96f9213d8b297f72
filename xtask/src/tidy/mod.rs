//! `tidy`: what holds in this project and what no compiler checks.
//!
//! Each check takes what it looks at and answers with [`Faults`]; all of them run, so that one run names everything.

mod dependencies;
mod files;
mod links;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::codegen;

pub(crate) use dependencies::metadata;

/// What a check found, as sentences for a person: where it is, what is wrong, and how to mend it.
type Faults = Vec<String>;

pub(crate) fn run(root: &Path) -> Result<()> {
    let files = text_files(root)?;
    let metadata = dependencies::metadata(root)?;
    let mut faults = dependencies::forbidden(&metadata);
    faults.extend(dependencies::reserved(&metadata));
    let listed = fs::read_to_string(root.join(dependencies::LIST)).unwrap_or_default();
    faults.extend(dependencies::unlisted(&metadata, &listed));
    for file in &files {
        faults.extend(files::faults(file));
        faults.extend(links::broken(file, &|path| root.join(path).exists()));
        if let Some(warning) = files::size_warning(file) {
            println!("tidy: warning: {warning}");
        }
    }
    if codegen::is_possible() {
        faults.extend(codegen::check(root).err().map(|error| format!("{error:#}")));
    } else {
        println!(
            "tidy: generated code not checked, the Cap'n Proto compiler is not there (`cargo xtask setup`)"
        );
    }
    for fault in &faults {
        eprintln!("tidy: {fault}");
    }
    match faults.len() {
        0 => {
            println!("tidy: {} files are in order", files.len());
            Ok(())
        }
        count => bail!("{count} to mend"),
    }
}

/// A text file of the project.
struct TextFile {
    /// Relative to the workspace, with forward slashes.
    path: String,
    text: String,
}

/// All of them, in order of their paths: what is not a build result, not hidden history and not binary.
fn text_files(root: &Path) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let at = root.join(&folder);
        for entry in fs::read_dir(&at).with_context(|| format!("cannot read {}", at.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if matches!(path.as_str(), "target" | "tlog-data" | ".git") {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file()
                && let Ok(text) = String::from_utf8(fs::read(entry.path())?)
            {
                files.push(TextFile { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_results_history_and_binary_files_are_not_looked_at() {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in [
            ("a/b.rs", &b"text"[..]),
            ("README.md", b"text"),
            (".ci/run", b"text"),
            ("a/image.png", b"\xff\xfe"),
            ("target/x.rs", b"text"),
            (".git/config", b"text"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let files = text_files(root.path()).unwrap();
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [".ci/run", "README.md", "a/b.rs"]);
    }
}
