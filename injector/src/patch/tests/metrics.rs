//! Where Prometheus is sent, and what the sidecar is told of the app's metrics.

use serde_json::{Value, json};

use super::{inject, pod, try_inject, variable};
use crate::InjectorConfig;

/// Annotations of a pod with these ports, and what the sidecar is told, and the warnings.
fn scraped(annotations: &Value, ports: &[Value]) -> (Value, Option<String>, Vec<String>) {
    let containers = json!([{ "name": "web", "ports": ports }]);
    let pod = pod(
        json!({ "annotations": annotations }),
        json!({ "containers": containers }),
    );
    let outcome = try_inject(&pod, &InjectorConfig::default()).expect("injected");
    let mut after = outcome.document["metadata"]["annotations"].clone();
    after
        .as_object_mut()
        .expect("annotations")
        .remove("tulle.dev/status");
    let sidecar = &outcome.document["spec"]["initContainers"][1];
    let told = variable(sidecar, "TULLE_APP_METRICS").map(str::to_owned);
    let warnings = outcome.warnings.into_iter();
    (after, told, warnings.map(|it| it.message).collect())
}

#[test]
fn prometheus_is_sent_to_the_sidecar_which_is_told_of_the_app() {
    let port = |number: u16| json!({ "containerPort": number });
    let told = |port: u16, path: &str, scheme: &str| {
        Some(json!({ "port": port, "path": path, "scheme": scheme }).to_string())
    };
    let rows = [
        ("nothing said", json!({}), vec![port(8080)], None),
        (
            "a port alone",
            json!({ "prometheus.io/port": "9090" }),
            vec![],
            told(9090, "/metrics", "http"),
        ),
        (
            "a path, without the slash that Prometheus adds",
            json!({ "prometheus.io/scrape": "true", "prometheus.io/port": "9090", "prometheus.io/path": "a b?c=d" }),
            vec![],
            told(9090, "/a%20b?c=d", "http"),
        ),
        (
            "the only port that is declared",
            json!({ "prometheus.io/scrape": "true" }),
            vec![
                json!({ "containerPort": 53, "protocol": "UDP" }),
                port(8080),
            ],
            told(8080, "/metrics", "http"),
        ),
        (
            "parameters",
            json!({ "prometheus.io/port": "1", "prometheus.io/param-b": "x&y", "prometheus.io/param_a": "1" }),
            vec![],
            told(1, "/metrics?a=1&b=x%26y", "http"),
        ),
        (
            "where the sidecar is already",
            json!({ "prometheus.io/port": "15020", "prometheus.io/path": "/stats/prometheus" }),
            vec![],
            None,
        ),
    ];
    for (name, annotations, ports, expected) in rows {
        let (after, told, warnings) = scraped(&annotations, &ports);
        assert_eq!(told, expected, "{name}");
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
        for (annotation, value) in [
            ("scrape", "true"),
            ("port", "15020"),
            ("path", "/stats/prometheus"),
        ] {
            assert_eq!(
                after[format!("prometheus.io/{annotation}")],
                value,
                "{name}"
            );
        }
        assert!(after.get("prometheus.io/scheme").is_none(), "{name}");
    }
}

#[test]
fn a_scheme_becomes_the_sidecars_and_other_spellings_go() {
    let annotations = json!({
        "prometheus.io/scrape": "true",
        "prometheus.io/scheme": "https",
        "prometheus.io.port": "1",
        "prometheus.io/port": "9443",
        "prometheus_io_path": "/m",
    });
    let (after, told, warnings) = scraped(&annotations, &[]);
    let expected = json!({
        "prometheus.io/scrape": "true",
        "prometheus.io/scheme": "http",
        "prometheus.io/port": "15020",
        "prometheus.io/path": "/stats/prometheus",
    });
    assert_eq!(after, expected);
    let source = json!({ "port": 9443, "path": "/m", "scheme": "https" });
    assert_eq!((told, warnings), (Some(source.to_string()), Vec::new()));
}

#[test]
fn what_is_not_meant_or_not_understood_stays_as_it_is() {
    let port = |number: u16| json!({ "containerPort": number });
    let rows = [
        (
            json!({ "prometheus.io/scrape": "false", "prometheus.io/port": "9090" }),
            vec![],
            None,
        ),
        (
            json!({ "prometheus.io/port": "9090", "tulle.dev/merge-metrics": "false" }),
            vec![],
            None,
        ),
        (
            json!({ "prometheus.io/scrape": "yes" }),
            vec![port(1)],
            Some("neither `true` nor `false`"),
        ),
        (
            json!({ "prometheus.io/port": "http" }),
            vec![],
            Some("it is not a port"),
        ),
        (
            json!({ "prometheus.io/port": "0" }),
            vec![],
            Some("it is not a port"),
        ),
        (
            json!({ "prometheus.io/port": "15000" }),
            vec![],
            Some("a port of the sidecar"),
        ),
        (
            json!({ "prometheus.io/port": "1", "prometheus.io/scheme": "ftp" }),
            vec![],
            Some("neither `http` nor `https`"),
        ),
        (
            json!({ "prometheus.io/port": "1", "prometheus.io/path": "x".repeat(5000) }),
            vec![],
            Some("too long"),
        ),
        (
            json!({ "prometheus.io/scrape": "true" }),
            vec![],
            Some("on which of its 0 ports"),
        ),
        (
            json!({ "prometheus.io/scrape": "true" }),
            vec![port(1), port(2)],
            Some("on which of its 2 ports"),
        ),
    ];
    for (annotations, ports, warning) in rows {
        let (after, told, warnings) = scraped(&annotations, &ports);
        assert_eq!(after, annotations);
        assert_eq!(told, None, "{annotations}");
        assert_eq!(
            warnings.len(),
            usize::from(warning.is_some()),
            "{warnings:?}"
        );
        assert!(
            warnings
                .iter()
                .all(|said| said.contains(warning.expect("one"))),
            "{warnings:?}"
        );
    }
    let (after, _, warnings) = scraped(&json!({ "tulle.dev/merge-metrics": "no" }), &[]);
    assert!(
        warnings[0].starts_with("ignored: annotation tulle.dev/merge-metrics"),
        "{warnings:?}"
    );
    assert_eq!(after["prometheus.io/port"], "15020");
}

#[test]
fn what_the_sidecar_is_told_it_can_read_whatever_the_path() {
    for path in ["/é\u{1}\\\"<>^`{}|#%$(POD_IP)", "", "//", "?", "a:b@c"] {
        let annotations = json!({ "prometheus.io/port": "1", "prometheus.io/path": path });
        let injected = inject(&pod(
            json!({ "annotations": annotations }),
            json!({ "containers": [{ "name": "web" }] }),
        ));
        let told = variable(&injected["spec"]["initContainers"][1], "TULLE_APP_METRICS");
        let told: Value = serde_json::from_str(told.expect("told")).expect("JSON");
        let said = told["path"].as_str().expect("a path").replace("$$", "$");
        let parsed = said.parse::<http::uri::PathAndQuery>().expect("a path");
        assert!(
            parsed.path().starts_with('/') && parsed.as_str() == said,
            "{said}"
        );
    }
}
