//! The two variants of the protocol, as far as they differ: incremental ("delta") and state of the world.
//!
//! Both decode to one [`Incoming`] and encode one [`Batch`]; all that lies between is the same.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tonic::Status;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::config::core::v3::Node;
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use tulle_xds_proto::google::rpc;
use tulle_xds_proto::prost::Message;

use super::resource::{Encoded, Name, Version};
use super::subscription::{Ask, Batch, Reply, TooMany, WILDCARD};

/// Longest name of a resource.
const MAX_NAME: usize = 1024;
/// What a type URL begins with.
const TYPES: &str = "type.googleapis.com/";
/// Longest type URL of what is not served.
const MAX_TYPE: usize = 256;

/// A request of either variant.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) kind: ResourceType,
    pub(super) change: Change,
}

/// Why a request is not taken in.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is about this type, of which it names so many: others may serve it, and all else on its stream goes on.
    Unserved(String, usize),
    /// It names so many, which is more than anybody may want, and ends its stream.
    TooMany(TooMany, usize),
    /// It makes no sense, and ends its stream.
    Malformed(Status),
}

/// What a request does to a subscription.
#[derive(Debug)]
pub(super) enum Change {
    /// These names more, those less.
    Delta(Ask),
    /// From now on exactly these names.
    Full(Vec<Name>, Option<Reply>),
}

impl Change {
    /// Names in it.
    pub(super) fn names(&self) -> usize {
        match self {
            Self::Delta(ask) => ask.names(),
            Self::Full(names, _) => names.len(),
        }
    }

    /// Whether it names all there is.
    pub(super) fn asks_for_all(&self) -> bool {
        let (Self::Delta(Ask {
            subscribe: names, ..
        })
        | Self::Full(names, _)) = self;
        names.iter().any(|name| &**name == WILDCARD)
    }
}

/// One variant of the protocol.
pub(super) trait Variant: 'static {
    /// Whether a response about clusters or listeners lists all of them.
    const FULL: bool;
    /// Where it is called.
    const PATH: &'static str;
    type Request: Message + Default + Send + 'static;
    type Response: Message + Send + 'static;

    /// Who the client says it is, once; only the first request has to say so.
    fn take_node(request: &mut Self::Request) -> Option<Node>;

    /// Reads a request, which may name `limit` of what it wants. Of what it says it has only that is kept which matters.
    fn decode(request: Self::Request, limit: usize) -> Result<Incoming, Refusal>;

    /// Writes a response; `world` is the version of all that is served.
    fn encode(kind: ResourceType, nonce: String, world: String, batch: &Batch) -> Self::Response;
}

/// Incremental xDS.
pub(super) enum Delta {}

impl Variant for Delta {
    const FULL: bool = false;
    const PATH: &'static str =
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn take_node(request: &mut Self::Request) -> Option<Node> {
        request.node.take()
    }

    fn decode(request: Self::Request, limit: usize) -> Result<Incoming, Refusal> {
        let (more, less) = (
            request.resource_names_subscribe,
            request.resource_names_unsubscribe,
        );
        let kind = kind(&request.type_url, more.len() + less.len())?;
        few(kind, more.len().max(less.len()), limit)?;
        let has = request.initial_resource_versions;
        let ask = Ask {
            initial_versions: that_matter(kind, &more, has),
            subscribe: names(more)?,
            unsubscribe: names(less)?,
            reply: reply(request.response_nonce, request.error_detail),
        };
        Ok(Incoming {
            kind,
            change: Change::Delta(ask),
        })
    }

    fn encode(kind: ResourceType, nonce: String, world: String, batch: &Batch) -> Self::Response {
        let resource = |(name, encoded): &(Name, Arc<Encoded>)| Resource {
            name: name.to_string(),
            version: encoded.version.to_string(),
            resource: Some(encoded.to_any()),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            system_version_info: world,
            resources: batch.resources.iter().map(resource).collect(),
            type_url: kind.type_url().to_owned(),
            removed_resources: batch.removed.iter().map(|name| name.to_string()).collect(),
            nonce,
            ..DeltaDiscoveryResponse::default()
        }
    }
}

/// State of the world.
pub(super) enum Full {}

impl Variant for Full {
    const FULL: bool = true;
    const PATH: &'static str =
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn take_node(request: &mut Self::Request) -> Option<Node> {
        request.node.take()
    }

    fn decode(request: Self::Request, limit: usize) -> Result<Incoming, Refusal> {
        let kind = kind(&request.type_url, request.resource_names.len())?;
        few(kind, request.resource_names.len(), limit)?;
        let reply = reply(request.response_nonce, request.error_detail);
        Ok(Incoming {
            kind,
            change: Change::Full(names(request.resource_names)?, reply),
        })
    }

    fn encode(kind: ResourceType, nonce: String, _: String, batch: &Batch) -> Self::Response {
        // The version of a response is that of its content, so that replicas agree.
        let content = batch.resources.iter();
        let content = content.map(|(name, encoded)| encoded.version.under(name));
        DiscoveryResponse {
            version_info: content.sum::<Version>().to_string(),
            resources: batch
                .resources
                .iter()
                .map(|(_, encoded)| encoded.to_any())
                .collect(),
            type_url: kind.type_url().to_owned(),
            nonce,
            ..DiscoveryResponse::default()
        }
    }
}

/// The type of a request that has so many names.
fn kind(type_url: &str, names: usize) -> Result<ResourceType, Refusal> {
    if let Some(kind) = ResourceType::from_type_url(type_url) {
        return Ok(kind);
    }
    if is_type(type_url) {
        return Err(Refusal::Unserved(type_url.to_owned(), names));
    }
    let served = ResourceType::ALL.map(ResourceType::type_url).join(", ");
    let url: String = type_url.chars().take(MAX_TYPE).collect();
    Err(Refusal::Malformed(Status::invalid_argument(format!(
        "{url:?} is no type URL; these are served: {served}"
    ))))
}

/// Whether it may be the type URL of something: it ends in the full name of a message.
fn is_type(url: &str) -> bool {
    let is_part = |part: &str| {
        let mut bytes = part.bytes();
        !part.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let name = url.strip_prefix(TYPES);
    url.len() <= MAX_TYPE && name.is_some_and(|name| name.split('.').all(is_part))
}

/// Looks at how many names there are before anything is made of them.
fn few(kind: ResourceType, names: usize, limit: usize) -> Result<(), Refusal> {
    // The wildcard is none of them.
    if names > limit.saturating_add(1) {
        return Err(Refusal::TooMany(TooMany::of(kind, limit), names));
    }
    Ok(())
}

/// Of what a client has, what it also wants: the rest means nothing, and there may be far more of it.
fn that_matter(
    kind: ResourceType,
    wanted: &[String],
    has: HashMap<String, String>,
) -> Vec<(Name, Option<Version>)> {
    let all = wanted.is_empty() || wanted.iter().any(|name| name == WILDCARD);
    let has_all = kind.supports_wildcard() && all;
    let wanted: HashSet<&str> = wanted.iter().map(String::as_str).collect();
    has.into_iter()
        .filter(|(name, _)| has_all || wanted.contains(name.as_str()))
        .map(|(name, version)| (name.into(), version.parse().ok()))
        .collect()
}

fn names(names: Vec<String>) -> Result<Vec<Name>, Refusal> {
    if names
        .iter()
        .any(|name| name.is_empty() || name.len() > MAX_NAME)
    {
        return Err(Refusal::Malformed(Status::invalid_argument(format!(
            "a resource name is empty or longer than {MAX_NAME} bytes"
        ))));
    }
    Ok(names.into_iter().map(Name::from).collect())
}

fn reply(nonce: String, error: Option<rpc::Status>) -> Option<Reply> {
    (!nonce.is_empty()).then_some(Reply {
        nonce,
        error: error.map(|status| status.message),
    })
}
