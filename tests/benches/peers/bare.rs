//! The bare pair: what the same crates cost as they are, without a feature. What the sidecar's features cost shows beside it;
//! where the sidecar does better, it is for what it does on top of the crates: frames that leave together, larger pieces.
//!
//! Captured connections are carried over mutual TLS by hyper's HTTP connections (or as they are), with a plain pool, on
//! one thread. It gets its certificate where the sidecar does and it opens sockets as the sidecar does; there is no
//! config, no route, no policy, no telemetry and no retry, and it never leaves this program.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::server::conn::{http1 as server1, http2 as server2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::OriginalDst;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;
use tokio::task::{LocalSet, spawn_local};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::either::Either;
use tulle_identity::{Identity, SpiffeId, mesh_server_name};
use tulle_proxy::conn::Direction;
use tulle_proxy::net::{Reach, dial};
use tulle_proxy::settings::Settings;
use tulle_proxy::upstream::LocalExecutor;
use tulle_runtime::env::Env;
use tulle_runtime::names::{alpn, ports};

use crate::who::Who;
use crate::{cores, serve};

/// Service account of the only peer.
pub(crate) const PEER: &str = "server";
/// Buffers of opaque connections.
const BUFFER: usize = 64 * 1024;

pub(crate) fn run(env: Env) -> anyhow::Result<()> {
    cores::raise_descriptors()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, sidecar(env))
}

async fn sidecar(env: Env) -> anyhow::Result<()> {
    let who = Who::read(env)?;
    let settings = Settings {
        socket_mark: who.mark,
        ..Settings::default()
    };
    let pair = Rc::new(Pair {
        identity: who.identity().await?,
        peer: who.id(PEER)?,
        settings,
        hops: RefCell::default(),
    });
    for (direction, port) in [
        (Direction::Outbound, ports::OUTBOUND),
        (Direction::Inbound, ports::INBOUND),
    ] {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        spawn_local(accept(pair.clone(), listener, direction));
    }
    ready().await
}

/// Says to the kubelet that it is ready, whatever is asked.
async fn ready() -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ports::READINESS)).await?;
    loop {
        let io = TokioIo::new(listener.accept().await?.0);
        let answer = |_| async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) };
        spawn_local(server1::Builder::new().serve_connection(io, service_fn(answer)));
    }
}

async fn accept(pair: Rc<Pair>, listener: TcpListener, direction: Direction) {
    loop {
        let pair = pair.clone();
        match listener.accept().await {
            Ok((tcp, _)) => {
                spawn_local(async move {
                    if let Err(error) = pair.serve(direction, tcp).await {
                        eprintln!("{error:#}");
                    }
                });
            }
            Err(error) => eprintln!("{error}"),
        }
    }
}

struct Pair {
    identity: Identity,
    peer: SpiffeId,
    settings: Settings,
    hops: RefCell<HashMap<(&'static str, SocketAddr), Rc<Hop>>>,
}

/// Connections to one destination.
#[derive(Default)]
struct Hop {
    idle: RefCell<Vec<http1::SendRequest<Incoming>>>,
    shared: RefCell<Rc<OnceCell<http2::SendRequest<Incoming>>>>,
}

impl Pair {
    async fn serve(self: Rc<Self>, direction: Direction, tcp: TcpStream) -> anyhow::Result<()> {
        tcp.set_nodelay(true)?;
        let captured = getsockopt(&tcp, OriginalDst)?;
        let target = (
            Ipv4Addr::from(u32::from_be(captured.sin_addr.s_addr)),
            u16::from_be(captured.sin_port),
        );
        let target = SocketAddr::from(target);
        if direction == Direction::Outbound {
            return self.carry(direction, tcp, target).await;
        }
        let acceptor = TlsAcceptor::from(self.identity.load().mesh_server().clone());
        let tls = acceptor.accept(tcp).await.context("TLS from the peer")?;
        self.carry(direction, tls, target).await
    }

    async fn carry(
        self: Rc<Self>,
        direction: Direction,
        mut io: impl AsyncRead + AsyncWrite + Unpin + 'static,
        target: SocketAddr,
    ) -> anyhow::Result<()> {
        let hop = self
            .hops
            .borrow_mut()
            .entry((direction.name(), target))
            .or_default()
            .clone();
        match target.port() {
            serve::HTTP2 | serve::GRPC => {
                // Each stream runs on its own, so the service owns what it needs.
                let service = service_fn(move |request| {
                    let (pair, hop) = (self.clone(), hop.clone());
                    async move { pair.send2(&hop, direction, target, request).await }
                });
                let server = server2::Builder::new(LocalExecutor);
                server.serve_connection(TokioIo::new(io), service).await?;
            }
            serve::TCP => {
                let mut upstream = self.connect(direction, target, alpn::TCP).await?;
                // Clients leave when they have what they want.
                let _ = copy_bidirectional_with_sizes(&mut io, &mut upstream, BUFFER, BUFFER).await;
            }
            _ => {
                let service = service_fn(|request| self.send1(&hop, direction, target, request));
                let server = server1::Builder::new();
                server.serve_connection(TokioIo::new(io), service).await?;
            }
        }
        Ok(())
    }
    /// Over a connection that is idle, or a new one. It goes back as soon as the answer begins, and is taken again once
    /// it is ready.
    async fn send1(
        &self,
        hop: &Hop,
        direction: Direction,
        target: SocketAddr,
        request: Request<Incoming>,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut sender = match hop.take() {
            Some(sender) => sender,
            None => {
                let io = self.connect(direction, target, alpn::HTTP1).await?;
                let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
                spawn_local(connection);
                sender
            }
        };
        let response = sender.send_request(request).await?;
        hop.idle.borrow_mut().push(sender);
        Ok(response)
    }

    async fn send2(
        &self,
        hop: &Hop,
        direction: Direction,
        target: SocketAddr,
        request: Request<Incoming>,
    ) -> anyhow::Result<Response<Incoming>> {
        let shared = hop.shared();
        let opened = shared.get_or_try_init(async || {
            let io = self.connect(direction, target, alpn::H2).await?;
            let (sender, connection) = http2::handshake(LocalExecutor, TokioIo::new(io)).await?;
            spawn_local(connection);
            anyhow::Ok(sender)
        });
        let mut sender = opened.await?.clone();
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    /// Towards the peer over mutual TLS, towards the app as it is.
    async fn connect(
        &self,
        direction: Direction,
        target: SocketAddr,
        protocol: &[u8],
    ) -> io::Result<Either<TcpStream, TlsStream<TcpStream>>> {
        if direction == Direction::Inbound {
            return Ok(Either::Left(
                dial(&self.settings, target, Reach::App).await?,
            ));
        }
        let tcp = dial(&self.settings, target, Reach::Out).await?;
        let config = self
            .identity
            .load()
            .client(std::slice::from_ref(&self.peer), protocol);
        let connecting = TlsConnector::from(config).connect(mesh_server_name(), tcp);
        Ok(Either::Right(connecting.await?))
    }
}

impl Hop {
    /// The connection, or the place for a new one if it has ended.
    fn shared(&self) -> Rc<OnceCell<http2::SendRequest<Incoming>>> {
        let mut shared = self.shared.borrow_mut();
        if shared.get().is_some_and(http2::SendRequest::is_closed) {
            *shared = Rc::default();
        }
        shared.clone()
    }

    fn take(&self) -> Option<http1::SendRequest<Incoming>> {
        let mut idle = self.idle.borrow_mut();
        let ready = idle.iter().rposition(http1::SendRequest::is_ready)?;
        Some(idle.swap_remove(ready))
    }
}
