//! Both recipes end to end in one process: a client, its sidecar, the other sidecar, an app.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tulle_identity::{CsrPolicy, Identity, IssueRequest, Issuer, Root, SpiffeId, TrustDomain};
use tulle_runtime::drain::{self, Drain};

mod ends;
mod idle;
mod trust;

use super::*;
use crate::config::cluster::{Discovery, Health, LbPolicy, PeerIdentity};
use crate::config::store::ConfigWriter;
use crate::config::{Cluster, Config, Endpoint, InboundListener, InboundPort, Lookup, Snapshot};
use crate::inbound;
use crate::settings::Settings;
use crate::telemetry::{ConnectionRecord, ResponseFlag};
use crate::worker::Handles;

const SERVICE: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)),
    6379,
);

struct Ca(Issuer);

impl Ca {
    fn new() -> Self {
        let domain = TrustDomain::new("cluster.local").unwrap();
        let root = Root::generate(&domain, Duration::from_secs(3600)).unwrap();
        Self(Issuer::new(root, [], CsrPolicy::default()).unwrap())
    }

    fn identity(&self, account: &str) -> Identity {
        let svid = self.0.issue_svid(&IssueRequest::new(&id(account))).unwrap();
        Identity::new(svid, self.0.bundle().clone())
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap()
}

/// A sidecar's worker, and what keeps it alive.
struct Sidecar {
    worker: Rc<Worker>,
    writer: ConfigWriter,
    _drain: Drain,
}

impl Sidecar {
    fn new(identity: Identity, snapshot: Snapshot) -> Self {
        Self::with_settings(identity, snapshot, Settings::default())
    }

    fn with_settings(identity: Identity, snapshot: Snapshot, settings: Settings) -> Self {
        let (config, writer) = Config::new(snapshot);
        let (drain, watch) = drain::channel();
        let handles = Handles {
            config,
            identity,
            settings: Arc::new(settings),
            connections: Default::default(),
            limits: Default::default(),
            overload: Default::default(),
            telemetry: None,
            drain: watch,
        };
        Self {
            worker: Rc::new(Worker::new(handles)),
            writer,
            _drain: drain,
        }
    }

    /// The next opaque connection that telemetry is told about.
    async fn connection(&self) -> ConnectionRecord {
        let seen = async {
            loop {
                if let Some(record) = self.worker.telemetry.take_connections().pop() {
                    return record;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), seen).await.unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = (*self.writer.current()).clone();
        change(&mut snapshot);
        self.writer.publish(snapshot);
    }
}

/// What the server's sidecar accepts on the app's port.
fn inbound_config(plaintext: bool) -> Snapshot {
    let route = TcpRoute {
        clusters: vec![("inbound|6379||".into(), 1)],
        by_source: false,
    };
    let port = InboundPort {
        plaintext,
        protocol: Protocol::Detect {
            http: Arc::default(),
            tcp: route,
        },
        service: None,
    };
    let inbound = InboundListener {
        ports: Default::default(),
        default: port,
    };
    Snapshot {
        inbound: Some(Arc::new(inbound)),
        ..Snapshot::default()
    }
}

/// A Service with one endpoint.
fn outbound_config(endpoint: SocketAddr, peer: Option<&str>) -> Snapshot {
    let endpoint = Endpoint {
        address: endpoint,
        weight: 1,
        health: Health::Healthy,
        mtls: peer.map(|account| Arc::new(PeerIdentity([id(account)].into()))),
        foreign: false,
        workload: Arc::default(),
        state: Arc::default(),
    };
    let name: Arc<str> = "outbound|6379||redis.shop.svc.cluster.local".into();
    let cluster = Cluster {
        name: name.clone(),
        service: None,
        discovery: Discovery::Eds,
        lb_policy: LbPolicy::default(),
        http: Default::default(),
        connect_timeout: Duration::from_secs(1),
        limits: Default::default(),
        outlier: Default::default(),
        endpoints: [Arc::new(endpoint)].into(),
        state: Arc::default(),
    };
    let listener = OutboundListener {
        name: "outbound|10.96.0.1|6379".into(),
        address: SERVICE,
        protocol: Protocol::Tcp(TcpRoute {
            clusters: vec![(name.clone(), 1)],
            by_source: false,
        }),
    };
    let mut snapshot = Snapshot::default();
    snapshot
        .outbound
        .insert(SERVICE, Lookup::Known(Arc::new(listener)));
    snapshot.clusters.insert(name, Arc::new(cluster));
    snapshot
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Accepts connections and serves them as if they had been captured on their way to `original_dst`.
fn capture(
    listener: TcpListener,
    original_dst: SocketAddr,
    direction: Direction,
    worker: Rc<Worker>,
) {
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, peer) = listener.accept().await.unwrap();
            let worker = worker.clone();
            let newest = worker.newest.clone();
            let place = newest.place();
            let serving = async move {
                let _place = place;
                match direction {
                    Direction::Inbound => {
                        inbound::serve_from(tcp, peer, original_dst, worker).await;
                    }
                    Direction::Outbound => serve_from(tcp, peer, original_dst, worker).await,
                }
            };
            let task = tokio::task::spawn_local(serving).abort_handle();
            newest.serves(task, direction, peer);
        }
    });
}

/// A mesh of two sidecars around `app`; the client's connection to the service, and both sidecars.
struct Mesh {
    client: TcpStream,
    server_side: Sidecar,
    client_side: Sidecar,
    server_address: SocketAddr,
}

async fn mesh(ca: &Ca, app: SocketAddr, plaintext: bool, peer: Option<&str>) -> Mesh {
    let (server_listener, server_address) = listen().await;
    let server_side = Sidecar::new(ca.identity("redis"), inbound_config(plaintext));
    capture(
        server_listener,
        app,
        Direction::Inbound,
        server_side.worker.clone(),
    );
    let (client_listener, client_address) = listen().await;
    let client_side = Sidecar::new(ca.identity("web"), outbound_config(server_address, peer));
    capture(
        client_listener,
        SERVICE,
        Direction::Outbound,
        client_side.worker.clone(),
    );
    let client = TcpStream::connect(client_address).await.unwrap();
    Mesh {
        client,
        server_side,
        client_side,
        server_address,
    }
}

/// An app that greets, then echoes until its client has ended, then says goodbye.
async fn greeter() -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::task::spawn_local(async move {
        loop {
            let (mut tcp, peer) = listener.accept().await.unwrap();
            tokio::task::spawn_local(async move {
                tcp.write_all(format!("from {}\n", peer.ip()).as_bytes())
                    .await?;
                let (mut read, mut write) = tcp.split();
                tokio::io::copy(&mut read, &mut write).await?;
                tcp.write_all(b"bye\n").await
            });
        }
    });
    address
}

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn opaque_bytes_go_over_mtls_and_half_close_is_kept() {
    local(async {
        let mut mesh = mesh(&Ca::new(), greeter().await, false, Some("redis")).await;
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut read, mut write) = mesh.client.split();
        let sending = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (_, read) = tokio::join!(sending, read.read_to_end(&mut received));
        read.unwrap();
        let (greeting, rest) = received.split_at(b"from 127.0.0.6\n".len());
        assert_eq!(greeting, b"from 127.0.0.6\n");
        assert_eq!(&rest[..sent.len()], sent);
        assert_eq!(&rest[sent.len()..], b"bye\n");
        for sidecar in [&mesh.client_side, &mesh.server_side] {
            let record = sidecar.connection().await;
            assert_eq!(record.bytes_received, sent.len() as u64);
            assert_eq!(record.bytes_sent, received.len() as u64);
            assert!(record.flags.is_empty());
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused() {
    local(async {
        let mut mesh = mesh(&Ca::new(), greeter().await, false, Some("someone-else")).await;
        let error = mesh.client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let record = mesh.client_side.connection().await;
        assert!(
            record
                .flags
                .contains(ResponseFlag::UpstreamConnectionFailure)
        );
        assert_eq!(record.details, "tls_failure");
        assert!(
            mesh.client_side
                .worker
                .config
                .load()
                .clusters
                .values()
                .all(|cluster| {
                    cluster.endpoints[0]
                        .state
                        .consecutive_failures
                        .load(std::sync::atomic::Ordering::Relaxed)
                        > 0
                })
        );
    })
    .await;
}

#[tokio::test]
async fn plaintext_is_refused_under_strict_and_passes_under_permissive() {
    local(async {
        for (plaintext, passes) in [(false, false), (true, true)] {
            let mesh = mesh(&Ca::new(), greeter().await, plaintext, None).await;
            let mut direct = TcpStream::connect(mesh.server_address).await.unwrap();
            direct.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
            let mut line = [0; 15];
            match direct.read_exact(&mut line).await {
                Ok(_) => assert!(passes, "plaintext must be refused"),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                    assert!(!passes, "plaintext must pass");
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_without_a_client_byte() {
    local(async {
        let mesh = mesh(&Ca::new(), greeter().await, true, Some("redis")).await;
        let mut line = [0; 15];
        let mut direct = TcpStream::connect(mesh.server_address).await.unwrap();
        direct.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"from 127.0.0.6\n");
    })
    .await;
}

#[tokio::test]
async fn turning_strict_on_ends_live_plaintext_but_not_mtls() {
    local(async {
        let mut mesh = mesh(&Ca::new(), greeter().await, true, Some("redis")).await;
        let mut line = [0; 15];
        let mut plain = TcpStream::connect(mesh.server_address).await.unwrap();
        plain.read_exact(&mut line).await.unwrap();
        mesh.client.read_exact(&mut line).await.unwrap();
        mesh.server_side
            .change(|snapshot| *snapshot = inbound_config(false));
        let error = plain.read(&mut line).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        mesh.client.write_all(b"still here").await.unwrap();
        let mut echo = [0; 10];
        mesh.client.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"still here");
    })
    .await;
}

#[tokio::test]
async fn an_unknown_destination_passes_until_it_joins_the_mesh() {
    local(async {
        let app = greeter().await;
        let mut snapshot = Snapshot::default();
        snapshot.outbound.insert(app, Lookup::Unknown);
        let sidecar = Sidecar::new(Ca::new().identity("web"), snapshot);
        let (listener, address) = listen().await;
        capture(listener, app, Direction::Outbound, sidecar.worker.clone());
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut line = [0; 15];
        client.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"from 127.0.0.1\n");
        sidecar.change(|snapshot| {
            *snapshot = outbound_config(app, Some("redis"));
            let known = snapshot.outbound.remove(&SERVICE).unwrap();
            snapshot.outbound.insert(app, known);
        });
        let error = client.read(&mut line).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    })
    .await;
}

#[tokio::test]
async fn what_is_meant_for_a_forward_proxy_passes_untouched() {
    local(async {
        let (proxy, address) = listen().await;
        let mut snapshot = Snapshot::default();
        snapshot.outbound.insert(address, Lookup::Unknown);
        let sidecar = Sidecar::new(Ca::new().identity("web"), snapshot);
        for (line, untouched) in [
            ("CONNECT example.org:443 HTTP/1.1", true),
            ("GET http://example.org/a HTTP/1.1", true),
            ("GET /a HTTP/1.1", false),
            ("GET /a?to=http://example.org HTTP/1.1", false),
        ] {
            let request = format!("{line}\r\nHost: example.org\r\nProxy-Connection: x\r\n\r\n");
            let (listener, captured) = listen().await;
            let worker = sidecar.worker.clone();
            capture(listener, address, Direction::Outbound, worker);
            let mut client = TcpStream::connect(captured).await.unwrap();
            client.write_all(request.as_bytes()).await.unwrap();
            let (mut server, _) = proxy.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                seen.push(server.read_u8().await.unwrap());
            }
            assert_eq!(seen == request.as_bytes(), untouched, "{line}");
        }
    })
    .await;
}

#[tokio::test]
async fn who_broke_an_opaque_connection_is_told() {
    local(async {
        let (app, address) = listen().await;
        let mut snapshot = Snapshot::default();
        snapshot.outbound.insert(address, Lookup::Unknown);
        let sidecar = Sidecar::new(Ca::new().identity("web"), snapshot);
        for (the_client, flag) in [
            (true, ResponseFlag::DownstreamConnectionTermination),
            (false, ResponseFlag::UpstreamConnectionTermination),
        ] {
            let (listener, captured) = listen().await;
            capture(
                listener,
                address,
                Direction::Outbound,
                sidecar.worker.clone(),
            );
            let mut client = TcpStream::connect(captured).await.unwrap();
            client.write_all(b"!").await.unwrap();
            let (mut server, _) = app.accept().await.unwrap();
            server.read_exact(&mut [0; 1]).await.unwrap();
            let (broken, _whole) = if the_client {
                (client, server)
            } else {
                (server, client)
            };
            reset(&broken);
            drop(broken);
            let record = sidecar.connection().await;
            assert!(record.flags.contains(flag), "{record:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_app_that_does_not_listen_is_told_on_and_not_its_client() {
    local(async {
        let (nobody, app) = listen().await;
        drop(nobody);
        let mesh = mesh(&Ca::new(), app, true, None).await;
        let mut silent = TcpStream::connect(mesh.server_address).await.unwrap();
        let error = silent.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let record = mesh.server_side.connection().await;
        assert!(
            record
                .flags
                .contains(ResponseFlag::UpstreamConnectionFailure)
        );
        assert_eq!(
            (record.upstream, record.details),
            (Some(app), "connect_failure")
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_undiscovered_destination_is_reset() {
    local(async {
        let sidecar = Sidecar::new(Ca::new().identity("web"), Snapshot::default());
        let (listener, address) = listen().await;
        capture(
            listener,
            SERVICE,
            Direction::Outbound,
            sidecar.worker.clone(),
        );
        let mut client = TcpStream::connect(address).await.unwrap();
        let error = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    })
    .await;
}
