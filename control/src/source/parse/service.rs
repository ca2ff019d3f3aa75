//! Services.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Invalid, fields};
use crate::store::service::{Addressing, AppProtocol, Distribution, ServicePort, TargetPort};
use crate::store::{Object, ObjectKey, Service};

/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_TIMEOUT: i32 = 10_800;

/// Reads a Service.
pub(super) fn service(key: ObjectKey, service: core::Service) -> Result<Object, Invalid> {
    let spec = service.spec.unwrap_or_default();
    let sticky = match spec.session_affinity.as_deref() {
        None | Some("" | "None") => None,
        Some("ClientIP") => {
            let config = spec
                .session_affinity_config
                .as_ref()
                .and_then(|config| config.client_ip.as_ref());
            let seconds = config
                .and_then(|config| config.timeout_seconds)
                .unwrap_or(AFFINITY_TIMEOUT);
            Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
        }
        Some(other) => return Err(choice("spec.sessionAffinity", other, "None or ClientIP")),
    };
    let local_only = match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            return Err(choice(
                "spec.internalTrafficPolicy",
                other,
                "Cluster or Local",
            ));
        }
    };
    let distribution = match spec.traffic_distribution.as_deref() {
        None | Some("") => Distribution::Any,
        Some("PreferClose" | "PreferSameZone") => Distribution::SameZone,
        Some("PreferSameNode") => Distribution::SameNode,
        Some(other) => {
            return Err(choice(
                "spec.trafficDistribution",
                other,
                "PreferSameZone, PreferSameNode or PreferClose",
            ));
        }
    };
    Ok(Object::Service(Service {
        key,
        addressing: addressing(&spec)?,
        ports: ports(spec.ports.as_deref().unwrap_or_default())?,
        selector: spec.selector.map(|labels| labels.into_iter().collect()),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        client_ip_affinity: sticky,
        local_only,
        distribution,
    }))
}

fn choice(field: &str, value: &str, choices: &str) -> Invalid {
    Invalid::new(field, format!("{value:?} is unknown: use {choices}"))
}

fn addressing(spec: &core::ServiceSpec) -> Result<Addressing, Invalid> {
    match spec.type_.as_deref() {
        Some("ExternalName") => return Ok(Addressing::External),
        None | Some("" | "ClusterIP" | "NodePort" | "LoadBalancer") => {}
        Some(other) => {
            return Err(choice(
                "spec.type",
                other,
                "ClusterIP, NodePort, LoadBalancer or ExternalName",
            ));
        }
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return Ok(Addressing::Headless);
    }
    let mut vips: BTreeSet<IpAddr> = BTreeSet::new();
    for (index, ip) in spec.cluster_ips.iter().flatten().enumerate() {
        if ip == "None" {
            return Ok(Addressing::Headless);
        }
        vips.insert(fields::ip(format!("spec.clusterIPs[{index}]"), ip)?);
    }
    if let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty()) {
        vips.insert(fields::ip("spec.clusterIP", ip)?);
    }
    Ok(Addressing::Virtual(vips.into_iter().collect()))
}

fn ports(ports: &[core::ServicePort]) -> Result<Vec<ServicePort>, Invalid> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut parsed = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            return Err(Invalid::new(
                field("name"),
                "is missing: with several ports each needs a name",
            ));
        }
        if !names.insert(name) {
            return Err(Invalid::new(
                field("name"),
                format!("{name:?} is taken by another port of the Service"),
            ));
        }
        let number = fields::port(field("port"), port.port.into())?;
        // The mesh carries TCP; everything else goes by as it always did.
        if !matches!(port.protocol.as_deref(), None | Some("" | "TCP")) {
            continue;
        }
        if !numbers.insert(number) {
            return Err(Invalid::new(
                field("port"),
                format!("{number} is taken by another port of the Service"),
            ));
        }
        let target = match &port.target_port {
            None => TargetPort::Number(number),
            // Headless Services may write 0 or nothing.
            Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::Int(target)) => {
                TargetPort::Number(fields::port(field("targetPort"), (*target).into())?)
            }
            Some(IntOrString::String(name)) => match name.parse::<u16>() {
                Ok(target) => TargetPort::Number(fields::port(field("targetPort"), target.into())?),
                Err(_) => TargetPort::Name(name.as_str().into()),
            },
        };
        let protocol = app_protocol(port.app_protocol.as_deref(), name);
        parsed.push(ServicePort {
            name: name.into(),
            port: number,
            target,
            protocol,
        });
    }
    Ok(parsed)
}

/// What a port declares: `appProtocol` if it is there, else the first word of the port's name.
fn app_protocol(declared: Option<&str>, port_name: &str) -> AppProtocol {
    let word = match declared.filter(|word| !word.is_empty()) {
        Some(word) => word,
        None => port_name.split('-').next().unwrap_or_default(),
    };
    match word.to_ascii_lowercase().as_str() {
        "http" | "grpc-web" | "ws" | "kubernetes.io/ws" => AppProtocol::Http,
        "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" | "tls" | "https" | "wss" | "kubernetes.io/wss" | "mongo" | "redis" | "mysql"
        | "postgresql" => AppProtocol::Tcp,
        _ => AppProtocol::Detect,
    }
}
