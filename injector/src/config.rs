//! What an operator can set about every sidecar. Pods tune some of it by annotation: see `options`.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::hmac;
use serde_json::Value;
use tulle_runtime::names::{DEFAULT_CLUSTER_DOMAIN, DEFAULT_TRUST_DOMAIN, containers};

use crate::{Located, Revision, Selector};

/// Settings of the injector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectorConfig {
    /// The revision whose pods get their sidecars from here.
    pub revision: Revision,
    /// Image of the sidecar and of the capture init container.
    pub image: String,
    /// Pull policy of that image.
    pub image_pull_policy: String,
    /// Secrets that pods get to pull it with, of their own namespaces.
    pub image_pull_secrets: Vec<String>,
    /// `host:port` of the control plane.
    pub control_address: String,
    /// The same by number, for pods whose resolver may not know the name.
    pub control_at: Located,
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Log filter of the sidecar unless a pod sets its own.
    pub log: String,
    /// Whether the sidecar writes an access log unless a pod says otherwise.
    pub access_log: bool,
    /// Native sidecars (init containers with `restartPolicy: Always`) unless a pod says otherwise.
    pub native_sidecar: bool,
    /// Mark the sidecar's sockets instead of relying on its uid. Rootless sandbox only: an app could set the mark too.
    pub mark_sockets: bool,
    /// Send the kubelet's probes of app containers through the sidecar's metrics port, which alone can pass them to the
    /// app under STRICT mTLS. On for Kubernetes; off in the sandbox, which probes from inside the pod.
    pub rewrite_probes: bool,
    /// What keeps the paths of hooks from being guessed.
    pub hook_key: HookKey,
    /// Have Prometheus ask the sidecar, by the annotations that it goes by, unless a pod says otherwise.
    pub merge_metrics: bool,
    /// Have a hook of the sidecar wait until it is ready, so that the app starts then; off: a startup probe, which kubelet asks
    /// once a second. On for Kubernetes; off in the sandbox, which has no such hooks.
    pub start_hook: bool,
    /// How long the sidecar may drain. Absent: five seconds less than the pod's own grace period.
    pub drain_deadline: Option<Duration>,
    /// Data-path workers of each sidecar.
    pub workers: usize,
    /// Compute resources of the sidecar.
    pub resources: Resources,
    /// Pods that any of these selects are left as they are, unless their own label asks for a sidecar.
    pub never: Vec<Selector>,
    /// Pods that any of these selects get a sidecar also where their namespace is not labelled, unless they opt out.
    pub always: Vec<Selector>,
}

/// Makes the paths of hooks unknown to whoever cannot read the pod. The sidecar answers them at a port that everybody reaches, as
/// kubelet does, and a hook may end the app.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct HookKey([u8; 32]);

impl HookKey {
    /// One that nobody knows, for as long as the process lives. The default one is for manifests in files, which come out the same
    /// each time: only the rest of the pod keeps its paths from being guessed.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn random() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key)?;
        Ok(Self(key))
    }

    /// The last step of paths of this pod's hooks.
    pub(crate) fn word(&self, pod: &Value) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let tag = hmac::sign(&key, pod.to_string().as_bytes());
        let bytes = tag.as_ref().iter().take(16);
        bytes.fold(String::new(), |word, byte| format!("{word}{byte:02x}"))
    }
}

impl fmt::Debug for HookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookKey")
    }
}

/// Requests and limits of a container, in Kubernetes' notation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// Requested processor time, such as `10m`.
    pub cpu_request: String,
    /// Requested memory, such as `16Mi`.
    pub memory_request: String,
    /// Limit of processor time; none by default, because throttling shows as latency of the app.
    pub cpu_limit: Option<String>,
    /// Limit of memory.
    pub memory_limit: Option<String>,
}

impl Default for InjectorConfig {
    fn default() -> Self {
        let revision = Revision::default();
        Self {
            control_address: revision.control_address(DEFAULT_CLUSTER_DOMAIN),
            control_at: Located::default(),
            revision,
            image: containers::PROXY_IMAGE.to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            image_pull_secrets: Vec::new(),
            trust_domain: DEFAULT_TRUST_DOMAIN.to_owned(),
            cluster_domain: DEFAULT_CLUSTER_DOMAIN.to_owned(),
            log: "info".to_owned(),
            access_log: true,
            native_sidecar: true,
            mark_sockets: false,
            rewrite_probes: true,
            hook_key: HookKey::default(),
            merge_metrics: true,
            start_hook: true,
            drain_deadline: None,
            workers: 1,
            resources: Resources::default(),
            never: Vec::new(),
            always: Vec::new(),
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu_request: "10m".to_owned(),
            memory_request: "16Mi".to_owned(),
            cpu_limit: None,
            memory_limit: Some("256Mi".to_owned()),
        }
    }
}
