//! Whether the parts of an installation work.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tulle_runtime::names::{CONTROL_NAMESPACE, labels};

use super::finding::Findings;
use super::webhook;
use crate::cluster::error::ClusterError;
use crate::cluster::{answer, ours};

/// What runs control planes and injectors.
pub(super) async fn deployments(client: &Client) -> Result<Vec<Deployment>, ClusterError> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let listed = answer("list the Deployments of the mesh", api.list(&ours())).await?;
    Ok(listed.items)
}

/// Whether control plane and injector run; says whether there is a control plane to ask.
pub(super) fn control_plane(
    deployments: Result<Vec<Deployment>, ClusterError>,
    findings: &mut Findings,
) -> bool {
    let deployments = match deployments {
        Ok(deployments) => deployments,
        Err(error) => {
            findings.unknown("installation", &error);
            return false;
        }
    };
    if deployments.is_empty() {
        let missing = ClusterError::NoControlPlane;
        findings.error("installation", missing.to_string(), missing.next_step());
        return false;
    }
    for deployment in &deployments {
        let name = deployment.name_any();
        let wanted = deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1);
        let ready = deployment
            .status
            .as_ref()
            .and_then(|status| status.ready_replicas);
        let ready = ready.unwrap_or_default();
        let state = format!("{ready} of {wanted} replicas are ready");
        let remedy = format!(
            "see why: kubectl -n {CONTROL_NAMESPACE} describe pods -l {}={name}; kubectl -n {CONTROL_NAMESPACE} logs deployment/{name}",
            labels::APP_NAME
        );
        match ready {
            0 => findings.error(name, state, remedy),
            ready if ready < wanted => findings.warning(name, state, remedy),
            _ => findings.ok(name, state),
        }
    }
    true
}

/// Whether the API server can call the webhooks, and none is called twice.
pub(super) async fn webhooks(client: &Client, findings: &mut Findings) {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let configurations = match answer("list the webhook configurations", api.list(&ours())).await {
        Ok(configurations) => configurations,
        Err(error) => return findings.unknown("webhook", &error),
    };
    if configurations.items.is_empty() {
        return findings.error(
            "webhook",
            "no MutatingWebhookConfiguration of the mesh",
            "install it: tulle install | kubectl apply --server-side -f -",
        );
    }
    let mut claims = BTreeMap::<String, Vec<String>>::new();
    for configuration in &configurations {
        let name = configuration.name_any();
        let webhooks = configuration.webhooks.iter().flatten();
        let mut trustless = BTreeSet::new();
        for webhook in webhooks {
            let bundle = webhook
                .client_config
                .ca_bundle
                .as_ref()
                .map(|bundle| &bundle.0[..]);
            if bundle.is_none_or(|pem| CertificateDer::pem_slice_iter(pem).next().is_none()) {
                trustless.insert(webhook.name.clone());
            }
            let selectors = (&webhook.namespace_selector, &webhook.object_selector);
            claims
                .entry(format!("{selectors:?}"))
                .or_default()
                .push(name.clone());
        }
        if trustless.is_empty() {
            webhook::look(client, configuration, findings).await;
        } else {
            findings.error(
                format!("webhook {name}"),
                "its caBundle is empty: pods that it is for cannot be created",
                "the control plane fills it in: see that it runs, and what its log says",
            );
        }
    }
    for twice in claims.values().filter(|names| names.len() > 1) {
        findings.error(
            "webhooks",
            format!("{} claim the same namespaces and pods", twice.join(" and ")),
            "give each control plane a revision of its own: tulle install --revision NAME",
        );
    }
}

/// The first few of many.
pub(in crate::cluster) fn some(names: &[&str]) -> String {
    const FEW: usize = 5;
    let mut text = names[..names.len().min(FEW)].join(", ");
    if names.len() > FEW {
        text += &format!(" and {} more", names.len() - FEW);
    }
    text
}
