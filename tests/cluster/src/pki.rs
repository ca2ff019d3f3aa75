//! The cluster's certificates, and the kubeconfigs that carry them.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use crate::network::CONTROL_V4;

/// Who may do everything.
pub(crate) const ADMIN: Name<'static> = Name {
    user: "admin",
    group: Some("system:masters"),
};

/// Whom a certificate names, as the API server understands it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name<'a> {
    pub(crate) user: &'a str,
    pub(crate) group: Option<&'a str>,
}

impl<'a> Name<'a> {
    /// Somebody without a group.
    pub(crate) fn user(user: &'a str) -> Self {
        Self { user, group: None }
    }
}

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// The one authority of the cluster.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = params(Name::user("cluster-ca"), &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages.clear();
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// Its own certificate and key.
    pub(crate) fn pair(&self) -> Pair {
        Pair {
            certificate: self.certificate.clone(),
            key: self.issuer.key().serialize_pem(),
        }
    }

    /// A certificate for a server at these names and addresses, or for a client.
    pub(crate) fn issue(&self, name: Name<'_>, at: &[String]) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let certificate = params(name, at)?.signed_by(&key, &self.issuer)?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// What a client of the API server needs to know; complete in itself.
    pub(crate) fn kubeconfig(&self, name: Name<'_>) -> Result<String> {
        let pair = self.issue(name, &[])?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "cluster",
            "contexts": [{ "name": "cluster", "context": { "cluster": "cluster", "user": name.user } }],
            "clusters": [{ "name": "cluster", "cluster": {
                "server": format!("https://{CONTROL_V4}:6443"),
                "certificate-authority-data": STANDARD.encode(&self.certificate),
            }}],
            "users": [{ "name": name.user, "user": {
                "client-certificate-data": STANDARD.encode(&pair.certificate),
                "client-key-data": STANDARD.encode(&pair.key),
            }}],
        });
        Ok(format!("{config:#}\n"))
    }
}

fn params(name: Name<'_>, at: &[String]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(at)?;
    params
        .distinguished_name
        .push(DnType::CommonName, name.user);
    if let Some(group) = name.group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}
