//! What the replicas of the control plane say of the mesh: roots, objects and proxies.
//!
//! Each is asked for itself. One that is silent is a finding, and what the others say is judged all the same.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use tulle_runtime::names::{CA_CONFIG_MAP, CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT};

use super::finding::{Findings, Level};
use super::workloads::Scope;
use super::{connected, policies, some};
use crate::cluster::control::{self, Answers};
use crate::cluster::error::ClusterError;
use crate::cluster::{ago, status};

/// Whether roots last, every object can be used, and proxies take what they are sent.
pub(super) async fn look(scope: &Scope<'_>, findings: &mut Findings) {
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
    let without_effect = policies::without_effect(client, broken(&objects)).await;
    source(&objects, &without_effect, findings);
    if !proxies.is_empty() {
        let proxies = status::collect(proxies);
        let asked = connected::Asked {
            scope,
            replicas: &replicas,
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

/// The objects that cannot be used.
fn broken(answers: &[(String, Value)]) -> BTreeSet<String> {
    let problems = answers.iter().flat_map(|(_, it)| it["problems"].as_array());
    let objects = problems.flatten().filter_map(|it| it["object"].as_str());
    objects
        .filter(|it| !it.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

/// Whether every object can be used; if not, whether nothing is in force of it.
fn source(
    answers: &[(String, Value)],
    without_effect: &BTreeMap<String, &str>,
    findings: &mut Findings,
) {
    if answers.is_empty() {
        return;
    }
    let (mut told, mut unread, mut overruled) =
        <(BTreeSet<_>, BTreeSet<_>, BTreeSet<_>)>::default();
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
        let (of_resources, of_objects): (Vec<_>, Vec<_>) =
            problems.partition(|it| it["resource"].is_string());
        told.extend(of_objects.into_iter().map(problem));
        unread.extend(of_resources.into_iter().map(problem));
        let policies = answer["overruled"].as_array().into_iter().flatten();
        overruled.extend(policies.map(problem));
    }
    if told.is_empty() && unread.is_empty() && overruled.is_empty() && synced {
        findings.ok("objects", "all that concern the mesh can be used");
    }
    // What is said of a pod is about what somebody did to it while it runs, and says what to do.
    let (of_pods, told): (BTreeSet<_>, BTreeSet<_>) = told
        .into_iter()
        .partition(|(object, _)| object.starts_with("Pod "));
    findings.few(
        Level::Warning,
        of_pods,
        "do what the message says; nothing else waits for it",
    );
    let (open, told): (BTreeSet<_>, BTreeSet<_>) = told
        .into_iter()
        .partition(|(object, _)| without_effect.contains_key(object));
    let open = open.into_iter().map(|(object, state)| {
        let effect = without_effect.get(&object).copied().unwrap_or_default();
        (object, format!("{state}; {effect}"))
    });
    findings.few(
        Level::Error,
        open,
        "correct the policy: it has had no good version, and its pods are as if it were not there",
    );
    findings.few(
        Level::Warning,
        told,
        "correct the object; until then its last good version counts, if it has had one: its status, or the log of the control plane, says",
    );
    for (resource, state) in unread {
        let remedy = unread_remedy(&resource);
        findings.error(resource, state, remedy);
    }
    findings.few(Level::Warning, overruled, "have one policy for each pod");
}

fn problem(problem: &Value) -> (String, String) {
    let text = |field: &str| problem[field].as_str().unwrap_or_default();
    let (object, field, message) = (text("object"), text("field"), text("message"));
    let state = if field.is_empty() {
        message.to_owned()
    } else {
        format!("{field} {message}")
    };
    // Where the message begins with the object, it is said already.
    let state = match state.strip_prefix(&format!("{object}: ")) {
        Some(rest) => rest.to_owned(),
        None => state,
    };
    let named = [object, text("resource"), text("file")];
    let subject = named.into_iter().find(|it| !it.is_empty());
    (subject.unwrap_or("objects").to_owned(), state)
}

/// What to do where all objects of a resource cannot be followed, or a definition that is named as `Kind/name`; or where a
/// single object was read, and is not as it has to be, which is named as `Kind name`.
fn unread_remedy(resource: &str) -> String {
    match resource.split_once(' ') {
        Some(("CustomResourceDefinition", name)) if name.ends_with(OURS) => {
            return "apply the definitions of this release, which Helm never does: tulle install | kubectl apply --server-side -f - \
                    (those of the chart: kubectl apply --server-side -f deploy/charts/tulle/crds)"
                .to_owned();
        }
        Some(("CustomResourceDefinition", name)) => {
            return format!(
                "install a release of it that serves what the message names: kubectl get customresourcedefinition {name} -o \
                 jsonpath='{{.spec.versions[*].name}}'"
            );
        }
        Some((kind, name)) => {
            let place = match name.split_once('/') {
                Some((namespace, name)) => format!("{} {name} -n {namespace}", kind.to_lowercase()),
                None => format!("{} {name}", kind.to_lowercase()),
            };
            return format!("see it, and do what the message says: kubectl get {place} -o yaml");
        }
        None => {}
    }
    let (kind, all) = match resource.split_once('/') {
        Some((kind, _)) => (kind, ""),
        None => (resource, " -A"),
    };
    format!(
        "see what the API server says of it: kubectl get {resource}{all}; and whether the control plane may see it: kubectl auth \
         can-i list {kind} --as=system:serviceaccount:{CONTROL_NAMESPACE}:{CONTROL_SERVICE_ACCOUNT}"
    )
}

/// How the names of definitions of our own kinds end.
const OURS: &str = ".tulle.dev";

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
                "overruled",
                json!({ "synced": true, "problems": [], "overruled": [
                    { "object": "PeerAuthentication a/b", "by": "c", "pods": 1, "message": "older" },
                ] }),
                Level::Warning,
            ),
            (
                "not read",
                json!({ "synced": false, "problems": [] }),
                Level::Error,
            ),
            ("not said", json!({ "problems": [] }), Level::Error),
            (
                "a resource",
                json!({ "synced": true, "problems": [
                    { "object": "", "field": "", "resource": "tlsroutes.x", "message": "cannot be followed" },
                ] }),
                Level::Error,
            ),
        ];
        for (name, answer, level) in rows {
            let mut findings = Findings::default();
            let well = json!({ "synced": true, "problems": [] });
            source(
                &[("a".to_owned(), well), ("b".to_owned(), answer)],
                &BTreeMap::new(),
                &mut findings,
            );
            assert_eq!(findings.worst(), level, "{name}");
            let ok = findings.all.iter().filter(|it| it.level == Level::Ok);
            assert_eq!(ok.count(), usize::from(level == Level::Ok), "{name}");
        }
    }

    #[test]
    fn a_policy_of_which_nothing_is_in_force_is_an_error_and_one_with_a_good_version_none() {
        let policy = "PeerAuthentication shop/strict";
        let problem = json!({ "object": policy, "field": "spec.mode", "message": "bad" });
        let answers = [(
            "a".to_owned(),
            json!({ "synced": true, "problems": [problem] }),
        )];
        assert_eq!(broken(&answers), [policy.to_owned()].into());
        for (without_effect, level, state, promises) in [
            (
                Some(policy),
                Level::Error,
                "spec.mode bad; nothing of it is in force",
                false,
            ),
            (None, Level::Warning, "spec.mode bad", true),
            (
                Some("PeerAuthentication shop/other"),
                Level::Warning,
                "spec.mode bad",
                true,
            ),
        ] {
            let without_effect = without_effect.into_iter();
            let nothing = "nothing of it is in force";
            let without_effect = without_effect.map(|it| (it.to_owned(), nothing)).collect();
            let mut findings = Findings::default();
            source(&answers, &without_effect, &mut findings);
            let [found] = &findings.all[..] else {
                panic!("{findings:?}");
            };
            let told = (found.level, &*found.subject, &*found.state);
            assert_eq!(told, (level, policy, state));
            let remedy = found.remedy.as_deref().expect("a remedy");
            assert_eq!(remedy.contains("last good version"), promises, "{remedy}");
        }
    }

    #[test]
    fn a_resource_that_cannot_be_followed_is_named_with_who_knows_why() {
        for (resource, command, right) in [
            (
                "tlsroutes.gateway.networking.k8s.io",
                "kubectl get tlsroutes.gateway.networking.k8s.io -A;",
                "can-i list tlsroutes.gateway.networking.k8s.io --as=system:serviceaccount:tulle-system:tulle-control",
            ),
            (
                "CustomResourceDefinition/x.y",
                "kubectl get CustomResourceDefinition/x.y;",
                "can-i list CustomResourceDefinition --as=",
            ),
        ] {
            let problem =
                json!({ "object": "", "field": "", "resource": resource, "message": "m" });
            let answer = json!({ "synced": true, "problems": [problem] });
            let mut findings = Findings::default();
            source(&[("a".to_owned(), answer)], &BTreeMap::new(), &mut findings);
            let [found] = &findings.all[..] else {
                panic!("{findings:?}");
            };
            assert_eq!((&*found.subject, &*found.state), (resource, "m"));
            let remedy = found.remedy.as_deref().expect("a remedy");
            assert!(
                remedy.contains(command) && remedy.contains(right),
                "{remedy}"
            );
        }
    }

    #[test]
    fn a_single_object_that_is_not_as_it_has_to_be_is_named_as_kubectl_takes_it() {
        for (resource, words, not) in [
            (
                "ConfigSnapshot shop/1-2",
                "kubectl get configsnapshot 1-2 -n shop -o yaml",
                "can-i",
            ),
            (
                "CustomResourceDefinition configsnapshots.tulle.dev",
                "tulle install | kubectl apply --server-side",
                "can-i",
            ),
            (
                "CustomResourceDefinition tlsroutes.gateway.networking.k8s.io",
                "kubectl get customresourcedefinition tlsroutes.gateway.networking.k8s.io -o jsonpath='{.spec.versions[*].name}'",
                "tulle install",
            ),
        ] {
            let remedy = unread_remedy(resource);
            assert!(remedy.contains(words) && !remedy.contains(not), "{remedy}");
        }
    }

    #[test]
    fn what_is_said_of_a_running_pod_promises_no_former_version() {
        for (object, promises) in [("Pod shop/web", false), ("HTTPRoute shop/web", true)] {
            let problem = json!({ "object": object, "field": "", "message": "m" });
            let answer = json!({ "synced": true, "problems": [problem] });
            let mut findings = Findings::default();
            source(&[("a".to_owned(), answer)], &BTreeMap::new(), &mut findings);
            let [found] = &findings.all[..] else {
                panic!("{findings:?}");
            };
            let remedy = found.remedy.as_deref().expect("a remedy");
            assert_eq!(remedy.contains("last good version"), promises, "{remedy}");
            assert_eq!((&*found.subject, found.level), (object, Level::Warning));
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
