//! The injectors of an installation: which revisions there are.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use tulle_runtime::names::{DEFAULT_REVISION, INJECTOR, labels};

/// Their revisions.
#[derive(Debug, Default)]
pub(super) struct Injectors(BTreeSet<String>);

impl Injectors {
    /// Those among the Deployments of the mesh.
    pub(super) fn of(deployments: &[Deployment]) -> Self {
        let injectors = deployments.iter().filter_map(|deployment| {
            let rest = deployment.name_any().strip_prefix(INJECTOR)?.to_owned();
            let of = deployment.labels().get(labels::REVISION).cloned();
            match rest.strip_prefix('-') {
                Some(named) => Some(named.to_owned()),
                None if rest.is_empty() => Some(of.unwrap_or_else(|| DEFAULT_REVISION.to_owned())),
                None => None,
            }
        });
        Self(injectors.collect())
    }

    /// Whether there is one of this revision.
    pub(super) fn have(&self, revision: &str) -> bool {
        self.0.contains(revision)
    }

    /// The revisions, as people say them.
    pub(super) fn said(&self) -> String {
        let revisions: Vec<_> = self.0.iter().map(String::as_str).collect();
        revisions.join(", ")
    }

    pub(super) fn are_none(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn revisions_are_those_of_the_injectors_that_there_are() {
        let deployment = |name: &str| -> Deployment {
            let template = json!({ "spec": { "containers": [] } });
            let spec = json!({ "selector": {}, "template": template });
            let deployment = json!({ "metadata": { "name": name }, "spec": spec });
            serde_json::from_value(deployment).expect("a Deployment")
        };
        let injectors = Injectors::of(&[
            deployment("tulle-control"),
            deployment("tulle-control-old"),
            deployment("tulle-injector"),
            deployment("tulle-injector-next"),
            deployment("tulle-injectors"),
        ]);
        assert_eq!(injectors.said(), "default, next");
        let have = ["default", "next", "old"].map(|revision| injectors.have(revision));
        assert_eq!(have, [true, true, false]);
        assert!(!injectors.are_none() && Injectors::default().are_none());
    }
}
