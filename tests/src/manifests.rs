//! Manifests, made by a builder: a ServiceAccount, a Service and a Deployment under one name.
//!
//! What the builder does not have is written as YAML beside it.

mod agent;

use serde_json::{Value, json};
use tulle_runtime::names::labels;

/// Where a program finds the files of [`App::file`].
pub const FILES: &str = "/run/secrets/files";

/// An app: its workload, its Service and its identity.
#[derive(Debug, Clone)]
pub struct App {
    name: String,
    service: Option<String>,
    version: String,
    replicas: usize,
    arguments: Vec<String>,
    command: Option<Vec<String>>,
    role: Option<Vec<String>>,
    ports: Vec<Value>,
    probe: Option<Value>,
    files: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    labels: Vec<(String, String)>,
    agent: Option<Vec<String>>,
    grace: u64,
    families: Option<(&'static str, &'static [&'static str])>,
    headless: bool,
    sticky: bool,
    serves: bool,
}

/// An app of that name: `tulle app serve`, or another program if [`App::command`] says so. Without a port it only waits
/// for what the test runs in it.
#[must_use]
pub fn app(name: &str) -> App {
    App {
        name: name.to_owned(),
        service: None,
        version: "v1".to_owned(),
        replicas: 1,
        arguments: Vec::new(),
        command: None,
        role: None,
        ports: Vec::new(),
        probe: None,
        files: Vec::new(),
        annotations: Vec::new(),
        labels: Vec::new(),
        agent: None,
        grace: 2,
        families: None,
        headless: false,
        sticky: false,
        serves: false,
    }
}

impl App {
    /// Serves HTTP/1.1 and HTTP/2 on this port, and declares it as HTTP.
    #[must_use]
    pub fn http(self, port: u16) -> Self {
        self.serve("--http", port, "http")
    }

    /// Serves gRPC on this port, and declares it.
    #[must_use]
    pub fn grpc(self, port: u16) -> Self {
        self.serve("--grpc", port, "grpc")
    }

    /// Echoes opaque TCP on this port, and declares it.
    #[must_use]
    pub fn tcp(self, port: u16) -> Self {
        self.serve("--tcp", port, "tcp")
    }

    /// Serves with an option of `tulle app serve` on a port of that name: `http-web`, or `web` to declare nothing.
    #[must_use]
    pub fn serve(mut self, option: &str, port: u16, port_name: &str) -> Self {
        self.serves = true;
        self.arguments.extend([option.to_owned(), port.to_string()]);
        self.port(port_name, port, port)
    }

    /// Adds a port to the Service. Readiness is that the first port accepts connections.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16, target: u16) -> Self {
        self.ports
            .push(json!({ "name": name, "port": port, "targetPort": target }));
        self.probe
            .get_or_insert_with(|| json!({ "tcpSocket": { "port": target }, "periodSeconds": 1 }));
        self
    }

    /// Says in the Service what the port added last speaks, in Kubernetes' own words.
    #[must_use]
    pub fn app_protocol(mut self, protocol: &str) -> Self {
        if let Some(port) = self.ports.last_mut() {
            port["appProtocol"] = protocol.into();
        }
        self
    }

    /// Number of pods.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Version of the app.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// More arguments for `tulle app serve`.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Runs this instead of `tulle app`.
    #[must_use]
    pub fn command<T: Into<String>>(mut self, argv: impl IntoIterator<Item = T>) -> Self {
        self.command = Some(argv.into_iter().map(Into::into).collect());
        self
    }

    /// Runs the test's own program instead, as `tulle` with these arguments.
    #[must_use]
    pub fn role(mut self, arguments: &[&str]) -> Self {
        self.role = Some(arguments.iter().map(ToString::to_string).collect());
        self
    }

    /// Puts a file under [`FILES`].
    #[must_use]
    pub fn file(mut self, name: &str, text: impl Into<String>) -> Self {
        self.files.push((name.to_owned(), text.into()));
        self
    }

    /// Annotates the pods.
    #[must_use]
    pub fn annotate(mut self, name: &str, value: &str) -> Self {
        self.annotations.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Labels the pods, beyond what selects them.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives the pods `tulle agent` with these arguments instead of a sidecar. The app starts when it is ready, and finds
    /// what it writes under [`STATE_DIR`](tulle_runtime::names::files::STATE_DIR).
    #[must_use]
    pub fn agent(self, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self {
            agent: Some(arguments),
            ..self.label(labels::INJECT, "disabled")
        }
    }

    /// Gives the workload a Service of another name, shared with other workloads of the same label `app`.
    #[must_use]
    pub fn part_of(mut self, service: &str) -> Self {
        self.service = Some(service.to_owned());
        self
    }

    /// Seconds between SIGTERM and SIGKILL.
    #[must_use]
    pub fn grace(mut self, seconds: u64) -> Self {
        self.grace = seconds;
        self
    }

    /// Gives the Service an address of each family.
    #[must_use]
    pub fn dual_stack(mut self) -> Self {
        self.families = Some(("RequireDualStack", &["IPv4", "IPv6"]));
        self
    }

    /// Gives the Service an IPv6 address and no other.
    #[must_use]
    pub fn ipv6_only(mut self) -> Self {
        self.families = Some(("SingleStack", &["IPv6"]));
        self
    }

    /// Gives the Service no address of its own.
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    /// Has the Service keep each client with one pod.
    #[must_use]
    pub fn sticky(mut self) -> Self {
        self.sticky = true;
        self
    }

    /// The manifests of this app alone; `+` puts several together.
    #[must_use]
    pub fn yaml(&self) -> String {
        let mut documents = vec![self.account(), self.deployment()];
        if self.service.is_none() && !self.ports.is_empty() {
            documents.push(self.service(&self.name));
        }
        if !self.files.is_empty() {
            documents.push(self.config_map());
        }
        // JSON is YAML.
        documents
            .iter()
            .map(|document| format!("---\n{document}\n"))
            .collect()
    }

    fn account(&self) -> Value {
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": self.name } })
    }

    fn config_map(&self) -> Value {
        let data: serde_json::Map<_, _> = self
            .files
            .iter()
            .map(|(name, text)| (name.clone(), text.clone().into()))
            .collect();
        let name = format!("{}-files", self.name);
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data })
    }

    fn service(&self, name: &str) -> Value {
        let mut spec = json!({ "selector": { "app": name }, "ports": self.ports });
        if let Some((policy, families)) = self.families {
            spec["ipFamilyPolicy"] = policy.into();
            spec["ipFamilies"] = json!(families);
        }
        if self.headless {
            spec["clusterIP"] = "None".into();
        }
        if self.sticky {
            spec["sessionAffinity"] = "ClientIP".into();
        }
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec })
    }

    fn deployment(&self) -> Value {
        let app = self.service.as_ref().unwrap_or(&self.name);
        let labels = json!({ "app": app, "version": self.version });
        let annotations: serde_json::Map<_, _> = self
            .annotations
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect();
        let mut spec = json!({
            "serviceAccountName": self.name,
            "terminationGracePeriodSeconds": self.grace,
            "containers": [self.container()],
        });
        let mut volumes = Vec::new();
        if !self.files.is_empty() {
            let name = format!("{}-files", self.name);
            volumes.push(json!({ "name": "files", "configMap": { "name": name } }));
        }
        if let Some(arguments) = &self.agent {
            spec["initContainers"] = json!([agent::container(arguments)]);
            volumes.extend(agent::volumes());
        }
        spec["volumes"] = volumes.into();
        let mut pod_labels = labels.clone();
        for (name, value) in &self.labels {
            pod_labels[name] = value.as_str().into();
        }
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": self.name },
            "spec": {
                "replicas": self.replicas,
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": pod_labels, "annotations": annotations }, "spec": spec },
            },
        })
    }

    fn container(&self) -> Value {
        let mut container = json!({ "name": "app", "image": "ghcr.io/tulle-mesh/tulle" });
        match (&self.command, &self.role) {
            (Some(argv), _) => {
                container["image"] = "foreign".into();
                container["command"] = json!(argv);
            }
            (None, Some(arguments)) => container["args"] = json!(arguments),
            (None, None) => {
                let mut argv = vec![
                    "app",
                    "serve",
                    "--name",
                    &self.name,
                    "--version",
                    &self.version,
                ];
                argv.extend(self.arguments.iter().map(String::as_str));
                if !self.serves {
                    // Something to be alive by; nobody connects.
                    argv.extend(["--bind", "127.0.0.1", "--tcp", "1"]);
                }
                container["args"] = json!(argv);
            }
        }
        if let Some(probe) = &self.probe {
            container["readinessProbe"] = probe.clone();
        }
        let mut mounts = Vec::new();
        if !self.files.is_empty() {
            mounts.push(json!({ "name": "files", "mountPath": FILES }));
        }
        if self.agent.is_some() {
            mounts.push(agent::state());
        }
        container["volumeMounts"] = mounts.into();
        container
    }
}

/// Manifests of several apps, made with `+`.
#[derive(Debug, Clone)]
pub struct Manifests(String);

impl AsRef<str> for Manifests {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::ops::Add for App {
    type Output = Manifests;

    fn add(self, other: Self) -> Manifests {
        Manifests(self.yaml()) + other
    }
}

impl std::ops::Add<App> for Manifests {
    type Output = Self;

    fn add(mut self, other: App) -> Self {
        self.0.push_str(&other.yaml());
        self
    }
}

impl std::ops::Add<&str> for Manifests {
    type Output = Self;

    fn add(mut self, yaml: &str) -> Self {
        self.0.push_str("\n---\n");
        self.0.push_str(yaml);
        self
    }
}
