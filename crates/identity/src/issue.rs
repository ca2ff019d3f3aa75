//! The CA's side: roots, and issuing SVIDs for certificate signing requests.
//!
//! Who the caller is comes from outside (its token); a request only contributes a public key, and is refused when it asks
//! for anything that the caller is not.

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;

use crate::bundle::TrustBundle;
use crate::error::Error;
use crate::key::{PrivateKey, uri_name};
use crate::pem;
use crate::spiffe::SpiffeId;
use crate::svid::Svid;

mod csr;
mod root;

pub use root::Root;

/// How far `notBefore` lies in the past: clocks differ, by five minutes and more where nobody keeps them.
pub(crate) const BACKDATE: Duration = Duration::from_secs(600);

/// What an issuer grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CsrPolicy {
    /// Lifetime when the request names none.
    pub default_ttl: Duration,
    /// Longest lifetime; a request for more is refused.
    pub max_ttl: Duration,
}

impl Default for CsrPolicy {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self {
            default_ttl: day,
            max_ttl: day,
        }
    }
}

/// Who gets a certificate: decided by the caller of the issuer, not by the request.
#[derive(Clone, Debug)]
pub struct IssueRequest<'a> {
    /// Its SPIFFE id.
    pub id: &'a SpiffeId,
    /// Lifetime; `None`: the policy's default.
    pub ttl: Option<Duration>,
    /// DNS names; only control plane and webhook have any.
    pub dns_names: &'a [&'a str],
}

impl<'a> IssueRequest<'a> {
    /// A workload's certificate of default lifetime.
    #[must_use]
    pub fn new(id: &'a SpiffeId) -> Self {
        Self {
            id,
            ttl: None,
            dns_names: &[],
        }
    }
}

/// A fresh certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The leaf first, the root last.
    pub chain: Vec<CertificateDer<'static>>,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

impl Issued {
    /// One PEM text a certificate, as `CreateCertificate` answers.
    #[must_use]
    pub fn pem_chain(&self) -> Vec<String> {
        self.chain.iter().map(pem::certificate).collect()
    }
}

/// Signs requests with the current root, and knows the bundle that everybody should trust meanwhile.
#[derive(Debug)]
pub struct Issuer {
    root: Root,
    bundle: TrustBundle,
    policy: CsrPolicy,
}

impl Issuer {
    /// An issuer that signs with `root`. `others` stay trusted beside it while roots overlap: the next one before it signs,
    /// the last one until its leaves have ended.
    ///
    /// # Errors
    /// If the bundle is full or another root is no CA.
    pub fn new(
        root: Root,
        others: impl IntoIterator<Item = CertificateDer<'static>>,
        policy: CsrPolicy,
    ) -> Result<Self, Error> {
        let bundle = TrustBundle::new(std::iter::once(root.cert().clone()).chain(others))?;
        Ok(Self {
            root,
            bundle,
            policy,
        })
    }

    /// The signing root.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// All roots that everybody should trust now.
    #[must_use]
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// Issues a certificate for the public key in a PEM signing request.
    ///
    /// # Errors
    /// If the request is malformed or not signed by its key, the key is of a kind or size that is not taken, it asks for
    /// another's names, for a CA, or for too long a life.
    pub fn issue(&self, csr_pem: &str, request: &IssueRequest<'_>) -> Result<Issued, Error> {
        self.issue_at(csr_pem, request, SystemTime::now())
    }

    /// A fresh key with a certificate for it: the control plane's own.
    ///
    /// # Errors
    /// As [`Issuer::issue`].
    pub fn issue_svid(&self, request: &IssueRequest<'_>) -> Result<Svid, Error> {
        self.issue_svid_at(request, SystemTime::now())
    }

    pub(crate) fn issue_svid_at(
        &self,
        request: &IssueRequest<'_>,
        now: SystemTime,
    ) -> Result<Svid, Error> {
        let key = PrivateKey::generate()?;
        let issued = self.issue_at(&key.csr(request.id)?, request, now)?;
        Svid::new(issued.chain, key)
    }

    fn issue_at(
        &self,
        csr_pem: &str,
        request: &IssueRequest<'_>,
        now: SystemTime,
    ) -> Result<Issued, Error> {
        let public_key = csr::check(csr_pem, request)?;
        let ttl = request.ttl.unwrap_or(self.policy.default_ttl);
        if ttl.is_zero() || ttl > self.policy.max_ttl {
            let (asked, most) = (ttl.as_secs(), self.policy.max_ttl.as_secs());
            return Err(Error::Csr(format!(
                "a lifetime of {asked} s was asked for, at most {most} s are granted"
            )));
        }
        if request.id.domain() != self.root.trust_domain().as_str() {
            return Err(Error::Csr(format!(
                "{} is not of trust domain {}",
                request.id,
                self.root.trust_domain()
            )));
        }
        let not_after = (now + ttl).min(self.root.not_after());
        if not_after <= now {
            return Err(Error::Issue("the root has expired; rotate it".into()));
        }
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = not_after.into();
        params.serial_number = Some(SerialNumber::from_slice(&serial()?));
        // Nothing but the names: an empty subject makes rcgen write them as a critical extension, as SPIFFE asks.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_name(request.id.as_str())?];
        for name in request.dns_names {
            let name = Ia5String::try_from(*name).map_err(|e| Error::document("DNS name", e))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let leaf = params
            .signed_by(&public_key, &self.root.signer()?)
            .map_err(|e| Error::Issue(e.to_string()))?;
        Ok(Issued {
            chain: std::iter::once(leaf.der())
                .chain(self.root.chain())
                .cloned()
                .collect(),
            not_after,
        })
    }
}

/// A random positive serial number of 127 bits.
fn serial() -> Result<[u8; 16], Error> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| Error::Issue("no randomness for a serial number".into()))?;
    // Positive, and of a length that cannot shrink.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
