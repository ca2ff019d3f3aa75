//! What every pod's task shares: the node, the network, tokens, ConfigMaps, and the way to tell of changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tulle_runtime::names::{CA_CONFIG_MAP, files};
use tulle_runtime::tasks::Tasks;

use crate::manifests::Objects;
use crate::network::Network;
use crate::node::{Node, ROOT};
use crate::pod::life::Pod;
use crate::pod::volumes::Provider;
use crate::tokens::{Subject, Tokens};
use crate::view::{Event, What};
use crate::workload::{Owner, stable_uid};
use crate::{Error, ObjectKey};

/// Shared by all pods.
#[derive(Debug)]
pub(crate) struct Kubelet {
    pub(crate) node: Node,
    pub(crate) network: Network,
    pub(crate) tokens: Tokens,
    pub(crate) tasks: Tasks,
    pub(crate) objects: RwLock<Arc<Objects>>,
    /// Told to the cluster's task, which writes files and rules.
    pub(crate) updates: mpsc::UnboundedSender<Update>,
    /// Changes when a file that pods may have mounted has changed.
    pub(crate) refresh: watch::Sender<()>,
    pub(crate) events: broadcast::Sender<Event>,
    /// Environment that containers start from.
    pub(crate) base_environment: Vec<(String, String)>,
}

/// News for the cluster's task.
#[derive(Debug)]
pub(crate) enum Update {
    /// A pod's status changed.
    Changed,
    /// A pod's task ended after its deletion.
    Gone(ObjectKey),
    /// Manifests changed.
    Manifests,
    /// A workload shall have this many pods, whatever its manifest says.
    Scale(Owner, usize),
    /// A pod shall end, within this time or its own.
    Delete(ObjectKey, Option<Duration>),
    /// Somebody wants to know when all that was told so far, and the manifests as they are now, are taken in.
    Look(oneshot::Sender<()>),
    /// Every pod shall end within this time, and none shall follow.
    Shutdown(Duration),
}

impl Kubelet {
    pub(crate) fn tell(&self, subject: impl Into<String>, what: What, detail: impl Into<String>) {
        self.announce(Event {
            subject: subject.into(),
            what,
            detail: detail.into(),
            problem: None,
        });
    }

    pub(crate) fn announce(&self, event: Event) {
        tracing::debug!(%event, "event");
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    pub(crate) fn update(&self, update: Update) {
        // The cluster's task ends with the sandbox only.
        let _ = self.updates.send(update);
    }

    pub(crate) fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<BTreeMap<String, String>> {
        if name == CA_CONFIG_MAP
            && let Some(bundle) = bundle(namespace)
        {
            return Some(BTreeMap::from([(files::CA_BUNDLE_KEY.to_owned(), bundle)]));
        }
        let objects = self.objects.read().clone();
        let map = objects.config_maps.get(&ObjectKey::new(namespace, name))?;
        Some(map.data.clone().unwrap_or_default())
    }
}

/// Where the control plane keeps trust bundles: a file for each namespace, or one for all.
pub(crate) fn bundle_directory() -> PathBuf {
    PathBuf::from(ROOT).join("bundles")
}

fn bundle(namespace: &str) -> Option<String> {
    let own = bundle_directory()
        .join(namespace)
        .join(files::CA_BUNDLE_KEY);
    let common = bundle_directory().join(files::CA_BUNDLE_KEY);
    fs::read_to_string(own)
        .or_else(|_| fs::read_to_string(common))
        .ok()
}

impl Provider for Pod {
    fn config_map(&self, name: &str) -> Option<BTreeMap<String, String>> {
        self.kubelet.config_map(&self.key.namespace, name)
    }

    fn token(&self, audience: &str, lifetime: Duration) -> Result<String, Error> {
        let account_uid = stable_uid(&format!(
            "ServiceAccount/{}/{}",
            self.key.namespace, self.service_account
        ));
        let subject = Subject {
            pod: &self.key,
            pod_uid: &self.uid,
            service_account: &self.service_account,
            service_account_uid: &account_uid,
        };
        self.kubelet.tokens.issue(&subject, audience, lifetime)
    }
}
