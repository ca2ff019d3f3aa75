//! What a client is started with: where the control plane is, who the client is, where its certificate lies.
//!
//! Nothing in it is secret and nothing in it changes while the pod lives.

mod envoy;
mod grpc;

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;

use crate::args::{Args, Client, Place, XdsListen};
use crate::files::{CredentialFiles, FilesError, write_public};

pub(crate) use envoy::secrets;

/// How a client reaches the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Upstream {
    /// Itself, with mTLS: `host:port`.
    Direct(String),
    /// Through the relay on loopback.
    Relay(SocketAddr),
    /// Through the relay's socket.
    Socket(std::path::PathBuf),
}

impl Upstream {
    /// The way that clients go, given where the relay really listens.
    pub(crate) fn new(place: &Place, relay: Option<&XdsListen>) -> Self {
        match relay {
            None => Self::Direct(place.control_address.clone()),
            Some(XdsListen::Tcp(address)) => Self::Relay(*address),
            Some(XdsListen::Unix(path)) => Self::Socket(path.clone()),
        }
    }
}

/// Writes the bootstrap that was asked for.
pub(crate) fn write(
    args: &Args,
    place: &Place,
    files: &CredentialFiles,
    upstream: &Upstream,
) -> Result<(), FilesError> {
    let (Some(client), Some(path)) = (args.bootstrap, &args.bootstrap_file) else {
        return Ok(());
    };
    let bootstrap = match client {
        Client::Envoy => envoy::bootstrap(args, place, files, upstream),
        Client::Grpc => grpc::bootstrap(place, files, upstream),
    };
    write_json(path, &bootstrap)
}

fn write_json(path: &Path, value: &Value) -> Result<(), FilesError> {
    write_public(path, format!("{value:#}\n").as_bytes())
}

fn node_id(client: Client, place: &Place) -> String {
    format!("{}~{}", client.kind(), place.node())
}

#[cfg(test)]
mod tests;
