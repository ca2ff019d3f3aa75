//! Whether each revision is whole, and whether sidecars have a way to its control plane: the commands here have another one, and
//! would not notice.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tulle_runtime::names::{
    CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT as CONTROL, DEFAULT_REVISION, INJECTOR, ports,
};

use super::finding::Findings;
use crate::cluster::answer;
use crate::cluster::error::ClusterError;

/// Label of an EndpointSlice with the name of its Service.
const SERVICE: &str = "kubernetes.io/service-name";

/// What leads to control planes.
#[derive(Default)]
struct Ways {
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
}

/// Judges what belongs together, of the Deployments of the mesh that there are.
pub(super) async fn look(client: &Client, deployments: &[Deployment], findings: &mut Findings) {
    whole(deployments, findings);
    match ways(client).await {
        Ok(ways) => passable(deployments, &ways, findings),
        Err(error) => findings.unknown("Services", &error),
    }
}

async fn ways(client: &Client) -> Result<Ways, ClusterError> {
    let services: Api<Service> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let all = ListParams::default();
    let services = answer("list the Services of the mesh", services.list(&all)).await?;
    let slices = answer("list the endpoints of the mesh", slices.list(&all)).await?;
    Ok(Ways {
        services: services.items,
        slices: slices.items,
    })
}

/// The revision of a part, by its name.
fn revision<'a>(name: &'a str, part: &str) -> Option<&'a str> {
    match name.strip_prefix(part)? {
        "" => Some(DEFAULT_REVISION),
        rest => rest.strip_prefix('-'),
    }
}

/// Names revisions of which one part is not there.
fn whole(deployments: &[Deployment], findings: &mut Findings) {
    let mut parts = BTreeMap::<&str, BTreeSet<&str>>::new();
    for name in deployments
        .iter()
        .filter_map(|it| it.metadata.name.as_deref())
    {
        for part in [CONTROL, INJECTOR] {
            if let Some(revision) = revision(name, part) {
                parts.entry(revision).or_default().insert(part);
            }
        }
    }
    for (revision, parts) in parts {
        let subject = format!("revision {revision}");
        let remedy = format!(
            "install what is missing, with the values that it had: tulle install --revision {revision}"
        );
        if !parts.contains(CONTROL) {
            let state = "it has an injector and no control plane: its sidecars get no certificate, and no new pod gets ready";
            findings.error(subject, state, remedy);
        } else if !parts.contains(INJECTOR) {
            let state = "it has a control plane and no injector: no new pod gets a sidecar of it";
            findings.warning(subject, state, remedy);
        }
    }
}

/// Names control planes that nobody reaches by their Service. Those that do not run are findings of their own.
fn passable(deployments: &[Deployment], ways: &Ways, findings: &mut Findings) {
    for deployment in deployments {
        let name = deployment.name_any();
        let status = deployment.status.as_ref();
        let ready = status.and_then(|it| it.ready_replicas).unwrap_or_default();
        if revision(&name, CONTROL).is_none() || ready == 0 {
            continue;
        }
        let service = ways.services.iter().find(|it| it.name_any() == name);
        let state = match service {
            None => "is missing".to_owned(),
            Some(service) if !serves(service) => format!("has no port {}", ports::XDS),
            Some(_) if !leads(&name, &ways.slices) => {
                format!(
                    "has no ready endpoint, though {ready} replicas are ready: its selector is not that of their pods"
                )
            }
            Some(_) => continue,
        };
        findings.error(
            format!("Service {CONTROL_NAMESPACE}/{name}"),
            format!("it {state}: no sidecar can connect, no certificate is renewed, no new pod gets ready"),
            "put it back as it was installed: tulle upgrade --yes, or helm upgrade",
        );
    }
}

fn serves(service: &Service) -> bool {
    let spec = service.spec.iter();
    let mut ports = spec.filter_map(|it| it.ports.as_ref()).flatten();
    ports.any(|it| it.port == i32::from(ports::XDS))
}

fn leads(service: &str, slices: &[EndpointSlice]) -> bool {
    let own = slices
        .iter()
        .filter(|it| it.labels().get(SERVICE).is_some_and(|it| it == service));
    let mut endpoints = own.flat_map(|it| &it.endpoints).flatten();
    endpoints.any(|it| {
        let conditions = it.conditions.as_ref();
        // Nothing said is ready.
        conditions.and_then(|it| it.ready) != Some(false)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::finding::Level;
    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    fn deployment(name: &str, ready: i32) -> Deployment {
        let template = json!({ "spec": { "containers": [] } });
        read(json!({
            "metadata": { "name": name },
            "spec": { "selector": {}, "template": template },
            "status": { "readyReplicas": ready },
        }))
    }

    #[test]
    fn a_revision_is_whole_with_both_its_parts() {
        for (names, expected) in [
            (&["tulle-control", "tulle-injector"][..], None),
            (
                &[
                    "tulle-control",
                    "tulle-injector",
                    "tulle-control-next",
                    "tulle-injector-next",
                ],
                None,
            ),
            (
                &["tulle-control", "tulle-injector", "tulle-injector-next"],
                Some((Level::Error, "revision next")),
            ),
            (
                &["tulle-control"],
                Some((Level::Warning, "revision default")),
            ),
            (
                &["tulle-injector"],
                Some((Level::Error, "revision default")),
            ),
            (&["something-else"], None),
        ] {
            let deployments: Vec<_> = names.iter().map(|name| deployment(name, 2)).collect();
            let mut findings = Findings::default();
            whole(&deployments, &mut findings);
            let found = findings
                .all
                .first()
                .map(|it| (it.level, it.subject.as_str()));
            assert_eq!(found, expected, "{names:?}");
        }
    }

    #[test]
    fn sidecars_have_a_way_to_a_control_plane_by_its_service() {
        let service = |name: &str, port: u16| -> Service {
            read(json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": port }] } }))
        };
        let slice = |name: &str, conditions: Value| -> EndpointSlice {
            read(json!({
                "metadata": { "labels": { "kubernetes.io/service-name": name } },
                "addressType": "IPv4",
                "endpoints": [{ "addresses": ["10.0.0.1"], "conditions": conditions }],
            }))
        };
        let ready = || slice("tulle-control", json!({ "ready": true }));
        let whole = || vec![service("tulle-control", 15012)];
        for (name, replicas, services, slices, expected) in [
            ("well", 2, whole(), vec![ready()], None),
            (
                "well, and nothing is said",
                2,
                whole(),
                vec![slice("tulle-control", json!({}))],
                None,
            ),
            (
                "deleted",
                2,
                vec![service("other", 15012)],
                vec![ready()],
                Some("is missing"),
            ),
            (
                "another port",
                2,
                vec![service("tulle-control", 80)],
                vec![ready()],
                Some("has no port 15012"),
            ),
            (
                "no endpoints",
                2,
                whole(),
                vec![slice("other", json!({}))],
                Some("has no ready endpoint"),
            ),
            (
                "none ready",
                2,
                whole(),
                vec![slice("tulle-control", json!({ "ready": false }))],
                Some("has no ready endpoint"),
            ),
            ("nobody to lead to", 0, vec![], vec![], None),
        ] {
            let mut findings = Findings::default();
            let deployments = [
                deployment("tulle-control", replicas),
                deployment("tulle-injector", 2),
            ];
            passable(&deployments, &Ways { services, slices }, &mut findings);
            assert_eq!(
                findings.all.len(),
                usize::from(expected.is_some()),
                "{name}: {findings:?}"
            );
            for (found, words) in findings.all.iter().zip(expected) {
                assert_eq!(found.level, Level::Error, "{name}");
                assert!(found.state.contains(words), "{name}: {found:?}");
            }
        }
    }
}
