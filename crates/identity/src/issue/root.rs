//! The certificate that signs, and what peers believe of it.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData,
    SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use super::{BACKDATE, csr, serial};
use crate::error::Error;
use crate::key::{PrivateKey, uri_name};
use crate::spiffe::TrustDomain;
use crate::{file, pem, svid};

/// Most certificates between a leaf and its root: peers take four with the leaf.
const MOST_ABOVE: usize = 3;

/// A certificate that signs, with its key: a root, or below a root that is known only by its certificate.
pub struct Root {
    cert: CertificateDer<'static>,
    /// Its issuers in order, the root last; none if it is the root.
    above: Vec<CertificateDer<'static>>,
    key: RootKey,
    domain: TrustDomain,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Ours, or of a kind that others make.
enum RootKey {
    Own(PrivateKey),
    Other(Box<KeyPair>, Zeroizing<String>),
}

impl RootKey {
    fn from_pem(text: &str) -> Result<Self, Error> {
        if let Ok(own) = PrivateKey::from_pem(text) {
            return Ok(Self::Own(own));
        }
        let pair = KeyPair::from_pem(text)
            .map_err(|_| Error::Key("not an ECDSA or RSA key in PKCS#8, SEC1 or PKCS#1"))?;
        let known = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_RSA_SHA256,
        ];
        if !known.contains(&pair.algorithm()) {
            return Err(Error::Key("neither ECDSA P-256, P-384 nor RSA"));
        }
        let text = Zeroizing::new(pair.serialize_pem());
        Ok(Self::Other(Box::new(pair), text))
    }

    fn to_pem(&self) -> Zeroizing<String> {
        match self {
            Self::Own(key) => key.to_pem(),
            Self::Other(_, text) => text.clone(),
        }
    }
}

impl PublicKeyData for RootKey {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::Own(key) => key.der_bytes(),
            Self::Other(pair, _) => pair.der_bytes(),
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self {
            Self::Own(key) => PublicKeyData::algorithm(key),
            Self::Other(pair, _) => PublicKeyData::algorithm(&**pair),
        }
    }
}

impl rcgen::SigningKey for RootKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Self::Own(key) => key.sign(message),
            Self::Other(pair, _) => pair.sign(message),
        }
    }
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
        Self::join(vec![cert], RootKey::Own(key), None)
    }

    /// Joins a chain, the signing certificate first and the root last, with the key of the first.
    fn join(
        chain: Vec<CertificateDer<'static>>,
        key: RootKey,
        otherwise: Option<&TrustDomain>,
    ) -> Result<Self, Error> {
        let fail = |reason: &str| Err(Error::document("root certificate", reason));
        let mut above = chain;
        if above.is_empty() {
            return fail("there is none");
        }
        let cert = above.remove(0);
        if above.len() > MOST_ABOVE {
            return fail("too many certificates are above it: peers take three");
        }
        let (domain, not_before, not_after) = {
            let parsed = svid::parse(&cert)?;
            let mut not_before = svid::time(parsed.validity().not_before);
            let mut not_after = svid::time(parsed.validity().not_after);
            if !parsed.is_ca() {
                return fail("it is not a CA certificate");
            }
            if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
                return fail("the private key is another's");
            }
            let mut below = parsed.clone();
            for issuer in &above {
                let issuer = svid::parse(issuer)?;
                if !issuer.is_ca() || below.verify_signature(Some(issuer.public_key())).is_err() {
                    return fail(
                        "the certificates above it are not its issuers, one after the other",
                    );
                }
                not_before = not_before.max(svid::time(issuer.validity().not_before));
                not_after = not_after.min(svid::time(issuer.validity().not_after));
                below = issuer;
            }
            let Some(domain) = csr::trust_domain(&parsed).or_else(|| otherwise.cloned()) else {
                return fail("it has no URI name of the form spiffe://<trust domain>");
            };
            (domain, not_before, not_after)
        };
        Ok(Self {
            cert,
            above,
            key,
            domain,
            not_before,
            not_after,
        })
    }

    /// What others provide: the signing certificate with its issuers but the root, its key, and the root (PEM). If the
    /// certificate names no trust domain, it is good for `domain`.
    ///
    /// # Errors
    /// If one is missing or broken, the key is another's, the first is no CA, or the chain does not end at the root.
    pub fn from_parts(
        chain: &str,
        key: &str,
        root: &str,
        domain: &TrustDomain,
    ) -> Result<Self, Error> {
        let mut chain = certificates(chain)?;
        for root in certificates(root)? {
            let last = chain.last().map(svid::parse).transpose()?;
            let ends = last.is_some_and(|last| last.subject() == last.issuer());
            let above = svid::parse(&root)?;
            let is_above = chain.last().is_some_and(|last| {
                svid::parse(last).is_ok_and(|last| last.issuer() == above.subject())
            });
            if !ends && is_above {
                chain.push(root);
            }
        }
        let root = Self::join(chain, RootKey::from_pem(key)?, Some(domain))?;
        let anchor = svid::parse(root.anchor())?;
        if anchor.subject() != anchor.issuer() {
            return Err(Error::document(
                "root certificate",
                "its issuers do not end at a root: the root belongs into ca.crt",
            ));
        }
        Ok(root)
    }

    /// Reads key and certificate from PEM text.
    ///
    /// # Errors
    /// If one is missing or broken, or as [`Root::new`].
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        Self::join(certificates(text)?, RootKey::from_pem(text)?, None)
    }

    /// Reads what [`Root::to_pem`] has written, for a trust domain unless the certificate names another.
    ///
    /// # Errors
    /// If it is missing or broken, or as [`Root::new`].
    pub fn from_pem_for(text: &str, domain: &TrustDomain) -> Result<Self, Error> {
        Self::join(certificates(text)?, RootKey::from_pem(text)?, Some(domain))
    }

    /// Key and certificates as PEM: a secret.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut text = self.key.to_pem();
        text.push_str(&pem::certificate(&self.cert));
        text.push_str(&pem::certificates(&self.above));
        text
    }

    /// The root's certificate as PEM.
    #[must_use]
    pub fn cert_pem(&self) -> String {
        pem::certificate(self.anchor())
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

    /// The root's certificate: what peers believe.
    #[must_use]
    pub fn cert(&self) -> &CertificateDer<'static> {
        self.anchor()
    }

    /// The trust domain that it vouches for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Begin of validity: its own, or that of whatever is above it.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// What a leaf is shown with: the certificate that signed it and all above it, the root last.
    pub(super) fn chain(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.cert).chain(&self.above)
    }

    fn anchor(&self) -> &CertificateDer<'static> {
        self.above.last().unwrap_or(&self.cert)
    }

    pub(super) fn signer(&self) -> Result<rcgen::Issuer<'static, impl rcgen::SigningKey>, Error> {
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

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    read.map_err(|e| Error::document("root certificate", e))
}
