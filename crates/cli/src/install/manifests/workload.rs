//! The pods of both parts, and what keeps them reachable and there.

use serde_json::{Value, json};
use tulle_runtime::names::{
    CA_CONFIG_MAP, DEFAULT_REVISION, TOKEN_AUDIENCE, containers, files, labels, ports,
};

use super::Install;
use crate::cluster::TEMPLATE_HASH;
use crate::install::values::{AntiAffinity, Deployment};

/// Who runs in the pods: nobody in particular.
const UID: u32 = 65532;
/// How long a pod may take to end: its streams get 5 s.
const GRACE: u32 = 30;
/// Lifetime of the injector's token for the CA.
const TOKEN_SECONDS: u32 = 3600;

/// A part: what its pods run, and where they listen.
struct Part<'a> {
    name: &'a str,
    deployment: &'a Deployment,
    args: Vec<String>,
    /// Name, port of the Service, port of the pod.
    ports: Vec<(&'a str, u16, u16)>,
    volumes: Vec<Value>,
    mounts: Vec<Value>,
}

/// The control plane.
pub(super) fn control(install: &Install<'_>) -> Vec<Value> {
    let values = install.values;
    let control = &values.control;
    let mut args = vec![
        "control".to_owned(),
        "--kubernetes".to_owned(),
        format!("--trust-domain={}", values.trust_domain),
        format!("--cluster-domain={}", values.cluster_domain),
        format!("--leaf-ttl={}", control.leaf_ttl),
        format!("--root-propagation={}", control.root_propagation),
        format!("--log={}", control.log),
        format!("--admin-address=[::]:{}", ports::CONTROL_ADMIN),
    ];
    if !control.ca_issuer_secret.is_empty() {
        args.push(format!("--ca-issuer-secret={}", control.ca_issuer_secret));
    }
    let part = Part {
        name: &install.control,
        deployment: &control.deployment,
        args,
        ports: vec![
            ("grpc-xds", ports::XDS, ports::XDS),
            ("http-metrics", ports::CONTROL_ADMIN, ports::CONTROL_ADMIN),
        ],
        volumes: Vec::new(),
        mounts: Vec::new(),
    };
    part.objects(install)
}

/// The injector.
pub(super) fn injector(install: &Install<'_>) -> Vec<Value> {
    let below = |path: &'static str| {
        let path = path.strip_prefix(files::SECRETS_DIR).unwrap_or(path);
        path.trim_start_matches('/')
    };
    let part = Part {
        name: &install.injector,
        deployment: &install.values.injector.deployment,
        args: injector_arguments(install),
        ports: vec![
            ("https-webhook", 443, ports::WEBHOOK),
            ("http-metrics", ports::CONTROL_ADMIN, ports::CONTROL_ADMIN),
        ],
        volumes: vec![json!({
            "name": containers::TOKEN_VOLUME,
            "projected": { "sources": [
                { "serviceAccountToken": {
                    "audience": TOKEN_AUDIENCE,
                    "expirationSeconds": TOKEN_SECONDS,
                    "path": below(files::TOKEN),
                } },
                { "configMap": {
                    "name": CA_CONFIG_MAP,
                    "items": [{ "key": files::CA_BUNDLE_KEY, "path": below(files::CA_BUNDLE) }],
                } },
            ] },
        })],
        mounts: vec![json!({
            "name": containers::TOKEN_VOLUME,
            "mountPath": files::SECRETS_DIR,
            "readOnly": true,
        })],
    };
    part.objects(install)
}

fn injector_arguments(install: &Install<'_>) -> Vec<String> {
    let values = install.values;
    let (injector, proxy) = (&values.injector, &values.proxy);
    let mut args = vec![
        "injector".to_owned(),
        format!("--trust-domain={}", values.trust_domain),
        format!("--cluster-domain={}", values.cluster_domain),
        format!("--log={}", injector.log),
        format!("--admin-address=[::]:{}", ports::CONTROL_ADMIN),
        format!("--image={}", install.image("tulle-proxy")),
        format!("--image-pull-policy={}", word(values.image.pull_policy)),
        format!("--proxy-log={}", proxy.log),
        format!("--proxy-access-log={}", word(proxy.access_log)),
        format!("--proxy-cpu-request={}", proxy.cpu_request),
        format!("--proxy-memory-request={}", proxy.memory_request),
        format!("--proxy-memory-limit={}", proxy.memory_limit),
    ];
    if !proxy.native_sidecar {
        args.push("--classic-sidecars".to_owned());
    }
    if !proxy.merge_metrics {
        args.push("--keep-metrics".to_owned());
    }
    let secrets = proxy.image_pull_secrets.iter();
    args.extend(secrets.map(|name| format!("--image-pull-secret={name}")));
    if values.revision != DEFAULT_REVISION {
        args.push(format!("--revision={}", values.revision));
    }
    if !proxy.cpu_limit.is_empty() {
        args.push(format!("--proxy-cpu-limit={}", proxy.cpu_limit));
    }
    for (option, selectors) in [
        ("always-inject", &injector.always_inject),
        ("never-inject", &injector.never_inject),
    ] {
        let each = selectors.iter().map(|selector| json!(selector));
        args.extend(each.map(|selector| format!("--{option}={selector}")));
    }
    args
}

/// A value as it is written.
fn word(value: impl serde::Serialize) -> String {
    match json!(value) {
        Value::String(word) => word,
        other => other.to_string(),
    }
}

impl Part<'_> {
    fn objects(&self, install: &Install<'_>) -> Vec<Value> {
        let mut objects = vec![self.service(install), self.deployment(install)];
        if self.deployment.disruption_budget {
            objects.push(self.disruption_budget(install));
        }
        if self.deployment.autoscaling.enabled {
            objects.push(self.autoscaler(install));
        }
        if install.values.network_policy.enabled {
            objects.push(self.network_policy(install));
        }
        objects
    }

    fn service(&self, install: &Install<'_>) -> Value {
        let port = |(name, port, target): &(&str, u16, u16)| json!({ "name": name, "port": port, "targetPort": target, "protocol": "TCP" });
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": install.metadata(self.name, true),
            "spec": {
                "ipFamilyPolicy": "PreferDualStack",
                "selector": install.selector(self.name),
                "ports": self.ports.iter().map(port).collect::<Vec<_>>(),
            },
        })
    }

    fn deployment(&self, install: &Install<'_>) -> Value {
        // Where no two may be on one node, there may be no node for one more.
        let required = self.deployment.anti_affinity == AntiAffinity::Required;
        let (surge, unavailable) = if required { (0, 1) } else { (1, 0) };
        let rolling = json!({ "maxSurge": surge, "maxUnavailable": unavailable });
        let mut spec = json!({
            "selector": { "matchLabels": install.selector(self.name) },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": rolling },
            "template": self.template(install),
        });
        // Whoever scales it has the say.
        if !self.deployment.autoscaling.enabled {
            spec["replicas"] = json!(self.deployment.replicas);
        }
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": install.metadata(self.name, true),
            "spec": spec,
        })
    }

    fn template(&self, install: &Install<'_>) -> Value {
        let deployment = self.deployment;
        let mut labels = install.labels(self.name);
        labels.insert(labels::INJECT.to_owned(), json!("disabled"));
        let mut spec = json!({
            "serviceAccountName": self.name,
            "terminationGracePeriodSeconds": GRACE,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": UID,
                "runAsGroup": UID,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [self.container(install)],
        });
        if let Some(affinity) = self.affinity(install) {
            spec["affinity"] = affinity;
        }
        let secrets = &install.values.image.pull_secrets;
        let secrets: Vec<_> = secrets.iter().map(|name| json!({ "name": name })).collect();
        let optional = [
            ("imagePullSecrets", json!(secrets)),
            ("volumes", json!(self.volumes)),
            ("nodeSelector", json!(deployment.node_selector)),
            ("tolerations", json!(deployment.tolerations)),
            ("priorityClassName", json!(deployment.priority_class_name)),
        ];
        for (field, value) in optional {
            if ![json!([]), json!({}), json!("")].contains(&value) {
                spec[field] = value;
            }
        }
        json!({ "metadata": { "labels": labels }, "spec": spec })
    }

    fn container(&self, install: &Install<'_>) -> Value {
        let args: Vec<_> = self
            .args
            .iter()
            .chain(&self.deployment.extra_args)
            .collect();
        let port = |(name, _, port): &(&str, u16, u16)| json!({ "name": name, "containerPort": port, "protocol": "TCP" });
        let downward = |name: &str, field: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": field } } });
        let mut container = json!({
            "name": self.name,
            "image": install.image("tulle"),
            "imagePullPolicy": install.values.image.pull_policy,
            "args": args,
            "env": [
                downward("POD_NAME", "metadata.name"),
                downward("POD_NAMESPACE", "metadata.namespace"),
                downward("SERVICE_ACCOUNT", "spec.serviceAccountName"),
                downward("POD_IP", "status.podIP"),
            ],
            "ports": self.ports.iter().map(port).collect::<Vec<_>>(),
            "readinessProbe": {
                "httpGet": { "path": "/ready", "port": ports::CONTROL_ADMIN },
                "periodSeconds": 2,
                "timeoutSeconds": 2,
            },
            "livenessProbe": {
                "tcpSocket": { "port": ports::CONTROL_ADMIN },
                "periodSeconds": 10,
                "failureThreshold": 6,
            },
            "resources": self.deployment.resources,
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"] },
                "readOnlyRootFilesystem": true,
            },
            "terminationMessagePolicy": "FallbackToLogsOnError",
        });
        if !self.mounts.is_empty() {
            container["volumeMounts"] = json!(self.mounts);
        }
        container
    }

    fn affinity(&self, install: &Install<'_>) -> Option<Value> {
        let mut term = json!({
            "labelSelector": { "matchLabels": install.selector(self.name) },
            "topologyKey": "kubernetes.io/hostname",
        });
        let rule = match self.deployment.anti_affinity {
            AntiAffinity::None => return None,
            AntiAffinity::Required => {
                // For pods of one form: what runs keeps others away, too, and those of the next form need not keep away.
                // Servers before 1.31 leave it out.
                term["matchLabelKeys"] = json!([TEMPLATE_HASH]);
                json!({ "requiredDuringSchedulingIgnoredDuringExecution": [term] })
            }
            AntiAffinity::Preferred => json!({
                "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 100, "podAffinityTerm": term }],
            }),
        };
        Some(json!({ "podAntiAffinity": rule }))
    }

    fn disruption_budget(&self, install: &Install<'_>) -> Value {
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": install.metadata(self.name, true),
            "spec": {
                "maxUnavailable": 1,
                "selector": { "matchLabels": install.selector(self.name) },
                // A pod that does not serve is no reason to wait.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        })
    }

    fn autoscaler(&self, install: &Install<'_>) -> Value {
        let scaling = &self.deployment.autoscaling;
        json!({
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": install.metadata(self.name, true),
            "spec": {
                "minReplicas": scaling.min_replicas,
                "maxReplicas": scaling.max_replicas,
                "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": self.name },
                "metrics": [{
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": { "type": "Utilization", "averageUtilization": scaling.cpu_percent },
                    },
                }],
            },
        })
    }

    fn network_policy(&self, install: &Install<'_>) -> Value {
        let port = |(_, _, port): &(&str, u16, u16)| json!({ "port": port, "protocol": "TCP" });
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": install.metadata(self.name, true),
            "spec": {
                "podSelector": { "matchLabels": install.selector(self.name) },
                "policyTypes": ["Ingress"],
                "ingress": [{ "ports": self.ports.iter().map(port).collect::<Vec<_>>() }],
            },
        })
    }
}
