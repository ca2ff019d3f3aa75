//! The relay between a real gRPC client and a scripted control plane.

use std::net::SocketAddr;

use futures_util::stream::BoxStream;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Endpoint, Server};
use tracing::subscriber::NoSubscriber;
use tulle_runtime::drain::{self, Drain};
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::envoy::config::core::v3::{Extension, Node};
use tulle_xds_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_xds_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use super::*;

mod refused;
use crate::args::XdsListen;

const NODE: &str = "10.1.2.3~web-1.shop~shop.svc.cluster.local";
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers every request with its type as the nonce; says on a channel when the requests of a stream ended.
#[derive(Clone)]
struct Control {
    ended: mpsc::Sender<()>,
    tasks: Tasks,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Control {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (answers, stream) = mpsc::channel(1);
        let (mut requests, ended) = (request.into_inner(), self.ended.clone());
        self.tasks.spawn_connection("script", async move {
            while let Ok(Some(request)) = requests.message().await {
                let answer = match request.type_url.as_str() {
                    "refuse" => Err(Status::with_details(
                        Code::PermissionDenied,
                        "not you",
                        Bytes::from_static(b"details"),
                    )),
                    kind => Ok(DiscoveryResponse {
                        nonce: kind.to_owned(),
                        ..DiscoveryResponse::default()
                    }),
                };
                if answers.send(answer).await.is_err() {
                    break;
                }
            }
            let _ = ended.send(()).await;
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    type DeltaAggregatedResourcesStream =
        BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let answers = request.into_inner().map(|request| {
            request.map(|request| DeltaDiscoveryResponse {
                nonce: request.type_url,
                ..DeltaDiscoveryResponse::default()
            })
        });
        Ok(Response::new(answers.boxed()))
    }
}

/// A control plane on a runtime of its own: when that ends, its connections are cut.
struct Running {
    address: SocketAddr,
    ended: mpsc::Receiver<()>,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Running {
    fn start(at: &str) -> Self {
        let listener = std::net::TcpListener::bind(at).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (ended, receiver) = mpsc::channel(16);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let service = AggregatedDiscoveryServiceServer::new(Control {
                    ended,
                    tasks: Tasks::new(),
                });
                let serve = Server::builder()
                    .add_service(service)
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    _ = serve => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            ended: receiver,
            stop,
            thread,
        }
    }

    fn cut(self) -> SocketAddr {
        let _ = self.stop.send(());
        self.thread.join().unwrap();
        self.address
    }
}

struct Stage {
    control: Running,
    listens: XdsListen,
    client: AggregatedDiscoveryServiceClient<Channel>,
    relay: Relay,
    drain: Drain,
    metrics: Metrics,
    _tasks: Tasks,
}

impl Stage {
    async fn new(streams: usize) -> Self {
        Self::at(streams, XdsListen::Tcp("127.0.0.1:0".parse().unwrap())).await
    }

    async fn at(streams: usize, local: XdsListen) -> Self {
        let control = Running::start("127.0.0.1:0");
        let channel = Endpoint::from_shared(format!("http://{}", control.address))
            .unwrap()
            .connect_lazy();
        let (drain, watch) = drain::channel();
        let metrics = Metrics::default();
        let connect: Connect = Box::new(move || channel.clone());
        let relay = Relay::new(NODE.to_owned(), streams, connect, metrics.clone(), watch);
        let tasks = Tasks::new();
        let listener = Listener::bind(&local).await.unwrap();
        let listens = listener.address().unwrap();
        let uri = match &listens {
            XdsListen::Tcp(address) => format!("http://{address}"),
            XdsListen::Unix(path) => format!("unix://{}", path.display()),
        };
        tasks.spawn("relay", listener.serve(relay.clone(), tasks.clone()));
        let channel = Endpoint::from_shared(uri).unwrap().connect_lazy();
        Self {
            control,
            listens,
            client: AggregatedDiscoveryServiceClient::new(channel),
            relay,
            drain,
            metrics,
            _tasks: tasks,
        }
    }

    /// Opens a stream of the state-of-the-world variant.
    async fn open(
        &mut self,
        first: DiscoveryRequest,
    ) -> Result<(mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>), Status> {
        let (requests, stream) = mpsc::channel(4);
        requests.send(first).await.unwrap();
        let call = self
            .client
            .stream_aggregated_resources(ReceiverStream::new(stream));
        let answered = tokio::time::timeout(PATIENCE, call).await.unwrap()?;
        Ok((requests, answered.into_inner()))
    }

    fn refused(&self, reason: &'static str) -> u64 {
        self.metrics.refused.get_or_create(&Reason { reason }).get()
    }
}

fn request(kind: &str, node: &str) -> DiscoveryRequest {
    let node = (!node.is_empty()).then(|| Node {
        id: node.to_owned(),
        ..Node::default()
    });
    DiscoveryRequest {
        type_url: kind.to_owned(),
        node,
        ..DiscoveryRequest::default()
    }
}

fn own(kind: &str) -> DiscoveryRequest {
    request(kind, &format!("grpc~{NODE}"))
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    tokio::time::timeout(PATIENCE, stream.message())
        .await
        .unwrap()
}

#[tokio::test]
async fn messages_pass_both_ways_and_a_half_close_ends_the_stream_in_order() {
    let mut stage = Stage::new(4).await;
    let (requests, mut answers) = stage.open(own("one")).await.unwrap();
    assert_eq!(next(&mut answers).await.unwrap().unwrap().nonce, "one");
    for kind in ["two", "three"] {
        requests.send(request(kind, "")).await.unwrap();
        assert_eq!(next(&mut answers).await.unwrap().unwrap().nonce, kind);
    }
    assert_eq!(stage.metrics.streams.get(), 1);
    drop(requests);
    assert!(next(&mut answers).await.unwrap().is_none());
    stage.control.ended.recv().await.unwrap();
}

#[tokio::test]
async fn the_incremental_variant_passes_too() {
    let mut stage = Stage::new(4).await;
    let first = DeltaDiscoveryRequest {
        node: own("").node,
        type_url: "delta".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let call = stage
        .client
        .delta_aggregated_resources(stream::iter([first]));
    let mut answers = call.await.unwrap().into_inner();
    assert_eq!(next(&mut answers).await.unwrap().unwrap().nonce, "delta");
    assert!(next(&mut answers).await.unwrap().is_none());
}

#[tokio::test]
async fn a_refusal_keeps_its_code_its_words_and_its_details() {
    let mut stage = Stage::new(4).await;
    let (_requests, mut answers) = stage.open(own("refuse")).await.unwrap();
    let status = next(&mut answers).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message(), status.details()),
        (Code::PermissionDenied, "not you", b"details".as_slice())
    );
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_stream_along() {
    let mut stage = Stage::new(1).await;
    let (requests, mut answers) = stage.open(own("one")).await.unwrap();
    next(&mut answers).await.unwrap();
    drop((requests, answers));
    tokio::time::timeout(PATIENCE, stage.control.ended.recv())
        .await
        .unwrap();
    // Its place is free again.
    while stage.metrics.streams.get() > 0 {
        tokio::task::yield_now().await;
    }
    stage.open(own("again")).await.unwrap();
}

#[tokio::test]
async fn only_streams_of_this_pods_node_pass() {
    let mut stage = Stage::new(4).await;
    for node in [
        String::new(),
        NODE.to_owned(),
        "grpc~10.1.2.3~web-2.shop~shop.svc.cluster.local".to_owned(),
        "grpc~10.9.9.9~web-1.shop~shop.svc.cluster.local".to_owned(),
        format!("grpc~{NODE}~more"),
    ] {
        let status = stage.open(request("one", &node)).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{node:?}");
    }
    assert_eq!(stage.refused("foreign_node"), 5);
    let mut many = own("one");
    if let Some(node) = &mut many.node {
        // Two bytes each, and some hundred once they are read.
        node.extensions = vec![Extension::default(); 70_000];
    }
    let status = stage.open(many).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert_eq!(stage.refused("bad_message"), 1);
    stage.open(own("one")).await.unwrap();
    let envoy = request("one", &format!("envoy~{NODE}"));
    stage.open(envoy).await.unwrap();
}

#[tokio::test]
async fn a_control_plane_that_is_gone_is_unavailable_and_one_that_is_back_is_found() {
    let mut stage = Stage::new(4).await;
    let (_requests, mut answers) = stage.open(own("one")).await.unwrap();
    next(&mut answers).await.unwrap();
    let address = stage.control.cut();
    // Nobody listens there now; a control plane elsewhere is none of ours.
    let status = next(&mut answers).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    stage.control = Running::start("127.0.0.1:0");
    let status = stage.open(own("two")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    stage.control = Running::start(&address.to_string());
    let (_requests, mut answers) = stage.open(own("three")).await.unwrap();
    assert_eq!(next(&mut answers).await.unwrap().unwrap().nonce, "three");
}

#[tokio::test]
async fn what_clients_do_wrong_is_told_a_few_times_and_counted_each_time() {
    let lines = Lines::default();
    let written = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || written.clone());
    // While there is but one, a thread without any decides for all whether a line is of interest.
    let _another = tracing::Dispatch::new(NoSubscriber::default());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let mut stage = Stage::new(1).await;
    stage.control.cut();
    stage.control = Running::start("127.0.0.1:0");
    for _ in 0..40 {
        stage.open(request("one", "nobody")).await.unwrap_err();
        let status = stage.open(own("one")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    assert_eq!(stage.refused("foreign_node"), 40);
    let place = stage.relay.0.places.clone().try_acquire_owned().unwrap();
    for _ in 0..40 {
        stage.open(own("one")).await.unwrap_err();
    }
    drop(place);
    assert_eq!(stage.refused("too_many_streams"), 40);
    for line in [
        "speaks for another node",
        "way to the control plane broke",
        "too many discovery streams open",
    ] {
        let told = lines.count(line);
        assert!((5..20).contains(&told), "{told} lines: {line}");
    }
}

/// Log lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn count(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock())
            .matches(text)
            .count()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_and_those_that_are_open_go_on() {
    let mut stage = Stage::new(2).await;
    let (requests, mut answers) = stage.open(own("one")).await.unwrap();
    let _second = stage.open(own("two")).await.unwrap();
    let status = stage.open(own("three")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(stage.refused("too_many_streams"), 1);
    next(&mut answers).await.unwrap();
    requests.send(request("still", "")).await.unwrap();
    assert_eq!(next(&mut answers).await.unwrap().unwrap().nonce, "still");
}

#[tokio::test]
async fn connections_that_have_to_wait_are_counted_and_served_once_one_has_ended() {
    let mut stage = Stage::new(1).await;
    let XdsListen::Tcp(address) = stage.listens.clone() else {
        panic!("it listens on loopback");
    };
    let mut idle = Vec::new();
    for _ in 0..stage.relay.connections() {
        idle.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    // The last of them is served, and nobody waits.
    let last = idle.last_mut().unwrap();
    last.read_exact(&mut [0; 9]).await.unwrap();
    assert_eq!(stage.metrics.waited.get(), 0);
    idle.push(tokio::net::TcpStream::connect(address).await.unwrap());
    while stage.metrics.waited.get() == 0 {
        tokio::task::yield_now().await;
    }
    let opened = stage.open(own("one"));
    let (opened, ()) = tokio::join!(opened, async { drop(idle.split_off(1)) });
    opened.unwrap();
    assert!(stage.metrics.waited.get() <= 2);
}

#[tokio::test]
async fn other_methods_are_not_relayed() {
    let stage = Stage::new(2).await;
    let request =
        http::Request::post("/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters")
            .body(http_body_util::Empty::<Bytes>::new())
            .unwrap();
    let answer = stage.relay.call(request, None).await;
    let status = Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn an_ending_agent_waits_for_its_streams_and_takes_no_more() {
    let mut stage = Stage::new(4).await;
    let (requests, mut answers) = stage.open(own("one")).await.unwrap();
    next(&mut answers).await.unwrap();
    stage.relay.stop();
    let status = stage.open(own("two")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    requests.send(request("still", "")).await.unwrap();
    assert_eq!(next(&mut answers).await.unwrap().unwrap().nonce, "still");
    drop((requests, answers));
    assert!(stage.drain.drain(PATIENCE).await);
}

#[tokio::test]
async fn a_socket_file_serves_too_and_one_that_nobody_serves_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xds.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut stage = Stage::at(4, XdsListen::Unix(path.clone())).await;
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o660);
    let (_requests, mut answers) = stage.open(own("one")).await.unwrap();
    assert_eq!(next(&mut answers).await.unwrap().unwrap().nonce, "one");
    // What is no socket is not ours to remove.
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(
        Listener::bind(&XdsListen::Unix(file.clone()))
            .await
            .is_err()
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_first_request_that_cannot_be_read_names_no_node() {
    for garbage in [b"\xff\xff\xff".as_slice(), b"\x12\x7f"] {
        let garbage = Bytes::copy_from_slice(garbage);
        for method in [Method::Full, Method::Delta] {
            assert!(codec::node_id(method, &garbage).is_err());
        }
    }
    let empty = codec::node_id(Method::Full, &Bytes::new());
    assert_eq!(empty.unwrap(), "");
}
