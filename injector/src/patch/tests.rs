//! What is added to a pod, and that a second time adds nothing.

use serde_json::{Value, json};

use crate::{InjectorConfig, Namespace, Outcome, inject_document, inject_pod};

mod golden;
mod limits;
mod located;
mod metrics;
mod own;
mod probes;

fn pod(metadata: Value, spec: Value) -> Value {
    json!({ "kind": "Pod", "metadata": metadata, "spec": spec })
}

fn try_inject(pod: &Value, config: &InjectorConfig) -> Result<Outcome, String> {
    inject_pod(pod, &Namespace::enabled("shop"), config).map_err(|error| error.to_string())
}

fn inject(pod: &Value) -> Value {
    try_inject(pod, &InjectorConfig::default())
        .expect("injected")
        .document
}

fn names(containers: &Value) -> Vec<&str> {
    containers
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect()
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let env = container["env"].as_array()?;
    env.iter().find(|variable| variable["name"] == name)?["value"].as_str()
}

#[test]
fn a_native_sidecar_starts_after_capture_and_before_the_users_init_containers() {
    let pod = pod(
        json!({}),
        json!({ "initContainers": [{ "name": "migrate" }], "containers": [{ "name": "web" }] }),
    );
    let injected = inject(&pod);
    assert_eq!(
        names(&injected["spec"]["initContainers"]),
        ["tulle-capture", "tulle-proxy", "migrate"]
    );
    assert_eq!(names(&injected["spec"]["containers"]), ["web"]);
    let sidecar = &injected["spec"]["initContainers"][1];
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(
        sidecar["readinessProbe"]["httpGet"],
        json!({ "path": "/healthz/ready", "port": 15021 })
    );
    assert_eq!(
        sidecar["readinessProbe"]["httpGet"],
        json!({ "path": "/healthz/ready", "port": 15021 })
    );
}

#[test]
fn a_classic_sidecar_comes_first_and_capture_last() {
    let pod = pod(
        json!({ "annotations": { "tulle.dev/native-sidecar": "false" } }),
        json!({ "initContainers": [{ "name": "migrate" }], "containers": [{ "name": "web" }] }),
    );
    let injected = inject(&pod);
    assert_eq!(
        names(&injected["spec"]["initContainers"]),
        ["migrate", "tulle-capture"]
    );
    assert_eq!(
        names(&injected["spec"]["containers"]),
        ["tulle-proxy", "web"]
    );
    assert!(
        injected["spec"]["containers"][0]
            .get("restartPolicy")
            .is_none()
    );
    assert_eq!(
        injected["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"],
        "web"
    );
}

#[test]
fn a_classic_sidecar_that_nobody_would_tell_of_the_end_of_its_job_earns_a_warning() {
    let owner = |kind: &str| json!([{ "apiVersion": "v1", "kind": kind, "name": "o", "uid": "u" }]);
    let foreign = Some("xds.example:15012");
    for (name, native, control, owners, policy, expected) in [
        (
            "a pod of a Job",
            "false",
            foreign,
            owner("Job"),
            "Always",
            1,
        ),
        ("one that ends", "false", foreign, Value::Null, "Never", 1),
        (
            "one that goes on",
            "false",
            foreign,
            owner("ReplicaSet"),
            "Always",
            0,
        ),
        (
            "Kubernetes ends it",
            "true",
            foreign,
            owner("Job"),
            "Never",
            0,
        ),
        (
            "our control plane ends it",
            "false",
            None,
            owner("Job"),
            "Never",
            0,
        ),
    ] {
        let mut annotations = json!({ "tulle.dev/native-sidecar": native });
        if let Some(address) = control {
            annotations["tulle.dev/xds-address"] = json!(address);
        }
        let pod = pod(
            json!({ "annotations": annotations, "ownerReferences": owners }),
            json!({ "containers": [{ "name": "work" }], "restartPolicy": policy }),
        );
        let outcome = try_inject(&pod, &InjectorConfig::default()).expect("injected");
        assert_eq!(outcome.warnings.len(), expected, "{name}");
        let job = json!({ "kind": "Job", "spec": { "template": pod } });
        let outcome = inject_document(job, &Namespace::enabled("shop"), &InjectorConfig::default());
        let foreign = usize::from(control.is_some() && native == "false");
        assert_eq!(
            outcome.expect("injected").warnings.len(),
            foreign,
            "{name} in a Job"
        );
    }
}

#[test]
fn a_sidecar_that_marks_its_sockets_may_do_so() {
    let config = InjectorConfig {
        mark_sockets: true,
        ..InjectorConfig::default()
    };
    let pod =
        json!({ "kind": "Pod", "metadata": {}, "spec": { "containers": [{ "name": "web" }] } });
    let outcome = inject_document(pod, &Namespace::enabled("shop"), &config).expect("injected");
    assert_eq!(
        outcome.document["spec"]["initContainers"][1]["securityContext"]["capabilities"],
        json!({ "add": ["NET_ADMIN"], "drop": ["ALL"] })
    );
}

#[test]
fn the_sidecar_has_no_privileges_and_capture_has_one() {
    let injected = inject(&pod(
        json!({}),
        json!({ "containers": [{ "name": "web" }] }),
    ));
    let [capture, sidecar] =
        [0, 1].map(|index| &injected["spec"]["initContainers"][index]["securityContext"]);
    assert_eq!(sidecar["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(
        capture["capabilities"],
        json!({ "add": ["NET_ADMIN"], "drop": ["ALL"] })
    );
    for (field, value) in [("runAsUser", 1337), ("runAsGroup", 1337)] {
        assert_eq!(sidecar[field], value);
    }
    assert_eq!(sidecar["runAsNonRoot"], true);
    for context in [capture, sidecar] {
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
    }
}

#[test]
fn token_bundle_and_state_are_mounted_by_the_sidecar_only_and_none_inside_another() {
    let injected = inject(&pod(
        json!({}),
        json!({ "containers": [{ "name": "web" }], "volumes": [{ "name": "data" }] }),
    ));
    let volumes = &injected["spec"]["volumes"];
    assert_eq!(names(volumes), ["data", "tulle-token", "tulle-state"]);
    let sources = &volumes[1]["projected"]["sources"];
    assert_eq!(
        sources[0]["serviceAccountToken"],
        json!({ "audience": "tulle-ca", "expirationSeconds": 3600, "path": "token" })
    );
    assert_eq!(
        sources[1]["configMap"],
        json!({ "name": "tulle-ca-root", "items": [{ "key": "root.pem", "path": "ca/root.pem" }] })
    );
    assert_eq!(
        volumes[2]["emptyDir"],
        json!({ "medium": "Memory", "sizeLimit": "16Mi" })
    );
    let mounts = injected["spec"]["initContainers"][1]["volumeMounts"]
        .as_array()
        .expect("mounts");
    let paths: Vec<_> = mounts
        .iter()
        .map(|mount| format!("{}/", mount["mountPath"].as_str().expect("path")))
        .collect();
    assert_eq!(
        paths,
        ["/var/run/secrets/tulle/", "/var/run/secrets/tulle-state/"]
    );
    assert!(
        !paths[1].starts_with(&paths[0])
            && mounts.iter().all(|mount| mount.get("subPath").is_none())
    );
    assert!(
        injected["spec"]["containers"][0]
            .get("volumeMounts")
            .is_none()
    );
}

#[test]
fn annotations_reach_the_capture_rules_and_the_sidecar() {
    let annotations = json!({
        "tulle.dev/exclude-inbound-ports": "9000",
        "tulle.dev/exclude-outbound-ports": "3306, 25",
        "tulle.dev/exclude-outbound-cidrs": "192.0.2.0/24",
        "tulle.dev/proxy-log-level": "debug",
        "tulle.dev/access-log": "off",
        "tulle.dev/ingress-headers": "keep",
        "tulle.dev/xds-address": "config.infra.svc:18000",
        "tulle.dev/xds-name": "config.infra.svc",
    });
    let injected = inject(&pod(
        json!({ "annotations": annotations }),
        json!({ "containers": [{ "name": "web" }] }),
    ));
    let init = &injected["spec"]["initContainers"];
    let expected = [
        "capture",
        "--exclude-inbound-ports=15020,15021,9000",
        "--exclude-outbound-ports=25,3306",
        "--exclude-outbound-cidrs=192.0.2.0/24",
    ];
    assert_eq!(init[0]["args"], json!(expected));
    let address =
        json!({ "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } });
    assert_eq!(init[0]["env"][0], address, "the rules are for this pod");
    assert_eq!(variable(&init[1], "TULLE_LOG"), Some("debug"));
    assert_eq!(variable(&init[1], "TULLE_ACCESS_LOG"), Some("off"));
    assert_eq!(variable(&init[1], "TULLE_INGRESS_HEADERS"), Some("keep"));
    let foreign = Some("config.infra.svc:18000");
    assert_eq!(variable(&init[1], "TULLE_XDS_ADDRESS"), foreign);
    assert_eq!(
        variable(&init[1], "TULLE_XDS_NAME"),
        Some("config.infra.svc")
    );
    assert_eq!(variable(&init[0], "TULLE_XDS_ADDRESS"), None);
}

#[test]
fn the_operators_settings_reach_the_sidecar() {
    let config = InjectorConfig {
        image: "registry.example/proxy:1".to_owned(),
        control_address: "192.0.2.1:15012".to_owned(),
        mark_sockets: true,
        ..InjectorConfig::default()
    };
    let pod = pod(
        json!({}),
        json!({ "containers": [{ "name": "web" }], "terminationGracePeriodSeconds": 60 }),
    );
    let injected = try_inject(&pod, &config).expect("injected").document;
    let init = &injected["spec"]["initContainers"];
    let sidecar = &init[1];
    assert_eq!(sidecar["image"], "registry.example/proxy:1");
    let rows = [
        ("TULLE_CONTROL_ADDRESS", Some("192.0.2.1:15012")),
        ("TULLE_TRUST_DOMAIN", Some("cluster.local")),
        ("TULLE_MARK_SOCKETS", Some("true")),
        ("TULLE_DRAIN_DEADLINE", Some("55s")),
        ("TULLE_APP_PROBES", None),
        ("TULLE_INGRESS_HEADERS", None),
    ];
    for (name, expected) in rows {
        assert_eq!(variable(sidecar, name), expected, "{name}");
    }
    assert_eq!(variable(&init[0], "TULLE_MARK_SOCKETS"), Some("true"));
    let address = sidecar["env"]
        .as_array()
        .expect("env")
        .iter()
        .find(|one| one["name"] == "POD_IP")
        .expect("POD_IP");
    assert_eq!(
        address["valueFrom"]["fieldRef"]["fieldPath"],
        "status.podIP"
    );
}

#[test]
fn pods_get_the_secrets_that_the_sidecars_image_is_pulled_with() {
    let config = InjectorConfig {
        image_pull_secrets: vec!["mesh".to_owned(), "both".to_owned()],
        ..InjectorConfig::default()
    };
    let named = |names: &[&str]| -> Value {
        let names = names.iter().map(|name| json!({ "name": name }));
        names.collect()
    };
    let own = json!({ "containers": [], "imagePullSecrets": named(&["own", "both"]) });
    for (spec, config, expected) in [
        (own, &config, named(&["own", "both", "mesh"])),
        (
            json!({ "containers": [] }),
            &config,
            named(&["mesh", "both"]),
        ),
        (
            json!({ "containers": [] }),
            &InjectorConfig::default(),
            Value::Null,
        ),
    ] {
        let injected = try_inject(&pod(json!({}), spec), config).expect("injected");
        assert_eq!(
            injected.document["spec"]["imagePullSecrets"], expected,
            "the pod's own first, none twice"
        );
    }
}

#[test]
fn the_drain_ends_before_the_pods_grace_period_unless_the_operator_set_it() {
    let rows = [
        (None, None, "25s", "28s"),
        (Some(2), None, "1s", "1s"),
        (Some(i64::MIN), None, "1s", "1s"),
        // As many seconds as a sidecar's clock can count.
        (Some(i64::MAX), None, "2592000s", "2592000s"),
        (Some(60), Some(1500), "1500ms", "1500ms"),
    ];
    for (grace, deadline, native, ordinary) in rows {
        let config = InjectorConfig {
            drain_deadline: deadline.map(std::time::Duration::from_millis),
            ..InjectorConfig::default()
        };
        let spec = json!({ "containers": [], "terminationGracePeriodSeconds": grace });
        let injected = try_inject(&pod(json!({}), spec.clone()), &config).expect("injected");
        let sidecar = &injected.document["spec"]["initContainers"][1];
        assert_eq!(variable(sidecar, "TULLE_DRAIN_DEADLINE"), Some(native));
        assert_eq!(variable(sidecar, "TULLE_OUTLIVE_APP"), None);
        let metadata = json!({ "annotations": { "tulle.dev/native-sidecar": "false" } });
        let injected = try_inject(&pod(metadata, spec), &config).expect("injected");
        let sidecar = &injected.document["spec"]["containers"][0];
        assert_eq!(variable(sidecar, "TULLE_DRAIN_DEADLINE"), Some(ordinary));
        assert_eq!(variable(sidecar, "TULLE_OUTLIVE_APP"), Some("listeners"));
    }
}

#[test]
fn an_ordinary_sidecar_goes_by_listeners_where_there_is_one_app_whose_they_are() {
    let metadata = json!({ "annotations": { "tulle.dev/native-sidecar": "false" } });
    for (names, expected) in [
        (&["web"][..], "listeners"),
        (&["web", "tulle-proxy"], "listeners"),
        (&["worker", "exporter"], "deadline"),
    ] {
        let container = |name: &&str| match *name {
            "tulle-proxy" => json!({ "name": name, "image": "auto" }),
            _ => json!({ "name": name, "image": "a" }),
        };
        let containers: Vec<_> = names.iter().map(container).collect();
        let pod = pod(metadata.clone(), json!({ "containers": containers }));
        let injected = inject(&pod);
        let containers = injected["spec"]["containers"].as_array().expect("a list");
        let sidecar = containers.iter().find(|it| it["name"] == "tulle-proxy");
        let outlive = variable(sidecar.expect("a sidecar"), "TULLE_OUTLIVE_APP");
        assert_eq!(outlive, Some(expected), "{names:?}");
    }
}

#[test]
fn the_canonical_service_is_named_by_labels_then_owner_then_pod_and_never_overwritten() {
    let owner = |kind: &str, name: &str| json!([{ "apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true }]);
    let rows = [
        (
            "recommended label",
            json!({ "labels": { "app.kubernetes.io/name": "a", "app": "b" } }),
            "a",
            "latest",
        ),
        (
            "app label",
            json!({ "labels": { "app": "b", "version": "v2" } }),
            "b",
            "v2",
        ),
        (
            "deployment of a replica set",
            json!({ "labels": { "pod-template-hash": "abc" }, "ownerReferences": owner("ReplicaSet", "web-abc") }),
            "web",
            "latest",
        ),
        (
            "stateful set",
            json!({ "name": "db-0", "ownerReferences": owner("StatefulSet", "db") }),
            "db",
            "latest",
        ),
        ("bare pod", json!({ "name": "lone" }), "lone", "latest"),
        (
            "set by the user",
            json!({ "labels": { "app": "b", "service.istio.io/canonical-name": "x", "service.istio.io/canonical-revision": "y" } }),
            "x",
            "y",
        ),
    ];
    for (name, metadata, service, revision) in rows {
        let injected = inject(&pod(metadata, json!({ "containers": [{ "name": "web" }] })));
        let labels = &injected["metadata"]["labels"];
        assert_eq!(labels["service.istio.io/canonical-name"], service, "{name}");
        assert_eq!(
            labels["service.istio.io/canonical-revision"], revision,
            "{name}"
        );
        assert_eq!(labels["tulle.dev/proxied"], "true", "{name}");
    }
}

#[test]
fn the_app_starts_when_the_hook_of_the_sidecar_has_ended_or_its_startup_probe() {
    let pod = pod(json!({}), json!({ "containers": [{ "name": "web" }] }));
    for start_hook in [true, false] {
        let config = InjectorConfig {
            start_hook,
            ..InjectorConfig::default()
        };
        let injected = try_inject(&pod, &config).expect("injected").document;
        let sidecar = &injected["spec"]["initContainers"][1];
        let hook = &sidecar["lifecycle"]["postStart"]["exec"]["command"];
        let expected = if start_hook {
            json!(["tulle-proxy", "await"])
        } else {
            Value::Null
        };
        assert_eq!(*hook, expected);
        assert_eq!(sidecar.get("startupProbe").is_some(), !start_hook);
    }
}

#[test]
fn a_pod_says_the_revision_that_injected_it_and_calls_its_control_plane() {
    let revision: crate::Revision = "canary".parse().expect("a name");
    let config = InjectorConfig {
        control_address: revision.control_address("cluster.local"),
        revision,
        ..InjectorConfig::default()
    };
    let labels = json!({ "tulle.dev/rev": "canary", "tulle.dev/inject": "enabled" });
    let of_canary = pod(
        json!({ "labels": labels }),
        json!({ "containers": [{ "name": "web" }] }),
    );
    let plain = pod(json!({}), json!({ "containers": [{ "name": "web" }] }));
    for (pod, config, revision, address) in [
        (
            of_canary,
            config,
            "canary",
            "tulle-control-canary.tulle-system.svc.cluster.local.:15012",
        ),
        (
            plain,
            InjectorConfig::default(),
            "default",
            "tulle-control.tulle-system.svc.cluster.local.:15012",
        ),
    ] {
        let injected = try_inject(&pod, &config).expect("injected").document;
        assert_eq!(injected["metadata"]["labels"]["tulle.dev/rev"], revision);
        let status = injected["metadata"]["annotations"]["tulle.dev/status"].as_str();
        let status: Value = serde_json::from_str(status.expect("set")).expect("JSON");
        assert_eq!(status["revision"], revision);
        let sidecar = &injected["spec"]["initContainers"][1];
        assert_eq!(variable(sidecar, "TULLE_CONTROL_ADDRESS"), Some(address));
    }
}

#[test]
fn fields_that_our_types_do_not_know_survive() {
    let pod = pod(
        json!({ "name": "p", "future": { "a": [1] } }),
        json!({ "containers": [{ "name": "web", "future": 1.5, "readinessProbe": { "tcpSocket": { "port": 80, "f": 1 }, "future": 2 } }], "future": null }),
    );
    let injected = inject(&pod);
    assert_eq!(injected["metadata"]["future"], json!({ "a": [1] }));
    assert_eq!(injected["spec"]["containers"][0]["future"], 1.5);
    assert_eq!(
        injected["spec"]["containers"][0]["readinessProbe"]["future"],
        2
    );
    assert_eq!(injected["spec"].get("future"), Some(&Value::Null));
}

#[test]
fn a_pod_that_would_defeat_its_sidecar_is_refused_and_its_neighbour_is_not() {
    let container = |extra: Value| {
        let mut container = json!({ "name": "web" });
        for (key, value) in extra.as_object().into_iter().flatten() {
            container[key] = value.clone();
        }
        json!({ "containers": [container] })
    };
    let pod_level = |container: Value| json!({ "securityContext": { "runAsUser": 1337 }, "containers": [{ "name": "web", "securityContext": container }] });
    let rows = [
        (
            "user",
            container(json!({ "securityContext": { "runAsUser": 1337 } })),
            Some("container web would run with runAsUser 1337"),
        ),
        (
            "group",
            container(json!({ "securityContext": { "runAsGroup": 1337 } })),
            Some("container web would run with runAsGroup 1337"),
        ),
        (
            "another user",
            container(json!({ "securityContext": { "runAsUser": 1338 } })),
            None,
        ),
        (
            "user by the pod",
            pod_level(json!({})),
            Some("container web would run with runAsUser 1337"),
        ),
        (
            "user by the pod, overridden",
            pod_level(json!({ "runAsUser": 1000 })),
            None,
        ),
        (
            "user of an init container",
            json!({ "initContainers": [{ "name": "i", "securityContext": { "runAsUser": 1337 } }], "containers": [] }),
            Some("container i would run with runAsUser 1337"),
        ),
        (
            "sidecar's name",
            json!({ "containers": [{ "name": "tulle-proxy" }] }),
            Some("a container is named tulle-proxy"),
        ),
        (
            "volume's name",
            json!({ "containers": [], "volumes": [{ "name": "tulle-state" }] }),
            Some("a volume is named tulle-state"),
        ),
        (
            "sidecar's port",
            container(json!({ "ports": [{ "containerPort": 15006 }] })),
            Some("container web declares port 15006"),
        ),
        (
            "another port",
            container(json!({ "ports": [{ "containerPort": 15007 }] })),
            None,
        ),
    ];
    for (name, spec, expected) in rows {
        let result = try_inject(&pod(json!({}), spec), &InjectorConfig::default());
        match (result, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(start)) => assert!(
                error.starts_with(start) && error.contains(':'),
                "{name}: {error}"
            ),
            (result, expected) => panic!("{name}: {result:?} instead of {expected:?}"),
        }
    }
}
