//! Bearer tokens.
//!
//! The first line of the input says what it is: `raw`, a token; `parts`, header, claims and signature, a line each, which
//! are encoded here; `signed`, header and claims, which the issuer's key signs here; `keys`, a JWKS document in which `$x`
//! and `$y` stand for that key, to which a good token is shown. No token is believed that the issuer's key did not sign, whatever its header says; of those
//! that it did, none whose claims do not say who, for whom and until when.

#![no_main]

use std::sync::LazyLock;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tulle_control::ca::{Caller, JwksReview, TokenError};
use tulle_fuzz::input::Cursor;
use tulle_identity::PrivateKey;

const ISSUER: &str = "https://issuer.test";
const AUDIENCE: &str = "tulle-ca";

struct Rig {
    key: EncodingKey,
    jwks: String,
    /// Coordinates of the public key.
    point: [String; 2],
    review: JwksReview,
    good: String,
}

static RIG: LazyLock<Rig> = LazyLock::new(|| {
    let pem = PrivateKey::generate().expect("randomness").to_pem();
    let key = EncodingKey::from_ec_pem(pem.as_bytes()).expect("PKCS#8");
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).expect("an EC key");
    jwk.common.key_id = Some("k1".to_owned());
    let AlgorithmParameters::EllipticCurve(curve) = &jwk.algorithm else {
        panic!("an EC key");
    };
    let point = [curve.x.clone(), curve.y.clone()];
    let claims = json!({
        "iss": ISSUER, "aud": [AUDIENCE], "sub": "system:serviceaccount:shop:web", "exp": 4_000_000_000_u64,
        "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web", "uid": "u1"}, "pod": {"name": "web-1", "uid": "u2"}},
    });
    let good = signed(
        &key,
        br#"{"alg":"ES256","kid":"k1"}"#,
        claims.to_string().as_bytes(),
    );
    let review = JwksReview::new("unused", ISSUER, AUDIENCE);
    let jwks = json!({ "keys": [jwk] }).to_string();
    assert!(tulle_control::fuzz::token(&review, jwks.as_bytes(), &good).is_ok());
    Rig {
        key,
        jwks,
        point,
        review,
        good,
    }
});

tulle_fuzz::target!(|data: &[u8]| {
    let rig = &*RIG;
    let mut input = Cursor(data);
    let kind = input.line();
    let check = |token: &str| tulle_control::fuzz::token(&rig.review, rig.jwks.as_bytes(), token);
    match kind {
        b"raw" => {
            if let Ok(token) = std::str::from_utf8(input.0) {
                forged(check(token), token);
            }
        }
        b"parts" => {
            let (header, claims, signature) = (input.line(), input.line(), input.0);
            let token = [header, claims, signature].map(|part| URL_SAFE_NO_PAD.encode(part));
            forged(check(&token.join(".")), &token.join("."));
        }
        b"signed" => {
            let (header, claims) = (input.line(), input.0);
            if let Ok(caller) = check(&signed(&rig.key, header, claims)) {
                believed(header, claims, &caller);
            }
        }
        b"keys" => {
            let Ok(text) = std::str::from_utf8(input.0) else {
                return;
            };
            let keys = text
                .replace("$x", &rig.point[0])
                .replace("$y", &rig.point[1]);
            let believed =
                tulle_control::fuzz::token(&rig.review, keys.as_bytes(), &rig.good).is_ok();
            // Its own key, under its own name, and nothing else verifies it.
            assert!(!believed || keys.contains(&rig.point[0]) && keys.contains(&rig.point[1]));
        }
        _ => {}
    }
});

/// Signs whatever it is given, by ES256.
fn signed(key: &EncodingKey, header: &[u8], claims: &[u8]) -> String {
    let message = [header, claims]
        .map(|part| URL_SAFE_NO_PAD.encode(part))
        .join(".");
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, Algorithm::ES256);
    format!("{message}.{}", signature.expect("an EC key"))
}

fn forged(checked: Result<Caller, TokenError>, token: &str) {
    match checked {
        Ok(caller) => assert_eq!(token, RIG.good, "a forged token is believed: {caller:?}"),
        Err(error) => {
            assert!(matches!(error, TokenError::Refused(_)), "{error}");
        }
    }
}

/// What a token must say whose signature holds.
fn believed(header: &[u8], claims: &[u8], caller: &Caller) {
    let header: Value = serde_json::from_slice(header).expect("a header");
    assert_eq!(header["kid"], "k1");
    assert_eq!(header["alg"], "ES256");
    let Ok(claims) = serde_json::from_slice::<Value>(claims) else {
        // A number that nobody looks at may be larger than any.
        return;
    };
    assert_eq!(claims["iss"], ISSUER, "another issuer");
    let audience = &claims["aud"];
    let meant = audience == AUDIENCE
        || audience
            .as_array()
            .is_some_and(|all| all.contains(&json!(AUDIENCE)));
    assert!(meant, "another audience");
    let subject = format!(
        "system:serviceaccount:{}:{}",
        caller.namespace, caller.service_account
    );
    assert_eq!(claims["sub"], subject);
    let kubernetes = &claims["kubernetes.io"];
    assert_eq!(kubernetes["pod"]["name"], caller.pod);
    assert_eq!(kubernetes["pod"]["uid"], caller.pod_uid);
    assert!(!caller.pod.is_empty() && !caller.pod_uid.is_empty() && !caller.namespace.is_empty());
    let leeway = std::time::Duration::from_secs(10);
    assert!(caller.expires + leeway > SystemTime::now(), "expired");
}
