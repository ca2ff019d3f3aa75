//! What routes are told: verdicts, lists, and a writer over a hand-written API server.

mod policies;
mod verdicts;
mod writer;

use serde_json::{Value, json};

use super::parents::parents;
use super::verdict::{Condition, Verdict};
use super::*;
use crate::snapshot::InForce;
use crate::source;
use crate::store::{Event, MeshSettings, ObjectKey, StoreWriter};

const THEN: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-02-02T00:00:00Z";

fn service(name: &str, spec: &Value) -> Value {
    let meta = json!({ "name": name, "namespace": "shop" });
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec })
}

/// A Service whose ports declare something, nothing, and that they are opaque.
fn web() -> Value {
    service(
        "web",
        &json!({ "clusterIP": "10.0.0.1", "ports": [
            { "name": "http", "port": 80 },
            { "name": "any", "port": 81 },
            { "name": "tcp-db", "port": 82 },
        ] }),
    )
}

/// A route in namespace `shop`, made so many seconds after another one.
fn route(kind: &str, name: &str, age: u32, parents: &Value, rules: &Value) -> Value {
    let created = format!("2026-01-01T00:00:{age:02}Z");
    json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": {
            "name": name, "namespace": "shop", "generation": 3, "resourceVersion": "7",
            "creationTimestamp": created,
        },
        "spec": { "parentRefs": parents, "rules": rules },
    })
}

/// A reference to a parent, with what else it says.
fn parent(name: &str, more: &Value) -> Value {
    let mut it = json!({ "group": "", "kind": "Service", "name": name });
    if let (Some(it), Some(more)) = (it.as_object_mut(), more.as_object()) {
        it.extend(more.clone());
    }
    it
}

/// To port 80 of a Service.
fn to(name: &str) -> Value {
    json!([{ "backendRefs": [{ "name": name, "port": 80 }] }])
}

/// Reads objects as the source does.
fn take(writer: &mut StoreWriter, claims: &Claims, objects: &[Value]) {
    let (mut events, mut claimed) = (Vec::new(), Vec::new());
    for object in objects {
        let text = object.to_string();
        let (event, problems) = source::read(&text, true);
        events.extend(event);
        let mut told = Kind::ALL.into_iter().filter(|kind| kind.is_told());
        if let Some(kind) = told.find(|it| object["kind"] == it.as_str()) {
            let version = if kind.is_route() { "v1" } else { api::VERSION };
            let claim = Claim::of(kind, version, &text);
            let claim = claim.map(|claim| match problems.first() {
                Some(problem) => claim.but(&problem.field, &problem.message, InForce::Stored(2)),
                None => claim,
            });
            let of = |name: &str| object["metadata"][name].as_str().expect("text").to_owned();
            let key = ObjectKey::new(of("namespace"), of("name"));
            claimed.push((ObjectRef { kind, key }, claim));
        }
    }
    writer.apply(events);
    claims.apply(claimed);
}

fn store() -> (Store, StoreWriter, Claims) {
    let (store, mut writer) = Store::new(MeshSettings::default());
    writer.set_synced();
    (store, writer, Claims::default())
}

fn verdict(name: &str, holds: bool, reason: &'static str) -> Verdict {
    let claim = claim_of(&[parent(name, &json!({}))], &[]);
    let condition = |name, holds, reason| Condition {
        name,
        holds,
        reason,
        message: String::new(),
    };
    Verdict {
        parent: claim.parents[0].clone(),
        conditions: [
            condition("Accepted", holds, reason),
            condition("ResolvedRefs", true, "ResolvedRefs"),
        ],
    }
}

fn claim_of(parents: &[Value], told: &[Value]) -> Claim {
    let mut route = route("HTTPRoute", "r", 0, &json!(parents), &json!([]));
    route["status"] = json!({ "parents": told });
    Claim::read("v1", &route.to_string()).expect("it is the mesh's business")
}

fn entry(controller: &str, parent: &Value, accepted: &str, reason: &str, generation: i64) -> Value {
    let condition = |name: &str, status: &str, reason: &str| {
        json!({
            "type": name, "status": status, "reason": reason, "message": "",
            "observedGeneration": generation, "lastTransitionTime": THEN,
        })
    };
    json!({
        "parentRef": parent,
        "controllerName": controller,
        "conditions": [
            condition("Accepted", accepted, reason),
            condition("ResolvedRefs", "True", "ResolvedRefs"),
        ],
    })
}

#[test]
fn a_status_that_says_it_already_is_left_alone() {
    let web = parent("web", &json!({}));
    let told = [entry(CONTROLLER, &web, "True", "Accepted", 3)];
    let claim = claim_of(&[web], &told);
    let verdicts = [verdict("web", true, "Accepted")];
    assert_eq!(parents(&claim, &verdicts, NOW), None);
}

#[test]
fn times_change_with_statuses_only() {
    let web = parent("web", &json!({}));
    // Told of an earlier generation.
    let told = [entry(CONTROLLER, &web, "True", "Accepted", 2)];
    let claim = claim_of(&[web], &told);
    for (holds, reason, since) in [(true, "Accepted", THEN), (false, "NoMatchingParent", NOW)] {
        let list = parents(&claim, &[verdict("web", holds, reason)], NOW).expect("news");
        let [accepted, resolved] = [0, 1].map(|index| list[0]["conditions"][index].clone());
        assert_eq!(accepted["reason"], reason);
        assert_eq!(accepted["lastTransitionTime"], since);
        assert_eq!(accepted["observedGeneration"], 3);
        assert_eq!(resolved["lastTransitionTime"], THEN);
    }
}

#[test]
fn entries_of_others_stay_as_they_are_and_ours_of_former_parents_go() {
    let [web, api] = ["web", "api"].map(|name| parent(name, &json!({})));
    let gateway = json!({ "group": GROUP, "kind": "Gateway", "name": "web" });
    let foreign = entry("example.com/gateway", &gateway, "False", "Anything", 1);
    // Another controller's opinion of the very same parent.
    let rival = entry("example.com/mesh", &web, "True", "Accepted", 1);
    let former = entry(CONTROLLER, &api, "True", "Accepted", 3);
    let mut ours = entry(CONTROLLER, &web, "True", "Accepted", 3);
    let tag = json!({ "type": "example.com/Seen", "status": "True" });
    let conditions = ours["conditions"].as_array_mut().expect("a list");
    conditions.push(tag.clone());
    let told = [foreign.clone(), former, ours.clone(), rival.clone()];
    let claim = claim_of(&[gateway, web], &told);
    let list = parents(&claim, &[verdict("web", true, "Accepted")], NOW);
    assert_eq!(list, Some(vec![foreign.clone(), ours, rival.clone()]));
    // A route that is attached to nothing of ours any more.
    let list = parents(&claim, &[], NOW);
    assert_eq!(list, Some(vec![foreign, rival]));
}

#[test]
fn routes_of_gateways_are_nobody_of_ours() {
    let gateway = json!([{ "name": "front" }]);
    let foreign = route("HTTPRoute", "r", 0, &gateway, &json!([]));
    assert_eq!(Claim::read("v1", &foreign.to_string()), None);
    assert_eq!(Claim::read("v1", "{"), None);
}
