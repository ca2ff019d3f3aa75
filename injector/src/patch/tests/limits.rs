//! What a pod that limits its sidecar gets.

use super::*;

/// The whole environment and the resources of a sidecar whose pod sets some of everything.
#[test]
fn limits_and_resources_reach_the_sidecar() {
    let annotations = json!({
        "limits.tulle.dev/max-requests": "500",
        "limits.tulle.dev/max-head": "16Ki",
        "limits.tulle.dev/request-head-timeout": "5s",
        "limits.tulle.dev/h2-max-streams": "50",
        "tulle.dev/proxy-cpu-limit": "2",
        "tulle.dev/proxy-memory-request": "32Mi",
        "tulle.dev/proxy-memory-limit": "128Mi",
    });
    let injected = inject(&pod(
        json!({ "annotations": annotations }),
        json!({ "containers": [{ "name": "web" }] }),
    ));
    let [capture, sidecar] = [0, 1].map(|index| &injected["spec"]["initContainers"][index]);
    let own = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let expected = json!([
        own("POD_NAME", "metadata.name"),
        own("POD_NAMESPACE", "metadata.namespace"),
        own("POD_IP", "status.podIP"),
        own("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        { "name": "TULLE_CONTROL_ADDRESS", "value": "tulle-control.tulle-system.svc.cluster.local.:15012" },
        { "name": "TULLE_TRUST_DOMAIN", "value": "cluster.local" },
        { "name": "TULLE_CLUSTER_DOMAIN", "value": "cluster.local" },
        { "name": "TULLE_LOG", "value": "info" },
        { "name": "TULLE_ACCESS_LOG", "value": "json" },
        { "name": "TULLE_WORKERS", "value": "1" },
        { "name": "TULLE_DRAIN_DEADLINE", "value": "25s" },
        { "name": "TULLE_H2_MAX_STREAMS", "value": "50" },
        { "name": "TULLE_MAX_HEAD", "value": "16Ki" },
        { "name": "TULLE_MAX_REQUESTS", "value": "500" },
        { "name": "TULLE_REQUEST_HEAD_TIMEOUT", "value": "5s" },
    ]);
    assert_eq!(sidecar["env"], expected);
    let resources = json!({
        "requests": { "cpu": "10m", "memory": "32Mi" },
        "limits": { "cpu": "2", "memory": "128Mi" },
    });
    assert_eq!(sidecar["resources"], resources);
    assert_eq!(capture["resources"], resources);
    assert_eq!(variable(capture, "TULLE_MAX_HEAD"), None);
}

#[test]
fn a_pod_that_names_a_limit_wrongly_is_refused() {
    let annotations = json!({ "limits.tulle.dev/max-heads": "16Ki" });
    let pod = pod(
        json!({ "annotations": annotations }),
        json!({ "containers": [{ "name": "web" }] }),
    );
    let error = try_inject(&pod, &InjectorConfig::default()).expect_err("no such limit");
    assert!(error.contains("limits.tulle.dev/max-heads"), "{error}");
    let mut out = pod;
    out["metadata"]["labels"] = json!({ "tulle.dev/inject": "disabled" });
    try_inject(&out, &InjectorConfig::default()).expect("it has no sidecar");
}
