//! Who stands behind an address: `tulle.v1.Endpoint` on endpoints, and `istio.workload.Address` by `/IP`.

use std::net::IpAddr;

use tulle_runtime::names::labels;
use tulle_xds_proto::istio::workload::{Address, Workload, WorkloadType, address};
use tulle_xds_proto::tulle;

use super::mtls;
use crate::store::{Pod, World};

/// What a client must know about a port of a pod beyond its address.
pub(super) fn endpoint(world: &World, pod: &Pod, mtls: bool) -> tulle::v1::Endpoint {
    let (app, version) = (app(pod), version(pod));
    tulle::v1::Endpoint {
        spiffe_ids: if mtls {
            vec![mtls::spiffe_id(world.mesh(), pod)]
        } else {
            vec![]
        },
        mtls,
        foreign: mtls && pod.foreign,
        workload_name: pod.workload.name.to_string(),
        workload_kind: pod.workload.kind.to_string(),
        namespace: pod.key.namespace.to_string(),
        service_account: pod.service_account.to_string(),
        canonical_name: canonical_name(pod),
        canonical_revision: canonical_revision(pod),
        app,
        version,
        cluster: world.mesh().cluster.to_string(),
    }
}

/// The workload that has an address. The name is `<network>/<ip>`, and the network is empty.
pub(super) fn address(world: &World, name: &str) -> Option<Address> {
    let text = name.strip_prefix('/')?;
    let ip: IpAddr = text
        .parse()
        .ok()
        .filter(|ip: &IpAddr| ip.to_string() == text)?;
    let pod = world.pod_by_ip(ip)?;
    let workload = Workload {
        name: pod.key.name.to_string(),
        namespace: pod.key.namespace.to_string(),
        addresses: pod.ips.iter().map(bytes_of).collect(),
        trust_domain: world.mesh().trust_domain.to_string(),
        service_account: pod.service_account.to_string(),
        node: pod.node.as_deref().unwrap_or_default().to_owned(),
        canonical_name: canonical_name(pod),
        canonical_revision: canonical_revision(pod),
        workload_type: workload_type(&pod.workload.kind).into(),
        workload_name: pod.workload.name.to_string(),
        cluster_id: world.mesh().cluster.to_string(),
        uid: format!(
            "{}//Pod/{}/{}",
            world.mesh().cluster,
            pod.key.namespace,
            pod.key.name
        ),
        ..Workload::default()
    };
    Some(Address {
        r#type: Some(address::Type::Workload(workload)),
    })
}

fn bytes_of(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Istio's API has no word for other kinds than these.
fn workload_type(kind: &str) -> WorkloadType {
    match kind {
        "Deployment" => WorkloadType::Deployment,
        "CronJob" => WorkloadType::Cronjob,
        "Job" => WorkloadType::Job,
        _ => WorkloadType::Pod,
    }
}

fn app(pod: &Pod) -> String {
    first_label(pod, &["app", labels::APP_NAME]).unwrap_or_default()
}

fn version(pod: &Pod) -> String {
    first_label(pod, &["version", labels::APP_VERSION]).unwrap_or_default()
}

fn canonical_name(pod: &Pod) -> String {
    first_label(pod, &[labels::CANONICAL_NAME, labels::APP_NAME, "app"])
        .unwrap_or_else(|| pod.workload.name.to_string())
}

fn canonical_revision(pod: &Pod) -> String {
    first_label(
        pod,
        &[labels::CANONICAL_REVISION, labels::APP_VERSION, "version"],
    )
    .unwrap_or_else(|| "latest".to_owned())
}

fn first_label(pod: &Pod, names: &[&str]) -> Option<String> {
    names
        .iter()
        .find_map(|name| pod.labels.get(name))
        .map(|value| value.to_string())
}
