//! The client of the CA: gets an SVID for this workload, keeps it fresh, and follows the trust bundle.
//!
//! One task, once a second: has the bundle file changed, is the SVID due? A ConfigMap volume swaps symlinks, so the file is
//! looked at rather than watched. While the CA cannot be reached the old SVID stays; the private key never leaves this
//! process except into the state directory, which lies in memory.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::time::Instant;
use tulle_runtime::backoff::Backoff;
use tulle_runtime::names::{CONTROL_DNS_NAME, files};
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::istio::auth::IstioCertificateRequest;
use tulle_xds_proto::istio::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use zeroize::Zeroizing;

use crate::bundle::TrustBundle;
use crate::error::Error;
use crate::identity::{Identity, check};
use crate::issue::BACKDATE;
use crate::key::PrivateKey;
use crate::spiffe::SpiffeId;
use crate::svid::Svid;
use crate::tls;

mod bundle_file;
mod channel;
mod metrics;
mod state;

pub use channel::{ControlName, control_channel, foreign_channel};
pub use metrics::Metrics;
pub use state::require_memory;

use bundle_file::BundleFile;
use channel::TlsSource;
use state::StateDir;

const LOOK: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
const CALL: Duration = Duration::from_secs(10);
const RETRY_BASE: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// What the client needs to know.
#[derive(Clone, Debug)]
pub struct CaClientConfig {
    /// `host:port` of the control plane.
    pub address: String,
    /// DNS name that its certificate must carry.
    pub server_name: String,
    /// Who we are; the CA must agree.
    pub id: SpiffeId,
    /// Projected service account token, read anew for each call.
    pub token_file: PathBuf,
    /// Trust bundle, followed live.
    pub bundle_file: PathBuf,
    /// Memory-backed directory where SVID and key outlive a restart of the process; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Whether a state directory that is not in memory is refused. Only tests say no.
    pub require_memory: bool,
    /// Lifetime to ask for.
    pub ttl: Duration,
    /// Mark of our sockets, where capture exempts a mark instead of a uid.
    pub mark: Option<u32>,
}

impl CaClientConfig {
    /// A sidecar's configuration: everything where the injector puts it.
    #[must_use]
    pub fn new(address: impl Into<String>, id: SpiffeId) -> Self {
        Self {
            address: address.into(),
            server_name: CONTROL_DNS_NAME.into(),
            id,
            token_file: files::TOKEN.into(),
            bundle_file: files::CA_BUNDLE.into(),
            state_dir: Some(files::STATE_DIR.into()),
            require_memory: true,
            ttl: Duration::from_secs(24 * 3600),
            mark: None,
        }
    }
}

/// Gets the first identity, from the state directory if what lies there is still good, and keeps it fresh from then on.
///
/// Waits for as long as bundle, token or CA are missing, trying again and saying so; dropping the future ends that.
///
/// # Errors
/// If the state directory cannot be used, which waiting does not mend.
pub async fn start(
    config: CaClientConfig,
    metrics: Metrics,
    tasks: &Tasks,
) -> Result<Identity, Error> {
    let state = StateDir::open(&config)?;
    let mut client = CaClient {
        bundle: BundleFile::new(config.bundle_file.clone()),
        backoff: Backoff::new(RETRY_BASE, RETRY_MAX),
        config,
        state,
        metrics,
    };
    let identity = client.first().await;
    let live = identity.clone();
    tasks.spawn_until_cancelled("ca-client", async move { client.follow(live).await });
    Ok(identity)
}

struct CaClient {
    config: CaClientConfig,
    bundle: BundleFile,
    state: Option<StateDir>,
    backoff: Backoff,
    metrics: Metrics,
}

impl CaClient {
    async fn first(&mut self) -> Identity {
        let bundle = loop {
            match self.bundle.load() {
                Ok(bundle) => break bundle,
                Err(e) => {
                    tracing::warn!(error = e.full(), "no trust bundle yet");
                    tokio::time::sleep(self.backoff.next_delay()).await;
                }
            }
        };
        self.backoff.reset();
        if let Some(svid) = self
            .state
            .as_ref()
            .and_then(|state| state.load(&self.config.id, &bundle))
        {
            tracing::info!(client.id = %svid.id(), serial = svid.serial(), "certificate found from before the restart");
            self.metrics.installed(&svid);
            return Identity::new(svid, bundle);
        }
        let mut bundle = bundle;
        loop {
            match self.fetch(&bundle, None).await {
                Ok(svid) => {
                    self.backoff.reset();
                    self.installed(&svid);
                    return Identity::new(svid, bundle);
                }
                Err(e) => self.failed(&e).await,
            }
            if let Some(changed) = self.bundle.changed() {
                bundle = changed;
            }
        }
    }

    /// Never ends.
    async fn follow(&mut self, identity: Identity) {
        let mut due = due(identity.load().svid());
        let mut retry_at = Instant::now();
        // A control plane that no longer takes our certificate still takes the token, so it is not shown twice.
        let mut failed = false;
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            if let Some(bundle) = self.bundle.changed() {
                tracing::info!(roots = bundle.roots().len(), "trust bundle changed");
                identity.trust(bundle);
                if identity.current().check().is_err() {
                    due = SystemTime::now();
                }
                self.backoff.reset();
                retry_at = Instant::now();
            }
            if SystemTime::now() < due || Instant::now() < retry_at {
                continue;
            }
            match self.renew(&identity, !failed).await {
                Ok(svid) => {
                    self.backoff.reset();
                    self.installed(&svid);
                    failed = false;
                    due = self::due(&svid);
                    // By a clock that is ahead of the CA's it may be due at once, for ever.
                    retry_at = Instant::now() + pause(&svid);
                }
                Err(e) => {
                    self.metrics.failures.inc();
                    failed = true;
                    let delay = self.backoff.next_delay();
                    tracing::warn!(error = e.full(), retry_in = ?delay, "certificate not renewed; the old one stays");
                    retry_at = Instant::now() + delay;
                }
            }
        }
    }

    async fn renew(&self, identity: &Identity, show: bool) -> Result<Svid, Error> {
        let current = identity.current();
        let shown = (show && current.check().is_ok()).then(|| current.svid());
        let svid = self.fetch(current.bundle(), shown).await?;
        identity.rotate(svid.clone())?;
        Ok(svid)
    }

    /// One call to the CA, and a hard look at its answer.
    async fn fetch(&self, bundle: &TrustBundle, svid: Option<&Svid>) -> Result<Svid, Error> {
        let key = PrivateKey::generate()?;
        let request = self.request(&key)?;
        let tls = tls::client_by_name(svid, bundle, b"h2");
        let call = async {
            let channel = channel::connect(&self.config, TlsSource::Fixed(tls.into())).await?;
            let answer = IstioCertificateServiceClient::new(channel)
                .create_certificate(request)
                .await;
            answer.map_err(|status| Error::Refused {
                code: status.code(),
                message: status.message().into(),
            })
        };
        let answer = tokio::time::timeout(CALL, call)
            .await
            .map_err(|_| Error::Refused {
                code: tonic::Code::DeadlineExceeded,
                message: format!("nothing within {} s", CALL.as_secs()),
            })??;
        let mut chain = Vec::new();
        for text in &answer.get_ref().cert_chain {
            for cert in CertificateDer::pem_slice_iter(text.as_bytes()) {
                chain.push(cert.map_err(|e| Error::document("the CA's certificate chain", e))?);
            }
        }
        let svid = Svid::new(chain, key)?;
        if *svid.id() != self.config.id {
            return Err(Error::OtherIdentity {
                want: self.config.id.clone(),
                got: svid.id().clone(),
            });
        }
        check(&svid, bundle)?;
        Ok(svid)
    }

    fn request(&self, key: &PrivateKey) -> Result<tonic::Request<IstioCertificateRequest>, Error> {
        let path = &self.config.token_file;
        let token =
            Zeroizing::new(std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?);
        let header = Zeroizing::new(format!("Bearer {}", token.trim()));
        let mut header =
            tonic::metadata::MetadataValue::try_from(header.as_str()).map_err(|_| {
                Error::document(
                    "service account token",
                    "it has characters that no token has",
                )
            })?;
        header.set_sensitive(true);
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr: key.csr(&self.config.id)?,
            validity_duration: i64::try_from(self.config.ttl.as_secs()).unwrap_or(0),
        });
        request.metadata_mut().insert("authorization", header);
        Ok(request)
    }

    fn installed(&self, svid: &Svid) {
        self.metrics.installed(svid);
        self.metrics.rotations.inc();
        tracing::info!(client.id = %svid.id(), serial = svid.serial(), "certificate issued");
        if let Some(Err(e)) = self.state.as_ref().map(|state| state.save(svid)) {
            tracing::warn!(
                error = e.full(),
                "certificate not saved; a restart will need the CA"
            );
        }
    }

    async fn failed(&mut self, error: &Error) {
        self.metrics.failures.inc();
        let delay = self.backoff.next_delay();
        tracing::warn!(error = error.full(), retry_in = ?delay, "no certificate yet");
        tokio::time::sleep(delay).await;
    }
}

/// The shortest time between two renewals, whatever the clock says.
fn pause(svid: &Svid) -> Duration {
    let life = svid
        .not_after()
        .duration_since(svid.not_before() + BACKDATE);
    (life.unwrap_or_default() / 20).clamp(LOOK, LONGEST_PAUSE)
}

/// When to renew: at half its life, give or take a tenth, so that a mesh that started together does not renew together.
fn due(svid: &Svid) -> SystemTime {
    let issued = (svid.not_before() + BACKDATE).min(svid.not_after());
    let life = svid.not_after().duration_since(issued).unwrap_or_default();
    issued + life.mul_f64(0.5 * (0.9 + 0.2 * fastrand::f64()))
}

#[cfg(test)]
mod tests;
