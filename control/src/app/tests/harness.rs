//! A control plane for tests, and clients of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};
use tulle_identity::{
    CsrPolicy, Identity, IssueRequest, Issuer, PrivateKey, Root, SpiffeId, Svid, TrustBundle,
};
use tulle_runtime::names::CONTROL_DNS_NAME;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::config::core::v3::Node;
use tulle_xds_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use tulle_xds_proto::google::rpc;
use tulle_xds_proto::istio::auth::IstioCertificateRequest;
use tulle_xds_proto::istio::auth::istio_certificate_service_client::IstioCertificateServiceClient;

use crate::app::{Args, Control, LimitArgs, serve};
use crate::ca::token_tests;
use crate::discovery::Limits;
use crate::source::SourceReport;
use crate::store::pod::Workload;
use crate::store::{
    Event, Kind, Labels, MeshSettings, Object, ObjectKey, ObjectRef, Pod, Store, StoreWriter,
};
use tulle_runtime::tasks::Tasks;

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(20);

/// A running control plane whose world the test writes.
pub(super) struct Plane {
    pub(super) control: Control,
    pub(super) writer: StoreWriter,
    pub(super) tokens: token_tests::Issuer,
    args: Args,
    dir: TempDir,
}

/// Limits of a test: nobody waits long for what does not come.
pub(super) fn limits() -> Limits {
    Limits {
        pod_wait: Duration::from_millis(50),
        ..Limits::default()
    }
}

impl Plane {
    pub(super) async fn start() -> Self {
        Self::start_with(limits(), |_| {}).await
    }

    pub(super) async fn start_with(limits: Limits, change: impl FnOnce(&mut Args)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let tokens = token_tests::Issuer::new();
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let mut args = Args {
            kubernetes: false,
            source: Vec::new(),
            state_dir: Some(dir.path().join("state")),
            bundle_dir: Some(dir.path().join("bundle")),
            jwks: Some(tokens.file()),
            ca_issuer_secret: None,
            token_issuer: token_tests::ISSUER.to_owned(),
            trust_domain: "cluster.local".parse().expect("a trust domain"),
            cluster_domain: "cluster.local".to_owned(),
            xds_address: any,
            admin_address: any,
            leaf_ttl: Duration::from_secs(3600),
            root_propagation: Duration::from_secs(60),
            log: "info".to_owned(),
            limits: LimitArgs::default(),
        };
        change(&mut args);
        let (store, mut writer) = Store::new(MeshSettings::default());
        writer.set_synced();
        let report = SourceReport::default();
        let control = serve(&args, &store, report, limits, Tasks::new(), None)
            .await
            .expect("it starts");
        Self {
            control,
            writer,
            tokens,
            args,
            dir,
        }
    }

    /// Settings of another control plane over the same directories.
    pub(super) fn args(&self) -> Args {
        self.args.clone()
    }

    /// Makes a pod.
    pub(super) fn pod(&mut self, namespace: &str, name: &str, account: &str, ip: [u8; 4]) {
        self.writer.apply(vec![Event::Apply(Object::Pod(pod(
            namespace, name, account, ip,
        )))]);
    }

    /// Removes a pod.
    pub(super) fn remove_pod(&mut self, namespace: &str, name: &str) {
        let key = ObjectKey::new(namespace, name);
        self.writer.apply(vec![Event::Delete(ObjectRef {
            kind: Kind::Pod,
            key,
        })]);
    }

    /// The bundle that workloads mount.
    pub(super) async fn bundle(&self) -> TrustBundle {
        let path = self.dir.path().join("bundle/root.pem");
        eventually(|| TrustBundle::load(&path).ok()).await
    }

    /// Where everything of this control plane lies.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// An SVID of the mesh that nobody asked the CA for.
    pub(super) fn svid(&self, namespace: &str, account: &str) -> Svid {
        self.svid_for(namespace, account, Duration::from_secs(3600))
    }

    pub(super) fn svid_for(&self, namespace: &str, account: &str, ttl: Duration) -> Svid {
        let root = stolen_root(&self.state_dir());
        let id = SpiffeId::new(root.trust_domain(), namespace, account).expect("a good id");
        let issuer = Issuer::new(root, [], CsrPolicy::default()).expect("one root");
        issuer
            .issue_svid(&IssueRequest {
                ttl: Some(ttl),
                ..IssueRequest::new(&id)
            })
            .expect("within the policy")
    }

    /// A connection that shows this SVID, or none.
    pub(super) async fn channel(
        &self,
        svid: Option<Svid>,
    ) -> Result<Channel, tonic::transport::Error> {
        self.channel_to(self.control.xds_address(), svid).await
    }

    /// The same to another control plane with the same root.
    pub(super) async fn channel_to(
        &self,
        address: SocketAddr,
        svid: Option<Svid>,
    ) -> Result<Channel, tonic::transport::Error> {
        self.channel_from(None, address, svid).await
    }

    /// The same from an address that is the test's choice.
    pub(super) async fn channel_from(
        &self,
        from: Option<IpAddr>,
        address: SocketAddr,
        svid: Option<Svid>,
    ) -> Result<Channel, tonic::transport::Error> {
        let bundle = self.bundle().await;
        let config = match svid {
            Some(svid) => Identity::new(svid, bundle).current().client_by_name(b"h2"),
            None => Arc::new(anonymous(&bundle)),
        };
        // The scheme is http because the connector does the TLS.
        let endpoint = Endpoint::from_shared(format!("http://{CONTROL_DNS_NAME}")).expect("a URI");
        endpoint
            .connect_with_connector(Connector {
                from,
                address,
                config,
            })
            .await
    }

    /// A connection from that address without a certificate, on which nothing has been said.
    pub(super) async fn bare(&self, from: IpAddr) -> TlsStream<TcpStream> {
        self.bare_to(self.xds_address(), from).await
    }

    /// The same to another control plane with the same root.
    pub(super) async fn bare_to(&self, address: SocketAddr, from: IpAddr) -> TlsStream<TcpStream> {
        let connector = Connector {
            from: Some(from),
            address,
            config: Arc::new(anonymous(&self.bundle().await)),
        };
        connector.open().await.expect("it listens")
    }

    /// Asks the CA for a certificate for a fresh key.
    pub(super) async fn certify(
        &self,
        svid: Option<Svid>,
        token: Option<&str>,
    ) -> Result<(PrivateKey, Vec<String>), Status> {
        let key = PrivateKey::generate().expect("a key");
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").expect("a good id");
        let csr = key.csr(&id).expect("a request");
        self.certify_csr(svid, token, csr, 0)
            .await
            .map(|chain| (key, chain))
    }

    pub(super) async fn certify_csr(
        &self,
        svid: Option<Svid>,
        token: Option<&str>,
        csr: String,
        seconds: i64,
    ) -> Result<Vec<String>, Status> {
        let mut client =
            IstioCertificateServiceClient::new(self.channel(svid).await.expect("it listens"));
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: seconds,
        });
        if let Some(token) = token {
            request.metadata_mut().insert(
                "authorization",
                format!("Bearer {token}").parse().expect("ASCII"),
            );
        }
        client
            .create_certificate(request)
            .await
            .map(|response| response.into_inner().cert_chain)
    }

    /// Opens a discovery stream as a pod that exists.
    pub(super) async fn proxy(
        &self,
        namespace: &str,
        name: &str,
        account: &str,
        ip: [u8; 4],
    ) -> Proxy {
        let channel = self
            .channel(Some(self.svid(namespace, account)))
            .await
            .expect("it listens");
        Proxy::open(channel, Some(node(&node_id(namespace, name, ip))))
            .await
            .expect("let in")
    }

    /// Where proxies connect to.
    pub(super) fn xds_address(&self) -> SocketAddr {
        self.control.xds_address()
    }

    /// What the admin server answers to a GET.
    pub(super) async fn admin(&self, path: &str) -> String {
        get(self.control.admin_address(), path).await
    }

    /// Waits until the metrics say this.
    pub(super) async fn measures(&self, text: &str) {
        soon(async {
            while !self.admin("/metrics").await.contains(text) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    pub(super) async fn admin_post(&self, path: &str) -> String {
        http(self.control.admin_address(), &format!("POST {path}")).await
    }
}

pub(crate) fn pod(namespace: &str, name: &str, account: &str, ip: [u8; 4]) -> Pod {
    Pod {
        key: ObjectKey::new(namespace, name),
        uid: None,
        ips: vec![IpAddr::from(ip)],
        service_account: account.into(),
        node: None,
        labels: Labels::default(),
        host_network: false,
        proxied: true,
        relabelled: false,
        foreign: false,
        uncaptured_ports: Vec::new(),
        named_ports: Vec::new(),
        workload: Workload {
            kind: "Pod".into(),
            name: name.into(),
        },
        finished: false,
    }
}

pub(super) fn node_id(namespace: &str, name: &str, ip: [u8; 4]) -> String {
    format!(
        "sidecar~{}~{name}.{namespace}~{namespace}.svc.cluster.local",
        Ipv4Addr::from(ip)
    )
}

pub(super) fn node(id: &str) -> Node {
    Node {
        id: id.to_owned(),
        user_agent_name: "test".to_owned(),
        ..Node::default()
    }
}

/// The signing root, as only a thief would have it.
pub(super) fn stolen_root(state_dir: &Path) -> Root {
    let text = std::fs::read_to_string(state_dir.join("ca.json")).expect("readable");
    let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    Root::from_pem(state["roots"][0]["secret"].as_str().expect("a secret")).expect("a root")
}

fn anonymous(bundle: &TrustBundle) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(bundle.roots().iter().cloned());
    let builder = ClientConfig::builder_with_provider(tulle_identity::tls::provider());
    let builder = builder
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Waits for something that comes soon.
pub(super) async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let ended = tokio::time::timeout(SOON, async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    ended.await.expect("it comes soon")
}

/// What comes soon, or the test fails.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(SOON, what).await;
    ended.expect("it comes soon")
}

/// What a server answers to a GET.
pub(super) async fn get(address: SocketAddr, path: &str) -> String {
    http(address, &format!("GET {path}")).await
}

async fn http(address: SocketAddr, request: &str) -> String {
    let text = format!(
        "{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    exchange(address, &text).await
}

/// What a server answers to these bytes.
pub(super) async fn exchange(address: SocketAddr, text: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(text.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    answer
}

#[derive(Clone)]
struct Connector {
    from: Option<IpAddr>,
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Connector {
    async fn open(self) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = self.from {
            socket.bind((from, 0).into())?;
        }
        let stream = socket.connect(self.address).await?;
        let name = CONTROL_DNS_NAME.try_into().expect("a DNS name");
        TlsConnector::from(self.config).connect(name, stream).await
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.open().await.map(TokioIo::new) })
    }
}

/// A discovery client: one open delta stream.
pub(super) struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl Proxy {
    pub(super) async fn open(channel: Channel, node: Option<Node>) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(64);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client
            .delta_aggregated_resources(ReceiverStream::new(stream))
            .await?
            .into_inner();
        Ok(Self {
            requests,
            responses,
            node,
        })
    }

    pub(super) async fn send(&mut self, kind: ResourceType, request: DeltaDiscoveryRequest) {
        let type_url = kind.type_url().to_owned();
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url,
            ..request
        };
        self.send_raw(request).await;
    }

    /// Sends a request as it is.
    pub(super) async fn send_raw(&self, request: DeltaDiscoveryRequest) {
        // A server that has ended the stream says so in `next`.
        let _ = self.requests.send(request).await;
    }

    pub(super) async fn subscribe(&mut self, kind: ResourceType, names: &[&str]) {
        self.send(
            kind,
            DeltaDiscoveryRequest {
                resource_names_subscribe: owned(names),
                ..Default::default()
            },
        )
        .await;
    }

    pub(super) async fn unsubscribe(&mut self, kind: ResourceType, names: &[&str]) {
        self.send(
            kind,
            DeltaDiscoveryRequest {
                resource_names_unsubscribe: owned(names),
                ..Default::default()
            },
        )
        .await;
    }

    pub(super) async fn subscribe_with(
        &mut self,
        kind: ResourceType,
        names: &[&str],
        has: &[(&str, &str)],
    ) {
        let initial_resource_versions = has
            .iter()
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
            .collect();
        let request = DeltaDiscoveryRequest {
            resource_names_subscribe: owned(names),
            initial_resource_versions,
            ..Default::default()
        };
        self.send(kind, request).await;
    }

    pub(super) async fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        self.reply(response, None).await;
    }

    pub(super) async fn nack(&mut self, response: &DeltaDiscoveryResponse, why: &str) {
        self.reply(
            response,
            Some(rpc::Status {
                code: 3,
                message: why.to_owned(),
                details: Vec::new(),
            }),
        )
        .await;
    }

    async fn reply(
        &mut self,
        response: &DeltaDiscoveryResponse,
        error_detail: Option<rpc::Status>,
    ) {
        let kind = ResourceType::from_type_url(&response.type_url).expect("a known type");
        let request = DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        };
        self.send(kind, request).await;
    }

    /// The next response, or the status that ends the stream.
    pub(super) async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let response = tokio::time::timeout(SOON, self.responses.message())
            .await
            .expect("it answers soon")?;
        response.ok_or_else(|| Status::ok("the stream ended"))
    }

    /// The next response, accepted; as type, resources and removals.
    pub(super) async fn take(&mut self) -> (&'static str, Vec<String>, Vec<String>) {
        let response = self.next().await.expect("a response");
        self.ack(&response).await;
        summary(&response)
    }

    /// Asserts that nothing was sent before the answer to a question asked now.
    pub(super) async fn expect_silence(&mut self) {
        self.subscribe(ResourceType::Secret, &["silence"]).await;
        assert_eq!(
            self.take().await,
            ("SDS", vec![], vec!["silence".to_owned()])
        );
    }
}

pub(super) fn summary(
    response: &DeltaDiscoveryResponse,
) -> (&'static str, Vec<String>, Vec<String>) {
    let kind = ResourceType::from_type_url(&response.type_url)
        .expect("a known type")
        .short_name();
    let names = response
        .resources
        .iter()
        .map(|resource| resource.name.clone())
        .collect();
    (kind, names, response.removed_resources.clone())
}

pub(super) fn versions(response: &DeltaDiscoveryResponse) -> BTreeMap<String, String> {
    response
        .resources
        .iter()
        .map(|resource| (resource.name.clone(), resource.version.clone()))
        .collect()
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
