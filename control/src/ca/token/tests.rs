//! Which tokens are believed, of whom, and for how long.

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

pub(crate) const ISSUER: &str = "https://issuer.test";

/// An issuer of service account tokens, and the JWKS file that it publishes.
pub(crate) struct Issuer {
    key: EncodingKey,
    dir: TempDir,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let issuer = Self {
            key: new_key(),
            dir: tempfile::tempdir().expect("a directory"),
        };
        let mut key = Jwk::from_encoding_key(&issuer.key, Algorithm::ES256).expect("an EC key");
        key.common.key_id = Some("k1".to_owned());
        std::fs::write(issuer.file(), json!({ "keys": [key] }).to_string()).expect("writable");
        issuer
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("jwks.json")
    }

    pub(crate) fn review(&self) -> JwksReview {
        JwksReview {
            keep: Duration::ZERO,
            ..JwksReview::new(self.file(), ISSUER, "tulle-ca")
        }
    }

    /// A good token of pod `pod`, uid `uid`, in namespace `namespace`, under account `account`.
    pub(crate) fn token(&self, namespace: &str, account: &str, pod: &str, uid: &str) -> String {
        self.sign(&claims(namespace, account, pod, uid))
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        sign("k1", &self.key, claims)
    }
}

fn new_key() -> EncodingKey {
    let key = aws_lc_rs::signature::EcdsaKeyPair::generate(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
    )
    .expect("a key");
    EncodingKey::from_ec_der(key.to_pkcs8v1().expect("PKCS#8").as_ref())
}

fn sign(kid: &str, key: &EncodingKey, claims: &Value) -> String {
    let header = Header {
        kid: Some(kid.to_owned()),
        ..Header::new(Algorithm::ES256)
    };
    jsonwebtoken::encode(&header, claims, key).expect("an EC key")
}

pub(crate) fn claims(namespace: &str, account: &str, pod: &str, uid: &str) -> Value {
    let now = jsonwebtoken_now();
    json!({
        "iss": ISSUER,
        "aud": ["tulle-ca"],
        "sub": format!("system:serviceaccount:{namespace}:{account}"),
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": { "name": account, "uid": "sa-uid" },
            "pod": { "name": pod, "uid": uid },
        },
    })
}

pub(crate) fn jsonwebtoken_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
}

fn edited(edit: impl FnOnce(&mut Value)) -> Value {
    let mut claims = claims("shop", "web", "web-1", "u1");
    edit(&mut claims);
    claims
}

#[tokio::test]
async fn a_good_token_names_its_pod() {
    let issuer = Issuer::new();
    let caller = issuer
        .review()
        .review(&issuer.token("shop", "web", "web-1", "u1"))
        .await
        .expect("a good token");
    assert_eq!(
        (&*caller.namespace, &*caller.service_account),
        ("shop", "web")
    );
    assert_eq!((&*caller.pod, &*caller.pod_uid), ("web-1", "u1"));
}

#[tokio::test]
async fn row_38_misused_tokens_are_refused() {
    let issuer = Issuer::new();
    let now = jsonwebtoken_now();
    let edits: [(&str, Value); 11] = [
        (
            "wrong audience",
            edited(|c| c["aud"] = json!(["https://kubernetes.default.svc"])),
        ),
        (
            "no audience",
            edited(|c| drop(c.as_object_mut().and_then(|c| c.remove("aud")))),
        ),
        ("expired", edited(|c| c["exp"] = json!(now - 60))),
        (
            "no expiry",
            edited(|c| drop(c.as_object_mut().and_then(|c| c.remove("exp")))),
        ),
        ("not yet valid", edited(|c| c["nbf"] = json!(now + 600))),
        (
            "another issuer",
            edited(|c| c["iss"] = json!("https://evil.test")),
        ),
        (
            "another subject",
            edited(|c| c["sub"] = json!("system:serviceaccount:shop:admin")),
        ),
        (
            "another namespace",
            edited(|c| c["kubernetes.io"]["namespace"] = json!("kube-system")),
        ),
        (
            "not bound to a pod",
            edited(|c| c["kubernetes.io"]["pod"] = Value::Null),
        ),
        (
            "an empty pod uid",
            edited(|c| c["kubernetes.io"]["pod"]["uid"] = json!("")),
        ),
        (
            "no Kubernetes claims",
            edited(|c| c["kubernetes.io"] = Value::Null),
        ),
    ];
    for (name, claims) in edits {
        let result = issuer.review().review(&issuer.sign(&claims)).await;
        assert!(
            matches!(result, Err(TokenError::Refused(_))),
            "{name}: {result:?}"
        );
    }
}

#[tokio::test]
async fn row_46_a_token_of_an_issuer_whose_clock_is_five_minutes_ahead_is_good() {
    let issuer = Issuer::new();
    let now = jsonwebtoken_now();
    for (edit, good) in [
        (edited(|c| c["nbf"] = json!(now + 290)), true),
        (edited(|c| c["nbf"] = json!(now + 310)), false),
        (edited(|c| c["nbf"] = json!(u64::MAX)), false),
        (
            edited(|c| drop(c.as_object_mut().and_then(|c| c.remove("nbf")))),
            true,
        ),
        // That is no reason to believe it any longer.
        (edited(|c| c["exp"] = json!(now - 10)), false),
    ] {
        let result = issuer.review().review(&issuer.sign(&edit)).await;
        assert_eq!(result.is_ok(), good, "{edit}: {result:?}");
    }
}

#[tokio::test]
async fn row_38_forged_tokens_are_refused() {
    let issuer = Issuer::new();
    let good = claims("shop", "web", "web-1", "u1");
    let public = std::fs::read(issuer.file()).expect("written");
    let symmetric = {
        let header = Header {
            kid: Some("k1".to_owned()),
            ..Header::new(Algorithm::HS256)
        };
        jsonwebtoken::encode(&header, &good, &EncodingKey::from_secret(&public))
            .expect("any bytes do")
    };
    let unsigned = {
        let token = issuer.sign(&good);
        let (_, payload) = token.split_once('.').expect("three parts");
        let (payload, _) = payload.split_once('.').expect("three parts");
        // {"alg":"none","kid":"k1"}
        format!("eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.{payload}.")
    };
    let table = [
        (
            "signed with another key under a known id",
            sign("k1", &new_key(), &good),
        ),
        ("an unknown key id", sign("k2", &new_key(), &good)),
        ("the public key as a shared secret", symmetric),
        ("no signature", unsigned),
        ("empty", String::new()),
        ("garbage", "a.b.c".to_owned()),
    ];
    for (name, token) in table {
        let result = issuer.review().review(&token).await;
        assert!(
            matches!(result, Err(TokenError::Refused(_))),
            "{name}: {result:?}"
        );
    }
}

#[tokio::test]
async fn row_38_without_its_keys_a_reviewer_lets_nobody_in_and_recovers() {
    let issuer = Issuer::new();
    let token = issuer.token("shop", "web", "web-1", "u1");
    let review = issuer.review();
    review.review(&token).await.expect("a good token");
    let keys = std::fs::read(issuer.file()).expect("written");
    for broken in [None, Some("{"), Some("{\"keys\": 1}")] {
        match broken {
            Some(text) => std::fs::write(issuer.file(), text).expect("writable"),
            None => std::fs::remove_file(issuer.file()).expect("it is there"),
        }
        let error = review
            .review(&token)
            .await
            .expect_err("keys it saw before do not count");
        assert!(matches!(error, TokenError::Unavailable(_)), "{error}");
        assert!(error.to_string().contains("jwks.json"), "{error}");
    }
    std::fs::write(issuer.file(), keys).expect("writable");
    review.review(&token).await.expect("the keys are back");
}

#[tokio::test(start_paused = true)]
async fn its_keys_are_read_once_a_second_whatever_tokens_come() {
    let issuer = Issuer::new();
    let token = issuer.token("shop", "web", "web-1", "u1");
    let unknown = sign("k2", &new_key(), &claims("shop", "web", "web-1", "u1"));
    let review = JwksReview::new(issuer.file(), ISSUER, "tulle-ca");
    let keys = std::fs::read(issuer.file()).expect("written");
    std::fs::remove_file(issuer.file()).expect("it is there");
    let unavailable = review.review(&token).await;
    assert!(
        matches!(unavailable, Err(TokenError::Unavailable(_))),
        "{unavailable:?}"
    );
    std::fs::write(issuer.file(), &keys).expect("writable");
    // Nobody looks, however many ask.
    for _ in 0..100 {
        let still = review.review(&unknown).await;
        assert!(
            matches!(still, Err(TokenError::Unavailable(_))),
            "{still:?}"
        );
    }
    tokio::time::advance(KEYS_FOR).await;
    review.review(&token).await.expect("the keys are back");
    std::fs::remove_file(issuer.file()).expect("it is there");
    review.review(&token).await.expect("read a moment ago");
    let refused = review.review(&unknown).await;
    assert!(
        matches!(refused, Err(TokenError::Refused(_))),
        "{refused:?}"
    );
    tokio::time::advance(KEYS_FOR).await;
    let gone = review.review(&token).await;
    assert!(matches!(gone, Err(TokenError::Unavailable(_))), "{gone:?}");
}

/// A reviewer that counts how often it is asked.
struct Counting(std::sync::atomic::AtomicUsize, Duration);

impl TokenReview for Counting {
    fn review<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Caller, TokenError>> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let text = |text: &str| text.to_owned();
        let (namespace, service_account) = (text("shop"), text("web"));
        let (pod, pod_uid, expires) = (text("web-1"), text("u1"), SystemTime::now() + self.1);
        Box::pin(async move {
            Ok(Caller {
                namespace,
                service_account,
                pod,
                pod_uid,
                expires,
            })
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_verdict_is_believed_for_nine_seconds_and_not_past_the_tokens_end() {
    let ask = async |lives: Duration, pause: Duration| {
        let counting = Arc::new(Counting(0.into(), lives));
        let cached = CachedReview::new(counting.clone());
        cached.review("token").await.expect("a good token");
        tokio::time::advance(pause).await;
        cached.review("token").await.expect("a good token");
        counting.0.load(std::sync::atomic::Ordering::Relaxed)
    };
    let hour = Duration::from_secs(3600);
    assert_eq!(ask(hour, Duration::from_secs(8)).await, 1);
    assert_eq!(ask(hour, Duration::from_secs(9)).await, 2);
    assert_eq!(ask(Duration::ZERO, Duration::from_secs(1)).await, 2);
}
