//! Pods, nodes and namespaces.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tulle_runtime::names::{annotations, containers, labels};

use super::{Bare, Invalid, fields};
use crate::store::pod::Workload;
use crate::store::{Labels, Namespace, Node, Object, ObjectKey, Pod};

/// By which the injector tells the capture.
const EXCLUDED: &str = "--exclude-inbound-ports=";

/// Reads a pod. One that has finished has no address: it may belong to another by now.
pub(super) fn pod(key: ObjectKey, pod: core::Pod) -> Result<Object, Invalid> {
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let finished = is_finished(&spec, &status);
    let ips = ips(status)?;
    let named_ports = named_ports(&spec);
    let service_account = spec
        .service_account_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or("default");
    fields::subdomain("spec.serviceAccountName", service_account)?;
    let pod_labels: Labels = pod
        .metadata
        .labels
        .iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let capture = capture(&spec);
    let label = pod_labels.get(labels::PROXIED).map(|value| &**value);
    let foreign = capture.is_none() && label == Some(labels::PROXIED_GRPC);
    // Who is injected stays so, whatever becomes of the label; one without a capture is what the author of its manifest says.
    let proxied = capture.is_some() || foreign || label == Some("true");
    Ok(Object::Pod(Pod {
        uid: pod
            .metadata
            .uid
            .as_deref()
            .filter(|uid| !uid.is_empty())
            .map(Into::into),
        service_account: service_account.into(),
        node: spec
            .node_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(Into::into),
        host_network: spec.host_network.unwrap_or(false),
        uncaptured_ports: match proxied {
            true => uncaptured_ports(&pod.metadata, capture)?,
            // It has no capture that could leave something out, whatever its annotations say.
            false => Vec::new(),
        },
        proxied,
        relabelled: capture.is_some() && label != Some("true"),
        foreign,
        named_ports,
        workload: workload(&key, &pod.metadata),
        labels: pod_labels,
        finished,
        ips,
        key,
    }))
}

/// Whether only a sidecar keeps a pod from completing: one that is an ordinary container, which Kubernetes waits for. All
/// others have ended, and nothing starts them again.
/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>
fn is_finished(spec: &core::PodSpec, status: &core::PodStatus) -> bool {
    let policy = spec.restart_policy.as_deref();
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    let has_ended = |container: &core::Container| {
        let status = statuses.iter().find(|it| it.name == container.name);
        let ended = status.and_then(|it| it.state.as_ref()?.terminated.as_ref());
        ended.is_some_and(|ended| !is_started_again(container, policy, ended.exit_code))
    };
    let is_sidecar = |container: &&core::Container| container.name == containers::PROXY;
    let (sidecars, apps): (Vec<_>, Vec<_>) = spec.containers.iter().partition(is_sidecar);
    !sidecars.is_empty() && !apps.is_empty() && apps.into_iter().all(has_ended)
}

/// Whether Kubernetes starts a container again that has ended with that code: by one of its rules, or
/// else by its policy, or that of its pod. All that a rule can do is to start it, or the whole pod, again.
fn is_started_again(container: &core::Container, pod: Option<&str>, code: i32) -> bool {
    let rules = container.restart_policy_rules.iter().flatten();
    let is_for = |rule: &&core::ContainerRestartRule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let named = codes.values.iter().flatten().any(|it| *it == code);
            match codes.operator.as_str() {
                "In" => named,
                "NotIn" => !named,
                _ => false,
            }
        })
    };
    if rules.into_iter().any(|rule| is_for(&rule)) {
        return true;
    }
    match container.restart_policy.as_deref().or(pod) {
        Some("Never") => false,
        Some("OnFailure") => code != 0,
        _ => true,
    }
}

/// Its addresses, sorted.
fn ips(status: core::PodStatus) -> Result<Vec<IpAddr>, Invalid> {
    let mut ips: Vec<IpAddr> = Vec::new();
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Ok(ips);
    }
    let all = status.pod_ips.unwrap_or_default();
    for (index, ip) in all.iter().enumerate() {
        ips.push(fields::ip(format!("status.podIPs[{index}].ip"), &ip.ip)?);
    }
    if let Some(ip) = status.pod_ip.filter(|ip| !ip.is_empty()) {
        ips.push(fields::ip("status.podIP", &ip)?);
    }
    ips.sort_unstable();
    ips.dedup();
    Ok(ips)
}

/// Names of TCP ports, sorted. A native sidecar is an init container, and its ports are as good as any other's.
fn named_ports(spec: &core::PodSpec) -> Vec<(Arc<str>, u16)> {
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let is_tcp =
        |port: &&core::ContainerPort| matches!(port.protocol.as_deref(), None | Some("TCP"));
    let mut named: Vec<_> = containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter(is_tcp)
        .filter_map(|port| {
            let name = port.name.as_deref()?.into();
            let number = u16::try_from(port.container_port).ok();
            // There is no port 0: in names of resources it stands for all that have none of their own.
            Some((name, number.filter(|number| *number != 0)?))
        })
        .collect();
    named.sort();
    named
}

/// The container that programs its capture. Nobody can add one to a pod that is there, nor take it away.
fn capture(spec: &core::PodSpec) -> Option<&core::Container> {
    let mut containers = spec.init_containers.iter().flatten();
    containers.find(|it| it.name == containers::CAPTURE)
}

/// The ports that its capture leaves out. Where a container programs that, it says which, once and for all; the annotation that
/// it was made of may be another by now.
fn uncaptured_ports(
    metadata: &ObjectMeta,
    capture: Option<&core::Container>,
) -> Result<Vec<u16>, Invalid> {
    if let Some(capture) = capture {
        let arguments = capture.args.iter().flatten();
        let lists = arguments.filter_map(|it| it.strip_prefix(EXCLUDED));
        let ports = lists.flat_map(|list| list.split(','));
        let mut ports: Vec<_> = ports.filter_map(|it| it.trim().parse().ok()).collect();
        ports.sort_unstable();
        return Ok(ports);
    }
    let name = annotations::EXCLUDE_INBOUND_PORTS;
    let Some(list) = metadata.annotations.as_ref().and_then(|it| it.get(name)) else {
        return Ok(Vec::new());
    };
    let field = format!("metadata.annotations[{name}]");
    let mut ports = Vec::new();
    for item in list
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let number = item.parse().map_err(|_| {
            Invalid::new(
                field.clone(),
                format!("{item:?} is not a port: list ports, like \"8080,9090\""),
            )
        })?;
        ports.push(fields::port(field.clone(), number)?);
    }
    ports.sort_unstable();
    Ok(ports)
}

/// Who owns a pod. A ReplicaSet made by a Deployment carries its name and a hash that the pod has as a label.
fn workload(key: &ObjectKey, metadata: &ObjectMeta) -> Workload {
    let owner = metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    let Some(owner) = owner else {
        return Workload {
            kind: "Pod".into(),
            name: key.name.clone(),
        };
    };
    let hash = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str()))
        .and_then(|name| name.strip_suffix('-'));
    match deployment {
        Some(name) => Workload {
            kind: "Deployment".into(),
            name: name.into(),
        },
        None => Workload {
            kind: owner.kind.as_str().into(),
            name: owner.name.as_str().into(),
        },
    }
}

/// Reads a node.
pub(super) fn node(key: ObjectKey, node: &Bare) -> Object {
    Object::Node(Node {
        key,
        region: label(node, "topology.kubernetes.io/region"),
        zone: label(node, "topology.kubernetes.io/zone"),
    })
}

/// Reads a namespace.
pub(super) fn namespace(key: ObjectKey, namespace: &Bare) -> Object {
    Object::Namespace(Namespace {
        key,
        inject: label(namespace, labels::INJECT),
        revision: label(namespace, labels::REVISION),
    })
}

fn label(object: &Bare, name: &str) -> Option<Arc<str>> {
    let labels = object.metadata.labels.as_ref()?;
    labels.get(name).map(|value| value.as_str().into())
}
