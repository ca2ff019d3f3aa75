//! Who a container's processes are, and which capabilities root has in there.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::node::Ids;
use crate::stage::UserIds;

/// Capability names by bit, as the kernel numbers them.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What container runtimes leave to root, without the making of devices.
const DEFAULT: [&str; 13] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SYS_CHROOT",
    "AUDIT_WRITE",
    "SETFCAP",
];

/// Bits of the capabilities in the container's bounding set.
pub(crate) fn capabilities(container: &Container) -> Result<u64, String> {
    let context = container.security_context.as_ref();
    if context.is_some_and(|context| context.privileged == Some(true)) {
        return Ok(u64::MAX);
    }
    let listed = context.and_then(|context| context.capabilities.as_ref());
    let mut bits = mask(DEFAULT)?;
    for name in listed
        .and_then(|listed| listed.drop.as_ref())
        .into_iter()
        .flatten()
    {
        bits &= if name == "ALL" {
            0
        } else {
            !mask([name.as_str()])?
        };
    }
    for name in listed
        .and_then(|listed| listed.add.as_ref())
        .into_iter()
        .flatten()
    {
        bits |= if name == "ALL" {
            u64::MAX
        } else {
            mask([name.as_str()])?
        };
    }
    Ok(bits)
}

fn mask<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<u64, String> {
    names.into_iter().try_fold(0, |bits, name| {
        let bare = name.strip_prefix("CAP_").unwrap_or(name);
        let bit = CAPABILITIES.iter().position(|known| *known == bare);
        bit.map(|bit| bits | 1 << bit)
            .ok_or_else(|| format!("securityContext.capabilities has {name}, which is none"))
    })
}

/// The ids of the container, unless the node has only one.
pub(crate) fn user(
    spec: &PodSpec,
    container: &Container,
    ids: Ids,
) -> Result<Option<UserIds>, String> {
    if ids == Ids::Single {
        return Ok(None);
    }
    let (pod, own) = (
        spec.security_context.as_ref(),
        container.security_context.as_ref(),
    );
    let user = own
        .and_then(|own| own.run_as_user)
        .or(pod.and_then(|pod| pod.run_as_user));
    let group = own
        .and_then(|own| own.run_as_group)
        .or(pod.and_then(|pod| pod.run_as_group));
    let id = |field: &str, id: Option<i64>| {
        let id = id.unwrap_or(0);
        u32::try_from(id).map_err(|_| format!("securityContext.{field} is {id}, which is no id"))
    };
    let further = pod
        .and_then(|pod| pod.supplemental_groups.clone())
        .unwrap_or_default();
    let fs_group = pod.and_then(|pod| pod.fs_group);
    Ok(Some(UserIds {
        user: id("runAsUser", user)?,
        group: id("runAsGroup", group)?,
        groups: further
            .into_iter()
            .chain(fs_group)
            .map(|group| id("supplementalGroups", Some(group)))
            .collect::<Result<_, _>>()?,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(context: serde_json::Value) -> Container {
        serde_json::from_value(json!({ "name": "c", "securityContext": context }))
            .expect("a container")
    }

    #[test]
    fn capabilities_are_those_of_a_container_runtime_and_what_the_pod_says() {
        const NET_ADMIN: u64 = 1 << 12;
        const SYS_ADMIN: u64 = 1 << 21;
        let bits = |context| capabilities(&container(context)).expect("known names");
        assert_eq!(bits(json!({})) & (NET_ADMIN | SYS_ADMIN), 0);
        assert_eq!(
            bits(json!({ "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] } })),
            NET_ADMIN
        );
        assert_eq!(bits(json!({ "privileged": true })), u64::MAX);
        assert!(capabilities(&container(json!({ "capabilities": { "add": ["FLY"] } }))).is_err());
    }

    #[test]
    fn the_containers_user_comes_before_the_pods_and_is_dropped_where_there_is_one_id() {
        let spec = json!({ "containers": [], "securityContext": { "runAsUser": 5, "runAsGroup": 6, "fsGroup": 7 } });
        let spec: PodSpec = serde_json::from_value(spec).expect("a spec");
        let own = container(json!({ "runAsUser": 1337 }));
        let expected = UserIds {
            user: 1337,
            group: 6,
            groups: vec![7],
        };
        assert_eq!(user(&spec, &own, Ids::Root), Ok(Some(expected)));
        assert_eq!(user(&spec, &own, Ids::Single), Ok(None));
        assert!(user(&spec, &container(json!({ "runAsUser": -1 })), Ids::Root).is_err());
    }
}
