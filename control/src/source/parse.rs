//! Kubernetes objects into room types: the edge at which everything is validated, once.

mod endpoints;
mod fields;
mod grpc;
mod http;
mod kind;
mod known;
mod opaque;
mod pod;
mod policy;
mod route;
mod service;

#[cfg(test)]
mod tests;

use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::grpcroutes::GrpcRoute;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::kind::Meaning;
pub(super) use self::known::known;
use super::document::{Document, Header, Item, Malformed};
use crate::store::route::RouteKind;
use crate::store::{Kind, Object, ObjectKey, ObjectRef};

/// The namespace of objects that name none.
const DEFAULT: &str = "default";

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
    let (name, namespace) = (&header.metadata.name, header.metadata.namespace.as_deref());
    if let Err(error) = check_key(kind, name, namespace) {
        return nameless(header.kind, at_field(error));
    }
    let key = key_of(kind, name, namespace);
    let reference = ObjectRef {
        kind,
        key: key.clone(),
    };
    let whole = object(Text::Document(document), kind, Some(key));
    match whole.and_then(|whole| whole.parsed.map_err(at_field)) {
        Ok(Some(object)) => Outcome::Object(object),
        Ok(None) => Outcome::Ignored,
        Err(problem) => Outcome::Bad {
            object: reference.to_string(),
            reference: Some(reference),
            problem,
        },
    }
}

/// An object of the right shape: one of ours, one that does not concern the mesh, or one with a wrong value.
type Parsed = Result<Option<Object>, Invalid>;

/// An object that could be read, whatever is to be thought of it.
struct Whole {
    key: ObjectKey,
    /// Its `resourceVersion`.
    version: Option<String>,
    parsed: Parsed,
}

/// Reads the whole of an object whose kind is known; its key is checked unless it is given.
fn object(text: Text<'_>, kind: Kind, key: Option<ObjectKey>) -> Result<Whole, Malformed> {
    match kind {
        Kind::Namespace => read::<Bare>(text, kind, key, |key, it| {
            Ok(Some(pod::namespace(key, &it)))
        }),
        Kind::ServiceAccount => read::<Bare>(text, kind, key, |key, _| {
            Ok(Some(Object::ServiceAccount(key)))
        }),
        Kind::Node => read::<Bare>(text, kind, key, |key, it| Ok(Some(pod::node(key, &it)))),
        Kind::Pod => read::<Pod>(text, kind, key, |key, it| pod::pod(key, it).map(Some)),
        Kind::Service => read::<Service>(text, kind, key, |key, it| {
            service::service(key, it).map(Some)
        }),
        Kind::EndpointSlice => read::<EndpointSlice>(text, kind, key, endpoints::slice),
        Kind::HttpRoute => read::<HttpRoute>(text, kind, key, http::route),
        Kind::GrpcRoute => read::<GrpcRoute>(text, kind, key, grpc::route),
        Kind::TcpRoute => read::<opaque::Manifest>(text, kind, key, |key, it| {
            opaque::route(key, it, RouteKind::Tcp)
        }),
        Kind::TlsRoute => read::<opaque::Manifest>(text, kind, key, |key, it| {
            opaque::route(key, it, RouteKind::Tls)
        }),
        Kind::PeerAuthentication => read::<policy::Manifest>(text, kind, key, |key, it| {
            policy::policy(key, it, false).map(Some)
        }),
        Kind::IstioPeerAuthentication => read::<policy::Manifest>(text, kind, key, |key, it| {
            policy::policy(key, it, true).map(Some)
        }),
    }
}

/// An object of which only the metadata counts: all that is asked of an API server for these kinds.
#[derive(Debug, Deserialize)]
struct Bare {
    #[serde(default)]
    metadata: ObjectMeta,
}

/// Has metadata.
trait Described {
    fn metadata(&self) -> &ObjectMeta;
}

macro_rules! described {
    ($($kind:ty),*) => {$(
        impl Described for $kind {
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
        }
    )*};
}

described!(
    Bare,
    Pod,
    Service,
    EndpointSlice,
    HttpRoute,
    GrpcRoute,
    opaque::Manifest,
    policy::Manifest
);

/// A text with an object in it.
#[derive(Clone, Copy)]
enum Text<'a> {
    /// A document, of which it is looked for what is wrong with it and where.
    Document(&'a Document<'a>),
    /// JSON, of which it is not.
    Json(&'a str),
}

fn read<T: DeserializeOwned + Described>(
    text: Text<'_>,
    kind: Kind,
    key: Option<ObjectKey>,
    parse: impl FnOnce(ObjectKey, T) -> Parsed,
) -> Result<Whole, Malformed> {
    let it: T = match text {
        Text::Document(document) => document.read()?,
        Text::Json(json) => serde_json::from_str(json).map_err(|error| Malformed {
            line: 0,
            field: String::new(),
            message: error.to_string(),
        })?,
    };
    let metadata = it.metadata();
    let version = metadata.resource_version.clone();
    let name = metadata.name.as_deref().unwrap_or_default();
    let checked = match &key {
        Some(_) => Ok(()),
        None => check_key(kind, name, metadata.namespace.as_deref()),
    };
    let key = key.unwrap_or_else(|| key_of(kind, name, metadata.namespace.as_deref()));
    let parsed = checked.and_then(|()| parse(key.clone(), it));
    Ok(Whole {
        key,
        version,
        parsed,
    })
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

/// Whether an object of a kind can be called that.
fn check_key(kind: Kind, name: &str, namespace: Option<&str>) -> Result<(), Invalid> {
    match kind {
        Kind::Namespace | Kind::Service => fields::label("metadata.name", name)?,
        _ => fields::subdomain("metadata.name", name)?,
    };
    if matches!(kind, Kind::Namespace | Kind::Node) {
        return Ok(());
    }
    fields::label("metadata.namespace", namespace.unwrap_or(DEFAULT))
}

fn key_of(kind: Kind, name: &str, namespace: Option<&str>) -> ObjectKey {
    if matches!(kind, Kind::Namespace | Kind::Node) {
        return ObjectKey::new("", name);
    }
    ObjectKey::new(namespace.unwrap_or(DEFAULT), name)
}
