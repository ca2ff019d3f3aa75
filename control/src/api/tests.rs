//! The CustomResourceDefinitions: what they say, and that the chart has them.
//!
//! Written anew with TULLE_WRITE_GOLDEN=1, so that what changes in the API is read as a difference of manifests.

use std::path::PathBuf;

use kube::CustomResourceExt as _;
use serde_json::{Value, json};
use tulle_runtime::env::Env;

use super::*;

/// Set: the chart's file is written, not compared.
const WRITE: &str = "TULLE_WRITE_GOLDEN";
const HEAD: &str = "# Generated from control/src/api.rs by its test, with TULLE_WRITE_GOLDEN=1 in the environment.\n";

fn file(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../deploy/charts/tulle/crds")
        .join(format!("{name}.yaml"))
}

fn definition() -> Value {
    serde_json::to_value(PeerAuthentication::crd()).expect("it is JSON")
}

#[test]
fn the_chart_has_the_definitions_of_these_types() {
    for (name, definition) in [
        (PeerAuthentication::crd_name(), PeerAuthentication::crd()),
        (ConfigSnapshot::crd_name(), ConfigSnapshot::crd()),
    ] {
        let (file, definition) = (file(name), json!(definition));
        let text = serde_saphyr::to_string(&definition).expect("it is YAML");
        let text = format!("{HEAD}{text}");
        if Env::process().text(WRITE).is_some() {
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("writable");
            std::fs::write(&file, &text).expect("writable");
        }
        let kept = std::fs::read_to_string(file).unwrap_or_default();
        assert_eq!(kept, text, "{WRITE}=1 writes it anew");
        let read: Value = serde_saphyr::from_str(&kept).expect("it is YAML");
        assert_eq!(read, definition);
    }
}

#[test]
fn every_field_is_described_and_modes_are_named() {
    fn describe(schema: &Value, path: &str) {
        assert!(
            schema["description"].is_string() || path.ends_with('}'),
            "{path}: {schema}"
        );
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            describe(field, &format!("{path}.{name}"));
        }
        if schema["items"].is_object() {
            describe(&schema["items"], &format!("{path}[]"));
        }
    }
    let definition = definition();
    let version = &definition["spec"]["versions"][0];
    let spec = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
    describe(spec, "spec");
    let mode = &spec["properties"]["mtls"]["properties"]["mode"];
    let mut modes: Vec<_> = mode["enum"].as_array().into_iter().flatten().collect();
    modes.sort_by_key(|it| it.to_string());
    assert_eq!(modes, ["DISABLE", "PERMISSIVE", "STRICT", "UNSET"]);
    let columns = version["additionalPrinterColumns"].as_array();
    let columns: Vec<_> = columns
        .into_iter()
        .flatten()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(columns, ["Mode", "Accepted", "Age"]);
    let status = &version["schema"]["openAPIV3Schema"]["properties"]["status"];
    describe(status, "status");
    assert!(version["subresources"]["status"].is_object());
    let rules = spec["x-kubernetes-validations"]
        .as_array()
        .map_or(0, Vec::len);
    assert_eq!(rules, 3);
}

#[test]
fn the_definition_is_of_the_group_and_version_that_are_read() {
    let definition = definition();
    assert_eq!(definition["spec"]["group"], GROUP);
    assert_eq!(definition["spec"]["versions"][0]["name"], VERSION);
    assert_eq!(
        definition["metadata"]["name"],
        "peerauthentications.tulle.dev"
    );
}
