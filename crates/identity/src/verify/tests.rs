//! Which certificates are believed, at what time, and what is said of the others.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::UnixTime;

use super::*;
use crate::issue::Root;
use crate::key::PrivateKey;
use crate::testing::{HOUR, domain, forge, id, issuer, leaf_params, root, uri};

fn now() -> UnixTime {
    UnixTime::now()
}

fn at(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

fn judge(root: &Root, leaf: &CertificateDer<'_>) -> Result<SpiffeId, VerifyError> {
    let bundle = TrustBundle::new([root.cert().clone()]).unwrap();
    verify_chain(
        leaf,
        &[],
        &bundle,
        Usage::Server,
        Expected::Domains(&[domain()]),
        now(),
    )
}

#[test]
fn row_30_an_issued_certificate_verifies_as_its_id() {
    let issuer = issuer();
    let svid = issuer.svid(&id("web"));
    for usage in [Usage::Client, Usage::Server] {
        let ids = [id("api"), id("web")];
        let got = verify_chain(
            &svid.chain()[0],
            &[],
            issuer.bundle(),
            usage,
            Expected::Ids(&ids),
            now(),
        );
        assert_eq!(got, Ok(id("web")));
    }
    assert_eq!(peer_id(svid.chain()), Ok(id("web")));
}

#[test]
fn row_30_a_certificate_of_someone_else_is_refused_by_name() {
    let issuer = issuer();
    let svid = issuer.svid(&id("web"));
    let error = verify_chain(
        &svid.chain()[0],
        &[],
        issuer.bundle(),
        Usage::Server,
        Expected::Ids(&[id("api")]),
        now(),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the peer is spiffe://mesh.test/ns/shop/sa/web, expected spiffe://mesh.test/ns/shop/sa/api"
    );
}

#[test]
fn row_30_validity_is_judged_at_the_time_given() {
    let issuer = issuer();
    let svid = issuer.svid(&id("web"));
    let verify = |time: SystemTime| {
        let expected = Expected::Ids(std::slice::from_ref(svid.id()));
        verify_chain(
            &svid.chain()[0],
            &[],
            issuer.bundle(),
            Usage::Client,
            expected,
            at(time),
        )
    };
    assert!(verify(svid.not_before()).is_ok());
    assert_eq!(
        verify(svid.not_before() - Duration::from_secs(9)),
        Err(VerifyError::NotValidYet { ahead: 9 })
    );
    let end = svid.not_after();
    assert!(verify(end - Duration::from_secs(1)).is_ok());
    assert_eq!(verify(end + HOUR), Err(VerifyError::Expired { ago: 3600 }));
}

#[test]
fn row_30_an_expired_leaf_and_an_expired_root_are_told_apart() {
    let issuer = issuer();
    let svid = issuer.svid_issued(&id("web"), 3);
    let verify = |bundle: &TrustBundle, cert: &CertificateDer<'_>| {
        verify_chain(
            cert,
            &[],
            bundle,
            Usage::Client,
            Expected::Domains(&[domain()]),
            now(),
        )
    };
    let expired = verify(issuer.bundle(), &svid.chain()[0]).unwrap_err();
    assert!(
        matches!(expired, VerifyError::Expired { ago } if ago >= 7100),
        "{expired}"
    );

    let old = Root::generate_at(&domain(), HOUR, SystemTime::now() - 3 * HOUR).unwrap();
    let leaf = forge(&old, &leaf_params(&id("web")));
    assert_eq!(judge(&old, &leaf), Err(VerifyError::UntrustedIssuer));
}

#[test]
fn row_30_and_31_spoilt_certificates_are_refused_by_what_is_wrong() {
    let root = root();
    type Spoil = fn(&mut CertificateParams);
    let rows: &[(&str, Spoil, Result<(), &str>)] = &[
        ("untouched", |_| {}, Ok(())),
        (
            "with a DNS name beside",
            |p| {
                p.subject_alt_names
                    .push(SanType::DnsName("a.b".try_into().unwrap()))
            },
            Ok(()),
        ),
        (
            "not yet valid",
            |p| p.not_before = (SystemTime::now() + HOUR / 2).into(),
            Err("not valid for another"),
        ),
        (
            "expired",
            |p| p.not_after = (SystemTime::now() - HOUR / 2).into(),
            Err("expired"),
        ),
        (
            "two ids",
            |p| {
                p.subject_alt_names
                    .push(uri("spiffe://mesh.test/ns/shop/sa/api"))
            },
            Err("2 URI names"),
        ),
        (
            "the same id twice",
            |p| p.subject_alt_names.push(p.subject_alt_names[0].clone()),
            Err("2 URI names"),
        ),
        (
            "no names",
            |p| p.subject_alt_names.clear(),
            Err("0 URI names"),
        ),
        (
            "a foreign kind of name",
            |p| {
                p.subject_alt_names
                    .push(SanType::Rfc822Name("a@b".try_into().unwrap()))
            },
            Err("neither"),
        ),
        (
            "a name of another kind, with our id in it",
            |p| {
                let name = "spiffe://mesh.test/ns/shop/sa/web".into();
                p.subject_alt_names.push(SanType::OtherName((
                    vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3],
                    name,
                )))
            },
            Err("neither"),
        ),
        (
            "our id in a name of another kind only",
            |p| {
                let name = "spiffe://mesh.test/ns/shop/sa/web".into();
                p.subject_alt_names = vec![SanType::OtherName((
                    vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3],
                    name,
                ))]
            },
            Err("neither"),
        ),
        (
            "our id in the subject only",
            |p| {
                p.subject_alt_names.clear();
                p.distinguished_name
                    .push(DnType::CommonName, "spiffe://mesh.test/ns/shop/sa/web")
            },
            Err("0 URI names"),
        ),
        (
            "our id in a DNS name only",
            |p| {
                p.subject_alt_names =
                    vec![SanType::DnsName("web.shop.mesh.test".try_into().unwrap())]
            },
            Err("0 URI names"),
        ),
        (
            "a web address",
            |p| p.subject_alt_names = vec![uri("https://mesh.test/ns/shop/sa/web")],
            Err("names no mesh workload"),
        ),
        (
            "a NUL in the id",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/web\0.evil")],
            Err("names no mesh workload"),
        ),
        (
            "a wildcard",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/*")],
            Err("names no mesh workload"),
        ),
        (
            "the trust domain's id",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test")],
            Err("names no mesh workload"),
        ),
        (
            "another trust domain",
            |p| p.subject_alt_names = vec![uri("spiffe://evil.test/ns/shop/sa/web")],
            Err("its trust domain is not accepted"),
        ),
        (
            "a trust domain in capitals",
            |p| p.subject_alt_names = vec![uri("spiffe://MESH.test/ns/shop/sa/web")],
            Err("names no mesh workload"),
        ),
        (
            "a percent-encoded trust domain",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh%2etest/ns/shop/sa/web")],
            Err("names no mesh workload"),
        ),
        (
            "no trust domain",
            |p| p.subject_alt_names = vec![uri("spiffe:///ns/shop/sa/web")],
            Err("names no mesh workload"),
        ),
        (
            "one segment more",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/web/x")],
            Err("names no mesh workload"),
        ),
        (
            "a percent-encoded account",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/%77eb")],
            Err("names no mesh workload"),
        ),
        (
            "a shorter trust domain",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh/ns/shop/sa/web")],
            Err("its trust domain is not accepted"),
        ),
        (
            "a longer trust domain",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test.evil/ns/shop/sa/web")],
            Err("its trust domain is not accepted"),
        ),
        (
            "no purpose",
            |p| p.extended_key_usages.clear(),
            Err("lacks the extended key usage serverAuth"),
        ),
        (
            "only a client",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Err("lacks the extended key usage serverAuth"),
        ),
        (
            "any purpose instead of ours",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any],
            Err("lacks the extended key usage serverAuth"),
        ),
        (
            "signing code",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
            Err("lacks the extended key usage serverAuth"),
        ),
        (
            "a critical extension that nobody knows",
            |p| {
                let mut unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                unknown.set_criticality(true);
                p.custom_extensions.push(unknown)
            },
            Err("malformed"),
        ),
        (
            "an extension that nobody has to know",
            |p| {
                let unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                p.custom_extensions.push(unknown)
            },
            Ok(()),
        ),
        (
            "a CA",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            Err("does not verify"),
        ),
    ];
    for (name, spoil, expected) in rows {
        let mut params = leaf_params(&id("web"));
        spoil(&mut params);
        let got = judge(&root, &forge(&root, &params));
        match expected {
            Ok(()) => assert_eq!(got, Ok(id("web")), "{name}"),
            Err(words) => {
                let error = got.expect_err(name).to_string();
                assert!(error.contains(words), "{name}: {error}");
            }
        }
    }
}

#[test]
fn row_30_a_root_with_our_name_but_another_key_is_not_ours() {
    let (ours, theirs) = (root(), root());
    let leaf = forge(&theirs, &leaf_params(&id("web")));
    assert_eq!(judge(&ours, &leaf), Err(VerifyError::UntrustedIssuer));
    assert!(judge(&theirs, &leaf).is_ok());
}

#[test]
fn row_30_garbage_is_malformed() {
    let root = root();
    for bytes in [&b""[..], b"\x30", b"hello", &[0x30; 4096]] {
        assert_eq!(
            judge(&root, &CertificateDer::from(bytes.to_vec())),
            Err(VerifyError::Malformed)
        );
    }
    assert_eq!(peer_id(&[]), Err(VerifyError::NoCertificate));
}

#[test]
fn row_30_intermediates_are_followed_and_a_deep_chain_is_refused() {
    let top = root();
    let mut chain = Vec::new();
    let mut parent_cert = top.cert().clone();
    let mut parent_key = None;
    for depth in 0..4 {
        let key = PrivateKey::generate().unwrap();
        let mut params = leaf_params(&id("ca"));
        params.subject_alt_names.clear();
        params.extended_key_usages.clear();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("intermediate {depth}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let cert = match &parent_key {
            None => top.sign_anything(&params, &key),
            Some(parent) => sign(&parent_cert, parent, &params, &key),
        };
        chain.insert(0, cert.clone());
        (parent_cert, parent_key) = (cert, Some(key));
        let leaf_key = PrivateKey::generate().unwrap();
        let leaf = sign(
            &parent_cert,
            parent_key.as_ref().unwrap(),
            &leaf_params(&id("web")),
            &leaf_key,
        );
        let bundle = TrustBundle::new([top.cert().clone()]).unwrap();
        let got = verify_chain(
            &leaf,
            &chain,
            &bundle,
            Usage::Client,
            Expected::Domains(&[domain()]),
            now(),
        );
        match depth {
            0..3 => assert_eq!(got, Ok(id("web"))),
            _ => assert_eq!(got, Err(VerifyError::ChainTooLong(5))),
        }
    }
}

#[test]
fn row_30_a_workload_cannot_issue_certificates() {
    let root = root();
    let (web, forger) = (
        PrivateKey::generate().unwrap(),
        PrivateKey::generate().unwrap(),
    );
    let own = root.sign_anything(&leaf_params(&id("web")), &forger);
    // What it signs with its own honest certificate names somebody else.
    let mut issuer = leaf_params(&id("web"));
    issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let pretended = issuer.self_signed(&forger).unwrap();
    let forged = sign(pretended.der(), &forger, &leaf_params(&id("admin")), &web);
    let bundle = TrustBundle::new([root.cert().clone()]).unwrap();
    let verify = |leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]| {
        let expected = Expected::Domains(&[domain()]);
        verify_chain(leaf, intermediates, &bundle, Usage::Client, expected, now())
    };
    assert_eq!(verify(&own, &[]), Ok(id("web")), "it is honest by itself");
    assert!(verify(&forged, std::slice::from_ref(&own)).is_err());
    assert!(verify(&forged, &[own, pretended.der().clone()]).is_err());
    assert!(verify(&forged, &[]).is_err());
}

fn sign(
    parent: &CertificateDer<'_>,
    parent_key: &PrivateKey,
    params: &CertificateParams,
    key: &PrivateKey,
) -> CertificateDer<'static> {
    let issuer = rcgen::Issuer::from_ca_cert_der(parent, parent_key).unwrap();
    params.signed_by(key, &issuer).unwrap().der().clone()
}
