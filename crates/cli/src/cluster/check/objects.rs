//! What the control plane says of objects that it reads: those that cannot be used, and kinds that the API server does not show it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tulle_runtime::names::{CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT, labels};

use super::finding::{Findings, Level};
use super::some;

/// The objects that cannot be used.
pub(super) fn broken(answers: &[(String, Value)]) -> BTreeSet<String> {
    let problems = answers.iter().flat_map(|(_, it)| it["problems"].as_array());
    let objects = problems.flatten().filter_map(|it| it["object"].as_str());
    objects
        .filter(|it| !it.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

/// Whether every object can be used; if not, whether nothing is in force of it.
pub(super) fn look(
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
    not_followed(&unread, findings);
    findings.few(Level::Warning, overruled, "have one policy for each pod");
}

/// What the API server does not say. What it says of several kinds for one cause, as in an outage, is one finding.
fn not_followed(unread: &BTreeSet<(String, String)>, findings: &mut Findings) {
    let mut causes = BTreeMap::<_, BTreeSet<_>>::new();
    for (resource, state) in unread.iter().filter(|it| !it.0.contains(' ')) {
        causes.entry(cause(state)).or_default().insert(resource);
    }
    // What is wrong with a single object is about that alone.
    let is_shared = |(resource, state): &(String, String)| {
        let cause = cause(state);
        !resource.contains(' ') && !cause.is_empty() && causes[cause].len() > 1
    };
    let mut shared = BTreeMap::<_, BTreeMap<_, Vec<_>>>::new();
    for unread in unread {
        let (resource, state) = unread;
        if is_shared(unread) {
            let cause = cause(state);
            let effect = state.strip_suffix(cause).unwrap_or_default();
            let effects = shared.entry(cause).or_default();
            effects.entry(effect).or_default().push(resource.as_str());
        } else {
            findings.error(resource, state, unread_remedy(resource));
        }
    }
    for (cause, effects) in shared {
        let effects: Vec<_> = effects
            .into_iter()
            .map(|(effect, of)| {
                let effect = effect.trim_end_matches(": ");
                format!("{} ({} kinds) {effect}", kinds(&of), of.len())
            })
            .collect();
        findings.error(
            "API server",
            format!("{}: {cause}", effects.join("; ")),
            format!(
                "see that it answers in time: kubectl get --raw '/readyz?verbose'; and that the control plane reaches it: kubectl -n \
                 {CONTROL_NAMESPACE} logs -l {}={CONTROL_SERVICE_ACCOUNT}",
                labels::APP_NAME
            ),
        );
    }
}

/// Why, without what that means.
fn cause(state: &str) -> &str {
    state.split_once(": ").map_or("", |(_, cause)| cause)
}

/// A few kinds, without their groups.
fn kinds(resources: &[&str]) -> String {
    let kinds = resources.iter().map(|it| it.split('.').next());
    some(&kinds.flatten().collect::<Vec<_>>())
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
            look(
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
            look(&answers, &without_effect, &mut findings);
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
            look(&[("a".to_owned(), answer)], &BTreeMap::new(), &mut findings);
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
            look(&[("a".to_owned(), answer)], &BTreeMap::new(), &mut findings);
            let [found] = &findings.all[..] else {
                panic!("{findings:?}");
            };
            let remedy = found.remedy.as_deref().expect("a remedy");
            assert_eq!(remedy.contains("last good version"), promises, "{remedy}");
            assert_eq!((&*found.subject, found.level), (object, Level::Warning));
        }
    }

    #[test]
    fn one_outage_is_one_finding_whatever_kinds_it_hides() {
        let silent = "cannot be followed, and what is known stays in force: the API server said nothing for 10s";
        let never =
            "cannot be listed, and nothing of it is in force: the API server said nothing for 10s";
        let unread = |resource: &str, message: &str| json!({ "object": "", "field": "", "resource": resource, "message": message });
        let all = ["services", "pods", "httproutes.gateway.networking.k8s.io"];
        for (name, problems, expected) in [
            (
                "all kinds",
                all.map(|it| unread(it, silent)).to_vec(),
                &["API server"][..],
            ),
            (
                "one of them is not known at all",
                vec![
                    unread("pods", silent),
                    unread("services", never),
                    unread("nodes", silent),
                ],
                &["API server"],
            ),
            ("one kind", vec![unread("pods", silent)], &["pods"]),
            (
                "each for its own reason",
                vec![
                    unread("pods", "pods is forbidden"),
                    unread("services", "services is forbidden"),
                ],
                &["pods", "services"],
            ),
            (
                "an object beside them",
                vec![
                    unread("pods", silent),
                    unread("services", silent),
                    unread("ConfigSnapshot shop/1-2", silent),
                ],
                &["ConfigSnapshot shop/1-2", "API server"],
            ),
        ] {
            let answer = json!({ "synced": true, "problems": problems });
            let replicas = ["a", "b"].map(|pod| (pod.to_owned(), answer.clone()));
            let mut findings = Findings::default();
            look(&replicas, &BTreeMap::new(), &mut findings);
            let subjects: Vec<_> = findings.all.iter().map(|it| &*it.subject).collect();
            assert_eq!(subjects, expected, "{name}");
            for found in &findings.all {
                let remedy = found.remedy.as_deref().expect("a remedy");
                let shared = found.subject == "API server";
                assert_eq!(remedy.contains("/readyz"), shared, "{name}: {remedy}");
                assert_eq!(
                    remedy.contains("can-i"),
                    !shared && !found.subject.contains(' ')
                );
                if name == "all kinds" {
                    let said = format!("httproutes, pods, services (3 kinds) {silent}");
                    assert_eq!(found.state, said);
                }
                if name.ends_with("at all") {
                    assert!(
                        found
                            .state
                            .contains("; services (1 kinds) cannot be listed,"),
                        "{found:?}"
                    );
                }
            }
        }
    }
}
