//! Who is called with mTLS, and who accepts what: effective PeerAuthentication, what of it is overruled, and SPIFFE ids.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tulle_runtime::names::ports;

use crate::store::policy::{MtlsMode, PolicyTarget};
use crate::store::{MeshSettings, ObjectKey, ObjectRef, PeerAuthentication, Pod, World};

/// The policies that count for a pod: of its workload, its namespace and the mesh, in this order.
pub(super) struct Effective<'a> {
    scopes: [Option<&'a Arc<PeerAuthentication>>; 3],
}

impl<'a> Effective<'a> {
    /// The policies of a pod. Of several in one scope the oldest counts, then the first by name. Policies of the mesh's
    /// root namespace that name a workload count for such pods everywhere that their own namespace says nothing of.
    pub(super) fn of(world: &'a World, pod: &Pod) -> Self {
        let root = &world.mesh().root_namespace;
        let own = &pod.key.namespace;
        let first = |namespace: &Arc<str>, widely: bool| {
            world
                .policies_in(namespace)
                .filter(|policy| is_wide(policy) == widely)
                .filter(|policy| applies(world, policy, pod))
                .min_by(|a, b| rank(a).cmp(&rank(b)))
        };
        Self {
            scopes: [
                first(own, false).or_else(|| first(root, false)),
                first(own, true),
                first(root, true),
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

/// The order of policies in one scope; the first one counts.
fn rank(policy: &PeerAuthentication) -> impl Ord {
    (policy.created, policy.istio, policy.key.clone())
}

/// Whether a policy is for a whole namespace or the mesh.
fn is_wide(policy: &PeerAuthentication) -> bool {
    policy.target == PolicyTarget::Namespace
}

/// Whether a policy is for a pod.
fn applies(world: &World, policy: &PeerAuthentication, pod: &Pod) -> bool {
    let reaches = policy.key.namespace == pod.key.namespace
        || policy.key.namespace == world.mesh().root_namespace;
    reaches
        && match &policy.target {
            PolicyTarget::Namespace => true,
            PolicyTarget::Pods(labels) => labels.selects(&pod.labels),
            PolicyTarget::Services(keys) => keys.iter().any(|key| {
                world
                    .service(key)
                    .is_some_and(|service| service.selects(pod))
            }),
        }
}

/// The pods that a policy is for.
pub(crate) fn subjects<'a>(
    world: &'a World,
    policy: &'a PeerAuthentication,
) -> impl Iterator<Item = &'a Pod> {
    let everywhere = policy.key.namespace == world.mesh().root_namespace;
    let all = everywhere.then(|| world.pods()).into_iter().flatten();
    let own = (!everywhere).then(|| world.pods_in(&policy.key.namespace));
    let pods = all.chain(own.into_iter().flatten()).map(|pod| &**pod);
    pods.filter(|pod| applies(world, policy, pod))
}

/// A policy that does not count where it says it does, because another one of the same scope comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overruled {
    /// The policy.
    pub policy: ObjectRef,
    /// The one that counts.
    pub by: ObjectRef,
    /// Pods that both are for; none where both are for a whole namespace.
    pub pods: Vec<ObjectKey>,
}

impl fmt::Display for Overruled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} comes first (it is older, or first by name)",
            self.policy, self.by
        )?;
        match self.pods.as_slice() {
            [] => f.write_str(" and is for the whole namespace too: remove one of the two"),
            [pod] => write!(f, " for pod {pod}: narrow one of the two"),
            [pod, ..] => write!(
                f,
                " for {} pods, {pod} among them: narrow one of the two",
                self.pods.len()
            ),
        }
    }
}

/// Every policy that another one overrules, sorted.
#[must_use]
pub fn overruled(world: &World) -> Vec<Overruled> {
    let reference = |policy: &PeerAuthentication| ObjectRef {
        kind: policy.kind(),
        key: policy.key.clone(),
    };
    let mut found: BTreeMap<(ObjectRef, ObjectRef), Vec<ObjectKey>> = BTreeMap::new();
    for policy in world.policies() {
        let same_scope = || {
            let others = world.policies_in(&policy.key.namespace);
            others.filter(|other| is_wide(other) == is_wide(policy) && rank(other) < rank(policy))
        };
        if is_wide(policy) {
            if let Some(first) = same_scope().min_by(|a, b| rank(a).cmp(&rank(b))) {
                found.insert((reference(policy), reference(first)), Vec::new());
            }
            continue;
        }
        if same_scope().next().is_none() {
            continue;
        }
        for pod in world
            .pods_in(&policy.key.namespace)
            .filter(|pod| applies(world, policy, pod))
        {
            let first = same_scope()
                .filter(|other| applies(world, other, pod))
                .min_by(|a, b| rank(a).cmp(&rank(b)));
            if let Some(first) = first {
                let pair = (reference(policy), reference(first));
                found.entry(pair).or_default().push(pod.key.clone());
            }
        }
    }
    found
        .into_iter()
        .map(|((policy, by), pods)| Overruled { policy, by, pods })
        .collect()
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
