//! Whether a cluster can have the mesh.

use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, ListParams, PostParams};

use super::finding::Findings;
use crate::cluster::answer;
use crate::error::CliError;

/// The oldest minor version of Kubernetes 1 whose kubelets have native sidecars without being asked.
const OLDEST: u32 = 29;
/// Clocks may differ by as much; certificates begin a little in the past.
pub(super) const SKEW: u64 = 30;

/// What an installation writes.
const WRITTEN: [(&str, &str, Option<&str>); 9] = [
    ("", "namespaces", None),
    ("apiextensions.k8s.io", "customresourcedefinitions", None),
    ("rbac.authorization.k8s.io", "clusterroles", None),
    ("rbac.authorization.k8s.io", "clusterrolebindings", None),
    (
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        None,
    ),
    ("", "serviceaccounts", Some("tulle-system")),
    ("", "services", Some("tulle-system")),
    ("apps", "deployments", Some("tulle-system")),
    ("policy", "poddisruptionbudgets", Some("tulle-system")),
];

/// The API server's version, and whether it has our time. An error means that there is nothing more to look at.
pub(super) async fn version(client: &Client, findings: &mut Findings) -> Result<(), CliError> {
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

/// Whether whoever asks may write what an installation writes.
pub(super) async fn permissions(client: &Client, findings: &mut Findings) {
    let mut missing = Vec::new();
    for (group, resource, namespace) in WRITTEN {
        for verb in ["create", "patch"] {
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

async fn may(client: &Client, attributes: ResourceAttributes) -> Result<bool, CliError> {
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

/// Whether routes of Gateway API can be written.
pub(super) async fn gateway_api(client: &Client, findings: &mut Findings) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let what = "list the CustomResourceDefinitions";
    let found = match answer(what, api.list(&ListParams::default())).await {
        Ok(found) => found,
        Err(error) => return findings.unknown("Gateway API", &error),
    };
    let kinds: Vec<_> = found
        .iter()
        .filter(|it| it.spec.group == "gateway.networking.k8s.io")
        .map(|it| it.spec.names.kind.as_str())
        .filter(|kind| kind.ends_with("Route"))
        .collect();
    if kinds.is_empty() {
        findings.ok(
            "Gateway API",
            "not installed; routes can be added at any time",
        );
    } else {
        findings.ok("Gateway API", kinds.join(", "));
    }
}
