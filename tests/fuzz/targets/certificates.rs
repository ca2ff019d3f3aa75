//! Certificates of peers, and files with certificates and keys.
//!
//! The first byte of the input says what the rest is: DER of a certificate, PEM text, or the names, purposes and other
//! extensions of a certificate that the mesh's own root signs here, as a careless CA might. A peer is taken for a workload
//! only if its names, read here once more by hand, hold exactly one URI and nothing foreign, and that URI is the
//! workload's; its certificate is no CA's and is made for its end of the connection.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls_pki_types::{CertificateDer, UnixTime};
use tulle_fuzz::der::{self, SEQUENCE};
use tulle_fuzz::input::Cursor;
use tulle_identity::verify::{Expected, Usage, verify_chain};
use tulle_identity::{PrivateKey, Root, SpiffeId, Svid, TrustBundle, TrustDomain, peer_id};

const SUBJECT_ALT_NAME: [u64; 4] = [2, 5, 29, 17];
const EXTENDED_KEY_USAGE: [u64; 4] = [2, 5, 29, 37];

struct Rig {
    domain: TrustDomain,
    bundle: TrustBundle,
    issuer: rcgen::Issuer<'static, KeyPair>,
    key: KeyPair,
}

static RIG: LazyLock<Rig> = LazyLock::new(|| {
    let domain = TrustDomain::new("mesh.test").expect("a name");
    let root = Root::generate(&domain, Duration::from_secs(86_400)).expect("a root");
    let key = KeyPair::from_pem(&root.to_pem()).expect("a key");
    Rig {
        bundle: TrustBundle::new([root.cert().clone()]).expect("a root"),
        issuer: rcgen::Issuer::from_ca_cert_der(root.cert(), key).expect("a root"),
        key: KeyPair::generate().expect("randomness"),
        domain,
    }
});

tulle_fuzz::target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => stranger(&CertificateDer::from(rest)),
        1 => files(rest),
        _ => careless(rest),
    }
});

/// Whoever signed it, it names nobody unless it says so.
fn stranger(cert: &CertificateDer<'_>) {
    if let Ok(id) = peer_id(std::slice::from_ref(cert)) {
        let uri = id.as_str().as_bytes();
        assert!(cert.windows(uri.len()).any(|window| window == uri));
    }
    assert!(verified(cert, Usage::Client).is_err(), "nobody signed it");
    let _ = TrustBundle::new([cert.clone().into_owned()]);
}

/// What can be read can be written and read again.
fn files(text: &[u8]) {
    if let Ok(bundle) = TrustBundle::from_pem(text) {
        assert!((1..=16).contains(&bundle.roots().len()));
        let again = TrustBundle::from_pem(bundle.to_pem().as_bytes());
        assert!(again.is_ok_and(|again| again == bundle));
        let _ = bundle.describe();
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let _ = Root::from_pem(text);
    let _ = PrivateKey::from_pem(text);
    if let Ok(svid) = Svid::from_pem(text) {
        let again = Svid::from_pem(&svid.to_pem()).expect("it was written here");
        assert_eq!((again.id(), again.chain()), (svid.id(), svid.chain()));
    }
}

/// A certificate with these extensions: the contents of its names and of its purposes, each behind a length of two
/// bytes, then others, each as the last number of its identifier, and its content behind a length of one byte.
fn careless(input: &[u8]) {
    let mut input = Cursor(input);
    let (names, purposes) = (input.long(), input.long());
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    params.distinguished_name = DistinguishedName::new();
    let mut add = |oid: &[u64], content: &[u8]| {
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(oid, content.to_vec()));
    };
    add(&SUBJECT_ALT_NAME, names);
    if !purposes.is_empty() {
        add(&EXTENDED_KEY_USAGE, purposes);
    }
    while !input.is_empty() {
        add(&[2, 5, 29, u64::from(input.byte())], input.short());
    }
    let Ok(cert) = params.signed_by(&RIG.key, &RIG.issuer) else {
        return;
    };
    for usage in [Usage::Client, Usage::Server] {
        if let Ok(id) = verified(cert.der(), usage) {
            assert_eq!(Some(id.as_str().as_bytes()), only_uri(names), "its names");
            assert_eq!(peer_id(std::slice::from_ref(cert.der())), Ok(id));
            let (_, parsed) =
                x509_parser::parse_x509_certificate(cert.der()).expect("it was verified");
            assert!(!parsed.is_ca(), "a CA is no workload");
            assert!(names_purpose(purposes, usage), "its purposes");
        }
    }
}

fn verified(
    cert: &CertificateDer<'_>,
    usage: Usage,
) -> Result<SpiffeId, tulle_identity::VerifyError> {
    let domains = [RIG.domain.clone()];
    verify_chain(
        cert,
        &[],
        &RIG.bundle,
        usage,
        Expected::Domains(&domains),
        UnixTime::now(),
    )
}

/// The URI, if there is one and beside it nothing but DNS names and IP addresses.
fn only_uri(names: &[u8]) -> Option<&[u8]> {
    let outer = der::elements(names)?;
    let [(SEQUENCE, names)] = outer.as_slice() else {
        return None;
    };
    let mut uri = None;
    for (tag, content) in der::elements(names)? {
        // Whoever signed it chose the form: a bit says whether it is one of several pieces, which it never is.
        match tag & !0x20 {
            0x86 if uri.is_none() => uri = Some(content),
            0x82 | 0x87 => {}
            _ => return None,
        }
    }
    uri
}

/// Whether a list of purposes holds the one that a usage needs (id-kp: serverAuth is 1, clientAuth 2).
fn names_purpose(purposes: &[u8], usage: Usage) -> bool {
    let last = match usage {
        Usage::Server => 1,
        Usage::Client => 2,
    };
    let oid = [0x2b, 6, 1, 5, 5, 7, 3, last];
    purposes.windows(oid.len()).any(|window| window == oid)
}
