//! `codegen`: the Rust code of the Cap'n Proto schema.
//!
//! The code is committed, so that a build needs no Cap'n Proto compiler; `codegen --check` finds it when stale.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::setup;

const SCHEMA: &str = "schema/tlog.capnp";
const GENERATED: &str = "crates/tlog-proto/src/generated";
const FILE: &str = "tlog_capnp.rs";

/// Whether the Cap'n Proto compiler is there.
pub(crate) fn is_possible() -> bool {
    setup::program("capnp").is_some()
}

/// Makes the code and puts it in its place.
pub(crate) fn write(root: &Path) -> Result<()> {
    let folder = root.join(GENERATED);
    fs::write(folder.join(FILE), generate(root)?)?;
    println!("codegen: {GENERATED}/{FILE} made from {SCHEMA}");
    Ok(())
}

/// Makes the code and compares it with what is in its place.
pub(crate) fn check(root: &Path) -> Result<()> {
    let file = root.join(GENERATED).join(FILE);
    let committed = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    if comparable(&committed) != comparable(&generate(root)?) {
        bail!("{GENERATED}/{FILE} is not what {SCHEMA} makes; run `cargo xtask codegen` and commit the file");
    }
    println!("codegen: {GENERATED}/{FILE} is up to date");
    Ok(())
}

fn generate(root: &Path) -> Result<String> {
    if !is_possible() {
        bail!("the Cap'n Proto compiler `capnp` is not there; run `cargo xtask setup`");
    }
    // In a folder of its own, since the generator names the file itself.
    let folder = root.join("target").join(format!("codegen-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let made = capnpc::CompilerCommand::new()
        .src_prefix(root.join("schema"))
        .file(root.join(SCHEMA))
        .output_path(&folder)
        .default_parent_module(vec!["generated".to_owned()])
        .run()
        .with_context(|| format!("the Cap'n Proto compiler refuses {SCHEMA}"))
        .and_then(|()| Ok(fs::read_to_string(folder.join(FILE))?));
    fs::remove_dir_all(&folder)?;
    made
}

/// The code without the line that names the compiler's version, which differs between machines and changes nothing.
fn comparable(code: &str) -> Vec<&str> {
    code.lines().filter(|line| !line.starts_with("// capnp binary version:")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_version_of_the_compiler_may_differ() {
        let code = |version: &str, body: &str| format!("// capnp binary version: {version}\n{body}\n");
        assert_eq!(comparable(&code("0.9.2", "x")), comparable(&code("1.0.1", "x")));
        assert_ne!(comparable(&code("0.9.2", "x")), comparable(&code("0.9.2", "y")));
    }
}
