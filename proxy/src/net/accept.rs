//! The accept loop: takes captured connections in, and refuses those that must not go on.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tulle_runtime::gate::Gates;
use tulle_runtime::names::ports;

use super::{Count, Open, Refusal, original_destination, reset};
use crate::conn::Direction;

/// Ports that nothing must be sent on to: this sidecar, or another one, would find itself at the other end.
const OWN_PORTS: [u16; 3] = [ports::ADMIN, ports::OUTBOUND, ports::INBOUND];

/// Counters of accepted connections, over all workers.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    accepted: Family<DirectionLabel, Counter>,
    open: Family<DirectionLabel, Gauge>,
    refused: Family<RefusedLabels, Counter>,
    panics: Family<DirectionLabel, Counter>,
    malformed: Family<DirectionLabel, Counter>,
    told: Arc<Gates<RefusedLabels>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    direction: &'static str,
    reason: &'static str,
}

impl Metrics {
    /// Registers the metrics of this room.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "downstream_connections_accepted",
            "Captured connections accepted",
            metrics.accepted.clone(),
        );
        registry.register(
            "downstream_connections_open",
            "Captured connections open now",
            metrics.open.clone(),
        );
        registry.register(
            "downstream_connections_refused",
            "Captured connections refused before they were served",
            metrics.refused.clone(),
        );
        registry.register(
            "downstream_connection_panics",
            "Captured connections that ended in a panic of the proxy",
            metrics.panics.clone(),
        );
        registry.register(
            "downstream_streams_malformed",
            "HTTP/2 streams of captured connections that were reset, because what came on them is malformed",
            metrics.malformed.clone(),
        );
        metrics
    }

    /// Counts a connection that was accepted; gives the gauge of those that are open.
    fn accepted(&self, direction: Direction) -> Gauge {
        let direction = direction.name();
        let label = DirectionLabel { direction };
        self.accepted.get_or_create(&label).inc();
        self.open.get_or_create(&label).clone()
    }

    /// Counts a connection whose task has panicked.
    pub fn panicked(&self, direction: Direction) {
        let direction = direction.name();
        self.panics
            .get_or_create(&DirectionLabel { direction })
            .inc();
    }

    /// Counts a connection that was refused.
    pub fn refuse(&self, direction: Direction, refusal: Refusal) {
        let (direction, reason) = (direction.name(), refusal.name());
        self.refused
            .get_or_create(&RefusedLabels { direction, reason })
            .inc();
    }

    /// As [`Metrics::refuse`], and as [`Metrics::may_tell`].
    pub fn refuse_and_tell(
        &self,
        direction: Direction,
        refusal: Refusal,
        client: SocketAddr,
    ) -> Option<u64> {
        self.refuse(direction, refusal);
        self.may_tell(direction, refusal.name(), client)
    }

    /// Counts a stream of HTTP/2 that was reset for what came on it, as [`Metrics::may_tell`].
    pub fn malformed_stream(&self, direction: Direction, client: SocketAddr) -> Option<u64> {
        let label = DirectionLabel {
            direction: direction.name(),
        };
        self.malformed.get_or_create(&label).inc();
        self.may_tell(direction, "h2_malformed", client)
    }

    /// Whether a line may be written about something of a client that was refused for this reason: it may come again at
    /// once, and often. If so, how many were left out before it, of this client and of others.
    pub fn may_tell(
        &self,
        direction: Direction,
        reason: &'static str,
        client: SocketAddr,
    ) -> Option<u64> {
        let direction = direction.name();
        let kind = RefusedLabels { direction, reason };
        self.told.pass(&kind, client.ip())
    }

    /// How many streams were malformed, for tests.
    #[cfg(test)]
    pub(crate) fn malformed_streams(&self, direction: Direction) -> u64 {
        let direction = direction.name();
        let label = DirectionLabel { direction };
        self.malformed.get_or_create(&label).get()
    }

    /// How many were refused for a reason, for tests.
    #[cfg(test)]
    pub(crate) fn refused(&self, direction: Direction, reason: &'static str) -> u64 {
        let direction = direction.name();
        self.refused
            .get_or_create(&RefusedLabels { direction, reason })
            .get()
    }
}

/// A captured connection.
#[derive(Debug)]
pub struct Captured {
    /// The connection.
    pub tcp: TcpStream,
    /// Who connected.
    pub peer: SocketAddr,
    /// Where the peer meant to connect to.
    pub original_dst: SocketAddr,
    /// Counts the connection as open until dropped.
    pub open: Open,
}

/// Accepts connections of one listener, on one worker.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    direction: Direction,
    open: Arc<Count>,
    metrics: Metrics,
}

impl Acceptor {
    /// Accepts from a listener that other workers may share. `open` counts connections of all of them.
    ///
    /// # Errors
    ///
    /// When the listener cannot be registered with this thread's runtime.
    pub fn new(
        listener: std::net::TcpListener,
        direction: Direction,
        open: Arc<Count>,
        metrics: Metrics,
    ) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::from_std(listener)?,
            direction,
            open,
            metrics,
        })
    }

    /// The next connection to serve. What is wrong with one connection is counted and passed over.
    ///
    /// # Errors
    ///
    /// When a resource is short. The connection still waits in the kernel: whoever asks again at once gets the same.
    pub async fn next(&self) -> io::Result<Captured> {
        loop {
            match self.listener.accept().await {
                Ok((tcp, peer)) => match self.admit(&tcp) {
                    Ok(original_dst) => {
                        let open = Open::new(&self.open, self.metrics.accepted(self.direction));
                        return Ok(Captured {
                            tcp,
                            peer,
                            original_dst,
                            open,
                        });
                    }
                    Err(refusal) => {
                        self.refuse(&tcp, peer, refusal);
                        reset(&tcp);
                    }
                },
                Err(error) if is_shortage(&error) => return Err(error),
                // The peer was gone before we came to it.
                Err(error) => tracing::debug!(%error, "accept"),
            }
        }
    }

    /// Counts a connection that must not go on, and says whose it is: whoever calls a sidecar's own ports looks for a way
    /// around it, or is told a wrong port.
    fn refuse(&self, tcp: &TcpStream, client: SocketAddr, refusal: Refusal) {
        let direction = self.direction;
        if let Some(unsaid) = self.metrics.refuse_and_tell(direction, refusal, client) {
            tracing::info!(
                client.addr = %client,
                server.addr = original_destination(tcp).ok().map(tracing::field::display),
                direction = direction.name(),
                reason = refusal.name(),
                unsaid,
                "refused: a connection to a port of the sidecar's own, or to nowhere"
            );
        }
    }

    /// Where a connection meant to go, or why it must not go on.
    fn admit(&self, tcp: &TcpStream) -> Result<SocketAddr, Refusal> {
        let original = original_destination(tcp).map_err(|_| Refusal::NotCaptured)?;
        let local = tcp.local_addr().map_err(|_| Refusal::Closed)?;
        if leads_back(original, local) {
            return Err(Refusal::Loop);
        }
        tcp.set_nodelay(true).map_err(|_| Refusal::Closed)?;
        Ok(original)
    }
}

/// Whether a connection that was accepted at `local` meant to go to this sidecar, or would find another one in its place.
fn leads_back(original: SocketAddr, local: SocketAddr) -> bool {
    original == local || OWN_PORTS.contains(&original.port())
}

fn is_shortage(error: &io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(
        error.raw_os_error(),
        Some(EMFILE | ENFILE | ENOBUFS | ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn acceptor() -> (Acceptor, SocketAddr) {
        let listener = super::super::listen(0).unwrap().remove(0);
        let port = listener.local_addr().unwrap().port();
        let acceptor = Acceptor::new(
            listener,
            Direction::Outbound,
            Arc::default(),
            Metrics::default(),
        );
        (acceptor.unwrap(), SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Connects, and reports whether the acceptor refused with a reset and counted `reason`.
    async fn refused(reasons: &[&'static str]) {
        let (acceptor, address) = acceptor();
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut byte = [0; 1];
        let error = tokio::select! {
            _ = acceptor.next() => panic!("the connection must be refused"),
            read = client.read(&mut byte) => read.unwrap_err(),
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let count = |reason| {
            acceptor
                .metrics
                .refused
                .get_or_create(&RefusedLabels {
                    direction: "outbound",
                    reason,
                })
                .get()
        };
        assert_eq!(reasons.iter().map(|reason| count(reason)).sum::<u64>(), 1);
    }

    #[tokio::test]
    async fn a_connection_made_to_the_listener_itself_is_reset() {
        // Without connection tracking the kernel knows no original destination; with it, it is the listener.
        refused(&["loop", "not_captured"]).await;
    }

    #[test]
    fn row_56_what_would_lead_back_is_known_by_its_port_or_by_where_it_came() {
        let pod = |port| SocketAddr::from(([10, 1, 0, 9], port));
        let ipv6 = |port| SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 9], port));
        for of in [pod as fn(u16) -> SocketAddr, ipv6] {
            for (original, local, back) in [
                (15_000, 15_006, true),
                (15_001, 15_006, true),
                (15_006, 15_001, true),
                // What is captured by another port than usual, as in tests.
                (4_711, 4_711, true),
                (80, 15_006, false),
                (15_020, 15_006, false),
                (15_002, 15_001, false),
            ] {
                let found = leads_back(of(original), of(local));
                assert_eq!(found, back, "{original} at {local}");
            }
        }
        assert!(!leads_back(SocketAddr::from(([10, 1, 0, 8], 80)), pod(80)));
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = super::super::listen(0).unwrap();
        let port = taken[0].local_addr().unwrap().port();
        let error = super::super::listen(port).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("could not listen on 0.0.0.0:{port}: ")),
            "{error}"
        );
    }
}
