//! One handshake with the server's sidecar, made with the certificate of the client's: what the wire does not show.
//!
//! It tells the leaf that the server presents, and that it refuses a client that presents none. Runs in the client's sidecar
//! container, as a sidecar does, so that its own connections are not captured.
//! One that takes tunnels only is asked for a tunnel: what it thinks of a client shows no sooner.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Method, Request};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::version::TLS13;
use tulle_identity::{Identity, SpiffeId, Svid, TrustBundle, TrustDomain, mesh_server_name, tls};
use tulle_proxy::net::{Reach, dial};
use tulle_proxy::settings::Settings;
use tulle_runtime::env::Env;
use tulle_runtime::names::{DEFAULT_TRUST_DOMAIN, PROXY_MARK, alpn, files, ports, variables};
use tulle_tests::Anyone;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::bare::PEER;
use crate::serve::{self, ECHO};
use crate::systems::System;
use crate::{linkerd, ztunnel};

/// Name of this role.
pub(crate) const ROLE: &str = "bench-probe";
/// `prime256v1`.
const P256: &str = "1.2.840.10045.3.1.7";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) version: String,
    pub(crate) cipher: String,
    pub(crate) group: String,
    pub(crate) leaf: String,
    /// Whether a client without a certificate is refused.
    pub(crate) mutual: bool,
}

impl Found {
    /// Whether it is what all must have.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let same = self.version == "TLSv1_3"
            && self.cipher == "TLS13_AES_128_GCM_SHA256"
            && self.group == "X25519MLKEM768";
        ensure!(
            same && self.leaf == "P-256" && self.mutual,
            "the server's sidecar offers {self:?}"
        );
        Ok(())
    }
}

/// Runs the role: `SERVER_IP NAMESPACE`.
pub(crate) fn run(server: &str, namespace: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let found = runtime.block_on(probe(server, namespace))?;
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

/// How the server's app is reached.
struct Way {
    /// Address of the sidecar, or of the app if its connections are captured.
    address: SocketAddr,
    alpn: &'static [u8],
    /// What is said first.
    header: Vec<u8>,
    /// The app, if a tunnel leads there.
    tunnel: Option<SocketAddr>,
}

impl Way {
    fn of(server: IpAddr, namespace: &str) -> Self {
        let app = SocketAddr::new(server, serve::TCP);
        if namespace == System::Ztunnel.namespace() {
            return Self {
                address: SocketAddr::new(server, ztunnel::HBONE),
                alpn: ztunnel::ALPN,
                header: Vec::new(),
                tunnel: Some(app),
            };
        }
        if namespace == System::Linkerd.namespace() {
            return Self {
                address: SocketAddr::new(server, ports::INBOUND),
                alpn: linkerd::ALPN,
                header: linkerd::header(serve::TCP),
                tunnel: None,
            };
        }
        Self {
            address: app,
            alpn: alpn::TCP,
            header: Vec::new(),
            tunnel: None,
        }
    }

    async fn connect(&self, config: Arc<ClientConfig>) -> anyhow::Result<TlsStream<TcpStream>> {
        // Where the sidecar has no user id of its own it is the mark that keeps a connection from being captured.
        let marks = Env::process().get::<bool>(variables::MARK_SOCKETS);
        let settings = Settings {
            socket_mark: marks.unwrap_or(false).then_some(PROXY_MARK),
            ..Settings::default()
        };
        let tcp = dial(&settings, self.address, Reach::Out).await?;
        Ok(TlsConnector::from(config)
            .connect(mesh_server_name(), tcp)
            .await?)
    }

    async fn there_and_back(&self, stream: &mut TlsStream<TcpStream>) -> anyhow::Result<()> {
        match &self.tunnel {
            Some(app) => through_tunnel(stream, *app).await,
            None => {
                stream.write_all(&self.header).await?;
                stream.write_all(&SENT).await?;
                stream.read_exact(&mut [0; SENT.len()]).await?;
                Ok(())
            }
        }
    }
}

const SENT: [u8; 64] = [ECHO; 64];

async fn through_tunnel(
    io: impl AsyncRead + AsyncWrite + Unpin,
    app: SocketAddr,
) -> anyhow::Result<()> {
    let (sender, connection) = h2::client::handshake(io).await?;
    let exchange = async {
        let mut sender = sender.ready().await?;
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(app.to_string());
        let (response, mut sent) = sender.send_request(request.body(())?, false)?;
        let response = response.await?;
        ensure!(response.status().is_success(), "{}", response.status());
        sent.send_data(Bytes::from_static(&SENT), false)?;
        let (mut received, mut length) = (response.into_body(), 0);
        while length < SENT.len() {
            let data = received.data().await.context("the tunnel ended")??;
            length += data.len();
        }
        Ok(())
    };
    tokio::select! {
        exchanged = exchange => exchanged,
        ended = connection => bail!("the connection of the tunnel ended: {ended:?}"),
    }
}

async fn probe(server: &str, namespace: &str) -> anyhow::Result<Found> {
    let domain = TrustDomain::new(DEFAULT_TRUST_DOMAIN)?;
    let svid = fs::read_to_string(Path::new(files::STATE_DIR).join("svid.pem"))?;
    let mut bundle = TrustBundle::from_pem(&fs::read(files::CA_BUNDLE)?)?;
    if namespace == System::Linkerd.namespace() {
        bundle = bundle.with(linkerd::root()?)?;
    }
    let identity = Identity::new(Svid::from_pem(&svid)?, bundle);
    let peer = SpiffeId::new(&domain, namespace, PEER)?;
    let way = Way::of(server.parse()?, namespace);
    let mut config = ClientConfig::clone(&identity.current().client(&[peer], way.alpn));
    // linkerd's sidecars know by the name what is meant for them, and ours do not need it.
    config.enable_sni = namespace == System::Linkerd.namespace();
    let mut stream = way.connect(Arc::new(config)).await.context("a handshake")?;
    way.there_and_back(&mut stream)
        .await
        .context("with a certificate")?;
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates().and_then(<[_]>::first);
    let found = Found {
        version: format!("{:?}", connection.protocol_version().context("no version")?),
        cipher: format!(
            "{:?}",
            connection
                .negotiated_cipher_suite()
                .context("no cipher")?
                .suite()
        ),
        group: format!(
            "{:?}",
            connection
                .negotiated_key_exchange_group()
                .context("no group")?
                .name()
        ),
        leaf: curve(leaf.context("no leaf")?)?,
        mutual: refuses_strangers(&way).await?,
    };
    Ok(found)
}

fn curve(leaf: &CertificateDer<'_>) -> anyhow::Result<String> {
    let (_, leaf) = X509Certificate::from_der(leaf)?;
    let parameters = leaf.public_key().algorithm.parameters.as_ref();
    let curve = parameters.and_then(|parameters| parameters.as_oid().ok());
    let curve = curve.map(|oid| oid.to_id_string()).unwrap_or_default();
    Ok(if curve == P256 {
        "P-256".to_owned()
    } else {
        curve
    })
}

/// Whether a connection without a certificate comes to nothing.
async fn refuses_strangers(way: &Way) -> anyhow::Result<bool> {
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![way.alpn.to_vec()];
    // The server's refusal comes after the client's side of the handshake is done.
    Ok(match way.connect(Arc::new(config)).await {
        Ok(mut stream) => way.there_and_back(&mut stream).await.is_err(),
        Err(_) => true,
    })
}
