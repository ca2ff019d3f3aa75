//! Whether a cluster can have the mesh.

use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt as _};
use tulle_runtime::names::{CONTROL_NAMESPACE, SYSTEM_NAMESPACES};

use super::finding::Findings;
use super::some;
use super::workloads::{ENFORCED, enforced};
use crate::cluster::error::ClusterError;
use crate::cluster::{answer, asks};

/// The oldest minor version of Kubernetes 1 whose kubelets have native sidecars without being asked.
pub(super) const OLDEST: u32 = 29;
/// Clocks may differ by as much; certificates begin a little in the past.
pub(super) const SKEW: u64 = 30;

/// Where both parts are.
const OWN: Option<&str> = Some(CONTROL_NAMESPACE);

/// What an installation writes.
const WRITTEN: [(&str, &str, Option<&str>); 13] = [
    ("", "namespaces", None),
    ("apiextensions.k8s.io", "customresourcedefinitions", None),
    (RBAC, "clusterroles", None),
    (RBAC, "clusterrolebindings", None),
    (
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        None,
    ),
    (RBAC, "roles", OWN),
    (RBAC, "rolebindings", OWN),
    ("", "serviceaccounts", OWN),
    ("", "services", OWN),
    ("apps", "deployments", OWN),
    ("policy", "poddisruptionbudgets", OWN),
    ("autoscaling", "horizontalpodautoscalers", OWN),
    ("networking.k8s.io", "networkpolicies", OWN),
];
const RBAC: &str = "rbac.authorization.k8s.io";

/// The API server's version, and whether it has our time. An error means that there is nothing more to look at.
pub(super) async fn version(client: &Client, findings: &mut Findings) -> Result<(), ClusterError> {
    let version = answer(
        "ask the API server for its version",
        client.apiserver_version(),
    )
    .await?;
    let minor: String = version
        .minor
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let minor: u32 = minor.parse().unwrap_or_default();
    if version.major == "1" && minor < OLDEST {
        findings.error(
            "Kubernetes version",
            format!("{}: older than 1.{OLDEST}", version.git_version),
            format!("upgrade the cluster to 1.{OLDEST} or newer"),
        );
    } else {
        findings.ok("Kubernetes version", version.git_version);
    }
    match answer("ask the API server for the time", time(client)).await {
        Ok(Some(theirs)) => {
            let ours = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs();
            match ours.abs_diff(theirs) {
                0..=SKEW => findings.ok("clocks", "this machine's and the API server's agree"),
                skew => findings.warning(
                    "clocks",
                    format!("this machine's and the API server's differ by {skew} s"),
                    "have both follow NTP: certificates are valid by the clock",
                ),
            }
        }
        Ok(None) => {}
        Err(error) => findings.unknown("clocks", &error),
    }
    Ok(())
}

/// What time the API server says that it is, in seconds since 1970.
pub(super) async fn time(client: &Client) -> kube::Result<Option<u64>> {
    let request = http::Request::get("/version").body(kube::client::Body::empty());
    let request = request.expect("a path of ours");
    let response = client.send(request).await?;
    let date = response.headers().get(http::header::DATE);
    let date = date.and_then(|date| date.to_str().ok());
    let parsed = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    Ok(parsed.and_then(|date| u64::try_from(date.timestamp().as_second()).ok()))
}

/// What it takes to write an installation: each of its kinds, with what may be done with it.
fn asked() -> impl Iterator<
    Item = (
        (&'static str, &'static str, Option<&'static str>),
        &'static str,
    ),
> {
    let of = |verbs: [&'static str; 2]| move |kind| verbs.map(|verb| (kind, verb));
    let roles = WRITTEN.into_iter().filter(|it| it.1.ends_with("roles"));
    let written = WRITTEN.into_iter().flat_map(of(["create", "patch"]));
    // Rights are given that whoever installs may not have: those of the control plane grow with each revision.
    written.chain(roles.flat_map(of(["bind", "escalate"])))
}

/// Whether whoever asks may write what an installation writes.
pub(super) async fn permissions(client: &Client, findings: &mut Findings) {
    let mut missing = Vec::new();
    for ((group, resource, namespace), verb) in asked() {
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            namespace: namespace.map(ToOwned::to_owned),
            verb: Some(verb.to_owned()),
            ..ResourceAttributes::default()
        };
        match may(client, attributes).await {
            Ok(true) => {}
            Ok(false) => missing.push(format!("{verb} {resource}")),
            Err(error) => return findings.unknown("permissions", &error),
        }
    }
    if missing.is_empty() {
        findings.ok(
            "permissions",
            "everything that an installation writes may be written",
        );
    } else {
        findings.error(
            "permissions",
            format!("missing: {}", missing.join(", ")),
            "install as somebody who has the ClusterRole cluster-admin",
        );
    }
}

async fn may(client: &Client, attributes: ResourceAttributes) -> Result<bool, ClusterError> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let how = PostParams::default();
    let reviewed = answer("ask what may be written", api.create(&how, &review)).await?;
    Ok(reviewed.status.is_some_and(|status| status.allowed))
}

/// Namespaces that cannot be in the mesh as they are. Those that ask for it are findings of their own.
pub(super) async fn restricted(client: &Client, findings: &mut Findings) {
    let api: Api<Namespace> = Api::all(client.clone());
    match answer("list the namespaces", api.list(&ListParams::default())).await {
        Ok(namespaces) => names_restricted(&namespaces.items, findings),
        Err(error) => findings.unknown("pod security", &error),
    }
}

fn names_restricted(namespaces: &[Namespace], findings: &mut Findings) {
    let concerned = |namespace: &&Namespace| {
        let system = SYSTEM_NAMESPACES.contains(&namespace.name_any().as_str());
        enforced(namespace).is_some() && !system && !asks(namespace)
    };
    let names: Vec<_> = namespaces
        .iter()
        .filter(concerned)
        .map(|it| it.name_any())
        .collect();
    if names.is_empty() {
        return findings.ok(
            "pod security",
            "no namespace enforces a level that pods with a sidecar do not meet",
        );
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    findings.warning(
        "pod security",
        format!(
            "{} namespaces enforce the level baseline or restricted, which no pod with a sidecar meets: {}",
            names.len(),
            some(&names)
        ),
        format!("before one of them is to be in the mesh: kubectl label namespace NAME --overwrite {ENFORCED}=privileged"),
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::check::finding::Level;

    #[test]
    fn the_right_to_write_each_kind_of_an_installation_is_asked_for() {
        for (group, kind) in crate::install::kinds() {
            let kind = kind.to_lowercase();
            let plural = match kind.strip_suffix('y') {
                Some(stem) => format!("{stem}ies"),
                None => format!("{kind}s"),
            };
            let asked = WRITTEN.iter().any(|it| (it.0, it.1) == (&group, &plural));
            assert!(asked, "{plural} of {group:?}");
        }
    }

    #[test]
    fn the_right_to_give_rights_away_is_asked_for_each_kind_of_role() {
        for kind in ["roles", "clusterroles"] {
            let verbs = asked().filter(|(it, _)| it.1 == kind).map(|(_, verb)| verb);
            let verbs: Vec<_> = verbs.collect();
            assert_eq!(verbs, ["create", "patch", "bind", "escalate"], "{kind}");
        }
        assert!(!asked().any(|(it, verb)| it.1 == "clusterrolebindings" && verb == "bind"));
    }

    #[test]
    fn namespaces_that_no_sidecar_may_be_in_are_named() {
        let namespace = |name: &str, labels: serde_json::Value| {
            let namespace = json!({ "metadata": { "name": name, "labels": labels } });
            serde_json::from_value(namespace).expect("a namespace")
        };
        let (restricted, baseline) = (
            json!({ ENFORCED: "restricted" }),
            json!({ ENFORCED: "baseline" }),
        );
        let found = |namespaces: &[Namespace]| {
            let mut findings = Findings::default();
            names_restricted(namespaces, &mut findings);
            findings.all.remove(0)
        };
        let open = [
            namespace("open", json!({ ENFORCED: "privileged" })),
            namespace("bare", json!({})),
            namespace("kube-system", baseline.clone()),
            namespace("tulle-system", restricted.clone()),
            namespace(
                "asks",
                json!({ ENFORCED: "baseline", "tulle.dev/inject": "enabled" }),
            ),
        ];
        assert_eq!(found(&open).level, Level::Ok);
        let closed = [
            open.to_vec(),
            vec![namespace("a", restricted), namespace("b", baseline)],
        ];
        let finding = found(&closed.concat());
        assert_eq!(finding.level, Level::Warning);
        assert!(
            finding.state.starts_with("2 namespaces") && finding.state.ends_with(": a, b"),
            "{finding:?}"
        );
    }
}
