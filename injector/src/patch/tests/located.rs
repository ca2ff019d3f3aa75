//! Where a sidecar is told the control plane.

use std::net::SocketAddr;

use serde_json::json;

use super::*;
use crate::{Located, WarningReason};

#[test]
fn a_pod_with_a_resolver_of_its_own_is_told_the_control_plane_by_number_or_its_author_is_warned() {
    let name = InjectorConfig::default().control_address;
    let (known, unknown) = (Some("10.96.3.4:15012"), None);
    for (policy, at, expected, warned) in [
        (json!("ClusterFirst"), known, name.as_str(), false),
        (json!(null), known, &name, false),
        (json!("ClusterFirst"), unknown, &name, false),
        (json!("Default"), known, "10.96.3.4:15012", false),
        (json!("None"), known, "10.96.3.4:15012", false),
        (json!("Default"), unknown, &name, true),
        (json!("None"), unknown, &name, true),
    ] {
        let address = at.map(|it: &str| it.parse::<SocketAddr>().expect("an address"));
        let config = InjectorConfig {
            control_at: address.map(Located::from).unwrap_or_default(),
            ..InjectorConfig::default()
        };
        let spec = json!({ "containers": [{ "name": "web" }], "dnsPolicy": policy });
        let injected = try_inject(&pod(json!({}), spec), &config).expect("injected");
        let sidecar = &injected.document["spec"]["initContainers"][1];
        let row = format!("{policy} {at:?}");
        assert_eq!(
            variable(sidecar, "TULLE_CONTROL_ADDRESS"),
            Some(expected),
            "{row}"
        );
        let mut reasons = injected.warnings.iter().map(|it| it.reason);
        assert_eq!(
            reasons.any(|it| it == WarningReason::Resolver),
            warned,
            "{row}"
        );
    }
}
