//! How long an endpoint change takes from the file to a hundred proxies.
//!
//! `cargo bench -p tulle-control --bench propagation`: one control plane over a directory of manifests, a hundred
//! discovery streams over mutual TLS, and an EndpointSlice that is rewritten again and again. Measured from before the
//! file is put in place until a proxy has the response in hand; a real sidecar adds its decoding.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::ClientConfig;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tulle_control::{Args, Control};
use tulle_identity::{Identity, PrivateKey, SpiffeId, Svid, TrustBundle};
use tulle_runtime::names::{CONTROL_DNS_NAME, TOKEN_AUDIENCE};
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::config::core::v3::Node;
use tulle_xds_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use tulle_xds_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_xds_proto::istio::auth::IstioCertificateRequest;
use tulle_xds_proto::istio::auth::istio_certificate_service_client::IstioCertificateServiceClient;

const PROXIES: u8 = 100;
const ROUNDS: u32 = 100;
const CLUSTER: &str = "outbound|80||api.shop.svc.cluster.local";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (source, key) = (
        dir.path().join("source"),
        new_key(&dir.path().join("jwks.json"))?,
    );
    std::fs::create_dir(&source)?;
    manifests(&source)?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let control = Control::start(Args {
        source: vec![source.clone()],
        state_dir: dir.path().join("state"),
        bundle_dir: dir.path().join("bundle"),
        jwks: dir.path().join("jwks.json"),
        token_issuer: ISSUER.to_owned(),
        trust_domain: "cluster.local".parse()?,
        cluster_domain: "cluster.local".to_owned(),
        xds_address: any,
        admin_address: any,
        leaf_ttl: Duration::from_secs(24 * 3600),
        root_propagation: Duration::from_secs(60),
        log: "warn".to_owned(),
    })
    .await?;
    let address = control.xds_address();
    let identity = identity(address, &dir.path().join("bundle/root.pem"), &token(&key)?).await?;
    let (seen, mut arrivals) = mpsc::channel(usize::from(PROXIES));
    let mut proxies = tokio::task::JoinSet::new();
    for i in 0..PROXIES {
        proxies.spawn(proxy(
            channel(address, identity.current().client_by_name(b"h2")).await?,
            i,
            seen.clone(),
        ));
    }
    let mut latencies = Vec::new();
    for round in 0..=ROUNDS {
        let began = Instant::now();
        if round > 0 {
            put(&source, "slice.json", &slice(round))?;
        }
        for _ in 0..PROXIES {
            let arrived = tokio::time::timeout(Duration::from_secs(10), arrivals.recv()).await;
            let arrived: Instant = arrived
                .context("a proxy heard nothing for 10 s")?
                .context("no proxy is left")?;
            // The first round is the answer to the subscription.
            if round > 0 {
                latencies.push(arrived.duration_since(began));
            }
        }
    }
    latencies.sort();
    let at = |share: f64| {
        latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0
    };
    println!("{PROXIES} proxies, {ROUNDS} endpoint changes, milliseconds from file to proxy:");
    println!(
        "p50 {:.2}  p90 {:.2}  p99 {:.2}  max {:.2}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    proxies.abort_all();
    control.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

/// A proxy that subscribes to one Service's endpoints and says when they come.
async fn proxy(channel: Channel, i: u8, seen: mpsc::Sender<Instant>) -> anyhow::Result<()> {
    let (requests, stream) = mpsc::channel(4);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let type_url = ResourceType::Endpoints.type_url().to_owned();
    let first = DeltaDiscoveryRequest {
        node: Some(Node {
            id: format!("sidecar~10.0.0.{i}~web-{i}.shop~shop.svc.cluster.local"),
            ..Node::default()
        }),
        type_url: type_url.clone(),
        resource_names_subscribe: vec![CLUSTER.to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await?;
    let mut responses = client
        .delta_aggregated_resources(ReceiverStream::new(stream))
        .await?
        .into_inner();
    while let Some(response) = responses.message().await? {
        seen.send(Instant::now()).await?;
        let (type_url, response_nonce) = (type_url.clone(), response.nonce);
        requests
            .send(DeltaDiscoveryRequest {
                type_url,
                response_nonce,
                ..DeltaDiscoveryRequest::default()
            })
            .await?;
    }
    Ok(())
}

fn manifests(dir: &Path) -> anyhow::Result<()> {
    let meta = |name: &str| json!({ "name": name, "namespace": "shop" });
    put(
        dir,
        "namespace.json",
        &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }),
    )?;
    for i in 0..PROXIES {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta(&format!("web-{i}")),
            "spec": { "serviceAccountName": "web", "containers": [{ "name": "app", "image": "app" }] },
            "status": { "podIP": format!("10.0.0.{i}"), "podIPs": [{ "ip": format!("10.0.0.{i}") }] },
        });
        put(dir, &format!("pod-{i}.json"), &pod)?;
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": meta("api"),
        "spec": { "clusterIP": "10.1.0.1", "clusterIPs": ["10.1.0.1"], "ports": [{ "name": "http", "port": 80 }] },
    });
    put(dir, "service.json", &service)?;
    put(dir, "slice.json", &slice(0))
}

/// An EndpointSlice that differs from round to round.
fn slice(round: u32) -> serde_json::Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "api-1", "namespace": "shop", "labels": { "kubernetes.io/service-name": "api" } },
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [format!("10.2.0.{}", round % 250 + 1)], "conditions": { "ready": true } }],
    })
}

/// Puts a file in place as a whole.
fn put(dir: &Path, name: &str, content: &serde_json::Value) -> anyhow::Result<()> {
    let temporary = dir.join(format!(".{name}"));
    std::fs::write(&temporary, content.to_string())?;
    Ok(std::fs::rename(temporary, dir.join(name))?)
}

fn new_key(jwks: &Path) -> anyhow::Result<EncodingKey> {
    let key = EncodingKey::from_ec_der(&rcgen::KeyPair::generate()?.serialize_der());
    let mut public = Jwk::from_encoding_key(&key, Algorithm::ES256)?;
    public.common.key_id = Some("k1".to_owned());
    std::fs::write(jwks, json!({ "keys": [public] }).to_string())?;
    Ok(key)
}

fn token(key: &EncodingKey) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = json!({
        "iss": ISSUER, "aud": [TOKEN_AUDIENCE], "sub": "system:serviceaccount:shop:web", "nbf": now, "exp": now + 3600,
        "kubernetes.io": {
            "namespace": "shop",
            "serviceaccount": { "name": "web", "uid": "sa" },
            "pod": { "name": "web-0", "uid": "pod" },
        },
    });
    let header = Header {
        kid: Some("k1".to_owned()),
        ..Header::new(Algorithm::ES256)
    };
    Ok(jsonwebtoken::encode(&header, &claims, key)?)
}

/// The identity that all proxies share: they run under one service account.
async fn identity(address: SocketAddr, bundle: &Path, token: &str) -> anyhow::Result<Identity> {
    let bundle = loop {
        match TrustBundle::load(bundle) {
            Ok(bundle) => break bundle,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(bundle.roots().iter().cloned());
    let builder = ClientConfig::builder_with_provider(tulle_identity::tls::provider());
    let mut config = builder
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let key = PrivateKey::generate()?;
    let csr = key.csr(&SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web")?)?;
    let mut request = tonic::Request::new(IstioCertificateRequest {
        csr,
        validity_duration: 0,
    });
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {token}").parse()?);
    let mut client = IstioCertificateServiceClient::new(channel(address, Arc::new(config)).await?);
    let chain = client
        .create_certificate(request)
        .await?
        .into_inner()
        .cert_chain
        .concat();
    let svid = Svid::from_pem(&format!("{}{chain}", *key.to_pem()))?;
    Ok(Identity::new(svid, bundle))
}

async fn channel(address: SocketAddr, config: Arc<ClientConfig>) -> anyhow::Result<Channel> {
    // The scheme is http because the connector does the TLS.
    let endpoint = Endpoint::from_shared(format!("http://{CONTROL_DNS_NAME}"))?;
    Ok(endpoint
        .connect_with_connector(Connector { address, config })
        .await?)
}

#[derive(Clone)]
struct Connector {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address, config } = self.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            let name = CONTROL_DNS_NAME.try_into().map_err(std::io::Error::other)?;
            Ok(TokioIo::new(
                TlsConnector::from(config).connect(name, stream).await?,
            ))
        })
    }
}
