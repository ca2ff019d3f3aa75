//! What a pod says of its sidecar by a container of its name.

use serde_json::json;

use super::*;

fn own(container: &Value) -> Value {
    let mut own = json!({ "name": "tulle-proxy", "image": "auto" });
    for (name, value) in container.as_object().expect("an object") {
        own[name] = value.clone();
    }
    own
}

fn with_own(container: &Value) -> Value {
    pod(
        json!({}),
        json!({ "containers": [{ "name": "web" }, own(container), { "name": "log" }] }),
    )
}

#[test]
fn what_the_user_says_wins_and_the_rest_is_ours() {
    let said = json!({
        "image": "auto",
        "imagePullPolicy": "Never",
        "env": [{ "name": "TULLE_LOG", "value": "debug" }, { "name": "EXTRA", "value": "1" }],
        "resources": { "limits": { "memory": "1Gi" } },
        "volumeMounts": [{ "name": "certs", "mountPath": "/certs" }],
        "readinessProbe": { "exec": { "command": ["true"] } },
        "lifecycle": { "preStop": { "sleep": { "seconds": 1 } } },
        "restartPolicy": null,
        "future": { "a": 1 },
    });
    let injected = inject(&with_own(&said));
    let [initial, apps] =
        ["initContainers", "containers"].map(|list| names(&injected["spec"][list]));
    assert_eq!(initial, ["tulle-capture", "tulle-proxy"]);
    assert_eq!(apps, ["web", "log"], "it is in its place, and there only");
    let sidecar = &injected["spec"]["initContainers"][1];
    assert_eq!(sidecar["image"], InjectorConfig::default().image);
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["imagePullPolicy"], "Never");
    assert_eq!(variable(sidecar, "TULLE_LOG"), Some("debug"));
    assert_eq!(variable(sidecar, "EXTRA"), Some("1"));
    assert_eq!(variable(sidecar, "TULLE_WORKERS"), Some("1"));
    assert_eq!(sidecar["resources"]["limits"], json!({ "memory": "1Gi" }));
    assert_eq!(sidecar["resources"]["requests"]["cpu"], "10m");
    let mounts = sidecar["volumeMounts"].as_array().map(Vec::len);
    assert_eq!(mounts, Some(3));
    assert_eq!(sidecar["readinessProbe"], said["readinessProbe"]);
    assert_eq!(
        sidecar["lifecycle"]["preStop"],
        said["lifecycle"]["preStop"]
    );
    assert!(sidecar["lifecycle"]["postStart"].is_object());
    assert_eq!(sidecar["future"], said["future"]);
}

#[test]
fn what_the_api_server_filled_in_is_not_the_users_word() {
    let said = json!({ "env": [{ "name": "EXTRA", "value": "1" }] });
    let mut defaulted = said.clone();
    for (name, value) in [
        ("imagePullPolicy", json!("Always")),
        ("resources", json!({})),
        ("terminationMessagePath", json!("/dev/termination-log")),
        ("terminationMessagePolicy", json!("File")),
    ] {
        defaulted[name] = value;
    }
    assert_eq!(inject(&with_own(&defaulted)), inject(&with_own(&said)));
}

#[test]
fn a_variable_of_the_users_takes_the_place_of_ours_whole() {
    let from = json!({ "configMapKeyRef": { "name": "c", "key": "k" } });
    let said = json!({ "env": [{ "name": "TULLE_LOG", "valueFrom": from }] });
    let injected = inject(&with_own(&said));
    let env = injected["spec"]["initContainers"][1]["env"].as_array();
    let mut logs = env
        .expect("a list")
        .iter()
        .filter(|it| it["name"] == "TULLE_LOG");
    assert_eq!(logs.next(), Some(&said["env"][0]));
    assert_eq!(logs.next(), None);
}

#[test]
fn it_may_be_an_init_container_and_a_classic_sidecar_takes_it_too() {
    let said = own(&json!({ "tty": true, "restartPolicy": "Always" }));
    for native_sidecar in [true, false] {
        let config = InjectorConfig {
            native_sidecar,
            ..InjectorConfig::default()
        };
        let pod = pod(
            json!({}),
            json!({ "containers": [{ "name": "web" }], "initContainers": [{ "name": "first" }, said] }),
        );
        let injected = try_inject(&pod, &config).expect("injected").document;
        let (list, index) = if native_sidecar {
            ("initContainers", 1)
        } else {
            ("containers", 0)
        };
        let sidecar = &injected["spec"][list][index];
        assert_eq!(
            (&sidecar["name"], &sidecar["tty"]),
            (&json!("tulle-proxy"), &json!(true))
        );
        assert_eq!(sidecar.get("restartPolicy").is_some(), native_sidecar);
    }
}

#[test]
fn injecting_it_twice_is_injecting_it_once() {
    let injected = inject(&with_own(&json!({ "tty": true })));
    assert_eq!(inject(&injected), injected);
}

#[test]
fn what_would_break_the_sidecar_is_refused_with_its_remedy() {
    let auto = || own(&json!({}));
    let rows = [
        (
            "another user",
            with_own(&json!({ "securityContext": { "runAsUser": 7 } })),
            "securityContext.runAsUser: 7 is not exempt from capture as 1337 is",
        ),
        (
            "another group",
            with_own(&json!({ "securityContext": { "runAsGroup": 7 } })),
            "securityContext.runAsGroup: 7 is not",
        ),
        (
            "alone",
            pod(json!({}), json!({ "containers": [auto()] })),
            "the pod has no other container: add the app's",
        ),
        (
            "twice",
            pod(
                json!({}),
                json!({ "containers": [{ "name": "web" }, auto(), auto()] }),
            ),
            "a container is named tulle-proxy",
        ),
        (
            "an image of its own",
            with_own(&json!({ "image": "mine" })),
            "a container is named tulle-proxy",
        ),
    ];
    for (name, pod, words) in rows {
        let error = try_inject(&pod, &InjectorConfig::default()).expect_err(name);
        assert!(error.contains(words), "{name}: {error}");
    }
    let same = with_own(&json!({ "securityContext": { "runAsUser": 1337 } }));
    assert!(try_inject(&same, &InjectorConfig::default()).is_ok());
}

#[test]
fn what_limit_ranger_has_set_is_not_the_users_word() {
    let said = json!({ "resources": {
        "requests": { "cpu": "20m", "memory": "24Mi" }, "limits": { "cpu": "50m", "memory": "1Gi" },
    } });
    // What it says of the last of two LimitRanges.
    let ranger = "LimitRanger plugin set: cpu request for container web; cpu request for container tulle-proxy; \
                  cpu limit for container tulle-proxy";
    let ranger = json!({ "kubernetes.io/limit-ranger": ranger });
    let injected = |annotations: &Value, list: &str, noted: Value| {
        let metadata = json!({ "annotations": annotations, "managedFields": noted });
        let mut spec = json!({ "containers": [{ "name": "web" }] });
        match list {
            "containers" => spec[list] = json!([{ "name": "web" }, own(&said)]),
            list => spec[list] = json!([own(&said)]),
        }
        let injected = inject(&pod(metadata, spec));
        injected["spec"]["initContainers"][1]["resources"].clone()
    };
    let of = |list: &str, name: &str, resources: Value| {
        let name = format!("k:{{\"name\":\"{name}\"}}");
        let list = format!("f:{list}");
        let fields =
            json!({ "f:spec": { list: { name: { "f:name": {}, "f:resources": resources } } } });
        json!({ "manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields })
    };
    let memory = json!({ "f:limits": { ".": {}, "f:memory": {} } });
    let ours = crate::Resources::default();
    let rest = json!({
        "requests": { "cpu": ours.cpu_request, "memory": ours.memory_request },
        "limits": { "memory": "1Gi" },
    });
    for list in ["containers", "initContainers"] {
        let noted = json!([
            of(list, "web", json!({ "f:limits": { "f:cpu": {} } })),
            of(list, "tulle-proxy", memory.clone()),
        ]);
        assert_eq!(injected(&ranger, list, noted.clone()), rest, "{list}");
        // Nobody but the user was there.
        let unranged = injected(&json!({}), list, noted);
        assert_eq!(unranged, said["resources"], "{list}");
        // Nobody knows.
        let unknown = injected(&ranger, list, Value::Null);
        assert_eq!(unknown, said["resources"], "{list}");
    }
    let all = json!({
        "f:limits": { "f:cpu": {}, "f:memory": {} }, "f:requests": { "f:cpu": {}, "f:memory": {} },
    });
    let noted = json!([of("containers", "tulle-proxy", all)]);
    let found = injected(&ranger, "containers", noted);
    assert_eq!(found, said["resources"], "all is the user's");
}
