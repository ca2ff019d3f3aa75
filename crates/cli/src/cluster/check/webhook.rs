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
use kube::{Client, ResourceExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tulle_runtime::names::{CONTROL_NAMESPACE, DEFAULT_REVISION, INJECTOR, labels, ports};

use super::asked;
use super::finding::Findings;
use super::workloads::enforced;
use crate::cluster::error::ClusterError;
use crate::cluster::pods::runs;
use crate::cluster::reach::Reach;
use crate::cluster::{ago, answer, asks};

/// Where the pod would be: it is always there, and asks for nothing.
const ANYWHERE: &str = "default";

/// The injector of ours that a webhook calls, by its Service, if it calls one. Somebody may label all that he installs as ours.
pub(super) fn injector(webhook: &MutatingWebhook) -> Option<&str> {
    let service = webhook.client_config.service.as_ref()?;
    let rest = service.name.strip_prefix(INJECTOR)?;
    let ours = service.namespace == CONTROL_NAMESPACE && (rest.is_empty() || rest.starts_with('-'));
    ours.then_some(&*service.name)
}

/// The revision that such an injector is of.
pub(super) fn revision(injector: &str) -> &str {
    let rest = injector.strip_prefix(INJECTOR).unwrap_or_default();
    rest.strip_prefix('-').unwrap_or(DEFAULT_REVISION)
}

/// Looks at what one configuration leads to.
pub(super) async fn look(
    client: &Client,
    configuration: &MutatingWebhookConfiguration,
    findings: &mut Findings,
) {
    let name = configuration.name_any();
    let mut webhooks = configuration.webhooks.iter().flatten();
    let found = webhooks.find_map(|it| Some((it, injector(it)?)));
    let Some((webhook, injector)) = found else {
        return;
    };
    let asked = Asked {
        name: &name,
        injector,
        revision: revision(injector),
    };
    match place(client, asked.revision).await {
        Ok(namespace) => {
            let tried = try_out(client, &namespace, asked.revision).await;
            reached(&asked, &namespace, tried, findings);
        }
        Err(error) => findings.unknown(format!("webhook {name}"), &error),
    }
    if let Err(error) = certificates(client, &name, webhook, findings).await {
        findings.unknown(format!("certificate of {name}"), &error);
    }
}

/// A webhook configuration, and who is to answer.
struct Asked<'a> {
    name: &'a str,
    injector: &'a str,
    revision: &'a str,
}

/// A namespace in which a pod with a sidecar may be made, where nobody is asked about it but that injector.
async fn place(client: &Client, revision: &str) -> Result<String, ClusterError> {
    let api: Api<Namespace> = Api::all(client.clone());
    let all = answer("list the namespaces", api.list(&ListParams::default())).await?;
    let best = best(&all.items, revision);
    Ok(best.map_or_else(|| ANYWHERE.to_owned(), ResourceExt::name_any))
}

fn best<'a>(all: &'a [Namespace], revision: &str) -> Option<&'a Namespace> {
    let free = |it: &&Namespace| enforced(it).is_none() && it.metadata.deletion_timestamp.is_none();
    let others = |it: &&Namespace| {
        let theirs = asked::revision(it).unwrap_or(DEFAULT_REVISION);
        asks(it) && theirs != revision
    };
    let anywhere = |it: &&Namespace| it.name_any() == ANYWHERE;
    let mut own = all.iter().filter(|it| free(it) && !others(it));
    let known = own.clone().find(anywhere);
    known
        .or_else(|| own.find(|it| asks(it)))
        .or_else(|| all.iter().filter(free).find(anywhere))
}

/// The revision whose sidecar a pod comes back with, if it does with one.
async fn try_out(
    client: &Client,
    namespace: &str,
    revision: &str,
) -> Result<Option<String>, ClusterError> {
    let pod = json!({
        "metadata": { "generateName": "tulle-check-", "labels": { labels::REVISION: revision } },
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
    let injected = made.labels().contains_key(labels::PROXIED);
    let by = made.labels().get(labels::REVISION).cloned();
    Ok(by.filter(|_| injected))
}

fn reached(
    asked: &Asked<'_>,
    namespace: &str,
    tried: Result<Option<String>, ClusterError>,
    findings: &mut Findings,
) {
    let Asked {
        name,
        injector,
        revision,
    } = asked;
    let subject = format!("webhook {name}");
    let remedy = format!(
        "see that Service {CONTROL_NAMESPACE}/{injector} has endpoints, and that no NetworkPolicy or firewall keeps the API server \
         from port {} of its pods: kubectl -n {CONTROL_NAMESPACE} logs deployment/{injector}",
        ports::WEBHOOK
    );
    let host = format!("//{injector}.{CONTROL_NAMESPACE}.svc");
    match tried {
        Ok(Some(by)) if by == *revision => {
            findings.ok(subject, "the API server reaches it, and it injects");
        }
        Ok(Some(by)) => findings.error(
            subject,
            format!("a pod of namespace {namespace} that asks for revision {revision} gets the sidecar of {by}"),
            "see who else injects it: kubectl get mutatingwebhookconfigurations",
        ),
        Ok(None) => findings.error(
            subject,
            format!("a pod of namespace {namespace} that asks for the mesh gets no sidecar: the API server passes it over"),
            remedy,
        ),
        Err(ClusterError::Refused { reason, .. })
            if reason.contains("failed calling webhook") && reason.contains(&host) =>
        {
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
            Err(error @ ClusterError::NodeAway { .. }) => findings.unknown(subject, &error),
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

    fn not_called(injector: &str) -> String {
        format!(
            "Internal error occurred: failed calling webhook \"x\": failed to call webhook: Post \
             \"https://{injector}.tulle-system.svc:443/inject?timeout=10s\": connection refused"
        )
    }

    #[test]
    fn only_injectors_of_ours_are_ours_whatever_a_label_says() {
        for (namespace, name, expected) in [
            ("tulle-system", "tulle-injector", Some("default")),
            ("tulle-system", "tulle-injector-next", Some("next")),
            ("tulle-system", "tulle-injectors", None),
            ("tulle-system", "dashboards", None),
            ("elsewhere", "tulle-injector", None),
        ] {
            let webhook = serde_json::from_value(json!({
                "name": "x", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": { "service": { "namespace": namespace, "name": name } },
            }));
            let webhook: MutatingWebhook = webhook.expect("a webhook");
            assert_eq!(
                injector(&webhook).map(revision),
                expected,
                "{namespace}/{name}"
            );
        }
    }

    #[test]
    fn a_pod_is_tried_where_no_other_injector_is_asked_about_it() {
        let namespace = |name: &str, labels: serde_json::Value| -> Namespace {
            let metadata = json!({ "name": name, "labels": labels });
            serde_json::from_value(json!({ "metadata": metadata })).expect("a namespace")
        };
        let next = || json!({ "tulle.dev/rev": "next" });
        let ours = || json!({ "tulle.dev/inject": "enabled" });
        let baseline = || json!({ "pod-security.kubernetes.io/enforce": "baseline" });
        for (name, default, expected) in [
            ("says nothing", json!({}), Some("default")),
            ("ours", ours(), Some("default")),
            ("another's", next(), Some("shop")),
            ("is restricted", baseline(), Some("shop")),
        ] {
            let all = [
                namespace("aaa", json!({})),
                namespace("default", default),
                namespace("moves", next()),
                namespace("shop", ours()),
            ];
            let found = best(&all, "default").map(ResourceExt::name_any);
            assert_eq!(found.as_deref(), expected, "{name}");
        }
        let only = [namespace("default", next())];
        let found = best(&only, "default").map(ResourceExt::name_any);
        assert_eq!(found.as_deref(), Some("default"));
        assert!(best(&[namespace("default", baseline())], "default").is_none());
    }

    #[test]
    fn a_dry_run_says_whether_the_webhook_is_reached() {
        let rows = [
            (
                "injected",
                Ok(Some("next".to_owned())),
                Level::Ok,
                "reaches it",
            ),
            (
                "injected by another",
                Ok(Some("default".to_owned())),
                Level::Error,
                "asks for revision next gets the sidecar of default",
            ),
            ("passed over", Ok(None), Level::Error, "gets no sidecar"),
            (
                "not reached",
                Err(refused(&not_called("tulle-injector-next"))),
                Level::Error,
                "connection refused",
            ),
            (
                "another not reached",
                Err(refused(&not_called("tulle-injector"))),
                Level::Warning,
                "cannot try: Internal error",
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
            let asked = Asked {
                name: "tulle-injector-next",
                injector: "tulle-injector-next",
                revision: "next",
            };
            reached(&asked, "default", tried, &mut findings);
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
