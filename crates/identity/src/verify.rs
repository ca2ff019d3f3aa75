//! Judging a peer's chain: path to a root of ours, validity, purpose, and exactly one SPIFFE id that is expected.

use std::sync::{Arc, LazyLock};
use std::{fmt, io};

use rustls::CertificateError;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::bundle::TrustBundle;
use crate::spiffe::{ParseIdError, SpiffeId, TrustDomain};

/// Most certificates that a peer may present.
const MAX_CHAIN: usize = 4;

static ALGORITHMS: LazyLock<&'static [&'static dyn SignatureVerificationAlgorithm]> =
    LazyLock::new(|| default_provider().signature_verification_algorithms.all);

/// Why a peer's certificate was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The peer presented nothing.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// More certificates than any honest chain has.
    #[error("the peer presented {0} certificates, at most 4 are taken")]
    ChainTooLong(usize),
    /// The leaf does not parse.
    #[error("the peer's certificate is malformed")]
    Malformed,
    /// A SPIFFE certificate has one URI name.
    #[error("the peer's certificate has {0} URI names, expected exactly one")]
    UriNames(usize),
    /// A kind of name that a workload's certificate never has.
    #[error(
        "the peer's certificate has a name that is neither a URI, a DNS name nor an IP address"
    )]
    ForeignName,
    /// The URI is not a workload's SPIFFE id.
    #[error("the peer's certificate names no mesh workload: {0}")]
    Id(ParseIdError),
    /// It belongs to another mesh.
    #[error("the peer is {id}: its trust domain is not accepted here")]
    WrongTrustDomain {
        /// Who it is.
        id: SpiffeId,
    },
    /// It is not whom we called.
    #[error("the peer is {id}, expected {}", list(expected))]
    UnexpectedId {
        /// Who it is.
        id: SpiffeId,
        /// Who it may be.
        expected: Vec<SpiffeId>,
    },
    /// Its time is over, or one of its issuers' is.
    #[error("the peer's certificate expired {ago} s ago")]
    Expired {
        /// Seconds since then.
        ago: u64,
    },
    /// Its time has not come.
    #[error("the peer's certificate is not valid for another {ahead} s; compare the clocks")]
    NotValidYet {
        /// Seconds until then.
        ahead: u64,
    },
    /// No path to one of our roots.
    #[error("the peer's certificate is not signed by a root in the trust bundle")]
    UntrustedIssuer,
    /// Not made for this end of a connection.
    #[error("the peer's certificate lacks the extended key usage {0}")]
    Purpose(&'static str),
    /// Whatever else webpki finds.
    #[error("the peer's certificate does not verify: {0}")]
    Other(String),
}

/// Which end of a connection a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The peer is a client.
    Client,
    /// The peer is a server.
    Server,
}

impl Usage {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "clientAuth",
            Self::Server => "serverAuth",
        }
    }
}

/// Whom we accept.
#[derive(Clone, Copy, Debug)]
pub enum Expected<'a> {
    /// One of these workloads.
    Ids(&'a [SpiffeId]),
    /// Any workload of these trust domains.
    Domains(&'a [TrustDomain]),
}

/// Verifies a certificate, with the intermediates that its owner sent, at a point in time and says whom it names.
///
/// # Errors
/// What is wrong with it.
pub fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    usage: Usage,
    expected: Expected<'_>,
    now: UnixTime,
) -> Result<SpiffeId, VerifyError> {
    if intermediates.len() >= MAX_CHAIN {
        return Err(VerifyError::ChainTooLong(intermediates.len() + 1));
    }
    let entity = EndEntityCert::try_from(leaf).map_err(|_| VerifyError::Malformed)?;
    let purpose = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    entity
        .verify_for_usage(
            *ALGORITHMS,
            &bundle.anchors_at(now),
            intermediates,
            now,
            purpose,
            None,
            None,
        )
        .map_err(|e| from_webpki(e, usage))?;
    let leaf = parse(leaf)?;
    // webpki lets a certificate without any extended key usage pass; we do not.
    if !has_purpose(&leaf, usage) {
        return Err(VerifyError::Purpose(usage.name()));
    }
    let id = id_of(&leaf)?;
    match expected {
        Expected::Ids(ids) if !ids.contains(&id) => Err(VerifyError::UnexpectedId {
            id,
            expected: ids.to_vec(),
        }),
        Expected::Domains(domains)
            if !domains.iter().any(|domain| domain.as_str() == id.domain()) =>
        {
            Err(VerifyError::WrongTrustDomain { id })
        }
        _ => Ok(id),
    }
}

/// Whom a finished connection's certificates name. The handshake has verified them already.
///
/// # Errors
/// If there is no certificate, or it does not name exactly one mesh workload.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, VerifyError> {
    spiffe_id(chain.first().ok_or(VerifyError::NoCertificate)?)
}

/// The one SPIFFE id in a certificate.
pub(crate) fn spiffe_id(cert: &CertificateDer<'_>) -> Result<SpiffeId, VerifyError> {
    id_of(&parse(cert)?)
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, VerifyError> {
    match x509_parser::parse_x509_certificate(cert) {
        Ok(([], cert)) => Ok(cert),
        _ => Err(VerifyError::Malformed),
    }
}

fn has_purpose(cert: &X509Certificate<'_>, usage: Usage) -> bool {
    cert.extended_key_usage()
        .ok()
        .flatten()
        .is_some_and(|extension| match usage {
            Usage::Client => extension.value.client_auth,
            Usage::Server => extension.value.server_auth,
        })
}

fn id_of(cert: &X509Certificate<'_>) -> Result<SpiffeId, VerifyError> {
    let names = match cert.subject_alternative_name() {
        Ok(Some(extension)) => extension.value.general_names.as_slice(),
        Ok(None) => &[],
        Err(_) => return Err(VerifyError::Malformed),
    };
    let mut uris = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(_) | GeneralName::IPAddress(_) => {}
            _ => return Err(VerifyError::ForeignName),
        }
    }
    match uris.as_slice() {
        [uri] => SpiffeId::parse(uri).map_err(VerifyError::Id),
        other => Err(VerifyError::UriNames(other.len())),
    }
}

/// A refusal on its way through rustls, which prints what it does not know by `Debug`: so that says it in words too.
#[derive(thiserror::Error)]
#[error("{0}")]
struct Refusal(VerifyError);

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::NoCertificate => Self::NoCertificatesPresented,
            other => CertificateError::Other(rustls::OtherError(Arc::new(Refusal(other)))).into(),
        }
    }
}

/// Our own reason for a handshake that failed, if we refused the peer's certificate.
#[must_use]
pub fn refusal(error: &io::Error) -> Option<&VerifyError> {
    let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match tls {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            other.0.downcast_ref::<Refusal>().map(|refusal| &refusal.0)
        }
        rustls::Error::NoCertificatesPresented => Some(&VerifyError::NoCertificate),
        _ => None,
    }
}

fn from_webpki(error: webpki::Error, usage: Usage) -> VerifyError {
    use webpki::Error as E;
    match error {
        E::CertExpired { time, not_after } => VerifyError::Expired {
            ago: time.as_secs().saturating_sub(not_after.as_secs()),
        },
        E::CertNotValidYet { time, not_before } => VerifyError::NotValidYet {
            ahead: not_before.as_secs().saturating_sub(time.as_secs()),
        },
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => VerifyError::UntrustedIssuer,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => {
            VerifyError::Purpose(usage.name())
        }
        E::BadDer | E::BadDerTime | E::TrailingData(_) => VerifyError::Malformed,
        other => VerifyError::Other(other.to_string()),
    }
}

fn list(ids: &[SpiffeId]) -> String {
    let names: Vec<_> = ids.iter().take(4).map(SpiffeId::as_str).collect();
    let more = ids.len().saturating_sub(names.len());
    if more == 0 {
        names.join(" or ")
    } else {
        format!("{} or {more} more", names.join(" or "))
    }
}

#[cfg(test)]
mod tests;
