//! gRPC channels to the control plane over our own TLS, so that certificates and roots follow a rotation.
//!
//! tonic is given an `http` URI and a connector that does TLS itself: with an `https` URI it insists on its own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::CaClientConfig;
use crate::error::Error;
use crate::identity::Identity;
use crate::spiffe::SpiffeId;
use crate::tls;

/// Connecting and handshake, one address.
const CONNECT: Duration = Duration::from_secs(3);
/// A control plane that is gone without a word is noticed after the sum of both.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// A channel to the control plane: mTLS with the live identity, the server verified by its DNS name.
///
/// It connects when first used, and again by itself after a connection is lost; each connection takes the identity of
/// that moment. A control plane that stops answering pings for two seconds counts as lost.
///
/// # Errors
/// If the server name is not a DNS name.
pub fn control_channel(
    address: &str,
    server_name: &str,
    identity: Identity,
    mark: Option<u32>,
) -> Result<Channel, Error> {
    let connector = Connector::new(address, server_name, TlsSource::Live(identity), mark)?;
    Ok(endpoint(server_name)?.connect_with_connector_lazy(connector))
}

/// Who a control plane must prove to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlName {
    /// Its certificate carries this DNS name.
    Dns(String),
    /// Its certificate is the SVID of this workload.
    Spiffe(SpiffeId),
}

impl FromStr for ControlName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.starts_with("spiffe:") {
            return Ok(Self::Spiffe(text.parse()?));
        }
        dns_name(text).map(|_| Self::Dns(text.to_owned()))
    }
}

/// As [`control_channel`], to a control plane of any name.
///
/// # Errors
/// If the name is neither a SPIFFE id nor a DNS name.
pub fn foreign_channel(
    address: &str,
    name: &ControlName,
    identity: Identity,
    mark: Option<u32>,
) -> Result<Channel, Error> {
    match name {
        ControlName::Dns(name) => control_channel(address, name, identity, mark),
        ControlName::Spiffe(id) => {
            let connector = Connector(Arc::new(Target {
                address: address.into(),
                server_name: tls::mesh_server_name(),
                tls: TlsSource::Pinned(identity, id.clone()),
                mark,
            }));
            // Such a server is not found by a name, so it is addressed by what it is.
            Ok(endpoint(id.service_account())?.connect_with_connector_lazy(connector))
        }
    }
}

/// Connects now, for one call.
pub(super) async fn connect(config: &CaClientConfig, tls: TlsSource) -> Result<Channel, Error> {
    let connector = Connector::new(&config.address, &config.server_name, tls, config.mark)?;
    let connected = endpoint(&config.server_name)?
        .connect_with_connector(connector)
        .await;
    connected.map_err(|source| Error::Connect {
        address: config.address.clone(),
        source,
    })
}

fn endpoint(server_name: &str) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{server_name}"))
        .map_err(|e| Error::document("server name of the control plane", e))?;
    Ok(endpoint
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Where a connection's TLS configuration comes from.
#[derive(Clone)]
pub(super) enum TlsSource {
    Fixed(Arc<ClientConfig>),
    Live(Identity),
    Pinned(Identity, SpiffeId),
}

impl TlsSource {
    fn config(&self) -> Arc<ClientConfig> {
        match self {
            Self::Fixed(config) => config.clone(),
            Self::Live(identity) => identity.load().client_by_name(b"h2"),
            Self::Pinned(identity, id) => identity.load().client(std::slice::from_ref(id), b"h2"),
        }
    }
}

#[derive(Clone)]
struct Connector(Arc<Target>);

struct Target {
    address: String,
    server_name: ServerName<'static>,
    tls: TlsSource,
    mark: Option<u32>,
}

impl Connector {
    fn new(
        address: &str,
        server_name: &str,
        tls: TlsSource,
        mark: Option<u32>,
    ) -> Result<Self, Error> {
        let server_name = dns_name(server_name)?;
        Ok(Self(Arc::new(Target {
            address: address.into(),
            server_name,
            tls,
            mark,
        })))
    }
}

fn dns_name(text: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(text.to_owned())
        .map_err(|e| Error::document("server name of the control plane", e))
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async move { target.connect().await.map(TokioIo::new) })
    }
}

impl Target {
    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let mut last = io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} has no address", self.address),
        );
        for address in tokio::net::lookup_host(&self.address).await? {
            match tokio::time::timeout(CONNECT, self.connect_to(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(e)) => last = e,
                Err(_) => {
                    last = io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("{address} does not answer"),
                    )
                }
            }
        }
        Err(last)
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        if let Some(mark) = self.mark {
            SockRef::from(&socket).set_mark(mark)?;
        }
        socket.set_nodelay(true)?;
        let stream = socket.connect(address).await?;
        TlsConnector::from(self.tls.config())
            .connect(self.server_name.clone(), stream)
            .await
    }
}
