//! `counts`: how many instructions a block costs in each stage, against what is written down.
//!
//! Time depends on the machine and on who else uses it; instructions do not, so that a test can say of a change that it made a
//! stage dearer. `tlog-counts` does the work, valgrind's callgrind counts, [`FILE`] has what it was.
//!
//! Valgrind's processor has AVX2 and no AVX-512 or VAES, so this counts what older processors run: hashes and ciphers take fewer, wider
//! instructions on newer ones. How long instructions take is another matter: `cargo bench -p tlog-counts` times the same stages.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, steps};

/// Where the counts stand, relative to the workspace.
const FILE: &str = "crates/tlog-counts/counts.txt";

/// How much a stage may grow, in per cent, before somebody has to say that it is meant to.
const MAY_GROW: u64 = 10;

/// Extensions without which other code is run than was counted.
const FEATURES: [&str; 3] = ["avx2", "aes", "pclmulqdq"];

const HEAD: &str = "\
# Instructions per block of 4 KiB, by stage, as callgrind counts them: see docs/performance.md.
# `cargo xtask counts` fails where one has grown by more than 10 %; `cargo xtask counts --update` writes this file anew.
";

/// Instructions per block, by stage.
type Counts = BTreeMap<String, u64>;

/// What is written down, and what made it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Recorded {
    compiler: String,
    counts: Counts,
}

/// Counts, and compares with what is written down; with `update` writes it down.
pub(crate) fn run(root: &Path, update: bool) -> Result<()> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("counts: skipped, what is written down was counted on x86-64 with Linux");
        return Ok(());
    }
    let Some(valgrind) = setup::program("valgrind") else {
        bail!("valgrind is not there: cargo xtask setup");
    };
    let program = build(root)?;
    let counted = count(&valgrind, &program)?;
    let Counted::All(counts) = counted else {
        println!("counts: skipped, this processor has not all of {}", FEATURES.join(", "));
        return Ok(());
    };
    let now = Recorded { compiler: compiler()?, counts };
    let path = root.join(FILE);
    if update {
        fs::write(&path, now.text()).with_context(|| format!("cannot write {FILE}"))?;
        println!("counts: {} stages are written down in {FILE}", now.counts.len());
        return Ok(());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {FILE}"))?;
    let before = Recorded::parse(&text)?;
    print!("{}", compared(&before.counts, &now.counts));
    let faults = faults(&before, &now);
    for fault in &faults {
        eprintln!("counts: {fault}");
    }
    ensure!(
        faults.is_empty(),
        "mend it, or, where it is meant and worth it, say why in the commit and write it down: cargo xtask counts --update"
    );
    println!("counts: {} stages, none has grown by more than {MAY_GROW} %", now.counts.len());
    Ok(())
}

/// Builds the program as it is released. Answers where it is.
fn build(root: &Path) -> Result<PathBuf> {
    steps::cargo(root, &["build", "--release", "--locked", "-p", "tlog-counts"], &[])?;
    let metadata = crate::tidy::metadata(root)?;
    let target = metadata.get("target_directory").and_then(|target| target.as_str());
    let target = target.context("cargo does not tell where it builds")?;
    let program = Path::new(target).join("release/tlog-counts");
    ensure!(program.is_file(), "{} was not built", program.display());
    Ok(program)
}

fn compiler() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Without the date and the commit.
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

enum Counted {
    All(Counts),
    OtherProcessor,
}

/// Runs the program under callgrind, which writes what it counted to a file of its own each time that the program marks a border.
fn count(valgrind: &Path, program: &Path) -> Result<Counted> {
    let folder = program.with_file_name("counts");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let output = Command::new(valgrind)
        .args(["--tool=callgrind", "--dump-before=tlog_counts::mark*", "--callgrind-out-file=out"])
        .arg(program)
        .current_dir(&folder)
        .output()
        .context("cannot run valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind ended with {}: {said}", output.status);
    let told = String::from_utf8(output.stdout).context("what tlog-counts says is not text")?;
    let has = |feature: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix("features"));
        line.is_some_and(|line| line.split_whitespace().any(|name| name == feature))
    };
    if !FEATURES.into_iter().all(has) {
        return Ok(Counted::OtherProcessor);
    }
    counts(&told, |dump| {
        let file = folder.join(format!("out.{dump}"));
        fs::read_to_string(&file).with_context(|| format!("callgrind has not written {}", file.display()))
    })
    .map(Counted::All)
}

/// What the program said and what callgrind wrote. The first file has what was before stage 1, the second one stage 1, and so on.
fn counts(told: &str, dump: impl Fn(usize) -> Result<String>) -> Result<Counts> {
    let stages = told.lines().filter_map(|line| line.strip_prefix("stage "));
    let mut counts = Counts::new();
    for (number, stage) in stages.enumerate() {
        let (name, blocks) = stage.split_once(' ').context("a stage without its blocks")?;
        let blocks: u64 = blocks.trim().parse().context("how many blocks?")?;
        let text = dump(2 * number + 2)?;
        let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
        let instructions: u64 = totals.context("no totals")?.trim().parse().context("no number")?;
        counts.insert(name.to_owned(), instructions / blocks.max(1));
    }
    ensure!(!counts.is_empty(), "tlog-counts has done nothing");
    Ok(counts)
}

impl Recorded {
    fn text(&self) -> String {
        let mut text = format!("{HEAD}compiler {}\n", self.compiler);
        for (name, count) in &self.counts {
            let _never_fails = writeln!(text, "{name:<20}{count:>10}");
        }
        text
    }

    fn parse(text: &str) -> Result<Self> {
        let mut recorded = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let (name, value) = line.split_once(' ').with_context(|| format!("{FILE}: {line}"))?;
            if name == "compiler" {
                value.trim().clone_into(&mut recorded.compiler);
            } else {
                let count = value.trim().parse().with_context(|| format!("{FILE}: {line}"))?;
                recorded.counts.insert(name.to_owned(), count);
            }
        }
        Ok(recorded)
    }
}

/// A table for people.
fn compared(before: &Counts, now: &Counts) -> String {
    let mut table = String::new();
    for (name, count) in now {
        let change = match before.get(name) {
            Some(&before) => format!("{:+.1} %", 100.0 * (*count as f64 / before.max(1) as f64 - 1.0)),
            None => "new".to_owned(),
        };
        let _never_fails = writeln!(table, "{name:<20}{count:>10}  {change}");
    }
    table
}

/// What has grown too much, and what is not in both.
fn faults(before: &Recorded, now: &Recorded) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, &count) in &now.counts {
        match before.counts.get(name) {
            None => faults.push(format!("stage {name} is not in {FILE}")),
            Some(&was) if count * 100 > was * (100 + MAY_GROW) => {
                faults.push(format!("stage {name} takes {count} instructions a block; it took {was}"))
            }
            Some(_) => {}
        }
    }
    let gone = before.counts.keys().filter(|name| !now.counts.contains_key(*name));
    faults.extend(gone.map(|name| format!("stage {name} is in {FILE} and not measured any more")));
    if !faults.is_empty() && before.compiler != now.compiler {
        faults.push(format!("it was counted with {}, and this is {}", before.compiler, now.compiler));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(counts: &[(&str, u64)], compiler: &str) -> Recorded {
        let counts = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Recorded { compiler: compiler.to_owned(), counts }
    }

    #[test]
    fn a_stage_may_grow_by_a_tenth_and_no_more() {
        let before = recorded(&[("seal", 1000), ("open", 1000)], "rustc 1");
        let check = |seal: u64, found: usize| {
            let now = recorded(&[("seal", seal), ("open", 10)], "rustc 1");
            assert_eq!(faults(&before, &now).len(), found, "{seal}");
        };
        check(1000, 0);
        check(1100, 0);
        check(1101, 1);
        check(1, 0);
        let now = recorded(&[("seal", 2000)], "rustc 2");
        let faults = faults(&before, &now);
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].contains("stage seal takes 2000") && faults[0].contains("it took 1000"));
        assert!(faults[1].contains("stage open") && faults[2].contains("rustc 2"));
    }

    #[test]
    fn a_stage_that_nobody_has_written_down_is_named() {
        let before = recorded(&[], "rustc 1");
        assert!(faults(&before, &recorded(&[("seal", 1)], "rustc 1"))[0].contains("is not in"));
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let now = recorded(&[("seal-25-random", 60_000), ("link", 7)], "rustc 1.95.0");
        assert_eq!(Recorded::parse(&now.text()).unwrap(), now);
        assert!(Recorded::parse("seal many\n").is_err());
    }

    #[test]
    fn the_second_file_of_callgrind_is_the_first_stage() {
        let dump = |number: usize| Ok(format!("version: 1\ntotals: {}\n", number * 1000));
        let counts = counts("features avx2\nstage a 10\nstage b 100\n", dump).unwrap();
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), [("a".to_owned(), 200), ("b".to_owned(), 40)]);
        assert!(super::counts("", dump).is_err());
    }
}
