//! The CA's side: roots, and issuing SVIDs for certificate signing requests.
//!
//! Who the caller is comes from outside (its token); a request only contributes a public key, and is refused when it asks
//! for anything that the caller is not.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::bundle::TrustBundle;
use crate::error::Error;
use crate::key::{PrivateKey, uri_name};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::{self, Svid};
use crate::{file, pem};

mod csr;

/// How far `notBefore` lies in the past: clocks differ, by five minutes and more where nobody keeps them.
pub(crate) const BACKDATE: Duration = Duration::from_secs(600);

/// A self-signed root with its key.
pub struct Root {
    cert: CertificateDer<'static>,
    key: PrivateKey,
    domain: TrustDomain,
    not_after: SystemTime,
}

impl Root {
    /// Makes a root for a trust domain.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn generate(domain: &TrustDomain, lifetime: Duration) -> Result<Self, Error> {
        Self::generate_at(domain, lifetime, SystemTime::now())
    }

    pub(crate) fn generate_at(
        domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let key = PrivateKey::generate()?;
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + lifetime).into();
        let serial = serial()?;
        // Two roots of one mesh need different subjects, or paths between them are ambiguous.
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Tulle");
        params.distinguished_name.push(
            DnType::CommonName,
            format!("{domain} root {:02x}{:02x}", serial[1], serial[2]),
        );
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.subject_alt_names = vec![uri_name(&domain.uri())?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params
            .self_signed(&key)
            .map_err(|e| Error::document("root certificate", e))?
            .der()
            .clone();
        Self::new(cert, key)
    }

    /// Joins a root certificate with its key.
    ///
    /// # Errors
    /// If it is no CA, names no trust domain, or the key is another's.
    pub fn new(cert: CertificateDer<'static>, key: PrivateKey) -> Result<Self, Error> {
        let fail = |reason: &str| Err(Error::document("root certificate", reason));
        let (domain, not_after) = {
            let parsed = svid::parse(&cert)?;
            if !parsed.is_ca() {
                return fail("it is not a CA certificate");
            }
            if parsed.public_key().subject_public_key.data.as_ref()
                != rcgen::PublicKeyData::der_bytes(&key)
            {
                return fail("the private key is another's");
            }
            let Some(domain) = csr::trust_domain(&parsed) else {
                return fail("it has no URI name of the form spiffe://<trust domain>");
            };
            (domain, svid::time(parsed.validity().not_after))
        };
        Ok(Self {
            cert,
            key,
            domain,
            not_after,
        })
    }

    /// Reads key and certificate from PEM text.
    ///
    /// # Errors
    /// If one is missing or broken, or as [`Root::new`].
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let cert = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|e| Error::document("root certificate", e))?;
        Self::new(cert, PrivateKey::from_pem(text)?)
    }

    /// Key and certificate as PEM: a secret.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut text = self.key.to_pem();
        text.push_str(&self.cert_pem());
        text
    }

    /// The certificate as PEM.
    #[must_use]
    pub fn cert_pem(&self) -> String {
        pem::certificate(&self.cert)
    }

    /// Reads a root that [`Root::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, or as [`Root::from_pem`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::from_pem(&file::read_secret(path)?)
    }

    /// Writes key and certificate, readable by the owner only (mode 0600), all or nothing.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        file::write_secret(path, self.to_pem().as_bytes())
    }

    /// The certificate.
    #[must_use]
    pub fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// The trust domain that it vouches for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// End of validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    fn signer(&self) -> Result<rcgen::Issuer<'static, &PrivateKey>, Error> {
        rcgen::Issuer::from_ca_cert_der(&self.cert, &self.key)
            .map_err(|e| Error::Issue(e.to_string()))
    }

    /// Signs whatever it is given: what a hostile or clumsy CA might do.
    #[cfg(test)]
    pub(crate) fn sign_anything(
        &self,
        params: &CertificateParams,
        key: &PrivateKey,
    ) -> CertificateDer<'static> {
        params
            .signed_by(key, &self.signer().unwrap())
            .unwrap()
            .der()
            .clone()
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

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
        let bundle = TrustBundle::new(std::iter::once(root.cert.clone()).chain(others))?;
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
        if request.id.domain() != self.root.domain.as_str() {
            return Err(Error::Csr(format!(
                "{} is not of trust domain {}",
                request.id, self.root.domain
            )));
        }
        let not_after = (now + ttl).min(self.root.not_after);
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
            chain: vec![leaf.der().clone(), self.root.cert.clone()],
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
