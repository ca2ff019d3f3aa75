//! The manifests that the control plane reads, and the tokens that its CA believes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tulle_identity::{SpiffeId, TrustDomain};
use tulle_runtime::names::{DEFAULT_TRUST_DOMAIN, TOKEN_AUDIENCE};

pub(crate) const NAMESPACE: &str = "shop";
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
pub(crate) const CLUSTER: &str = "outbound|80||api.shop.svc.cluster.local";
pub(crate) const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)), 80);
/// Endpoints of the Service; one of them changes.
pub(crate) const ENDPOINTS: usize = 20;

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::new(DEFAULT_TRUST_DOMAIN).expect("the default is a trust domain")
}

pub(crate) fn pod(i: u8) -> String {
    format!("web-{i}")
}

pub(crate) fn pod_ip(i: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, i)
}

/// Each sidecar runs under an account of its own.
pub(crate) fn identity(i: u8) -> anyhow::Result<SpiffeId> {
    Ok(SpiffeId::new(&domain(), NAMESPACE, &pod(i))?)
}

/// The endpoint that a round adds.
pub(crate) fn endpoint(round: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 3, 0, 1).to_bits() + round)
}

/// Whether it is an endpoint of [`endpoint`].
pub(crate) fn changes(address: Ipv4Addr) -> bool {
    address.octets()[1] == 3
}

/// Writes everything: a Service and its endpoints, and the pods of the sidecars.
pub(crate) fn write(directory: &Path, pods: u8) -> anyhow::Result<()> {
    std::fs::create_dir(directory)?;
    let meta = |name: &str| json!({ "name": name, "namespace": NAMESPACE });
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    put(directory, "namespace.json", &namespace)?;
    for i in 0..pods {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta(&pod(i)),
            "spec": { "serviceAccountName": pod(i), "containers": [{ "name": "app", "image": "app" }] },
            "status": { "podIP": pod_ip(i), "podIPs": [{ "ip": pod_ip(i) }] },
        });
        put(directory, &format!("pod-{i}.json"), &pod)?;
    }
    let vip = VIP.ip();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": meta("api"),
        "spec": { "clusterIP": vip, "clusterIPs": [vip], "ports": [{ "name": "http", "port": VIP.port() }] },
    });
    put(directory, "service.json", &service)?;
    change(directory, 0)
}

/// Writes the EndpointSlice of a round.
pub(crate) fn change(directory: &Path, round: u32) -> anyhow::Result<()> {
    let lasting = (1..ENDPOINTS)
        .map(|i| Ipv4Addr::from_bits(Ipv4Addr::new(10, 2, 0, 0).to_bits() + i as u32));
    let endpoints: Vec<_> = lasting
        .chain([endpoint(round)])
        .map(|address| json!({ "addresses": [address], "conditions": { "ready": true } }))
        .collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "api-1", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "api" } },
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    });
    put(directory, "slice.json", &slice)
}

/// Puts a file in place as a whole.
fn put(directory: &Path, name: &str, content: &Value) -> anyhow::Result<()> {
    let temporary = directory.join(format!(".{name}"));
    std::fs::write(&temporary, content.to_string())?;
    Ok(std::fs::rename(temporary, directory.join(name))?)
}

/// Signs tokens as Kubernetes would.
pub(crate) struct Tokens(EncodingKey);

impl Tokens {
    /// With a new key, whose public half is written to the JWKS file.
    pub(crate) fn new(jwks: &Path) -> anyhow::Result<Self> {
        let key = EncodingKey::from_ec_der(&rcgen::KeyPair::generate()?.serialize_der());
        let mut public = Jwk::from_encoding_key(&key, Algorithm::ES256)?;
        public.common.key_id = Some("k1".to_owned());
        std::fs::write(jwks, json!({ "keys": [public] }).to_string())?;
        Ok(Self(key))
    }

    /// The token of a sidecar's pod.
    pub(crate) fn token(&self, i: u8) -> anyhow::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let name = pod(i);
        let claims = json!({
            "iss": ISSUER, "aud": [TOKEN_AUDIENCE], "sub": format!("system:serviceaccount:{NAMESPACE}:{name}"),
            "nbf": now, "exp": now + 3600,
            "kubernetes.io": {
                "namespace": NAMESPACE,
                "serviceaccount": { "name": name, "uid": "account" },
                "pod": { "name": name, "uid": "pod" },
            },
        });
        let header = Header {
            kid: Some("k1".to_owned()),
            ..Header::new(Algorithm::ES256)
        };
        Ok(jsonwebtoken::encode(&header, &claims, &self.0)?)
    }
}
