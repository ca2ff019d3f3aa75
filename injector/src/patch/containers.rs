//! The containers and volumes of a sidecar, as JSON.

use std::fmt::Display;

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Map, Value, json};
use tulle_runtime::names::{
    CA_CONFIG_MAP, PROXY_UID, TOKEN_AUDIENCE, containers as names, files, ports, variables,
};

use super::probes::Probes;
use crate::config::{InjectorConfig, Resources};
use crate::located;
use crate::options::Options;

/// Lifetime of the token for the CA; kubelet renews it at four fifths.
const TOKEN_SECONDS: u32 = 3600;
/// Room for an SVID, its key and the last good config.
const STATE_SIZE: &str = "16Mi";
/// Grace period of pods that set none.
const DEFAULT_GRACE: i64 = 30;
/// What the sidecar leaves of the grace period between its deadline and kubelet's SIGKILL, in seconds.
const GRACE_MARGIN: i64 = 5;
/// As that, of an ordinary container: the app has the same grace period, and needs the sidecar to its end.
const ORDINARY_MARGIN: i64 = 2;
/// Longest drain that is asked for, in seconds: a pod may have any grace period, a sidecar takes what its clock can count.
const LONGEST_DRAIN: i64 = 30 * 24 * 3600;

/// One projected volume with token and bundle, and a memory-backed one for state.
///
/// Token and bundle share a volume because a projected volume is mounted read-only and nothing can be mounted inside it,
/// and because a file mounted by subPath would never be renewed.
pub(crate) fn volumes() -> [Value; 2] {
    let bundle = files::CA_BUNDLE
        .strip_prefix(files::SECRETS_DIR)
        .unwrap_or(files::CA_BUNDLE);
    let token = files::TOKEN
        .strip_prefix(files::SECRETS_DIR)
        .unwrap_or(files::TOKEN);
    [
        json!({
            "name": names::TOKEN_VOLUME,
            "projected": { "sources": [
                { "serviceAccountToken": {
                    "audience": TOKEN_AUDIENCE,
                    "expirationSeconds": TOKEN_SECONDS,
                    "path": token.trim_start_matches('/'),
                } },
                { "configMap": {
                    "name": CA_CONFIG_MAP,
                    "items": [{ "key": files::CA_BUNDLE_KEY, "path": bundle.trim_start_matches('/') }],
                } },
            ] },
        }),
        json!({
            "name": names::STATE_VOLUME,
            "emptyDir": { "medium": "Memory", "sizeLimit": STATE_SIZE },
        }),
    ]
}

/// The init container that programs the capture rules and ends.
///
/// It changes rules only where the pod's address is. It is root because a capability that is merely added takes effect for
/// root only; NET_ADMIN is all that it keeps.
pub(crate) fn capture(options: &Options, config: &InjectorConfig) -> Value {
    let mut inbound = vec![ports::METRICS, ports::READINESS];
    inbound.extend(&options.exclude_inbound_ports);
    let mut args = vec![
        "capture".to_owned(),
        format!("--exclude-inbound-ports={}", list(&inbound)),
    ];
    if !options.exclude_outbound_ports.is_empty() {
        args.push(format!(
            "--exclude-outbound-ports={}",
            list(&options.exclude_outbound_ports)
        ));
    }
    if !options.exclude_outbound_cidrs.is_empty() {
        args.push(format!(
            "--exclude-outbound-cidrs={}",
            list(&options.exclude_outbound_cidrs)
        ));
    }
    let mut env = vec![
        downward(variables::POD_IP, "status.podIP"),
        variable(variables::LOG, &options.log),
    ];
    if config.mark_sockets {
        env.push(variable(variables::MARK_SOCKETS, "true"));
    }
    json!({
        "name": names::CAPTURE,
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "args": args,
        "env": env,
        "resources": resources(&options.resources),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

/// The sidecar itself.
pub(crate) fn sidecar(
    options: &Options,
    config: &InjectorConfig,
    pod: &PodSpec,
    probes: &Probes,
    app_metrics: Option<String>,
) -> Value {
    let ready = json!({ "path": "/healthz/ready", "port": ports::READINESS });
    let capabilities = if config.mark_sockets {
        // Setting a mark takes it, and there is no user id of its own to tell the sidecar by.
        json!({ "add": ["NET_ADMIN"], "drop": ["ALL"] })
    } else {
        json!({ "drop": ["ALL"] })
    };
    let mut container = json!({
        "name": names::PROXY,
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "args": ["run"],
        "env": environment(options, config, pod, probes, app_metrics),
        "ports": [{ "name": "tulle-metrics", "containerPort": ports::METRICS, "protocol": "TCP" }],
        "readinessProbe": { "httpGet": ready, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 3 },
        "resources": resources(&options.resources),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": capabilities,
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "runAsUser": PROXY_UID,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            { "name": names::TOKEN_VOLUME, "mountPath": files::SECRETS_DIR, "readOnly": true },
            { "name": names::STATE_VOLUME, "mountPath": files::STATE_DIR },
        ],
    });
    if config.start_hook {
        // By name, for the image has it on its PATH.
        let hook = json!({ "exec": { "command": ["tulle-proxy", "await"] } });
        container["lifecycle"] = json!({ "postStart": hook });
    } else {
        container["startupProbe"] =
            json!({ "httpGet": ready, "periodSeconds": 1, "failureThreshold": 600 });
    }
    if options.native_sidecar {
        container["restartPolicy"] = json!("Always");
    }
    container
}

/// The name, which is the surer the longer a pod lives, unless the pod's resolver may not know it.
fn control_address(config: &InjectorConfig, pod: &PodSpec) -> String {
    let known = config.control_at.at().filter(|_| located::is_needed(pod));
    known.map_or_else(|| config.control_address.clone(), |it| it.to_string())
}

fn environment(
    options: &Options,
    config: &InjectorConfig,
    pod: &PodSpec,
    probes: &Probes,
    app_metrics: Option<String>,
) -> Vec<Value> {
    let mut env = vec![
        downward(variables::POD_NAME, "metadata.name"),
        downward(variables::POD_NAMESPACE, "metadata.namespace"),
        downward(variables::POD_IP, "status.podIP"),
        downward(variables::SERVICE_ACCOUNT, "spec.serviceAccountName"),
        variable(variables::CONTROL_ADDRESS, control_address(config, pod)),
        variable(variables::TRUST_DOMAIN, &config.trust_domain),
        variable(variables::CLUSTER_DOMAIN, &config.cluster_domain),
        variable(variables::LOG, &options.log),
        variable(
            variables::ACCESS_LOG,
            if options.access_log { "json" } else { "off" },
        ),
        variable(variables::WORKERS, config.workers),
        variable(
            variables::DRAIN_DEADLINE,
            drain_deadline(options, config, pod.termination_grace_period_seconds),
        ),
    ];
    if !options.native_sidecar {
        // Of a single app its listeners say whether it has ended.
        let mut apps = pod.containers.iter().filter(|it| it.name != names::PROXY);
        let until = match (apps.next(), apps.next()) {
            (_, Some(_)) => "deadline",
            _ => "listeners",
        };
        env.push(variable(variables::OUTLIVE_APP, until));
    }
    if let Some(address) = &options.xds_address {
        env.push(variable(variables::XDS_ADDRESS, address));
    }
    if let Some(name) = &options.xds_name {
        env.push(variable(variables::XDS_NAME, name));
    }
    if options.keep_ingress_headers {
        env.push(variable(variables::INGRESS_HEADERS, "keep"));
    }
    let limits = options.limits.iter();
    env.extend(limits.map(|(name, value)| variable(name, value)));
    if config.mark_sockets {
        env.push(variable(variables::MARK_SOCKETS, true));
    }
    if let Some(originals) = probes.to_variable() {
        env.push(variable(variables::APP_PROBES, originals));
    }
    if let Some(source) = app_metrics {
        env.push(variable(variables::APP_METRICS, source));
    }
    env
}

/// The operator's deadline, else what the pod's grace period leaves.
fn drain_deadline(options: &Options, config: &InjectorConfig, grace: Option<i64>) -> String {
    let margin = if options.native_sidecar {
        GRACE_MARGIN
    } else {
        ORDINARY_MARGIN
    };
    match config.drain_deadline {
        Some(deadline) => format!("{}ms", deadline.as_millis()),
        None => format!(
            "{}s",
            grace
                .unwrap_or(DEFAULT_GRACE)
                .saturating_sub(margin)
                .clamp(1, LONGEST_DRAIN)
        ),
    }
}

/// `$(...)` would be expanded by kubelet, so a dollar sign is doubled.
fn variable(name: &str, value: impl Display) -> Value {
    json!({ "name": name, "value": value.to_string().replace('$', "$$") })
}

fn downward(name: &str, field: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": field } } })
}

fn list<T: Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

fn resources(resources: &Resources) -> Value {
    let quantities = |cpu: Option<&String>, memory: Option<&String>| {
        let pairs = [("cpu", cpu), ("memory", memory)];
        let set = pairs
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), json!(value?))));
        Value::Object(set.collect::<Map<_, _>>())
    };
    json!({
        "requests": quantities(Some(&resources.cpu_request), Some(&resources.memory_request)),
        "limits": quantities(resources.cpu_limit.as_ref(), resources.memory_limit.as_ref()),
    })
}
