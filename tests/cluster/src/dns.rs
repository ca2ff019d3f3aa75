//! The cluster's DNS: CoreDNS on the control plane's machine, published as the Service `kube-dns`.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::component::Component;
use crate::machine::{Machine, Place};
use crate::network::{CONTROL_V4, DNS_SERVICE};
use crate::programs;

/// Starts it.
pub(crate) fn start(place: &Place, machine: &Machine, kubeconfig: &Path) -> Result<Component> {
    let corefile = place.folder.join("control/Corefile");
    // Names of the world outside do not exist: nothing leads there.
    fs::write(
        &corefile,
        format!(
            "cluster.local in-addr.arpa ip6.arpa {{
    bind {CONTROL_V4}
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {}
        pods insecure
    }}
}}
. {{
    bind {CONTROL_V4}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
",
            kubeconfig.display()
        ),
    )?;
    let mut command = machine.command(programs::built("coredns"));
    command.arg("-conf").arg(&corefile);
    let remedy = "see whether its plugins are those of its version: delete it and run ./tests/run";
    Component::start("coredns", command, &place.logs(), remedy)
}

/// The Service that pods ask.
pub(crate) fn service() -> Value {
    let port = |name, protocol| json!({ "name": name, "port": 53, "protocol": protocol });
    let ports = json!([port("dns", "UDP"), port("dns-tcp", "TCP")]);
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kube-dns", "namespace": "kube-system", "labels": { "k8s-app": "kube-dns" } },
            "spec": { "clusterIP": DNS_SERVICE, "ports": ports },
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns", "namespace": "kube-system",
                "labels": { "kubernetes.io/service-name": "kube-dns" },
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [CONTROL_V4], "conditions": { "ready": true } }],
            "ports": ports,
        },
    ]})
}
