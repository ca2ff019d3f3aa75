//! What the tests put into the world: a pod, and a Service that it calls.

use std::net::IpAddr;

use super::harness::*;
use crate::store::service::{Addressing, AppProtocol, Distribution, ServicePort, TargetPort};
use crate::store::{Endpoint, EndpointSlice, Event, Kind, Object, ObjectKey, ObjectRef, Service};

/// Address of a test's one proxy.
pub(super) const IP: [u8; 4] = [10, 0, 0, 1];
pub(super) const VIP: [u8; 4] = [10, 1, 0, 1];
pub(super) const LISTENER: &str = "outbound|10.1.0.1|80";
pub(super) const CLUSTER: &str = "outbound|80||api.shop.svc.cluster.local";

pub(super) fn service(name: &str, vip: [u8; 4]) -> Event {
    Event::Apply(Object::Service(a_service(name, vip)))
}

pub(super) fn a_service(name: &str, vip: [u8; 4]) -> Service {
    Service {
        key: ObjectKey::new("shop", name),
        addressing: Addressing::Virtual(vec![IpAddr::from(vip)]),
        ports: vec![ServicePort {
            name: "http".into(),
            port: 80,
            target: TargetPort::Number(8080),
            protocol: AppProtocol::Http,
        }],
        selector: None,
        publish_not_ready: false,
        client_ip_affinity: None,
        local_only: false,
        distribution: Distribution::Any,
    }
}

pub(super) fn endpoints(service: &str, addresses: &[[u8; 4]]) -> Event {
    let endpoint = |address: &[u8; 4]| Endpoint {
        address: IpAddr::from(*address),
        ready: true,
        serving: true,
        terminating: false,
        pod: None,
        node: None,
        zone: None,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
        pod_uid: None,
    };
    Event::Apply(Object::EndpointSlice(EndpointSlice {
        key: ObjectKey::new("shop", format!("{service}-1")),
        service: service.into(),
        ports: vec![("http".into(), 8080)],
        endpoints: addresses.iter().map(endpoint).collect(),
    }))
}

pub(super) fn delete(kind: Kind, name: &str) -> Event {
    Event::Delete(ObjectRef {
        kind,
        key: ObjectKey::new("shop", name),
    })
}

/// A plane with one Service, and a stream of its one pod.
pub(super) async fn plane_and_proxy() -> (Plane, Proxy) {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    plane.writer.apply(vec![
        service("api", VIP),
        endpoints("api", &[[10, 0, 1, 1]]),
    ]);
    let proxy = plane.proxy("shop", "web-1", "web", IP).await;
    (plane, proxy)
}

pub(super) fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
