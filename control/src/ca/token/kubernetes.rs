//! Asks the API server whose a token is: `authentication.k8s.io/v1` TokenReview.
//!
//! It also knows whether the token's pod still exists. Whoever cannot be asked says neither yes nor no, and then nobody is let
//! in. See <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use k8s_openapi::api::authentication::v1::{
    TokenReview as Review, TokenReviewSpec, TokenReviewStatus,
};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tulle_runtime::backoff::Backoff;

use super::{Caller, TokenError, TokenReview, hash, seconds};
use crate::platform::{ApiError, within};

/// Reviews at a time; more wait.
const AT_ONCE: usize = 32;
/// How long the API server may take to answer.
const CALL: Duration = Duration::from_secs(3);
/// How long all tries together may take: less than a request for a certificate has.
const BUDGET: Duration = Duration::from_secs(8);
/// Pauses between tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// With more entries than this, those that nobody waits for are swept out.
const FLIGHTS: usize = 1024;
/// Longest part of the API server's reason that is told.
const REASON: usize = 256;

const USER: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

type Verdict = Result<Caller, TokenError>;
type Flight = BoxFuture<'static, Verdict>;

/// Believes tokens that the API server confirms, for one audience, of pods.
pub struct KubernetesReview {
    asker: Arc<Asker>,
    /// Reviews under way, by hash of the token: who asks for the same meanwhile gets the same answer.
    flights: Mutex<HashMap<[u8; 32], WeakShared<Flight>>>,
}

struct Asker {
    api: Api<Review>,
    audience: String,
    at_once: Semaphore,
}

impl KubernetesReview {
    /// Asks with this client about tokens for `audience`.
    pub fn new(client: Client, audience: impl Into<String>) -> Self {
        Self {
            asker: Arc::new(Asker {
                api: Api::all(client),
                audience: audience.into(),
                at_once: Semaphore::new(AT_ONCE),
            }),
            flights: Mutex::default(),
        }
    }

    /// The review of a token that is under way, or a new one.
    fn flight(&self, hash: [u8; 32], token: &str) -> Shared<Flight> {
        let mut flights = self.flights.lock();
        let running = flights.get(&hash).and_then(WeakShared::upgrade);
        // An answer that has come belongs to those who waited for it.
        if let Some(flight) = running.filter(|flight| flight.peek().is_none()) {
            return flight;
        }
        if flights.len() >= FLIGHTS {
            flights.retain(|_, flight| flight.upgrade().is_some());
        }
        let (asker, token) = (self.asker.clone(), token.to_owned());
        let flight = async move { asker.ask(token).await }.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(hash, weak);
        }
        flight
    }
}

impl TokenReview for KubernetesReview {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            let hash = hash(token);
            let verdict = self.flight(hash, token).await;
            let mut flights = self.flights.lock();
            let landed = |flight: &WeakShared<Flight>| {
                flight
                    .upgrade()
                    .is_none_or(|flight| flight.peek().is_some())
            };
            if flights.get(&hash).is_some_and(landed) {
                flights.remove(&hash);
            }
            verdict
        })
    }
}

impl fmt::Debug for KubernetesReview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesReview")
            .field("audience", &self.asker.audience)
            .finish_non_exhaustive()
    }
}

impl Asker {
    /// Asks until there is an answer or no time is left.
    async fn ask(&self, token: String) -> Verdict {
        let end = Instant::now() + BUDGET;
        let mut pauses = Backoff::new(PAUSES.0, PAUSES.1);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let error = match self.once(&token, left).await {
                Ok(status) => return self.judge(&token, status),
                Err(error) => error,
            };
            let pause = pauses.next_delay();
            if !error.is_passing() || Instant::now() + pause >= end {
                let reason = error.full();
                return Err(TokenError::Unavailable(format!("TokenReview: {reason}")));
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn once(&self, token: &str, left: Duration) -> Result<TokenReviewStatus, ApiError> {
        let turn = tokio::time::timeout(left, self.at_once.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(ApiError::Slow(left));
        };
        let review = Review {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![self.audience.clone()]),
            },
            ..Review::default()
        };
        let params = PostParams::default();
        let answer = within(CALL.min(left), self.api.create(&params, &review)).await?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Whose it is by that answer.
    fn judge(&self, token: &str, status: TokenReviewStatus) -> Verdict {
        let refused = |reason: &str| Err(TokenError::Refused(reason.to_owned()));
        if status.authenticated != Some(true) {
            let error = status.error.unwrap_or_default();
            let reason: String = error.replace(token, "TOKEN").chars().take(REASON).collect();
            return Err(TokenError::Refused(format!(
                "the API server does not know it: {reason:?}"
            )));
        }
        // An API server that knows nothing of audiences confirms none.
        let audiences = status.audiences.unwrap_or_default();
        if !audiences.contains(&self.audience) {
            return refused("the API server did not confirm its audience");
        }
        let user = status.user.unwrap_or_default();
        let name = user.username.unwrap_or_default();
        let account = name.strip_prefix(USER).and_then(|it| it.split_once(':'));
        let Some((namespace, service_account)) = account.filter(|(namespace, account)| {
            !namespace.is_empty() && !account.is_empty() && !account.contains(':')
        }) else {
            return refused("it is not a service account's");
        };
        let extra = user.extra.unwrap_or_default();
        let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
            Some([value]) if !value.is_empty() => Some(value.clone()),
            _ => None,
        };
        let (Some(pod), Some(pod_uid)) = (one(POD_NAME), one(POD_UID)) else {
            return refused("not bound to a pod: use a projected token");
        };
        // Only now that it is confirmed is what stands in it worth anything.
        let Ok(Expiry { exp }) = jsonwebtoken::dangerous::insecure_decode_claims(token) else {
            return refused("it does not say when it ends");
        };
        Ok(Caller {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod,
            pod_uid,
            expires: UNIX_EPOCH + seconds(exp),
        })
    }
}

#[derive(Deserialize)]
struct Expiry {
    exp: u64,
}

#[cfg(test)]
mod tests;
