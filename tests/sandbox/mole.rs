//! A peer of the mesh that the test plays itself: it proves to be whom the test says, in the network of a pod that counts
//! as meshed but has no sidecar, and tells how it was called.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tulle_identity::{ClientAuth, Identity};
use tulle_runtime::names::{alpn, labels};
use tulle_tests::{App, Arena, app};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::place::Place;

/// The port that it is called on.
pub(crate) const PORT: u16 = 8080;

/// The pod that it lives in, and its Service.
pub(crate) fn burrow(name: &str) -> (App, String) {
    let pod = app(name)
        .label(labels::INJECT, "disabled")
        .label(labels::PROXIED, "true");
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  \
         ports: [{{name: http, port: {PORT}, targetPort: {PORT}}}]"
    );
    (pod, service)
}

/// The peer. It answers every request, for as long as it lives.
pub(crate) struct Mole {
    identity: Arc<Mutex<Identity>>,
    seen: Arc<Seen>,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: Mutex<Vec<Call>>,
}

/// A request that it was sent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Number of the connection that it came over.
    pub(crate) connection: usize,
    /// Serial number of its client's certificate.
    pub(crate) serial: String,
}

impl Mole {
    /// In the pod of an app.
    pub(crate) fn start(arena: &Arena<'_>, app: &str, identity: Identity) -> anyhow::Result<Self> {
        let listener = Place::of(arena, app)?.listen(PORT)?;
        let identity = Arc::new(Mutex::new(identity));
        let seen = Arc::<Seen>::default();
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, identity.clone(), seen.clone()));
        Ok(Self {
            identity,
            seen,
            _serving: serving,
        })
    }

    /// Proves to be somebody else from its next connection on.
    pub(crate) fn becomes(&self, identity: Identity) {
        *self.identity.lock() = identity;
    }

    /// Requests so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.seen.requests.lock().clone()
    }
}

async fn accept(listener: TcpListener, identity: Arc<Mutex<Identity>>, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let identity = identity.lock().current();
        let config = identity.server(ClientAuth::Required, &[alpn::H2, alpn::HTTP1]);
        connections.spawn(serve(tcp, TlsAcceptor::from(config), seen.clone()));
    }
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, seen: Arc<Seen>) {
    let Ok(tls) = acceptor.accept(tcp).await else {
        return;
    };
    let state = tls.get_ref().1;
    let two = state.alpn_protocol() == Some(alpn::H2);
    let serial = state
        .peer_certificates()
        .and_then(|chain| serial(chain.first()?).ok());
    let call = Call {
        connection: seen.connections.fetch_add(1, Ordering::Relaxed),
        serial: serial.unwrap_or_default(),
    };
    let service = service_fn(|_: Request<Incoming>| {
        seen.requests.lock().push(call.clone());
        let body = format!("{{\"connection\":{}}}", call.connection);
        async { Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(body)))) }
    });
    let io = TokioIo::new(tls);
    // Its client leaves as it likes.
    if two {
        let _ = http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
    } else {
        let _ = http1::Builder::new().serve_connection(io, service).await;
    }
}

/// The serial number of a certificate, in hexadecimal digits.
fn serial(certificate: &[u8]) -> anyhow::Result<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).context("no certificate")?;
    Ok(hex(parsed.raw_serial()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
