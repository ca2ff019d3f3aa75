//! Verdicts on PeerAuthentications, from manifests.

use super::*;

fn policy(name: &str, age: u32, spec: &Value) -> Value {
    let created = format!("2026-01-01T00:00:{age:02}Z");
    json!({
        "apiVersion": "tulle.dev/v1alpha1",
        "kind": "PeerAuthentication",
        "metadata": {
            "name": name, "namespace": "shop", "generation": 3, "resourceVersion": "7",
            "creationTimestamp": created,
        },
        "spec": spec,
    })
}

fn pod(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop", "labels": labels },
        "spec": { "containers": [{ "name": "c", "ports": [{ "name": "admin", "containerPort": 9000 }] }] },
        "status": { "podIP": "10.1.0.1" },
    })
}

/// Status and reason of both conditions of a policy, and their messages.
fn judge(objects: &[Value], name: &str) -> ([String; 2], String) {
    let (store, mut writer, claims) = store();
    take(&mut writer, &claims, objects);
    let (_, claims) = claims.all();
    let mut claims = claims.iter();
    let (policy, claim) = claims
        .find(|(policy, _)| &*policy.key.name == name)
        .expect("a claim");
    let world = store.world();
    let list = policy::Judge::new(&world).conditions(policy, claim, NOW);
    let list = list.expect("it was told nothing yet");
    let said = [0, 1].map(|index: usize| {
        assert_eq!(list[index]["observedGeneration"], 3);
        let text = |field: &str| list[index][field].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("status"), text("reason"))
    });
    let messages = list.iter().map(|it| it["message"].to_string());
    (said, messages.collect::<Vec<_>>().join("\n"))
}

const FINE: [&str; 2] = ["True Accepted", "True ResolvedRefs"];
const LOST: [&str; 2] = ["False Conflicted", "True ResolvedRefs"];

#[test]
fn authors_of_policies_are_told_what_becomes_of_them() {
    let strict = json!({ "mtls": { "mode": "STRICT" } });
    let for_app = |app: &str| json!({ "selector": { "matchLabels": { "app": app } }, "mtls": { "mode": "DISABLE" } });
    let port = |number: &str| {
        let mut spec = for_app("web");
        spec["portLevelMtls"] = json!({ number: { "mode": "STRICT" } });
        spec
    };
    let both = json!({ "selector": { "matchLabels": { "tier": "front" } } });
    let of = |service: &str| json!({ "targetRefs": [{ "kind": "Service", "name": service }] });
    let rows = [
        ("alone", strict.clone(), None, FINE, "in force"),
        (
            "the older",
            strict.clone(),
            Some((9, strict.clone())),
            FINE,
            "in force",
        ),
        (
            "the younger",
            strict.clone(),
            Some((1, strict.clone())),
            LOST,
            "shop/other is for the whole namespace",
        ),
        (
            "of different scopes",
            strict,
            Some((1, for_app("web"))),
            FINE,
            "",
        ),
        ("for no pod", for_app("none"), None, FINE, "no pod"),
        (
            "for the same pods",
            for_app("web"),
            Some((1, for_app("web"))),
            LOST,
            "for all of its pods",
        ),
        (
            "for some of them",
            both,
            Some((1, for_app("web"))),
            FINE,
            "but for pods that PeerAuthentication shop/other",
        ),
        ("of a Service", of("web"), None, FINE, ""),
        (
            "of no Service",
            of("none"),
            None,
            [FINE[0], "False TargetNotFound"],
            "shop/none does not exist",
        ),
        ("a target port", port("8080"), None, FINE, ""),
        ("a named port", port("9000"), None, FINE, ""),
        (
            "a Service's own port",
            port("80"),
            None,
            [FINE[0], "False PortNotFound"],
            "not of Services",
        ),
        (
            "a port of no workload",
            json!({ "portLevelMtls": { "80": { "mode": "STRICT" } } }),
            None,
            ["False Invalid", FINE[1]],
            "spec.portLevelMtls",
        ),
    ];
    let service = service(
        "web",
        &json!({
            "clusterIP": "10.0.0.1", "selector": { "app": "web" },
            "ports": [{ "port": 80, "targetPort": 8080 }],
        }),
    );
    for (name, spec, other, expected, words) in rows {
        let mut objects = vec![
            service.clone(),
            pod("one", &json!({ "app": "web", "tier": "front" })),
            pod("two", &json!({ "app": "api", "tier": "front" })),
            policy("p", 5, &spec),
        ];
        objects.extend(other.map(|(age, spec)| policy("other", age, &spec)));
        let (said, messages) = judge(&objects, "p");
        assert_eq!(said, expected, "{name}: {messages}");
        assert!(messages.contains(words), "{name}: {messages}");
    }
}

#[test]
fn a_policy_that_says_it_already_is_left_alone() {
    let spec = json!({ "mtls": { "mode": "STRICT" } });
    let mut object = policy("p", 1, &spec);
    let tag = json!({ "type": "example.com/Seen", "status": "True" });
    object["status"] = json!({ "conditions": [tag] });
    let told = |object: &Value| {
        let (store, mut writer, claims) = store();
        take(&mut writer, &claims, std::slice::from_ref(object));
        let (_, claims) = claims.all();
        let world = store.world();
        policy::Judge::new(&world).conditions(&claims[0].0, &claims[0].1, NOW)
    };
    let list = told(&object).expect("news");
    assert!(list.contains(&tag), "another's condition stays");
    object["status"]["conditions"] = json!(list);
    assert_eq!(told(&object), None);
}
