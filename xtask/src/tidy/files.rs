//! How every file begins, how long it may be, and what must not stand in it.

use super::{Faults, TextFile};

/// From here on a source file should be split.
const LONG: usize = 500;

/// Longer than this is not accepted.
const TOO_LONG: usize = 800;

/// Paths of somebody's machine: they are wrong everywhere else. In pieces, so that this file does not have them.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

pub(super) fn faults(file: &TextFile) -> Faults {
    let TextFile { path, text } = file;
    let mut faults = Faults::new();
    if is_generated(path) {
        return faults;
    }
    if path.ends_with(".rs") {
        if path.contains("/src/") && !text.starts_with("//! ") {
            faults.push(format!("{path}:1: begin the file with a `//!` line that says what it is for"));
        }
        let lines = text.lines().count();
        if lines > TOO_LONG {
            faults.push(format!("{path}: {lines} lines, at most {TOO_LONG} are accepted; split it"));
        }
    }
    for (number, line) in (1..).zip(text.lines()) {
        for machine_path in MACHINE_PATHS {
            if line.contains(machine_path) {
                faults.push(format!("{path}:{number}: {machine_path} is a path of one machine only"));
            }
        }
    }
    faults
}

/// A file that is accepted and getting long.
pub(super) fn size_warning(file: &TextFile) -> Option<String> {
    let lines = file.text.lines().count();
    let long =
        file.path.ends_with(".rs") && !is_generated(&file.path) && (LONG + 1..=TOO_LONG).contains(&lines);
    long.then(|| format!("{}: {lines} lines, more than {LONG}", file.path))
}

fn is_generated(path: &str) -> bool {
    path.contains("/generated/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: impl Into<String>) -> TextFile {
        TextFile { path: path.to_owned(), text: text.into() }
    }

    #[test]
    fn a_source_file_must_say_what_it_is_for() {
        let check = |path: &str, text: &str, count: usize| assert_eq!(faults(&file(path, text)).len(), count);
        check("crates/a/src/lib.rs", "//! What it is for.\n", 0);
        check("crates/a/src/lib.rs", "use std::fmt;\n", 1);
        check("crates/a/src/b/c.rs", "\n//! Late.\n", 1);
        check("xtask/src/main.rs", "", 1);
        check("crates/a/src/generated/x.rs", "mod x;", 0);
        check("README.md", "# tlog", 0);
    }

    #[test]
    fn a_long_file_is_warned_about_and_a_very_long_one_refused() {
        let check = |lines: usize, warned: bool, refused: bool| {
            let file = file("crates/a/tests/b.rs", "x\n".repeat(lines));
            assert_eq!(size_warning(&file).is_some(), warned);
            assert_eq!(!faults(&file).is_empty(), refused);
        };
        check(500, false, false);
        check(501, true, false);
        check(800, true, false);
        check(801, false, true);
    }

    #[test]
    fn paths_of_one_machine_are_found_with_their_line() {
        let text = format!("a\nsee {}x\n", MACHINE_PATHS[0]);
        let found = faults(&file("docs/a.md", text));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("docs/a.md:2: "), "{found:?}");
    }
}
