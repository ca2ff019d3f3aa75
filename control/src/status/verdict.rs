//! What is to be thought of a route: whether each Service that it names as its parent takes it, and whether its backends are there.
//!
//! Conditions and reasons are those of `RouteParentStatus`,
//! <https://gateway-api.sigs.k8s.io/reference/api-spec/main/spec/#routeparentstatus>; `Conflicted` is that of GEP-1294 for a kind
//! that another one precedes. Which Services can be parents is said there, too: one that is headless has nothing to attach to.

use std::sync::Arc;

use super::claim::{Claim, Reference};
use crate::store::route::RouteKind;
use crate::store::service::{Addressing, ServicePort};
use crate::store::{Kind, ObjectKey, ObjectRef, Service, World};
use crate::translate::attachment;

/// What a parent has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) parent: Reference,
    pub(super) conditions: [Condition; 2],
}

/// Something that holds, or does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) name: &'static str,
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Longest message; the API takes more, and nobody reads it.
const MESSAGE: usize = 1024;

impl Condition {
    pub(super) fn yes(name: &'static str, message: String) -> Self {
        Self {
            name,
            holds: true,
            // Both have the reason that they are named for.
            reason: name,
            message,
        }
    }

    pub(super) fn no(name: &'static str, reason: &'static str, mut message: String) -> Self {
        message.truncate(message.floor_char_boundary(MESSAGE));
        Self {
            name,
            holds: false,
            reason,
            message,
        }
    }
}

/// What each Service among the parents has to say; `None` while the world does not have what is claimed.
pub(super) fn verdicts(world: &World, route: &ObjectRef, claim: &Claim) -> Option<Vec<Verdict>> {
    let mut kinds = RouteKind::ALL.into_iter();
    let kind = kinds.find(|kind| Kind::from(*kind) == route.kind)?;
    let subject = Subject {
        world,
        kind,
        key: &route.key,
        claim,
    };
    let backends = subject.backends();
    let services = claim.parents.iter().filter(|it| it.is_service());
    let verdict = |parent: &Reference| {
        Some(Verdict {
            parent: parent.clone(),
            conditions: [subject.acceptance(parent)?, backends.clone()],
        })
    };
    services.map(verdict).collect()
}

/// The route that is judged.
struct Subject<'a> {
    world: &'a World,
    kind: RouteKind,
    key: &'a ObjectKey,
    claim: &'a Claim,
}

pub(super) const ACCEPTED: &str = "Accepted";
pub(super) const RESOLVED: &str = "ResolvedRefs";
const NO_MATCH: &str = "NoMatchingParent";
const NOT_FOUND: &str = "BackendNotFound";

impl Subject<'_> {
    fn acceptance(&self, parent: &Reference) -> Option<Condition> {
        let no = |reason, message| Some(Condition::no(ACCEPTED, reason, message));
        if let Some((problem, in_force)) = &self.claim.problem {
            return no("UnsupportedValue", format!("{problem}; {in_force}"));
        }
        let key = parent.key(&self.key.namespace);
        let service = match self.world.service(&key) {
            None => return no(NO_MATCH, format!("Service {key} does not exist")),
            Some(service) if service.addressing == Addressing::External => {
                let message = format!(
                    "Service {key} is an ExternalName, which has no traffic: name the Service that its clients reach"
                );
                return no(NO_MATCH, message);
            }
            Some(service) if service.addressing == Addressing::Headless => {
                let message = format!(
                    "Service {key} is headless, so that its clients call its pods and no route applies: attach the route to a Service with a cluster IP, and have clients call that"
                );
                return no(NO_MATCH, message);
            }
            Some(service) => service,
        };
        let named: Vec<_> = service
            .ports
            .iter()
            .filter(|it| names(parent, it))
            .collect();
        if named.is_empty() {
            return no(NO_MATCH, no_port(service, parent));
        }
        let kinds = named.iter().map(|port| attachment::kinds(port.protocol));
        if !kinds.into_iter().any(|kinds| kinds.contains(&self.kind)) {
            let message = format!(
                "no port of Service {key} that is meant takes a {}: see its appProtocol and the names of its ports",
                Kind::from(self.kind)
            );
            return no(NO_MATCH, message);
        }
        self.precedence(service, &named)
    }

    /// Whether the route counts at any of those ports, and what does instead.
    fn precedence(&self, service: &Service, ports: &[&ServicePort]) -> Option<Condition> {
        let mut ahead = None;
        for port in ports {
            let namespace = &self.key.namespace;
            let routes = attachment::in_force(self.world, namespace, &service.key, port);
            let mut ours = routes.iter();
            if ours.any(|it| it.kind == self.kind && it.key == *self.key) {
                let message = format!("in force at Service {}", service.key);
                return Some(Condition::yes(ACCEPTED, message));
            }
            if let Some(other) = routes.first() {
                ahead.get_or_insert((port.port, *other));
            }
        }
        let (port, other) = ahead?;
        let message = format!(
            "{} {} precedes it at port {port} of Service {}: of several kinds one counts, and of routes of connections the oldest",
            Kind::from(other.kind),
            other.key,
            service.key
        );
        Some(Condition::no(ACCEPTED, "Conflicted", message))
    }

    /// Whether every backend is there. Those of other namespaces need no grant in a mesh.
    fn backends(&self) -> Condition {
        let mut missing = None;
        for (field, backend) in &self.claim.backends {
            if !backend.group.is_empty() || backend.kind != "Service" {
                let (kind, group) = (&backend.kind, &backend.group);
                let message = format!(
                    "{field}: kind {kind} of group {group:?} cannot be a backend here: name a Service"
                );
                return Condition::no(RESOLVED, "InvalidKind", message);
            }
            if missing.is_none() {
                missing = self.absence(backend).map(|why| format!("{field}: {why}"));
            }
        }
        match missing {
            Some(message) => Condition::no(RESOLVED, NOT_FOUND, message),
            None => Condition::yes(RESOLVED, "every backend is there".to_owned()),
        }
    }

    /// Why a backend is not there.
    fn absence(&self, backend: &Reference) -> Option<String> {
        let key = backend.key(&self.key.namespace);
        let Some(service) = self.world.service(&key) else {
            return Some(format!("Service {key} does not exist"));
        };
        if service.addressing == Addressing::External {
            return Some(format!(
                "Service {key} is an ExternalName, which has no endpoints"
            ));
        }
        let Some(port) = backend.port else {
            return Some(format!("names no port of Service {key}"));
        };
        let mut ports = service.ports.iter();
        let there = ports.any(|it| i64::from(it.port) == port);
        (!there).then(|| no_port(service, backend))
    }
}

/// Whether a reference means a port.
fn names(reference: &Reference, port: &ServicePort) -> bool {
    let number = i64::from(port.port);
    reference.port.is_none_or(|it| it == number)
        && reference
            .section
            .as_ref()
            .is_none_or(|it| **it == *port.name)
}

fn no_port(service: &Arc<Service>, reference: &Reference) -> String {
    let mut wanted = String::new();
    if let Some(port) = reference.port {
        wanted += &format!(" {port}");
    }
    if let Some(section) = &reference.section {
        wanted += &format!(" named {section:?}");
    }
    let ports: Vec<_> = service.ports.iter().map(|it| it.port.to_string()).collect();
    format!(
        "Service {} has no TCP port{wanted}, but {}",
        service.key,
        if ports.is_empty() {
            "none at all".to_owned()
        } else {
            ports.join(", ")
        }
    )
}
