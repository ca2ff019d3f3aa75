//! Who is called with mTLS, and who accepts what: effective PeerAuthentication, and SPIFFE ids.

use std::sync::Arc;

use tulle_runtime::names::ports;

use crate::store::policy::{MtlsMode, PolicyTarget};
use crate::store::{MeshSettings, PeerAuthentication, Pod, World};

/// The policies that count for a pod: of its workload, its namespace and the mesh, in this order.
pub(super) struct Effective<'a> {
    scopes: [Option<&'a Arc<PeerAuthentication>>; 3],
}

impl<'a> Effective<'a> {
    /// The policies of a pod. Of several in one scope the oldest counts.
    pub(super) fn of(world: &'a World, pod: &Pod) -> Self {
        let root = &world.mesh().root_namespace;
        let oldest = |namespace: &Arc<str>, applies: &dyn Fn(&PolicyTarget) -> bool| {
            world
                .policies_in(namespace)
                .filter(|policy| applies(&policy.target))
                .min_by(|a, b| (a.created, a.istio, &a.key).cmp(&(b.created, b.istio, &b.key)))
        };
        let workload = |target: &PolicyTarget| match target {
            PolicyTarget::Namespace => false,
            PolicyTarget::Pods(labels) => labels.selects(&pod.labels),
            PolicyTarget::Services(keys) => keys.iter().any(|key| {
                world
                    .service(key)
                    .is_some_and(|service| service.selects(pod))
            }),
        };
        let everyone = |target: &PolicyTarget| *target == PolicyTarget::Namespace;
        Self {
            scopes: [
                oldest(&pod.key.namespace, &workload),
                oldest(&pod.key.namespace, &everyone),
                oldest(root, &everyone),
            ],
        }
    }

    /// The mode of a port: what any scope says of the port, else what the closest scope says of all ports.
    pub(super) fn mode(&self, port: u16) -> MtlsMode {
        let scopes = || self.scopes.iter().flatten();
        scopes()
            .find_map(|policy| policy.ports.get(&port).copied())
            .or_else(|| scopes().find_map(|policy| policy.mode))
            .unwrap_or_default()
    }

    /// The mode of ports that no policy names.
    pub(super) fn default_mode(&self) -> MtlsMode {
        self.scopes
            .iter()
            .flatten()
            .find_map(|policy| policy.mode)
            .unwrap_or_default()
    }

    /// The ports that some policy names.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.scopes
            .iter()
            .flatten()
            .flat_map(|policy| policy.ports.keys().copied())
    }
}

/// Whether peers call a port of a pod with mTLS (and then never without).
pub(super) fn is_mtls(world: &World, pod: &Pod, port: u16) -> bool {
    pod.proxied
        && !pod.host_network
        && !pod.uncaptured_ports.contains(&port)
        && port != ports::METRICS
        && port != ports::READINESS
        && Effective::of(world, pod).mode(port) != MtlsMode::Disable
}

/// The SPIFFE id of a pod.
pub(super) fn spiffe_id(mesh: &MeshSettings, pod: &Pod) -> String {
    format!(
        "spiffe://{}/ns/{}/sa/{}",
        mesh.trust_domain, pod.key.namespace, pod.service_account
    )
}
