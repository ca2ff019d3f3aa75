//! What an operator can see of the config client (`/config_dump`).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tulle_xds_proto::ResourceType;

/// A live view of the config client; clones share it.
#[derive(Clone, Debug, Default)]
pub struct XdsStatus(Arc<Mutex<XdsReport>>);

/// The state of the config client at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct XdsReport {
    /// Whether a stream to the control plane is open and has answered.
    pub connected: bool,
    /// Whether the config in use was loaded from the last run and nothing has confirmed it yet.
    pub from_cache: bool,
    /// Why the last stream ended or could not be opened.
    pub last_error: Option<String>,
    /// By type, `LDS` for instance.
    pub types: BTreeMap<&'static str, TypeReport>,
}

/// What has happened to one resource type.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TypeReport {
    /// Names subscribed to, or known by wildcard.
    pub subscribed: usize,
    /// Resources accepted since the start.
    pub updates: u64,
    /// Resources refused since the start.
    pub rejects: u64,
    /// Why the last refused resource was refused, with its name; empty again once all of a response is accepted.
    pub last_reject: Option<String>,
}

impl XdsStatus {
    /// The state now.
    #[must_use]
    pub fn report(&self) -> XdsReport {
        self.0.lock().clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut XdsReport)) {
        change(&mut self.0.lock());
    }

    pub(super) fn update_type(&self, kind: ResourceType, change: impl FnOnce(&mut TypeReport)) {
        change(self.0.lock().types.entry(kind.short_name()).or_default());
    }
}
