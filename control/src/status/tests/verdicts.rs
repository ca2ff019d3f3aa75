//! Verdicts, from manifests.

use super::*;

/// Type, status and reason of both conditions of a route's first parent, and their messages.
fn judge(objects: &[Value], name: &str) -> ([String; 2], String) {
    let (store, mut writer, claims) = store();
    take(&mut writer, &claims, objects);
    let (_, claims) = claims.all();
    let mut claims = claims.iter();
    let (route, claim) = claims
        .find(|(route, _)| &*route.key.name == name)
        .expect("a claim");
    let verdicts = verdict::verdicts(&store.world(), route, claim).expect("a verdict");
    let said = verdicts[0].conditions.each_ref();
    let messages = said.map(|it| it.message.as_str()).join("\n");
    (
        said.map(|it| format!("{} {}", it.holds, it.reason)),
        messages,
    )
}

const FINE: [&str; 2] = ["true Accepted", "true ResolvedRefs"];

#[test]
fn parents_take_what_they_can_route() {
    let external = service(
        "ext",
        &json!({ "type": "ExternalName", "externalName": "example.com" }),
    );
    let headless = service(
        "bare",
        &json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }),
    );
    let services = [web(), external, headless];
    let mirror = json!([{ "filters": [{ "type": "RequestMirror",
        "requestMirror": { "backendRef": { "name": "web", "port": 80 } } }] }]);
    let rows = [
        (
            "a port that speaks HTTP",
            "HTTPRoute",
            parent("web", &json!({ "port": 80 })),
            to("web"),
            "true Accepted",
            "in force",
        ),
        (
            "by its name",
            "GRPCRoute",
            parent("web", &json!({ "sectionName": "http" })),
            to("web"),
            "true Accepted",
            "",
        ),
        (
            "all ports",
            "TCPRoute",
            parent("web", &json!({})),
            to("web"),
            "true Accepted",
            "",
        ),
        (
            "headless",
            "HTTPRoute",
            parent("bare", &json!({})),
            to("web"),
            "false NoMatchingParent",
            "shop/bare is headless",
        ),
        (
            "no such Service",
            "HTTPRoute",
            parent("none", &json!({})),
            to("web"),
            "false NoMatchingParent",
            "shop/none does not exist",
        ),
        (
            "of another namespace",
            "HTTPRoute",
            parent("web", &json!({ "namespace": "far" })),
            to("web"),
            "false NoMatchingParent",
            "far/web",
        ),
        (
            "no such port",
            "HTTPRoute",
            parent("web", &json!({ "port": 90 })),
            to("web"),
            "false NoMatchingParent",
            "no TCP port 90, but 80, 81, 82",
        ),
        (
            "no such name",
            "HTTPRoute",
            parent("web", &json!({ "sectionName": "x" })),
            to("web"),
            "false NoMatchingParent",
            "named \"x\"",
        ),
        (
            "an alias",
            "HTTPRoute",
            parent("ext", &json!({})),
            to("web"),
            "false NoMatchingParent",
            "ExternalName",
        ),
        (
            "requests at an opaque port",
            "HTTPRoute",
            parent("web", &json!({ "port": 82 })),
            to("web"),
            "false NoMatchingParent",
            "takes a HTTPRoute",
        ),
        (
            "connections at a port of requests",
            "TLSRoute",
            parent("web", &json!({ "port": 80 })),
            to("web"),
            "false NoMatchingParent",
            "takes a TLSRoute",
        ),
        (
            "what is not supported",
            "HTTPRoute",
            parent("web", &json!({})),
            mirror,
            "false UnsupportedValue",
            "spec.rules[0].filters[0].type",
        ),
        (
            "the wrong group",
            "HTTPRoute",
            json!({ "kind": "Service", "name": "web" }),
            to("web"),
            "false UnsupportedValue",
            "write group",
        ),
    ];
    for (name, kind, parent, rules, accepted, words) in rows {
        let mut objects = services.to_vec();
        objects.push(route(kind, "r", 0, &json!([parent]), &rules));
        let (said, messages) = judge(&objects, "r");
        assert_eq!(said, [accepted, FINE[1]], "{name}: {messages}");
        assert!(messages.contains(words), "{name}: {messages}");
    }
}

#[test]
fn who_breaks_a_route_is_told_that_it_is_in_force_as_it_was() {
    let parents = json!([parent("web", &json!({}))]);
    let good = route("HTTPRoute", "r", 0, &parents, &to("web"));
    let mirror = json!([{ "filters": [{ "type": "RequestMirror",
        "requestMirror": { "backendRef": { "name": "web", "port": 80 } } }] }]);
    let bad = route("HTTPRoute", "r", 0, &parents, &mirror);
    let said = |objects: &[Value]| judge(objects, "r").1;
    let said = said(&[web(), good, bad]);
    assert!(said.contains("RequestMirror"), "{said}");
    assert!(said.contains("; generation 2 stays in force"), "{said}");
}

#[test]
fn backends_are_there_or_it_is_said_which_is_not() {
    let external = service(
        "ext",
        &json!({ "type": "ExternalName", "externalName": "example.com" }),
    );
    let bucket = json!({ "group": "example.com", "kind": "Bucket", "name": "b" });
    let rows = [
        (
            "there",
            json!([{ "name": "web", "port": 80 }]),
            "true ResolvedRefs",
            "every backend",
        ),
        ("none is needed", json!([]), "true ResolvedRefs", ""),
        (
            "no such Service",
            json!([{ "name": "web", "port": 80 }, { "name": "none", "port": 80, "weight": 0 }]),
            "false BackendNotFound",
            "spec.rules[0].backendRefs[1]: Service shop/none does not exist",
        ),
        (
            "of another namespace",
            json!([{ "name": "web", "namespace": "far", "port": 80 }]),
            "false BackendNotFound",
            "far/web",
        ),
        (
            "no such port",
            json!([{ "name": "web", "port": 8080 }]),
            "false BackendNotFound",
            "no TCP port 8080",
        ),
        (
            "an alias",
            json!([{ "name": "ext", "port": 80 }]),
            "false BackendNotFound",
            "ExternalName",
        ),
        (
            "another kind, which is worse",
            json!([{ "name": "none", "port": 80 }, bucket]),
            "false InvalidKind",
            "kind Bucket",
        ),
    ];
    for (name, backends, resolved, words) in rows {
        let parents = json!([parent("web", &json!({}))]);
        let rules = json!([{ "backendRefs": backends }]);
        let route = route("HTTPRoute", "r", 0, &parents, &rules);
        let (said, messages) = judge(&[web(), external.clone(), route], "r");
        assert_eq!(said, [FINE[0], resolved], "{name}: {messages}");
        assert!(messages.contains(words), "{name}: {messages}");
    }
}

#[test]
fn of_two_kinds_one_is_in_conflict_where_the_other_has_every_port() {
    let all = json!([parent("web", &json!({}))]);
    let port = |number: u16| json!([parent("web", &json!({ "port": number }))]);
    let rows = [
        (
            "a GRPCRoute has the port",
            ("GRPCRoute", 9, port(80)),
            ("HTTPRoute", 1, port(80)),
            Some("GRPCRoute shop/other"),
        ),
        (
            "it has another port",
            ("GRPCRoute", 9, port(81)),
            ("HTTPRoute", 1, all.clone()),
            None,
        ),
        (
            "two of requests are merged",
            ("HTTPRoute", 1, port(80)),
            ("HTTPRoute", 9, port(80)),
            None,
        ),
        (
            "the older one of connections",
            ("TCPRoute", 1, port(82)),
            ("TCPRoute", 9, port(82)),
            Some("TCPRoute shop/other"),
        ),
        (
            "the younger one of connections",
            ("TCPRoute", 9, port(82)),
            ("TCPRoute", 1, port(82)),
            None,
        ),
        (
            "TLS precedes TCP",
            ("TLSRoute", 9, port(82)),
            ("TCPRoute", 1, port(82)),
            Some("TLSRoute shop/other"),
        ),
        (
            "requests precede connections",
            ("HTTPRoute", 9, port(81)),
            ("TCPRoute", 1, port(81)),
            Some("HTTPRoute shop/other"),
        ),
    ];
    for (name, (other, other_age, other_parents), (kind, age, parents), ahead) in rows {
        let objects = [
            web(),
            route(other, "other", other_age, &other_parents, &to("web")),
            route(kind, "r", age, &parents, &to("web")),
        ];
        let (said, messages) = judge(&objects, "r");
        let accepted = if ahead.is_some() {
            "false Conflicted"
        } else {
            FINE[0]
        };
        assert_eq!(said, [accepted, FINE[1]], "{name}: {messages}");
        assert!(
            messages.contains(ahead.unwrap_or_default()),
            "{name}: {messages}"
        );
    }
}

#[test]
fn consumers_are_no_conflict_of_producers() {
    let mut consumer = route(
        "HTTPRoute",
        "r",
        1,
        &json!([parent("web", &json!({ "namespace": "shop" }))]),
        &json!([{ "backendRefs": [{ "name": "web", "namespace": "shop", "port": 80 }] }]),
    );
    consumer["metadata"]["namespace"] = "buyers".into();
    let producer = route(
        "GRPCRoute",
        "other",
        1,
        &json!([parent("web", &json!({}))]),
        &to("web"),
    );
    let (said, messages) = judge(&[web(), producer, consumer], "r");
    assert_eq!(said, FINE, "{messages}");
}

#[test]
fn nobody_judges_by_a_world_that_has_not_got_the_route() {
    let (store, mut writer, claims) = store();
    take(&mut writer, &claims, &[web()]);
    let parents = json!([parent("web", &json!({}))]);
    let route = route("HTTPRoute", "r", 0, &parents, &to("web"));
    let claim = Claim::read("v1", &route.to_string()).expect("a claim");
    let reference = ObjectRef {
        kind: Kind::HttpRoute,
        key: ObjectKey::new("shop", "r"),
    };
    assert_eq!(verdict::verdicts(&store.world(), &reference, &claim), None);
}
