//! `tulle agent` in a pod: its container and the volumes that it needs: those of a sidecar, and no capture.

use serde_json::{Value, json};
use tulle_cli::mesh;
use tulle_runtime::names::{CA_CONFIG_MAP, TOKEN_AUDIENCE, containers, files, ports, variables};

/// A native sidecar: the app starts when its files are there.
pub(super) fn container(arguments: &[String]) -> Value {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let ready = format!("--ready-address=0.0.0.0:{}", ports::READINESS);
    let mut argv = vec!["agent", &ready];
    argv.extend(arguments.iter().map(String::as_str));
    json!({
        "name": "tulle-agent",
        "image": containers::TULLE_IMAGE,
        "args": argv,
        "restartPolicy": "Always",
        "env": [
            field(variables::POD_NAME, "metadata.name"),
            field(variables::POD_NAMESPACE, "metadata.namespace"),
            field(variables::POD_IP, "status.podIP"),
            field(variables::SERVICE_ACCOUNT, "spec.serviceAccountName"),
            { "name": variables::CONTROL_ADDRESS, "value": mesh::injector().control_address },
            { "name": variables::DRAIN_DEADLINE, "value": "1s" },
        ],
        "startupProbe": {
            "httpGet": { "path": "/ready", "port": ports::READINESS },
            "periodSeconds": 1,
            "failureThreshold": 60,
        },
        "volumeMounts": [
            { "name": containers::TOKEN_VOLUME, "mountPath": files::SECRETS_DIR, "readOnly": true },
            state(),
        ],
    })
}

/// Where the files are, for the agent and for the app.
pub(super) fn state() -> Value {
    json!({ "name": containers::STATE_VOLUME, "mountPath": files::STATE_DIR })
}

pub(super) fn volumes() -> [Value; 2] {
    [
        json!({
            "name": containers::TOKEN_VOLUME,
            "projected": { "sources": [
                { "serviceAccountToken": { "audience": TOKEN_AUDIENCE, "expirationSeconds": 3600, "path": "token" } },
                { "configMap": {
                    "name": CA_CONFIG_MAP,
                    "items": [{ "key": files::CA_BUNDLE_KEY, "path": format!("ca/{}", files::CA_BUNDLE_KEY) }],
                } },
            ] },
        }),
        json!({ "name": containers::STATE_VOLUME, "emptyDir": { "medium": "Memory" } }),
    ]
}
