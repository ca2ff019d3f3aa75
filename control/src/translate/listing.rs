//! What there is: the names that `*` means, all of them or those that a change may concern.
//!
//! Those of pods are not among them, except for Envoy the endpoints of headless Services: it has no other way to hear of
//! them. Invariant: [`is_listed`] says yes to exactly the [`names`], and each of them is among the [`names_about`] whatever
//! may make it come, change or go.

use std::net::IpAddr;

use tulle_xds_proto::ResourceType;

use super::name::ResourceName;
use super::{ClientKind, ProxyView, Subject, envoy, grpc};
use crate::store::service::Addressing;
use crate::store::{Service, World};

/// Names of all resources of a type that a client may see, sorted: what `*` means.
#[must_use]
pub fn names(world: &World, view: &ProxyView, resource: ResourceType) -> Vec<String> {
    let mut names = Vec::new();
    for service in world.services() {
        names.extend(of_service(world, view.kind, service, resource));
        if resource == ResourceType::Listener && view.kind != ClientKind::Grpc {
            for vip in service.vips() {
                names.extend(of_vip(world, service, *vip));
            }
        }
        if resource == ResourceType::Listener && view.kind == ClientKind::Envoy {
            let headless = envoy::headless(world, service);
            names.extend(headless.map(|endpoint| endpoint.listener().format(world.mesh())));
        }
        if resource == ResourceType::Cluster && view.kind == ClientKind::Envoy {
            let headless = envoy::headless(world, service);
            names.extend(headless.map(|endpoint| endpoint.cluster().format(world.mesh())));
        }
    }
    names.extend(of_own_pod(world, view, resource));
    names.sort();
    names.dedup();
    names
}

/// Those of them that are about a subject, in no order: whatever else is listed, a change of the subject does not concern.
#[must_use]
pub fn names_about(
    world: &World,
    view: &ProxyView,
    resource: ResourceType,
    subject: &Subject,
) -> Vec<String> {
    let mut names = Vec::new();
    match subject {
        Subject::Service(key) => {
            let service = world.service(key);
            names.extend(
                service
                    .map(|it| of_service(world, view.kind, it, resource))
                    .unwrap_or_default(),
            );
        }
        Subject::Address(ip) if resource == ResourceType::Listener => match view.kind {
            ClientKind::Grpc => {}
            ClientKind::Tulle => names.extend(of_address(world, *ip)),
            ClientKind::Envoy => {
                names.extend(of_address(world, *ip));
                let headless = envoy::headless_at(world, *ip);
                names.extend(headless.map(|endpoint| endpoint.listener().format(world.mesh())));
            }
        },
        Subject::Pod(key) => {
            if view.pod.as_ref() == Some(key) {
                names.extend(of_own_pod(world, view, resource));
            }
            if view.kind == ClientKind::Envoy && resource == ResourceType::Cluster {
                let ips = world.pod(key).into_iter().flat_map(|pod| &pod.ips);
                let headless = ips.flat_map(|ip| envoy::headless_at(world, *ip));
                names.extend(headless.map(|endpoint| endpoint.cluster().format(world.mesh())));
            }
        }
        Subject::Address(_) | Subject::Nothing => {}
    }
    names
}

/// Whether a name is one of them.
#[must_use]
pub fn is_listed(world: &World, view: &ProxyView, resource: ResourceType, name: &str) -> bool {
    let is_envoy = view.kind == ClientKind::Envoy;
    if (resource, view.kind) == (ResourceType::Listener, ClientKind::Grpc) {
        return grpc::is_target_name(world, view, name);
    }
    match (resource, ResourceName::parse(world.mesh(), name)) {
        (ResourceType::Listener, Some(ResourceName::Outbound(address))) => {
            let (ip, port) = (address.ip(), address.port());
            let mut services = world.services_by_vip(ip);
            services.any(|service| service.port(port).is_some())
                || is_envoy && envoy::headless_at(world, ip).any(|it| it.port() == port)
        }
        (ResourceType::Cluster, Some(ResourceName::Service { key, port })) => {
            let service = world.service(&key);
            let service = service.filter(|it| it.addressing != Addressing::External);
            service.is_some_and(|service| service.port(port).is_some())
        }
        (ResourceType::Cluster, Some(ResourceName::Pod { key, port, ipv6 })) if is_envoy => {
            let ips = world.pod(&key).into_iter().flat_map(|pod| &pod.ips);
            let ips = ips.filter(|ip| ip.is_ipv6() == ipv6);
            let mut headless = ips.flat_map(|ip| envoy::headless_at(world, *ip));
            headless.any(|endpoint| *endpoint.pod() == key && endpoint.port() == port)
        }
        (
            _,
            Some(
                ResourceName::Inbound
                | ResourceName::Capture
                | ResourceName::Passthrough
                | ResourceName::App(_),
            ),
        ) => of_own_pod(world, view, resource)
            .iter()
            .any(|own| own == name),
        _ => false,
    }
}

/// What is about a Service as such; what is about its endpoints is named after their pods.
fn of_service(
    world: &World,
    kind: ClientKind,
    service: &Service,
    resource: ResourceType,
) -> Vec<String> {
    let ports = service.ports.iter().map(|port| port.port);
    match (resource, kind) {
        (ResourceType::Listener, ClientKind::Grpc) => ports
            .filter_map(|port| grpc::target_name(world, service, port))
            .collect(),
        (ResourceType::Cluster, _) => {
            let called = ports.filter(|_| service.addressing != Addressing::External);
            let name = |port| ResourceName::Service {
                key: service.key.clone(),
                port,
            };
            called.map(|port| name(port).format(world.mesh())).collect()
        }
        _ => Vec::new(),
    }
}

/// The listeners of an address of Services.
fn of_address(world: &World, ip: IpAddr) -> impl Iterator<Item = String> {
    let services = world.services_by_vip(ip);
    services.flat_map(move |service| of_vip(world, service, ip))
}

fn of_vip(world: &World, service: &Service, vip: IpAddr) -> impl Iterator<Item = String> {
    let ports = service.ports.iter().map(|port| port.port);
    ports.map(move |port| ResourceName::Outbound((vip, port).into()).format(world.mesh()))
}

/// Names of the resources that are about the client's own pod, while it is there.
fn of_own_pod(world: &World, view: &ProxyView, resource: ResourceType) -> Vec<String> {
    let Some(pod) = view.pod.as_ref().filter(|pod| world.pod(pod).is_some()) else {
        return Vec::new();
    };
    let names = match (resource, view.kind) {
        (ResourceType::Listener, ClientKind::Envoy) => {
            vec![ResourceName::Inbound, ResourceName::Capture]
        }
        (ResourceType::Listener, ClientKind::Tulle) => vec![ResourceName::Inbound],
        (ResourceType::Cluster, ClientKind::Envoy) => {
            let apps = envoy::ports_of(world, pod)
                .into_iter()
                .map(ResourceName::App);
            apps.chain([ResourceName::Passthrough]).collect()
        }
        _ => Vec::new(),
    };
    names.iter().map(|name| name.format(world.mesh())).collect()
}
