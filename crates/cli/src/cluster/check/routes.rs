//! Routes of Gateway API: whether there can be any, and which of them the mesh does not follow as they are written.
//!
//! What it makes of a route is in the status that the control plane writes, an entry a parent. See
//! <https://gateway-api.sigs.k8s.io/reference/spec/#routeparentstatus>.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use serde_json::Value;

use super::finding::{Findings, Level};
use super::workloads::Scope;
use crate::cluster::{ClusterError, answer};

const GROUP: &str = "gateway.networking.k8s.io";
/// Whose entries are ours.
const CONTROLLER: &str = "tulle.dev/mesh";
/// What a condition says if all is well.
const GOOD: [(&str, &str); 3] = [
    ("Accepted", "True"),
    ("ResolvedRefs", "True"),
    ("PartiallyInvalid", "False"),
];

/// Whether routes can be written, and, after an installation, what became of them.
pub(super) async fn look(scope: &Scope<'_>, pre: bool, findings: &mut Findings) {
    let api: Api<CustomResourceDefinition> = Api::all(scope.client.clone());
    let what = "list the CustomResourceDefinitions";
    let kinds = match answer(what, api.list(&ListParams::default())).await {
        Ok(all) => all.iter().filter_map(route).collect::<Vec<_>>(),
        Err(error) => return findings.unknown("Gateway API", &error),
    };
    if kinds.is_empty() {
        return findings.ok(
            "Gateway API",
            "not installed; routes can be added at any time",
        );
    }
    let names: Vec<_> = kinds.iter().map(|it| it.kind.as_str()).collect();
    findings.ok("Gateway API", names.join(", "));
    if pre {
        return;
    }
    let mut not_followed = Vec::new();
    for kind in &kinds {
        match list(scope, kind).await {
            Ok(routes) => not_followed.extend(routes.iter().filter_map(|it| judge(&kind.kind, it))),
            Err(error) => findings.unknown(format!("{}s", kind.kind), &error),
        }
    }
    findings.few(
        Level::Warning,
        not_followed,
        "correct the route, or what it names; until then traffic goes as its status says",
    );
}

/// The kind of routes that is defined, as it is served.
fn route(definition: &CustomResourceDefinition) -> Option<ApiResource> {
    let spec = &definition.spec;
    let kind = &spec.names.kind;
    let mut served = spec.versions.iter().filter(|it| it.served);
    let first = served.clone().next()?;
    let version = &served.find(|it| it.storage).unwrap_or(first).name;
    (spec.group == GROUP && kind.ends_with("Route")).then(|| ApiResource {
        group: GROUP.to_owned(),
        version: version.clone(),
        api_version: format!("{GROUP}/{version}"),
        kind: kind.clone(),
        plural: spec.names.plural.clone(),
    })
}

async fn list(scope: &Scope<'_>, kind: &ApiResource) -> Result<Vec<DynamicObject>, ClusterError> {
    let api: Api<DynamicObject> = match scope.namespace {
        Some(name) => Api::namespaced_with(scope.client.clone(), name, kind),
        None => Api::all_with(scope.client.clone(), kind),
    };
    let what = format!("list the {}s", kind.kind);
    Ok(answer(&what, api.list(&ListParams::default())).await?.items)
}

/// A route that is not followed as it is written, and all that is said of it.
fn judge(kind: &str, route: &DynamicObject) -> Option<(String, String)> {
    let parents = route.data["status"]["parents"].as_array()?.iter();
    let ours = parents.filter(|it| it["controllerName"] == CONTROLLER);
    let conditions = ours.flat_map(|it| it["conditions"].as_array().into_iter().flatten());
    let mut said = Vec::new();
    for condition in conditions.filter_map(bad) {
        if !said.contains(&condition) {
            said.push(condition);
        }
    }
    let namespace = route.namespace().unwrap_or_default();
    let subject = format!("{kind} {namespace}/{}", route.name_any());
    (!said.is_empty()).then(|| (subject, said.join("; ")))
}

fn bad(condition: &Value) -> Option<String> {
    let text = |field: &str| condition[field].as_str().unwrap_or_default();
    let (of, status) = (text("type"), text("status"));
    let wrong = GOOD.iter().any(|good| good.0 == of && good.1 != status);
    wrong.then(|| {
        let (reason, message) = (text("reason"), text("message"));
        format!("{of} is {status} ({reason}): {message}")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(group: &str, kind: &str, versions: &[(&str, bool, bool)]) -> Option<String> {
        let versions = versions.iter().map(
            |(name, served, storage)| json!({ "name": name, "served": served, "storage": storage }),
        );
        let definition = json!({
            "metadata": { "name": "x" },
            "spec": {
                "group": group,
                "names": { "kind": kind, "plural": "xs" },
                "scope": "Namespaced",
                "versions": versions.collect::<Vec<_>>(),
            },
        });
        let definition = serde_json::from_value(definition).expect("a definition");
        route(&definition).map(|it| it.api_version)
    }

    #[test]
    fn routes_are_read_in_a_version_that_is_served() {
        for (group, kind, versions, expected) in [
            (
                GROUP,
                "HTTPRoute",
                &[("v1", true, true), ("v1beta1", true, false)][..],
                Some("v1"),
            ),
            (
                GROUP,
                "TLSRoute",
                &[("v1alpha2", true, false), ("v1", true, true)],
                Some("v1"),
            ),
            (
                GROUP,
                "TCPRoute",
                &[("v1alpha2", true, false), ("v1", false, true)],
                Some("v1alpha2"),
            ),
            (GROUP, "TCPRoute", &[("v1", false, true)], None),
            (GROUP, "Gateway", &[("v1", true, true)], None),
            ("example.org", "HTTPRoute", &[("v1", true, true)], None),
        ] {
            let expected = expected.map(|version| format!("{GROUP}/{version}"));
            assert_eq!(
                definition(group, kind, versions),
                expected,
                "{kind} {versions:?}"
            );
        }
    }

    #[test]
    fn a_route_that_is_not_followed_is_one_finding_in_the_words_of_its_status() {
        let condition = |of: &str, status: &str| json!({ "type": of, "status": status, "reason": "Why", "message": of.to_lowercase() });
        let told = |parents: Value| {
            let route = json!({
                "metadata": { "name": "r", "namespace": "shop" }, "status": { "parents": parents },
            });
            judge(
                "HTTPRoute",
                &serde_json::from_value(route).expect("a route"),
            )
        };
        let parent = |whose: &str, conditions: &[Value]| json!({ "controllerName": whose, "conditions": conditions });
        let well = [
            condition("Accepted", "True"),
            condition("ResolvedRefs", "True"),
        ];
        let ill = [
            condition("Accepted", "False"),
            condition("ResolvedRefs", "False"),
            condition("PartiallyInvalid", "True"),
        ];
        assert_eq!(told(json!([])), None);
        assert_eq!(told(json!([parent(CONTROLLER, &well)])), None);
        assert_eq!(told(json!([parent("example.org/other", &ill)])), None);
        let both = json!([parent(CONTROLLER, &ill), parent(CONTROLLER, &ill)]);
        let expected = (
            "HTTPRoute shop/r".to_owned(),
            "Accepted is False (Why): accepted; ResolvedRefs is False (Why): resolvedrefs; PartiallyInvalid is True (Why): partiallyinvalid"
                .to_owned(),
        );
        assert_eq!(told(both), Some(expected));
    }
}
