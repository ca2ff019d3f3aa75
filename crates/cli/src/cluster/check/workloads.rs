//! Pods that should be in the mesh and are not, and namespaces that keep them out.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tulle_runtime::names::labels;

use super::finding::Findings;
use super::installed::some;
use crate::cluster::answer;
use crate::error::CliError;

/// By which a namespace says what its pods may do.
const ENFORCED: &str = "pod-security.kubernetes.io/enforce";

pub(super) async fn look(
    client: &Client,
    namespace: Option<&str>,
    pre: bool,
    findings: &mut Findings,
) {
    match namespaces(client, namespace).await {
        Ok(namespaces) => {
            restricted(&namespaces, findings);
            if !pre {
                uninjected(client, &namespaces, findings).await;
            }
        }
        Err(error) => findings.unknown("namespaces", &error),
    }
}

/// The namespaces whose pods are to have sidecars.
async fn namespaces(client: &Client, name: Option<&str>) -> Result<Vec<Namespace>, CliError> {
    let api: Api<Namespace> = Api::all(client.clone());
    let all = answer("list the namespaces", api.list(&ListParams::default())).await?;
    let wanted = |it: &Namespace| {
        let label = |key: &str| it.labels().get(key).map(String::as_str);
        labels::ask_for_the_mesh(label(labels::INJECT), label(labels::REVISION))
    };
    let named = |it: &Namespace| name.is_none_or(|name| it.name_any() == name);
    Ok(all
        .into_iter()
        .filter(|it| wanted(it) && named(it))
        .collect())
}

/// The level that a namespace enforces, if no pod with a sidecar meets it.
pub(super) fn enforced(namespace: &Namespace) -> Option<&str> {
    let level = namespace.labels().get(ENFORCED)?;
    ["baseline", "restricted"]
        .into_iter()
        .find(|it| it == level)
}

/// The init container that captures connections needs what these do not permit.
fn restricted(namespaces: &[Namespace], findings: &mut Findings) {
    for namespace in namespaces {
        if let Some(level) = enforced(namespace) {
            let name = namespace.name_any();
            findings.error(
                format!("namespace {name}"),
                format!("enforces the pod security level {level}, which no pod with a sidecar meets: capture needs NET_ADMIN"),
                format!("kubectl label namespace {name} --overwrite {ENFORCED}=privileged"),
            );
        }
    }
}

async fn uninjected(client: &Client, namespaces: &[Namespace], findings: &mut Findings) {
    let mut counted = 0;
    for namespace in namespaces {
        let name = namespace.name_any();
        let api: Api<Pod> = Api::namespaced(client.clone(), &name);
        let what = format!("list the pods of {name}");
        let pods = match answer(&what, api.list(&ListParams::default())).await {
            Ok(pods) => pods,
            Err(error) => return findings.unknown("pods", &error),
        };
        let mut without = BTreeMap::<String, ()>::new();
        for pod in pods.iter().filter(|pod| is_concerned(pod)) {
            counted += 1;
            if !pod.labels().contains_key(labels::PROXIED) {
                without.insert(pod.name_any(), ());
            }
        }
        if !without.is_empty() {
            let names: Vec<_> = without.keys().map(String::as_str).collect();
            findings.warning(
                format!("namespace {name}"),
                format!("{} pods have no sidecar: {}", names.len(), some(&names)),
                format!("restart them: kubectl -n {name} rollout restart deployment,statefulset,daemonset"),
            );
        }
    }
    findings.ok(
        "workloads",
        format!("{counted} pods in {} meshed namespaces", namespaces.len()),
    );
}

/// Whether a pod would get a sidecar if it were made now.
fn is_concerned(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or_default();
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let opted_out = |labels: &BTreeMap<String, String>| {
        labels
            .get(labels::INJECT)
            .is_some_and(|value| value == "disabled")
    };
    !host_network
        && !matches!(phase, Some("Succeeded" | "Failed"))
        && !opted_out(pod.labels())
        && !opted_out(pod.annotations())
}
