//! What an object asks for and what it was told, whatever may be wrong with the rest of it.
//!
//! Invariant: a claim comes after what the store has of its object, so that who reads the claims and then the store's world
//! judges by what was there.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::{CONTROLLER, GROUP};
use crate::snapshot::InForce;
use crate::store::{Kind, ObjectKey, ObjectRef};

/// An object that wants something of the mesh, or was told something by it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claim {
    /// The version of the API that it was read in.
    pub(super) api: &'static str,
    /// Its `resourceVersion`.
    pub(super) version: String,
    /// Its `generation`.
    pub(super) generation: i64,
    /// All of its parents, of a route.
    pub(super) parents: Vec<Reference>,
    /// The backends of all its rules, with their fields.
    pub(super) backends: Vec<(String, Reference)>,
    /// Its `status.parents`, or `status.conditions` of a policy.
    pub(super) told: Vec<Value>,
    /// Why it cannot be used, and what is in force.
    pub(super) problem: Option<(String, InForce)>,
}

/// A reference to another object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) port: Option<i64>,
    pub(super) section: Option<String>,
}

impl Claim {
    /// Reads an object of a kind; `None` if it is none of the mesh's business, or nobody is told of it.
    pub(crate) fn of(kind: Kind, api: &'static str, json: &str) -> Option<Self> {
        match kind {
            Kind::PeerAuthentication => Self::policy(api, json),
            kind if kind.is_route() => Self::read(api, json),
            _ => None,
        }
    }

    fn policy(api: &'static str, json: &str) -> Option<Self> {
        let policy: Value = serde_json::from_str(json).ok()?;
        let told = list(&policy["status"]["conditions"]).cloned().collect();
        Some(Self::new(api, &policy["metadata"], told))
    }

    fn new(api: &'static str, metadata: &Value, told: Vec<Value>) -> Self {
        Self {
            api,
            version: text(&metadata["resourceVersion"]).unwrap_or_default(),
            generation: metadata["generation"].as_i64().unwrap_or_default(),
            parents: Vec::new(),
            backends: Vec::new(),
            told,
            problem: None,
        }
    }

    /// Reads a route; `None` if it is none of the mesh's business.
    pub(crate) fn read(api: &'static str, json: &str) -> Option<Self> {
        let route: Value = serde_json::from_str(json).ok()?;
        let (metadata, spec) = (&route["metadata"], &route["spec"]);
        let parents: Vec<_> = list(&spec["parentRefs"])
            .map(|it| Reference::read(it, GROUP, "Gateway"))
            .collect();
        let told: Vec<_> = list(&route["status"]["parents"]).cloned().collect();
        let mut ours = told.iter().filter(|it| it["controllerName"] == CONTROLLER);
        if !parents.iter().any(Reference::is_service) && ours.next().is_none() {
            return None;
        }
        let mut backends = Vec::new();
        for (rule, it) in list(&spec["rules"]).enumerate() {
            for (index, it) in list(&it["backendRefs"]).enumerate() {
                let field = format!("spec.rules[{rule}].backendRefs[{index}]");
                backends.push((field, Reference::read(it, "", "Service")));
            }
        }
        Some(Self {
            parents,
            backends,
            ..Self::new(api, metadata, told)
        })
    }

    /// The same, of an object that cannot be used.
    pub(crate) fn but(self, field: &str, message: &str, in_force: InForce) -> Self {
        let problem = match field {
            "" => message.to_owned(),
            field => format!("{field}: {message}"),
        };
        Self {
            problem: Some((problem, in_force)),
            ..self
        }
    }
}

impl Reference {
    fn read(it: &Value, group: &str, kind: &str) -> Self {
        Self {
            group: text(&it["group"]).unwrap_or_else(|| group.to_owned()),
            kind: text(&it["kind"]).unwrap_or_else(|| kind.to_owned()),
            namespace: text(&it["namespace"]),
            name: text(&it["name"]).unwrap_or_default(),
            port: it["port"].as_i64(),
            section: text(&it["sectionName"]).filter(|name| !name.is_empty()),
        }
    }

    /// One of a status that was told.
    pub(super) fn told(entry: &Value) -> Self {
        Self::read(&entry["parentRef"], GROUP, "Gateway")
    }

    /// Whether a Service is meant. One in the group of gateways is nobody else's either, and its author is told.
    pub(super) fn is_service(&self) -> bool {
        self.kind == "Service" && (self.group.is_empty() || self.group == GROUP)
    }

    /// What it refers to, as an object of a namespace.
    pub(super) fn key(&self, namespace: &Arc<str>) -> ObjectKey {
        let own = self.namespace.as_deref().map(Arc::from);
        ObjectKey {
            namespace: own.unwrap_or_else(|| namespace.clone()),
            name: self.name.as_str().into(),
        }
    }

    /// As manifests write it.
    pub(super) fn to_json(&self) -> Value {
        let mut it = Map::new();
        let mut put = |name: &str, value: Value| it.insert(name.to_owned(), value);
        put("group", self.group.as_str().into());
        put("kind", self.kind.as_str().into());
        if let Some(namespace) = &self.namespace {
            put("namespace", namespace.as_str().into());
        }
        put("name", self.name.as_str().into());
        if let Some(port) = self.port {
            put("port", port.into());
        }
        if let Some(section) = &self.section {
            put("sectionName", section.as_str().into());
        }
        Value::Object(it)
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The claims of all objects. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    known: Arc<Mutex<BTreeMap<ObjectRef, Arc<Claim>>>>,
    /// Counts changes.
    changes: watch::Sender<u64>,
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            known: Arc::default(),
            changes: watch::Sender::new(0),
        }
    }
}

impl Claims {
    /// Takes in what objects claim now; `None`: nothing.
    pub(crate) fn apply(&self, claims: Vec<(ObjectRef, Option<Claim>)>) {
        let mut known = self.known.lock();
        let mut changed = false;
        for (route, claim) in claims {
            let before = known.get(&route).map(|claim| &**claim);
            if before == claim.as_ref() {
                continue;
            }
            changed = true;
            match claim {
                Some(claim) => known.insert(route, Arc::new(claim)),
                None => known.remove(&route),
            };
        }
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// All of them, and how many changes there were.
    pub(crate) fn all(&self) -> (u64, Vec<(ObjectRef, Arc<Claim>)>) {
        let known = self.known.lock();
        let claims = known
            .iter()
            .map(|(route, claim)| (route.clone(), claim.clone()));
        (*self.changes.borrow(), claims.collect())
    }

    /// Sees changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
