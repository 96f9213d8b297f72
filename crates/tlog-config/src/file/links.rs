//! The names that lead to a file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// More links than any system follows.
const MAX_LINKS: usize = 40;

/// What to look at to notice that a path leads to another file: folders, and in each the names of links on the way and of the file itself.
pub(super) type Names = BTreeMap<PathBuf, BTreeSet<OsString>>;

/// Follows a path, which may lead nowhere yet, as the system does.
pub(super) fn names_on_the_way(file: &Path) -> Names {
    let mut names = Names::new();
    // Relative to where the process is.
    let mut reached = PathBuf::new();
    let parts =
        |path: &Path| path.components().rev().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
    // What is still to be followed, the next one last.
    let mut ahead = parts(file);
    let mut links = 0;
    while let Some(part) = ahead.pop() {
        if part == "." {
            continue;
        }
        let next = reached.join(&part);
        let target = std::fs::read_link(&next).ok().filter(|_| links < MAX_LINKS);
        if target.is_some() || ahead.is_empty() {
            let folder = if reached.as_os_str().is_empty() { PathBuf::from(".") } else { reached.clone() };
            names.entry(folder).or_default().insert(part);
        }
        match target {
            Some(target) => {
                links += 1;
                if target.is_absolute() {
                    reached = PathBuf::new();
                }
                ahead.extend(parts(&target));
            }
            None => reached = next,
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_link_on_the_way_and_the_file_are_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        std::fs::create_dir_all(at("etc")).unwrap();
        std::fs::create_dir_all(at("srv/v1")).unwrap();
        std::fs::write(at("srv/v1/vdisks.yaml"), "x").unwrap();
        symlink(at("srv/current/vdisks.yaml"), at("etc/tlog.yaml")).unwrap();
        symlink("v1", at("srv/current")).unwrap();
        let check = |path: &str, expected: &[(&str, &str)]| {
            let found: Vec<_> = names_on_the_way(&at(path))
                .into_iter()
                .flat_map(|(folder, names)| names.into_iter().map(move |name| (folder.clone(), name)))
                .filter(|(folder, _)| folder.starts_with(root.path()))
                .collect();
            let expected: Vec<_> =
                expected.iter().map(|(folder, name)| (at(folder), OsString::from(name))).collect();
            assert_eq!(found, expected, "{path}");
        };
        check("etc/tlog.yaml", &[("etc", "tlog.yaml"), ("srv", "current"), ("srv/v1", "vdisks.yaml")]);
        check("etc/nothing.yaml", &[("etc", "nothing.yaml")]);
        // A link to itself ends too.
        symlink(at("loop"), at("loop")).unwrap();
        assert!(!names_on_the_way(&at("loop")).is_empty());
    }
}
