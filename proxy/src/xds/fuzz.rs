//! Entrances for the fuzz targets to the decoders, to what follows from many responses, and to the saved config.
//!
//! Only with the feature `fuzz`, which no program has.

use std::io;
use std::path::Path;

use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use tulle_xds_proto::google::protobuf::Any;

use super::DecodeError;
use super::cache::Cache;
use super::decode::{self, Listener};
use super::state::State;
use crate::config::store::Ask;
use crate::config::{InboundListener, OutboundListener, RouteTable, Snapshot, Workload};

/// A resource that was taken.
#[derive(Debug)]
pub enum Decoded {
    /// LDS, for a destination.
    Outbound(std::sync::Arc<OutboundListener>),
    /// LDS, for the pod.
    Inbound(std::sync::Arc<InboundListener>),
    /// RDS.
    Routes(RouteTable),
    /// WDS.
    Workload(Workload),
    /// CDS or EDS: see [`Client`] for what is made of them.
    Other,
}

/// Decodes one resource as the wire does.
///
/// # Errors
/// Why it is refused.
pub fn decode(kind: ResourceType, name: &str, any: &Any) -> Result<Decoded, DecodeError> {
    Ok(match kind {
        ResourceType::Listener => match decode::listener(name, any)? {
            Listener::Outbound(listener) => Decoded::Outbound(listener),
            Listener::Inbound(listener) => Decoded::Inbound(listener),
        },
        ResourceType::Route => Decoded::Routes(decode::route_table(name, any)?),
        ResourceType::Cluster => decode::cluster(name, any).map(|_| Decoded::Other)?,
        ResourceType::Endpoints => decode::endpoints(name, any).map(|_| Decoded::Other)?,
        ResourceType::Address => Decoded::Workload(decode::workload(any)?),
        ResourceType::Secret => Decoded::Other,
    })
}

/// The name of the listener that stands for a destination.
#[must_use]
pub fn listener_name(destination: std::net::SocketAddr) -> String {
    decode::listener_name(destination)
}

/// The destination that the name of a listener stands for.
#[must_use]
pub fn listener_address(name: &str) -> Option<std::net::SocketAddr> {
    decode::listener_address(name)
}

/// A client without a connection: responses and questions in, requests and a snapshot out.
#[derive(Debug)]
pub struct Client(State);

impl Client {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(wildcard: bool) -> Self {
        Self(State::new(wildcard, 4096))
    }

    /// A question of the data path.
    pub fn ask(&mut self, ask: Ask) {
        self.0.ask(ask);
    }

    /// A response; what of it was refused is named. `None`: it was not asked for.
    pub fn apply(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Option<Vec<(String, DecodeError)>> {
        if !self.0.expects(&response.type_url) {
            return None;
        }
        let outcome = self.0.apply(response)?;
        self.0.assemble();
        Some(outcome.rejected)
    }

    /// A new stream.
    pub fn reconnect(&mut self) {
        self.0.reconnect();
    }

    /// Time passes.
    pub fn sweep(&mut self) {
        self.0.sweep();
    }

    /// What it has to say next.
    pub fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        self.0.next_request(true)
    }

    /// What the data path acts on.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        self.0.snapshot()
    }

    /// Everything known, as it is saved.
    #[must_use]
    pub fn export(&self) -> Vec<DeltaDiscoveryResponse> {
        self.0.export()
    }

    /// Learns what was saved.
    pub fn import(&mut self, responses: Vec<DeltaDiscoveryResponse>) -> usize {
        let accepted = self.0.import(responses);
        self.0.assemble();
        accepted
    }
}

/// Reads what was saved for a node.
///
/// # Errors
/// If it is damaged, or another node's.
pub fn saved(node: &str, bytes: &[u8]) -> io::Result<Vec<DeltaDiscoveryResponse>> {
    Cache::new(Path::new("."), node).parse(bytes)
}

/// What is saved for a node.
///
/// # Errors
/// If it cannot be encoded.
pub fn to_save(node: &str, responses: Vec<DeltaDiscoveryResponse>) -> io::Result<Vec<u8>> {
    Cache::new(Path::new("."), node).format(responses)
}
