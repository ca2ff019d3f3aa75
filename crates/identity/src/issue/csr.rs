//! Looking a signing request over before anything is signed.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as Spki;

use super::IssueRequest;
use crate::error::Error;
use crate::spiffe::TrustDomain;

/// Longest request: an RSA 4096 one is under 2 KiB.
const MAX_BYTES: usize = 16 * 1024;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// The public key of a request that is well formed, signed by its own key and asks for nothing that is not the caller's.
pub(super) fn check(pem: &str, request: &IssueRequest<'_>) -> Result<SubjectPublicKeyInfo, Error> {
    let fail = |reason: String| Err(Error::Csr(reason));
    if pem.len() > MAX_BYTES {
        return fail(format!("longer than {MAX_BYTES} bytes"));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| Error::Csr("not a PEM certificate request".into()))?;
    let Ok(([], csr)) = X509CertificationRequest::from_der(&der) else {
        return fail("malformed PKCS#10".into());
    };
    let info = &csr.certification_request_info;
    // The kind of key comes first: verifying with an enormous one is what an attacker would like.
    check_key(&info.subject_pki)?;
    check_names(&csr, request)?;
    if csr.verify_signature().is_err() {
        return fail("it is not signed by the key in it".into());
    }
    public_key(&info.subject_pki)
}

/// The trust domain that a root's URI name gives.
pub(super) fn trust_domain(cert: &X509Certificate<'_>) -> Option<TrustDomain> {
    let names = cert.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => TrustDomain::new(uri.strip_prefix("spiffe://")?).ok(),
            _ => None,
        })
}

fn check_key(spki: &Spki<'_>) -> Result<(), Error> {
    match spki.parsed() {
        Ok(PublicKey::EC(point)) if matches!(point.key_size(), 256 | 384) => Ok(()),
        Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&rsa.key_size()) => Ok(()),
        Ok(PublicKey::RSA(rsa)) => Err(Error::Csr(format!(
            "an RSA key of {} bits; 2048 to 4096 are taken",
            rsa.key_size()
        ))),
        _ => Err(Error::Csr(
            "the key is of another kind than ECDSA P-256, P-384 or RSA".into(),
        )),
    }
}

fn check_names(
    csr: &X509CertificationRequest<'_>,
    request: &IssueRequest<'_>,
) -> Result<(), Error> {
    let Some(extensions) = csr.requested_extensions() else {
        return Ok(());
    };
    for extension in extensions {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    check_name(name, request)?;
                }
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                return Err(Error::Csr("it asks for a CA certificate".into()));
            }
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                return Err(Error::Csr(
                    "it asks for the right to sign certificates".into(),
                ));
            }
            // Everything else is ours to decide and is not copied.
            _ => {}
        }
    }
    Ok(())
}

fn check_name(name: &GeneralName<'_>, request: &IssueRequest<'_>) -> Result<(), Error> {
    match name {
        GeneralName::URI(uri) if *uri == request.id.as_str() => Ok(()),
        GeneralName::DNSName(name) if request.dns_names.contains(name) => Ok(()),
        GeneralName::URI(name) | GeneralName::DNSName(name) => {
            let name: String = name.chars().take(128).collect();
            Err(Error::Csr(format!(
                "it names `{}`, but the caller is {}",
                name.escape_default(),
                request.id
            )))
        }
        _ => Err(Error::Csr(format!(
            "it has a name that is neither URI nor DNS name; the caller is {}",
            request.id
        ))),
    }
}

fn public_key(spki: &Spki<'_>) -> Result<SubjectPublicKeyInfo, Error> {
    SubjectPublicKeyInfo::from_der(spki.raw)
        .map_err(|_| Error::Csr("its key's parameters are unknown".into()))
}
