//! Service account tokens: real JWTs with the claims that Kubernetes puts into a token bound to a pod.
//!
//! The key is made when the sandbox starts and dies with it; whoever verifies gets the public half as a JWKS document.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};

use crate::{Error, ObjectKey};

/// Issuer of the sandbox's tokens, as a cluster with the default domain has it.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

const KEY_ID: &str = "sandbox";

/// Whom a token is for.
#[derive(Debug, Clone)]
pub(crate) struct Subject<'a> {
    pub(crate) pod: &'a ObjectKey,
    pub(crate) pod_uid: &'a str,
    pub(crate) service_account: &'a str,
    pub(crate) service_account_uid: &'a str,
}

/// Signs tokens.
pub(crate) struct Tokens {
    key: EncodingKey,
    jwks: JwkSet,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    pub(crate) fn new() -> Result<Self, Error> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| Error::Token(error.to_string()))?;
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256)
            .map_err(|error| Error::Token(error.to_string()))?;
        jwk.common.key_id = Some(KEY_ID.to_owned());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self {
            key,
            jwks: JwkSet { keys: vec![jwk] },
        })
    }

    /// What verifies the tokens.
    pub(crate) fn jwks(&self) -> Result<String, Error> {
        serde_json::to_string_pretty(&self.jwks).map_err(|error| Error::Token(error.to_string()))
    }

    /// A token that is good from now on for `lifetime`.
    pub(crate) fn issue(
        &self,
        subject: &Subject<'_>,
        audience: &str,
        lifetime: Duration,
    ) -> Result<String, Error> {
        let header = Header {
            kid: Some(KEY_ID.to_owned()),
            ..Header::new(Algorithm::ES256)
        };
        let claims = claims(subject, audience, SystemTime::now(), lifetime);
        jsonwebtoken::encode(&header, &claims, &self.key)
            .map_err(|error| Error::Token(error.to_string()))
    }
}

fn claims(subject: &Subject<'_>, audience: &str, now: SystemTime, lifetime: Duration) -> Value {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let namespace = &subject.pod.namespace;
    json!({
        "iss": ISSUER,
        "aud": [audience],
        "sub": format!("system:serviceaccount:{namespace}:{}", subject.service_account),
        "iat": now,
        "nbf": now,
        "exp": now + lifetime.as_secs(),
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": { "name": subject.service_account, "uid": subject.service_account_uid },
            "pod": { "name": subject.pod.name, "uid": subject.pod_uid },
            "node": { "name": crate::NODE_NAME },
        },
    })
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;

    fn check(
        jwks: &str,
        token: &str,
        audience: &str,
    ) -> Result<Value, jsonwebtoken::errors::Error> {
        let set: JwkSet = serde_json::from_str(jwks).expect("a JWKS document");
        let key = DecodingKey::from_jwk(set.find(KEY_ID).expect("our key")).expect("an EC key");
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_audience(&[audience]);
        rules.set_issuer(&[ISSUER]);
        jsonwebtoken::decode::<Value>(token, &key, &rules).map(|data| data.claims)
    }

    #[test]
    fn a_token_names_its_pod_and_is_verified_by_the_jwks_for_its_audience_only() {
        let tokens = Tokens::new().expect("a key");
        let pod = ObjectKey::new("shop", "web-0");
        let subject = Subject {
            pod: &pod,
            pod_uid: "u1",
            service_account: "web",
            service_account_uid: "u2",
        };
        let token = tokens
            .issue(&subject, "tulle-ca", Duration::from_secs(600))
            .expect("signed");
        let jwks = tokens.jwks().expect("rendered");
        let claims = check(&jwks, &token, "tulle-ca").expect("verified");
        assert_eq!(claims["sub"], "system:serviceaccount:shop:web");
        assert_eq!(claims["kubernetes.io"]["pod"]["name"], "web-0");
        assert_eq!(claims["kubernetes.io"]["pod"]["uid"], "u1");
        assert!(check(&jwks, &token, "other").is_err());
        let stranger = Tokens::new().expect("a key").jwks().expect("rendered");
        assert!(check(&stranger, &token, "tulle-ca").is_err());
    }
}
