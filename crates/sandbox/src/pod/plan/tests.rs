//! From manifests to what containers need, and what is refused by name.

use serde_json::{Value, json};

use super::*;
use crate::network::PodIps;

fn planned(spec: Value) -> Result<PodPlan, String> {
    let pod = typed(&json!({ "metadata": { "name": "web-0", "namespace": "shop" }, "spec": spec }))
        .expect("a pod");
    let facts = Facts {
        pod: &pod,
        ips: PodIps::of(2, true),
        config_map: &|_| None,
    };
    plan(&facts, Ids::Root, Path::new("/run/tulle/pods/u1"))
}

fn container(container: Value) -> Result<ContainerPlan, String> {
    planned(json!({ "containers": [container] })).map(|mut plan| plan.containers.remove(0))
}

#[test]
fn images_of_ours_are_the_running_executable_and_others_need_a_command() {
    let table = [
        (
            json!({ "image": format!("{PROXY_IMAGE}:v1"), "args": ["--x"] }),
            vec!["tulle", "proxy", "--x"],
            true,
        ),
        (
            json!({ "image": TULLE_IMAGE, "args": ["app", "serve"] }),
            vec!["tulle", "app", "serve"],
            true,
        ),
        (
            json!({ "image": TULLE_IMAGE, "command": ["tulle"], "args": ["app"] }),
            vec!["tulle", "app"],
            true,
        ),
        (
            json!({ "image": PROXY_IMAGE, "command": ["tulle-proxy", "capture"] }),
            vec!["tulle", "proxy", "capture"],
            true,
        ),
        (
            json!({ "image": TULLE_IMAGE, "command": ["sh"] }),
            vec!["sh"],
            false,
        ),
        (
            json!({ "image": "localhost:5000/x", "command": ["python3", "$(M)"], "env": [{ "name": "M", "value": "-V" }] }),
            vec!["python3", "-V"],
            false,
        ),
    ];
    for (mut given, argv, this_program) in table {
        given["name"] = json!("c");
        let plan = container(given.clone()).expect("it can run");
        assert_eq!(
            (plan.argv, plan.this_program),
            (argv.into_iter().map(str::to_owned).collect(), this_program),
            "{given}"
        );
    }
    let problem =
        container(json!({ "name": "db", "image": "postgres:17" })).expect_err("no command");
    assert!(
        problem.contains("container db") && problem.contains("postgres:17"),
        "{problem}"
    );
}

#[test]
fn init_containers_come_first_and_some_of_them_stay() {
    let plan = planned(json!({
        "initContainers": [
            { "name": "rules", "image": PROXY_IMAGE },
            { "name": "proxy", "image": PROXY_IMAGE, "restartPolicy": "Always" },
        ],
        "containers": [{ "name": "app", "image": TULLE_IMAGE }],
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
    }))
    .expect("it can run");
    let turns: Vec<_> = plan
        .containers
        .iter()
        .map(|container| (container.turn, container.restart))
        .collect();
    let expected = [
        (Turn::Init, Restart::Never),
        (Turn::Sidecar, Restart::Always),
        (Turn::App, Restart::Never),
    ];
    assert_eq!(turns, expected);
    assert_eq!(
        (plan.grace, plan.hostname.as_str()),
        (Duration::from_secs(5), "web-0")
    );
}

#[test]
fn volumes_are_mounted_outer_first_and_written_files_are_read_only() {
    let plan = planned(json!({
        "volumes": [
            { "name": "token", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } },
            { "name": "state", "emptyDir": {} },
        ],
        "containers": [{ "name": "c", "command": ["true"], "volumeMounts": [
            { "name": "state", "mountPath": "/var/run/secrets/tulle/state" },
            { "name": "token", "mountPath": "/var/run/secrets/tulle" },
        ] }],
    }))
    .expect("it can run");
    let binds: Vec<_> = plan.containers[0]
        .binds
        .iter()
        .filter(|bind| bind.target.starts_with(SECRETS))
        .map(|bind| {
            (
                bind.source.to_str().expect("text"),
                bind.target.to_str().expect("text"),
                bind.read_only,
            )
        })
        .collect();
    let expected = [
        ("/run/tulle/pods/u1/token", "/run/secrets/tulle", true),
        (
            "/run/tulle/pods/u1/state",
            "/run/secrets/tulle/state",
            false,
        ),
    ];
    assert_eq!(binds, expected);
}

#[test]
fn what_does_not_exist_here_is_refused_by_name() {
    let run = json!({ "name": "c", "command": ["true"] });
    let with = |field: &str, value: Value| {
        let mut container = run.clone();
        container[field] = value;
        json!({ "containers": [container] })
    };
    let table = [
        (
            json!({ "containers": [run], "hostNetwork": true }),
            "hostNetwork",
        ),
        (
            json!({ "containers": [run], "volumes": [{ "name": "s", "secret": {} }] }),
            "volume s",
        ),
        (
            with(
                "volumeMounts",
                json!([{ "name": "none", "mountPath": "/tmp" }]),
            ),
            "volume none",
        ),
        (with("lifecycle", json!({ "postStart": {} })), "postStart"),
        (
            with("readinessProbe", json!({ "grpc": { "port": 1 } })),
            "readinessProbe",
        ),
    ];
    for (spec, named) in table {
        let problem = planned(spec).expect_err(named);
        assert!(problem.contains(named), "{problem}");
    }
    let mounted = json!({
        "volumes": [{ "name": "data", "emptyDir": {} }],
        "containers": [{ "name": "c", "command": ["true"], "volumeMounts": [{ "name": "data", "mountPath": "/no/such/path" }] }],
    });
    let problem = planned(mounted).expect_err("no mount point");
    assert!(
        problem.contains("/no/such/path") && problem.contains("container c"),
        "{problem}"
    );
}
