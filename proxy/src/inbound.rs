//! The way in: from whoever called this pod to its app.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tulle_runtime::names::alpn;

use crate::admission::{self, Policy};
use crate::conn::{Direction, Downstream, HttpVersion, Security};
use crate::detect::{self, Carries, Hello, SILENCE, detect};
use crate::handover::serve_http;
use crate::io::{IoStream, Transport};
use crate::net::{Captured, Reach, Refusal, dial, reset};
use crate::tcp;
use crate::telemetry::{ConnectionRecord, Limit, ResponseFlag, Who};
use crate::tls;
use crate::worker::Worker;

/// How long a client may take until its first byte where only TLS is accepted, in which the client speaks first.
const GREETING: Duration = Duration::from_secs(10);

/// Serves one connection to the app.
pub async fn serve(captured: Captured, worker: Rc<Worker>) {
    let Captured {
        tcp,
        peer,
        original_dst,
        open: _open,
    } = captured;
    serve_from(tcp, peer, original_dst, worker).await;
}

/// As [`serve`], for a connection whose original destination is known otherwise.
pub(crate) async fn serve_from(
    mut tcp: TcpStream,
    peer: SocketAddr,
    original_dst: SocketAddr,
    worker: Rc<Worker>,
) {
    let mut downstream = Downstream {
        direction: Direction::Inbound,
        peer,
        original_dst,
        security: Security::Plaintext,
        sni: None,
    };
    let Some(policy) = Policy::of(&worker, original_dst) else {
        refuse(
            &worker,
            &downstream,
            Refusal::NoConfig,
            "no inbound config yet",
        );
        return reset(&tcp);
    };
    let mut seen = BytesMut::new();
    let carries = match look(&mut tcp, &mut seen, policy, original_dst, &worker).await {
        Ok(carries) => carries,
        Err(unseen) => return unseen.tell(&tcp, downstream, &worker),
    };
    let transport = Transport::with_prefix(tcp, detect::replay(seen));
    match carries {
        Carries::Tls(hello) if hello.is_mesh() || !policy.plaintext => {
            downstream.sni = hello.server_name.clone();
            secured(transport, &hello, downstream, worker).await;
        }
        _ if !policy.plaintext => {
            let why = "plaintext, and the port is STRICT";
            refuse(&worker, &downstream, Refusal::PlaintextUnderStrict, why);
            reset(transport.tcp());
        }
        Carries::Http(version) if policy.http => {
            serve_http(worker, downstream, IoStream::Plain(transport), version).await;
        }
        // Declared HTTP that is none: let HTTP say so. TLS is the app's own.
        Carries::Opaque if policy.declared_http => {
            let io = IoStream::Plain(transport);
            serve_http(worker, downstream, io, HttpVersion::Http1).await;
        }
        _ => to_app(IoStream::Plain(transport), &downstream, &worker).await,
    }
}

/// Counts a connection that is refused, and says why, if that was not said just now.
fn refuse(worker: &Worker, downstream: &Downstream, refusal: Refusal, why: impl Display) {
    let connections = &worker.connections;
    if let Some(unsaid) =
        connections.refuse_and_tell(downstream.direction, refusal, downstream.peer)
    {
        tracing::info!(
            client.addr = %downstream.peer,
            server.addr = %downstream.original_dst,
            unsaid,
            "refused: {why}"
        );
    }
}

/// Why nothing is known of what a connection carries.
enum Unseen {
    /// It broke.
    Broke(io::Error),
    /// No ClientHello came in time where nothing else is accepted.
    NoHello,
    /// Nothing came in time where the client speaks first, in TLS or in HTTP.
    NoRequest,
    /// Neither end has said anything for as long as nothing may move.
    Idle,
}

impl From<io::Error> for Unseen {
    fn from(error: io::Error) -> Self {
        Self::Broke(error)
    }
}

impl Unseen {
    /// Closes the connection and tells of it.
    fn tell(self, tcp: &TcpStream, downstream: Downstream, worker: &Worker) {
        let peer = downstream.peer;
        match self {
            Self::Broke(error) => {
                tracing::debug!(client.addr = %peer, %error, "the peer's connection broke");
            }
            Self::NoHello => {
                let why = "no TLS in time, and the port is STRICT";
                refuse(worker, &downstream, Refusal::NoHello, why);
                reset(tcp);
            }
            Self::NoRequest => {
                let who = Who {
                    address: peer,
                    id: None,
                };
                let what = "a connection without requests is closed";
                let limits = &worker.limits;
                limits.reached(Limit::FirstRequest, Direction::Inbound, who, what);
            }
            Self::Idle => {
                tcp::tell_idle(worker, &downstream);
                let record = ConnectionRecord::new(Rc::new(downstream));
                let flag = ResponseFlag::StreamIdleTimeout;
                tcp::failed(worker, record, flag, "idle_timeout");
                reset(tcp);
            }
        }
    }
}

/// Looks at the first bytes, because a peer's sidecar may call any port. Where plaintext is accepted the app may be the
/// one that speaks first; then nobody waits for the client, but if it does speak first after all, it is heard.
async fn look(
    tcp: &mut TcpStream,
    seen: &mut BytesMut,
    policy: Policy,
    app: SocketAddr,
    worker: &Worker,
) -> Result<Carries, Unseen> {
    if !policy.plaintext {
        return match detect(tcp, seen, Some(GREETING)).await? {
            Carries::Silence => Err(Unseen::NoHello),
            carries => Ok(carries),
        };
    }
    let (overload, patience) = (&worker.overload, &worker.settings.patience);
    if policy.declared_http {
        let first = detect(tcp, seen, None);
        let carries = overload.wait_for(Direction::Inbound, patience.first_request, first);
        return match carries.await {
            Some(carries) => Ok(carries?),
            None if seen.is_empty() => Err(Unseen::NoRequest),
            // It has begun, and has little time from there.
            None => Ok(detect(tcp, seen, None).await?),
        };
    }
    let carries = detect(tcp, seen, Some(SILENCE)).await?;
    if carries != Carries::Silence {
        return Ok(carries);
    }
    // A peer that is merely slow must not be taken for a silent one: its ClientHello would reach the app.
    // An app that cannot be reached is told on by whoever wants to hand it the connection.
    let Ok(app) = dial(&worker.settings, app, Reach::App).await else {
        return Ok(Carries::Opaque);
    };
    let (mut client_byte, mut app_byte) = ([0; 1], [0; 1]);
    let either = async {
        tokio::select! {
            biased;
            first = tcp.peek(&mut client_byte) => first.map(|_| true),
            first = app.peek(&mut app_byte) => first.map(|_| false),
        }
    };
    let client_first = overload.wait_for(Direction::Inbound, patience.tcp_idle, either);
    if !client_first.await.ok_or(Unseen::Idle)?? {
        return Ok(Carries::Opaque);
    }
    Ok(detect(tcp, seen, None).await?)
}

/// Ends TLS, and goes on with what the peer has announced.
async fn secured(
    transport: Transport,
    hello: &Hello,
    mut downstream: Downstream,
    worker: Rc<Worker>,
) {
    let sidecar = hello.is_mesh();
    let config = {
        let identity = worker.identity.load();
        if sidecar {
            identity.mesh_server().clone()
        } else {
            identity.foreign_server().clone()
        }
    };
    let accepted = match tls::accept(transport, config).await {
        Ok(accepted) => accepted,
        Err(error) => {
            return refuse(&worker, &downstream, Refusal::Tls, error);
        }
    };
    let _verified = worker.verified.enter(accepted.chain);
    downstream.security = Security::Mtls {
        peer: accepted.peer,
        sidecar,
    };
    match &*accepted.protocol {
        alpn::H2 | b"h2" => serve_http(worker, downstream, accepted.io, HttpVersion::Http2).await,
        alpn::HTTP1 | b"http/1.1" => {
            serve_http(worker, downstream, accepted.io, HttpVersion::Http1).await
        }
        alpn::TCP => to_app(accepted.io, &downstream, &worker).await,
        // rustls agrees to what it was told only, or to nothing if the client offered nothing.
        _ => {
            let why = "TLS without a protocol that the mesh speaks";
            refuse(&worker, &downstream, Refusal::Alpn, why);
        }
    }
}

/// Opaque bytes to the app, for as long as policy lets them in.
async fn to_app(client: IoStream, downstream: &Downstream, worker: &Worker) {
    let mut record = ConnectionRecord::new(Rc::new(downstream.clone()));
    record.upstream = Some(downstream.original_dst);
    let app = match dial(&worker.settings, downstream.original_dst, Reach::App).await {
        Ok(app) => app,
        Err(error) => {
            tcp::failed(
                worker,
                record,
                ResponseFlag::UpstreamConnectionFailure,
                "connect_failure",
            );
            tracing::debug!(server.addr = %downstream.original_dst, %error, "the app does not answer");
            worker
                .connections
                .refuse(Direction::Inbound, Refusal::AppUnreachable);
            return reset(client.tcp());
        }
    };
    let ends = admission::ends(worker, downstream, false);
    let (moved, ended) = tcp::carry(worker, record, client, app.into(), ends).await;
    tracing::debug!(
        client.addr = %downstream.peer,
        client.id = downstream.peer_id().map(tracing::field::display),
        server.addr = %downstream.original_dst,
        sent = moved.sent,
        received = moved.received,
        error = ended.err().map(tracing::field::display),
        "connection closed"
    );
}
