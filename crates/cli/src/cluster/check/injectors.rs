//! The injectors of an installation: which revisions there are, and what each gives to which pods.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;
use tulle_injector::{Decision, InjectorConfig, Namespace, Resources, Selector, inject_pod};
use tulle_runtime::names::{DEFAULT_REVISION, INJECTOR, labels};

/// The argument by which sidecars are ordinary containers.
const CLASSIC: &str = "--classic-sidecars";

/// What they decide by and what sidecars get, by revision.
#[derive(Debug, Default)]
pub(super) struct Injectors(BTreeMap<String, InjectorConfig>);

impl Injectors {
    /// Those among the Deployments of the mesh.
    pub(super) fn of(deployments: &[Deployment]) -> Self {
        let injectors = deployments.iter().filter_map(|deployment| {
            let rest = deployment.name_any().strip_prefix(INJECTOR)?.to_owned();
            let of = deployment.labels().get(labels::REVISION).cloned();
            let revision = match rest.strip_prefix('-') {
                Some(named) => named.to_owned(),
                None if rest.is_empty() => of.unwrap_or_else(|| DEFAULT_REVISION.to_owned()),
                None => return None,
            };
            let config = InjectorConfig {
                revision: revision.parse().ok()?,
                ..config(deployment)
            };
            Some((revision, config))
        });
        Self(injectors.collect())
    }

    /// Whether one of them would give a pod a sidecar if it were made now, or keep it out for what it says of that.
    pub(super) fn want(&self, pod: &Pod, namespace: &Namespace) -> bool {
        let pod = serde_json::to_value(pod).unwrap_or_default();
        self.0.values().any(|config| {
            let outcome = inject_pod(&pod, namespace, config);
            !outcome.is_ok_and(|it| matches!(it.decision, Decision::Skip(_)))
        })
    }

    /// Whether all of them give sidecars that are ordinary containers.
    pub(super) fn are_classic(&self) -> bool {
        !self.0.is_empty() && self.0.values().all(|it| !it.native_sidecar)
    }

    /// Whether there is one of this revision.
    pub(super) fn have(&self, revision: &str) -> bool {
        self.0.contains_key(revision)
    }

    /// What its sidecars get.
    pub(super) fn resources(&self, revision: &str) -> Option<&Resources> {
        self.0.get(revision).map(|it| &it.resources)
    }

    /// Whether its sidecars have a limit of processor time.
    pub(super) fn limit_cpu(&self, revision: &str) -> bool {
        let resources = self.resources(revision);
        resources.is_some_and(|it| it.cpu_limit.is_some())
    }

    /// The revisions, as people say them.
    pub(super) fn said(&self) -> String {
        let revisions: Vec<_> = self.0.keys().map(String::as_str).collect();
        revisions.join(", ")
    }

    pub(super) fn are_none(&self) -> bool {
        self.0.is_empty()
    }
}

/// What its arguments say, and what the injector does unless they say something.
fn config(deployment: &Deployment) -> InjectorConfig {
    let arguments: Vec<_> = arguments(deployment).collect();
    let values = |option: &str| -> Vec<String> {
        let at = arguments.iter().enumerate();
        let values = at.filter_map(|(at, argument)| {
            let rest = argument.strip_prefix(option)?;
            match rest.strip_prefix('=') {
                Some(value) => Some(value),
                None if rest.is_empty() => arguments.get(at + 1).copied(),
                None => None,
            }
        });
        values.map(ToOwned::to_owned).collect()
    };
    let value = |option: &str| values(option).into_iter().next();
    let selectors = |option: &str| {
        values(option)
            .iter()
            .filter_map(|it| selector(it))
            .collect()
    };
    let defaults = Resources::default();
    InjectorConfig {
        native_sidecar: !arguments.contains(&CLASSIC),
        resources: Resources {
            cpu_request: value("--proxy-cpu-request").unwrap_or(defaults.cpu_request),
            memory_request: value("--proxy-memory-request").unwrap_or(defaults.memory_request),
            cpu_limit: value("--proxy-cpu-limit").or(defaults.cpu_limit),
            memory_limit: value("--proxy-memory-limit").or(defaults.memory_limit),
        },
        never: selectors("--never-inject"),
        always: selectors("--always-inject"),
        ..InjectorConfig::default()
    }
}

/// An injector does not start with one that cannot be read.
fn selector(text: &str) -> Option<Selector> {
    let selector: LabelSelector = serde_json::from_str(text).ok()?;
    Selector::try_from(selector).ok()
}

fn arguments(deployment: &Deployment) -> impl Iterator<Item = &str> {
    let spec = deployment.spec.as_ref();
    let pod = spec.and_then(|spec| spec.template.spec.as_ref());
    let containers = pod.into_iter().flat_map(|pod| &pod.containers);
    containers
        .flat_map(|it| it.args.iter().flatten())
        .map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn revisions_are_those_of_the_injectors_that_there_are() {
        let deployment = |name: &str, args: &[&str]| -> Deployment {
            let deployment = json!({
                "metadata": { "name": name },
                "spec": {
                    "selector": {},
                    "template": { "spec": { "containers": [{ "name": "x", "args": args }] } },
                },
            });
            serde_json::from_value(deployment).expect("a Deployment")
        };
        let injectors = Injectors::of(&[
            deployment("tulle-control", &[]),
            deployment("tulle-control-old", &[]),
            deployment("tulle-injector", &["injector", "--log=info"]),
            deployment("tulle-injector-next", &["injector", "--proxy-cpu-limit=1"]),
            deployment("tulle-injectors", &[]),
        ]);
        assert_eq!(injectors.said(), "default, next");
        let (have, limit): (Vec<_>, Vec<_>) = ["default", "next", "old"]
            .map(|revision| (injectors.have(revision), injectors.limit_cpu(revision)))
            .into_iter()
            .unzip();
        assert_eq!(have, [true, true, false]);
        assert_eq!(limit, [false, true, false]);
        let memory = |args: &[&str]| {
            let resources = config(&deployment("tulle-injector", args)).resources;
            (resources.memory_request, resources.memory_limit)
        };
        let own = [
            "injector",
            "--proxy-memory-request",
            "1Mi",
            "--proxy-memory-limit=2Mi",
        ];
        assert_eq!(memory(&own), ("1Mi".to_owned(), Some("2Mi".to_owned())));
        assert_eq!(memory(&[]), ("16Mi".to_owned(), Some("256Mi".to_owned())));
        assert!(!injectors.are_none() && Injectors::default().are_none());
    }
}
