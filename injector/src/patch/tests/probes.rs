//! Probes and hooks, and what the sidecar gets of them.

use serde_json::json;

use super::*;
use crate::{HookKey, WarningReason};

#[test]
fn probes_over_the_network_go_through_the_sidecar_and_others_stay() {
    let containers = json!([{
        "name": "web",
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "readinessProbe": { "httpGet": { "path": "/ready", "port": "http", "scheme": "HTTPS" }, "periodSeconds": 7, "timeoutSeconds": 3 },
        "livenessProbe": { "tcpSocket": { "port": 8081, "host": "" } },
        "startupProbe": { "grpc": { "port": 9090, "service": "s" } },
    }, {
        "name": "tool",
        "readinessProbe": { "exec": { "command": ["true"] } },
        "livenessProbe": { "httpGet": { "port": "nameless" } },
        "startupProbe": { "httpGet": { "host": "192.0.2.1", "port": 80 } },
    }, {
        "name": "raw",
        "readinessProbe": { "tcpSocket": { "port": 9000 } },
    }]);
    let pod = pod(
        json!({ "annotations": { "tulle.dev/exclude-inbound-ports": "9000" } }),
        json!({ "containers": containers }),
    );
    let injected = inject(&pod);
    let web = &injected["spec"]["containers"][0];
    assert_eq!(
        web["readinessProbe"],
        json!({ "httpGet": { "path": "/app-health/web/readyz", "port": 15020 }, "periodSeconds": 7, "timeoutSeconds": 3 })
    );
    assert_eq!(
        web["livenessProbe"]["httpGet"]["path"],
        "/app-health/web/livez"
    );
    assert_eq!(
        web["startupProbe"],
        json!({ "httpGet": { "path": "/app-health/web/startupz", "port": 15020 } })
    );
    for index in [1, 2] {
        assert_eq!(injected["spec"]["containers"][index], containers[index]);
    }
    let saved =
        variable(&injected["spec"]["initContainers"][1], "TULLE_APP_PROBES").expect("saved");
    let saved: Value = serde_json::from_str(saved).expect("JSON");
    assert_eq!(
        saved,
        json!({
            "/app-health/web/readyz": { "httpGet": { "path": "/ready", "port": 8080, "scheme": "HTTPS" }, "timeoutSeconds": 3 },
            "/app-health/web/livez": { "tcpSocket": { "port": 8081 }, "timeoutSeconds": 1 },
            "/app-health/web/startupz": { "grpc": { "port": 9090, "service": "s" }, "timeoutSeconds": 1 },
        })
    );
}

#[test]
fn what_a_probe_leaves_out_has_its_value_for_the_sidecar() {
    let http = json!({ "port": 80, "path": null, "httpHeaders": [{ "name": "a" }, { "name": "b", "value": null }] });
    let probe = json!({ "httpGet": http, "timeoutSeconds": 0, "unknown": 1 });
    let pod = pod(
        json!({}),
        json!({ "containers": [{ "name": "web", "readinessProbe": probe }] }),
    );
    let injected = inject(&pod);
    let sidecar = &injected["spec"]["initContainers"][1];
    let saved = variable(sidecar, "TULLE_APP_PROBES").expect("saved");
    let saved: Value = serde_json::from_str(saved).expect("JSON");
    let headers = json!([{ "name": "a", "value": "" }, { "name": "b", "value": "" }]);
    assert_eq!(
        saved["/app-health/web/readyz"],
        json!({ "httpGet": { "port": 80, "httpHeaders": headers }, "timeoutSeconds": 1 })
    );
}

#[test]
fn hooks_over_the_network_go_through_the_sidecar_and_others_stay() {
    let containers = json!([{
        "name": "web",
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "lifecycle": {
            "postStart": { "httpGet": { "path": "/warm", "port": "http" } },
            "preStop": { "tcpSocket": { "port": 8081 } },
            "future": 1,
        },
    }, {
        "name": "tool",
        "lifecycle": {
            "postStart": { "exec": { "command": ["true"] } },
            "preStop": { "httpGet": { "host": "192.0.2.1", "port": 80 } },
        },
    }, {
        "name": "raw",
        "lifecycle": { "preStop": { "httpGet": { "port": 9000 } } },
    }]);
    let pod = pod(
        json!({ "annotations": { "tulle.dev/exclude-inbound-ports": "9000" } }),
        json!({ "containers": containers }),
    );
    let injected = inject(&pod);
    let word = InjectorConfig::default().hook_key.word(&pod);
    let path = |step| format!("/app-lifecycle/web/{step}/{word}");
    let hook = |step| json!({ "httpGet": { "path": path(step), "port": 15020 } });
    assert_eq!(
        injected["spec"]["containers"][0]["lifecycle"],
        json!({ "postStart": hook("poststartz"), "preStop": hook("prestopz"), "future": 1 })
    );
    for index in [1, 2] {
        assert_eq!(injected["spec"]["containers"][index], containers[index]);
    }
    let saved = variable(&injected["spec"]["initContainers"][1], "TULLE_APP_PROBES");
    let saved: Value = serde_json::from_str(saved.expect("saved")).expect("JSON");
    assert_eq!(
        saved,
        json!({
            path("poststartz"): { "httpGet": { "path": "/warm", "port": 8080 }, "timeoutSeconds": 50 },
            path("prestopz"): { "tcpSocket": { "port": 8081 }, "timeoutSeconds": 50 },
        })
    );
}

#[test]
fn the_paths_of_hooks_are_known_to_whoever_can_read_the_pod_alone() {
    let [one, other] = ["a", "b"].map(|image| {
        let hook = json!({ "preStop": { "httpGet": { "port": 1 } } });
        let container = json!({ "name": "web", "image": image, "lifecycle": hook });
        pod(
            json!({ "name": "same" }),
            json!({ "containers": [container] }),
        )
    });
    let key = || HookKey::random().expect("random numbers");
    let config = |hook_key| InjectorConfig {
        hook_key,
        ..InjectorConfig::default()
    };
    let path = |pod, config: &InjectorConfig| {
        let injected = try_inject(pod, config).expect("injected").document;
        injected["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"].to_string()
    };
    let mine = config(key());
    let first = path(&one, &mine);
    assert_eq!(first, path(&one, &mine), "the same each time");
    for differs in [path(&other, &mine), path(&one, &config(key()))] {
        assert_ne!(first, differs);
    }
    assert!(
        !format!("{mine:?}").contains("hook_key: HookKey("),
        "it is not told"
    );
}

#[test]
fn what_our_types_do_not_know_of_a_probe_reaches_the_sidecar() {
    let probe = json!({ "httpGet": { "port": 80, "future": { "a": [1] }, "gone": null } });
    let pod = pod(
        json!({}),
        json!({ "containers": [{ "name": "web", "livenessProbe": probe }] }),
    );
    let injected = inject(&pod);
    let saved = variable(&injected["spec"]["initContainers"][1], "TULLE_APP_PROBES");
    let saved: Value = serde_json::from_str(saved.expect("saved")).expect("JSON");
    assert_eq!(
        saved["/app-health/web/livez"]["httpGet"],
        json!({ "port": 80, "future": { "a": [1] } })
    );
}

#[test]
fn probes_stay_where_the_operator_turned_rewriting_off() {
    let config = InjectorConfig {
        rewrite_probes: false,
        ..InjectorConfig::default()
    };
    let pod = pod(
        json!({}),
        json!({ "containers": [{ "name": "web", "readinessProbe": { "tcpSocket": { "port": 80 } } }] }),
    );
    let injected = try_inject(&pod, &config).expect("injected").document;
    assert_eq!(injected["spec"]["containers"], pod["spec"]["containers"]);
    assert_eq!(
        variable(&injected["spec"]["initContainers"][1], "TULLE_APP_PROBES"),
        None
    );
}

#[test]
fn what_an_ordinary_sidecar_must_wait_for_does_not_wait_for_it() {
    let on = |port: u16| json!({ "httpGet": { "path": "/", "port": port } });
    let helper = json!({
        "name": "helper",
        "restartPolicy": "Always",
        "startupProbe": on(8081),
        "readinessProbe": on(8081),
        "livenessProbe": on(8081),
        "lifecycle": { "postStart": on(8081), "preStop": on(8081) },
    });
    let spec = json!({
        "initContainers": [helper],
        "containers": [{ "name": "web", "startupProbe": on(8080), "lifecycle": { "postStart": on(8080) } }],
    });
    let step = |it: &Value| it["httpGet"]["port"] == 15020;
    for (native, excluded, to_start, later, warned) in [
        ("true", "", true, true, false),
        ("false", "", false, true, true),
        ("false", "8081", false, false, false),
    ] {
        let meta = json!({ "annotations": {
            "tulle.dev/native-sidecar": native,
            "tulle.dev/exclude-inbound-ports": excluded,
        } });
        let outcome = try_inject(&pod(meta, spec.clone()), &InjectorConfig::default());
        let outcome = outcome.expect("injected");
        let spec = &outcome.document["spec"];
        let named = |list: &str, name: &str| {
            let mut all = spec[list].as_array().into_iter().flatten();
            all.find(|it| it["name"] == name).cloned().expect("there")
        };
        let helper = named("initContainers", "helper");
        for probe in [&helper["startupProbe"], &helper["lifecycle"]["postStart"]] {
            assert_eq!(step(probe), to_start, "{native} {excluded}: {probe}");
        }
        let others = [&helper["readinessProbe"], &helper["livenessProbe"]];
        for probe in others.into_iter().chain([&helper["lifecycle"]["preStop"]]) {
            assert_eq!(step(probe), later, "{native} {excluded}: {probe}");
        }
        let web = named("containers", "web");
        assert!(step(&web["startupProbe"]) && step(&web["lifecycle"]["postStart"]));
        let mut reasons = outcome.warnings.iter().map(|it| it.reason);
        assert_eq!(reasons.any(|it| it == WarningReason::Apart), warned);
    }
}
