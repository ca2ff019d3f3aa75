//! Kubelet's probes of app containers, and the hooks that it calls, sent through the sidecar's metrics port.
//!
//! Kubelet has no SVID, so under STRICT the app's own ports are closed to it. Each HTTP, TCP and gRPC probe becomes an
//! HTTP probe of `/app-health/<container>/<kind>` on the metrics port, which capture leaves alone, and each HTTP and TCP hook
//! an HTTP hook of `/app-lifecycle/<container>/<kind>/<word>`; the original goes to the sidecar in an environment variable. The
//! word is known to whoever may read the pod ([`HookKey`]), because a hook does something, as often as it is called. `exec`
//! needs no network and stays; so does what has another `host`, a port that capture leaves alone, or a port name that the
//! container does not declare. What must succeed before the sidecar can start stays, too: a sidecar that is an ordinary
//! container starts after all init containers, of which the pod may have native sidecars of its own, and nothing is captured
//! until then.

use json_patch::PatchError;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, PodSpec, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};
use tulle_runtime::names::{annotations, containers as names, ports};

use super::editor::Editor;
use crate::config::HookKey;
use crate::options::Options;

/// The probes of a container: field name, and last step of the path it is rewritten to.
const KINDS: [(&str, &str); 3] = [
    ("readinessProbe", "readyz"),
    ("livenessProbe", "livez"),
    ("startupProbe", "startupz"),
];
/// The hooks of a container: field name, and last step of the path it is rewritten to.
const HOOKS: [(&str, &str); 2] = [("postStart", "poststartz"), ("preStop", "prestopz")];
/// How long a hook may take, in seconds: the sidecar's server keeps no connection for more than a minute.
const HOOK_SECONDS: i32 = 50;
/// Fields that kubelet waits for before it starts the next container.
const TO_START: [&str; 2] = ["startupProbe", "postStart"];
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

/// What kubelet asks over the network, with the port of the app that it reaches.
struct Check {
    /// Where it is, from the container.
    at: Vec<&'static str>,
    /// Path that stands for it.
    path: String,
    /// Its handlers, typed.
    handlers: [(&'static str, Value); 3],
    port: u16,
    seconds: i32,
}

impl Check {
    /// Its name in the manifest.
    fn field(&self) -> &'static str {
        self.at.last().expect("a field of a container")
    }

    fn is_hook(&self) -> bool {
        HOOKS.iter().any(|(field, _)| *field == self.field())
    }

    fn is_to_start(&self) -> bool {
        TO_START.contains(&self.field())
    }
}

/// What to say of a pod whose own native sidecars are probed before its mesh's sidecar runs.
pub(crate) fn apart(spec: &PodSpec, options: &Options) -> Option<String> {
    if options.native_sidecar {
        return None;
    }
    let mut troubles = [
        (
            Vec::new(),
            "asked past the sidecar, which STRICT refuses when that container is started again",
        ),
        (
            Vec::new(),
            "fails until the sidecar runs, after all init containers",
        ),
        (Vec::new(), "fails, for the sidecar ends first"),
    ];
    for container in spec.init_containers.iter().flatten() {
        for check in checks(container) {
            let field = check.field();
            let which = match field {
                _ if options.exclude_inbound_ports.contains(&check.port) => continue,
                "livenessProbe" => 1,
                "preStop" => 2,
                _ if check.is_to_start() => 0,
                _ => continue,
            };
            troubles[which]
                .0
                .push(format!("{field} of {}", container.name));
        }
    }
    let said = troubles.iter().filter(|(fields, _)| !fields.is_empty());
    let said: Vec<_> = said
        .map(|(fields, what)| format!("{}: {what}", fields.join(", ")))
        .collect();
    (!said.is_empty()).then(|| {
        format!(
            "{}; leave {} out, for this cluster has native sidecars, or name the ports in {}",
            said.join("; "),
            annotations::NATIVE_SIDECAR,
            annotations::EXCLUDE_INBOUND_PORTS
        )
    })
}

/// Rewrites the probes and hooks of every container of the app. Must come before containers are inserted or taken out.
pub(crate) fn rewrite(
    editor: &mut Editor,
    spec: &PodSpec,
    options: &Options,
    key: &HookKey,
) -> Result<Probes, PatchError> {
    let mut probes = Probes::default();
    let mut word = None;
    let lists = [
        (
            "initContainers",
            spec.init_containers.as_deref().unwrap_or_default(),
        ),
        ("containers", spec.containers.as_slice()),
    ];
    for (list, containers) in lists {
        for (index, container) in containers.iter().enumerate() {
            if container.name == names::PROXY {
                continue;
            }
            let index = index.to_string();
            let early = list == "initContainers" && !options.native_sidecar;
            for mut check in checks(container) {
                let (leave_alone, to_start) = (&options.exclude_inbound_ports, check.is_to_start());
                if leave_alone.contains(&check.port) || early && to_start {
                    continue;
                }
                if check.is_hook() {
                    let word = word.get_or_insert_with(|| key.word(editor.get(&[])));
                    check.path = format!("{}/{word}", check.path);
                }
                let at = [&["spec", list, &index], &check.at[..]].concat();
                let original = editor.get(&at).clone();
                let (field, parent) = at.split_last().expect("a field of a container");
                editor.set(parent, field, rewritten(&original, &check.path))?;
                let saved = saved(&original, &check);
                probes.0.insert(check.path, saved);
            }
        }
    }
    Ok(probes)
}

fn checks(container: &Container) -> Vec<Check> {
    let probes = KINDS.into_iter().filter_map(|(field, step)| {
        let probe: &Probe = match field {
            "readinessProbe" => container.readiness_probe.as_ref(),
            "livenessProbe" => container.liveness_probe.as_ref(),
            _ => container.startup_probe.as_ref(),
        }?;
        let grpc = probe.grpc.as_ref();
        let of_grpc = || u16::try_from(grpc?.port).ok();
        let port = port(
            container,
            probe.http_get.as_ref(),
            probe.tcp_socket.as_ref(),
            of_grpc,
        )?;
        Some(Check {
            at: vec![field],
            path: format!("/app-health/{}/{step}", container.name),
            handlers: [
                ("httpGet", json!(probe.http_get)),
                ("tcpSocket", json!(probe.tcp_socket)),
                ("grpc", json!(probe.grpc)),
            ],
            port,
            seconds: probe.timeout_seconds.unwrap_or(1).max(1),
        })
    });
    let hooks = HOOKS.into_iter().filter_map(|(field, step)| {
        let lifecycle = container.lifecycle.as_ref()?;
        let hook = match field {
            "postStart" => lifecycle.post_start.as_ref(),
            _ => lifecycle.pre_stop.as_ref(),
        }?;
        let port = port(
            container,
            hook.http_get.as_ref(),
            hook.tcp_socket.as_ref(),
            || None,
        )?;
        Some(Check {
            at: vec!["lifecycle", field],
            path: format!("/app-lifecycle/{}/{step}", container.name),
            handlers: [
                ("httpGet", json!(hook.http_get)),
                ("tcpSocket", json!(hook.tcp_socket)),
                ("grpc", Value::Null),
            ],
            port,
            seconds: HOOK_SECONDS,
        })
    });
    probes.chain(hooks).collect()
}

/// The port of the app that is reached over the network; absent when the probe or hook is to stay as it is.
fn port(
    container: &Container,
    http: Option<&HTTPGetAction>,
    tcp: Option<&TCPSocketAction>,
    grpc: impl FnOnce() -> Option<u16>,
) -> Option<u16> {
    // An empty one is none, as the API server has it.
    let is_none = |host: Option<&String>| host.is_none_or(String::is_empty);
    let here = |host: Option<&String>, port| is_none(host).then(|| resolve(container, port))?;
    match (http, tcp) {
        (Some(http), _) => here(http.host.as_ref(), &http.port),
        (None, Some(tcp)) => here(tcp.host.as_ref(), &tcp.port),
        (None, None) => grpc(),
    }
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

/// What the sidecar needs to do it: its handler with a numeric port, and its timeout. Written from the typed form, in which
/// what the manifest leaves out or sets to null has its value, over what the manifest says that our types do not know.
fn saved(original: &Value, check: &Check) -> Value {
    let mut saved = Map::new();
    for (handler, target) in &check.handlers {
        if let Value::Object(target) = target {
            let raw = original[handler].as_object().into_iter().flatten();
            let raw = raw.filter(|(_, value)| !value.is_null());
            let mut merged: Map<_, _> = raw
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            merged.extend(target.clone());
            merged.insert("port".to_owned(), json!(check.port));
            // It is none, or there would be nothing to save.
            merged.remove("host");
            saved.insert((*handler).to_owned(), Value::Object(merged));
        }
    }
    saved.insert("timeoutSeconds".to_owned(), json!(check.seconds));
    Value::Object(saved)
}
