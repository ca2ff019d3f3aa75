//! What the replicas of the control plane say of the mesh: roots, objects and proxies.
//!
//! Each is asked for itself. One that is silent is a finding, and what the others say is judged all the same.

use std::collections::BTreeMap;

use futures_util::future;
use k8s_openapi::api::core::v1::Pod;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use tulle_runtime::names::{CA_CONFIG_MAP, CONTROL_NAMESPACE};

use super::finding::Findings;
use super::workloads::Scope;
use super::{connected, objects, policies, some};
use crate::cluster::control::{self, Answers};
use crate::cluster::error::ClusterError;
use crate::cluster::{ago, status};

/// Whether roots last, every object can be used, and proxies, of which those of these pods should be there, take what they are sent.
pub(super) async fn look(scope: &Scope<'_>, pods: Vec<Pod>, findings: &mut Findings) {
    let client = scope.client;
    let replicas = match control::replicas(client).await {
        Ok(replicas) => replicas,
        Err(error) => return findings.unknown("control plane", &error),
    };
    let (trust, objects, proxies) = future::join3(
        control::ask(client, &replicas, "/ca"),
        control::ask(client, &replicas, "/debug/source"),
        control::ask(client, &replicas, status::PATH),
    )
    .await;
    let mut silent = BTreeMap::new();
    let trust = heard(trust, &mut silent);
    let objects = heard(objects, &mut silent);
    let all_answer = proxies.silent.is_empty();
    let proxies = heard(proxies, &mut silent);
    not_heard(&silent, findings);
    for (pod, told) in &trust {
        root(pod, told, findings);
        signer(pod, told, jiff::Timestamp::now().as_second(), findings);
        refused(told, findings);
    }
    let without_effect = policies::without_effect(client, objects::broken(&objects)).await;
    objects::look(&objects, &without_effect, findings);
    if !proxies.is_empty() {
        let proxies = status::collect(proxies);
        let asked = connected::Asked {
            scope,
            replicas: &replicas,
            pods,
            all_answer,
        };
        let proxies = connected::look(asked, proxies, findings).await;
        judge(&proxies, findings);
    }
}

/// What was heard; who was not is noted, once for all that it was asked.
fn heard<T>(answers: Answers<T>, silent: &mut BTreeMap<String, ClusterError>) -> Vec<(String, T)> {
    silent.extend(answers.silent);
    answers.heard
}

fn not_heard(silent: &BTreeMap<String, ClusterError>, findings: &mut Findings) {
    for (pod, error) in silent {
        findings.unknown(format!("control plane ({pod})"), error);
        // Who may not ask one may ask none.
        if let ClusterError::Forbidden { .. } = error {
            return;
        }
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
        findings.error("trust bundle", place, refused_remedy(place));
    }
}

/// What to do about a place, which begins with its kind.
fn refused_remedy(place: &str) -> String {
    let name = place.split([' ', ':']).nth(1).unwrap_or_default();
    if !place.starts_with("ConfigMap ") {
        return format!(
            "install again the revision that it is of, which brings the right to write it: tulle upgrade --yes; or, if nobody needs \
             it: kubectl delete mutatingwebhookconfiguration {name}; a rotation waits for it"
        );
    }
    let patience = match name.split_once('/') {
        Some((CONTROL_NAMESPACE, _)) => "",
        _ => ", for an hour at most, and then leaves it behind",
    };
    format!(
        "make room in the namespace's quota, or except ConfigMap {CA_CONFIG_MAP} from its policies: a rotation waits for it{patience}"
    )
}

/// Whether proxies take what they are sent, and are of the version of this program.
fn judge(proxies: &[status::Proxy], findings: &mut Findings) {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

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
        for (place, words, not) in [
            (
                "ConfigMap full/tulle-ca-root: exceeded quota",
                "quota, or except ConfigMap tulle-ca-root from its policies: a rotation waits for it, for an hour",
                "webhook",
            ),
            (
                "ConfigMap tulle-system/tulle-ca-root: exceeded quota",
                "make room in the namespace's quota",
                "an hour",
            ),
            (
                "MutatingWebhookConfiguration tulle-injector-old: forbidden",
                "kubectl delete mutatingwebhookconfiguration tulle-injector-old;",
                "quota",
            ),
        ] {
            let mut findings = Findings::default();
            refused(&json!({ "bundle_refused": [place] }), &mut findings);
            let found = &findings.all[0];
            assert_eq!((found.level, &*found.state), (Level::Error, place));
            let remedy = found.remedy.as_deref().expect("a remedy");
            assert!(remedy.contains(words) && !remedy.contains(not), "{remedy}");
        }
    }
}
