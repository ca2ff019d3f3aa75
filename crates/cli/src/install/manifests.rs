//! The objects of an installation, in the order in which they are to be applied.
//!
//! The Helm chart under `deploy/charts/tulle` renders the same objects; a test holds them against each other.

mod rbac;
mod webhook;
mod workload;

use serde_json::{Map, Value, json};
use tulle_runtime::names::{
    CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT, DEFAULT_REVISION, INJECTOR, labels,
};

use super::values::Values;

/// Resources that the API server has to know first.
const CRDS: [&str; 2] = [
    include_str!("../../../../deploy/charts/tulle/crds/configsnapshots.tulle.dev.yaml"),
    include_str!("../../../../deploy/charts/tulle/crds/peerauthentications.tulle.dev.yaml"),
];

/// The namespace, which Helm makes itself when it is told to.
pub(crate) fn namespace() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": CONTROL_NAMESPACE,
            "labels": {
                labels::PART_OF: labels::PART_OF_TULLE,
                // Nothing in it needs more.
                "pod-security.kubernetes.io/enforce": "restricted",
                "pod-security.kubernetes.io/warn": "restricted",
            },
        },
    })
}

/// The definitions of Tulle's own kinds.
pub(crate) fn crds() -> Vec<Value> {
    let read = |text: &&str| serde_saphyr::from_str(text).expect("the chart's own files are YAML");
    CRDS.iter().map(read).collect()
}

/// The words that the programs of both parts are started with.
pub(crate) fn arguments(values: &Values) -> Vec<Vec<String>> {
    let install = Install::new(values);
    let objects = [workload::control(&install), workload::injector(&install)];
    let containers = objects
        .iter()
        .flatten()
        .filter_map(|object| object["spec"]["template"]["spec"]["containers"].as_array());
    let words = |container: &Value| {
        let words = container["args"].as_array().into_iter().flatten();
        words
            .filter_map(Value::as_str)
            .map(ToOwned::to_owned)
            .collect()
    };
    containers.flatten().map(words).collect()
}

/// Everything that the chart's templates render.
pub(crate) fn objects(values: &Values) -> Vec<Value> {
    let install = Install::new(values);
    let mut objects = rbac::objects(&install);
    objects.extend(workload::control(&install));
    objects.extend(workload::injector(&install));
    objects.push(webhook::configuration(&install));
    objects
}

/// Values, and the names that follow from them.
struct Install<'a> {
    values: &'a Values,
    control: String,
    injector: String,
}

impl<'a> Install<'a> {
    fn new(values: &'a Values) -> Self {
        let revision = values.revision.as_str();
        let named = |name: &str| match revision {
            DEFAULT_REVISION => name.to_owned(),
            revision => format!("{name}-{revision}"),
        };
        Self {
            control: named(CONTROL_SERVICE_ACCOUNT),
            injector: named(INJECTOR),
            values,
        }
    }

    /// Metadata of an object of this installation; cluster-wide objects have no namespace.
    fn metadata(&self, name: &str, namespaced: bool) -> Value {
        let mut metadata = json!({ "name": name, "labels": self.labels(name) });
        if namespaced {
            metadata["namespace"] = json!(CONTROL_NAMESPACE);
        }
        metadata
    }

    /// By what objects are found.
    fn labels(&self, name: &str) -> Map<String, Value> {
        let mut labels = self.selector(name);
        labels.insert(labels::PART_OF.to_owned(), json!(labels::PART_OF_TULLE));
        labels
    }

    /// By what a part's pods are found, which can never change.
    fn selector(&self, name: &str) -> Map<String, Value> {
        Map::from_iter([
            (labels::APP_NAME.to_owned(), json!(name)),
            (labels::REVISION.to_owned(), json!(self.values.revision)),
        ])
    }

    fn image(&self, name: &str) -> String {
        let image = &self.values.image;
        let tag = match image.tag.as_str() {
            "" => env!("CARGO_PKG_VERSION"),
            tag => tag,
        };
        format!("{}/{name}:{tag}", image.registry)
    }
}
