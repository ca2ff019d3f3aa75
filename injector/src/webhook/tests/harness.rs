//! A webhook in this process, and clients of it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::registry::Registry;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tulle_identity::{
    CsrPolicy, Identity, IssueRequest, Issuer, Root, SpiffeId, Svid, TrustDomain,
};
use tulle_runtime::drain::{self, Drain};
use tulle_runtime::names::INJECTOR_DNS_NAME;
use tulle_runtime::{metrics, tasks::Tasks};

use super::super::{Bounds, Metrics, Webhook, serve};
use crate::events::{self, Teller};
use crate::hand_written::api_server;
use crate::namespaces::{self, Namespaces};
use crate::{InjectorConfig, Reviewer};

/// How long anything may take on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) const BOUNDS: Bounds = Bounds {
    connections: 64,
    requests: 96,
    bytes: 16 << 20,
    reviews: 2,
    turn: PATIENCE,
    receive: PATIENCE,
};

pub(super) struct Harness {
    pub(super) address: SocketAddr,
    pub(super) identity: Identity,
    pub(super) issuer: Issuer,
    pub(super) namespaces: Arc<Namespaces>,
    registry: Registry,
    drain: Option<Drain>,
    _tasks: Tasks,
}

fn domain() -> TrustDomain {
    TrustDomain::new("mesh.test").expect("a domain")
}

pub(super) fn issuer() -> Issuer {
    let root = Root::generate(&domain(), Duration::from_secs(7 * 24 * 3600)).expect("a root");
    Issuer::new(root, [], CsrPolicy::default()).expect("an issuer")
}

/// As the CA issues it to the injector.
pub(super) fn svid(issuer: &Issuer) -> Svid {
    let id = SpiffeId::new(&domain(), "tulle-system", "tulle-injector").expect("an id");
    let request = IssueRequest {
        dns_names: &[INJECTOR_DNS_NAME],
        ..IssueRequest::new(&id)
    };
    issuer.issue_svid(&request).expect("an SVID")
}

impl Harness {
    pub(super) async fn start(bounds: Bounds) -> Self {
        Self::asking(bounds, None).await
    }

    /// One that asks an API server for namespaces.
    pub(super) async fn asking(bounds: Bounds, client: Option<kube::Client>) -> Self {
        let issuer = issuer();
        let identity = Identity::new(svid(&issuer), issuer.bundle().clone());
        let mut registry = Registry::with_prefix("tulle");
        let nobody = || api_server(|_| std::future::pending());
        let events_client = client.clone().unwrap_or_else(nobody);
        let reviews = Metrics::register(&mut registry);
        let namespaces = Namespaces::new(client, namespaces::Metrics::register(&mut registry));
        let reviewer = Reviewer {
            config: InjectorConfig::default(),
        };
        let events = events::Metrics::register(&mut registry);
        let (teller, telling) = Teller::new(
            events_client,
            reviewer.config.clone(),
            namespaces.clone(),
            events,
        );
        let webhook = Webhook::new(reviewer, namespaces.clone(), teller, reviews, bounds);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (drain, watch) = drain::channel();
        let tasks = Tasks::new();
        let serving = serve(listener, webhook, identity.clone(), watch, tasks.clone());
        tasks.spawn("webhook", serving);
        tasks.spawn_until_cancelled("events", telling);
        Self {
            address,
            identity,
            issuer,
            namespaces,
            registry,
            drain: Some(drain),
            _tasks: tasks,
        }
    }

    /// The value of a metric; 0 if it has none.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let text = metrics::encode(&self.registry);
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0.0, |value| value.trim().parse().expect("a number"))
    }

    /// What a client that trusts this mesh goes by, as the API server does with `caBundle`.
    pub(super) fn trusting(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        self.identity.current().client_by_name(alpn)
    }

    pub(super) async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }

    pub(super) async fn tls(
        &self,
        config: Arc<ClientConfig>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(INJECTOR_DNS_NAME).expect("a name");
        TlsConnector::from(config)
            .connect(name, self.tcp().await)
            .await
    }

    pub(super) async fn h2<B>(&self) -> http2::SendRequest<B>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Unpin
            + Send
            + 'static,
    {
        self.h2_by(http2::Builder::new(TokioExecutor::new())).await
    }

    /// A client of HTTP/2 with such settings.
    pub(super) async fn h2_by<B>(
        &self,
        builder: http2::Builder<TokioExecutor>,
    ) -> http2::SendRequest<B>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Unpin
            + Send
            + 'static,
    {
        let tls = self.tls(self.trusting(b"h2")).await.expect("a handshake");
        let shaken = builder.handshake(TokioIo::new(tls)).await;
        let (sender, connection) = shaken.expect("HTTP/2");
        self._tasks.spawn_connection("client", async move {
            let _ = connection.await;
        });
        sender
    }

    pub(super) async fn h1<B>(&self) -> http1::SendRequest<B>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + 'static,
    {
        let tls = self
            .tls(self.trusting(b"http/1.1"))
            .await
            .expect("a handshake");
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.expect("HTTP/1");
        self._tasks.spawn_connection("client", async move {
            let _ = connection.await;
        });
        sender
    }

    /// One request on a connection of its own.
    pub(super) async fn ask(&self, request: Request<Full<Bytes>>) -> (StatusCode, Value) {
        let mut sender = self.h2().await;
        read(sender.send_request(request).await.expect("an answer")).await
    }

    pub(super) async fn drain(&mut self, deadline: Duration) -> bool {
        self.drain.take().expect("once").drain(deadline).await
    }
}

pub(super) async fn read(answer: Response<Incoming>) -> (StatusCode, Value) {
    let status = answer.status();
    let body = answer.into_body().collect().await.expect("a body");
    let body = serde_json::from_slice(&body.to_bytes()).expect("JSON");
    (status, body)
}

pub(super) fn request<B>(body: B) -> Request<B> {
    let uri = format!("https://{INJECTOR_DNS_NAME}/inject?timeout=10s");
    let request = Request::builder().method(Method::POST).uri(uri);
    let request = request.header("content-type", "application/json");
    request.body(body).expect("a request")
}

/// A review of a pod that asks for a sidecar and names its revision, so that its namespace has no say.
pub(super) fn review(uid: &str) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "namespace": "shop",
            "operation": "CREATE",
            "object": {
                "metadata": {
                    "name": "web",
                    "labels": { "tulle.dev/inject": "enabled", "tulle.dev/rev": "default" },
                },
                "spec": { "containers": [{ "name": "web" }] },
            },
        },
    })
}

pub(super) fn full(value: &Value) -> Full<Bytes> {
    Full::new(Bytes::from(value.to_string()))
}

/// A body that comes in parts: it is whole when the sender is dropped.
pub(super) fn parts() -> (
    mpsc::Sender<Bytes>,
    impl Body<Data = Bytes, Error = Infallible> + Unpin + Send,
) {
    let (sender, receiver) = mpsc::channel(8);
    let frames = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Bytes>| {
        let data = receiver.recv().await?;
        Some((Ok(Frame::data(data)), receiver))
    });
    (sender, StreamBody::new(Box::pin(frames)))
}
