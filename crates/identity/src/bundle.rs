//! Trust bundles: the roots that a mesh believes in. Several at a time, so that roots rotate by overlap.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};

use crate::error::Error;
use crate::{pem, svid};

/// Most roots in one bundle: an overlap needs two.
const MAX_ROOTS: usize = 16;
/// Longest bundle text.
const MAX_BYTES: usize = 256 * 1024;

/// The roots of a trust domain: at least one, at most sixteen, no duplicates.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    /// Seconds since the epoch at which each root ends: webpki does not look at a root's own validity.
    ends: Vec<u64>,
}

impl TrustBundle {
    /// A bundle of these roots.
    ///
    /// # Errors
    /// If there is none or too many, or one is not a CA certificate.
    pub fn new(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, Error> {
        let mut bundle = Self {
            roots: Vec::new(),
            anchors: Vec::new(),
            ends: Vec::new(),
        };
        for root in roots {
            bundle.add(root)?;
        }
        if bundle.roots.is_empty() {
            return Err(Error::document(
                "trust bundle",
                "there is no certificate in it",
            ));
        }
        Ok(bundle)
    }

    /// Parses PEM text.
    ///
    /// # Errors
    /// As [`TrustBundle::new`], or if the text is no PEM.
    pub fn from_pem(text: &[u8]) -> Result<Self, Error> {
        if text.len() > MAX_BYTES {
            return Err(Error::document(
                "trust bundle",
                format!("longer than {MAX_BYTES} bytes"),
            ));
        }
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
        Self::new(roots.map_err(|e| Error::document("trust bundle", e))?)
    }

    /// Reads a PEM file.
    ///
    /// # Errors
    /// If it cannot be read, or as [`TrustBundle::from_pem`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::from_pem(&std::fs::read(path).map_err(|e| Error::file(path, e))?)
    }

    /// The same bundle with one root more (none if it has it already).
    ///
    /// # Errors
    /// If the bundle is full, or `root` is not a CA certificate.
    pub fn with(&self, root: CertificateDer<'static>) -> Result<Self, Error> {
        let mut bundle = self.clone();
        bundle.add(root)?;
        Ok(bundle)
    }

    /// PEM text, roots in their order.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::certificates(&self.roots)
    }

    /// The roots.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// What an operator is shown of each root: subject, serial number in hex, end of validity.
    #[must_use]
    pub fn describe(&self) -> Vec<RootInfo> {
        let info = |root: &CertificateDer<'_>| {
            svid::parse(root).map(|cert| RootInfo {
                subject: cert.subject().to_string(),
                serial: svid::serial(&cert),
                not_before: svid::time(cert.validity().not_before),
                not_after: svid::time(cert.validity().not_after),
            })
        };
        self.roots
            .iter()
            .filter_map(|root| info(root).ok())
            .collect()
    }

    /// The trust anchors that are still valid.
    pub(crate) fn anchors_at(&self, now: UnixTime) -> Cow<'_, [TrustAnchor<'static>]> {
        if self.ends.iter().all(|end| now.as_secs() <= *end) {
            return Cow::Borrowed(&self.anchors);
        }
        let valid = self
            .anchors
            .iter()
            .zip(&self.ends)
            .filter(|(_, end)| now.as_secs() <= **end);
        Cow::Owned(valid.map(|(anchor, _)| anchor.clone()).collect())
    }

    /// The roots as rustls' own verifiers take them.
    pub(crate) fn store(&self) -> RootCertStore {
        RootCertStore {
            roots: self.anchors.clone(),
        }
    }

    fn add(&mut self, root: CertificateDer<'static>) -> Result<(), Error> {
        if self.roots.contains(&root) {
            return Ok(());
        }
        let fail = |reason: String| Err(Error::document("trust bundle", reason));
        if self.roots.len() == MAX_ROOTS {
            return fail(format!("more than {MAX_ROOTS} certificates"));
        }
        let (authority, end) = {
            let cert = svid::parse(&root)?;
            (cert.is_ca(), svid::time(cert.validity().not_after))
        };
        if !authority {
            return fail(format!("certificate {} is not a CA", self.roots.len() + 1));
        }
        let anchor = webpki::anchor_from_trusted_cert(&root)
            .map_err(|e| Error::document("trust bundle", e))?
            .to_owned();
        self.ends
            .push(end.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
        self.anchors.push(anchor);
        self.roots.push(root);
        Ok(())
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.roots == other.roots
    }
}

impl Eq for TrustBundle {}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({} roots)", self.roots.len())
    }
}

/// What an operator is shown of a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootInfo {
    /// Subject.
    pub subject: String,
    /// Serial number in hex.
    pub serial: String,
    /// Begin of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}
