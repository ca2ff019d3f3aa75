//! The signing side of the CA, alive: the present root, the bundle, our own certificate, and the rotation's clock.
//!
//! State is saved before it has effect, and a bundle reaches its sinks before the rotation goes on: a root never signs
//! before everybody could know it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::{Notify, watch};
use tulle_identity::{
    CsrPolicy, Identity, IssueRequest, Issued, Issuer, Root, SpiffeId, Svid, TrustDomain,
};
use tulle_runtime::names;

use super::roots::{RootPem, Roots, RotationUnderWay, Stage};
use super::sink::BundleSink;
use super::state::StateFile;
use super::{CaError, Metrics};

/// A workload may ask for this much, whatever it is granted.
const LONGEST_REQUEST: Duration = Duration::from_secs(24 * 3600);
/// How long a root lives.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A root with less life than this is rotated without being told.
const ROOT_RENEWAL: Duration = Duration::from_secs(365 * 24 * 3600);
/// Longest that leaves may live, and that a bundle may take: one after the other they are a rotation, which must fit in
/// the life that its root has left.
pub(crate) const LONGEST_STAGE: Duration = Duration::from_secs(ROOT_RENEWAL.as_secs() / 2);
/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Longest pause between two looks at the clock, which may jump.
const LOOK: Duration = Duration::from_secs(30);

/// What the operator chose.
pub(crate) struct Settings {
    /// Where the roots are kept.
    pub(crate) state_dir: PathBuf,
    /// The mesh.
    pub(crate) trust_domain: TrustDomain,
    /// DNS domain of the cluster.
    pub(crate) cluster_domain: String,
    /// How long leaves live.
    pub(crate) leaf_ttl: Duration,
    /// How long a bundle takes to reach everybody.
    pub(crate) propagation: Duration,
    /// Who is handed the bundle.
    pub(crate) sinks: Vec<Box<dyn BundleSink>>,
    /// What time it is.
    pub(crate) now: Box<dyn Fn() -> SystemTime + Send + Sync>,
}

/// The CA's signing side.
pub(crate) struct Authority {
    settings: Settings,
    file: StateFile,
    state: Mutex<State>,
    issuer: ArcSwap<Issuer>,
    bundle: watch::Sender<Arc<str>>,
    identity: Identity,
    id: SpiffeId,
    wake: Notify,
    metrics: Metrics,
}

struct State {
    roots: Roots,
    /// The bundle has reached every sink.
    published: bool,
    /// When our own certificate is due.
    renewal: SystemTime,
}

/// A rotation did not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotateError {
    /// Not now.
    #[error(transparent)]
    UnderWay(#[from] RotationUnderWay),
    /// It could not be made or saved.
    #[error("the new root could not be made or saved")]
    Failed(#[from] CaError),
}

/// What an operator may see of the roots.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Status {
    stage: Stage,
    next_step_in_seconds: Option<u64>,
    bundle_published: bool,
    leaf_ttl_seconds: u64,
    trust_bundle: String,
}

impl Authority {
    /// Loads the mesh's roots, or makes its first one.
    pub(crate) fn open(settings: Settings, metrics: Metrics) -> Result<Self, CaError> {
        let file = StateFile::open(&settings.state_dir)?;
        let (mut roots, new) = match file.load()? {
            Some(roots) => (roots, false),
            None => (Roots::new(new_root(&settings.trust_domain)?), true),
        };
        if roots.note_leaf_ttl(settings.leaf_ttl) || new {
            file.save(&roots)?;
        }
        let broken = |error: CaError| match error {
            CaError::Identity(error) => CaError::Broken {
                path: file.path().to_owned(),
                reason: error.full(),
            },
            error => error,
        };
        let issuer = issuer(&roots, settings.leaf_ttl).map_err(broken)?;
        let found = issuer.root().trust_domain();
        if *found != settings.trust_domain {
            return Err(CaError::OtherDomain {
                path: file.path().to_owned(),
                found: found.to_string(),
                wanted: settings.trust_domain.to_string(),
            });
        }
        let id = SpiffeId::new(
            &settings.trust_domain,
            names::CONTROL_NAMESPACE,
            names::CONTROL_SERVICE_ACCOUNT,
        )?;
        let svid = own_svid(&issuer, &id, &settings)?;
        let renewal = (settings.now)() + settings.leaf_ttl / 2;
        let authority = Self {
            identity: Identity::new(svid, issuer.bundle().clone()),
            bundle: watch::Sender::new(roots.bundle().into()),
            issuer: ArcSwap::from_pointee(issuer),
            state: Mutex::new(State {
                roots,
                published: false,
                renewal,
            }),
            wake: Notify::new(),
            settings,
            file,
            id,
            metrics,
        };
        authority.measure(&authority.state.lock().roots);
        tracing::info!(file = %authority.file.path().display(), new, "CA root");
        Ok(authority)
    }

    /// Our own live identity, with the control plane's DNS names.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The trust bundle (PEM), now and whenever it changes.
    pub(crate) fn bundle(&self) -> watch::Receiver<Arc<str>> {
        self.bundle.subscribe()
    }

    /// Signs a workload's request. It gets at most the operator's lifetime, and is refused if it asks for more than any
    /// workload may.
    pub(crate) fn issue(
        &self,
        csr: &str,
        id: &SpiffeId,
        asked: Option<Duration>,
    ) -> Result<Issued, tulle_identity::Error> {
        let ttl = match asked {
            Some(asked) if asked <= LONGEST_REQUEST => asked.min(self.settings.leaf_ttl),
            Some(asked) => asked,
            None => self.settings.leaf_ttl,
        };
        self.issuer.load().issue(
            csr,
            &IssueRequest {
                ttl: Some(ttl),
                ..IssueRequest::new(id)
            },
        )
    }

    /// Begins to replace the root.
    pub(crate) fn rotate(&self) -> Result<(), RotateError> {
        let mut state = self.state.lock();
        let mut roots = state.roots.clone();
        roots.begin(
            new_root(&self.settings.trust_domain)?,
            (self.settings.now)(),
        )?;
        self.adopt(&mut state, roots)?;
        drop(state);
        tracing::info!("root rotation: a new root is announced");
        self.wake.notify_one();
        Ok(())
    }

    /// What an operator may see.
    pub(crate) fn status(&self) -> Status {
        let state = self.state.lock();
        let left = |due: SystemTime| {
            due.duration_since((self.settings.now)())
                .unwrap_or_default()
                .as_secs()
        };
        Status {
            stage: state.roots.stage(),
            next_step_in_seconds: state.roots.due(self.settings.propagation).map(left),
            bundle_published: state.published,
            leaf_ttl_seconds: self.settings.leaf_ttl.as_secs(),
            trust_bundle: state.roots.bundle(),
        }
    }

    /// Publishes the bundle, drives rotations and renews our own certificate, for ever.
    pub(crate) async fn run(&self) {
        loop {
            let pause = match self.step() {
                Ok(pause) => pause.min(LOOK),
                Err(error) => {
                    let error = anyhow::Error::new(error);
                    tracing::error!(error = format!("{error:#}"), "CA: will be tried again");
                    RETRY
                }
            };
            tokio::select! {
                // Either may end the pause.
                () = tokio::time::sleep(pause) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Does what is due, and says how long until something is again.
    fn step(&self) -> Result<Duration, CaError> {
        let now = (self.settings.now)();
        let mut state = self.state.lock();
        if !state.published {
            if let Err(error) = self.publish(&state.roots.bundle()) {
                self.metrics.bundle_failures.inc();
                tracing::error!(%error, "the trust bundle cannot be written; will be tried again");
                return Ok(RETRY);
            }
            state.published = true;
            // The time that it takes to reach everybody begins only now.
            if state.roots.announced(now) {
                self.file.save(&state.roots)?;
            }
        }
        let ends = self.issuer.load().root().not_after();
        if state.roots.stage() == Stage::Steady
            && ends
                .duration_since(now)
                .is_ok_and(|left| left < ROOT_RENEWAL)
        {
            let mut roots = state.roots.clone();
            if roots
                .begin(new_root(&self.settings.trust_domain)?, now)
                .is_ok()
            {
                self.adopt(&mut state, roots)?;
                return Ok(Duration::ZERO);
            }
        }
        let mut roots = state.roots.clone();
        if roots.advance(now, self.settings.propagation, self.settings.leaf_ttl) {
            self.adopt(&mut state, roots)?;
            tracing::info!(stage = ?state.roots.stage(), "root rotation: next stage");
            return Ok(Duration::ZERO);
        }
        if now >= state.renewal {
            let svid = own_svid(&self.issuer.load(), &self.id, &self.settings)?;
            state.renewal = self.renewal();
            self.identity.rotate(svid)?;
        }
        let due = state
            .roots
            .due(self.settings.propagation)
            .map_or(state.renewal, |due| due.min(state.renewal));
        Ok(due.duration_since(now).unwrap_or_default())
    }

    fn publish(&self, bundle: &str) -> std::io::Result<()> {
        self.settings
            .sinks
            .iter()
            .try_for_each(|sink| sink.publish(bundle))
    }

    /// When a certificate of our own that is made now is due: at half of its life.
    fn renewal(&self) -> SystemTime {
        (self.settings.now)() + self.settings.leaf_ttl / 2
    }

    /// Saves new roots and then works with them.
    fn adopt(&self, state: &mut State, roots: Roots) -> Result<(), CaError> {
        let issuer = issuer(&roots, self.settings.leaf_ttl)?;
        let svid = own_svid(&issuer, &self.id, &self.settings)?;
        self.file.save(&roots)?;
        state.renewal = self.renewal();
        self.identity.replace_all(svid, issuer.bundle().clone())?;
        self.issuer.store(Arc::new(issuer));
        self.measure(&roots);
        let bundle = roots.bundle();
        state.roots = roots;
        if self.bundle.send_if_modified(|known| {
            let differs = **known != *bundle;
            if differs {
                *known = bundle.into();
            }
            differs
        }) {
            state.published = false;
        }
        Ok(())
    }

    fn measure(&self, roots: &Roots) {
        let ends = self
            .issuer
            .load()
            .root()
            .not_after()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.metrics
            .root_expiry
            .set(i64::try_from(ends.as_secs()).unwrap_or(i64::MAX));
        self.metrics
            .roots
            .set(if roots.stage() == Stage::Steady { 1 } else { 2 });
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn new_root(domain: &TrustDomain) -> Result<RootPem, CaError> {
    let root = Root::generate(domain, ROOT_LIFETIME)?;
    Ok(RootPem {
        certificate: root.cert_pem(),
        secret: root.to_pem().to_string(),
    })
}

/// The issuer of these roots: the present signer, with the others trusted beside it.
pub(super) fn issuer(roots: &Roots, leaf_ttl: Duration) -> Result<Issuer, CaError> {
    let signer = root(roots.signer())?;
    let mut others = Vec::new();
    for other in roots.others() {
        others.push(root(other)?.cert().clone());
    }
    let policy = CsrPolicy {
        default_ttl: leaf_ttl,
        max_ttl: leaf_ttl.max(LONGEST_REQUEST),
    };
    Ok(Issuer::new(signer, others, policy)?)
}

/// A root that is what it says: what it signs can be verified by the certificate that is published.
fn root(pem: &RootPem) -> Result<Root, CaError> {
    let root = Root::from_pem(&pem.secret)?;
    let published: Vec<_> = CertificateDer::pem_slice_iter(pem.certificate.as_bytes()).collect();
    match published.as_slice() {
        [Ok(published)] if published == root.cert() => Ok(root),
        _ => Err(CaError::Identity(tulle_identity::Error::Document {
            what: "root",
            reason: "its certificate is not the one that belongs to its key".to_owned(),
        })),
    }
}

fn own_svid(issuer: &Issuer, id: &SpiffeId, settings: &Settings) -> Result<Svid, CaError> {
    let long = format!("{}.{}", names::CONTROL_DNS_NAME, settings.cluster_domain);
    let dns_names = [names::CONTROL_DNS_NAME, &long];
    Ok(issuer.issue_svid(&IssueRequest {
        ttl: Some(settings.leaf_ttl),
        dns_names: &dns_names,
        ..IssueRequest::new(id)
    })?)
}

#[cfg(test)]
mod tests;
