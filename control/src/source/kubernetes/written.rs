//! What the author of an object wrote, as text: enough to put it in force again.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

/// An object's spec, and what it is a spec of.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// The object, whatever others have its name before or after it.
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
    /// The version of its API.
    pub(super) api: &'static str,
    pub(super) metadata: Box<str>,
    pub(super) spec: Arc<str>,
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Metadata {
    uid: Arc<str>,
    generation: i64,
}

impl Written {
    /// Reads an object; `None` if it does not say which it is.
    pub(super) fn read(api: &'static str, json: &str) -> Option<Self> {
        let object: Object<'_> = serde_json::from_str(json).ok()?;
        let metadata: Metadata = serde_json::from_str(object.metadata.get()).ok()?;
        Some(Self {
            uid: metadata.uid,
            generation: metadata.generation,
            api,
            metadata: object.metadata.get().into(),
            spec: object.spec.map_or("{}", RawValue::get).into(),
        })
    }
}
