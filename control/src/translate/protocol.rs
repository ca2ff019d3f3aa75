//! What a port of a pod speaks, and which Service it belongs to.

use std::collections::BTreeMap;

use crate::store::service::AppProtocol;
use crate::store::{ObjectKey, Pod, World};

/// What the Services that target a port of a pod say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodPort {
    /// What they declare if they agree, else [`AppProtocol::Detect`].
    pub(super) protocol: AppProtocol,
    /// The Service, if it is exactly one.
    pub(super) service: Option<ObjectKey>,
}

/// The ports of a pod that some Service targets.
pub(super) fn pod_ports(world: &World, pod: &Pod) -> BTreeMap<u16, PodPort> {
    let mut ports: BTreeMap<u16, PodPort> = BTreeMap::new();
    for service in world
        .services_in(&pod.key.namespace)
        .filter(|service| service.selects(pod))
    {
        for port in &service.ports {
            let Some(target) = port.target_of(pod) else {
                continue;
            };
            ports
                .entry(target)
                .and_modify(|known| {
                    if known.protocol != port.protocol {
                        known.protocol = AppProtocol::Detect;
                    }
                    known.service = known.service.take().filter(|key| *key == service.key);
                })
                .or_insert_with(|| PodPort {
                    protocol: port.protocol,
                    service: Some(service.key.clone()),
                });
        }
    }
    ports
}

/// Whether some Service targets a port of a pod.
pub(crate) fn is_targeted(world: &World, pod: &Pod, port: u16) -> bool {
    let mut services = world.services_in(&pod.key.namespace);
    services.any(|service| {
        let mut ports = service.ports.iter();
        service.selects(pod) && ports.any(|it| it.target_of(pod) == Some(port))
    })
}
