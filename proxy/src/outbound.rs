//! The way out: from the app of this pod to wherever it meant to go.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admission;
use crate::config::Resolution;
use crate::config::listener::{OutboundListener, Protocol, TcpRoute};
use crate::conn::{Direction, Downstream, HttpVersion, Security};
use crate::detect::{self, Carries, SILENCE, detect};
use crate::handover::serve_http;
use crate::io::{IoStream, Transport};
use crate::net::{Captured, Reach, Refusal, dial, reset};
use crate::tcp::{self, Moved, RelayError};
use crate::telemetry::{ConnectionRecord, Limit, ResponseFlag, Who};
use crate::worker::Worker;

/// How long a connection to a destination outside the mesh may take.
const PASSTHROUGH_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one connection of the app.
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
    let tcp_route = match worker.config.resolve(original_dst).await {
        Resolution::Known(listener) => Some(listener),
        Resolution::Unknown => None,
        Resolution::Unanswered if worker.settings.passthrough_undiscovered => None,
        Resolution::Unanswered => {
            let connections = &worker.connections;
            if let Some(unsaid) =
                connections.refuse_and_tell(Direction::Outbound, Refusal::Undiscovered, peer)
            {
                tracing::info!(client.addr = %peer, server.addr = %original_dst, unsaid, "refused: the control plane did not answer");
            }
            return reset(&tcp);
        }
    };
    let mut seen = BytesMut::new();
    let carries = match look(&mut tcp, &mut seen, tcp_route.as_deref(), &worker).await {
        Ok(Carries::Silence) if is_http(tcp_route.as_deref()) => {
            let who = Who {
                address: peer,
                id: None,
            };
            let what = "a connection without requests is closed";
            let limits = &worker.limits;
            return limits.reached(Limit::FirstRequest, Direction::Outbound, who, what);
        }
        Ok(carries) => carries,
        Err(error) => {
            return tracing::debug!(client.addr = %peer, %error, "the app's connection broke");
        }
    };
    let sni = match &carries {
        Carries::Tls(hello) => hello.server_name.clone(),
        _ => None,
    };
    let downstream = Downstream {
        direction: Direction::Outbound,
        peer,
        original_dst,
        security: Security::Plaintext,
        sni,
    };
    let for_a_proxy = tcp_route.is_none() && detect::asks_a_proxy(&seen);
    let io = IoStream::Plain(Transport::with_prefix(tcp, detect::replay(seen)));
    match (
        carries,
        tcp_route.as_deref().map(|listener| &listener.protocol),
    ) {
        // What is meant for a forward proxy outside the mesh is its own business.
        (Carries::Http(HttpVersion::Http1), None) if for_a_proxy => {
            pass_through(io, &downstream, &worker).await;
        }
        (Carries::Http(version), None | Some(Protocol::Http(_) | Protocol::Detect { .. })) => {
            serve_http(worker, downstream, io, version).await;
        }
        // Declared HTTP that is none: let HTTP say so.
        (_, Some(Protocol::Http(_))) => {
            serve_http(worker, downstream, io, HttpVersion::Http1).await
        }
        (_, Some(Protocol::Tcp(route) | Protocol::Detect { tcp: route, .. })) => {
            to_cluster(io, &downstream, route, &worker).await;
        }
        (_, None) => pass_through(io, &downstream, &worker).await,
    }
}

/// Whether a listener is declared to carry HTTP and nothing else.
fn is_http(listener: Option<&OutboundListener>) -> bool {
    listener.is_some_and(|listener| matches!(listener.protocol, Protocol::Http(_)))
}

/// Looks at the first bytes as far as the listener leaves open what they are.
async fn look(
    tcp: &mut TcpStream,
    seen: &mut BytesMut,
    listener: Option<&OutboundListener>,
    worker: &Worker,
) -> io::Result<Carries> {
    match listener.map(|listener| &listener.protocol) {
        Some(Protocol::Tcp(_)) => Ok(Carries::Opaque),
        Some(Protocol::Http(_)) => {
            let patience = worker.settings.patience.first_request;
            let first = detect(tcp, seen, None);
            let carries = worker
                .overload
                .wait_for(Direction::Outbound, patience, first);
            match carries.await {
                Some(carries) => carries,
                None if seen.is_empty() => Ok(Carries::Silence),
                // It has begun, and has little time from there.
                None => detect(tcp, seen, None).await,
            }
        }
        Some(Protocol::Detect { .. }) | None => detect(tcp, seen, Some(SILENCE)).await,
    }
}

/// Opaque bytes to a cluster of the mesh.
async fn to_cluster(client: IoStream, downstream: &Downstream, route: &TcpRoute, worker: &Worker) {
    let mut record = ConnectionRecord::new(Rc::new(downstream.clone()));
    match tcp::connect(worker, route, downstream.peer.ip()).await {
        Ok(upstream) => {
            let endpoint = upstream.endpoint.address;
            record.upstream = Some(endpoint);
            record.cluster = Some(upstream.cluster.clone());
            record.endpoint = Some(upstream.endpoint);
            let never = std::future::pending();
            let ended = tcp::carry(worker, record, client, upstream.io, never).await;
            report(downstream, &upstream.cluster.name, endpoint, ended);
        }
        Err(error) => {
            tcp::failed(worker, record, error.flag(), error.details());
            tracing::debug!(client.addr = %downstream.peer, server.addr = %downstream.original_dst, %error, "refused");
            worker
                .connections
                .refuse(Direction::Outbound, Refusal::NoUpstream);
            reset(client.tcp());
        }
    }
}

/// Opaque bytes to a destination that the mesh does not know, until it turns out to be in the mesh.
async fn pass_through(client: IoStream, downstream: &Downstream, worker: &Worker) {
    let destination = downstream.original_dst;
    let mut record = ConnectionRecord::new(Rc::new(downstream.clone()));
    record.upstream = Some(destination);
    match timeout(
        PASSTHROUGH_TIMEOUT,
        dial(&worker.settings, destination, Reach::Out),
    )
    .await
    {
        Ok(Ok(server)) => {
            let mut server = IoStream::from(server);
            worker.silence.watch(worker, &mut server, None);
            let joins = admission::ends(worker, downstream, true);
            let ended = tcp::carry(worker, record, client, server, joins).await;
            report(downstream, "passthrough", destination, ended);
        }
        Ok(Err(error)) => {
            tracing::debug!(server.addr = %destination, %error, "passthrough");
            tcp::failed(
                worker,
                record,
                ResponseFlag::UpstreamConnectionFailure,
                "connect_failure",
            );
            reset(client.tcp());
        }
        Err(_) => {
            tcp::failed(
                worker,
                record,
                ResponseFlag::UpstreamConnectionFailure,
                "connect_timeout",
            );
            reset(client.tcp());
        }
    }
}

fn report(
    downstream: &Downstream,
    cluster: &str,
    endpoint: SocketAddr,
    (moved, ended): (Moved, Result<(), RelayError>),
) {
    tracing::debug!(
        client.addr = %downstream.peer,
        server.addr = %downstream.original_dst,
        cluster,
        endpoint = %endpoint,
        sent = moved.sent,
        received = moved.received,
        error = ended.err().map(tracing::field::display),
        "connection closed"
    );
}

#[cfg(test)]
mod tests;
