//! The manifests: many Services, their pods, and the pods of the clients.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};
use tulle_xds_proto::ResourceType::{self, Endpoints, Listener};

pub(crate) const NAMESPACE: &str = "shop";
/// Pods of each Service.
const PODS: usize = 2;

/// A change, and of which types every client must hear something.
type Change = (
    &'static str,
    fn(&Path, usize, bool) -> anyhow::Result<()>,
    &'static [ResourceType],
);

/// The changes that are measured: to a Service, and back.
pub(crate) const CHANGES: [Change; 2] = [
    ("an endpoint that comes or goes", endpoint, &[Endpoints]),
    ("a port that speaks another protocol", protocol, &[Listener]),
];

pub(crate) fn client_ip(i: usize) -> Ipv4Addr {
    address([10, 3], i)
}

fn address(net: [u8; 2], i: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(net[0], net[1], 0, 1).to_bits() + i as u32)
}

/// Writes everything.
pub(crate) fn write(directory: &Path, services: usize, clients: usize) -> anyhow::Result<()> {
    std::fs::create_dir(directory)?;
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    put(directory, "namespace.json", &namespace)?;
    for i in 0..clients {
        let name = format!("web-{i}");
        pod(directory, &name, &name, client_ip(i))?;
    }
    for i in 0..services {
        for k in 0..PODS {
            let ip = address([10, 2], i * PODS + k);
            pod(directory, &format!("s{i}-{k}"), &format!("s{i}"), ip)?;
        }
        service(directory, i, "http")?;
        slice(directory, i, true)?;
    }
    Ok(())
}

fn endpoint(directory: &Path, i: usize, back: bool) -> anyhow::Result<()> {
    slice(directory, i, back)
}

fn protocol(directory: &Path, i: usize, back: bool) -> anyhow::Result<()> {
    service(directory, i, if back { "http" } else { "tcp" })
}

fn pod(directory: &Path, name: &str, account: &str, ip: Ipv4Addr) -> anyhow::Result<()> {
    let labels = json!({ "app": name, "tulle.dev/proxied": "true" });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": labels },
        "spec": { "serviceAccountName": account, "containers": [{ "name": "app", "image": "app" }] },
        "status": { "podIP": ip, "podIPs": [{ "ip": ip }] },
    });
    put(directory, &format!("pod-{name}.json"), &pod)
}

fn service(directory: &Path, i: usize, protocol: &str) -> anyhow::Result<()> {
    let (name, vip) = (format!("s{i}"), address([10, 96], i));
    let port = json!({ "name": "main", "port": 80, "appProtocol": protocol });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": { "clusterIP": vip, "clusterIPs": [vip], "ports": [port] },
    });
    put(directory, &format!("service-{i}.json"), &service)
}

fn slice(directory: &Path, i: usize, all: bool) -> anyhow::Result<()> {
    let endpoints: Vec<_> = (0..if all { PODS } else { PODS - 1 })
        .map(|k| {
            let pod = json!({ "kind": "Pod", "name": format!("s{i}-{k}"), "namespace": NAMESPACE });
            let addresses = [address([10, 2], i * PODS + k)];
            json!({ "addresses": addresses, "conditions": { "ready": true }, "targetRef": pod })
        })
        .collect();
    let labels = json!({ "kubernetes.io/service-name": format!("s{i}") });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": format!("s{i}-1"), "namespace": NAMESPACE, "labels": labels },
        "ports": [{ "name": "main", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    });
    put(directory, &format!("slice-{i}.json"), &slice)
}

/// Puts a file in place as a whole.
fn put(directory: &Path, name: &str, content: &Value) -> anyhow::Result<()> {
    let temporary = directory.join(format!(".{name}"));
    std::fs::write(&temporary, content.to_string())?;
    Ok(std::fs::rename(temporary, directory.join(name))?)
}
