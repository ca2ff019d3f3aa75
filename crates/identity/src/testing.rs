//! Helpers of this crate's tests: meshes made on the spot, and certificates that no honest CA would sign.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;

use crate::issue::{CsrPolicy, IssueRequest, Issuer, Root};
use crate::key::{PrivateKey, uri_name};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::Svid;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::new("mesh.test").unwrap()
}

pub(crate) fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&domain(), "shop", account).unwrap()
}

pub(crate) fn root() -> Root {
    Root::generate(&domain(), 24 * HOUR).unwrap()
}

pub(crate) fn issuer() -> Issuer {
    Issuer::new(root(), [], CsrPolicy::default()).unwrap()
}

impl Issuer {
    pub(crate) fn svid(&self, id: &SpiffeId) -> Svid {
        self.issue_svid(&IssueRequest::new(id)).unwrap()
    }

    /// An SVID of one hour that was issued some time ago (or will be, if negative).
    pub(crate) fn svid_issued(&self, id: &SpiffeId, hours_ago: i32) -> Svid {
        let now = SystemTime::now();
        let shift = HOUR * hours_ago.unsigned_abs();
        let then = if hours_ago < 0 {
            now + shift
        } else {
            now - shift
        };
        self.issue_svid_at(
            &IssueRequest {
                ttl: Some(HOUR),
                ..IssueRequest::new(id)
            },
            then,
        )
        .unwrap()
    }
}

/// Parameters of an ordinary leaf, to be spoilt by the test.
pub(crate) fn leaf_params(id: &SpiffeId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + HOUR).into();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id.as_str())];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

pub(crate) fn uri(uri: &str) -> SanType {
    uri_name(uri).unwrap()
}

/// Signs a spoilt leaf with a fresh key.
pub(crate) fn forge(root: &Root, params: &CertificateParams) -> CertificateDer<'static> {
    root.sign_anything(params, &PrivateKey::generate().unwrap())
}
