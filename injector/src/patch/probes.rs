//! Kubelet's probes of app containers, sent through the sidecar's metrics port.
//!
//! Kubelet has no SVID, so under STRICT the app's own ports are closed to it. Each HTTP, TCP and gRPC probe becomes an
//! HTTP probe of `/app-health/<container>/<kind>` on the metrics port, which capture leaves alone, and the original goes to
//! the sidecar in an environment variable. `exec` probes need no network and stay; so do probes of another `host`, of a
//! port that capture leaves alone, and of a port name that the container does not declare.

use json_patch::PatchError;
use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};
use tulle_runtime::names::ports;

use super::editor::Editor;
use crate::options::Options;

/// The probes of a container: field name, and last step of the path it is rewritten to.
const KINDS: [(&str, &str); 3] = [
    ("readinessProbe", "readyz"),
    ("livenessProbe", "livez"),
    ("startupProbe", "startupz"),
];
/// The ways to probe over the network.
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// The original probes, by rewritten path.
#[derive(Debug, Default)]
pub(crate) struct Probes(Map<String, Value>);

impl Probes {
    /// As the sidecar reads them; absent when there are none.
    pub(crate) fn to_variable(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| Value::Object(self.0.clone()).to_string())
    }
}

/// Rewrites the probes of every container that keeps running. Must come before containers are inserted.
pub(crate) fn rewrite(
    editor: &mut Editor,
    spec: &PodSpec,
    options: &Options,
) -> Result<Probes, PatchError> {
    let mut probes = Probes::default();
    let lists = [
        (
            "initContainers",
            spec.init_containers.as_deref().unwrap_or_default(),
        ),
        ("containers", spec.containers.as_slice()),
    ];
    for (list, containers) in lists {
        for (index, container) in containers.iter().enumerate() {
            let index = index.to_string();
            for (field, step) in KINDS {
                let Some((probe, port)) = probed_port(container, field) else {
                    continue;
                };
                if options.exclude_inbound_ports.contains(&port) {
                    continue;
                }
                let at = ["spec", list, &index];
                let original = editor.get(&[&at[..], &[field]].concat()).clone();
                let path = format!("/app-health/{}/{step}", container.name);
                editor.set(&at, field, rewritten(&original, &path))?;
                probes.0.insert(path, saved(probe, port));
            }
        }
    }
    Ok(probes)
}

/// A probe, with the port of the app that it reaches over the network; absent when it is to stay as it is.
fn probed_port<'c>(container: &'c Container, field: &str) -> Option<(&'c Probe, u16)> {
    let probe: &Probe = match field {
        "readinessProbe" => container.readiness_probe.as_ref(),
        "livenessProbe" => container.liveness_probe.as_ref(),
        _ => container.startup_probe.as_ref(),
    }?;
    let port = if let Some(http) = &probe.http_get {
        let elsewhere = http.host.is_some();
        (!elsewhere).then(|| resolve(container, &http.port))?
    } else if let Some(tcp) = &probe.tcp_socket {
        let elsewhere = tcp.host.is_some();
        (!elsewhere).then(|| resolve(container, &tcp.port))?
    } else {
        u16::try_from(probe.grpc.as_ref()?.port).ok()
    };
    Some((probe, port?))
}

fn resolve(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut declared = container.ports.iter().flatten();
            match declared.find(|port| port.name.as_deref() == Some(name)) {
                Some(port) => port.container_port,
                None => name.parse().ok()?,
            }
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// The same timing, another target.
fn rewritten(original: &Value, path: &str) -> Value {
    let mut probe = original.as_object().cloned().unwrap_or_default();
    for handler in HANDLERS {
        probe.remove(handler);
    }
    probe.insert(
        "httpGet".to_owned(),
        json!({ "path": path, "port": ports::METRICS }),
    );
    Value::Object(probe)
}

/// What the sidecar needs to do the probe: its handler with a numeric port, and its timeout. Written from the typed form,
/// in which what the manifest leaves out or sets to null has its value.
fn saved(original: &Probe, port: u16) -> Value {
    let handlers = [
        ("httpGet", json!(original.http_get)),
        ("tcpSocket", json!(original.tcp_socket)),
        ("grpc", json!(original.grpc)),
    ];
    let mut probe = Map::new();
    for (handler, target) in handlers {
        if let Value::Object(mut target) = target {
            target.insert("port".to_owned(), json!(port));
            probe.insert(handler.to_owned(), Value::Object(target));
        }
    }
    let timeout = original.timeout_seconds.unwrap_or(1).max(1);
    probe.insert("timeoutSeconds".to_owned(), json!(timeout));
    Value::Object(probe)
}
