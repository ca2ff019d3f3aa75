//! The gRPC face of the CA: `istio.v1.auth.IstioCertificateService`.
//!
//! Who the caller is comes from its token and nothing else; what is wrong with a token stands in our log and not in the
//! answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tulle_identity::{SpiffeId, TrustDomain};
use tulle_xds_proto::istio::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use tulle_xds_proto::istio::auth::{IstioCertificateRequest, IstioCertificateResponse};

use super::door::{Clients, Door, Heard, Requests};
use super::failure::Failure;
use super::token::CachedReview;
use super::{Authority, Caller, Metrics, TokenError, TokenReview};
use crate::discovery::Peer;
use crate::limit::Reached;
use crate::store::{ObjectKey, Pod, World};

/// Largest request: a CSR is about one kilobyte, three with the largest key that is usual.
const MAX_REQUEST: usize = 16 << 10;

/// Issues certificates to pods.
pub(crate) struct CertificateService {
    authority: Arc<Authority>,
    review: CachedReview,
    worlds: watch::Receiver<Arc<World>>,
    domain: TrustDomain,
    /// How long a request waits for its pod to appear.
    pod_wait: Duration,
    metrics: Metrics,
    clients: Arc<Clients>,
}

/// The service behind its door, to be added to a server whose connections carry a [`Peer`].
pub(crate) type CertificateServer = Door<IstioCertificateServiceServer<CertificateService>>;

/// Why a request is refused, for the log.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no bearer token in the authorization header")]
    NoToken,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(
        "pod {0} does not exist, is not the one that the token was issued to, or does not run as its service account"
    )]
    NoPod(ObjectKey),
    #[error("the control plane does not know all pods yet")]
    NotSynced,
    #[error("the CA's roots have not been seen for too long to sign by them")]
    StaleRoots,
    #[error("the token is of {0}, the client certificate is another's")]
    OtherPeer(SpiffeId),
    #[error("the token names no workload of the mesh")]
    Id(#[from] tulle_identity::ParseIdError),
}

impl Refusal {
    /// What the caller hears: nothing that helps to guess.
    fn status(&self) -> Status {
        match self {
            Self::Token(TokenError::Unavailable(_)) | Self::NotSynced | Self::StaleRoots => {
                Status::unavailable("the caller cannot be verified now; try again")
            }
            _ => Status::unauthenticated("the caller's token was not accepted"),
        }
    }

    fn failure(&self) -> Failure {
        match self {
            Self::NoToken => Failure::NoToken,
            Self::Token(TokenError::Refused(_)) => Failure::Token,
            Self::Token(TokenError::Unavailable(_)) => Failure::TokenCheck,
            Self::NoPod(_) => Failure::NoPod,
            Self::NotSynced => Failure::NotSynced,
            Self::StaleRoots => Failure::StaleRoots,
            Self::OtherPeer(_) => Failure::OtherPeer,
            Self::Id(_) => Failure::Id,
        }
    }
}

impl CertificateService {
    pub(crate) fn new(
        authority: Arc<Authority>,
        review: Arc<dyn TokenReview>,
        worlds: watch::Receiver<Arc<World>>,
        domain: TrustDomain,
        pod_wait: Duration,
        requests: Requests,
        metrics: Metrics,
    ) -> Self {
        Self {
            authority,
            review: CachedReview::new(review),
            worlds,
            domain,
            pod_wait,
            metrics,
            clients: Arc::new(Clients::new(requests)),
        }
    }

    /// What is served; limits that are reached are counted in `reached`.
    pub(crate) fn into_service(self, reached: Reached) -> CertificateServer {
        Door {
            clients: self.clients.clone(),
            metrics: self.metrics.clone(),
            reached,
            service: IstioCertificateServiceServer::new(self)
                .max_decoding_message_size(MAX_REQUEST),
        }
    }

    /// Who is calling.
    async fn caller(&self, metadata: &MetadataMap, peer: &Peer) -> Result<SpiffeId, Refusal> {
        let token = bearer(metadata).ok_or(Refusal::NoToken)?;
        let caller = self.review.review(token).await?;
        let id = SpiffeId::new(&self.domain, &caller.namespace, &caller.service_account)?;
        // A token that turns up on somebody else's connection was stolen.
        if peer.id.as_ref().is_some_and(|peer| *peer != id) {
            return Err(Refusal::OtherPeer(id));
        }
        self.find_pod(&caller).await?;
        if !self.authority.is_current() {
            return Err(Refusal::StaleRoots);
        }
        Ok(id)
    }

    /// Makes sure that the token's pod is there. A pod that has just been made may take a moment to become known.
    async fn find_pod(&self, caller: &Caller) -> Result<(), Refusal> {
        let key = ObjectKey::new(caller.namespace.as_str(), caller.pod.as_str());
        let mut worlds = self.worlds.clone();
        let exists = |world: &Arc<World>| {
            world.synced() && world.pod(&key).is_some_and(|pod| is_callers(pod, caller))
        };
        if let Ok(Ok(_)) = tokio::time::timeout(self.pod_wait, worlds.wait_for(exists)).await {
            return Ok(());
        }
        if self.worlds.borrow().synced() {
            Err(Refusal::NoPod(key))
        } else {
            Err(Refusal::NotSynced)
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        if let Some(heard) = request.extensions().get::<Heard>() {
            heard.set();
        }
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("this connection has no peer"))?;
        let client = self.clients.of(&peer);
        let id = self.caller(request.metadata(), &peer).await.map_err(|refusal| {
            self.metrics.failed(refusal.failure());
            if let Some(left_out) = self.clients.tells_refusal(&client) {
                tracing::warn!(client.addr = %peer.address, reason = %refusal, left_out, "certificate request refused");
            }
            refusal.status()
        })?;
        let request = request.into_inner();
        let asked = match request.validity_duration {
            0 => None,
            seconds => Some(Duration::from_secs(u64::try_from(seconds).map_err(
                |_| {
                    self.metrics.failed(Failure::Csr);
                    if let Some(left_out) = self.clients.tells_refusal(&client) {
                        tracing::warn!(client.addr = %peer.address, client.id = %id, seconds, left_out, "certificate not issued: it would end before it begins");
                    }
                    Status::invalid_argument("validity_duration is negative")
                },
            )?)),
        };
        let issued = self.authority.issue(&request.csr, &id, asked).map_err(|error| {
            if let Some(left_out) = self.clients.tells_refusal(&client) {
                tracing::warn!(client.addr = %peer.address, client.id = %id, error = error.full(), left_out, "certificate not issued");
            }
            self.refuse(&error)
        })?;
        self.metrics.issued();
        if let Some(left_out) = self.clients.tells_issued(&client) {
            tracing::info!(client.addr = %peer.address, client.id = %id, left_out, "certificate issued");
        }
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: issued.pem_chain(),
        }))
    }
}

impl CertificateService {
    fn refuse(&self, error: &tulle_identity::Error) -> Status {
        match error {
            tulle_identity::Error::Csr(_) | tulle_identity::Error::Document { .. } => {
                self.metrics.failed(Failure::Csr);
                Status::invalid_argument(error.full())
            }
            _ => {
                self.metrics.failed(Failure::Issue);
                Status::internal("the certificate could not be issued")
            }
        }
    }
}

/// Whether this is the pod that the token was issued to: a pod that is made anew under the same name is another.
fn is_callers(pod: &Pod, caller: &Caller) -> bool {
    let same_uid = pod.uid.as_ref().is_none_or(|uid| **uid == *caller.pod_uid);
    same_uid && *pod.service_account == *caller.service_account
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let mut values = metadata.get_all("authorization").iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
