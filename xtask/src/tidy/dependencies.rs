//! Which crate may depend on which, and that every foreign one is accounted for.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Faults;

/// The page that says what each foreign crate is for.
pub(super) const LIST: &str = "docs/dependencies.md";

/// The layers: each crate, and those of this workspace that it may depend on, dev- and build-dependencies included.
/// `docs/architecture.md` explains them. A crate that stands here and is not there yet is no fault.
///
/// The two libraries that speak the protocol know nothing of storage, tests included: that is what keeps them usable
/// with another store, and testable without any. Nothing depends on `tlog`, which puts everything together.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("tlog-ambient", &[]),
    ("tlog-proto", &[]),
    ("tlog-crypto", &[]),
    ("tlog-codec", &["tlog-proto", "tlog-crypto"]),
    ("tlog-store", &["tlog-ambient", "tlog-proto"]),
    ("tlog-redis", &["tlog-proto", "tlog-store", "tlog-config", "tlog-testbed"]),
    ("tlog-config", &["tlog-proto", "tlog-testbed"]),
    ("tlog-quorum", &["tlog-proto", "tlog-codec", "tlog-store"]),
    ("tlog-flusher", &["tlog-ambient", "tlog-proto", "tlog-codec", "tlog-store", "tlog-quorum"]),
    ("tlog-player", &["tlog-ambient", "tlog-proto", "tlog-codec", "tlog-store", "tlog-quorum"]),
    ("tlog-server", &["tlog-proto"]),
    ("tlog-client", &["tlog-ambient", "tlog-proto"]),
    (
        "tlog",
        &[
            "tlog-ambient",
            "tlog-proto",
            "tlog-crypto",
            "tlog-codec",
            "tlog-store",
            "tlog-redis",
            "tlog-config",
            "tlog-quorum",
            "tlog-flusher",
            "tlog-player",
            "tlog-server",
            "tlog-client",
            "tlog-testbed",
        ],
    ),
    ("tlog-testbed", &[]),
    (
        "tlog-sim",
        &[
            "tlog-ambient",
            "tlog-proto",
            "tlog-codec",
            "tlog-store",
            "tlog-quorum",
            "tlog-flusher",
            "tlog-player",
            "tlog-server",
            "tlog-client",
        ],
    ),
    (
        "tlog-counts",
        &[
            "tlog-proto",
            "tlog-crypto",
            "tlog-codec",
            "tlog-store",
            "tlog-quorum",
            "tlog-flusher",
            "tlog-server",
        ],
    ),
    (
        "tlog-fuzz",
        &[
            "tlog",
            "tlog-proto",
            "tlog-crypto",
            "tlog-codec",
            "tlog-store",
            "tlog-redis",
            "tlog-config",
            "tlog-player",
            "tlog-server",
            "tlog-client",
        ],
    ),
    ("tlog-chaos", &["tlog-proto", "tlog-client", "tlog-testbed"]),
    ("xtask", &[]),
];

/// What only the tests and examples of a crate may depend on, beyond that. A port is tested with the adapters of other crates where what
/// is tested is that both do their part: what a slave holds after a server was killed is up to the syncer and the server.
const TESTS_MAY_DEPEND_ON: &[(&str, &[&str])] =
    &[("tlog-player", &["tlog-redis", "tlog-config", "tlog-testbed"])];

/// Features that one crate alone may ask for: the switches that only a simulation may have, the entrances for fuzz targets, the points at
/// which a test may kill a program.
const RESERVED: [(&str, &str); 3] =
    [("simulation", "tlog-sim"), ("fuzzing", "tlog-fuzz"), ("failpoints", "tlog")];

/// What that crate may ask for in its tests only.
const OF_TESTS: &str = "failpoints";

/// What cargo knows about the workspace's own crates.
pub(crate) fn metadata(root: &Path) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--locked", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

/// Dependencies against the layers.
pub(super) fn forbidden(metadata: &Value) -> Faults {
    let mut faults = Faults::new();
    for (name, package) in packages(metadata) {
        let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(layer, _)| *layer == name) else {
            faults.push(format!(
                "crate {name} has no layer; add it to the table in xtask/src/tidy/dependencies.rs"
            ));
            continue;
        };
        for dependency in dependencies(package).filter(|dependency| is_ours(dependency)) {
            let on = name_of(dependency);
            let kind = dependency.get("kind").and_then(Value::as_str).unwrap_or("normal");
            let of_tests = TESTS_MAY_DEPEND_ON.iter().find(|(layer, _)| *layer == name);
            let for_tests = kind == "dev" && of_tests.is_some_and(|(_, on_too)| on_too.contains(&on));
            if !allowed.contains(&on) && !for_tests {
                faults.push(format!(
                    "crate {name} must not depend on {on} ({kind} dependency); see docs/architecture.md"
                ));
            }
        }
    }
    faults
}

/// Whoever asks for what is for another crate alone.
pub(super) fn reserved(metadata: &Value) -> Faults {
    RESERVED.iter().flat_map(|(feature, owner)| asked_by_others(metadata, feature, owner)).collect()
}

fn asks_for(dependency: &Value, feature: &str) -> bool {
    let features = dependency.get("features").and_then(Value::as_array);
    is_ours(dependency) && features.into_iter().flatten().any(|asked| asked == feature)
}

fn asked_by_others(metadata: &Value, feature: &str, owner: &str) -> Faults {
    let only_tests = feature == OF_TESTS;
    let may = |name: &str, dependency: &Value| {
        name == owner && (!only_tests || dependency.get("kind").is_some_and(|kind| kind == "dev"))
    };
    let who = if only_tests { format!("tests of {owner}") } else { owner.to_owned() };
    packages(metadata)
        .flat_map(|(name, package)| dependencies(package).map(move |on| (name, on)))
        .filter(|(name, on)| asks_for(on, feature) && !may(name, on))
        .map(|(name, on)| {
            format!("crate {name} asks for the feature `{feature}` of {}; only {who} may", name_of(on))
        })
        .collect()
}

/// Foreign crates that `list`, the text of [`LIST`], does not name in backticks.
pub(super) fn unlisted(metadata: &Value, list: &str) -> Faults {
    let foreign: BTreeSet<&str> = packages(metadata)
        .flat_map(|(_, package)| dependencies(package))
        .filter(|dependency| !is_ours(dependency))
        .map(name_of)
        .collect();
    foreign
        .into_iter()
        .filter(|name| !list.contains(&format!("`{name}`")))
        .map(|name| format!("crate `{name}` is used and {LIST} does not say what for; add its line"))
        .collect()
}

fn packages(metadata: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let packages = metadata.get("packages").and_then(Value::as_array);
    packages.into_iter().flatten().map(|package| (name_of(package), package))
}

fn dependencies(package: &Value) -> impl Iterator<Item = &Value> {
    package.get("dependencies").and_then(Value::as_array).into_iter().flatten()
}

fn name_of(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// Whether it is a crate of this workspace: those, and only those, are found by a path.
fn is_ours(dependency: &Value) -> bool {
    dependency.get("path").is_some_and(|path| !path.is_null())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workspace(package: &str, dependencies: Value) -> Value {
        json!({ "packages": [{ "name": package, "dependencies": dependencies }] })
    }

    #[test]
    fn a_dependency_outside_the_layers_is_found_even_if_only_tests_have_it() {
        let check = |package: &str, on: &str, kind: Value, faults: usize| {
            let dependencies = json!([{ "name": on, "kind": kind, "path": "/somewhere" }]);
            let found = forbidden(&workspace(package, dependencies));
            assert_eq!(found.len(), faults, "{found:?}");
        };
        check("tlog-server", "tlog-proto", Value::Null, 0);
        check("tlog-server", "tlog-store", Value::Null, 1);
        check("tlog-server", "tlog-store", json!("dev"), 1);
        check("tlog-server", "tlog-flusher", json!("build"), 1);
        check("tlog-proto", "tlog-crypto", json!("dev"), 1);
        check("tlog", "tlog-server", Value::Null, 0);
        check("tlog-new", "tlog-proto", Value::Null, 1);
        check("tlog-player", "tlog-redis", json!("dev"), 0);
        check("tlog-player", "tlog-redis", Value::Null, 1);
    }

    #[test]
    fn what_breaks_rules_is_for_the_simulator_alone_and_entrances_are_for_the_fuzz_targets() {
        let check = |feature: &str, owner: &str, other: &str| {
            let asks = json!([{ "name": "tlog-flusher", "path": "/somewhere", "features": [feature] }]);
            assert!(reserved(&workspace(owner, asks.clone())).is_empty());
            assert_eq!(reserved(&workspace(other, asks)).len(), 1);
        };
        check("simulation", "tlog-sim", "tlog-fuzz");
        check("fuzzing", "tlog-fuzz", "tlog-sim");
        let check = |crate_name: &str, kind: Value, faults: usize| {
            let asks = json!([{ "name": "tlog-ambient", "kind": kind, "path": "/somewhere", "features": ["failpoints"] }]);
            assert_eq!(reserved(&workspace(crate_name, asks)).len(), faults);
        };
        check("tlog", json!("dev"), 0);
        check("tlog", Value::Null, 1);
        check("tlog-player", json!("dev"), 1);
    }

    #[test]
    fn foreign_crates_need_a_line_and_not_a_layer() {
        let found = workspace("tlog-server", json!([{ "name": "bytes", "kind": null }, { "name": "tokio" }]));
        assert!(forbidden(&found).is_empty());
        let faults = unlisted(&found, "| `bytes` | buffers |");
        assert_eq!(faults.len(), 1);
        assert!(faults[0].contains("`tokio`"));
    }

    #[test]
    fn the_layers_have_no_cycle() {
        // Each may depend only on crates whose own lists are no longer than what has been seen to be free of cycles.
        let mut done: Vec<&str> = Vec::new();
        let of_tests = |name: &str| TESTS_MAY_DEPEND_ON.iter().find(|(layer, _)| *layer == name);
        let all_done = |name: &str, on: &[&str], done: &[&str]| {
            let of_tests = of_tests(name).map(|(_, on)| *on).unwrap_or_default();
            on.iter().chain(of_tests).all(|on| done.contains(on))
        };
        while let Some((name, _)) =
            MAY_DEPEND_ON.iter().find(|(name, on)| !done.contains(name) && all_done(name, on, &done))
        {
            done.push(name);
        }
        assert_eq!(done.len(), MAY_DEPEND_ON.len());
    }
}
