//! The CA client against a CA that answers, refuses, stalls and comes back.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, Server};
use tonic::{Request, Response, Status};
use tulle_xds_proto::istio::auth::IstioCertificateResponse;
use tulle_xds_proto::istio::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};

use super::*;
use crate::issue::{CsrPolicy, IssueRequest, Issuer};
use crate::testing::{id, issuer, root};
use crate::tls::ClientAuth;
use crate::verify::peer_id;

const PATIENCE: Duration = Duration::from_secs(20);

/// What the CA does with a call.
enum Act {
    Issue(SpiffeId),
    Refuse,
}

struct Ca {
    issuer: Mutex<Issuer>,
    /// What it does with the next calls; then it issues what is asked.
    script: Mutex<VecDeque<Act>>,
    tokens: Mutex<Vec<String>>,
    peers: Mutex<Vec<Option<SpiffeId>>>,
    server: Identity,
    ttl: Duration,
}

#[derive(Clone)]
struct Shared(Arc<Ca>);

#[tonic::async_trait]
impl IstioCertificateService for Shared {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = request
            .metadata()
            .get("authorization")
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        self.0.tokens.lock().push(token);
        let peer = request
            .extensions()
            .get::<Option<SpiffeId>>()
            .cloned()
            .flatten();
        self.0.peers.lock().push(peer);
        let id = match self.0.script.lock().pop_front() {
            Some(Act::Refuse) => return Err(Status::permission_denied("not today")),
            Some(Act::Issue(id)) => id,
            None => id("web"),
        };
        let ttl = Some(self.0.ttl);
        // A CA that issues for another id would also take a request that names the caller.
        let csr = if id == self::id("web") {
            request.into_inner().csr
        } else {
            PrivateKey::generate().unwrap().csr(&id).unwrap()
        };
        let issued = self.0.issuer.lock().issue(
            &csr,
            &IssueRequest {
                ttl,
                ..IssueRequest::new(&id)
            },
        );
        let cert_chain = issued
            .map_err(|e| Status::invalid_argument(e.to_string()))?
            .pem_chain();
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// tonic wants to know about the connection; so does the test.
struct Io(TlsStream<TcpStream>);

impl Connected for Io {
    type ConnectInfo = Option<SpiffeId>;

    fn connect_info(&self) -> Option<SpiffeId> {
        self.0
            .get_ref()
            .1
            .peer_certificates()
            .map(|chain| peer_id(chain).unwrap())
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

struct Rig {
    ca: Arc<Ca>,
    dir: TempDir,
    config: CaClientConfig,
    metrics: Metrics,
    tasks: Tasks,
}

impl Rig {
    async fn new(ttl: Duration) -> Self {
        let issuer = issuer();
        let names = [CONTROL_DNS_NAME];
        let svid = issuer
            .issue_svid(&IssueRequest {
                dns_names: &names,
                ..IssueRequest::new(&id("control"))
            })
            .unwrap();
        let server = Identity::new(svid, issuer.bundle().clone());
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("root.pem"), &issuer.bundle().to_pem());
        write(&dir.path().join("token"), "first\n");
        let ca = Arc::new(Ca {
            issuer: Mutex::new(issuer),
            script: Mutex::default(),
            tokens: Mutex::default(),
            peers: Mutex::default(),
            server,
            ttl,
        });
        let tasks = Tasks::new();
        let config = CaClientConfig {
            token_file: dir.path().join("token"),
            bundle_file: dir.path().join("root.pem"),
            state_dir: Some(dir.path().into()),
            require_memory: false,
            ..CaClientConfig::new(serve(ca.clone(), &tasks).await, id("web"))
        };
        Self {
            ca,
            dir,
            config,
            metrics: Metrics::default(),
            tasks,
        }
    }

    async fn start(&self) -> Identity {
        let start = start(self.config.clone(), self.metrics.clone(), &self.tasks);
        tokio::time::timeout(PATIENCE, start)
            .await
            .unwrap()
            .unwrap()
    }
}

async fn serve(ca: Arc<Ca>, tasks: &Tasks) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let live = ca.server.clone();
    let incoming = stream::unfold((listener, live), |(listener, live)| async move {
        loop {
            let (tcp, _) = listener.accept().await.ok()?;
            let config = live.current().server(ClientAuth::Optional, &[b"h2"]);
            if let Ok(tls) = TlsAcceptor::from(config).accept(tcp).await {
                return Some((Ok::<_, io::Error>(Io(tls)), (listener, live)));
            }
        }
    });
    let service = IstioCertificateServiceServer::new(Shared(ca));
    tasks.spawn("test-ca", async move {
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    });
    address
}

fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Waits until the identity is as wanted.
async fn until(identity: &Identity, wanted: impl Fn() -> bool) {
    let mut changed = identity.changed();
    let wait = async {
        while !wanted() {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("the identity should have changed");
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_its_life_with_the_token_of_that_moment() {
    let rig = Rig::new(Duration::from_secs(4)).await;
    let identity = rig.start().await;
    let first = identity.current();
    assert_eq!(first.svid().id(), &id("web"));
    assert_eq!(*rig.ca.tokens.lock(), ["Bearer first"]);
    write(&rig.dir.path().join("token"), "second");
    until(&identity, || {
        identity.load().svid().serial() != first.svid().serial()
    })
    .await;
    assert_eq!(rig.ca.tokens.lock()[1], "Bearer second");
    assert_eq!(
        *rig.ca.peers.lock(),
        [None, Some(id("web"))],
        "the second call shows the certificate too"
    );
    assert!(rig.metrics.rotations.get() >= 2);
    assert_eq!(rig.metrics.failures.get(), 0);
    assert!(rig.metrics.expiry.get() > 0);
}

#[tokio::test]
async fn while_the_ca_refuses_the_old_certificate_stays() {
    let rig = Rig::new(Duration::from_secs(2)).await;
    let identity = rig.start().await;
    let first = identity.current().svid().serial().to_owned();
    rig.ca
        .script
        .lock()
        .extend([Act::Refuse, Act::Issue(id("api"))]);
    until(&identity, || identity.load().svid().serial() != first).await;
    assert_eq!(
        rig.metrics.failures.get(),
        2,
        "a refusal, and a certificate for somebody else"
    );
    assert_eq!(identity.id(), id("web"));
}

#[tokio::test]
async fn a_start_waits_for_a_ca_that_is_right() {
    let rig = Rig::new(Duration::from_secs(600)).await;
    rig.ca
        .script
        .lock()
        .extend([Act::Refuse, Act::Issue(id("api"))]);
    let identity = rig.start().await;
    assert_eq!(identity.id(), id("web"));
    assert_eq!(rig.metrics.failures.get(), 2);
    assert_eq!(rig.metrics.rotations.get(), 1);
}

#[tokio::test]
async fn the_bundle_is_followed_and_a_leaf_of_a_dropped_root_replaced() {
    let rig = Rig::new(Duration::from_secs(600)).await;
    let identity = rig.start().await;
    let old = rig.ca.issuer.lock().root().cert().clone();
    let new = Issuer::new(root(), [old], CsrPolicy::default()).unwrap();
    let file = rig.dir.path().join("root.pem");

    write(&file, &new.bundle().to_pem());
    until(&identity, || identity.load().bundle().roots().len() == 2).await;
    let first = identity.current().svid().serial().to_owned();

    // The CA signs with the new root, shows a certificate of it, and the old root goes.
    let only_new = TrustBundle::new([new.root().cert().clone()]).unwrap();
    let names = [CONTROL_DNS_NAME];
    let control_id = id("control");
    let control = IssueRequest {
        dns_names: &names,
        ..IssueRequest::new(&control_id)
    };
    rig.ca
        .server
        .replace_all(new.issue_svid(&control).unwrap(), new.bundle().clone())
        .unwrap();
    *rig.ca.issuer.lock() = new;
    write(&file, &only_new.to_pem());
    until(&identity, || identity.load().svid().serial() != first).await;
    assert_eq!(**identity.load().bundle(), only_new);
    identity.current().check().unwrap();

    // A broken file changes nothing.
    let mut bundle = BundleFile::new(file.clone());
    assert!(bundle.changed().is_some());
    write(&file, "hello");
    assert!(bundle.changed().is_none());
}

#[tokio::test]
async fn a_restart_without_the_ca_uses_what_was_saved() {
    let rig = Rig::new(Duration::from_secs(600)).await;
    let serial = rig.start().await.current().svid().serial().to_owned();
    rig.ca.script.lock().push_back(Act::Refuse);
    let again = rig.start().await;
    assert_eq!(again.current().svid().serial(), serial);
    assert_eq!(rig.ca.tokens.lock().len(), 1, "the CA was not asked");
}

#[tokio::test]
async fn saved_certificates_that_are_no_good_are_discarded() {
    let rig = Rig::new(Duration::from_secs(600)).await;
    let file = rig.dir.path().join("svid.pem");
    let (ours, theirs) = (
        rig.ca.issuer.lock().svid(&id("api")),
        issuer().svid(&id("web")),
    );
    let expired = rig.ca.issuer.lock().svid_issued(&id("web"), 3);
    let bundle = TrustBundle::load(&rig.config.bundle_file).unwrap();
    let state = StateDir::open(&rig.config).unwrap().unwrap();
    for (name, svid) in [
        ("another's", ours),
        ("of another mesh", theirs),
        ("expired", expired),
    ] {
        state.save(&svid).unwrap();
        assert!(state.load(&id("web"), &bundle).is_none(), "{name}");
        assert!(!file.exists(), "{name}");
    }
    state.save(&rig.ca.issuer.lock().svid(&id("web"))).unwrap();
    assert!(state.load(&id("web"), &bundle).is_some());
}

#[tokio::test]
async fn a_state_directory_that_is_not_in_memory_is_refused() {
    for dir in ["/sys", "/no/such/directory"] {
        let config = CaClientConfig {
            state_dir: Some(dir.into()),
            ..CaClientConfig::new("127.0.0.1:1", id("web"))
        };
        let error = start(config, Metrics::default(), &Tasks::new())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("medium Memory"), "{error}");
    }
}

#[tokio::test]
async fn a_control_plane_of_another_name_or_mesh_is_not_believed() {
    let rig = Rig::new(Duration::from_secs(600)).await;
    let bundle = TrustBundle::load(&rig.config.bundle_file).unwrap();
    let client = |config: CaClientConfig| CaClient {
        bundle: BundleFile::new(config.bundle_file.clone()),
        state: None,
        metrics: Metrics::default(),
        backoff: Backoff::new(RETRY_BASE, RETRY_MAX),
        config,
    };
    let renamed = client(CaClientConfig {
        server_name: "other.svc".into(),
        ..rig.config.clone()
    });
    assert!(matches!(
        renamed.fetch(&bundle, None).await,
        Err(Error::Connect { .. })
    ));
    let right = client(rig.config.clone());
    assert!(matches!(
        right.fetch(issuer().bundle(), None).await,
        Err(Error::Connect { .. })
    ));
    assert!(rig.ca.tokens.lock().is_empty(), "nobody saw the token");
    assert!(right.fetch(&bundle, None).await.is_ok());
}

#[tokio::test]
async fn a_control_channel_shows_the_identity_of_the_moment_it_connects() {
    let rig = Rig::new(Duration::from_secs(600)).await;
    let identity = rig.start().await;
    rig.ca.peers.lock().clear();
    let channel = || {
        control_channel(
            &rig.config.address,
            CONTROL_DNS_NAME,
            identity.clone(),
            None,
        )
        .unwrap()
    };
    let mut client = IstioCertificateServiceClient::new(channel());
    let request = || {
        let mut request = Request::new(IstioCertificateRequest {
            csr: PrivateKey::generate().unwrap().csr(&id("web")).unwrap(),
            validity_duration: 0,
        });
        request
            .metadata_mut()
            .insert("authorization", "Bearer x".parse().unwrap());
        request
    };
    client.create_certificate(request()).await.unwrap();
    identity
        .rotate(rig.ca.issuer.lock().svid(&id("web")))
        .unwrap();
    client.create_certificate(request()).await.unwrap();
    IstioCertificateServiceClient::new(channel())
        .create_certificate(request())
        .await
        .unwrap();
    assert_eq!(*rig.ca.peers.lock(), vec![Some(id("web")); 3]);
}

#[test]
fn renewal_is_due_around_half_of_life() {
    let svid = issuer().svid(&id("web"));
    let life = svid.not_after().duration_since(svid.not_before()).unwrap() - BACKDATE;
    for _ in 0..100 {
        let after = due(&svid)
            .duration_since(svid.not_before() + BACKDATE)
            .unwrap();
        assert!(
            after >= life.mul_f64(0.45) && after <= life.mul_f64(0.55),
            "{after:?}"
        );
    }
}

#[test]
fn row_46_between_renewals_there_is_time_however_wrong_the_clock_is() {
    // Issued so long ago, by our clock, that it is due already or has ended.
    let web = id("web");
    for hours_ago in [0, 1, 30] {
        let svid = issuer().svid_issued(&web, hours_ago);
        assert_eq!(pause(&svid), Duration::from_secs(180), "{hours_ago}");
    }
    let short = IssueRequest {
        ttl: Some(Duration::from_secs(40)),
        ..IssueRequest::new(&web)
    };
    let svid = issuer().issue_svid(&short).unwrap();
    assert_eq!(pause(&svid), Duration::from_secs(2));
    let shortest = IssueRequest {
        ttl: Some(Duration::from_secs(1)),
        ..short
    };
    let svid = issuer().issue_svid(&shortest).unwrap();
    assert_eq!(pause(&svid), LOOK);
}

#[test]
fn row_46_a_fresh_certificate_is_valid_by_clocks_that_differ_by_five_minutes() {
    let issuer = issuer();
    let now = SystemTime::now();
    for minutes in [-5_i64, 0, 5] {
        let skew = Duration::from_secs(minutes.unsigned_abs() * 60);
        let at_the_ca = if minutes < 0 { now - skew } else { now + skew };
        let web = id("web");
        let request = IssueRequest::new(&web);
        let svid = issuer.issue_svid_at(&request, at_the_ca).unwrap();
        assert!(
            svid.not_before() < now && svid.not_after() > now,
            "{minutes}"
        );
        assert!(due(&svid) > now, "{minutes}: not renewed at once");
        check(&svid, issuer.bundle()).unwrap();
    }
}
