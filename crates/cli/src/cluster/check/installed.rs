//! Whether the parts of an installation work.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use tulle_runtime::names::{CONTROL_NAMESPACE, labels, ports};

use super::finding::Findings;
use super::webhook;
use crate::cluster::reach::Reach;
use crate::cluster::{ago, answer, control_pods, status};
use crate::error::CliError;

fn ours() -> ListParams {
    ListParams::default().labels(&format!("{}={}", labels::PART_OF, labels::PART_OF_TULLE))
}

/// What runs control planes and injectors.
pub(super) async fn deployments(client: &Client) -> Result<Vec<Deployment>, CliError> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let listed = answer("list the Deployments of the mesh", api.list(&ours())).await?;
    Ok(listed.items)
}

/// Whether control plane and injector run; says whether there is a control plane to ask.
pub(super) fn control_plane(
    deployments: Result<Vec<Deployment>, CliError>,
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
        let missing = CliError::NoControlPlane;
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

/// Whether roots are valid for long enough.
pub(super) async fn trust(client: &Client, findings: &mut Findings) {
    match ask_control(client, "/ca").await {
        Ok(answers) => {
            for (pod, told) in answers {
                root(&pod, &told, findings);
                signer(&pod, &told, jiff::Timestamp::now().as_second(), findings);
                refused(&told, findings);
            }
        }
        Err(error) => findings.unknown("roots", &error),
    }
}

/// Days before a root's end at which somebody should know.
const ROOT_SOON: i64 = 30;

fn root(pod: &str, told: &Value, findings: &mut Findings) {
    let bundle = told["trust_bundle"].as_str().unwrap_or_default();
    let mut soonest = None::<i64>;
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()).flatten() {
        if let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&certificate) {
            let ends = parsed.validity().not_after.timestamp();
            soonest = Some(soonest.map_or(ends, |known| known.min(ends)));
        }
    }
    let subject = format!("roots ({pod})");
    let Some(ends) = soonest else {
        return findings.error(
            subject,
            "no root in its trust bundle",
            "see the log of the control plane",
        );
    };
    let now = jiff::Timestamp::now().as_second();
    let days = (ends - now).div_euclid(86_400);
    let stage = match &told["stage"] {
        Value::String(stage) => stage.clone(),
        other => other
            .as_object()
            .and_then(|it| it.keys().next().cloned())
            .unwrap_or_default(),
    };
    let state = format!("the first ends in {days} days; rotation: {stage}");
    if days < 0 {
        findings.error(
            subject,
            state,
            "rotate the root: see the log of the control plane",
        );
    } else if days < ROOT_SOON {
        findings.warning(
            subject,
            state,
            "see that a new root is on its way: the stage is not `steady` then",
        );
    } else {
        findings.ok(subject, state);
    }
}

/// Whether what signs, which may be below a root, outlives what it signs.
fn signer(pod: &str, told: &Value, now: i64, findings: &mut Findings) {
    let (Some(ends), Some(ttl)) = (
        told["signer_ends"].as_i64(),
        told["leaf_ttl_seconds"].as_i64(),
    ) else {
        return;
    };
    let left = ends - now;
    let subject = format!("signer ({pod})");
    let remedy = "renew the Secret of --ca-issuer-secret, or rotate the root: see the log of the control plane";
    if left <= 0 {
        findings.error(
            subject,
            "has ended: no certificate is issued any more",
            remedy,
        );
    } else if left < 2 * ttl {
        let state = format!("ends in {}", ago(left.unsigned_abs()));
        findings.warning(subject, state, remedy);
    }
}

/// Where the elected replica cannot write the roots.
fn refused(told: &Value, findings: &mut Findings) {
    let places = told["bundle_refused"].as_array().into_iter().flatten();
    for place in places.filter_map(Value::as_str) {
        findings.error(
            "trust bundle",
            place,
            "make room in the namespace's quota, or except ConfigMap tulle-ca-root from its policies: a rotation waits for it, and then leaves it behind",
        );
    }
}

/// Whether every object can be used.
pub(super) async fn source(client: &Client, findings: &mut Findings) {
    match ask_control(client, "/debug/source").await {
        Ok(answers) => objects(&answers, findings),
        Err(error) => findings.unknown("objects", &error),
    }
}

fn objects(answers: &[(String, Value)], findings: &mut Findings) {
    let mut told = BTreeSet::new();
    let mut synced = true;
    for (pod, answer) in answers {
        if answer["synced"] != true {
            synced = false;
            findings.error(
                format!("objects ({pod})"),
                "it does not say that it has read the whole cluster, and serves nobody until it has",
                format!("see what it lacks: kubectl -n {CONTROL_NAMESPACE} logs {pod}"),
            );
        }
        let problems = answer["problems"].as_array().into_iter().flatten();
        told.extend(problems.map(problem));
    }
    if told.is_empty() && synced {
        findings.ok("objects", "all that concern the mesh can be used");
    }
    for (subject, state) in told {
        findings.warning(
            subject,
            state,
            "correct the object; until then its last good version counts",
        );
    }
}

fn problem(problem: &Value) -> (String, String) {
    let text = |field: &str| problem[field].as_str().unwrap_or_default();
    let (object, field, message) = (text("object"), text("field"), text("message"));
    let state = if field.is_empty() {
        message.to_owned()
    } else {
        format!("{field} {message}")
    };
    (object.to_owned(), state)
}

/// Whether proxies take what they are sent, and are of the version of this program.
pub(super) async fn proxies(client: &Client, findings: &mut Findings) {
    let proxies = match status::all(client).await {
        Ok(proxies) => proxies,
        Err(error) => return findings.unknown("proxies", &error),
    };
    let rejecting: Vec<_> = proxies
        .iter()
        .filter(|it| it.rejects())
        .map(|it| it.pod.as_str())
        .collect();
    if !rejecting.is_empty() {
        findings.error(
            "proxies",
            format!(
                "{} reject what they are sent: {}",
                rejecting.len(),
                some(&rejecting)
            ),
            "tulle status --output json says what and why",
        );
    }
    let own = env!("CARGO_PKG_VERSION");
    let others: Vec<_> = proxies
        .iter()
        .filter(|it| it.is_of_another_version(own))
        .map(|it| it.pod.as_str())
        .collect();
    if !others.is_empty() {
        findings.warning(
            "proxies",
            format!(
                "{} are not of version {own}: {}",
                others.len(),
                some(&others)
            ),
            "restart their workloads, and they get the new one",
        );
    }
    if rejecting.is_empty() && others.is_empty() {
        findings.ok("proxies", format!("{} are connected", proxies.len()));
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

async fn ask_control(client: &Client, path: &str) -> Result<Vec<(String, Value)>, CliError> {
    let mut answers = Vec::new();
    for pod in control_pods(client).await? {
        let name = pod.name_any();
        let reach = Reach {
            client,
            namespace: CONTROL_NAMESPACE,
            pod: &name,
            port: ports::CONTROL_ADMIN,
        };
        let told = reach.get(path).await?;
        answers.push((name, told));
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_source_that_is_not_read_is_found_beside_objects_that_cannot_be_used() {
        let problem = json!({ "object": "Service a/b", "field": "spec", "message": "bad" });
        let rows = [
            ("well", json!({ "synced": true, "problems": [] }), Level::Ok),
            (
                "an object",
                json!({ "synced": true, "problems": [problem] }),
                Level::Warning,
            ),
            (
                "not read",
                json!({ "synced": false, "problems": [] }),
                Level::Error,
            ),
            ("not said", json!({ "problems": [] }), Level::Error),
        ];
        for (name, answer, level) in rows {
            let mut findings = Findings::default();
            let well = json!({ "synced": true, "problems": [] });
            objects(
                &[("a".to_owned(), well), ("b".to_owned(), answer)],
                &mut findings,
            );
            assert_eq!(findings.worst(), level, "{name}");
            let ok = findings.all.iter().filter(|it| it.level == Level::Ok);
            assert_eq!(ok.count(), usize::from(level == Level::Ok), "{name}");
        }
    }

    #[test]
    fn a_signer_that_ends_soon_is_found() {
        let rows = [
            (7_200, None),
            (7_199, Some(Level::Warning)),
            (0, Some(Level::Error)),
        ];
        for (left, level) in rows {
            let mut findings = Findings::default();
            let told = json!({ "signer_ends": 10_000 + left, "leaf_ttl_seconds": 3_600 });
            signer("a", &told, 10_000, &mut findings);
            assert_eq!(findings.all.first().map(|it| it.level), level, "{left}");
        }
    }

    #[test]
    fn namespaces_that_have_not_got_the_roots_are_named() {
        let mut findings = Findings::default();
        refused(&json!({ "stage": "steady" }), &mut findings);
        assert!(findings.all.is_empty());
        let place = "ConfigMap full/tulle-ca-root: exceeded quota";
        refused(&json!({ "bundle_refused": [place] }), &mut findings);
        assert_eq!(
            (findings.worst(), &*findings.all[0].state),
            (Level::Error, place)
        );
    }
}
