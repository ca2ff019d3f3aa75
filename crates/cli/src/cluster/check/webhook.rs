//! Whether the API server reaches the injector, and whether the injector shows a certificate that it believes.
//!
//! Only the API server can say what it reaches: it is asked to make a pod that wants the mesh, as a dry run, which calls the
//! webhooks and keeps nothing. See
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#dry-run>.

use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhook, MutatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tulle_runtime::names::{CONTROL_NAMESPACE, INJECTOR, labels, ports};

use super::finding::Findings;
use super::workloads::enforced;
use crate::cluster::error::ClusterError;
use crate::cluster::pods::runs;
use crate::cluster::reach::Reach;
use crate::cluster::{ago, answer, asks};

/// Where the pod would be: it is always there, and asks for nothing.
const ANYWHERE: &str = "default";

/// Looks at what one configuration leads to.
pub(super) async fn look(
    client: &Client,
    configuration: &MutatingWebhookConfiguration,
    findings: &mut Findings,
) {
    let name = configuration.name_any();
    let revision = name
        .strip_prefix(INJECTOR)
        .and_then(|rest| rest.strip_prefix('-'));
    match place(client, revision).await {
        Ok(namespace) => {
            let tried = try_out(client, &namespace, revision).await;
            reached(&name, &namespace, tried, findings);
        }
        Err(error) => findings.unknown(format!("webhook {name}"), &error),
    }
    let mut webhooks = configuration.webhooks.iter().flatten();
    if let Some(webhook) = webhooks.next()
        && let Err(error) = certificates(client, &name, webhook, findings).await
    {
        findings.unknown(format!("certificate of {name}"), &error);
    }
}

/// A namespace in which a pod with a sidecar may be made.
async fn place(client: &Client, revision: Option<&str>) -> Result<String, ClusterError> {
    let api: Api<Namespace> = Api::all(client.clone());
    let all = answer("list the namespaces", api.list(&ListParams::default())).await?;
    let free = |it: &&Namespace| enforced(it).is_none() && it.metadata.deletion_timestamp.is_none();
    let named = all.iter().find(|it| it.name_any() == ANYWHERE).filter(free);
    let meshed = |it: &&Namespace| {
        let of = it.labels().get(labels::REVISION).map(String::as_str);
        asks(it) && of == revision
    };
    let found = named.or_else(|| all.iter().filter(free).find(meshed));
    Ok(found.map_or_else(|| ANYWHERE.to_owned(), |it| it.name_any()))
}

/// Whether a pod comes back with a sidecar.
async fn try_out(
    client: &Client,
    namespace: &str,
    revision: Option<&str>,
) -> Result<bool, ClusterError> {
    let asks = match revision {
        Some(revision) => (labels::REVISION, revision),
        None => (labels::INJECT, "enabled"),
    };
    let pod = json!({
        "metadata": { "generateName": "tulle-check-", "labels": { asks.0: asks.1 } },
        "spec": { "containers": [{ "name": "none", "image": "tulle.test/never-pulled" }] },
    });
    let pod: Pod = serde_json::from_value(pod).expect("a pod of ours");
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let how = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let what = format!(
        "try whether the API server reaches it, by a pod in namespace {namespace} that is not kept"
    );
    let made = answer(&what, api.create(&how, &pod)).await?;
    Ok(made.labels().contains_key(labels::PROXIED))
}

fn reached(
    name: &str,
    namespace: &str,
    tried: Result<bool, ClusterError>,
    findings: &mut Findings,
) {
    let subject = format!("webhook {name}");
    let remedy = format!(
        "see that Service {CONTROL_NAMESPACE}/{name} has endpoints, and that no NetworkPolicy or firewall keeps the API server \
         from port {} of its pods: kubectl -n {CONTROL_NAMESPACE} logs deployment/{name}",
        ports::WEBHOOK
    );
    match tried {
        Ok(true) => findings.ok(subject, "the API server reaches it, and it injects"),
        Ok(false) => findings.error(
            subject,
            format!("a pod of namespace {namespace} that asks for the mesh gets no sidecar: the API server passes it over"),
            remedy,
        ),
        Err(ClusterError::Refused { reason, .. }) if reason.contains("failed calling webhook") => {
            findings.error(subject, reason, remedy);
        }
        Err(error @ ClusterError::Refused { .. }) => findings.warning(
            subject,
            error.to_string(),
            format!("have pods be made in namespace {namespace}, or in another that is in the mesh"),
        ),
        Err(error) => findings.unknown(subject, &error),
    }
}

/// Whether each injector shows a certificate that the API server believes, and for how long it will.
async fn certificates(
    client: &Client,
    name: &str,
    webhook: &MutatingWebhook,
    findings: &mut Findings,
) -> Result<(), ClusterError> {
    let WebhookClientConfig {
        ca_bundle: Some(bundle),
        service: Some(service),
        ..
    } = &webhook.client_config
    else {
        return Ok(());
    };
    let roots: Vec<_> = CertificateDer::pem_slice_iter(&bundle.0)
        .flatten()
        .collect();
    let selector = format!("{}={}", labels::APP_NAME, service.name);
    let api: Api<Pod> = Api::namespaced(client.clone(), &service.namespace);
    let list = ListParams::default().labels(&selector);
    let pods = answer("list the pods of the injector", api.list(&list)).await?;
    let host = format!("{}.{}.svc", service.name, service.namespace);
    let stays = |pod: &&Pod| runs(pod) && pod.metadata.deletion_timestamp.is_none();
    for pod in pods.iter().filter(stays) {
        let pod = pod.name_any();
        let reach = Reach {
            client,
            namespace: &service.namespace,
            pod: &pod,
            port: ports::WEBHOOK,
        };
        let subject = format!("certificate of {name} ({pod})");
        match reach.certificate(&roots, &host).await {
            Ok(shown) => lasts(subject, &shown, now(), findings),
            Err(error) => findings.error(
                subject,
                format!(
                    "the API server cannot believe it: {}",
                    crate::output::chain(&error)
                ),
                format!(
                    "see why it has no other: kubectl -n {} logs {pod}",
                    service.namespace
                ),
            ),
        }
    }
    Ok(())
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(now.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// How long a certificate lasts. It is renewed at half of its life, so that one with less than a quarter left was not.
fn lasts(subject: String, shown: &CertificateDer<'_>, now: i64, findings: &mut Findings) {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(shown) else {
        return findings.error(
            subject,
            "is not a certificate",
            "see the log of the injector",
        );
    };
    let validity = parsed.validity();
    let (from, to) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let left = u64::try_from(to - now).unwrap_or_default();
    let date = validity.not_after;
    let state = format!(
        "verifies against the caBundle; ends in {} ({date})",
        ago(left)
    );
    if to - now < (to - from) / 4 {
        findings.warning(
            subject,
            state,
            "it should have been renewed by now: see whether the injector reaches the control plane, by its log",
        );
    } else {
        findings.ok(subject, state);
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn refused(message: &str) -> ClusterError {
        ClusterError::Refused {
            what: "try".to_owned(),
            reason: message.to_owned(),
        }
    }

    #[test]
    fn a_dry_run_says_whether_the_webhook_is_reached() {
        let rows = [
            ("injected", Ok(true), Level::Ok, "reaches it"),
            ("passed over", Ok(false), Level::Error, "gets no sidecar"),
            (
                "not reached",
                Err(refused(
                    "Internal error occurred: failed calling webhook \"x\": connection refused",
                )),
                Level::Error,
                "connection refused",
            ),
            (
                "not tried",
                Err(refused("pods is forbidden: exceeded quota")),
                Level::Warning,
                "cannot try: pods is forbidden",
            ),
            (
                "may not try",
                Err(ClusterError::Forbidden {
                    what: "try".to_owned(),
                    permission: crate::cluster::refusal::Permission::to_forward("default"),
                }),
                Level::Unknown,
                "you have no right to",
            ),
        ];
        for (name, tried, level, words) in rows {
            let mut findings = Findings::default();
            reached("tulle-injector", "default", tried, &mut findings);
            let found = &findings.all[0];
            assert_eq!(found.level, level, "{name}");
            assert!(found.state.contains(words), "{name}: {}", found.state);
            assert_eq!(found.remedy.is_none(), level == Level::Ok, "{name}");
        }
    }

    #[test]
    fn a_certificate_that_was_not_renewed_in_time_is_a_warning() {
        let domain = "cluster.local".parse().expect("a trust domain");
        let root = tulle_identity::Root::generate(&domain, std::time::Duration::from_secs(4_000));
        let root = root.expect("a root");
        let (_, parsed) = x509_parser::parse_x509_certificate(root.cert()).expect("its own");
        let ends = parsed.validity().not_after.timestamp();
        for (left, level) in [
            (3_000, Level::Ok),
            (60, Level::Warning),
            (-5, Level::Warning),
        ] {
            let mut findings = Findings::default();
            lasts("x".to_owned(), root.cert(), ends - left, &mut findings);
            assert_eq!(findings.all[0].level, level, "{left}");
        }
    }
}
