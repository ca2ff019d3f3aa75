//! Pods of all sorts, for tests of what holds for each.

use proptest::prelude::*;
use serde_json::{Value, json};

/// JSON that resembles a pod often enough to get past the types, with oddities everywhere else.
pub(crate) fn odd_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        Just(json!("enabled")),
        Just(json!("tulle-proxy")),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        let key = prop_oneof![
            Just("metadata".to_owned()),
            Just("spec".to_owned()),
            Just("containers".to_owned()),
            Just("initContainers".to_owned()),
            Just("name".to_owned()),
            Just("labels".to_owned()),
            Just("annotations".to_owned()),
            Just("readinessProbe".to_owned()),
            Just("httpGet".to_owned()),
            Just("port".to_owned()),
            "[a-z/~.$]{0,8}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(key, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn containers() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        Just(json!(8080)),
        Just(json!("http")),
        Just(json!("nowhere")),
        Just(json!(-1)),
        Just(json!(9000))
    ];
    let handler = prop_oneof![
        Just("httpGet"),
        Just("tcpSocket"),
        Just("grpc"),
        Just("exec")
    ];
    let probe = (handler, port, odd_json()).prop_map(|(handler, port, odd)| match handler {
        "exec" => json!({ "exec": { "command": ["true"] } }),
        "grpc" => json!({ "grpc": { "port": port.as_i64().unwrap_or(1) }, "x": odd }),
        _ => json!({ handler: { "port": port, "x": odd }, "periodSeconds": 3 }),
    });
    let probe = probe.boxed();
    let container = (
        "[a-z]{1,5}",
        prop::option::of(probe.clone()),
        prop::option::of(probe),
        odd_json(),
    )
        .prop_map(|(name, ready, live, odd)| {
            json!({
                "name": name,
                "readinessProbe": ready,
                "livenessProbe": live,
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "unknown": odd,
            })
        });
    prop::collection::vec(container, 0..20).prop_map(Value::from)
}

pub(crate) fn pod() -> impl Strategy<Value = Value> {
    let annotation = prop_oneof![
        Just("9000"),
        Just("true"),
        Just("false"),
        Just("info"),
        Just("json"),
        Just("10.0.0.0/8"),
        Just("odd")
    ];
    let name = prop::sample::select(vec![
        "tulle.dev/exclude-inbound-ports",
        "tulle.dev/exclude-outbound-cidrs",
        "tulle.dev/proxy-log-level",
        "tulle.dev/native-sidecar",
        "tulle.dev/access-log",
        "prometheus.io/scrape",
        "prometheus.io/port",
        "prometheus_io_path",
        "example.com/a~b",
    ]);
    let annotations = prop::option::of(prop::collection::hash_map(name, annotation, 0..3));
    (
        annotations,
        containers(),
        prop::option::of(containers()),
        odd_json(),
    )
        .prop_map(|(annotations, containers, init, odd)| {
            json!({
                "kind": "Pod",
                "metadata": { "name": "p", "annotations": annotations, "unknown": odd },
                "spec": { "containers": containers, "initContainers": init, "unknown": odd },
            })
        })
}
