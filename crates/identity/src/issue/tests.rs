//! What is signed for whom, and what is refused.

use std::os::unix::fs::PermissionsExt as _;

use rcgen::{
    BasicConstraints, DnType, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
    RsaKeySize,
};

use super::*;
use crate::svid;
use crate::testing::{HOUR, domain, id, issuer, root, uri};

fn csr(key: &KeyPair, spoil: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(id("web").as_str())];
    spoil(&mut params);
    params.serialize_request(key).unwrap().pem().unwrap()
}

#[test]
fn an_issued_chain_goes_from_leaf_to_root_with_the_callers_id_only() {
    let issuer = issuer();
    let before = SystemTime::now();
    let key = PrivateKey::generate().unwrap();
    let issued = issuer
        .issue(
            &key.csr(&id("web")).unwrap(),
            &IssueRequest::new(&id("web")),
        )
        .unwrap();
    assert_eq!(issued.chain.len(), 2);
    assert_eq!(&issued.chain[1], issuer.root().cert());
    assert!(
        issued
            .pem_chain()
            .iter()
            .all(|text| text.starts_with("-----BEGIN CERTIFICATE-----\n"))
    );

    let leaf = svid::parse(&issued.chain[0]).unwrap();
    assert!(!leaf.is_ca());
    assert!(leaf.subject().iter().next().is_none());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "without a subject the names are critical");
    assert_eq!(names.value.general_names.len(), 1);
    assert!(svid::time(leaf.validity().not_before) <= before - BACKDATE + Duration::from_secs(1));
    assert_eq!(leaf.raw_serial().len(), 16);

    let svid = Svid::new(issued.chain, key).unwrap();
    assert_eq!(svid.id(), &id("web"));
    assert_eq!(svid.chain().len(), 1, "peers have the root");
    let again = Svid::from_pem(&svid.to_pem()).unwrap();
    assert_eq!((again.id(), again.serial()), (svid.id(), svid.serial()));
    assert!(!format!("{svid:?}").contains("PRIVATE"));
}

#[test]
fn two_certificates_never_share_a_serial_number() {
    let issuer = issuer();
    assert_ne!(
        issuer.svid(&id("web")).serial(),
        issuer.svid(&id("web")).serial()
    );
}

#[test]
fn row_37_requests_for_what_the_caller_is_not_are_refused() {
    let issuer = issuer();
    let key = KeyPair::generate().unwrap();
    type Spoil = fn(&mut CertificateParams);
    let rows: &[(&str, Spoil, Option<&str>)] = &[
        ("its own id", |_| {}, None),
        ("no names", |p| p.subject_alt_names.clear(), None),
        (
            "a subject, which is not copied",
            |p| p.distinguished_name.push(DnType::CommonName, "root"),
            None,
        ),
        (
            "another's id",
            |p| p.subject_alt_names = vec![uri(id("api").as_str())],
            Some("names `spiffe://mesh.test/ns/shop/sa/api`"),
        ),
        (
            "another's id beside",
            |p| p.subject_alt_names.push(uri(id("api").as_str())),
            Some("names `spiffe"),
        ),
        (
            "a DNS name",
            |p| {
                p.subject_alt_names
                    .push(SanType::DnsName("api".try_into().unwrap()))
            },
            Some("names `api`"),
        ),
        (
            "an address",
            |p| {
                p.subject_alt_names
                    .push(SanType::IpAddress([10, 0, 0, 1].into()))
            },
            Some("neither URI nor DNS"),
        ),
        (
            "a CA",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            Some("CA certificate"),
        ),
        (
            "signing",
            |p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign],
            Some("right to sign"),
        ),
    ];
    for (name, spoil, refused) in rows {
        let got = issuer.issue(&csr(&key, spoil), &IssueRequest::new(&id("web")));
        match refused {
            None => assert!(got.is_ok(), "{name}: {got:?}"),
            Some(words) => {
                let error = got.expect_err(name).to_string();
                assert!(error.contains(words), "{name}: {error}");
            }
        }
    }
}

#[test]
fn keys_of_other_kinds_and_sizes_are_refused() {
    let issuer = issuer();
    let rows = [
        (
            "P-384",
            KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
            None,
        ),
        (
            "RSA 2048",
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
            None,
        ),
        (
            "Ed25519",
            KeyPair::generate_for(&PKCS_ED25519).unwrap(),
            Some("another kind"),
        ),
    ];
    for (name, key, refused) in rows {
        let got = issuer.issue(&csr(&key, |_| {}), &IssueRequest::new(&id("web")));
        match refused {
            None => assert!(got.is_ok(), "{name}: {got:?}"),
            Some(words) => assert!(got.expect_err(name).to_string().contains(words), "{name}"),
        }
    }
}

/// One DER element.
fn der(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x82][..], &length, &content].concat()
}

/// A request with an RSA key of any size, whose signature is nonsense.
fn rsa_csr(bits: usize) -> String {
    const RSA: &[u8] = &[
        0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 0x05, 0,
    ];
    const SHA256_WITH_RSA: &[u8] = &[
        0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11, 0x05, 0,
    ];
    let modulus = der(0x02, &[&[0], &vec![0xff; bits / 8]]);
    let key = der(0x30, &[&modulus, &[0x02, 3, 1, 0, 1]]);
    let spki = der(0x30, &[&der(0x30, &[RSA]), &der(0x03, &[&[0], &key])]);
    let info = der(0x30, &[&[0x02, 1, 0], &[0x30, 0], &spki, &[0xa0, 0]]);
    let request = der(
        0x30,
        &[
            &info,
            &der(0x30, &[SHA256_WITH_RSA]),
            &der(0x03, &[&[0; 65]]),
        ],
    );
    let mut text = String::new();
    pem::encode_into(&mut text, "CERTIFICATE REQUEST", &request);
    text
}

#[test]
fn row_37_an_enormous_or_tiny_rsa_key_is_refused_before_its_signature_is_looked_at() {
    let issuer = issuer();
    let rows = [
        (1_024, "an RSA key of 1024 bits"),
        (2_048, "not signed by the key in it"),
        (4_096, "not signed by the key in it"),
        (16_384, "an RSA key of 16384 bits; 2048 to 4096 are taken"),
    ];
    for (bits, words) in rows {
        let error = issuer
            .issue(&rsa_csr(bits), &IssueRequest::new(&id("web")))
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{bits}: {error}");
    }
}

#[test]
fn a_request_that_its_key_did_not_sign_is_refused() {
    let issuer = issuer();
    let mut der = CertificateParams::default()
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .to_vec();
    // The last byte belongs to the signature.
    *der.last_mut().unwrap() ^= 1;
    let mut text = String::new();
    pem::encode_into(&mut text, "CERTIFICATE REQUEST", &der);
    let error = issuer
        .issue(&text, &IssueRequest::new(&id("web")))
        .unwrap_err()
        .to_string();
    assert!(error.contains("not signed by the key in it"), "{error}");

    let long = "A".repeat(20_000);
    for garbage in [
        "",
        "hello",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        &long,
    ] {
        assert!(
            issuer
                .issue(garbage, &IssueRequest::new(&id("web")))
                .is_err()
        );
    }
}

#[test]
fn a_lifetime_is_granted_up_to_the_policy_and_the_roots_end() {
    let policy = CsrPolicy {
        default_ttl: HOUR,
        max_ttl: 48 * HOUR,
    };
    let issuer = Issuer::new(root(), [], policy).unwrap();
    let csr = PrivateKey::generate().unwrap().csr(&id("web")).unwrap();
    let issue = |ttl| {
        issuer.issue(
            &csr,
            &IssueRequest {
                ttl,
                ..IssueRequest::new(&id("web"))
            },
        )
    };
    let life = |issued: Issued| issued.not_after.duration_since(SystemTime::now()).unwrap();

    assert!(life(issue(None).unwrap()) <= HOUR);
    assert!(
        life(issue(Some(48 * HOUR)).unwrap()) <= 24 * HOUR,
        "the root lives a day"
    );
    assert!(issue(Some(Duration::ZERO)).is_err());
    let error = issue(Some(87_600 * HOUR)).unwrap_err().to_string();
    assert!(
        error.contains("lifetime of 315360000 s was asked for, at most 172800 s"),
        "{error}"
    );
}

#[test]
fn another_trust_domain_is_not_issued_for() {
    let other = SpiffeId::parse("spiffe://other.test/ns/shop/sa/web").unwrap();
    let error = issuer()
        .issue_svid(&IssueRequest::new(&other))
        .unwrap_err()
        .to_string();
    assert!(error.contains("not of trust domain mesh.test"), "{error}");
}

#[test]
fn the_control_plane_gets_dns_names() {
    let svid = issuer()
        .issue_svid(&IssueRequest {
            dns_names: &["control.svc"],
            ..IssueRequest::new(&id("control"))
        })
        .unwrap();
    let leaf = svid::parse(&svid.chain()[0]).unwrap();
    assert_eq!(
        leaf.subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names
            .len(),
        2
    );
}

#[test]
fn a_root_survives_its_file_which_only_the_owner_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.pem");
    let root = root();
    root.save(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = Root::load(&path).unwrap();
    assert_eq!(again.cert(), root.cert());
    assert_eq!(again.trust_domain(), &domain());
    root.save(&path).unwrap();

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Root::load(&path).unwrap_err().full();
    assert!(error.contains("must have mode 0600"), "{error}");
}

#[test]
fn a_root_needs_its_own_key_and_the_right_to_sign() {
    let (one, two) = (root(), PrivateKey::generate().unwrap());
    assert!(Root::new(one.cert().clone(), two).is_err());
    let svid = issuer().svid(&id("web"));
    assert!(Root::from_pem(&svid.to_pem()).is_err());
}

#[test]
fn bundles_hold_several_roots_once_each() {
    let (one, two) = (root(), root());
    let issuer = Issuer::new(
        one,
        [two.cert().clone(), two.cert().clone()],
        CsrPolicy::default(),
    )
    .unwrap();
    assert_eq!(issuer.bundle().roots().len(), 2);
    let again = TrustBundle::from_pem(issuer.bundle().to_pem().as_bytes()).unwrap();
    assert_eq!(&again, issuer.bundle());
    assert_eq!(again.describe().len(), 2);
    assert!(again.describe()[0].subject.contains("mesh.test root"));

    assert!(TrustBundle::from_pem(b"").is_err());
    assert!(TrustBundle::from_pem(b"hello").is_err());
    let leaf = issuer.svid(&id("web"));
    assert!(
        TrustBundle::from_pem(leaf.chain_pem().as_bytes())
            .unwrap_err()
            .to_string()
            .contains("not a CA")
    );
    let many: String = (0..17).map(|_| root().cert_pem()).collect();
    assert!(
        TrustBundle::from_pem(many.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("more than 16")
    );
}
