//! Which kinds are read, and which headers are mistakes.
//!
//! Most kinds of a cluster do not concern the mesh and are left out without a word. A kind that nobody has, in a group of
//! which kinds are read, or a kind of ours in a group that has no such kind, was meant for the mesh and is said.

use super::Invalid;
use crate::api;
use crate::source::document::Header;
use crate::store::Kind;

/// The kinds that are read: group, kind, the version to write.
const READ: [(&str, &str, &str, Kind); 12] = [
    ("", "Namespace", "v1", Kind::Namespace),
    ("", "Node", "v1", Kind::Node),
    ("", "Pod", "v1", Kind::Pod),
    ("", "Service", "v1", Kind::Service),
    ("", "ServiceAccount", "v1", Kind::ServiceAccount),
    (DISCOVERY, "EndpointSlice", "v1", Kind::EndpointSlice),
    (GATEWAY, "GRPCRoute", "v1", Kind::GrpcRoute),
    (GATEWAY, "HTTPRoute", "v1", Kind::HttpRoute),
    (GATEWAY, "TCPRoute", "v1alpha2", Kind::TcpRoute),
    (GATEWAY, "TLSRoute", "v1", Kind::TlsRoute),
    (
        api::GROUP,
        "PeerAuthentication",
        "v1alpha1",
        Kind::PeerAuthentication,
    ),
    (
        api::ISTIO_GROUP,
        "PeerAuthentication",
        "v1",
        Kind::IstioPeerAuthentication,
    ),
];

/// The kinds of the same groups that do not concern the mesh.
const LEFT_OUT: [(&str, &[&str]); 3] = [
    (
        "",
        &[
            "Binding",
            "ComponentStatus",
            "ConfigMap",
            "Endpoints",
            "Event",
            "LimitRange",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "Secret",
        ],
    ),
    (
        GATEWAY,
        &[
            "BackendLBPolicy",
            "BackendTLSPolicy",
            "Gateway",
            "GatewayClass",
            "ListenerSet",
            "ReferenceGrant",
            "UDPRoute",
        ],
    ),
    (
        api::ISTIO_GROUP,
        &["AuthorizationPolicy", "RequestAuthentication"],
    ),
];

const DISCOVERY: &str = "discovery.k8s.io";
const GATEWAY: &str = "gateway.networking.k8s.io";

/// What a header says that its document is.
pub(super) enum Meaning<'a> {
    /// An object of a kind that is read.
    Object(Kind),
    /// A list of objects; with the kind of its items if the list says it for them.
    List(Option<&'a str>),
    /// Nothing that concerns the mesh.
    Foreign,
}

/// What a header means. Versions of one group differ in nothing that is read here.
pub(super) fn of(header: &Header) -> Result<Meaning<'_>, Invalid> {
    let group = header
        .api_version
        .rsplit_once('/')
        .map_or("", |(group, _version)| group);
    let kind = header.kind.as_str();
    if let Some(kind) = read(group, kind) {
        return Ok(Meaning::Object(kind));
    }
    if let Some(items) = kind.strip_suffix("List") {
        if items.is_empty() {
            return Ok(Meaning::List(None));
        }
        if read(group, items).is_some() {
            return Ok(Meaning::List(Some(items)));
        }
    }
    if is_left_out(group, kind) {
        return Ok(Meaning::Foreign);
    }
    let homes = homes_of(kind);
    if !homes.is_empty() && has_no_kind_of_ours(group, kind) {
        return Err(Invalid::new(
            "apiVersion",
            format!(
                "{:?} has no kind {kind}: write {}",
                header.api_version,
                homes.join(" or ")
            ),
        ));
    }
    let known = kinds_of(group);
    if known.is_empty() {
        return Ok(Meaning::Foreign);
    }
    Err(Invalid::new(
        "kind",
        format!(
            "{kind:?} is not a kind of {:?}: correct it (read are {}), or move it out of the source directory",
            header.api_version,
            known.join(", ")
        ),
    ))
}

fn read(group: &str, kind: &str) -> Option<Kind> {
    let mut kinds = READ.iter();
    kinds
        .find(|known| (known.0, known.1) == (group, kind))
        .map(|known| known.3)
}

fn is_left_out(group: &str, kind: &str) -> bool {
    let kind = kind.strip_suffix("List").unwrap_or(kind);
    LEFT_OUT
        .iter()
        .any(|(of, kinds)| *of == group && kinds.contains(&kind))
}

/// The kinds of a group that are read.
fn kinds_of(group: &str) -> Vec<&'static str> {
    let kinds = READ.iter().filter(|known| known.0 == group);
    kinds.map(|known| known.1).collect()
}

/// Where a kind belongs, as `apiVersion` says it.
fn homes_of(kind: &str) -> Vec<String> {
    let homes = READ.iter().filter(|known| known.1 == kind);
    homes
        .map(|(group, _, version, _)| match *group {
            "" => (*version).to_owned(),
            group => format!("{group}/{version}"),
        })
        .collect()
}

/// Whether a kind that is read elsewhere is a mistake in a group: Kubernetes' own groups have no second one of any, while
/// groups of other projects have their own `Service`. Nobody else has a PeerAuthentication.
fn has_no_kind_of_ours(group: &str, kind: &str) -> bool {
    !group.contains('.')
        || group.ends_with(".k8s.io")
        || !kinds_of(group).is_empty()
        || kind == "PeerAuthentication"
}
