//! The authority of linkerd2-proxy's certificates: what it reads certificates with, where a SPIFFE workload API hands them to
//! it, refuses one without a subject, as those of the others are. Else they are alike: P-256, no intermediate.

use std::path::PathBuf;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tulle_identity::SpiffeId;

use super::place;

fn root_file() -> PathBuf {
    place("linkerd-root.pem")
}

fn key_file() -> PathBuf {
    place("linkerd-root-key.pem")
}

/// A certificate for a workload, with its key.
pub(super) struct Issued {
    pub(super) leaf: Vec<u8>,
    pub(super) pkcs8: Vec<u8>,
}

/// Makes it, and puts it where pods find it.
pub(super) fn create() -> anyhow::Result<()> {
    let mut params = params();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    std::fs::write(root_file(), params.self_signed(&key)?.pem())?;
    Ok(std::fs::write(key_file(), key.serialize_pem())?)
}

/// Its certificate.
pub(super) fn pem() -> anyhow::Result<String> {
    std::fs::read_to_string(root_file()).context("there is no authority")
}

/// As [`pem`].
pub(crate) fn root() -> anyhow::Result<CertificateDer<'static>> {
    Ok(CertificateDer::from_pem_slice(pem()?.as_bytes())?)
}

pub(super) fn issue(id: &SpiffeId) -> anyhow::Result<Issued> {
    let root = KeyPair::from_pem(&std::fs::read_to_string(key_file())?)?;
    let issuer = Issuer::from_ca_cert_pem(&pem()?, root)?;
    let mut params = params();
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate()?;
    Ok(Issued {
        leaf: params.signed_by(&key, &issuer)?.der().to_vec(),
        pkcs8: key.serialize_der(),
    })
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "bench");
    params.not_before = date_time_ymd(2024, 1, 1);
    // What it reads certificates with writes later years in another way than they are signed.
    params.not_after = date_time_ymd(2049, 1, 1);
    params
}
