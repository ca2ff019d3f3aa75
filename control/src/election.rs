//! Which replica writes: the one that holds a Lease.
//!
//! Everybody serves; one writes what there is only one of. Its lease is short, so that another takes over within five
//! seconds. Clocks do not matter: a lease has expired for whoever has seen no change of it for its duration by his own
//! clock. Fencing: who could not renew in time stops before anybody else may begin, and every write ends within the time
//! that is left.
//!
//! The Lease is <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/lease-v1/>, used as Kubernetes' own
//! components do.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;
use tulle_runtime::gate::Gate;
use tulle_runtime::names;

use crate::platform::{ApiError, FIELD_MANAGER, within};

/// How long a lease lasts that is not renewed.
const LEASE: Duration = Duration::from_secs(3);
/// How long its holder writes without having renewed it.
const HOLD: Duration = Duration::from_millis(2_400);
/// Pause between renewals, and between looks of the others.
const PAUSE: Duration = Duration::from_secs(1);
/// Pause after a call that failed.
const RETRY: Duration = Duration::from_millis(250);
/// How long a call may take.
const CALL: Duration = Duration::from_secs(1);
/// Longest lease of somebody else that is believed.
const LONGEST: Duration = Duration::from_secs(60);

/// Whether this replica is the one that writes. Clones see the same.
#[derive(Clone, Debug)]
pub(crate) struct Leadership(Option<watch::Receiver<Option<Term>>>);

/// A time in which nobody else writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Term {
    number: u64,
    until: Instant,
}

impl Leadership {
    /// Of a replica that has no others beside it.
    pub(crate) fn alone() -> Self {
        Self(None)
    }

    /// The number of the present term, if this replica writes now. A new term has a new number.
    pub(crate) fn term(&self) -> Option<u64> {
        let Some(term) = &self.0 else {
            return Some(0);
        };
        let term = *term.borrow();
        term.filter(|term| Instant::now() < term.until)
            .map(|term| term.number)
    }

    /// How long this replica may write without hearing more.
    pub(crate) fn left(&self) -> Duration {
        let Some(term) = &self.0 else {
            return Duration::MAX;
        };
        let term = *term.borrow();
        term.map_or(Duration::ZERO, |term| {
            term.until.saturating_duration_since(Instant::now())
        })
    }

    /// Resolves when the term is another than this one.
    pub(crate) async fn other_than(&self, known: Option<u64>) {
        let Some(term) = &self.0 else {
            return std::future::pending().await;
        };
        let mut term = term.clone();
        // What was before is looked at now.
        term.mark_unchanged();
        while self.term() == known {
            let left = self.left();
            let lapse = async {
                match left {
                    Duration::ZERO => std::future::pending().await,
                    left => tokio::time::sleep(left).await,
                }
            };
            let gone = tokio::select! {
                // Either may be first: what counts is looked up.
                changed = term.changed() => changed.is_err(),
                () = lapse => false,
            };
            if gone {
                return std::future::pending().await;
            }
        }
    }
}

/// The loop that holds the lease or waits for it.
#[derive(Debug)]
pub(crate) struct Election {
    api: Api<Lease>,
    me: String,
    term: watch::Sender<Option<Term>>,
    terms: u64,
    seen: Option<Seen>,
    leader: Gauge,
    told: Gate,
}

/// The lease as it was seen last.
#[derive(Debug)]
struct Seen {
    lease: Lease,
    /// When it was first seen like this.
    since: Instant,
}

impl Seen {
    fn version(&self) -> Option<&str> {
        self.lease.metadata.resource_version.as_deref()
    }

    fn holder(&self) -> &str {
        let spec = self.lease.spec.as_ref();
        spec.and_then(|spec| spec.holder_identity.as_deref())
            .unwrap_or_default()
    }

    /// When anybody may take it.
    fn ends(&self) -> Instant {
        let spec = self.lease.spec.as_ref();
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
        let duration = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        self.since + duration.map_or(LEASE, Duration::from_secs).min(LONGEST)
    }
}

impl Election {
    /// A candidate of that name, which no other has.
    pub(crate) fn new(client: &Client, me: String, registry: &mut Registry) -> (Self, Leadership) {
        let leader = Gauge::default();
        registry.register(
            "control_leader",
            "Whether this replica is the one that writes what there is only one of",
            leader.clone(),
        );
        let (term, terms) = watch::channel(None);
        let election = Self {
            api: Api::namespaced(client.clone(), names::CONTROL_NAMESPACE),
            me,
            term,
            terms: 0,
            seen: None,
            leader,
            told: Gate::default(),
        };
        (election, Leadership(Some(terms)))
    }

    /// Takes part until told to end, and then gives the lease back.
    pub(crate) async fn run(mut self, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        loop {
            let pause = tokio::select! {
                biased;
                () = &mut end => break,
                pause = self.round() => pause,
            };
            tokio::select! {
                biased;
                () = &mut end => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.release().await;
    }

    /// Does what is to be done now, and says how long until something is again.
    async fn round(&mut self) -> Duration {
        let pause = match self.turn().await {
            Ok(pause) => pause,
            Err(error) => {
                if error.is_conflict() {
                    // Somebody else has written it; who that was is to be seen.
                    self.seen = None;
                    self.step_down("the lease was taken");
                    return Duration::ZERO;
                }
                if let Some(left_out) = self.told.pass() {
                    let error = error.full();
                    tracing::warn!(
                        error,
                        left_out,
                        "the election goes on without the API server"
                    );
                }
                RETRY
            }
        };
        if self
            .term
            .borrow()
            .is_some_and(|term| term.until <= Instant::now())
        {
            self.step_down("the lease could not be renewed in time");
        }
        let until = self.term.borrow().map(|term| term.until);
        // The end of a term that is not renewed must be seen when it comes.
        until.map_or(pause, |until| {
            pause.min(until.saturating_duration_since(Instant::now()))
        })
    }

    async fn turn(&mut self) -> Result<Duration, ApiError> {
        if self.term.borrow().is_none() {
            self.look().await?;
        }
        let now = Instant::now();
        match &self.seen {
            Some(seen) if ![self.me.as_str(), ""].contains(&seen.holder()) && now < seen.ends() => {
                // A little late, so that the others are not all there at the same moment.
                let ends = seen.ends() - now + jitter(RETRY);
                Ok(ends.min(PAUSE - jitter(PAUSE / 5)))
            }
            _ => {
                self.take().await?;
                Ok(PAUSE - jitter(PAUSE / 5))
            }
        }
    }

    async fn look(&mut self) -> Result<(), ApiError> {
        let found = within(CALL, self.api.get_opt(names::LEASE)).await?;
        let Some(lease) = found else {
            self.seen = None;
            return Ok(());
        };
        let known = self.seen.as_ref().and_then(Seen::version);
        if known.is_none() || known != lease.metadata.resource_version.as_deref() {
            self.saw(lease);
        }
        Ok(())
    }

    fn saw(&mut self, lease: Lease) {
        let since = Instant::now();
        self.seen = Some(Seen { lease, since });
    }

    /// Makes, takes or renews the lease: it is ours if nobody has written it since we saw it.
    async fn take(&mut self) -> Result<(), ApiError> {
        // The others count from when they see it, which is later.
        let until = Instant::now() + HOLD;
        let lease = self.next(&self.me, LEASE);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let written = if self.seen.is_some() {
            within(CALL, self.api.replace(names::LEASE, &params, &lease)).await
        } else {
            within(CALL, self.api.create(&params, &lease)).await
        };
        if written.as_ref().is_err_and(ApiError::is_missing) {
            // It was deleted; the namespace may be, too.
            self.seen = None;
        }
        self.saw(written?);
        let held = *self.term.borrow();
        let number = if let Some(term) = held {
            term.number
        } else {
            self.terms += 1;
            tracing::info!(replica = self.me, "elected: this replica writes");
            self.terms
        };
        self.leader.set(1);
        self.term.send_replace(Some(Term { number, until }));
        Ok(())
    }

    /// The lease as it is to be next.
    fn next(&self, holder: &str, duration: Duration) -> Lease {
        let now = MicroTime(Timestamp::now());
        let mut lease = self.seen.as_ref().map_or_else(
            || Lease {
                metadata: ObjectMeta {
                    name: Some(names::LEASE.to_owned()),
                    namespace: Some(names::CONTROL_NAMESPACE.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: None,
            },
            |seen| seen.lease.clone(),
        );
        let labels = lease.metadata.labels.get_or_insert_default();
        labels.insert(
            names::labels::PART_OF.to_owned(),
            names::labels::PART_OF_TULLE.to_owned(),
        );
        let before = lease.spec.take().unwrap_or_default();
        let same = before.holder_identity.as_deref() == Some(holder);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| same).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!same)),
            ..before
        });
        lease
    }

    fn step_down(&self, why: &str) {
        self.leader.set(0);
        if self.term.send_replace(None).is_some() {
            tracing::warn!(
                replica = self.me,
                why,
                "this replica does not write any more"
            );
        }
    }

    /// Lets another begin at once.
    async fn release(mut self) {
        if self.term.send_replace(None).is_none() {
            return;
        }
        self.leader.set(0);
        let lease = self.next("", PAUSE);
        let params = PostParams::default();
        let given = within(CALL, self.api.replace(names::LEASE, &params, &lease)).await;
        if let Err(error) = given {
            tracing::debug!(error = error.full(), "the lease will expire by itself");
        }
        self.seen = None;
    }
}

/// Some of that time.
fn jitter(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests;
