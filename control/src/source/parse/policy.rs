//! PeerAuthentication, of Tulle and of Istio.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::{Invalid, fields};
use crate::api;
use crate::store::policy::{MtlsMode, PolicyTarget};
use crate::store::{Object, ObjectKey, PeerAuthentication};

/// What manifests of both look like.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    spec: api::PeerAuthenticationSpec,
}

/// Reads a policy.
pub(super) fn policy(key: ObjectKey, policy: Manifest, istio: bool) -> Result<Object, Invalid> {
    let spec = policy.spec;
    let labels = spec
        .selector
        .map(|selector| selector.match_labels)
        .unwrap_or_default();
    let target = match (labels.is_empty(), spec.target_refs.is_empty()) {
        (true, true) => PolicyTarget::Namespace,
        (false, true) => PolicyTarget::Pods(labels.into_iter().collect()),
        (true, false) => PolicyTarget::Services(services(&key, &spec.target_refs)?),
        (false, false) => {
            return Err(Invalid::new(
                "spec.targetRefs",
                "excludes spec.selector: use one of the two",
            ));
        }
    };
    if target == PolicyTarget::Namespace && !spec.port_level_mtls.is_empty() {
        return Err(Invalid::new(
            "spec.portLevelMtls",
            "names container ports, which only a workload has: add spec.selector or spec.targetRefs",
        ));
    }
    let mut ports = BTreeMap::new();
    for (port, mtls) in spec.port_level_mtls {
        let field = format!("spec.portLevelMtls.{port}");
        let number: i64 = port.parse().map_err(|_| {
            Invalid::new(
                field.clone(),
                format!("{port:?} is not a port: use 1 to 65535"),
            )
        })?;
        let number = fields::port(field, number)?;
        ports.extend(mode(mtls.mode).map(|mode| (number, mode)));
    }
    Ok(Object::PeerAuthentication(PeerAuthentication {
        key,
        istio,
        created: fields::created(&policy.metadata),
        target,
        mode: spec.mtls.and_then(|mtls| mode(mtls.mode)),
        ports,
    }))
}

fn services(policy: &ObjectKey, targets: &[api::TargetRef]) -> Result<Vec<ObjectKey>, Invalid> {
    let mut keys = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        if !(target.group.is_empty() && target.kind == "Service") {
            let field = format!("spec.targetRefs[{index}].kind");
            return Err(Invalid::new(
                field,
                format!(
                    "{:?} is not supported: use Service with group \"\"",
                    target.kind
                ),
            ));
        }
        fields::label(&format!("spec.targetRefs[{index}].name"), &target.name)?;
        keys.push(ObjectKey {
            namespace: policy.namespace.clone(),
            name: target.name.as_str().into(),
        });
    }
    Ok(keys)
}

fn mode(mode: api::Mode) -> Option<MtlsMode> {
    match mode {
        api::Mode::Unset => None,
        api::Mode::Strict => Some(MtlsMode::Strict),
        api::Mode::Permissive => Some(MtlsMode::Permissive),
        api::Mode::Disable => Some(MtlsMode::Disable),
    }
}
