//! Services, the endpoints behind them and the translations from the one to the other. Pure: pods in, objects out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tulle_nft::Transport;

use crate::ObjectKey;
use crate::network::PodIps;
use crate::workload::stable_uid;

/// Label of a slice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// What services need to know of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) ips: PodIps,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ports: BTreeMap<String, u16>,
    /// `spec.hostname` and `spec.subdomain`, which make a name in a headless Service.
    pub(crate) hostname: Option<String>,
    pub(crate) subdomain: Option<String>,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
}

/// From an address of a Service to the endpoints behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Translation {
    pub(crate) from: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) to: Vec<SocketAddr>,
}

/// The ClusterIPs of a Service; none if it is headless.
pub(crate) fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let spec = service.spec.as_ref();
    let list = spec.and_then(|spec| spec.cluster_ips.clone());
    let one = spec.and_then(|spec| spec.cluster_ip.clone());
    let all = list
        .filter(|list| !list.is_empty())
        .unwrap_or_else(|| one.into_iter().collect());
    all.iter().filter_map(|ip| ip.parse().ok()).collect()
}

/// Whether the Service has no ClusterIP and wants none.
pub(crate) fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

/// Whether the Service is only another name.
pub(crate) fn external_name(service: &Service) -> Option<&str> {
    let spec = service.spec.as_ref()?;
    spec.external_name
        .as_deref()
        .filter(|_| spec.type_.as_deref() == Some("ExternalName"))
}

/// Whether the Service has addresses of this family; IPv4 alone unless it says otherwise, as in most clusters.
pub(crate) fn has_family(service: &Service, ipv6: bool) -> bool {
    let spec = service.spec.as_ref();
    let families = spec
        .and_then(|spec| spec.ip_families.as_deref())
        .unwrap_or_default();
    let dual = spec
        .and_then(|spec| spec.ip_family_policy.as_deref())
        .is_some_and(|policy| matches!(policy, "PreferDualStack" | "RequireDualStack"));
    let name = if ipv6 { "IPv6" } else { "IPv4" };
    dual || families.iter().any(|family| family == name) || (families.is_empty() && !ipv6)
}

/// The slices of a Service with a selector: one for each family and each set of port numbers.
pub(crate) fn slices(
    key: &ObjectKey,
    service: &Service,
    backends: &[Backend],
) -> Vec<(ObjectKey, EndpointSlice)> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let selector = spec
        .selector
        .as_ref()
        .filter(|selector| !selector.is_empty());
    let Some(selector) = selector.filter(|_| external_name(service).is_none()) else {
        return Vec::new();
    };
    let selected = |backend: &&Backend| {
        let matches = selector
            .iter()
            .all(|(name, value)| backend.labels.get(name) == Some(value));
        backend.key.namespace == key.namespace && matches
    };
    let always = spec.publish_not_ready_addresses == Some(true);
    let mut slices = Vec::new();
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        if !has_family(service, ipv6) {
            continue;
        }
        let mut groups: BTreeMap<Vec<(String, u16, String)>, Vec<Endpoint>> = BTreeMap::new();
        for backend in backends.iter().filter(selected) {
            let Some(ip) = backend.ips.all().find(|ip| ip.is_ipv6() == ipv6) else {
                continue;
            };
            let ports = spec
                .ports
                .iter()
                .flatten()
                .filter_map(|port| resolve(port, backend))
                .collect();
            groups
                .entry(ports)
                .or_default()
                .push(endpoint(key, backend, ip, always));
        }
        if groups.is_empty() {
            groups.insert(Vec::new(), Vec::new());
        }
        for (number, (ports, endpoints)) in groups.into_iter().enumerate() {
            let name = format!("{}-{}-{number}", key.name, family.to_lowercase());
            let slice = slice(key, &name, service, family, ports, endpoints);
            slices.push((ObjectKey::new(key.namespace.clone(), name), slice));
        }
    }
    slices
}

fn resolve(port: &ServicePort, backend: &Backend) -> Option<(String, u16, String)> {
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => backend.ports.get(name).copied(),
    }?;
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    Some((port.name.clone().unwrap_or_default(), number, protocol))
}

fn endpoint(service: &ObjectKey, backend: &Backend, ip: IpAddr, always: bool) -> Endpoint {
    let named = backend.subdomain.as_ref() == Some(&service.name);
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(always || backend.serving && !backend.terminating),
            serving: Some(always || backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname.clone().filter(|_| named),
        node_name: Some(crate::NODE_NAME.to_owned()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(backend.key.namespace.clone()),
            name: Some(backend.key.name.clone()),
            uid: Some(backend.uid.clone()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

fn slice(
    key: &ObjectKey,
    name: &str,
    service: &Service,
    family: &str,
    ports: Vec<(String, u16, String)>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let app_protocol = |name: &str| {
        let ports = service
            .spec
            .iter()
            .flat_map(|spec| spec.ports.iter().flatten());
        let port = ports
            .into_iter()
            .find(|port| port.name.as_deref().unwrap_or_default() == name);
        port.and_then(|port| port.app_protocol.clone())
    };
    let port = |(name, port, protocol): (String, u16, String)| EndpointPort {
        app_protocol: app_protocol(&name),
        name: Some(name),
        port: Some(port.into()),
        protocol: Some(protocol),
    };
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(key.namespace.clone()),
            labels: Some(BTreeMap::from([
                (SERVICE_NAME.to_owned(), key.name.clone()),
                (
                    MANAGED_BY.to_owned(),
                    "endpointslice-controller.k8s.io".to_owned(),
                ),
            ])),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Service".to_owned(),
                name: key.name.clone(),
                uid: stable_uid(&format!("Service/{key}")),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        ports: Some(ports.into_iter().map(port).collect()),
    }
}

/// The Service that a slice belongs to.
pub(crate) fn service_of(key: &ObjectKey, slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(key.namespace.clone(), name.clone()))
}

/// Endpoints that get new connections: those that are ready, or else those that still serve while they end.
pub(crate) fn eligible<'a>(slices: &[&'a EndpointSlice]) -> Vec<(&'a EndpointSlice, &'a Endpoint)> {
    let all = || {
        slices.iter().flat_map(|slice| {
            slice
                .endpoints
                .iter()
                .flatten()
                .map(move |endpoint| (*slice, endpoint))
        })
    };
    let condition =
        |endpoint: &Endpoint, which: fn(&EndpointConditions) -> Option<bool>, absent| {
            endpoint
                .conditions
                .as_ref()
                .and_then(which)
                .unwrap_or(absent)
        };
    let ready: Vec<_> = all()
        .filter(|(_, endpoint)| condition(endpoint, |all| all.ready, true))
        .collect();
    if !ready.is_empty() {
        return ready;
    }
    let serves = |endpoint: &Endpoint| condition(endpoint, |all| all.serving, true);
    let ends = |endpoint: &Endpoint| condition(endpoint, |all| all.terminating, false);
    all()
        .filter(|(_, endpoint)| serves(endpoint) && ends(endpoint))
        .collect()
}

/// What the node translates for one Service.
pub(crate) fn translations(service: &Service, slices: &[&EndpointSlice]) -> Vec<Translation> {
    let ports = || {
        service
            .spec
            .iter()
            .flat_map(|spec| spec.ports.iter().flatten())
    };
    let mut translations = Vec::new();
    for ip in cluster_ips(service) {
        let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
        let of_family: Vec<_> = slices
            .iter()
            .copied()
            .filter(|slice| slice.address_type == family)
            .collect();
        let endpoints = eligible(&of_family);
        for port in ports() {
            let transport = match port.protocol.as_deref() {
                None | Some("TCP") => Transport::Tcp,
                Some("UDP") => Transport::Udp,
                Some(_) => continue,
            };
            let Ok(number) = u16::try_from(port.port) else {
                continue;
            };
            let to = endpoints
                .iter()
                .filter_map(|(slice, endpoint)| address(slice, endpoint, port));
            translations.push(Translation {
                from: SocketAddr::new(ip, number),
                transport,
                to: to.collect(),
            });
        }
    }
    translations
}

fn address(slice: &EndpointSlice, endpoint: &Endpoint, port: &ServicePort) -> Option<SocketAddr> {
    let name = port.name.as_deref().unwrap_or_default();
    let mut ports = slice.ports.iter().flatten();
    let port = ports.find(|port| port.name.as_deref().unwrap_or_default() == name)?;
    let number = u16::try_from(port.port?).ok()?;
    Some(SocketAddr::new(
        endpoint.addresses.first()?.parse().ok()?,
        number,
    ))
}

#[cfg(test)]
mod tests;
