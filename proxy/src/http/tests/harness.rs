//! A mesh in one process: hand-made config, a client on an in-memory stream, apps on loopback.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;
use tulle_identity::{
    CsrPolicy, Identity, IssueRequest, Issuer, Root, SpiffeId, Svid, TrustDomain,
};
use tulle_runtime::drain::{self, Drain};

use crate::config::cluster::{
    CircuitBreaker, ClusterState, Discovery, EndpointState, Health, LbPolicy, OutlierDetection,
    PeerIdentity,
};
use crate::config::listener::{InboundPort, Protocol, RouteSource};
use crate::config::route::{
    Forward, HeaderChanges, PathMatch, RetryPolicy, RouteAction, RouteMatch, WeightedCluster,
};
use crate::config::store::ConfigWriter;
use crate::config::{
    Cluster, Config, Endpoint, InboundListener, Lookup, OutboundListener, Route, RouteTable,
    Snapshot,
};
use crate::conn::{Direction, Downstream, HttpVersion, Security};
use crate::io::{IoStream, Transport};
use crate::settings::Settings;
use crate::telemetry::RequestRecord;
use crate::upstream::LocalExecutor;
use crate::worker::{Handles, Worker};

/// Where the client means to connect to.
pub(super) const SERVICE: ([u8; 4], u16) = ([10, 96, 0, 1], 80);
/// Where the client is.
pub(super) const CLIENT: ([u8; 4], u16) = ([10, 1, 0, 9], 40_000);

/// Runs a test on one thread, as a worker does.
pub(super) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let deadline = Duration::from_secs(60);
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(deadline, test)
            .await
            .expect("the test hangs")
    })
}

/// As [`run`], on a clock that jumps whenever nothing else is to do; for tests without sockets.
pub(super) fn run_paused<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// As [`run`], on a clock that moves only when the test moves it: however busy the machine is, nobody is late.
pub(super) fn run_still<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    // The clock does not jump as long as a thread of the runtime is at work; this one is until the test is over or hangs.
    let (_over, work) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || work.recv_timeout(Duration::from_secs(600)));
    let deadline = Duration::from_secs(3600);
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(deadline, test)
            .await
            .expect("the test hangs")
    })
}

/// Moves the clock of [`run_still`] on while the test runs: a millisecond each time that everybody has had some turns.
pub(super) fn tick() {
    tokio::task::spawn_local(async {
        loop {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            tokio::time::advance(Duration::from_millis(1)).await;
        }
    });
}

/// One sidecar.
pub(super) struct Sidecar {
    pub(super) worker: Rc<Worker>,
    pub(super) writer: ConfigWriter,
    pub(super) drain: Drain,
}

/// Identities of one mesh.
pub(super) struct Ca(Issuer);

impl Ca {
    pub(super) fn new() -> Self {
        let domain = TrustDomain::new("cluster.local").unwrap();
        let root = Root::generate(&domain, Duration::from_secs(3600)).unwrap();
        Self(Issuer::new(root, [], CsrPolicy::default()).unwrap())
    }

    pub(super) fn svid(&self, account: &str) -> Svid {
        self.0.issue_svid(&IssueRequest::new(&id(account))).unwrap()
    }

    pub(super) fn identity(&self, account: &str) -> Identity {
        Identity::new(self.svid(account), self.0.bundle().clone())
    }
}

pub(super) fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap()
}

impl Sidecar {
    pub(super) fn new(snapshot: Snapshot) -> Self {
        Self::with_identity(snapshot, Ca::new().identity("client"))
    }

    pub(super) fn with_identity(snapshot: Snapshot, identity: Identity) -> Self {
        Self::build(snapshot, identity, Settings::default())
    }

    pub(super) fn with_settings(snapshot: Snapshot, settings: Settings) -> Self {
        Self::build(snapshot, Ca::new().identity("client"), settings)
    }

    pub(super) fn build(snapshot: Snapshot, identity: Identity, settings: Settings) -> Self {
        let (config, writer) = Config::new(snapshot);
        let (drain, watch) = drain::channel();
        let worker = Rc::new(Worker::new(Handles {
            config,
            identity,
            settings: Arc::new(settings),
            connections: Default::default(),
            limits: Default::default(),
            overload: Default::default(),
            telemetry: None,
            drain: watch,
        }));
        Self {
            worker,
            writer,
            drain,
        }
    }

    /// The app of this pod connects to the service.
    pub(super) fn client(&self, version: HttpVersion) -> DuplexStream {
        self.connect(self.downstream(SERVICE.into()), version)
    }

    /// The app of this pod, connected to something.
    pub(super) fn downstream(&self, original_dst: SocketAddr) -> Downstream {
        Downstream {
            direction: Direction::Outbound,
            peer: CLIENT.into(),
            original_dst,
            security: Security::Plaintext,
            sni: None,
        }
    }

    /// Somebody connects to the app of this pod.
    pub(super) fn caller(
        &self,
        app: SocketAddr,
        security: Security,
        version: HttpVersion,
    ) -> DuplexStream {
        let downstream = Downstream {
            direction: Direction::Inbound,
            peer: CLIENT.into(),
            original_dst: app,
            security,
            sni: None,
        };
        self.connect(downstream, version)
    }

    pub(super) fn connect(&self, downstream: Downstream, version: HttpVersion) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let worker = self.worker.clone();
        tokio::task::spawn_local(async move {
            let _ = super::super::serve(worker, downstream, theirs, version).await;
        });
        ours
    }

    /// Listens as a peer's sidecar in front of an app.
    pub(super) async fn listen(&self, app: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let worker = self.worker.clone();
        tokio::task::spawn_local(async move {
            loop {
                let (tcp, peer) = listener.accept().await.unwrap();
                tokio::task::spawn_local(accept(worker.clone(), tcp, peer, app));
            }
        });
        address
    }

    pub(super) fn records(&self) -> Vec<RequestRecord> {
        self.worker.telemetry.take()
    }

    /// Waits for the next record.
    pub(super) async fn record(&self) -> RequestRecord {
        loop {
            if let Some(record) = self.records().pop() {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Publishes a changed snapshot.
    pub(super) fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut next = (*self.writer.current()).clone();
        change(&mut next);
        self.writer.publish(next);
    }
}

pub(super) async fn accept(worker: Rc<Worker>, tcp: TcpStream, peer: SocketAddr, app: SocketAddr) {
    let config = worker.identity.load().mesh_server().clone();
    let accepted = TlsAcceptor::from(config).accept(Transport::new(tcp)).await;
    let Ok(tls) = accepted else { return };
    let session = tls.get_ref().1;
    let id = tulle_identity::peer_id(session.peer_certificates().unwrap()).unwrap();
    let version = match session.alpn_protocol() {
        Some(b"tulle-h2") => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    };
    let downstream = Downstream {
        direction: Direction::Inbound,
        peer,
        original_dst: app,
        security: Security::Mtls {
            peer: id,
            sidecar: true,
        },
        sni: None,
    };
    let io = IoStream::Server(Box::new(tls));
    let _ = super::super::serve(worker, downstream, io, version).await;
}

/// Inbound config: everything is HTTP, plaintext or not.
pub(super) fn inbound(plaintext: bool) -> Snapshot {
    let default = InboundPort {
        plaintext,
        protocol: Protocol::Http(Arc::default()),
        service: None,
    };
    let listener = InboundListener {
        ports: Default::default(),
        default,
    };
    Snapshot {
        inbound: Some(Arc::new(listener)),
        ..Snapshot::default()
    }
}

/// Outbound config: the service, its routes and their clusters.
pub(super) fn outbound(routes: Vec<Route>, clusters: Vec<Cluster>) -> Snapshot {
    let routes = routes.into_iter().map(Arc::new).collect();
    let table = Arc::new(RouteTable {
        name: "service".into(),
        routes,
        hosts: None,
    });
    let listener = OutboundListener {
        name: "outbound|10.96.0.1|80".into(),
        address: SERVICE.into(),
        protocol: Protocol::Http(RouteSource::Inline(table)),
    };
    let mut snapshot = Snapshot {
        generation: 1,
        ..Snapshot::default()
    };
    snapshot
        .outbound
        .insert(SERVICE.into(), Lookup::Known(Arc::new(listener)));
    for cluster in clusters {
        snapshot
            .clusters
            .insert(cluster.name.clone(), Arc::new(cluster));
    }
    snapshot
}

/// What the control plane says of a destination that has no routes.
pub(super) fn snapshot_of(address: SocketAddr) -> Lookup<Arc<OutboundListener>> {
    let source = RouteSource::Inline(Arc::default());
    let protocol = Protocol::Http(source);
    Lookup::Known(Arc::new(OutboundListener {
        name: "o".into(),
        address,
        protocol,
    }))
}

/// One route for everything to one cluster of plain endpoints.
pub(super) fn service(endpoints: &[SocketAddr]) -> Snapshot {
    outbound(vec![route_to("c")], vec![cluster("c", plain(endpoints))])
}

pub(super) fn forward_to(name: &str) -> Forward {
    Forward {
        clusters: vec![WeightedCluster {
            name: name.into(),
            weight: 1,
            request_headers: HeaderChanges::default(),
            response_headers: HeaderChanges::default(),
        }],
        total_weight: 1,
        cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
        path_rewrite: None,
        host_rewrite: None,
        timeout: None,
        per_try_timeout: None,
        retry: RetryPolicy {
            backoff_base: Duration::from_millis(1),
            backoff_max: Duration::from_millis(1),
            ..RetryPolicy::default()
        },
        hash: Vec::new(),
    }
}

pub(super) fn route(path: &str, action: RouteAction) -> Route {
    Route {
        name: path.into(),
        matches: RouteMatch {
            path: PathMatch::SegmentPrefix(path.into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
            grpc: false,
        },
        action,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
    }
}

pub(super) fn route_to(name: &str) -> Route {
    route("/", RouteAction::Forward(forward_to(name)))
}

pub(super) fn cluster(name: &str, mut endpoints: Vec<Arc<Endpoint>>) -> Cluster {
    endpoints.sort_by_key(|endpoint| endpoint.address);
    Cluster {
        name: name.into(),
        service: None,
        discovery: Discovery::Eds,
        lb_policy: LbPolicy::RoundRobin,
        http: Default::default(),
        connect_timeout: Duration::from_secs(1),
        limits: CircuitBreaker::default(),
        outlier: OutlierDetection::default(),
        endpoints: endpoints.into(),
        state: Arc::new(ClusterState::default()),
    }
}

pub(super) fn plain(addresses: &[SocketAddr]) -> Vec<Arc<Endpoint>> {
    addresses
        .iter()
        .map(|address| Arc::new(endpoint(*address, None)))
        .collect()
}

/// Endpoints with a sidecar that runs as one service account.
pub(super) fn meshed(addresses: &[SocketAddr], account: &str) -> Vec<Arc<Endpoint>> {
    let peer = Arc::new(PeerIdentity(Box::new([id(account)])));
    addresses
        .iter()
        .map(|address| Arc::new(endpoint(*address, Some(peer.clone()))))
        .collect()
}

fn endpoint(address: SocketAddr, mtls: Option<Arc<PeerIdentity>>) -> Endpoint {
    Endpoint {
        address,
        weight: 1,
        health: Health::Healthy,
        mtls,
        foreign: false,
        workload: Arc::default(),
        state: Arc::new(EndpointState::default()),
    }
}

/// An address where nobody listens.
pub(super) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

/// An app that answers every request with what a function says.
pub(super) async fn app<F, R>(version: HttpVersion, answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + 'static,
    R: Future<Output = Response<Full<Bytes>>> + 'static,
{
    raw_app(move |tcp| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, hyper::Error>(answered.await) }
            });
            let io = TokioIo::new(tcp);
            let _ = match version {
                HttpVersion::Http1 => {
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(io, service)
                        .await
                }
                HttpVersion::Http2 => {
                    hyper::server::conn::http2::Builder::new(LocalExecutor)
                        .serve_connection(io, service)
                        .await
                }
            };
        }
    })
    .await
}

/// An app that says what it got: method, path, headers and body.
pub(super) async fn echo(version: HttpVersion, name: &'static str) -> SocketAddr {
    app(version, move |request| async move {
        let (parts, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let mut response = Response::new(Full::new(body));
        let headers = response.headers_mut();
        headers.insert("x-app", name.parse().unwrap());
        headers.insert("x-method", parts.method.as_str().parse().unwrap());
        headers.insert("x-target", parts.uri.to_string().parse().unwrap());
        for (name, value) in &parts.headers {
            headers.append(
                http::HeaderName::try_from(format!("got-{name}")).unwrap(),
                value.clone(),
            );
        }
        response
    })
    .await
}

/// An app that does what a function does with each connection.
pub(super) async fn raw_app<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(serve(tcp));
        }
    });
    address
}

/// Reads one request head.
pub(super) async fn read_head(io: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match io.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// A client that speaks one version.
pub(super) enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// An answer that has arrived in full.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

impl Client {
    pub(super) async fn new(io: DuplexStream, version: HttpVersion) -> Self {
        let io = TokioIo::new(io);
        match version {
            HttpVersion::Http1 => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                tokio::task::spawn_local(connection.with_upgrades());
                Self::Http1(sender)
            }
            HttpVersion::Http2 => {
                let (sender, connection) = http2::handshake(LocalExecutor, io).await.unwrap();
                tokio::task::spawn_local(connection);
                Self::Http2(sender)
            }
        }
    }

    /// A request with a body if it is not empty.
    pub(super) async fn send(&mut self, method: Method, path: &str, body: &'static str) -> Answer {
        self.request(
            self.build(method, path)
                .body(Full::new(body.into()))
                .unwrap(),
        )
        .await
        .unwrap()
    }

    pub(super) async fn get(&mut self, path: &str) -> Answer {
        self.send(Method::GET, path, "").await
    }

    pub(super) fn build(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method);
        match self {
            Self::Http1(_) => request.uri(path).header("host", "reviews"),
            Self::Http2(_) => request.uri(format!("http://reviews{path}")),
        }
    }

    pub(super) async fn request(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => sender.send_request(request).await?,
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.to_bytes(),
            trailers,
        })
    }
}

/// Sends raw bytes and reads until the other side has nothing more to say.
pub(super) async fn raw(mut io: DuplexStream, request: &str) -> String {
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}
