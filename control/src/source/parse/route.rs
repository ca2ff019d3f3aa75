//! What HTTPRoute and GRPCRoute have in common.
//!
//! The generated types of the two are the same in shape and different in name, so what is common is written once as
//! macros over the fields.

use std::sync::Arc;

use super::{Invalid, fields};
use crate::store::ObjectKey;
use crate::store::route::{BackendTarget, Parent};

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// The reference of a route to a parent, whatever type it came from.
pub(super) struct ParentRef<'a> {
    pub(super) group: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    pub(super) namespace: Option<&'a str>,
    pub(super) name: &'a str,
    pub(super) port: Option<i32>,
    pub(super) section: Option<&'a str>,
}

/// The reference of a rule to a backend, whatever type it came from.
pub(super) struct BackendRef<'a> {
    pub(super) group: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    pub(super) namespace: Option<&'a str>,
    pub(super) name: &'a str,
    pub(super) port: Option<i32>,
}

/// A parent, if it is a Service; gateways are somebody else's.
pub(super) fn parent(
    index: usize,
    route: &ObjectKey,
    parent: &ParentRef<'_>,
) -> Result<Option<Parent>, Invalid> {
    let field = |name: &str| format!("spec.parentRefs[{index}].{name}");
    let service = parent.kind == Some("Service");
    match parent.group.unwrap_or(GATEWAY_GROUP) {
        "" if service => {}
        GATEWAY_GROUP if service => {
            return Err(Invalid::new(
                field("group"),
                "a Service is in the core group: write group: \"\"",
            ));
        }
        _ => return Ok(None),
    }
    fields::label(&field("name"), parent.name)?;
    let namespace = parent
        .namespace
        .map_or_else(|| route.namespace.clone(), Into::into);
    fields::label(&field("namespace"), &namespace)?;
    Ok(Some(Parent {
        service: ObjectKey {
            namespace,
            name: parent.name.into(),
        },
        port: parent
            .port
            .map(|port| fields::port(field("port"), port.into()))
            .transpose()?,
        section: parent
            .section
            .filter(|name| !name.is_empty())
            .map(Into::into),
    }))
}

/// A backend.
pub(super) fn backend(
    field: &str,
    route: &ObjectKey,
    backend: &BackendRef<'_>,
) -> Result<BackendTarget, Invalid> {
    let core = matches!(backend.group, None | Some(""));
    if !(core && matches!(backend.kind, None | Some("Service"))) {
        return Ok(BackendTarget::Invalid);
    }
    fields::label(&format!("{field}.name"), backend.name)?;
    let Some(port) = backend.port else {
        return Err(Invalid::new(
            format!("{field}.port"),
            "is missing: a Service backend needs a port",
        ));
    };
    let namespace: Arc<str> = backend
        .namespace
        .map_or_else(|| route.namespace.clone(), Into::into);
    fields::label(&format!("{field}.namespace"), &namespace)?;
    let port = fields::port(format!("{field}.port"), port.into())?;
    Ok(BackendTarget::Service(
        ObjectKey {
            namespace,
            name: backend.name.into(),
        },
        port,
    ))
}

/// A weight; 1 if it is not given.
pub(super) fn weight(field: &str, weight: Option<i32>) -> Result<u32, Invalid> {
    let weight = weight.unwrap_or(1);
    u32::try_from(weight)
        .ok()
        .filter(|weight| *weight <= 1_000_000)
        .ok_or_else(|| {
            Invalid::new(
                format!("{field}.weight"),
                format!("{weight} is not a weight: use 0 to 1000000"),
            )
        })
}

/// A filter that is not supported; ignoring it would change what the route means.
pub(super) fn unsupported(field: &str, kind: impl std::fmt::Debug) -> Invalid {
    Invalid::new(
        format!("{field}.type"),
        format!("filter {kind:?} is not supported here: remove it"),
    )
}

/// The parents of a route that are Services.
macro_rules! parents {
    ($key:expr, $spec:expr) => {{
        let mut parents = Vec::new();
        for (index, it) in $spec.parent_refs.iter().flatten().enumerate() {
            let reference = route::ParentRef {
                group: it.group.as_deref(),
                kind: it.kind.as_deref(),
                namespace: it.namespace.as_deref(),
                name: &it.name,
                port: it.port,
                section: it.section_name.as_deref(),
            };
            parents.extend(route::parent(index, $key, &reference)?);
        }
        parents
    }};
}

/// Adds what a header modifier says to header changes.
macro_rules! modify_headers {
    ($field:expr, $modifier:expr, $changes:expr) => {{
        let field: &str = &$field;
        let changes: &mut HeaderChanges = $changes;
        for (index, it) in $modifier.set.iter().flatten().enumerate() {
            let name = fields::changed_header(format!("{field}.set[{index}].name"), &it.name)?;
            changes.set.push((
                name,
                fields::header_value(format!("{field}.set[{index}].value"), &it.value)?,
            ));
        }
        for (index, it) in $modifier.add.iter().flatten().enumerate() {
            let name = fields::changed_header(format!("{field}.add[{index}].name"), &it.name)?;
            changes.add.push((
                name,
                fields::header_value(format!("{field}.add[{index}].value"), &it.value)?,
            ));
        }
        for (index, name) in $modifier.remove.iter().flatten().enumerate() {
            changes.remove.push(fields::changed_header(
                format!("{field}.remove[{index}]"),
                name,
            )?);
        }
    }};
}

/// A backend reference with its own filters, which may change headers only.
macro_rules! backend_of {
    ($field:expr, $key:expr, $reference:expr, $filter:ident) => {{
        let (field, it): (&str, _) = (&$field, $reference);
        let reference = route::BackendRef {
            group: it.group.as_deref(),
            kind: it.kind.as_deref(),
            namespace: it.namespace.as_deref(),
            name: &it.name,
            port: it.port,
        };
        let mut backend = Backend {
            target: route::backend(field, $key, &reference)?,
            weight: route::weight(field, it.weight)?,
            request_headers: HeaderChanges::default(),
            response_headers: HeaderChanges::default(),
        };
        for (index, filter) in it.filters.iter().flatten().enumerate() {
            let field = format!("{field}.filters[{index}]");
            match (
                &filter.r#type,
                &filter.request_header_modifier,
                &filter.response_header_modifier,
            ) {
                ($filter::RequestHeaderModifier, Some(it), _) => {
                    modify_headers!(
                        format!("{field}.requestHeaderModifier"),
                        it,
                        &mut backend.request_headers
                    );
                }
                ($filter::ResponseHeaderModifier, _, Some(it)) => {
                    modify_headers!(
                        format!("{field}.responseHeaderModifier"),
                        it,
                        &mut backend.response_headers
                    );
                }
                (kind, ..) => return Err(route::unsupported(&field, kind)),
            }
        }
        backend
    }};
}

pub(super) use {backend_of, modify_headers, parents};
