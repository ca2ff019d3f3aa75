//! A scripted ADS server: a real tonic server on loopback whose side of every stream is played by the test.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{FutureExt as _, Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use tulle_xds_proto::google::protobuf::{self, Any};
use tulle_xds_proto::prost::{Message, Name};
use tulle_xds_proto::{ResourceType, pack};

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Longer than anything that is waited for takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A way to a server in memory, which goes by the runtime's clock alone: nothing of it is the kernel's.
#[derive(Clone)]
pub(in crate::xds) struct Memory {
    server: mpsc::UnboundedSender<std::io::Result<DuplexStream>>,
    /// Connections that were attempted.
    pub(in crate::xds) attempts: Arc<AtomicUsize>,
}

impl tower_service::Service<Uri> for Memory {
    type Response = TokioIo<DuplexStream>;
    type Error = std::io::Error;
    type Future = std::future::Ready<std::io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let sent = self.server.send(Ok(theirs));
        std::future::ready(match sent {
            Ok(()) => Ok(TokioIo::new(ours)),
            Err(_) => Err(std::io::ErrorKind::ConnectionRefused.into()),
        })
    }
}

/// A server that is not there, as a channel, and the number of attempts to reach it.
pub(in crate::xds) fn nobody() -> (Channel, Arc<AtomicUsize>) {
    let memory = Memory {
        server: mpsc::unbounded_channel().0,
        attempts: Arc::default(),
    };
    let attempts = memory.attempts.clone();
    (lazy(memory), attempts)
}

fn lazy(memory: Memory) -> Channel {
    Endpoint::from_static("http://memory").connect_with_connector_lazy(memory)
}

/// The server; each stream that a client opens is one [`Session`].
pub(in crate::xds) struct ScriptedServer {
    sessions: mpsc::Receiver<Session>,
    pub(in crate::xds) channel: Channel,
}

/// The server's side of one stream.
pub(in crate::xds) struct Session {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    nonce: u32,
}

struct Service(mpsc::Sender<Session>);

impl ScriptedServer {
    pub(in crate::xds) async fn start(tasks: &Tasks) -> Self {
        let (sender, sessions) = mpsc::channel(8);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let incoming = stream::unfold(listener, |listener| async move {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        let server = Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Service(sender)))
            .serve_with_incoming(incoming);
        tasks.spawn("scripted-server", async move {
            server.await.expect("it serves");
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URI");
        Self {
            sessions,
            channel: endpoint.connect_lazy(),
        }
    }

    /// As [`ScriptedServer::start`], in memory: for tests that move the clock.
    pub(in crate::xds) fn in_memory(tasks: &Tasks) -> Self {
        let (sender, sessions) = mpsc::channel(8);
        let (server, mut incoming) = mpsc::unbounded_channel();
        let incoming = stream::poll_fn(move |context| incoming.poll_recv(context));
        let serving = Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Service(sender)))
            .serve_with_incoming(incoming);
        tasks.spawn("scripted-server", async move {
            serving.await.expect("it serves");
        });
        let attempts = Arc::default();
        Self {
            sessions,
            channel: lazy(Memory { server, attempts }),
        }
    }

    /// The next stream that a client opens.
    pub(in crate::xds) async fn session(&mut self) -> Session {
        self.session_within(2 * PATIENCE).await
    }

    /// As [`ScriptedServer::session`], with more patience.
    pub(in crate::xds) async fn session_within(&mut self, patience: Duration) -> Session {
        let session = tokio::time::timeout(patience, self.sessions.recv()).await;
        session
            .expect("a client connects in time")
            .expect("the server runs")
    }
}

impl Session {
    /// The next request of the client.
    pub(in crate::xds) async fn request(&mut self) -> DeltaDiscoveryRequest {
        let request = tokio::time::timeout(PATIENCE, self.requests.message()).await;
        request
            .expect("a request comes in time")
            .expect("the stream is whole")
            .expect("and open")
    }

    /// The next request that is not the bare acknowledgement of a response; a NACK fails the test.
    pub(in crate::xds) async fn subscription(&mut self) -> DeltaDiscoveryRequest {
        loop {
            let request = self.request().await;
            assert_eq!(request.error_detail, None, "a NACK where none is due");
            let silent = request.resource_names_subscribe.is_empty()
                && request.resource_names_unsubscribe.is_empty();
            if !silent {
                return request;
            }
        }
    }

    /// Waits until these names of a type are subscribed to, in whatever requests.
    pub(in crate::xds) async fn subscribed(&mut self, kind: ResourceType, names: &[&str]) {
        let request = self.subscription().await;
        assert_eq!(request.type_url, kind.type_url());
        assert_eq!(request.resource_names_subscribe, names);
    }

    /// The acknowledgement of the last response: `None`, or the reason of the NACK.
    pub(in crate::xds) async fn acknowledged(&mut self) -> Option<String> {
        let nonce = self.nonce.to_string();
        loop {
            let request = self.request().await;
            if request.response_nonce == nonce {
                return request.error_detail.map(|status| status.message);
            }
        }
    }

    /// Ends the stream.
    pub(in crate::xds) async fn fail(&self, status: Status) {
        self.responses
            .send(Err(status))
            .await
            .expect("the client listens");
    }

    /// Reads what the client has said so far.
    pub(in crate::xds) fn drain(&mut self) {
        while let Some(Some(Ok(_))) = self.requests.next().now_or_never() {}
    }

    pub(in crate::xds) async fn send<M: Message + Name>(
        &mut self,
        kind: ResourceType,
        resources: &[(&str, &M)],
    ) {
        let packed = resources
            .iter()
            .map(|(name, message)| (*name, pack(*message)))
            .collect();
        self.send_any(kind, packed, &[]).await;
    }

    pub(in crate::xds) async fn remove(&mut self, kind: ResourceType, names: &[&str]) {
        self.send_any(kind, Vec::new(), names).await;
    }

    /// A resource that lives so many seconds, or only the word that it does.
    pub(in crate::xds) async fn live(
        &mut self,
        kind: ResourceType,
        name: &str,
        resource: Option<Any>,
        seconds: u64,
    ) {
        self.live_for(kind, name, resource, Duration::from_secs(seconds))
            .await;
    }

    /// The same, for any time.
    pub(in crate::xds) async fn live_for(
        &mut self,
        kind: ResourceType,
        name: &str,
        resource: Option<Any>,
        life: Duration,
    ) {
        self.nonce += 1;
        let ttl = protobuf::Duration {
            seconds: i64::try_from(life.as_secs()).expect("not so long"),
            nanos: i32::try_from(life.subsec_nanos()).expect("less than a second"),
        };
        let resource = Resource {
            name: name.to_owned(),
            version: "lives".to_owned(),
            ttl: (!life.is_zero()).then_some(ttl),
            resource,
            ..Resource::default()
        };
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            nonce: self.nonce.to_string(),
            resources: vec![resource],
            ..DeltaDiscoveryResponse::default()
        };
        let sent = self.responses.send(Ok(response)).await;
        sent.expect("the client listens");
    }

    pub(in crate::xds) async fn send_any(
        &mut self,
        kind: ResourceType,
        resources: Vec<(&str, Any)>,
        removed: &[&str],
    ) {
        self.nonce += 1;
        let resource = |(name, any): (&str, Any)| Resource {
            name: name.to_owned(),
            version: format!("v{}", self.nonce),
            resource: Some(any),
            ..Resource::default()
        };
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            nonce: self.nonce.to_string(),
            resources: resources.into_iter().map(resource).collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.responses
            .send(Ok(response))
            .await
            .expect("the client listens");
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("the sidecar speaks delta"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, mut sent) = mpsc::channel(8);
        let session = Session {
            requests: request.into_inner(),
            responses,
            nonce: 0,
        };
        self.0.send(session).await.expect("the test listens");
        let responses = stream::poll_fn(move |context| sent.poll_recv(context));
        Ok(Response::new(responses.boxed()))
    }
}
