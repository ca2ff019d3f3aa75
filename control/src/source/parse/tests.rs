//! Documents into room types: what is read, what is left out, what is reported and where.

use super::*;
use crate::source::document::split;
use crate::store::Pod as PodRoom;
use crate::store::policy::{MtlsMode, PolicyTarget};
use crate::store::route::{Action, BackendTarget, PathMatch, PathRewrite};
use crate::store::service::{Addressing, AppProtocol, Distribution, TargetPort};

fn parse(text: &str) -> Outcome {
    document(&split(text, false)[0])
}

fn object(text: &str) -> Object {
    match parse(text) {
        Outcome::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

fn problem(text: &str) -> (u64, String, String) {
    match parse(text) {
        Outcome::Bad { problem, .. } => (problem.line, problem.field, problem.message),
        other => panic!("{other:?}"),
    }
}

fn route_with(rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\nspec:\n  \
         parentRefs:\n  - {{group: \"\", kind: Service, name: web}}\n  rules:\n  - {rule}\n"
    )
}

#[test]
fn bad_documents_are_reported_by_line_and_field() {
    let service = |spec: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  {spec}\n")
    };
    let table: [(&str, String, u64, &str, &str); 26] = [
        ("no kind", "apiVersion: v1\nmetadata: {}\n".into(), 1, "kind", "missing"),
        ("syntax", "kind: [\n".into(), 1, "", ""),
        ("name", "apiVersion: v1\nkind: Service\nmetadata:\n  name: A_b\n".into(), 4, "metadata.name", "A_b"),
        ("type", service("ports: oops"), 6, "spec.ports", ""),
        ("port", service("ports:\n  - port: 0"), 7, "spec.ports[0].port", "1 to 65535"),
        ("unnamed", service("ports:\n  - port: 1\n  - port: 2"), 7, "spec.ports[0].name", "missing"),
        ("ip", service("clusterIP: 10.0.0"), 6, "spec.clusterIP", "10.0.0"),
        ("affinity", service("sessionAffinity: Cookie"), 6, "spec.sessionAffinity", "ClientIP"),
        ("weight", route_with("{backendRefs: [{name: a, port: 80, weight: -1}]}"), 8, "spec.rules[0].backendRefs[0].weight", "-1"),
        ("regex", route_with("{matches: [{path: {type: RegularExpression, value: \"/(\"}}]}"), 8, "spec.rules[0].matches[0].path.value", "regular"),
        ("path", route_with("{matches: [{path: {type: Exact, value: a}}]}"), 8, "spec.rules[0].matches[0].path.value", "start it with /"),
        ("header", route_with("{matches: [{headers: [{name: \"a b\", value: c}]}]}"), 8, "spec.rules[0].matches[0].headers[0].name", "header name"),
        ("duration", route_with("{timeouts: {request: 1y}}"), 8, "spec.rules[0].timeouts.request", "duration"),
        ("mirror", route_with("{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a}}}]}"), 8, "spec.rules[0].filters[0].type", "not supported"),
        ("rewritten host", route_with("{filters: [{type: URLRewrite, urlRewrite: {hostname: \"a b\"}}]}"), 8, "spec.rules[0].filters[0].urlRewrite.hostname", "a b"),
        ("timeouts", route_with("{timeouts: {request: 1s, backendRequest: 2s}}"), 8, "spec.rules[0].timeouts.backendRequest", "longer than request"),
        (
            "grpc method",
            route_with("{matches: [{method: {service: a.B, method: \"C+\"}}]}").replace("HTTPRoute", "GRPCRoute"),
            8,
            "spec.rules[0].matches[0].method.method",
            "not a name in gRPC",
        ),
        (
            "regex that ends in a comment",
            route_with("{matches: [{path: {type: RegularExpression, value: \"/(?x)a #b\"}}]}"),
            8,
            "spec.rules[0].matches[0].path.value",
            "not a regular expression",
        ),
        (
            "regex that the sidecar has no room for",
            route_with("{matches: [{path: {type: RegularExpression, value: '/\\w{12}'}}]}"),
            8,
            "spec.rules[0].matches[0].path.value",
            "make it simpler",
        ),
        (
            "framing",
            route_with("{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: Content-Length, value: '3'}]}}]}"),
            8,
            "spec.rules[0].filters[0].responseHeaderModifier.set[0].name",
            "framing",
        ),
        (
            "ports of no workload",
            "apiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  portLevelMtls:\n    80: {mode: STRICT}\n".into(),
            6,
            "spec.portLevelMtls",
            "spec.selector",
        ),
        (
            "group",
            route_with("{}").replace("group: \"\", ", ""),
            6,
            "spec.parentRefs[0].group",
            "core group",
        ),
        (
            "connections of two rules",
            route_with("{}\n  - {}").replace("HTTPRoute", "TCPRoute"),
            9,
            "spec.rules[1]",
            "never reached",
        ),
        (
            "connections of no rule",
            route_with("").replace("HTTPRoute", "TLSRoute").replace("rules:\n  - ", "rules: []"),
            7,
            "spec.rules",
            "is empty",
        ),
        (
            "connections without a port",
            route_with("{backendRefs: [{name: a}]}").replace("HTTPRoute", "TLSRoute"),
            8,
            "spec.rules[0].backendRefs[0].port",
            "missing",
        ),
        (
            "policy typo",
            "apiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  mtls:\n    mod: STRICT\n".into(),
            6,
            "",
            "mod",
        ),
    ];
    for (name, text, line, field, message) in table {
        let found = problem(&text);
        assert_eq!(found.0, line, "{name}: {found:?}");
        assert!(found.1.starts_with(field), "{name}: {found:?}");
        assert!(found.2.contains(message), "{name}: {found:?}");
    }
}

#[test]
fn kinds_that_do_not_concern_the_mesh_are_ignored() {
    for text in [
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {whatever: 1}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: y}\n",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints: []\n",
        &route_with("{}").replace("group: \"\", kind: Service", "kind: Gateway"),
    ] {
        assert!(matches!(parse(text), Outcome::Ignored), "{text}");
    }
}

#[test]
fn kinds_that_were_meant_for_the_mesh_and_are_none_are_reported() {
    let table = [
        ("v1", "Servise", Some(("kind", "Service"))),
        ("v1", "service", Some(("kind", "Service"))),
        (
            "tulle.dev/v1alpha1",
            "PeerAuthentification",
            Some(("kind", "PeerAuthentication")),
        ),
        (
            "security.istio.io/v1",
            "PeerAuthentification",
            Some(("kind", "PeerAuthentication")),
        ),
        (
            "gateway.networking.k8s.io/v1",
            "HttpRoute",
            Some(("kind", "HTTPRoute")),
        ),
        (
            "networking.k8s.io/v1",
            "HTTPRoute",
            Some(("apiVersion", "gateway.networking.k8s.io/v1")),
        ),
        ("apps/v1", "Pod", Some(("apiVersion", "write v1"))),
        (
            "v1",
            "EndpointSlice",
            Some(("apiVersion", "discovery.k8s.io/v1")),
        ),
        (
            "tule.dev/v1",
            "PeerAuthentication",
            Some(("apiVersion", "tulle.dev/v1alpha1")),
        ),
        ("v1", "Secret", None),
        ("v1", "SecretList", None),
        ("gateway.networking.k8s.io/v1", "Gateway", None),
        ("security.istio.io/v1", "AuthorizationPolicy", None),
        ("serving.knative.dev/v1", "Service", None),
        ("policy.linkerd.io/v1", "HTTPRoute", None),
        ("networking.k8s.io/v1", "Ingress", None),
        ("example.org/v1", "Servise", None),
    ];
    for (version, kind, expected) in table {
        let text = format!("metadata: {{name: a}}\napiVersion: {version}\nkind: {kind}\n");
        let Some((field, word)) = expected else {
            assert!(matches!(parse(&text), Outcome::Ignored), "{text}");
            continue;
        };
        let found = problem(&text);
        assert_eq!(found.0, if field == "kind" { 3 } else { 2 }, "{found:?}");
        assert_eq!(found.1, field, "{text}");
        assert!(found.2.contains(word), "{found:?}");
    }
}

#[test]
fn a_service_is_read_with_its_ports_and_policies() {
    let Object::Service(service) = object(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  clusterIPs: [10.0.0.1, \"fd00::1\"]\n  \
         clusterIP: 10.0.0.1\n  selector: {app: web}\n  internalTrafficPolicy: Local\n  trafficDistribution: PreferClose\n  \
         ports:\n  - {name: http-main, port: 80, targetPort: web}\n  - {name: x, port: 81, appProtocol: kubernetes.io/h2c}\n  \
         - {name: dns, port: 53, protocol: UDP}\n  - {name: grpc, port: 82, targetPort: 9000}\n  - {name: redis, port: 83}\n",
    ) else {
        panic!("a Service")
    };
    assert_eq!(
        service.addressing,
        Addressing::Virtual(vec![
            "10.0.0.1".parse().unwrap(),
            "fd00::1".parse().unwrap()
        ])
    );
    let protocols: Vec<_> = service
        .ports
        .iter()
        .map(|port| (port.port, port.protocol))
        .collect();
    let expected = [
        (80, AppProtocol::Http),
        (81, AppProtocol::Http2),
        (82, AppProtocol::Grpc),
        (83, AppProtocol::Tcp),
    ];
    assert_eq!(protocols, expected, "UDP is not the mesh's");
    assert_eq!(service.ports[0].target, TargetPort::Name("web".into()));
    assert_eq!(service.ports[2].target, TargetPort::Number(9000));
    assert!(service.local_only);
    assert_eq!(service.distribution, Distribution::SameZone);
}

#[test]
fn a_pod_is_read_with_what_peers_must_know() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web-abc-x\n  labels: {pod-template-hash: abc, tulle.dev/proxied: \"true\"}\n  \
         annotations: {tulle.dev/exclude-inbound-ports: \"9000, 8000\"}\n  ownerReferences:\n  \
         - {apiVersion: apps/v1, kind: ReplicaSet, name: web-abc, uid: u, controller: true}\nspec:\n  serviceAccountName: sa\n  \
         containers:\n  - {name: c, ports: [{name: web, containerPort: 8080}, {name: none}, {name: zero, containerPort: 0}]}\nstatus: {phase: Running, podIP: 10.1.0.1}\n";
    let Object::Pod(pod) = object(text) else {
        panic!("a Pod")
    };
    let PodRoom {
        key,
        ips,
        service_account,
        proxied,
        uncaptured_ports,
        workload,
        ..
    } = &pod;
    assert_eq!(*key, ObjectKey::new("default", "web-abc-x"));
    assert_eq!(*ips, ["10.1.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(
        (&**service_account, *proxied, uncaptured_ports.as_slice()),
        ("sa", true, &[8000, 9000][..])
    );
    assert_eq!((&*workload.kind, &*workload.name), ("Deployment", "web"));
    let named = ["web", "none", "zero"].map(|name| pod.named_port(name));
    assert_eq!(named, [Some(8080), None, None]);
    let Object::Pod(finished) = object(&text.replace("Running", "Failed")) else {
        panic!("a Pod")
    };
    assert!(
        finished.ips.is_empty(),
        "its address may be another's by now"
    );
}

#[test]
fn a_pod_has_finished_when_its_ordinary_sidecar_alone_runs_and_nothing_will_start_again() {
    const SIDECAR: &str = "{name: tulle-proxy}";
    let ended = |name: &str, code: u8| {
        format!("{{name: {name}, state: {{terminated: {{exitCode: {code}}}}}}}")
    };
    let runs = |name: &str| format!("{{name: {name}, state: {{running: {{}}}}}}");
    let with_sidecar = |rest: &str| format!("{SIDECAR}, {rest}");
    let own_policy = |policy: &str| with_sidecar(&format!("{{name: a, restartPolicy: {policy}}}"));
    let (a, both) = (
        with_sidecar("{name: a}"),
        with_sidecar("{name: a}, {name: b}"),
    );
    let beside = |statuses: &[String]| [&[runs("tulle-proxy")], statuses].concat().join(", ");
    let rows = [
        ("it succeeded", "Never", &a, beside(&[ended("a", 0)]), true),
        (
            "it failed for good",
            "Never",
            &a,
            beside(&[ended("a", 1)]),
            true,
        ),
        (
            "it will be tried again",
            "OnFailure",
            &a,
            beside(&[ended("a", 1)]),
            false,
        ),
        (
            "it succeeded at last",
            "OnFailure",
            &a,
            beside(&[ended("a", 0)]),
            true,
        ),
        ("it runs", "Never", &a, beside(&[runs("a")]), false),
        ("nothing is known of it", "Never", &a, beside(&[]), false),
        (
            "one of two runs",
            "Never",
            &both,
            beside(&[ended("a", 0), runs("b")]),
            false,
        ),
        (
            "both have ended",
            "Never",
            &both,
            beside(&[ended("a", 0), ended("b", 3)]),
            true,
        ),
        (
            "it is started anew",
            "Always",
            &a,
            beside(&[ended("a", 0)]),
            false,
        ),
        (
            "that is the default",
            "null",
            &a,
            beside(&[ended("a", 0)]),
            false,
        ),
        (
            "it alone is started anew",
            "Never",
            &own_policy("Always"),
            beside(&[ended("a", 0)]),
            false,
        ),
        (
            "by its own policy",
            "Never",
            &own_policy("OnFailure"),
            beside(&[ended("a", 1)]),
            false,
        ),
        (
            "not by its own policy",
            "Always",
            &own_policy("Never"),
            beside(&[ended("a", 1)]),
            true,
        ),
        (
            "by a rule of its own",
            "Never",
            &own_policy(
                "Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [3, 4]}}]",
            ),
            beside(&[ended("a", 4)]),
            false,
        ),
        (
            "by none of its rules",
            "Never",
            &own_policy(
                "Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: NotIn, values: [3, 4]}}]",
            ),
            beside(&[ended("a", 4)]),
            true,
        ),
        (
            "by none that matter",
            "OnFailure",
            &own_policy("Never"),
            beside(&[ended("a", 0)]),
            true,
        ),
        (
            "Kubernetes ends a native one",
            "Never",
            &"{name: a}".to_owned(),
            ended("a", 0),
            false,
        ),
        (
            "there is nobody else",
            "Never",
            &SIDECAR.to_owned(),
            runs("tulle-proxy"),
            false,
        ),
    ];
    for (name, policy, containers, statuses, expected) in rows {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{restartPolicy: {policy}, containers: [{containers}]}}\n\
             status: {{phase: Running, containerStatuses: [{statuses}]}}\n"
        );
        let Object::Pod(pod) = object(&text) else {
            panic!("a Pod")
        };
        assert_eq!(pod.finished, expected, "{name}");
    }
}

#[test]
fn what_capture_leaves_out_is_what_its_container_was_told() {
    let capture = "  initContainers:\n  - {name: tulle-capture, args: [capture, \"--exclude-inbound-ports=15020,15021,70\"]}\n";
    let rows = [
        (
            "by hand",
            "\"true\"",
            "\"9000, 8000\"",
            "",
            &[8000, 9000][..],
        ),
        ("by itself", "grpc", "\"90\"", "", &[90]),
        (
            "another annotation since",
            "\"true\"",
            "\"80\"",
            capture,
            &[70, 15020, 15021],
        ),
        (
            "a bad one since",
            "\"true\"",
            "http",
            capture,
            &[70, 15020, 15021],
        ),
        ("no sidecar", "\"false\"", "\"80\"", "", &[]),
        ("no sidecar, and a bad one", "\"false\"", "http", "", &[]),
        (
            "another label since",
            "\"false\"",
            "http",
            capture,
            &[70, 15020, 15021],
        ),
    ];
    for (name, proxied, annotation, init, expected) in rows {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels: {{tulle.dev/proxied: {proxied}}}\n  \
             annotations: {{tulle.dev/exclude-inbound-ports: {annotation}}}\nspec:\n{init}  containers: []\n"
        );
        let Object::Pod(pod) = object(&text) else {
            panic!("a Pod")
        };
        assert_eq!(pod.uncaptured_ports, expected, "{name}");
    }
}

#[test]
fn a_pod_has_a_sidecar_if_its_spec_says_so_and_else_if_its_label_does() {
    const CAPTURE: &str = "{name: tulle-capture}";
    let rows = [
        ("injected", "\"true\"", CAPTURE, (true, false, false)),
        ("label gone", "", CAPTURE, (true, false, true)),
        ("label off", "\"false\"", CAPTURE, (true, false, true)),
        ("label of another", "grpc", CAPTURE, (true, false, true)),
        ("by hand", "\"true\"", "", (true, false, false)),
        ("by itself", "grpc", "", (true, true, false)),
        ("not", "", "", (false, false, false)),
        (
            "not, and it says so",
            "\"false\"",
            "{name: migrate}",
            (false, false, false),
        ),
    ];
    for (name, label, init, expected) in rows {
        let label = match label {
            "" => String::new(),
            value => format!("tulle.dev/proxied: {value}"),
        };
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, labels: {{{label}}}}}\n\
             spec: {{initContainers: [{init}], containers: []}}\n"
        );
        let Object::Pod(pod) = object(&text) else {
            panic!("a Pod")
        };
        assert_eq!(
            (pod.proxied, pod.foreign, pod.relabelled),
            expected,
            "{name}"
        );
    }
}

#[test]
fn an_http_route_is_read_with_matches_filters_and_retries() {
    let rule = "{name: main, matches: [{path: {value: /a/}, method: GET}, {}], timeouts: {request: 5s, backendRequest: 1s}, \
         retry: {attempts: 3, codes: [503, 500], backoff: 10ms}, backendRefs: [{name: b, port: 81}, {kind: Bucket, name: c}], \
         filters: [{type: URLRewrite, urlRewrite: {hostname: x.y, path: {type: ReplacePrefixMatch, replacePrefixMatch: /z}}}]}";
    let Object::Route(route) = object(&route_with(rule)) else {
        panic!("a route")
    };
    let rule = &route.rules[0];
    assert_eq!(rule.matches[0].path, PathMatch::Prefix("/a".into()));
    assert_eq!(rule.matches[1].path, PathMatch::Prefix("/".into()));
    let Action::Forward(forward) = &rule.action else {
        panic!("forwarding")
    };
    assert_eq!(
        forward.backends[0].target,
        BackendTarget::Service(ObjectKey::new("shop", "b"), 81)
    );
    assert_eq!(forward.backends[1].target, BackendTarget::Invalid);
    assert_eq!(forward.path_rewrite, Some(PathRewrite::Prefix("/z".into())));
    let retry = forward.retry.as_ref().expect("said");
    assert_eq!((retry.attempts, retry.codes.len()), (3, 2));
}

#[test]
fn a_grpc_method_becomes_a_path() {
    let path = |method: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs:\n  \
             - {{group: \"\", kind: Service, name: g}}\n  rules:\n  - matches: [{{method: {method}}}]\n"
        );
        let Object::Route(route) = object(&text) else {
            panic!("a route")
        };
        route.rules[0].matches[0].path.clone()
    };
    assert_eq!(
        path("{service: a.B, method: C}"),
        PathMatch::Exact("/a.B/C".into())
    );
    assert_eq!(path("{service: a.B}"), PathMatch::Prefix("/a.B".into()));
    assert_eq!(path("{method: C}"), PathMatch::Regex("/[^/]+/C".into()));
    assert_eq!(
        path("{type: RegularExpression, service: \"a.*\"}"),
        PathMatch::Regex("/(?:a.*)/[^/]+".into())
    );
}

#[test]
fn peer_authentication_is_read_from_both_groups() {
    let text = "apiVersion: GROUP\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec:\n  \
         selector: {matchLabels: {app: web}}\n  mtls: {mode: STRICT}\n  portLevelMtls:\n    8080: {mode: DISABLE}\n    9090: {mode: UNSET}\n";
    for (group, istio) in [
        ("tulle.dev/v1alpha1", false),
        ("security.istio.io/v1", true),
    ] {
        let Object::PeerAuthentication(policy) = object(&text.replace("GROUP", group)) else {
            panic!("a policy")
        };
        assert_eq!((policy.istio, policy.mode), (istio, Some(MtlsMode::Strict)));
        assert_eq!(
            policy.ports.into_iter().collect::<Vec<_>>(),
            [(8080, MtlsMode::Disable)]
        );
        assert!(matches!(policy.target, PolicyTarget::Pods(_)));
    }
}
