//! The two variants of the protocol, as far as they differ: incremental ("delta") and state of the world.
//!
//! Both decode to one [`Incoming`] and encode one [`Batch`]; all that lies between is the same.

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
use super::subscription::{Ask, Batch, Reply, WILDCARD};

/// Longest name of a resource.
const MAX_NAME: usize = 1024;

/// A request of either variant.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) kind: ResourceType,
    pub(super) change: Change,
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

    /// Who the client says it is; only the first request has to say so.
    fn node(request: &Self::Request) -> Option<&Node>;

    /// Reads a request.
    fn decode(request: Self::Request) -> Result<Incoming, Status>;

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

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn decode(request: Self::Request) -> Result<Incoming, Status> {
        let kind = kind(&request.type_url)?;
        let ask = Ask {
            subscribe: names(request.resource_names_subscribe)?,
            unsubscribe: names(request.resource_names_unsubscribe)?,
            initial_versions: request
                .initial_resource_versions
                .into_iter()
                .map(|(name, v)| (name.into(), v))
                .collect(),
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

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn decode(request: Self::Request) -> Result<Incoming, Status> {
        let kind = kind(&request.type_url)?;
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

fn kind(type_url: &str) -> Result<ResourceType, Status> {
    ResourceType::from_type_url(type_url).ok_or_else(|| {
        let served = ResourceType::ALL.map(ResourceType::type_url).join(", ");
        let url: String = type_url.chars().take(MAX_NAME).collect();
        Status::invalid_argument(format!(
            "type URL {url:?} is not served; these are: {served}"
        ))
    })
}

fn names(names: Vec<String>) -> Result<Vec<Name>, Status> {
    if names
        .iter()
        .any(|name| name.is_empty() || name.len() > MAX_NAME)
    {
        return Err(Status::invalid_argument(format!(
            "a resource name is empty or longer than {MAX_NAME} bytes"
        )));
    }
    Ok(names.into_iter().map(Name::from).collect())
}

fn reply(nonce: String, error: Option<rpc::Status>) -> Option<Reply> {
    (!nonce.is_empty()).then_some(Reply {
        nonce,
        error: error.map(|status| status.message),
    })
}
