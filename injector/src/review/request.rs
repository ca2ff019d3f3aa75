//! What of a review matters, read once.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::MAX_REVIEW;
use super::verdict::Malformed;
use crate::events::controller;

/// The version of reviews that is spoken.
pub(super) const API_VERSION: &str = "admission.k8s.io/v1";
/// Kind of requests and answers alike.
pub(super) const KIND: &str = "AdmissionReview";
/// Longest name that an answer repeats: the API server has none that are longer.
const MAX_NAME: usize = 253;
/// Longest id of an object, which is a UUID.
const MAX_UID: usize = 36;

/// A request about one object.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) uid: String,
    group: String,
    pub(super) version: String,
    kind: String,
    pub(super) sub_resource: String,
    name: String,
    pub(super) namespace: String,
    pub(super) operation: String,
    pub(super) dry_run: bool,
    pub(super) object: Value,
}

/// As it comes: what is absent or `null` is empty, and what is said of who asks is not read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRequest {
    uid: Option<String>,
    kind: Option<GroupVersionKind>,
    sub_resource: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
    operation: Option<String>,
    dry_run: Option<bool>,
    #[serde(default)]
    object: Value,
}

#[derive(Debug, Default, Deserialize)]
struct GroupVersionKind {
    group: Option<String>,
    version: Option<String>,
    kind: Option<String>,
}

impl Request {
    /// Reads a review. Its version comes first: of another one, nothing else need be as we know it.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Malformed> {
        if body.len() > MAX_REVIEW {
            return Err(Malformed::TooLarge { bytes: body.len() });
        }
        // The parser goes no deeper than 128 levels.
        let mut review: Map<String, Value> =
            serde_json::from_slice(body).map_err(Malformed::Json)?;
        let text = |name: &str| review.get(name).and_then(Value::as_str).unwrap_or_default();
        if (text("apiVersion"), text("kind")) != (API_VERSION, KIND) {
            return Err(Malformed::Version {
                api_version: text("apiVersion").to_owned(),
                kind: text("kind").to_owned(),
            });
        }
        let request = review.remove("request").filter(Value::is_object);
        let request = request.ok_or(Malformed::Absent { field: "request" })?;
        let raw = RawRequest::deserialize(request).map_err(Malformed::Request)?;
        let uid = raw.uid.unwrap_or_default();
        if uid.is_empty() {
            return Err(Malformed::Absent {
                field: "request.uid",
            });
        }
        let kind = raw.kind.unwrap_or_default();
        Ok(Self {
            uid,
            group: kind.group.unwrap_or_default(),
            version: kind.version.unwrap_or_default(),
            kind: kind.kind.unwrap_or_default(),
            sub_resource: raw.sub_resource.unwrap_or_default(),
            name: raw.name.unwrap_or_default(),
            // What no namespace can be called names none.
            namespace: raw.namespace.filter(|it| is_name(it)).unwrap_or_default(),
            operation: raw.operation.unwrap_or_default(),
            dry_run: raw.dry_run.unwrap_or_default(),
            object: raw.object,
        })
    }

    /// Whether it is about a pod, of whatever version.
    pub(super) fn is_pod(&self) -> bool {
        self.group.is_empty() && self.kind == "Pod"
    }

    /// Kind and version of its object, as a manifest has them.
    pub(super) fn kind(&self) -> String {
        let [group, version, kind] = [&self.group, &self.version, &self.kind].map(|part| cut(part));
        if group.is_empty() {
            format!("{version} {kind}")
        } else {
            format!("{group}/{version} {kind}")
        }
    }

    /// Namespace and name of its pod.
    pub(super) fn pod(&self) -> String {
        format!("{}/{}", cut(&self.namespace), self.name())
    }

    /// The controller that makes its pod, if there can be such a one: it is remembered, and a review may be anybody's.
    pub(super) fn owner(&self) -> Option<ObjectReference> {
        let meta = ObjectMeta::deserialize(&self.object["metadata"]).ok()?;
        let owner = controller(&meta, &self.namespace)?;
        let [name, uid] = [&owner.name, &owner.uid].map(|it| it.as_deref().unwrap_or_default());
        let can_be = is_name(name) && (1..=MAX_UID).contains(&uid.len());
        can_be.then_some(owner)
    }

    /// The pod's name, or how it will begin: a pod of a controller gets its name only after its reviews.
    pub(super) fn name(&self) -> String {
        let meta = &self.object["metadata"];
        let said = [
            self.name.as_str(),
            meta["name"].as_str().unwrap_or_default(),
        ];
        match said.into_iter().find(|name| !name.is_empty()) {
            Some(name) => cut(name).to_owned(),
            None => format!(
                "{}*",
                cut(meta["generateName"].as_str().unwrap_or_default())
            ),
        }
    }
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME)]
}

/// Whether objects can have such a name, those of which a namespace or a workload is one.
fn is_name(name: &str) -> bool {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let inside = |byte: &u8| edge(byte) || matches!(byte, b'-' | b'.');
    let bytes = name.as_bytes();
    name.len() <= MAX_NAME
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(inside)
}
