//! A whole injector in this process: its certificate from a CA, its namespaces from an API server, reviews over HTTPS.

mod ca;
mod stand_in;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tulle_injector::Injector;
use tulle_runtime::names::INJECTOR_DNS_NAME;
use tulle_runtime::tasks::Tasks;

use ca::Ca;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const TOKEN: &str = "the-token";

struct Rig {
    ca: Ca,
    injector: Injector,
    folder: TempDir,
    tasks: Tasks,
}

impl Rig {
    /// An injector whose token and bundle are not there yet.
    async fn start() -> Self {
        let (ca, tasks) = (Ca::new(TOKEN), Tasks::new());
        let folder = tempfile::tempdir().expect("a folder");
        let args = stand_in::args(ca.serve(&tasks).await, folder.path());
        let started = Injector::start(args, stand_in::client()).await;
        Self {
            ca,
            injector: started.expect("it starts"),
            folder,
            tasks,
        }
    }

    fn mount(&self) {
        let write = |name, text: &str| std::fs::write(self.folder.path().join(name), text);
        write("token", TOKEN).expect("written");
        write("root.pem", &self.ca.bundle().to_pem()).expect("written");
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let stream = TcpStream::connect(self.injector.admin_address()).await;
        let io = TokioIo::new(stream.expect("it listens"));
        let (mut sender, connection) = http1::handshake(io).await.expect("HTTP");
        self.tasks.spawn_connection("client", async move {
            drop(connection.await);
        });
        let request = Request::get(path).header("host", "127.0.0.1");
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        let status = answer.status();
        let body = answer
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn until(&self, path: &str, wanted: impl Fn(StatusCode, &str) -> bool) {
        let found = async {
            loop {
                let (status, body) = self.get(path).await;
                if wanted(status, &body) {
                    return;
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("{path} does not come to that"));
    }

    async fn review(&self, address: SocketAddr) -> Value {
        let stream = TcpStream::connect(address).await.expect("it listens");
        let name = ServerName::try_from(INJECTOR_DNS_NAME).expect("a name");
        let tls = TlsConnector::from(stand_in::trusting(self.ca.bundle(), b"h2"));
        let tls = tls.connect(name, stream).await.expect("a handshake");
        let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await;
        let (mut sender, connection) = shaken.expect("HTTP/2");
        self.tasks.spawn_connection("client", async move {
            drop(connection.await);
        });
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "u",
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "namespace": "shop",
                "operation": "CREATE",
                "object": { "metadata": { "name": "web" }, "spec": { "containers": [{ "name": "web" }] } },
            },
        });
        let request = Request::post(format!("https://{INJECTOR_DNS_NAME}/inject"));
        let request = request.header("content-type", "application/json");
        let request = request
            .body(Full::<Bytes>::from(review.to_string()))
            .expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        let body = answer
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        serde_json::from_slice(&body).expect("JSON")
    }
}

#[tokio::test]
async fn it_is_ready_when_the_ca_has_given_it_a_certificate_and_serves_reviews_by_it() {
    let rig = Rig::start().await;
    let (status, body) = rig.get("/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body.trim(), "no certificate from the CA yet");
    rig.mount();
    rig.until("/ready", |status, _| status == StatusCode::OK)
        .await;
    rig.until("/metrics", |_, text| {
        text.contains("\ntulle_injector_namespaces 1\n")
    })
    .await;
    let answer = rig.review(rig.injector.webhook_address()).await;
    assert_eq!(answer["response"]["allowed"], true, "{answer}");
    assert!(answer["response"]["patch"].is_string());
    let (_, metrics) = rig.get("/metrics").await;
    let counted = r#"tulle_injector_reviews_total{verdict="injected",reason="namespace_label"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
    let expiry = "\ntulle_certificate_expiration_timestamp_seconds 1";
    assert!(metrics.contains(expiry), "{metrics}");
}

#[tokio::test]
async fn asked_to_end_it_is_not_ready_and_takes_no_more_after_a_while() {
    let rig = Rig::start().await;
    rig.mount();
    rig.until("/ready", |status, _| status == StatusCode::OK)
        .await;
    let address = rig.injector.webhook_address();
    let ending = rig.injector.shutdown(Duration::ZERO, PATIENCE);
    tokio::time::timeout(PATIENCE, ending)
        .await
        .expect("in time");
    assert!(TcpStream::connect(address).await.is_err());
}
