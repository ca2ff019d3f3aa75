//! The signing side of the CA, alive: the present root, the bundle, our own certificate, and the rotation's clock.
//!
//! State is saved before it has effect, and a bundle reaches its sinks before the rotation goes on: a root never signs
//! before everybody could know it. Where several replicas share the state, one is elected to take its steps; the others
//! follow.

mod lead;
mod status;
mod trial;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::{Notify, watch};
use tulle_identity::identity::check;
use tulle_identity::{
    CsrPolicy, Identity, IssueRequest, Issued, Issuer, Root, SpiffeId, Svid, TrustDomain,
};
use tulle_runtime::gate::Gate;
use tulle_runtime::names;

use self::trial::{goes_back, is_spent, provided};
use super::roots::{RootPem, Roots, RotationUnderWay, Stage};
use super::sink::BundleSink;
use super::{CaError, Memory, Metrics, Plugged};
use crate::election::Leadership;

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
/// Pause before a state that is not there yet, or was changed meanwhile, is looked for again.
const AWAIT: Duration = Duration::from_millis(200);

/// What the operator chose.
pub(crate) struct Settings {
    /// Where the roots are kept.
    pub(crate) memory: Memory,
    /// Who takes the steps of a rotation.
    pub(crate) leadership: Leadership,
    /// A root that somebody else provides.
    pub(crate) plugged: Option<Plugged>,
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
    /// Who changes anything waits for whoever does.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    issuer: ArcSwap<Issuer>,
    /// Signs by the root of before, while that is trusted.
    former: ArcSwapOption<Issuer>,
    bundle: watch::Sender<Arc<str>>,
    identity: Identity,
    id: SpiffeId,
    wake: Notify,
    metrics: Metrics,
    told: Gate,
}

struct State {
    roots: Roots,
    /// The term in which this replica took steps last.
    term: Option<u64>,
    /// In that term the bundle has reached every sink.
    published: bool,
    /// What is provided by somebody else, as it was seen last; nothing if it has ended since.
    plugged: Option<RootPem>,
    /// When our own certificate is due.
    renewal: SystemTime,
}

/// A rotation did not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotateError {
    /// Not now.
    #[error(transparent)]
    UnderWay(#[from] RotationUnderWay),
    /// The root is somebody else's.
    #[error("the root is that of {0}: put another one there, and it will be announced")]
    Plugged(String),
    /// It could not be made or saved.
    #[error("the new root could not be made or saved")]
    Failed(#[from] CaError),
}

/// Roots made ready to work with.
struct Ready {
    roots: Roots,
    issuer: Issuer,
    former: Option<Issuer>,
    svid: Svid,
}

impl Authority {
    /// Loads the mesh's roots, or makes its first one.
    pub(crate) async fn open(settings: Settings, metrics: Metrics) -> Result<Self, CaError> {
        let id = SpiffeId::new(
            &settings.trust_domain,
            names::CONTROL_NAMESPACE,
            names::CONTROL_SERVICE_ACCOUNT,
        )?;
        let roots = first_roots(&settings, &id).await?;
        let ready = ready(roots, &settings, &id)?;
        let renewal = (settings.now)() + settings.leaf_ttl / 2;
        let authority = Self {
            identity: Identity::new(ready.svid, ready.issuer.bundle().clone()),
            bundle: watch::Sender::new(ready.roots.bundle().into()),
            issuer: ArcSwap::from_pointee(ready.issuer),
            former: ArcSwapOption::from_pointee(ready.former),
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::new(State {
                roots: ready.roots,
                term: None,
                published: false,
                plugged: None,
                renewal,
            }),
            wake: Notify::new(),
            settings,
            id,
            metrics,
            told: Gate::default(),
        };
        authority.measure(&authority.state.lock().roots);
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

    /// Whether what is known of the roots is good enough to sign by it.
    pub(crate) fn is_current(&self) -> bool {
        !self.settings.memory.is_stale()
    }

    /// Signs a workload's request. It gets at most the operator's lifetime, and is refused if it asks for more than any
    /// workload may. One of a namespace that has not got the root which signs now gets no leaf of it, which its neighbours
    /// would refuse, but one of the root before, no longer than that is trusted.
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
        let names = server_names(id, &self.settings.cluster_domain);
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let former = self.former.load_full();
        let (issuer, ttl) = match former.filter(|_| self.is_behind(id.namespace())) {
            Some(former) => (former, ttl.min(self.former_left())),
            None => (self.issuer.load_full(), ttl),
        };
        issuer.issue(
            csr,
            &IssueRequest {
                ttl: Some(ttl),
                dns_names: &names,
                ..IssueRequest::new(id)
            },
        )
    }

    /// Whether a namespace is known to have another bundle than the present one.
    fn is_behind(&self, namespace: &str) -> bool {
        let bundle = self.bundle.borrow().clone();
        let mut sinks = self.settings.sinks.iter();
        sinks.any(|sink| sink.lacks(namespace, &bundle))
    }

    /// How long the root of before is trusted yet.
    fn former_left(&self) -> Duration {
        let due = self.state.lock().roots.due(self.settings.propagation);
        let left = due.map(|due| {
            due.duration_since((self.settings.now)())
                .unwrap_or_default()
        });
        left.unwrap_or(Duration::MAX)
    }

    /// Begins to replace the root.
    pub(crate) async fn rotate(&self) -> Result<(), RotateError> {
        let turn = self.turn.lock().await;
        if let Some(plugged) = &self.settings.plugged {
            return Err(RotateError::Plugged(plugged.place()));
        }
        self.follow().await?;
        let mut roots = self.state.lock().roots.clone();
        roots.begin(
            new_root(&self.settings.trust_domain)?,
            (self.settings.now)(),
        )?;
        self.adopt(roots).await?;
        drop(turn);
        tracing::info!("root rotation: a new root is announced");
        self.wake.notify_one();
        Ok(())
    }

    /// Publishes the bundle, drives rotations and renews our own certificate, for ever.
    pub(crate) async fn run(&self) {
        let wake = || self.wake.notify_one();
        let steps = async {
            loop {
                let pause = self.pause().await;
                let term = self.state.lock().term;
                tokio::select! {
                    // Any may end the pause.
                    () = tokio::time::sleep(pause) => {}
                    () = self.wake.notified() => {}
                    () = self.settings.leadership.other_than(term) => {}
                }
            }
        };
        let plugged = async {
            match &self.settings.plugged {
                Some(plugged) => plugged.follow(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(steps, self.settings.memory.follow(wake), plugged);
    }

    /// Does what is due, and says how long to wait then.
    async fn pause(&self) -> Duration {
        let most = self.settings.memory.look(LOOK);
        match self.step().await {
            Ok(pause) => pause.min(most),
            Err(CaError::Raced(_)) => AWAIT,
            Err(error) => {
                if let Some(left_out) = self.told.pass() {
                    let error = error.full();
                    tracing::error!(error, left_out, "CA: will be tried again");
                }
                RETRY
            }
        }
    }

    /// Does what is due, and says how long until something is again.
    async fn step(&self) -> Result<Duration, CaError> {
        let _turn = self.turn.lock().await;
        let term = self.settings.leadership.term();
        self.begin_term(term);
        // What cannot be read does not keep our own certificate from being renewed.
        let followed = self.follow().await;
        let led = match term {
            Some(_) if followed.is_ok() => self.lead().await,
            _ => followed.map(|()| LOOK),
        };
        let now = (self.settings.now)();
        let renewal = self.state.lock().renewal;
        if now >= renewal {
            let svid = own_svid(&self.issuer.load(), &self.id, &self.settings)?;
            self.identity.rotate(svid)?;
            self.state.lock().renewal = self.renewal();
        }
        let renewal = self.state.lock().renewal;
        Ok(led?.min(renewal.duration_since(now).unwrap_or_default()))
    }

    /// When a certificate of our own that is made now is due: at half of its life.
    fn renewal(&self) -> SystemTime {
        (self.settings.now)() + self.settings.leaf_ttl / 2
    }

    /// Saves new roots and then works with them.
    async fn adopt(&self, roots: Roots) -> Result<(), CaError> {
        let ready = ready(roots, &self.settings, &self.id)?;
        self.settings.memory.save(&ready.roots).await?;
        self.put(ready)
    }

    /// Works with roots from now on.
    fn put(&self, ready: Ready) -> Result<(), CaError> {
        let Ready {
            roots,
            issuer,
            former,
            svid,
        } = ready;
        self.identity.replace_all(svid, issuer.bundle().clone())?;
        self.issuer.store(Arc::new(issuer));
        self.former.store(former.map(Arc::new));
        self.measure(&roots);
        let bundle = roots.bundle();
        let mut state = self.state.lock();
        state.renewal = self.renewal();
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

/// The mesh's roots, or its first one, which is made by the elected replica while the others wait for it.
async fn first_roots(settings: &Settings, id: &SpiffeId) -> Result<Roots, CaError> {
    let told = Gate::default();
    loop {
        let error = match open(settings, id).await {
            Ok(Some(roots)) => return Ok(roots),
            Ok(None) => None,
            Err(error) if error.is_passing() => Some(error),
            Err(error) => return Err(error),
        };
        if let Some(error) = error.filter(|error| !matches!(error, CaError::Raced(_)))
            && let Some(left_out) = told.pass()
        {
            let error = error.full();
            tracing::warn!(
                error,
                left_out,
                "the CA cannot start yet; will be tried again"
            );
        }
        tokio::time::sleep(AWAIT).await;
    }
}

/// The roots if there are any, or could be made.
async fn open(settings: &Settings, id: &SpiffeId) -> Result<Option<Roots>, CaError> {
    let memory = &settings.memory;
    let loaded = memory.load().await?;
    let now = (settings.now)();
    let (mut roots, new) = match loaded {
        Some(roots) if !is_spent(roots.signer(), settings, id, now)? => (roots, false),
        _ if settings.leadership.term().is_none() => return Ok(None),
        Some(mut roots) => {
            if !goes_back(&mut roots, settings, id, now)? {
                roots.take_over(next_root(settings, id).await?, now);
            }
            tracing::warn!(
                "the root is of no use any more, and another one takes its place at once"
            );
            (roots, true)
        }
        None => {
            memory.may_begin().await?;
            (Roots::new(next_root(settings, id).await?), true)
        }
    };
    if roots.note_leaf_ttl(longest_leaf(settings)) || new {
        // Not over what is no good.
        issuer_of(&roots, settings)?;
        memory.save(&roots).await?;
    }
    tracing::info!(place = memory.place(), new, "CA root");
    Ok(Some(roots))
}

/// A root for a mesh that has none, or none that is of use.
async fn next_root(settings: &Settings, id: &SpiffeId) -> Result<RootPem, CaError> {
    match &settings.plugged {
        Some(plugged) => provided(plugged, settings, id).await,
        None => new_root(&settings.trust_domain),
    }
}

/// How long a leaf of a root may still be in use after the root has stopped signing.
fn longest_leaf(settings: &Settings) -> Duration {
    settings.leaf_ttl + settings.memory.lag()
}

/// DNS names of a workload that is a server for more than the mesh: injectors are, for the API server.
fn server_names(id: &SpiffeId, cluster_domain: &str) -> Vec<String> {
    /// Longest label of a DNS name.
    const LABEL: usize = 63;
    let account = id.service_account();
    let revision = account.strip_prefix(names::INJECTOR);
    let is_revision = |text: &str| {
        text.strip_prefix('-')
            .is_some_and(|name| !name.is_empty() && !name.contains('.'))
    };
    let is_injector = id.namespace() == names::CONTROL_NAMESPACE
        && revision.is_some_and(|it| it.is_empty() || is_revision(it))
        && account.len() <= LABEL;
    if !is_injector {
        return Vec::new();
    }
    let short = format!("{account}.{}.svc", names::CONTROL_NAMESPACE);
    let long = format!("{short}.{cluster_domain}");
    vec![short, long]
}

fn new_root(domain: &TrustDomain) -> Result<RootPem, CaError> {
    Ok(RootPem::of(&Root::generate(domain, ROOT_LIFETIME)?))
}

/// Roots with all that is made of them.
fn ready(roots: Roots, settings: &Settings, id: &SpiffeId) -> Result<Ready, CaError> {
    let issuer = issuer_of(&roots, settings)?;
    let svid = own_svid(&issuer, id, settings)?;
    let former = match roots.former() {
        Some(pem) => Some(Issuer::new(
            root(pem, &settings.trust_domain)?,
            [issuer.root().cert().clone()],
            policy(settings.leaf_ttl),
        )?),
        None => None,
    };
    Ok(Ready {
        roots,
        issuer,
        former,
        svid,
    })
}

/// The issuer of roots that are good for this mesh.
fn issuer_of(roots: &Roots, settings: &Settings) -> Result<Issuer, CaError> {
    let place = || settings.memory.place();
    let issuer =
        issuer(roots, settings.leaf_ttl, &settings.trust_domain).map_err(|error| match error {
            CaError::Identity(error) => CaError::Broken {
                place: place(),
                reason: error.full(),
            },
            error => error,
        })?;
    let found = issuer.root().trust_domain();
    if *found != settings.trust_domain {
        return Err(CaError::OtherDomain {
            place: place(),
            found: found.to_string(),
            wanted: settings.trust_domain.to_string(),
        });
    }
    Ok(issuer)
}

/// The issuer of these roots: the present signer, with the others trusted beside it.
pub(super) fn issuer(
    roots: &Roots,
    leaf_ttl: Duration,
    domain: &TrustDomain,
) -> Result<Issuer, CaError> {
    let signer = root(roots.signer(), domain)?;
    let mut others = Vec::new();
    for other in roots.others() {
        others.push(root(other, domain)?.cert().clone());
    }
    Ok(Issuer::new(signer, others, policy(leaf_ttl))?)
}

fn policy(leaf_ttl: Duration) -> CsrPolicy {
    CsrPolicy {
        default_ttl: leaf_ttl,
        max_ttl: leaf_ttl.max(LONGEST_REQUEST),
    }
}

/// A root that is what it says: what it signs can be verified by the certificate that is published.
fn root(pem: &RootPem, domain: &TrustDomain) -> Result<Root, CaError> {
    let root = Root::from_pem_for(&pem.secret, domain)?;
    let published: Vec<_> = CertificateDer::pem_slice_iter(pem.certificate.as_bytes()).collect();
    match published.as_slice() {
        [Ok(published)] if published == root.cert() => Ok(root),
        _ => Err(CaError::Identity(tulle_identity::Error::Document {
            what: "root",
            reason: "its certificate is not the one that belongs to its key".to_owned(),
        })),
    }
}

/// Our own certificate, which is none unless peers believe it: who signs it may be kept to other uses and names.
fn own_svid(issuer: &Issuer, id: &SpiffeId, settings: &Settings) -> Result<Svid, CaError> {
    let long = format!("{}.{}", names::CONTROL_DNS_NAME, settings.cluster_domain);
    let dns_names = [names::CONTROL_DNS_NAME, &long];
    let svid = issuer.issue_svid(&IssueRequest {
        ttl: Some(settings.leaf_ttl),
        dns_names: &dns_names,
        ..IssueRequest::new(id)
    })?;
    check(&svid, issuer.bundle()).map_err(CaError::Refused)?;
    Ok(svid)
}

#[cfg(test)]
mod replicas;
#[cfg(test)]
mod tests;
