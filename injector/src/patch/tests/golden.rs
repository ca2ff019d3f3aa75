//! Before and after: each `NAME.yaml` of the folder `golden` becomes its `NAME.injected.yaml`, byte for byte.
//!
//! Written anew with TULLE_WRITE_GOLDEN=1, so that what changes in a patch is read as a difference of pods.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tulle_runtime::env::Env;

use crate::{InjectorConfig, Namespace, inject_document};

const WRITE: &str = "TULLE_WRITE_GOLDEN";
const AFTER: &str = ".injected.yaml";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/patch/golden")
}

/// The manifest after injection, with the decision and all warnings on top.
fn injected(manifest: &str, config: &InjectorConfig) -> String {
    let document: Value = serde_saphyr::from_str(manifest).expect("a manifest");
    let outcome =
        inject_document(document, &Namespace::enabled("shop"), config).expect("it can be injected");
    let warnings = outcome
        .warnings
        .iter()
        .map(|line| format!("# warning: {line}\n"));
    let mut yaml = serde_saphyr::to_string(&outcome.document).expect("YAML");
    // Releases differ in nothing else.
    for quote in ["\"", "\\\""] {
        let of = |version| format!("{quote}version{quote}:{quote}{version}{quote}");
        yaml = yaml.replace(&of(env!("CARGO_PKG_VERSION")), &of("VERSION"));
    }
    format!(
        "# {}\n{}{}\n",
        outcome.decision,
        warnings.collect::<String>(),
        yaml.trim_end()
    )
}

#[test]
fn every_pod_of_the_folder_becomes_what_stands_beside_it() {
    let write = Env::process().text(WRITE).is_some();
    let names = fs::read_dir(folder()).expect("the folder").map(|entry| {
        let name = entry.expect("an entry").file_name();
        name.into_string().expect("text")
    });
    let (after, before): (BTreeSet<_>, BTreeSet<_>) = names.partition(|name| name.ends_with(AFTER));
    let mut expected = BTreeSet::new();
    for name in before {
        let name = name.strip_suffix(".yaml").expect("YAML").to_owned();
        let path = folder().join(format!("{name}{AFTER}"));
        let manifest = fs::read_to_string(folder().join(format!("{name}.yaml"))).expect("a file");
        let becomes = injected(&manifest, &InjectorConfig::default());
        if write {
            fs::write(&path, &becomes).expect("written");
        }
        let stands = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            becomes == stands,
            "{name} becomes another pod; if that is meant, write it with {WRITE}=1 and read the difference:\n{becomes}"
        );
        expected.insert(format!("{name}{AFTER}"));
    }
    assert!(!expected.is_empty());
    assert!(
        write || after == expected,
        "one of {after:?} has no pod that becomes it"
    );
}

#[test]
fn every_pod_that_was_injected_stays_as_it_is_whatever_image_it_has() {
    let config = InjectorConfig {
        image: "mirror.example/proxy".to_owned(),
        ..InjectorConfig::default()
    };
    let pod = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with("# "));
        lines.map(str::to_owned).collect()
    };
    let mut seen = 0;
    for entry in fs::read_dir(folder()).expect("the folder") {
        let path = entry.expect("an entry").path();
        let stands = fs::read_to_string(&path).expect("a file");
        if !stands.starts_with("# injected: ") {
            continue;
        }
        let again = injected(&stands, &config);
        let decided = again.lines().next();
        let expected = "# skipped: it already has a sidecar";
        assert_eq!(decided, Some(expected), "{}", path.display());
        assert_eq!(pod(&again), pod(&stands), "{}", path.display());
        seen += 1;
    }
    assert!(seen > 0);
}
