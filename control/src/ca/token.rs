//! Who a bearer token says the caller is.
//!
//! [`TokenReview`] is the seam: a JWKS file checks tokens offline here, and in [`kubernetes`] the API server is asked.
//! A reviewer that cannot decide says so; nobody is let in by default. A key that is taken out of the file is believed for
//! a second more, and tokens that were good until then for nine more: ten in all.

mod kubernetes;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use futures_util::future::BoxFuture;
use jsonwebtoken::jwk::{JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

pub use kubernetes::KubernetesReview;

/// Signature algorithms that a service account issuer may use; none is symmetric.
const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
/// How much longer than it says a token counts.
const LEEWAY: Duration = Duration::from_secs(5);
/// How much earlier than it says a token counts: the issuer's clock may be that far ahead of ours, and a pod needs its
/// certificate from its first token.
const EARLIER: Duration = Duration::from_secs(300);
/// How long what the keys' file says counts: bad tokens, which cost nothing, have it read no more often.
const KEYS_FOR: Duration = Duration::from_secs(1);
/// A token longer than this is not read.
const MAX_TOKEN: usize = 16 * 1024;
/// How long a verdict is believed without asking again.
const CACHE_FOR: Duration = Duration::from_secs(9);
/// Verdicts kept at a time. With more the next are asked for again, which costs time and no memory; only good tokens have any.
const CACHE_SIZE: usize = 4096;

/// The workload that a token was issued to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of the service account and the pod.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// Name of the pod that the token is bound to.
    pub pod: String,
    /// Unique id of that pod.
    pub pod_uid: String,
    /// When the token ends.
    pub expires: SystemTime,
}

/// Why a token does not say who the caller is. The reason is for the log, not for the caller.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TokenError {
    /// It is not a good token.
    #[error("token refused: {0}")]
    Refused(String),
    /// It cannot be checked now.
    #[error("tokens cannot be checked: {0}")]
    Unavailable(String),
}

/// Checks bearer tokens.
pub trait TokenReview: Send + Sync + 'static {
    /// Says who the token was issued to.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, TokenError>>;
}

/// Checks Kubernetes' bound service account tokens against a JWKS file, which is read anew for a check once a second.
#[derive(Debug)]
pub struct JwksReview {
    file: PathBuf,
    /// What it said the last time, and when that was. Whoever finds it too old reads it while the others wait.
    read: tokio::sync::Mutex<Option<(Instant, Keys)>>,
    keep: Duration,
    issuer: String,
    audience: String,
}

/// The keys, or why there are none.
type Keys = Result<Arc<JwkSet>, String>;

impl JwksReview {
    /// Believes tokens of `issuer` for `audience`, signed with a key in `file`.
    pub fn new(
        file: impl Into<PathBuf>,
        issuer: impl Into<String>,
        audience: impl Into<String>,
    ) -> Self {
        Self {
            file: file.into(),
            read: tokio::sync::Mutex::default(),
            keep: KEYS_FOR,
            issuer: issuer.into(),
            audience: audience.into(),
        }
    }

    async fn keys(&self) -> Result<Arc<JwkSet>, TokenError> {
        let mut read = self.read.lock().await;
        let keys = match &*read {
            Some((at, keys)) if at.elapsed() < self.keep => keys.clone(),
            _ => {
                let keys = self.read().await;
                *read = Some((Instant::now(), keys.clone()));
                keys
            }
        };
        drop(read);
        keys.map_err(|reason| {
            TokenError::Unavailable(format!(
                "{reason} {}: provide a JWKS document with --jwks",
                self.file.display()
            ))
        })
    }

    async fn read(&self) -> Keys {
        let text = tokio::fs::read(&self.file).await;
        let text = text.map_err(|error| format!("{error}:"))?;
        serde_json::from_slice(&text)
            .map(Arc::new)
            .map_err(|error| format!("{error} in"))
    }

    /// Checks a token against a JWKS document, for fuzz targets.
    #[cfg(feature = "fuzz")]
    pub(crate) fn check_with(&self, jwks: &[u8], token: &str) -> Result<Caller, TokenError> {
        let keys = serde_json::from_slice(jwks)
            .map_err(|error| TokenError::Unavailable(error.to_string()))?;
        self.check(token, &keys)
    }

    fn check(&self, token: &str, keys: &JwkSet) -> Result<Caller, TokenError> {
        let refused = |reason: &str| TokenError::Refused(reason.to_owned());
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused("not a signed JWT"))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(TokenError::Refused(format!(
                "algorithm {:?} is not accepted",
                header.alg
            )));
        }
        let kid = header
            .kid
            .ok_or_else(|| refused("no key id in its header"))?;
        let key = keys
            .find(&kid)
            .ok_or_else(|| refused("signed with a key that is not in the JWKS"))?;
        if key
            .common
            .public_key_use
            .as_ref()
            .is_some_and(|usage| *usage != PublicKeyUse::Signature)
        {
            return Err(refused("its key in the JWKS is not for signatures"));
        }
        let key = DecodingKey::from_jwk(key).map_err(|error| {
            TokenError::Unavailable(format!("key {kid:?} in the JWKS: {error}"))
        })?;
        let mut rules = Validation::new(header.alg);
        rules.leeway = LEEWAY.as_secs();
        rules.set_audience(&[&self.audience]);
        rules.set_issuer(&[&self.issuer]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &rules)
            .map_err(|error| TokenError::Refused(error.to_string()))?
            .claims;
        if UNIX_EPOCH + seconds(claims.nbf) > SystemTime::now() + EARLIER {
            return Err(refused("it is not valid yet"));
        }
        claims.caller()
    }
}

impl TokenReview for JwksReview {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, TokenError>> {
        Box::pin(async move {
            let keys = self.keys().await?;
            self.check(token, &keys)
        })
    }
}

/// Kubernetes' claims of a token that is bound to a pod.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    #[serde(default)]
    nbf: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

#[derive(Deserialize)]
struct KubernetesClaims {
    namespace: String,
    serviceaccount: ObjectClaim,
    pod: Option<ObjectClaim>,
}

#[derive(Deserialize)]
struct ObjectClaim {
    name: String,
    uid: String,
}

/// A time that a token names, which may be far away.
fn seconds(time: u64) -> Duration {
    Duration::from_secs(time.min(u64::from(u32::MAX)))
}

impl Claims {
    fn caller(self) -> Result<Caller, TokenError> {
        let KubernetesClaims {
            namespace,
            serviceaccount,
            pod,
        } = self.kubernetes;
        let subject = format!("system:serviceaccount:{namespace}:{}", serviceaccount.name);
        if self.sub != subject {
            return Err(TokenError::Refused(format!(
                "its subject is not {subject:?}"
            )));
        }
        let pod = pod.ok_or_else(|| {
            TokenError::Refused("not bound to a pod: use a projected token".to_owned())
        })?;
        for (claim, value) in [
            ("namespace", &namespace),
            ("serviceaccount.name", &serviceaccount.name),
            ("serviceaccount.uid", &serviceaccount.uid),
            ("pod.name", &pod.name),
            ("pod.uid", &pod.uid),
        ] {
            if value.is_empty() {
                return Err(TokenError::Refused(format!(
                    "its claim kubernetes.io.{claim} is empty"
                )));
            }
        }
        Ok(Caller {
            namespace,
            service_account: serviceaccount.name,
            pod: pod.name,
            pod_uid: pod.uid,
            expires: UNIX_EPOCH + seconds(self.exp),
        })
    }
}

/// Remembers good verdicts for a few seconds, by hash of the token, so that a fleet's restart does not ask twice.
pub(crate) struct CachedReview {
    inner: Arc<dyn TokenReview>,
    verdicts: Mutex<HashMap<[u8; 32], (Caller, Instant)>>,
}

impl CachedReview {
    pub(crate) fn new(inner: Arc<dyn TokenReview>) -> Self {
        Self {
            inner,
            verdicts: Mutex::new(HashMap::new()),
        }
    }

    /// Who the token was issued to.
    pub(crate) async fn review(&self, token: &str) -> Result<Caller, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Refused(format!(
                "longer than {MAX_TOKEN} bytes"
            )));
        }
        let hash = hash(token);
        if let Some((caller, _)) = self
            .verdicts
            .lock()
            .get(&hash)
            .filter(|(caller, at)| is_fresh(caller, *at))
        {
            return Ok(caller.clone());
        }
        let caller = self.inner.review(token).await?;
        let mut verdicts = self.verdicts.lock();
        if verdicts.len() >= CACHE_SIZE {
            verdicts.retain(|_, (caller, at)| is_fresh(caller, *at));
        }
        if verdicts.len() < CACHE_SIZE {
            verdicts.insert(hash, (caller.clone(), Instant::now()));
        }
        Ok(caller)
    }
}

fn is_fresh(caller: &Caller, at: Instant) -> bool {
    at.elapsed() < CACHE_FOR && SystemTime::now() < caller.expires
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
pub(crate) mod tests;
