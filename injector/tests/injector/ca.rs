//! A CA that is written by hand: it issues the injector's certificate to whoever has the token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tower_service::Service as _;
use tulle_identity::{
    ClientAuth, CsrPolicy, Identity, IssueRequest, Issuer, Root, SpiffeId, TrustBundle, TrustDomain,
};
use tulle_runtime::names::{CONTROL_DNS_NAME, INJECTOR_DNS_NAME};
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::istio::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use tulle_xds_proto::istio::auth::{IstioCertificateRequest, IstioCertificateResponse};

/// A CA of a mesh of its own.
#[derive(Clone)]
pub(crate) struct Ca(Arc<Inner>);

struct Inner {
    issuer: Issuer,
    server: Identity,
    token: String,
}

fn id(account: &str) -> SpiffeId {
    let domain = TrustDomain::new("cluster.local").expect("a domain");
    SpiffeId::new(&domain, "tulle-system", account).expect("an id")
}

impl Ca {
    /// One that takes this token.
    pub(crate) fn new(token: &str) -> Self {
        let domain = id("x").trust_domain();
        let root = Root::generate(&domain, Duration::from_secs(7 * 24 * 3600)).expect("a root");
        let issuer = Issuer::new(root, [], CsrPolicy::default()).expect("an issuer");
        let control = id("tulle-control");
        let control = IssueRequest {
            dns_names: &[CONTROL_DNS_NAME],
            ..IssueRequest::new(&control)
        };
        let svid = issuer.issue_svid(&control).expect("an SVID");
        let server = Identity::new(svid, issuer.bundle().clone());
        Self(Arc::new(Inner {
            issuer,
            server,
            token: format!("Bearer {token}"),
        }))
    }

    /// The roots of its mesh.
    pub(crate) fn bundle(&self) -> &TrustBundle {
        self.0.issuer.bundle()
    }

    /// Serves until the tasks end; says where.
    pub(crate) async fn serve(&self, tasks: &Tasks) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let config = self
            .0
            .server
            .current()
            .server(ClientAuth::Optional, &[b"h2"]);
        let (tls, service) = (
            TlsAcceptor::from(config),
            IstioCertificateServiceServer::new(self.clone()),
        );
        let owner = tasks.clone();
        tasks.spawn("ca", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, service) = (tls.clone(), service.clone());
                owner.spawn_connection("ca", async move {
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let calls = service_fn(move |request| service.clone().call(request));
                    let http = http2::Builder::new(TokioExecutor::new());
                    drop(http.serve_connection(TokioIo::new(stream), calls).await);
                });
            }
        });
        address
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: tonic::Request<IstioCertificateRequest>,
    ) -> Result<tonic::Response<IstioCertificateResponse>, Status> {
        let token = request.metadata().get("authorization");
        if token.is_none_or(|token| token != self.0.token.as_str()) {
            return Err(Status::unauthenticated("another token"));
        }
        let issued = self.0.issuer.issue(
            &request.get_ref().csr,
            &IssueRequest {
                dns_names: &[INJECTOR_DNS_NAME],
                ..IssueRequest::new(&id("tulle-injector"))
            },
        );
        let issued = issued.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let cert_chain = issued.pem_chain();
        Ok(tonic::Response::new(IstioCertificateResponse {
            cert_chain,
        }))
    }
}
