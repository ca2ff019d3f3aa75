//! What an injector needs around it, written by hand: an API server with one namespace, and settings for both.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use clap::Parser;
use http::{Request, Response};
use http_body_util::Full;
use kube::Client;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tower_service::Service;
use tulle_identity::TrustBundle;
use tulle_identity::tls::provider;
use tulle_injector::Args;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    args: Args,
}

/// Settings of an injector with token and bundle in that folder, at free ports.
pub(crate) fn args(ca: SocketAddr, folder: &Path) -> Args {
    let [token, bundle] = ["token", "root.pem"].map(|name| folder.join(name));
    let words = [
        "injector".to_owned(),
        "--webhook-address=127.0.0.1:0".to_owned(),
        "--admin-address=127.0.0.1:0".to_owned(),
        format!("--control-address={ca}"),
        format!("--token-file={}", token.display()),
        format!("--bundle-file={}", bundle.display()),
    ];
    Program::try_parse_from(words).expect("good").args
}

/// A client of an API server that has the namespace `shop`, which asks for injection, and nothing else.
pub(crate) fn client() -> Client {
    Client::new(ApiServer, "default")
}

#[derive(Clone)]
struct ApiServer;

type Answer = Response<Full<Bytes>>;

impl Service<Request<kube::client::Body>> for ApiServer {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let uri = request.uri().clone();
        Box::pin(async move {
            if uri.query().is_some_and(|query| query.contains("watch=")) {
                // Nothing ever changes.
                std::future::pending::<()>().await;
            }
            let meta =
                json!({ "name": "shop", "uid": "u", "labels": { "tulle.dev/inject": "enabled" } });
            let items = match uri.path() {
                "/api/v1/namespaces" => vec![json!({ "metadata": meta })],
                _ => Vec::new(),
            };
            let list = json!({
                "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "1" }, "items": items,
            });
            Ok(Response::new(Full::new(Bytes::from(list.to_string()))))
        })
    }
}

/// What trusts that mesh, as the API server does with `caBundle`.
pub(crate) fn trusting(bundle: &TrustBundle, alpn: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(bundle.roots().iter().cloned());
    let config =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.expect("TLS 1.3").with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}
