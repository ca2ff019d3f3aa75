//! The CA's memory in a cluster: one Secret that all replicas read and follow.
//!
//! It is written only as the successor of what the writer has read (`resourceVersion`), so two writers cannot undo each other's
//! work, and replicas that begin at once end with one root.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::Instant;
use tulle_runtime::names::{self, labels};

use super::CaError;
use super::roots::Roots;
use crate::platform::{ApiError, FIELD_MANAGER, call, watch_one};

/// The key that the roots stand under.
const KEY: &str = "ca.json";

/// Where the roots are kept.
pub(crate) struct RootSecret {
    client: Client,
    secrets: Api<Secret>,
    bundles: Api<ConfigMap>,
    /// The object that was read or written last; `None` if there was none.
    known: Mutex<Option<ObjectMeta>>,
    /// When the API server last said what is in it.
    asked: Mutex<Instant>,
    /// Something may have changed.
    hint: AtomicBool,
}

impl RootSecret {
    /// The one in the control plane's namespace.
    pub(crate) fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            secrets: Api::namespaced(client.clone(), names::CONTROL_NAMESPACE),
            bundles: Api::namespaced(client.clone(), names::CONTROL_NAMESPACE),
            known: Mutex::new(None),
            asked: Mutex::new(Instant::now()),
            hint: AtomicBool::new(true),
        }
    }

    /// What people call it.
    pub(crate) fn place() -> String {
        format!("Secret {}/{}", names::CONTROL_NAMESPACE, names::CA_SECRET)
    }

    /// What is in it, or `None` if there is no such Secret.
    pub(crate) async fn load(&self) -> Result<Option<Roots>, CaError> {
        self.hint.store(false, Ordering::Relaxed);
        let found = call(self.secrets.get_opt(names::CA_SECRET)).await;
        let found = found.map_err(|source| {
            self.hint.store(true, Ordering::Relaxed);
            unreachable_api(source)
        })?;
        *self.asked.lock() = Instant::now();
        let Some(secret) = found else {
            *self.known.lock() = None;
            return Ok(None);
        };
        let broken = |reason: String| CaError::Broken {
            place: Self::place(),
            reason,
        };
        let data = secret.data.unwrap_or_default();
        let text = data
            .get(KEY)
            .ok_or_else(|| broken(format!("it has no key {KEY}")))?;
        let text = str::from_utf8(&text.0).map_err(|problem| broken(problem.to_string()))?;
        let roots = Roots::read(text).map_err(broken)?;
        *self.known.lock() = Some(secret.metadata);
        Ok(Some(roots))
    }

    /// Writes the successor of what was read last.
    pub(crate) async fn save(&self, roots: &Roots) -> Result<(), CaError> {
        let text = serde_json::to_vec(roots).expect("plain data is always JSON");
        let known = self.known.lock().clone();
        let exists = known.is_some();
        let mut metadata = known.unwrap_or_else(|| ObjectMeta {
            name: Some(names::CA_SECRET.to_owned()),
            ..ObjectMeta::default()
        });
        let own = metadata.labels.get_or_insert_default();
        own.insert(labels::PART_OF.to_owned(), labels::PART_OF_TULLE.to_owned());
        let secret = Secret {
            metadata,
            data: Some([(KEY.to_owned(), ByteString(text))].into()),
            ..Secret::default()
        };
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let written = if exists {
            let name = names::CA_SECRET;
            call(self.secrets.replace(name, &params, &secret)).await
        } else {
            call(self.secrets.create(&params, &secret)).await
        };
        match written {
            Ok(written) => {
                *self.known.lock() = Some(written.metadata);
                Ok(())
            }
            Err(error) => {
                // Even without an answer it may have been written.
                self.hint();
                // Deleted since it was read.
                if error.is_conflict() || exists && error.is_missing() {
                    return Err(CaError::Raced(Self::place()));
                }
                Err(unreachable_api(error))
            }
        }
    }

    /// Fails if there was a mesh here whose roots are gone: a new root would cut its workloads off.
    pub(crate) async fn may_begin(&self) -> Result<(), CaError> {
        let bundle = call(self.bundles.get_opt(names::CA_CONFIG_MAP)).await;
        match bundle.map_err(unreachable_api)? {
            None => Ok(()),
            Some(_) => Err(CaError::Lost(Self::place())),
        }
    }

    /// There may be something new.
    pub(crate) fn hint(&self) {
        self.hint.store(true, Ordering::Relaxed);
    }

    /// Whether somebody should look.
    pub(crate) fn is_hinted(&self) -> bool {
        self.hint.load(Ordering::Relaxed)
    }

    /// When the API server last said what is in it.
    pub(crate) fn asked(&self) -> Instant {
        *self.asked.lock()
    }

    /// Calls `wake` whenever there may be something new, for ever.
    pub(crate) async fn follow(&self, wake: impl Fn()) {
        watch_one::<Secret>(&self.client, names::CA_SECRET, || {
            self.hint();
            wake();
        })
        .await;
    }
}

fn unreachable_api(source: ApiError) -> CaError {
    CaError::Api {
        place: RootSecret::place(),
        source,
    }
}

impl fmt::Debug for RootSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootSecret")
    }
}
