//! The port that proxies speak to: TLS of the mesh, a client certificate asked for but not required.
//!
//! Our own acceptor under tonic's server, so that each handshake uses the certificate and the roots of that moment, and
//! each request knows who is on the other end.

mod connection;
mod crowd;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tulle_identity::{ClientAuth, Identity, SpiffeId, peer_id};
use tulle_runtime::gate::{Gate, Gates};
use tulle_runtime::tasks::Tasks;

use crate::discovery::Peer;
use crate::limit::{Reached, Share, Shares, network};

pub(crate) use connection::Connection;
use connection::{Ends, Places};
use crowd::{Crowd, Most};
pub(crate) use crowd::{Grace, Stranger};

/// Handshakes at a time.
const HANDSHAKES: usize = 1024;
/// Handshakes at a time with one address. A node's worth of pods may be behind one, and come at once when a control plane is
/// back: with 32, of a thousand that did most had not come in within half a minute.
const HANDSHAKES_OF_ADDRESS: usize = 256;
/// How old a handshake must be to be given up for another one.
const HANDSHAKE_GRACE: Grace = Grace {
    crowded: Duration::from_millis(125),
    silent: Duration::from_secs(2),
    spoke: Duration::from_secs(5),
};
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection lives no longer than this, whatever its certificate says.
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 16_384;
/// Of these, connections without a client certificate, so that the others have room.
const ANONYMOUS: usize = 1024;
/// How long a connection without a client certificate lives: it is good for one certificate request.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(30);
/// How old a connection without a client certificate must be to be given up for another one. A request may take 10 s; and as
/// the handshake costs more than a hello, nobody's place is taken sooner because his address is crowded.
const ANONYMOUS_GRACE: Grace = Grace {
    crowded: Duration::from_secs(2),
    silent: Duration::from_secs(2),
    spoke: Duration::from_secs(10),
};
/// Connections of one client, which is an address and an identity: a node's worth of pods behind one address, all of one
/// service account, each with a stream and a spare.
const OF_CLIENT: usize = 1024;
/// Connections without a client certificate from one address.
const ANONYMOUS_OF_ADDRESS: usize = 128;
/// How long a connection that is one too many lives: it is good for being told so.
const REFUSED_LIFE: Duration = Duration::from_secs(2);
/// Such connections at a time; more are closed at once.
const REFUSED: usize = 64;
/// Control frames of HTTP/2 on a connection beyond what its messages need.
const CONTROL_FRAMES: u32 = 1000;
/// How long a client may take nothing of what waits for it: longer than it may leave a PING without an answer.
const UNREAD: Duration = Duration::from_secs(60);
/// Pause after accept has failed, as it does for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The room of a connection beside that among all.
#[derive(Debug)]
#[expect(dead_code, reason = "held until it is dropped")]
enum Place {
    /// Among those of its client, and of its identity.
    Known(Share<(IpAddr, SpiffeId)>, Share<SpiffeId>),
    /// Among those without a certificate.
    Anonymous(Arc<Stranger>),
    /// Among those that are told to go.
    Refused(OwnedSemaphorePermit),
}

/// How many connections there may be, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Connections at a time; more wait in the kernel's queue.
    pub(crate) connections: usize,
    /// Of these, connections without a client certificate; for one more, the oldest of the address that has most is given up.
    pub(crate) anonymous: usize,
    /// Connections of one identity at one address; more are refused.
    pub(crate) of_client: usize,
    /// Connections of one identity, wherever they come from; more are refused.
    pub(crate) of_identity: usize,
    /// Connections without a client certificate from one address; for one more, its oldest is given up.
    pub(crate) anonymous_of_address: usize,
    /// How old one of them must be to be given up for another one.
    pub(crate) anonymous_grace: Grace,
    /// How long a connection without a client certificate lives.
    pub(crate) anonymous_life: Duration,
    /// Handshakes at a time; for one more, the oldest of the address that has most is given up.
    pub(crate) handshakes: usize,
    /// Handshakes at a time with one address; for one more, its oldest is given up.
    pub(crate) handshakes_of_address: usize,
    /// How old a handshake must be to be given up for another one.
    pub(crate) handshake_grace: Grace,
    /// How long a handshake may take.
    pub(crate) handshake: Duration,
    /// Control frames of HTTP/2 on a connection beyond what its messages need; one with more is ended.
    pub(crate) control_frames: u32,
    /// How long a client may take nothing of what waits for it.
    pub(crate) unread: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            anonymous: ANONYMOUS,
            of_client: OF_CLIENT,
            of_identity: CONNECTIONS / 2,
            anonymous_of_address: ANONYMOUS_OF_ADDRESS,
            anonymous_grace: ANONYMOUS_GRACE,
            anonymous_life: ANONYMOUS_LIFE,
            handshakes: HANDSHAKES,
            handshakes_of_address: HANDSHAKES_OF_ADDRESS,
            handshake_grace: HANDSHAKE_GRACE,
            handshake: HANDSHAKE,
            control_frames: CONTROL_FRAMES,
            unread: UNREAD,
        }
    }
}

/// What the port counts.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    failed: Counter,
    reached: Reached,
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry, reached: Reached) -> Self {
        let failed = Counter::default();
        let help = "TLS handshakes of proxies that failed or took too long";
        registry.register("xds_handshake_failures", help, failed.clone());
        Self { failed, reached }
    }
}

/// Connections, by what their clients are good for.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// Of clients that have shown a certificate.
    pub(crate) known: mpsc::Receiver<io::Result<Connection>>,
    /// Of clients that may ask for one, or are told to go.
    pub(crate) others: mpsc::Receiver<io::Result<Connection>>,
}

/// The other end of them.
#[derive(Clone)]
struct Accepted {
    known: mpsc::Sender<io::Result<Connection>>,
    others: mpsc::Sender<io::Result<Connection>>,
}

impl Accepted {
    async fn hand_over(&self, connection: Connection) {
        let to = if connection.is_known() {
            &self.known
        } else {
            &self.others
        };
        // Nobody listens any more while the server is shutting down.
        drop(to.send(Ok(connection)).await);
    }
}

/// Accepts connections until the tasks are cancelled or the receiver is dropped.
pub(crate) fn accept(
    listener: TcpListener,
    identity: Identity,
    tasks: &Tasks,
    metrics: Metrics,
    bounds: Bounds,
) -> Incoming {
    let ((known, served), (others, heard)) = (mpsc::channel(1), mpsc::channel(1));
    let connections = Accepted { known, others };
    let acceptor = Arc::new(Acceptor {
        identity,
        ends: Ends::new(metrics.reached.clone()),
        config: Mutex::new(None),
        metrics,
        connections: Arc::new(Semaphore::new(bounds.connections)),
        strangers: Crowd::new(
            Most {
                many: bounds.anonymous,
                name: "anonymous_connections",
            },
            Most {
                many: bounds.anonymous_of_address,
                name: "anonymous_connections_of_address",
            },
            bounds.anonymous_grace,
        ),
        refused: Arc::new(Semaphore::new(REFUSED)),
        bounds,
        clients: Shares::default(),
        identities: Shares::default(),
        told: Gates::default(),
        failures_told: Gates::default(),
        full_told: Gate::default(),
        files_told: Gate::default(),
    });
    let (owner, cancelled) = (tasks.clone(), tasks.cancelled());
    tasks.spawn("xds-listener", async move {
        tokio::select! {
            () = cancelled => {}
            () = connections.known.closed() => {}
            () = connections.others.closed() => {}
            () = accept_loop(listener, acceptor, &connections, &owner) => {}
        }
    });
    Incoming {
        known: served,
        others: heard,
    }
}

async fn accept_loop(
    listener: TcpListener,
    acceptor: Arc<Acceptor>,
    connections: &Accepted,
    tasks: &Tasks,
) {
    let bounds = acceptor.bounds;
    let handshakes = Crowd::new(
        Most {
            many: bounds.handshakes,
            name: "handshakes",
        },
        Most {
            many: bounds.handshakes_of_address,
            name: "handshakes_of_address",
        },
        bounds.handshake_grace,
    );
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                acceptor.metrics.reached.count("files");
                if let Some(left_out) = acceptor.files_told.pass() {
                    tracing::warn!(%error, left_out, "cannot accept a connection of a proxy");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let place = take(&acceptor.connections, || acceptor.reached()).await;
        let reached = |limit| acceptor.metrics.reached.count(limit);
        let ip = network(address.ip());
        let Some(handshaking) = handshakes.begin(ip, reached).await else {
            acceptor.tell_over("handshakes_of_address", address, None);
            continue;
        };
        let (acceptor, connections) = (acceptor.clone(), connections.clone());
        tasks.spawn_connection("xds-handshake", async move {
            let handshake = async {
                // Not by readiness, which a socket that is new has for a moment.
                stream.peek(&mut [0]).await?;
                handshaking.spoke();
                acceptor.handshake(stream, address, place).await
            };
            let handshake = tokio::time::timeout(bounds.handshake, handshake);
            let ended = tokio::select! {
                biased;
                ended = handshake => ended.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                () = handshaking.given_up.cancelled() => {
                    Err(io::Error::other("given up for a newer one"))
                }
            };
            match ended {
                Ok(connection) => connections.hand_over(connection).await,
                Err(error) => {
                    acceptor.metrics.failed.inc();
                    if let Some(left_out) = acceptor.failures_told.pass(&(), ip) {
                        tracing::info!(client.addr = %address, %error, left_out, "TLS handshake failed");
                    }
                }
            }
            drop(handshaking);
        });
    }
}

/// Waits for room; if it has to, `tell` is told.
async fn take(places: &Arc<Semaphore>, tell: impl FnOnce()) -> OwnedSemaphorePermit {
    if let Ok(place) = places.clone().try_acquire_owned() {
        return place;
    }
    tell();
    let place = places.clone().acquire_owned().await;
    place.expect("the semaphore is never closed")
}

struct Acceptor {
    identity: Identity,
    /// The configuration of the identity's present generation.
    config: Mutex<Option<(u64, Arc<ServerConfig>)>>,
    metrics: Metrics,
    connections: Arc<Semaphore>,
    /// Connections without a client certificate.
    strangers: Arc<Crowd>,
    refused: Arc<Semaphore>,
    bounds: Bounds,
    clients: Shares<(IpAddr, SpiffeId)>,
    identities: Shares<SpiffeId>,
    /// Lines about clients that have more than their share.
    told: Gates<&'static str>,
    /// Lines about handshakes that failed.
    failures_told: Gates<()>,
    /// Lines about there being no room for a connection.
    full_told: Gate,
    /// Lines about the want of file descriptors.
    files_told: Gate,
    ends: Ends,
}

impl Acceptor {
    /// There is no room for another connection.
    fn reached(&self) {
        self.metrics.reached.count("connections");
        if let Some(left_out) = self.full_told.pass() {
            tracing::warn!(
                left_out,
                "proxies have as many connections as they may, and more wait; raise --max-connections or add a replica"
            );
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let tls = TlsAcceptor::from(self.config()).accept(stream).await?;
        let (id, life) = match tls.get_ref().1.peer_certificates() {
            Some([leaf, ..]) => {
                let id = peer_id(std::slice::from_ref(leaf)).map_err(io::Error::other)?;
                let left = not_after(leaf)?
                    .duration_since(SystemTime::now())
                    .unwrap_or_default();
                (Some(id), left.min(LONGEST_LIFE))
            }
            _ => (None, self.bounds.anonymous_life),
        };
        let (mut over, mut stranger) = (None, Weak::new());
        let share = match &id {
            Some(id) => {
                let (place, why) = self.place(address, id)?;
                over = why;
                place
            }
            None => {
                let place = Arc::new(self.anonymous_place(address)?);
                stranger = Arc::downgrade(&place);
                Place::Anonymous(place)
            }
        };
        let life = if over.is_some() { REFUSED_LIFE } else { life };
        let peer = Peer {
            address,
            id,
            over,
            stranger,
        };
        let places: Places = (place, share);
        let ends = self.ends.clone();
        Ok(Connection::new(tls, peer, life, self.bounds, places, ends))
    }

    /// Room for a client with a certificate: among its own connections, or to be told that it has too many.
    fn place(
        &self,
        address: SocketAddr,
        id: &SpiffeId,
    ) -> io::Result<(Place, Option<&'static str>)> {
        // The address first: of thousands of pods with one identity, one that asks for too much costs the others nothing.
        let client = (address.ip().to_canonical(), id.clone());
        let (limit, why) = match self.clients.take(client, self.bounds.of_client) {
            Some(client) => match self.identities.take(id.clone(), self.bounds.of_identity) {
                Some(identity) => return Ok((Place::Known(client, identity), None)),
                None => (
                    "connections_of_identity",
                    "this identity has as many connections as it may; close some, or use another replica",
                ),
            },
            None => (
                "connections_of_client",
                "this client has as many connections as it may; close some, or use another replica",
            ),
        };
        self.over(limit, address, Some(id));
        let place = self.refused.clone().try_acquire_owned();
        let place = place.map_err(|_| io::Error::other(why))?;
        Ok((Place::Refused(place), Some(why)))
    }

    /// Room for a client without a certificate, which may be that of another one.
    fn anonymous_place(&self, address: SocketAddr) -> io::Result<Stranger> {
        let reached = |limit| self.metrics.reached.count(limit);
        let place = self.strangers.try_begin(network(address.ip()), reached);
        place.map_err(|limit| {
            self.over(limit, address, None);
            io::Error::other("too many connections without a client certificate")
        })
    }

    /// Somebody has more than his share.
    fn over(&self, limit: &'static str, address: SocketAddr, id: Option<&SpiffeId>) {
        self.metrics.reached.count(limit);
        self.tell_over(limit, address, id);
    }

    fn tell_over(&self, limit: &'static str, address: SocketAddr, id: Option<&SpiffeId>) {
        if let Some(left_out) = self.told.pass(&limit, network(address.ip())) {
            let id = id.map(ToString::to_string);
            tracing::warn!(client.addr = %address, client.id = id, limit, left_out,
                "a client has as many connections as it may, and is refused more");
        }
    }

    fn config(&self) -> Arc<ServerConfig> {
        let current = self.identity.load();
        let mut config = self.config.lock();
        match &*config {
            Some((generation, config)) if *generation == current.generation() => config.clone(),
            _ => {
                let made = current.server(ClientAuth::Optional, &[b"h2"]);
                *config = Some((current.generation(), made.clone()));
                made
            }
        }
    }
}

/// End of a certificate's validity.
fn not_after(cert: &[u8]) -> io::Result<SystemTime> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).map_err(io::Error::other)?;
    let seconds = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}
