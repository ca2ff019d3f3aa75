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
    assert!(!options.native_sidecar && !options.access_log);
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
        (
            "tulle.dev/xds-name",
            "config infra",
            "what the control plane's certificate",
        ),
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
        ("tulle.dev/native-sidecar", "yes", "write `true` or `false`"),
        ("tulle.dev/access-log", "", "write `json` or `off`"),
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
fn an_unknown_annotation_of_ours_earns_a_warning_and_foreign_ones_do_not() {
    let annotations = [
        "tulle.dev/exclude-inbound-port",
        "tulle.dev/access-log",
        "example.com/tulle.dev",
    ];
    let annotations = annotations
        .map(|name| (name.to_owned(), "1".to_owned()))
        .into();
    let warnings = warnings(Some(&annotations));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("tulle.dev/exclude-inbound-port "));
}
