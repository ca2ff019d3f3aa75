//! An SVID: a certificate chain that names a SPIFFE id, with its private key.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::time::ASN1Time;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::key::PrivateKey;
use crate::spiffe::SpiffeId;
use crate::{pem, verify};

/// A workload's certificate and key. Cheap to clone.
#[derive(Clone)]
pub struct Svid {
    id: SpiffeId,
    key: Arc<PrivateKey>,
    certified: Arc<CertifiedKey>,
    serial: Arc<str>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Svid {
    /// Joins a chain (leaf first; self-signed roots are left out, peers have them) with its key.
    ///
    /// # Errors
    /// If the leaf does not name exactly one mesh workload, or the key is not the leaf's.
    pub fn new(mut chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, Error> {
        let leaf = chain
            .first()
            .ok_or_else(|| Error::document("certificate chain", "it is empty"))?;
        let id = verify::spiffe_id(leaf)?;
        let (serial, not_before, not_after) = {
            let cert = parse(leaf)?;
            (
                serial(&cert).into(),
                time(cert.validity().not_before),
                time(cert.validity().not_after),
            )
        };
        let mut position = 0;
        chain.retain(|cert| {
            position += 1;
            position == 1 || parse(cert).is_ok_and(|cert| cert.subject() != cert.issuer())
        });
        let certified = CertifiedKey::new(chain, key.signer()?);
        certified
            .keys_match()
            .map_err(|_| Error::Key("it does not belong to the certificate"))?;
        Ok(Self {
            id,
            key: Arc::new(key),
            certified: Arc::new(certified),
            serial,
            not_before,
            not_after,
        })
    }

    /// Reads PEM text with a `PRIVATE KEY` and `CERTIFICATE` sections, leaf first.
    ///
    /// # Errors
    /// If a section is missing or broken, or as [`Svid::new`].
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        Self::new(
            chain.map_err(|e| Error::document("certificate chain", e))?,
            PrivateKey::from_pem(text)?,
        )
    }

    /// Key and chain as PEM, to be kept where only the owner reads it.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut text = self.key.to_pem();
        text.push_str(&self.chain_pem());
        text
    }

    /// The chain as PEM, leaf first, without the key.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        pem::certificates(self.chain())
    }

    /// Whom it names.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificates, leaf first, without roots.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Serial number of the leaf, in hex.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Begin of validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

/// Parses one certificate, all of it.
pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) => Err(Error::document("certificate", "bytes after its end")),
        Err(e) => Err(Error::document("certificate", e)),
    }
}

/// Serial number in hex.
pub(crate) fn serial(cert: &X509Certificate<'_>) -> String {
    cert.raw_serial()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A certificate's time; before 1970 counts as 1970.
pub(crate) fn time(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}
