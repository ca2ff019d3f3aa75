//! Kubernetes objects into room types: the edge at which everything is validated, once.

mod endpoints;
mod fields;
mod grpc;
mod http;
mod kind;
mod pod;
mod policy;
mod route;
mod service;

#[cfg(test)]
mod tests;

use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::grpcroutes::GrpcRoute;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;

use self::kind::Meaning;
use super::document::{Document, Header, Item, Malformed};
use crate::api::PeerAuthentication;
use crate::store::{Kind, Object, ObjectKey, ObjectRef};

/// A field that has the right type and a wrong value.
#[derive(Debug)]
struct Invalid {
    field: String,
    message: String,
}

impl Invalid {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }

    fn in_line(self, line: u64) -> Malformed {
        Malformed {
            line,
            field: self.field,
            message: self.message,
        }
    }
}

/// What a document turned out to be.
#[derive(Debug)]
pub(super) enum Outcome {
    /// An object of ours.
    Object(Object),
    /// Several documents in one.
    List(Vec<Item>),
    /// Nothing of ours: another kind, or an object that does not concern the mesh.
    Ignored,
    /// An object that cannot be used, with its reference if that much could be read.
    Bad {
        /// Which object it was meant to be.
        reference: Option<ObjectRef>,
        /// Its kind and name for people.
        object: String,
        /// What is wrong with it.
        problem: Malformed,
    },
}

/// Reads one document.
pub(super) fn document(document: &Document<'_>) -> Outcome {
    let nameless = |object: String, problem| Outcome::Bad {
        reference: None,
        object,
        problem,
    };
    let header: Header = match document.read() {
        Ok(header) => header,
        Err(problem) => return nameless(String::new(), problem),
    };
    if let Err(error) = is_object(&header) {
        return nameless(String::new(), error.in_line(document.line));
    }
    let at_field = |error: Invalid| {
        let line = document.line_of(&error.field);
        error.in_line(line)
    };
    let kind = match kind::of(&header) {
        Ok(Meaning::Object(kind)) => kind,
        Ok(Meaning::List(items)) => {
            let header_of_items = items.map(|kind| (header.api_version.as_str(), kind));
            return match document.items(header_of_items) {
                Ok(items) => Outcome::List(items),
                Err(problem) => nameless(header.kind, problem),
            };
        }
        Ok(Meaning::Foreign) => {
            tracing::debug!(resource.type = %header.kind, resource.name = %header.metadata.name, "kind not used, ignored");
            return Outcome::Ignored;
        }
        Err(error) => return nameless(header.kind, at_field(error)),
    };
    let key = match key_of(kind, &header) {
        Ok(key) => key,
        Err(error) => return nameless(header.kind, at_field(error)),
    };
    let reference = ObjectRef {
        kind,
        key: key.clone(),
    };
    match object(document, kind, key).and_then(|parsed| parsed.map_err(at_field)) {
        Ok(Some(object)) => Outcome::Object(object),
        Ok(None) => Outcome::Ignored,
        Err(problem) => Outcome::Bad {
            object: reference.to_string(),
            reference: Some(reference),
            problem,
        },
    }
}

/// A document of the right shape: an object, one that does not concern the mesh, or one with a wrong value.
type Parsed = Result<Option<Object>, Invalid>;

/// Reads the whole of an object whose kind and key are known.
fn object(document: &Document<'_>, kind: Kind, key: ObjectKey) -> Result<Parsed, Malformed> {
    match kind {
        Kind::Namespace => Ok(Ok(Some(Object::Namespace(key)))),
        Kind::ServiceAccount => Ok(Ok(Some(Object::ServiceAccount(key)))),
        Kind::Node => read::<Node>(document, |it| pod::node(key, it).map(Some)),
        Kind::Pod => read::<Pod>(document, |it| pod::pod(key, it).map(Some)),
        Kind::Service => read::<Service>(document, |it| service::service(key, it).map(Some)),
        Kind::EndpointSlice => read::<EndpointSlice>(document, |it| endpoints::slice(key, it)),
        Kind::HttpRoute => read::<HttpRoute>(document, |it| http::route(key, it)),
        Kind::GrpcRoute => read::<GrpcRoute>(document, |it| grpc::route(key, it)),
        Kind::PeerAuthentication => {
            read::<PeerAuthentication>(document, |it| policy::policy(key, it, false).map(Some))
        }
        Kind::IstioPeerAuthentication => {
            read::<PeerAuthentication>(document, |it| policy::policy(key, it, true).map(Some))
        }
    }
}

/// Whether a header begins a Kubernetes object at all.
fn is_object(header: &Header) -> Result<(), Invalid> {
    let missing = [("kind", &header.kind), ("apiVersion", &header.api_version)];
    match missing.into_iter().find(|(_, value)| value.is_empty()) {
        None => Ok(()),
        Some((field, _)) => Err(Invalid::new(
            field,
            "is missing: not a Kubernetes object; move other files out of the source directory",
        )),
    }
}

fn read<T: DeserializeOwned>(
    document: &Document<'_>,
    parse: impl FnOnce(T) -> Parsed,
) -> Result<Parsed, Malformed> {
    document.read().map(parse)
}

fn key_of(kind: Kind, header: &Header) -> Result<ObjectKey, Invalid> {
    let name = header.metadata.name.as_str();
    match kind {
        Kind::Namespace | Kind::Service => fields::label("metadata.name", name)?,
        _ => fields::subdomain("metadata.name", name)?,
    };
    if matches!(kind, Kind::Namespace | Kind::Node) {
        return Ok(ObjectKey::new("", name));
    }
    let namespace = header.metadata.namespace.as_deref().unwrap_or("default");
    fields::label("metadata.namespace", namespace)?;
    Ok(ObjectKey::new(namespace, name))
}
