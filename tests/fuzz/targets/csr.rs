//! Certificate signing requests.
//!
//! The first byte of the input says what the rest is: PEM text, a request's DER, or the attributes of a request that is
//! signed here, so that everything behind the signature is reached as well. Whatever it is, the certificate that is
//! issued for it has the caller's names and no others, is no CA, holds the request's key, and verifies; or there is none,
//! and the error is short.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{PublicKeyData as _, SigningKey as _};
use rustls_pki_types::UnixTime;
use tulle_fuzz::der::{self, SEQUENCE};
use tulle_identity::verify::{Expected, Usage, verify_chain};
use tulle_identity::{CsrPolicy, IssueRequest, Issuer, PrivateKey, Root, SpiffeId, TrustDomain};
use x509_parser::extensions::GeneralName;

const DNS_NAME: &str = "tulle-control.tulle-system.svc";

struct Rig {
    issuer: Issuer,
    id: SpiffeId,
    /// The key of requests that are signed here.
    key: PrivateKey,
}

static RIG: LazyLock<Rig> = LazyLock::new(|| {
    let domain = TrustDomain::new("mesh.test").expect("a name");
    let root = Root::generate(&domain, Duration::from_secs(86_400)).expect("a root");
    Rig {
        issuer: Issuer::new(root, [], CsrPolicy::default()).expect("an issuer"),
        id: SpiffeId::new(&domain, "shop", "web").expect("an id"),
        key: PrivateKey::generate().expect("a key"),
    }
});

tulle_fuzz::target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let pem = match kind % 4 {
        0 => String::from_utf8_lossy(rest).into_owned(),
        1 => der::pem("CERTIFICATE REQUEST", rest),
        2 => der::pem("CERTIFICATE REQUEST", &signed(rest)),
        _ => der::pem("CERTIFICATE REQUEST", &signed(&extension_request(rest))),
    };
    let rig = &*RIG;
    for dns_names in [&[][..], &[DNS_NAME]] {
        let request = IssueRequest {
            dns_names,
            ..IssueRequest::new(&rig.id)
        };
        match rig.issuer.issue(&pem, &request) {
            Ok(issued) => check(&issued.chain[0], &request, &issued),
            Err(error) => assert!(error.to_string().len() < 2_000, "{error}"),
        }
    }
});

/// A request with these attributes, signed by the key in it.
fn signed(attributes: &[u8]) -> Vec<u8> {
    let key = &RIG.key;
    // id-ecPublicKey, prime256v1
    let algorithm =
        b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
    let point = [&[0][..], key.der_bytes()].concat();
    let info = der::nested(
        SEQUENCE,
        &[
            b"\x02\x01\x00",
            b"\x30\x00",
            &der::nested(SEQUENCE, &[algorithm, &der::element(0x03, &point)]),
            &der::element(0xa0, attributes),
        ],
    );
    let signature = [&[0][..], &*key.sign(&info).expect("a P-256 key")].concat();
    // ecdsa-with-SHA256
    let by = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
    der::nested(SEQUENCE, &[&info, by, &der::element(0x03, &signature)])
}

/// The attribute that asks for extensions: first those that are cut from the input, an object identifier behind a length
/// and a value behind another.
fn extension_request(input: &[u8]) -> Vec<u8> {
    let mut input = tulle_fuzz::input::Cursor(input);
    let mut extensions = Vec::new();
    while !input.is_empty() {
        let last = input.byte();
        // id-ce: subjectAltName is 17, basicConstraints 19, keyUsage 15, extKeyUsage 37.
        let oid = [0x06, 3, 0x55, 0x1d, last];
        let value = der::element(0x04, input.short());
        extensions.push(der::nested(SEQUENCE, &[&oid, &value]));
    }
    let extensions: Vec<_> = extensions.iter().map(Vec::as_slice).collect();
    let extensions = der::nested(SEQUENCE, &extensions);
    // extensionRequest
    let oid = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e";
    der::nested(SEQUENCE, &[oid, &der::element(0x31, &extensions)])
}

fn check(leaf: &[u8], request: &IssueRequest<'_>, issued: &tulle_identity::Issued) {
    let (rest, cert) = x509_parser::parse_x509_certificate(leaf).expect("a certificate");
    assert!(rest.is_empty());
    assert!(!cert.is_ca(), "a CA was made");
    let usage = cert.key_usage().expect("readable").expect("there");
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign());
    let names = cert
        .subject_alternative_name()
        .expect("readable")
        .expect("there");
    let mut expected = vec![GeneralName::URI(request.id.as_str())];
    expected.extend(
        request
            .dns_names
            .iter()
            .map(|name| GeneralName::DNSName(name)),
    );
    assert_eq!(names.value.general_names, expected);
    assert_eq!(cert.subject().iter().count(), 0, "a subject");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let left = cert
        .validity()
        .not_after
        .timestamp()
        .saturating_sub_unsigned(now.as_secs());
    assert!((0..=86_400).contains(&left), "valid for {left} s");
    for usage in [Usage::Client, Usage::Server] {
        let ids = [request.id.clone()];
        let verified = verify_chain(
            &issued.chain[0],
            &[],
            RIG.issuer.bundle(),
            usage,
            Expected::Ids(&ids),
            UnixTime::now(),
        );
        assert_eq!(verified.as_ref(), Ok(request.id));
    }
}
