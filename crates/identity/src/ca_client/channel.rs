//! gRPC channels to the control plane over our own TLS, so that certificates and roots follow a rotation.
//!
//! tonic is given an `http` URI and a connector that does TLS itself: with an `https` URI it insists on its own.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
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
/// Before one more address is tried beside those that have not answered (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
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

/// Where an address leads. A Service's whole name names the cluster's domain, which whoever wrote it may have wrong: then the
/// domains that the resolver knows are tried.
async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    let whole = match tokio::net::lookup_host(address).await {
        Ok(found) => return Ok(found.collect()),
        Err(error) => error,
    };
    let Some(short) = without_domain(address) else {
        return Err(whole);
    };
    let found = tokio::net::lookup_host(short).await;
    found.map(Iterator::collect).map_err(|_| whole)
}

/// `NAME.NS.svc:PORT` of `NAME.NS.svc.DOMAIN.:PORT`.
fn without_domain(address: &str) -> Option<String> {
    let (host, port) = address.rsplit_once(':')?;
    let (service, _) = host.strip_suffix('.')?.split_once(".svc.")?;
    Some(format!("{service}.svc:{port}"))
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
        let addresses = in_turn(resolve(&self.address).await?.into_iter());
        let none = format!("{} has no address", self.address);
        let attempt =
            async |address| match tokio::time::timeout(CONNECT, self.connect_to(address)).await {
                Ok(connected) => connected,
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{address} does not answer"),
                )),
            };
        let attempts = addresses.into_iter().map(attempt);
        race(attempts)
            .await
            .unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::NotFound, none)))
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

/// The order in which addresses are tried: families by turns (RFC 8305, section 4), and IPv4 before the unique local addresses of
/// IPv6 (RFC 6724, section 2.1), which Services have and the C library puts first: in a pod that has just begun, the first packet
/// over IPv6 is lost where its neighbours have yet to be found.
fn in_turn(resolved: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses: Vec<_> = resolved.collect();
    addresses.sort_by_key(|address| match address.ip() {
        IpAddr::V6(ip) => ip.is_unique_local(),
        IpAddr::V4(_) => false,
    });
    let first = addresses.first().map(SocketAddr::is_ipv4);
    let (family, others): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| Some(address.is_ipv4()) == first);
    let mut others = others.into_iter();
    let mut in_turn = Vec::with_capacity(family.len() + others.len());
    for address in family {
        in_turn.push(address);
        in_turn.extend(others.next());
    }
    in_turn.extend(others);
    in_turn
}

/// The first attempt that succeeds, or the last that fails; `None` if there are none. One more begins as soon as one has failed,
/// and beside those that take their time: an address of one family may not be reachable, and say nothing
/// ("Happy Eyeballs", RFC 8305).
async fn race<T, F: Future<Output = io::Result<T>>>(
    attempts: impl Iterator<Item = F>,
) -> Option<io::Result<T>> {
    let mut attempts = attempts.peekable();
    let mut running = FuturesUnordered::new();
    let mut last = None;
    loop {
        match attempts.next() {
            Some(attempt) => running.push(attempt),
            None if running.is_empty() => return last,
            None => {}
        }
        tokio::select! {
            Some(ended) = running.next() => match ended {
                Ok(connected) => return Some(Ok(connected)),
                Err(error) => last = Some(Err(error)),
            },
            () = tokio::time::sleep(STAGGER), if attempts.peek().is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    type Attempt = Pin<Box<dyn Future<Output = io::Result<u8>>>>;

    fn silent() -> Attempt {
        Box::pin(pending())
    }

    fn refused(what: &'static str) -> Attempt {
        Box::pin(async move { Err(io::Error::other(what)) })
    }

    fn after(millis: u64, value: u8) -> Attempt {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Ok(value)
        })
    }

    #[test]
    fn families_take_turns_and_ipv4_is_before_unique_local_addresses() {
        for (resolved, tried) in [
            ("", ""),
            ("[fd00::1]:1 10.0.0.1:1", "10.0.0.1:1 [fd00::1]:1"),
            ("[2001:db8::1]:1 10.0.0.1:1", "[2001:db8::1]:1 10.0.0.1:1"),
            ("[fd00::1]:1 [fd00::2]:1", "[fd00::1]:1 [fd00::2]:1"),
            (
                "[2001:db8::1]:1 [2001:db8::2]:1 10.0.0.1:1 10.0.0.2:1 [fd00::1]:1",
                "[2001:db8::1]:1 10.0.0.1:1 [2001:db8::2]:1 10.0.0.2:1 [fd00::1]:1",
            ),
        ] {
            let addresses = |text: &str| -> Vec<SocketAddr> {
                let each = text.split_whitespace();
                each.map(|it| it.parse().expect("an address")).collect()
            };
            assert_eq!(in_turn(addresses(resolved).into_iter()), addresses(tried));
        }
    }

    #[test]
    fn a_services_whole_name_has_a_short_form_and_no_other_has() {
        for (address, short) in [
            (
                "control.tulle-system.svc.cluster.local.:15012",
                Some("control.tulle-system.svc:15012"),
            ),
            ("control.tulle-system.svc.cluster.local:15012", None),
            ("control.tulle-system.svc:15012", None),
            ("xds.example.com.:1", None),
            ("10.0.0.1:1", None),
            ("[fd00::1]:1", None),
        ] {
            assert_eq!(without_domain(address).as_deref(), short, "{address}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_silent_holds_nobody_up() {
        for (attempts, won, millis) in [
            (vec![silent(), after(5, 1)], 1, 255),
            (vec![silent(), silent(), after(5, 2)], 2, 505),
            (vec![refused("no"), after(5, 1)], 1, 5),
            // Who is slow may still win.
            (vec![after(300, 0), after(500, 1)], 0, 300),
        ] {
            let begun = Instant::now();
            let first = race(attempts.into_iter()).await.expect("there are some");
            assert_eq!(first.expect("one succeeds"), won);
            assert_eq!(begun.elapsed().as_millis(), millis);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_fail_the_last_reason_is_given() {
        let all = vec![refused("first"), refused("last")];
        let error = race(all.into_iter()).await.expect("there are some");
        assert_eq!(error.expect_err("all fail").to_string(), "last");
        assert!(race(Vec::<Attempt>::new().into_iter()).await.is_none());
    }
}
