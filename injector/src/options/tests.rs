//! Settings of one pod, from its annotations.

use super::*;

fn parse(pairs: &[(&str, &str)]) -> Result<Options, String> {
    let annotations = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Options::parse(Some(&annotations), &InjectorConfig::default())
        .map_err(|error| error.to_string())
}

#[test]
fn annotations_tune_the_sidecar() {
    let options = parse(&[
        ("tulle.dev/exclude-inbound-ports", " 9000, 22,22 "),
        ("tulle.dev/exclude-outbound-ports", ""),
        (
            "tulle.dev/exclude-outbound-cidrs",
            "10.1.2.3/8,2001:db8::/32",
        ),
        ("tulle.dev/proxy-log-level", "info, tulle_proxy::http=debug"),
        ("tulle.dev/native-sidecar", "false"),
        ("tulle.dev/access-log", "off"),
        ("tulle.dev/ingress-headers", "keep"),
        ("tulle.dev/xds-address", " config.infra.svc:18000"),
        (
            "tulle.dev/xds-name",
            "spiffe://cluster.local/ns/infra/sa/config",
        ),
    ])
    .expect("valid");
    assert_eq!(options.exclude_inbound_ports, [22, 9000]);
    assert!(options.exclude_outbound_ports.is_empty());
    let cidrs: Vec<_> = options
        .exclude_outbound_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(cidrs, ["10.0.0.0/8", "2001:db8::/32"]);
    assert_eq!(options.log, "info,tulle_proxy::http=debug");
    assert!(!options.native_sidecar && !options.access_log && options.keep_ingress_headers);
    assert_eq!(
        options.xds_address.as_deref(),
        Some("config.infra.svc:18000")
    );
    assert_eq!(
        options.xds_name.as_deref(),
        Some("spiffe://cluster.local/ns/infra/sa/config")
    );
}

#[test]
fn without_annotations_the_operators_settings_hold() {
    let options = Options::parse(None, &InjectorConfig::default()).expect("valid");
    assert!(options.native_sidecar && options.access_log && options.log == "info");
    assert!(!options.keep_ingress_headers);
}

#[test]
fn bad_values_are_refused_by_annotation_value_and_remedy() {
    let rows = [
        (
            "tulle.dev/xds-address",
            "config.infra.svc",
            "a colon between",
        ),
        ("tulle.dev/xds-address", ":18000", "a colon between"),
        ("tulle.dev/xds-address", "config:0", "a colon between"),
        ("tulle.dev/xds-address", "http://a b:80", "a colon between"),
        (
            "tulle.dev/xds-address",
            "http://config:80",
            "a colon between",
        ),
        ("tulle.dev/xds-address", "a..b:80", "a colon between"),
        ("tulle.dev/xds-address", "::1:80", "a colon between"),
        ("tulle.dev/xds-address", "[::g]:80", "a colon between"),
        (
            "tulle.dev/xds-name",
            "config infra",
            "what the control plane's certificate",
        ),
        (
            "tulle.dev/xds-name",
            "spiffe://cluster.local/config",
            "what the control plane's certificate",
        ),
        (
            "tulle.dev/xds-name",
            "config..infra",
            "what the control plane's certificate",
        ),
        // Without an address.
        ("tulle.dev/xds-name", "config.infra.svc", "its address"),
        (
            "tulle.dev/exclude-inbound-ports",
            "0",
            "write ports from 1 to 65535",
        ),
        (
            "tulle.dev/exclude-inbound-ports",
            "80,,81",
            "write ports from 1 to 65535",
        ),
        (
            "tulle.dev/exclude-outbound-ports",
            "65536",
            "write ports from 1 to 65535",
        ),
        (
            "tulle.dev/exclude-outbound-ports",
            "80-90",
            "write ports from 1 to 65535",
        ),
        (
            "tulle.dev/exclude-outbound-cidrs",
            "10.0.0.1",
            "write networks with commas",
        ),
        (
            "tulle.dev/exclude-outbound-cidrs",
            "10.0.0.0/33",
            "write networks with commas",
        ),
        ("tulle.dev/native-sidecar", "yes", "write `true` or `false`"),
        (
            "tulle.dev/ingress-headers",
            "true",
            "write `strip` or `keep`",
        ),
    ];
    for (name, value, remedy) in rows {
        let error = parse(&[(name, value)]).expect_err(name);
        let expected = format!("annotation {name} has the value {value:?}: ");
        assert!(
            error.starts_with(&expected) && error.contains(remedy),
            "{error}"
        );
    }
}

#[test]
fn a_bad_value_that_only_logs_depend_on_is_ignored_with_a_warning() {
    let rows = [
        (
            "tulle.dev/proxy-log-level",
            "loud",
            "write off, error, warn",
        ),
        (
            "tulle.dev/proxy-log-level",
            "info,\u{1b}[0m=debug",
            "write off, error, warn",
        ),
        ("tulle.dev/access-log", "", "write `json` or `off`"),
    ];
    for (name, value, remedy) in rows {
        let options = parse(&[(name, value)]).expect("ignored");
        assert!(options.log == "info" && options.access_log, "{options:?}");
        let warnings = options.warnings(None);
        let expected = format!("ignored: annotation {name} has the value {value:?}: ");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].message.starts_with(&expected), "{warnings:?}");
        assert!(warnings[0].message.contains(remedy), "{warnings:?}");
    }
    let good = parse(&[("tulle.dev/access-log", "off")]).expect("valid");
    assert!(good.warnings(None).is_empty());
}

#[test]
fn whether_metrics_are_merged_the_operator_says_and_the_pod_may_say_otherwise() {
    for (of_all, said, merged) in [
        (true, None, true),
        (false, None, false),
        (false, Some("true"), true),
        (true, Some("false"), false),
        (false, Some("perhaps"), false),
    ] {
        let config = InjectorConfig {
            merge_metrics: of_all,
            ..InjectorConfig::default()
        };
        let said = said.map(|said| ("tulle.dev/merge-metrics".to_owned(), said.to_owned()));
        let annotations: BTreeMap<_, _> = said.into_iter().collect();
        let options = Options::parse(Some(&annotations), &config).expect("valid");
        assert_eq!(options.merge_metrics, merged, "{of_all} {annotations:?}");
    }
}

#[test]
fn an_unknown_annotation_of_ours_earns_a_warning_and_foreign_ones_do_not() {
    let annotations = [
        "tulle.dev/exclude-inbound-port",
        "tulle.dev/access-log",
        "example.com/tulle.dev",
    ];
    let annotations = annotations
        .map(|name| (name.to_owned(), "1".to_owned()))
        .into();
    let warnings = unknown(Some(&annotations));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("tulle.dev/exclude-inbound-port "));
}

#[test]
fn limits_are_set_by_an_annotation_each() {
    let options = parse(&[
        ("limits.tulle.dev/max-connections", " 100 "),
        ("limits.tulle.dev/max-head", "128Ki"),
        ("limits.tulle.dev/idle-timeout", "10m"),
        ("limits.tulle.dev/h2-stream-window", "1048576"),
    ])
    .expect("valid");
    let expected = [
        ("TULLE_H2_STREAM_WINDOW", "1048576"),
        ("TULLE_IDLE_TIMEOUT", "10m"),
        ("TULLE_MAX_CONNECTIONS", "100"),
        ("TULLE_MAX_HEAD", "128Ki"),
    ];
    let expected = expected.map(|(name, value)| (name, value.to_owned()));
    assert_eq!(options.limits, expected.into());
    assert!(parse(&[]).expect("valid").limits.is_empty());
}

#[test]
fn a_limit_that_a_sidecar_could_not_read_is_refused_by_annotation_value_and_remedy() {
    let rows = [
        ("max-connections", "0", "use a whole number from 1 to "),
        ("max-connections", "many", "use a whole number from 1 to "),
        ("max-head", "1Ki", "use a number of bytes from 8192 to "),
        ("max-head", "64KB", "such as 65536, 64Ki or 1Mi"),
        ("memory-limit", "", "it is empty; remove it for the default"),
        ("idle-timeout", "10", "use a duration from 1ms to 1000h"),
        ("idle-timeout", "0s", "use a duration from 1ms to 1000h"),
        (
            "h2-stream-window",
            "1",
            "use a number of bytes from 65535 to ",
        ),
    ];
    for (name, value, remedy) in rows {
        let name = format!("limits.tulle.dev/{name}");
        let error = parse(&[(&name, value)]).expect_err(&name);
        let start = format!("annotation {name} has the value {value:?}: ");
        assert!(
            error.starts_with(&start) && error.contains(remedy),
            "{error}"
        );
    }
}

#[test]
fn only_limits_are_set_so() {
    for name in [
        "max-conections",
        "MAX-HEAD",
        "trust-domain",
        "control-address",
        "xds-name",
        "undiscovered",
        "mark-sockets",
        "app-probes",
        "",
    ] {
        let name = format!("limits.tulle.dev/{name}");
        let error = parse(&[(&name, "1")]).expect_err(&name);
        let start = format!("annotation {name} names no limit of the sidecar");
        assert!(
            error.starts_with(&start) && error.contains("max-connections, "),
            "{error}"
        );
    }
}

#[test]
fn what_the_sidecar_asks_for_keeps_to_what_it_may_have() {
    let [cpu, cpu_limit, memory, memory_limit] = [
        "tulle.dev/proxy-cpu-request",
        "tulle.dev/proxy-cpu-limit",
        "tulle.dev/proxy-memory-request",
        "tulle.dev/proxy-memory-limit",
    ];
    let default = Resources::default();
    assert_eq!(parse(&[]).expect("valid").resources, default);
    let said = [
        (cpu, "100m"),
        (cpu_limit, "1.5"),
        (memory, " 64Mi"),
        (memory_limit, "1Gi"),
    ];
    let expected = Resources {
        cpu_request: "100m".to_owned(),
        cpu_limit: Some("1.5".to_owned()),
        memory_request: "64Mi".to_owned(),
        memory_limit: Some("1Gi".to_owned()),
    };
    assert_eq!(parse(&said).expect("valid").resources, expected);
    // What the pod does not ask for follows its limit.
    let limited = parse(&[(cpu_limit, "5m")]).expect("valid").resources;
    assert_eq!(limited.cpu_request, "5m");

    let rows = [
        (
            cpu,
            "1 core",
            "it is not a quantity; write a number of processors",
        ),
        (
            cpu_limit,
            "0",
            "it is too little for a sidecar; write a number of",
        ),
        (
            memory,
            "64MB",
            "it is not a quantity; write a number of bytes",
        ),
        (
            memory_limit,
            "8Mi",
            "it is too little for a sidecar; write a",
        ),
        (
            memory,
            "512Mi",
            "it is more than the limit of 256Mi; ask for less",
        ),
    ];
    for (name, value, problem) in rows {
        let error = parse(&[(name, value)]).expect_err(name);
        let expected = format!("annotation {name} has the value {value:?}: {problem}");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn a_limit_of_memory_above_that_of_the_container_earns_a_warning() {
    for (container, warned) in [("256Mi", 1), ("1Gi", 0)] {
        let pairs = [
            ("limits.tulle.dev/memory-limit", "512Mi"),
            ("tulle.dev/proxy-memory-limit", container),
        ];
        let warnings = parse(&pairs).expect("valid").warnings(None);
        assert_eq!(warnings.len(), warned, "{warnings:?}");
    }
}
