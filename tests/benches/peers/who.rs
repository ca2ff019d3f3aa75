//! Who a peer in the place of the sidecar is: what the injector told the sidecar.

use tulle_identity::{CaClientConfig, Identity, SpiffeId, TrustDomain, ca_client};
use tulle_runtime::env::Env;
use tulle_runtime::names::{DEFAULT_TRUST_DOMAIN, PROXY_MARK, variables};
use tulle_runtime::tasks::Tasks;

/// A pod's identity, and how it reaches the control plane.
pub(crate) struct Who {
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) pod_ip: String,
    pub(crate) control: String,
    /// What its own sockets bear, where marks are what tells them.
    pub(crate) mark: Option<u32>,
    domain: TrustDomain,
}

impl Who {
    pub(crate) fn read(env: Env) -> anyhow::Result<Self> {
        let namespace = env.required::<String>(variables::POD_NAMESPACE);
        let account = env.required::<String>(variables::SERVICE_ACCOUNT);
        let pod_ip = env.required::<String>(variables::POD_IP);
        let control = env.required::<String>(variables::CONTROL_ADDRESS);
        let mark = env.get::<bool>(variables::MARK_SOCKETS).unwrap_or(false);
        let (namespace, account, pod_ip, control) =
            env.finish_with(|| Some((namespace?, account?, pod_ip?, control?)))?;
        Ok(Self {
            namespace,
            account,
            pod_ip,
            control,
            mark: mark.then_some(PROXY_MARK),
            domain: TrustDomain::new(DEFAULT_TRUST_DOMAIN)?,
        })
    }

    /// The identity of a service account beside it.
    pub(crate) fn id(&self, account: &str) -> anyhow::Result<SpiffeId> {
        Ok(SpiffeId::new(&self.domain, &self.namespace, account)?)
    }

    /// Gets a certificate, and a new one in time for as long as this process lives.
    pub(crate) async fn identity(&self) -> anyhow::Result<Identity> {
        let mut config = CaClientConfig::new(self.control.clone(), self.id(&self.account)?);
        config.mark = self.mark;
        Ok(ca_client::start(config, ca_client::Metrics::default(), &Tasks::new()).await?)
    }
}
