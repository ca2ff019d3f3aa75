//! What of a pod would defeat its sidecar: the sidecar's own ids, names and ports.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use tulle_runtime::names::{PROXY_UID, containers, labels, ports};

use super::own::is_own;
use crate::InjectError;

/// Ports that the sidecar listens on, or will.
pub(crate) const PORTS: [u16; 6] = [
    ports::ADMIN,
    ports::OUTBOUND,
    ports::INBOUND,
    ports::METRICS,
    ports::READINESS,
    ports::DNS,
];

pub(crate) fn check(spec: &PodSpec) -> Result<(), InjectError> {
    let all = || {
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
    };
    if all().filter(|container| is_own(container)).count() > 1 {
        return Err(reserved_name("a container", containers::PROXY));
    }
    for container in all() {
        if is_own(container) {
            own(spec, container)?;
            continue;
        }
        if [containers::PROXY, containers::CAPTURE].contains(&container.name.as_str()) {
            return Err(reserved_name("a container", &container.name));
        }
        ids(spec, container)?;
        own_ports(container)?;
    }
    let mut volumes = spec.volumes.iter().flatten();
    match volumes.find(|volume| {
        [containers::TOKEN_VOLUME, containers::STATE_VOLUME].contains(&volume.name.as_str())
    }) {
        Some(volume) => Err(reserved_name("a volume", &volume.name)),
        None => Ok(()),
    }
}

/// What a user cannot say of the sidecar.
fn own(spec: &PodSpec, container: &Container) -> Result<(), InjectError> {
    if spec.containers.iter().all(is_own) {
        return Err(InjectError::Override {
            field: "name",
            problem: "the pod has no other container: add the app's".to_owned(),
        });
    }
    let context = container.security_context.as_ref();
    let user = context.and_then(|context| context.run_as_user);
    let group = context.and_then(|context| context.run_as_group);
    for (field, id) in [
        ("securityContext.runAsUser", user),
        ("securityContext.runAsGroup", group),
    ] {
        if let Some(id) = id.filter(|id| *id != i64::from(PROXY_UID)) {
            return Err(InjectError::Override {
                field,
                problem: format!(
                    "{id} is not exempt from capture as {PROXY_UID} is, and the sidecar would call itself: remove it"
                ),
            });
        }
    }
    Ok(())
}

fn reserved_name(what: &'static str, name: &str) -> InjectError {
    InjectError::ReservedName {
        what,
        name: name.to_owned(),
        label: labels::INJECT,
    }
}

/// A container's own id wins over the pod's, as in kubelet.
fn ids(spec: &PodSpec, container: &Container) -> Result<(), InjectError> {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let user = own
        .and_then(|own| own.run_as_user)
        .or(pod.and_then(|pod| pod.run_as_user));
    let group = own
        .and_then(|own| own.run_as_group)
        .or(pod.and_then(|pod| pod.run_as_group));
    for (field, id) in [("runAsUser", user), ("runAsGroup", group)] {
        if id == Some(i64::from(PROXY_UID)) {
            return Err(InjectError::ReservedId {
                container: container.name.clone(),
                field,
                id: PROXY_UID,
            });
        }
    }
    Ok(())
}

fn own_ports(container: &Container) -> Result<(), InjectError> {
    let declared = container
        .ports
        .iter()
        .flatten()
        .filter_map(|port| u16::try_from(port.container_port).ok());
    match declared.into_iter().find(|port| PORTS.contains(port)) {
        Some(port) => Err(InjectError::ReservedPort {
            container: container.name.clone(),
            port,
        }),
        None => Ok(()),
    }
}
