//! Where the trust bundle belongs, where it is, and where it could not be written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt as _;
use kube::api::PartialObjectMeta;
use kube::runtime::watcher::Event;
use tokio::time::Instant;
use tulle_runtime::backoff::Backoff;
use tulle_runtime::names::files::CA_BUNDLE_KEY;
use tulle_runtime::names::{self, labels};

use super::apply::released;
use super::listed::Listed;

/// Pauses before a write that failed is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long everybody waits for a namespace that cannot be written.
pub(super) const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// Failures in a row that are worth an Event; fewer mend themselves.
const WORTH_AN_EVENT: u32 = 3;
/// How often an Event is written anew, before the API server forgets it.
const AGAIN: Duration = Duration::from_secs(45 * 60);

/// An object that has the bundle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The ConfigMap of a namespace.
    Namespace(Arc<str>),
    /// A webhook configuration.
    Webhooks(Arc<str>),
}

impl Place {
    /// For metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "ConfigMap",
            Self::Webhooks(_) => "MutatingWebhookConfiguration",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::Namespace(namespace) => write!(f, "{kind} {namespace}/{}", names::CA_CONFIG_MAP),
            Self::Webhooks(name) => write!(f, "{kind} {name}"),
        }
    }
}

pub(super) type Digest = [u8; 32];

/// What matters of a namespace.
#[derive(Clone, Copy, Debug)]
struct Home {
    meshed: bool,
    terminating: bool,
}

/// What a ConfigMap has.
#[derive(Clone, Copy, Debug)]
struct Held {
    bundle: Option<Digest>,
    ours: bool,
}

/// What a webhook configuration has.
#[derive(Clone, Debug)]
struct Webhooks {
    /// Its webhooks, with what each has.
    held: Vec<(String, Option<Digest>)>,
    /// Fields of it are managed by us, so that nobody else can take them out.
    managed: bool,
}

/// A place that could not be written, or is being.
#[derive(Debug)]
struct Trouble {
    writing: bool,
    problem: Option<String>,
    /// The last failure was for want of permission.
    forbidden: bool,
    /// The first failure of those in a row.
    since: Option<Instant>,
    failures: u32,
    /// When its Event was written.
    told: Option<Instant>,
    again: Instant,
    pauses: Backoff,
}

/// All that is known about the places of the bundle.
#[derive(Debug, Default)]
pub(super) struct Places {
    namespaces: Listed<Arc<str>, Home>,
    bundles: Listed<Arc<str>, Held>,
    webhooks: Listed<Arc<str>, Webhooks>,
    proxied: BTreeSet<Arc<str>>,
    troubles: BTreeMap<Place, Trouble>,
}

impl Places {
    /// What has happened to namespaces.
    pub(super) fn namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        self.namespaces.take(event, |namespace| {
            let labels = namespace.labels();
            let label = |name: &str| labels.get(name).map(String::as_str);
            let home = Home {
                meshed: labels::ask_for_the_mesh(label(labels::INJECT), label(labels::REVISION)),
                terminating: namespace.metadata.deletion_timestamp.is_some(),
            };
            (namespace.name_any().into(), home)
        });
    }

    /// What has happened to ConfigMaps.
    pub(super) fn bundle(&mut self, event: Event<ConfigMap>) {
        self.bundles.take(event, |map| {
            let ours = map.labels().get(labels::PART_OF);
            let ours = ours.is_some_and(|it| it == labels::PART_OF_TULLE);
            let text = map.data.as_ref().and_then(|data| data.get(CA_BUNDLE_KEY));
            let bundle = text.map(|text| digest_of(text.as_bytes()));
            let namespace = map.namespace().unwrap_or_default();
            (namespace.into(), Held { bundle, ours })
        });
    }

    /// What has happened to webhook configurations. Of those that bear our label, because somebody labels all that he
    /// installs, we have what calls an injector of ours.
    pub(super) fn webhooks(&mut self, event: Event<MutatingWebhookConfiguration>) {
        self.webhooks.take(event, |configuration| {
            let name = configuration.name_any().into();
            let managed = released(&configuration.metadata).is_some();
            let webhooks = configuration.webhooks.into_iter().flatten();
            let held = webhooks.filter(calls_an_injector).map(|webhook| {
                let bundle = webhook.client_config.ca_bundle;
                (webhook.name, bundle.map(|bundle| digest_of(&bundle.0)))
            });
            let held = held.collect();
            (name, Webhooks { held, managed })
        });
    }

    /// The namespaces that have pods of the mesh.
    pub(super) fn proxied(&mut self, namespaces: BTreeSet<Arc<str>>) {
        self.proxied = namespaces;
    }

    /// The places that do not have this bundle as they should; `None` while it is not known which there are.
    pub(super) fn missing(&mut self, pem: &str) -> Option<Vec<Place>> {
        let complete = self.namespaces.is_complete()
            && self.bundles.is_complete()
            && self.webhooks.is_complete();
        if !complete {
            return None;
        }
        let wanted = Some(digest_of(pem.as_bytes()));
        let missing = self.homes().into_iter().filter(|namespace| {
            let held = self.bundles.get(namespace);
            !held.is_some_and(|held| held.ours && held.bundle == wanted)
        });
        let mut missing: Vec<_> = missing.map(Place::Namespace).collect();
        let stale = self.webhooks.iter().filter(|(_, webhooks)| {
            let mut held = webhooks.held.iter();
            (webhooks.managed && !webhooks.held.is_empty())
                || held.any(|(_, bundle)| *bundle != wanted)
        });
        missing.extend(stale.map(|(name, _)| Place::Webhooks(name.clone())));
        self.troubles
            .retain(|place, trouble| trouble.writing || missing.contains(place));
        Some(missing)
    }

    /// The namespaces that are to have the bundle: ours, the meshed ones, and those that had it from us before.
    fn homes(&self) -> BTreeSet<Arc<str>> {
        let meshed = self.namespaces.iter().filter(|(_, home)| home.meshed);
        let had = self.bundles.iter().filter(|(_, held)| held.ours);
        let mut homes: BTreeSet<_> = [Arc::from(names::CONTROL_NAMESPACE)].into();
        homes.extend(meshed.map(|(namespace, _)| namespace.clone()));
        homes.extend(had.map(|(namespace, _)| namespace.clone()));
        homes.extend(self.proxied.iter().cloned());
        homes.retain(|namespace| {
            let home = self.namespaces.get(namespace);
            home.is_some_and(|home| !home.terminating)
        });
        homes
    }

    /// When a place may be written, or `None` if it is being.
    pub(super) fn may_write(&self, place: &Place, now: Instant) -> Option<Instant> {
        match self.troubles.get(place) {
            Some(trouble) if trouble.writing => None,
            Some(trouble) => Some(trouble.again),
            None => Some(now),
        }
    }

    /// A write has begun.
    pub(super) fn writing(&mut self, place: &Place) {
        let trouble = self.troubles.entry(place.clone());
        let trouble = trouble.or_insert_with(|| Trouble {
            writing: true,
            problem: None,
            forbidden: false,
            since: None,
            failures: 0,
            told: None,
            again: Instant::now(),
            pauses: Backoff::new(PAUSES.0, PAUSES.1),
        });
        trouble.writing = true;
    }

    /// A write has succeeded.
    pub(super) fn wrote(&mut self, place: Place, pem: &str) {
        self.troubles.remove(&place);
        let bundle = Some(digest_of(pem.as_bytes()));
        match place {
            Place::Namespace(namespace) => {
                self.bundles.put(namespace, Held { bundle, ours: true });
            }
            Place::Webhooks(name) => {
                if let Some(webhooks) = self.webhooks.get_mut(&name) {
                    webhooks.managed = false;
                    for (_, held) in &mut webhooks.held {
                        *held = bundle;
                    }
                }
            }
        }
    }

    /// There is no such place any more.
    pub(super) fn gone(&mut self, place: Place) {
        if let Place::Namespace(namespace) = &place
            && let Some(home) = self.namespaces.get_mut(namespace)
        {
            home.terminating = true;
        }
        self.troubles.remove(&place);
    }

    /// A write has failed, perhaps because this replica may not; says whether it is the first time.
    pub(super) fn failed(
        &mut self,
        place: &Place,
        problem: String,
        forbidden: bool,
        now: Instant,
    ) -> bool {
        let Some(trouble) = self.troubles.get_mut(place) else {
            return false;
        };
        trouble.writing = false;
        trouble.problem = Some(problem);
        trouble.forbidden = forbidden;
        trouble.failures = trouble.failures.saturating_add(1);
        trouble.again = now + trouble.pauses.next_delay();
        let first = trouble.since.is_none();
        trouble.since.get_or_insert(now);
        first
    }

    /// Another bundle is to be written, or by another replica: patience begins anew.
    pub(super) fn begin(&mut self) {
        for trouble in self.troubles.values_mut() {
            trouble.since = None;
        }
    }

    /// Whether everybody waits for a place that has not got the bundle.
    ///
    /// A root signs only when everybody who could meet it knows it, so all wait for every place, with two exceptions, lest one
    /// tenant's quota or policy hold up the mesh: nobody waits for a namespace that cannot be written and has had no bundle yet,
    /// because no pod starts there without one; and nobody waits longer than [`PATIENCE`] for another. That is counted within
    /// one term of this replica, in which it renews its lease every second: the API server works, and that namespace does not.
    /// Those who are left behind go on by the old root among themselves as long as it is trusted
    /// (`Authority::issue`). Our own namespace and the webhooks of an installation are not left behind; those that no
    /// installation lets us write, a copy or what is left of a revision, are, after the same time.
    pub(super) fn holds_up(&self, place: &Place, now: Instant) -> bool {
        let trouble = self.troubles.get(place);
        let Some((trouble, since)) = trouble.and_then(|it| Some((it, it.since?))) else {
            return true;
        };
        let Place::Namespace(namespace) = place else {
            return !trouble.forbidden || now < since + PATIENCE;
        };
        if &**namespace == names::CONTROL_NAMESPACE {
            return true;
        }
        let had = self.bundles.get(namespace).is_some_and(|held| held.ours);
        let inhabited = had || self.proxied.contains(namespace);
        inhabited && now < since + PATIENCE
    }

    /// Whether an Event is to tell if that place fails once more.
    pub(super) fn tells(&mut self, place: &Place, now: Instant) -> bool {
        let Some(trouble) = self.troubles.get_mut(place) else {
            return false;
        };
        let due = trouble.told.is_none_or(|told| now >= told + AGAIN);
        let tells = due && trouble.failures + 1 >= WORTH_AN_EVENT;
        if tells {
            trouble.told = Some(now);
        }
        tells
    }

    /// What each namespace has from us.
    pub(super) fn held(&self) -> BTreeMap<Arc<str>, Digest> {
        let ours = self.bundles.iter().filter(|(_, held)| held.ours);
        ours.filter_map(|(namespace, held)| Some((namespace.clone(), held.bundle?)))
            .collect()
    }

    /// Why a place could not be written.
    pub(super) fn problem(&self, place: &Place) -> Option<&str> {
        self.troubles.get(place)?.problem.as_deref()
    }

    /// The webhooks of a configuration.
    pub(super) fn webhook_names(&self, place: &Place) -> Vec<String> {
        let Place::Webhooks(name) = place else {
            return Vec::new();
        };
        let webhooks = self.webhooks.get(name);
        let held = webhooks.into_iter().flat_map(|it| &it.held);
        held.map(|(name, _)| name.clone()).collect()
    }
}

/// Whether a webhook calls an injector of this mesh, of whichever revision.
fn calls_an_injector(webhook: &MutatingWebhook) -> bool {
    let service = webhook.client_config.service.as_ref();
    service.is_some_and(|it| {
        it.namespace == names::CONTROL_NAMESPACE && it.name.starts_with(names::INJECTOR)
    })
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}
