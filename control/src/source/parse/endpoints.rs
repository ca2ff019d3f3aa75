//! EndpointSlices.

use k8s_openapi::api::discovery::v1 as discovery;

use super::{Invalid, fields};
use crate::store::{Endpoint, EndpointSlice, Object, ObjectKey};

/// Names the Service that a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Reads a slice; one that belongs to no Service is not used.
pub(super) fn slice(
    key: ObjectKey,
    slice: discovery::EndpointSlice,
) -> Result<Option<Object>, Invalid> {
    let Some(service) = slice
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SERVICE_LABEL))
    else {
        return Ok(None);
    };
    fields::label(&format!("metadata.labels.{SERVICE_LABEL}"), service)?;
    match slice.address_type.as_str() {
        "IPv4" | "IPv6" => {}
        other => {
            return Err(Invalid::new(
                "addressType",
                format!("{other:?} is not supported: use IPv4 or IPv6"),
            ));
        }
    }
    let mut ports = Vec::new();
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        let tcp = matches!(port.protocol.as_deref(), None | Some("" | "TCP"));
        if let Some(number) = port.port.filter(|_| tcp) {
            let number = fields::port(format!("ports[{index}].port"), number.into())?;
            ports.push((port.name.as_deref().unwrap_or_default().into(), number));
        }
    }
    let mut endpoints = Vec::new();
    for (index, endpoint) in slice.endpoints.into_iter().flatten().enumerate() {
        endpoints.push(self::endpoint(index, &key, endpoint)?);
    }
    Ok(Some(Object::EndpointSlice(EndpointSlice {
        service: service.as_str().into(),
        key,
        ports,
        endpoints,
    })))
}

fn endpoint(
    index: usize,
    slice: &ObjectKey,
    endpoint: discovery::Endpoint,
) -> Result<Endpoint, Invalid> {
    // All addresses of one endpoint are the same; the first is used, as kube-proxy does.
    let Some(address) = endpoint.addresses.first() else {
        return Err(Invalid::new(
            format!("endpoints[{index}].addresses"),
            "is empty: an endpoint needs an address",
        ));
    };
    let conditions = endpoint.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = endpoint.hints.unwrap_or_default();
    let target = endpoint.target_ref;
    let target = target.filter(|target| target.kind.as_deref() == Some("Pod"));
    let (pod, uid) = target
        .and_then(|target| {
            let namespace = target.namespace.as_deref();
            let namespace = namespace.unwrap_or(&slice.namespace).into();
            let name = target.name?.into();
            Some((ObjectKey { namespace, name }, target.uid))
        })
        .unzip();
    let is_near = pod
        .as_ref()
        .is_some_and(|pod: &ObjectKey| pod.namespace == slice.namespace);
    let uid = uid.flatten().filter(|uid| is_near && !uid.is_empty());
    Ok(Endpoint {
        address: fields::ip(format!("endpoints[{index}].addresses[0]"), address)?,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        pod,
        pod_uid: uid.map(Into::into),
        node: endpoint.node_name.map(Into::into),
        zone: endpoint.zone.map(Into::into),
        for_zones: hints
            .for_zones
            .into_iter()
            .flatten()
            .map(|zone| zone.name.into())
            .collect(),
        for_nodes: hints
            .for_nodes
            .into_iter()
            .flatten()
            .map(|node| node.name.into())
            .collect(),
    })
}
