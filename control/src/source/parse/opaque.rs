//! TCPRoute and TLSRoute: connections to backends by weight.
//!
//! Their versions differ in what is not read here, so the types are written once, for both and for all versions. Hostnames of
//! a TLSRoute do not count where its parent is a Service, as those of HTTPRoutes do not.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::route::{self, parents};
use super::{Invalid, fields};
use crate::store::route::{
    Action, Backend, Forward, HeaderChanges, Match, Route, RouteKind, Rule as RoomRule,
};
use crate::store::{Object, ObjectKey};

/// What manifests of both look like.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    parent_refs: Option<Vec<ParentRef>>,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ParentRef {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i32>,
    section_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    name: Option<String>,
    backend_refs: Option<Vec<BackendRef>>,
}

#[derive(Debug, Deserialize)]
struct BackendRef {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i32>,
    weight: Option<i32>,
}

/// Reads a route; one without a Service among its parents is not used.
pub(super) fn route(
    key: ObjectKey,
    manifest: Manifest,
    kind: RouteKind,
) -> Result<Option<Object>, Invalid> {
    let spec = manifest.spec;
    let parents = parents!(&key, spec);
    if parents.is_empty() {
        return Ok(None);
    }
    let given = match &spec.rules[..] {
        [rule] => rule,
        [] => {
            return Err(Invalid::new(
                "spec.rules",
                "is empty: name backends in a rule",
            ));
        }
        [_, ..] => {
            let message =
                "is never reached, because the first rule takes every connection: remove it";
            return Err(Invalid::new("spec.rules[1]", message));
        }
    };
    let mut backends = Vec::new();
    for (index, it) in given.backend_refs.iter().flatten().enumerate() {
        backends.push(backend(
            &format!("spec.rules[0].backendRefs[{index}]"),
            &key,
            it,
        )?);
    }
    let forward = Forward {
        backends,
        host_rewrite: None,
        path_rewrite: None,
        timeout: None,
        backend_timeout: None,
        retry: None,
    };
    let rule = RoomRule {
        name: given.name.as_deref().unwrap_or_default().into(),
        matches: vec![Match::everything()],
        action: Action::Forward(Box::new(forward)),
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
    };
    Ok(Some(Object::Route(Route {
        kind,
        key,
        created: fields::created(&manifest.metadata),
        parents,
        rules: vec![rule],
    })))
}

fn backend(field: &str, key: &ObjectKey, it: &BackendRef) -> Result<Backend, Invalid> {
    let reference = route::BackendRef {
        group: it.group.as_deref(),
        kind: it.kind.as_deref(),
        namespace: it.namespace.as_deref(),
        name: &it.name,
        port: it.port,
    };
    Ok(Backend {
        target: route::backend(field, key, &reference)?,
        weight: route::weight(field, it.weight)?,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
    })
}
