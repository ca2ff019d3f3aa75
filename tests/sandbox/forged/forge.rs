//! The forger's workshop: what is signed with the mesh's own key, and what is wrong with each piece.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::Value;
use tokio_rustls::rustls::SupportedProtocolVersion;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::version::TLS13;
use tulle_identity::{Root, TrustDomain};

/// Where the mesh's CA keeps its root.
const CA: &str = "/run/tulle/control/ca.json";
const HOUR: Duration = Duration::from_secs(3600);
/// The versions of TLS that a mesh speaks.
pub(crate) const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13];

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A certificate as it is shown, with its key, and whether it is to be believed.
pub(super) struct Shown {
    pub(super) name: &'static str,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) believed: bool,
}

impl Shown {
    /// The same, which nobody must believe.
    pub(super) fn disbelieved(mut self) -> Self {
        self.believed = false;
        self
    }
}

/// A root's key.
pub(super) struct Forger(Issuer<'static, KeyPair>);

impl Forger {
    /// With the key of the mesh's own root.
    pub(super) fn of_the_mesh() -> anyhow::Result<Self> {
        let state: Value = serde_json::from_slice(&std::fs::read(Path::new(CA))?)?;
        let secret = state["roots"][0]["secret"].as_str().context("no root")?;
        Self::of(secret)
    }

    /// With that of another mesh by the same name.
    fn elsewhere() -> anyhow::Result<Self> {
        let domain = TrustDomain::new("cluster.local")?;
        Self::of(&Root::generate(&domain, HOUR)?.to_pem())
    }

    fn of(secret: &str) -> anyhow::Result<Self> {
        let root = Root::from_pem(secret)?;
        let key = KeyPair::from_pem(secret)?;
        Ok(Self(Issuer::from_ca_cert_der(root.cert(), key)?))
    }

    /// What an honest CA would sign as well.
    pub(super) fn honest(&self, name: &'static str, id: &str) -> anyhow::Result<Shown> {
        self.signed(name, &params(id)?, true)
    }

    fn signed(
        &self,
        name: &'static str,
        params: &CertificateParams,
        believed: bool,
    ) -> anyhow::Result<Shown> {
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.0)?.der().clone();
        Ok(Shown {
            name,
            chain: vec![leaf],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            believed,
        })
    }

    /// A leaf below so many others that may sign.
    fn below(&self, name: &'static str, depth: usize, id: &str) -> anyhow::Result<Shown> {
        let mut chain = Vec::new();
        let mut parent: Option<Issuer<'static, KeyPair>> = None;
        for number in 0..depth {
            let key = KeyPair::generate()?;
            let mut params = params(id)?;
            params.subject_alt_names.clear();
            params.extended_key_usages.clear();
            let common = format!("{name} {number}");
            params.distinguished_name.push(DnType::CommonName, common);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let issuer = parent.as_ref().unwrap_or(&self.0);
            chain.insert(0, params.signed_by(&key, issuer)?.der().clone());
            parent = Some(Issuer::new(params, key));
        }
        let last = Self(parent.context("no depth")?);
        let mut shown = last.honest(name, id)?;
        shown.chain.extend(chain);
        Ok(shown)
    }
}

/// An ordinary leaf.
fn params(id: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + HOUR).into();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)?];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

fn uri(text: &str) -> anyhow::Result<SanType> {
    Ok(SanType::URI(text.try_into()?))
}

type Spoil = fn(&mut CertificateParams, &str) -> anyhow::Result<()>;

/// What is wrong with a leaf that the mesh's own root has signed.
const SPOILT: [(&str, Spoil); 12] = [
    ("expired", |leaf, _| {
        leaf.not_after = (SystemTime::now() - HOUR / 2).into();
        Ok(())
    }),
    ("not yet valid", |leaf, _| {
        leaf.not_before = (SystemTime::now() + HOUR / 2).into();
        Ok(())
    }),
    ("no purpose", |leaf, _| {
        leaf.extended_key_usages.clear();
        Ok(())
    }),
    ("another purpose", |leaf, _| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        Ok(())
    }),
    ("two ids", |leaf, id| {
        leaf.subject_alt_names.push(uri(&format!("{id}-2"))?);
        Ok(())
    }),
    ("two ids, the other one first", |leaf, id| {
        leaf.subject_alt_names.insert(0, uri(&format!("{id}-2"))?);
        Ok(())
    }),
    ("no name", |leaf, _| {
        leaf.subject_alt_names.clear();
        Ok(())
    }),
    ("the id in a name of another kind", |leaf, id| {
        let kind = vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3];
        leaf.subject_alt_names = vec![SanType::OtherName((kind, id.into()))];
        Ok(())
    }),
    ("the id, and a name of another kind", |leaf, id| {
        let kind = vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3];
        let name = SanType::OtherName((kind, id.into()));
        leaf.subject_alt_names.push(name);
        Ok(())
    }),
    ("the id in the subject", |leaf, id| {
        leaf.subject_alt_names.clear();
        leaf.distinguished_name.push(DnType::CommonName, id);
        Ok(())
    }),
    ("the id in a DNS name", |leaf, _| {
        leaf.subject_alt_names = vec![SanType::DnsName("client.cluster.local".try_into()?)];
        Ok(())
    }),
    ("a CA", |leaf, _| {
        leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(())
    }),
];

/// What looks like an id.
fn look_alikes(id: &str) -> Vec<(&'static str, String)> {
    let domain = |other: &str| id.replacen("cluster.local", other, 1);
    let (begin, account) = id.rsplit_once('/').unwrap_or((id, ""));
    vec![
        ("another trust domain", domain("evil")),
        ("a longer trust domain", domain("cluster.local.evil")),
        ("a shorter trust domain", domain("cluster")),
        ("a trust domain in capitals", domain("CLUSTER.local")),
        ("an encoded trust domain", domain("cluster%2elocal")),
        ("no trust domain", domain("")),
        ("a trust domain with a user", domain("a@cluster.local")),
        ("a trust domain with a port", domain("cluster.local:443")),
        ("a scheme in capitals", id.replacen("spiffe", "SPIFFE", 1)),
        ("another scheme", id.replacen("spiffe", "https", 1)),
        ("a segment more", format!("{id}/x")),
        ("a slash more at the end", format!("{id}/")),
        ("a slash more in the middle", format!("{begin}//{account}")),
        ("a dot for a segment", format!("{begin}/./{account}")),
        (
            "an encoded account",
            format!("{begin}/%{:02x}{}", account.as_bytes()[0], &account[1..]),
        ),
        (
            "an account in capitals",
            format!("{begin}/{}", account.to_uppercase()),
        ),
        ("a query", format!("{id}?a")),
        ("a fragment", format!("{id}#a")),
        ("NUL after the id", format!("{id}\0.evil")),
        ("a wildcard for the account", format!("{begin}/*")),
        (
            "a wildcard for everything",
            "spiffe://cluster.local/*".to_owned(),
        ),
        (
            "the trust domain's own",
            "spiffe://cluster.local".to_owned(),
        ),
    ]
}

/// One that is honest first; among the others there are those that look odd and are good.
pub(super) fn rows(forger: &Forger, id: &str) -> anyhow::Result<Vec<Shown>> {
    let mut rows = vec![forger.honest("an honest one", id)?];
    let mut named = params(id)?;
    let name = SanType::DnsName("a.b".try_into()?);
    named.subject_alt_names.push(name);
    rows.push(forger.signed("a DNS name beside the id", &named, true)?);
    rows.push(forger.below("below another", 1, id)?);
    rows.push(forger.below("far below", 4, id)?.disbelieved());
    let elsewhere = Forger::elsewhere()?.honest("another mesh's", id)?;
    rows.push(elsewhere.disbelieved());
    let mut own = params(id)?;
    own.is_ca = IsCa::NoCa;
    let key = KeyPair::generate()?;
    rows.push(Shown {
        name: "signed by itself",
        chain: vec![own.self_signed(&key)?.der().clone()],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        believed: false,
    });
    for (name, spoil) in SPOILT {
        let mut leaf = params(id)?;
        spoil(&mut leaf, id)?;
        rows.push(forger.signed(name, &leaf, false)?);
    }
    for (name, alike) in look_alikes(id) {
        rows.push(forger.signed(name, &params(&alike)?, false)?);
    }
    Ok(rows)
}
