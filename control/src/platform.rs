//! The connections to the API server: how it is found, how long a call may take, what its answers mean, and who watches. The
//! source, which follows everything in a cluster, has one of its own ([`follow`]).
//!
//! Invariant: no call waits for ever, however the API server behaves. What is watched here is a reason to look, never what is
//! acted upon: events may come late and twice.

pub(crate) mod follow;

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use kube::api::PartialObjectMeta;
use kube::core::{NamespaceResourceScope, Status};
use kube::runtime::utils::{Backoff as Retry, WatchStreamExt as _};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use tulle_runtime::backoff::Backoff;
use tulle_runtime::gate::Gate;
use tulle_runtime::names::CONTROL_NAMESPACE;

/// Who we are in `metadata.managedFields`.
pub(crate) const FIELD_MANAGER: &str = "tulle-control";
/// How long a call may take.
pub(crate) const CALL: Duration = Duration::from_secs(5);
/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a watch lasts, in seconds: the API server ends it, and it begins anew.
const WATCH: u32 = 20;
/// A connection on which nothing has come for this long is dead. Longer than a watch, in which nothing need happen.
const SILENCE: Duration = Duration::from_secs(30);
/// Pauses before a watch that failed is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer.
    #[error("the API server has not answered within {0:?}")]
    Slow(Duration),
    /// It says no.
    #[error("{} (HTTP {})", .0.message, .0.code)]
    Refused(Box<Status>),
    /// It cannot be reached, or is not understood.
    #[error("the API server cannot be asked")]
    Failed(#[source] Box<kube::Error>),
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
            other => Self::Failed(Box::new(other)),
        }
    }
}

impl ApiError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(status) => Some(status.code),
            _ => None,
        }
    }

    /// There is no such object, or no such namespace.
    pub(crate) fn is_missing(&self) -> bool {
        self.code() == Some(404)
    }

    /// Somebody else has changed or made the object meanwhile.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The object would not be valid, or may not change like that.
    pub(crate) fn is_invalid(&self) -> bool {
        self.code() == Some(422)
    }

    /// We may not do that.
    pub(crate) fn is_forbidden(&self) -> bool {
        self.code() == Some(403) && !self.is_terminating()
    }

    /// The namespace is being deleted, so nothing can be made in it.
    pub(crate) fn is_terminating(&self) -> bool {
        const CAUSE: &str = "NamespaceTerminating";
        let Self::Refused(status) = self else {
            return false;
        };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        status.code == 403 && causes.into_iter().any(|cause| cause.reason == CAUSE)
    }

    /// Whether asking again is all there is to do: it says neither yes nor no.
    pub(crate) fn is_passing(&self) -> bool {
        self.code().is_none_or(|code| code == 429 || code >= 500)
    }

    /// The error and its causes in one line.
    pub(crate) fn full(&self) -> String {
        tulle_runtime::causes::chain(self)
    }
}

/// A client of the API server of the cluster that we are in, or of the one that `KUBECONFIG` names.
pub(crate) async fn connect() -> anyhow::Result<Client> {
    let config = Config::infer().await.context(
        "no API server is known: run in a pod with a service account, or set KUBECONFIG",
    )?;
    client(config).context("cannot be a client of the API server")
}

/// A client with our time limits.
pub(crate) fn client(mut config: Config) -> kube::Result<Client> {
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    // We know better what is worth another try, and for how long.
    config.default_retry = false;
    Client::try_from(config)
}

/// Waits for a call's answer, for that long at most.
pub(crate) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(limit, Box::pin(answer)).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(_) => Err(ApiError::Slow(limit)),
    }
}

/// Waits for a call's answer.
pub(crate) async fn call<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    within(CALL, answer).await
}

/// Calls `look` at every sign that the object of this name is another or gone, for ever. Asks for its metadata only.
pub(crate) async fn watch_one<K>(client: &Client, name: &str, look: impl Fn())
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<PartialObjectMeta<K>> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let config = watch_config().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watch(api, config, name));
    while events.next().await.is_some() {
        look();
    }
}

/// What happens to objects, for ever.
pub(crate) fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    what: &str,
) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    retried(watcher(api, config), what)
}

/// How everything is watched.
pub(crate) fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH)
}

/// Tries again what failed, and tells.
fn retried<T: Send>(
    events: impl Stream<Item = Result<Event<T>, watcher::Error>> + Send,
    what: &str,
) -> impl Stream<Item = Event<T>> + Send {
    let what = what.to_owned();
    let told = Gate::default();
    events
        .backoff(Pauses(Backoff::new(PAUSES.0, PAUSES.1)))
        .inspect_err(move |error| {
            if let Some(left_out) = told.pass() {
                let error = tulle_runtime::causes::chain(error);
                tracing::warn!(
                    watch = what,
                    error,
                    left_out,
                    "cannot watch; will be tried again"
                );
            }
        })
        .filter_map(|event| std::future::ready(event.ok()))
}

/// Back-off as a watch takes it.
struct Pauses(Backoff);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.next_delay())
    }
}

impl Retry for Pauses {
    fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
pub(crate) mod hand_written_api_server;
