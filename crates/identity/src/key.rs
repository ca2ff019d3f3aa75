//! Private keys (ECDSA P-256) and certificate signing requests.
//!
//! A key is zeroized when dropped and prints as nothing; it signs for rcgen here and for rustls in `svid`.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rcgen::{
    CertificateParams, DistinguishedName, PKCS_ECDSA_P256_SHA256, SanType, SignatureAlgorithm,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::pem;
use crate::spiffe::SpiffeId;

/// An ECDSA P-256 private key.
pub struct PrivateKey {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    /// A fresh key.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn generate() -> Result<Self, Error> {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
                .map_err(|_| Error::Key("cannot be generated: no randomness"))?;
        Self::from_pkcs8(document.as_ref())
    }

    /// Reads PKCS#8 DER.
    ///
    /// # Errors
    /// If it is not a P-256 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, Error> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map_err(|_| Error::Key("not an ECDSA P-256 key in PKCS#8"))?;
        Ok(Self {
            pair,
            pkcs8: Zeroizing::new(der.to_vec()),
        })
    }

    /// Reads the first PKCS#8 section of a PEM text.
    ///
    /// # Errors
    /// If there is none, or it is not a P-256 key.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let mut key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| Error::Key("no PRIVATE KEY section in the PEM text"))?;
        let parsed = Self::from_pkcs8(key.secret_pkcs8_der());
        zeroize::Zeroize::zeroize(&mut key);
        parsed
    }

    /// PKCS#8 PEM.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        pem::encode_into(&mut text, "PRIVATE KEY", &self.pkcs8);
        text
    }

    /// A PEM certificate signing request for `id`. The CA decides by the caller's token, so the id in it is a courtesy to
    /// CAs that compare.
    ///
    /// # Errors
    /// If the request cannot be signed.
    pub fn csr(&self, id: &SpiffeId) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_name(id.as_str())?];
        let request = params
            .serialize_request(self)
            .and_then(|request| request.pem());
        request.map_err(|e| Error::document("certificate request", e))
    }

    /// The key as rustls signs with it.
    pub(crate) fn signer(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, Error> {
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.pkcs8.as_slice()));
        Ok(rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der)?)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.pair.sign(&SystemRandom::new(), message);
        Ok(signature
            .map_err(|_| rcgen::Error::RemoteKeyError)?
            .as_ref()
            .to_vec())
    }
}

/// A URI as rcgen writes it into a certificate.
pub(crate) fn uri_name(uri: &str) -> Result<SanType, Error> {
    Ok(SanType::URI(
        uri.try_into().map_err(|e| Error::document("URI name", e))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spiffe::TrustDomain;

    #[test]
    fn a_key_survives_its_pem_and_never_prints() {
        let key = PrivateKey::generate().unwrap();
        let text = key.to_pem();
        let again = PrivateKey::from_pem(&text).unwrap();
        assert_eq!(again.pkcs8, key.pkcs8);
        assert_eq!(format!("{key:?}"), "PrivateKey(..)");
        assert!(
            PrivateKey::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
                .is_err()
        );
        assert!(PrivateKey::from_pem("hello").is_err());
    }

    #[test]
    fn a_request_is_signed_and_names_the_id() {
        let id = SpiffeId::new(&TrustDomain::new("td").unwrap(), "a", "b").unwrap();
        let csr = PrivateKey::generate().unwrap().csr(&id).unwrap();
        let parsed = rcgen::CertificateSigningRequestParams::from_pem(&csr).unwrap();
        assert_eq!(
            parsed.params.subject_alt_names,
            [uri_name(id.as_str()).unwrap()]
        );
    }
}
