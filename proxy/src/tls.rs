//! The mesh's TLS on both ends of a hop: ended for peers that call us, opened towards endpoints.
//!
//! Certificates, roots and verification are `tulle_identity`'s; this room adds time limits, read-ahead, and a cache of
//! client configurations, which are costly to build and needed for every connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tulle_identity::{Identity, SpiffeId, VerifyError, mesh_server_name, peer_id};

use crate::config::cluster::PeerIdentity;
use crate::io::{IoStream, Transport};

/// How long a peer may take for its part of a handshake.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Client configurations kept, at most: more than that many peers of one sidecar change faster than they are used.
const MAX_CONFIGS: usize = 1024;

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The handshake failed.
    #[error(
        "TLS handshake failed ({0}); compare the certificates of both ends (/certs) and their roots"
    )]
    Handshake(#[source] io::Error),
    /// The peer did not answer.
    #[error("TLS handshake did not end within {0:?}")]
    Timeout(Duration),
    /// The peer's certificate names nobody.
    #[error("the peer's certificate names no workload ({0})")]
    Peer(#[from] VerifyError),
}

/// A TLS connection that a peer has opened.
#[derive(Debug)]
pub struct Accepted {
    /// Its bytes.
    pub io: IoStream,
    /// Who the peer is.
    pub peer: SpiffeId,
    /// The certificates that say so.
    pub chain: Box<[CertificateDer<'static>]>,
    /// The protocol agreed upon.
    pub protocol: Box<[u8]>,
}

/// Ends a peer's TLS. `transport` begins with the ClientHello.
///
/// # Errors
///
/// When the peer is not to be trusted, or does not speak as we do.
pub async fn accept(transport: Transport, config: Arc<ServerConfig>) -> Result<Accepted, TlsError> {
    let handshake = TlsAcceptor::from(config).accept(transport.reading_ahead());
    let tls = timeout(ACCEPT_TIMEOUT, handshake)
        .await
        .map_err(|_| TlsError::Timeout(ACCEPT_TIMEOUT))?
        .map_err(TlsError::Handshake)?;
    let connection = tls.get_ref().1;
    let chain = connection.peer_certificates().unwrap_or_default();
    let peer = peer_id(chain)?;
    let chain = chain
        .iter()
        .cloned()
        .map(CertificateDer::into_owned)
        .collect();
    let protocol = connection.alpn_protocol().unwrap_or_default().into();
    Ok(Accepted {
        io: IoStream::Server(Box::new(tls)),
        peer,
        chain,
        protocol,
    })
}

/// Opens TLS towards endpoints. One a worker.
#[derive(Debug)]
pub struct Connector {
    identity: Identity,
    configs: RefCell<Configs>,
}

#[derive(Debug, Default)]
struct Configs {
    generation: u64,
    by_peer: HashMap<(Arc<PeerIdentity>, &'static [u8]), Arc<ClientConfig>>,
}

impl Connector {
    /// Connects as the given identity.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            configs: RefCell::default(),
        }
    }

    /// Opens TLS to a peer that must prove one of the given identities, and that must agree to `alpn`. The caller
    /// limits the time.
    ///
    /// # Errors
    ///
    /// When the peer is someone else, or does not speak as we do.
    pub async fn connect(
        &self,
        transport: Transport,
        peer: &Arc<PeerIdentity>,
        alpn: &'static [u8],
    ) -> Result<IoStream, TlsError> {
        let connector = TlsConnector::from(self.config(peer, alpn));
        let tls = connector
            .connect(mesh_server_name(), transport.reading_ahead())
            .await
            .map_err(TlsError::Handshake)?;
        // A server without any ALPN of its own agrees to everything in silence.
        if tls.get_ref().1.alpn_protocol() != Some(alpn) {
            let error = io::Error::other("the peer did not agree on a protocol of the mesh");
            return Err(TlsError::Handshake(error));
        }
        Ok(IoStream::Client(Box::new(tls)))
    }

    fn config(&self, peer: &Arc<PeerIdentity>, alpn: &'static [u8]) -> Arc<ClientConfig> {
        let current = self.identity.load();
        let mut configs = self.configs.borrow_mut();
        if configs.generation != current.generation() || configs.by_peer.len() >= MAX_CONFIGS {
            configs.generation = current.generation();
            configs.by_peer.clear();
        }
        configs
            .by_peer
            .entry((peer.clone(), alpn))
            .or_insert_with(|| current.client(&peer.0, alpn))
            .clone()
    }
}
