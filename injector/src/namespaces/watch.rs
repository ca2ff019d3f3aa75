//! The watch of namespaces: their metadata only, begun again for as long as it takes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use tulle_runtime::backoff::Backoff;
use tulle_runtime::gate::Gate;

use super::{Namespaces, core, telling};

/// Seconds after which a watch is ended and begun anew where it was.
const WATCH: u32 = 240;
const RETRY_BASE: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Follows the namespaces. Ends only if there is no API server to ask.
pub(crate) async fn follow(namespaces: Arc<Namespaces>) {
    if let Some(api) = namespaces.metadata.clone() {
        let events = watcher::watcher(api, watcher::Config::default().timeout(WATCH));
        apply(&namespaces, events).await;
    }
}

type Told = Result<Event<PartialObjectMeta<core::Namespace>>, watcher::Error>;

async fn apply(namespaces: &Namespaces, events: impl Stream<Item = Told>) {
    let mut events = std::pin::pin!(events);
    let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
    let gate = Gate::default();
    // What a list has told so far, until it is whole.
    let mut listed = HashMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(namespace)) => {
                namespaces.put(&namespace.metadata);
                if let Some(name) = &namespace.metadata.name {
                    listed.insert(name.clone(), telling(&namespace.metadata));
                }
            }
            Ok(Event::InitDone) => {
                tracing::debug!(namespaces = listed.len(), "namespaces listed");
                namespaces.replace(std::mem::take(&mut listed));
                backoff.reset();
            }
            Ok(Event::Apply(namespace)) => {
                namespaces.put(&namespace.metadata);
                backoff.reset();
            }
            Ok(Event::Delete(namespace)) => {
                namespaces.remove(&namespace.metadata);
                backoff.reset();
            }
            Err(error) => {
                namespaces.metrics.watch_errors.inc();
                let delay = backoff.next_delay();
                if let Some(left_out) = gate.pass() {
                    tracing::warn!(%error, retry_in = ?delay, left_out, "the watch of namespaces was interrupted; what is known stays");
                }
                tokio::time::sleep(delay).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::stream;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use kube::core::PartialObjectMetaExt as _;

    use super::super::Metrics;
    use super::*;

    fn namespace(name: &str, inject: &str) -> PartialObjectMeta<core::Namespace> {
        let labels = [("tulle.dev/inject", inject), ("team", "shop")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let meta = ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from(labels)),
            ..ObjectMeta::default()
        };
        meta.into_request_partial()
    }

    async fn told(namespaces: &Namespaces, events: Vec<Event<PartialObjectMeta<core::Namespace>>>) {
        apply(namespaces, stream::iter(events.into_iter().map(Ok))).await;
    }

    fn inject(namespaces: &Namespaces, name: &str) -> Option<String> {
        let known = namespaces.known(name)?;
        assert!(
            !known.labels.contains_key("team"),
            "only what decides is kept"
        );
        known.labels.get("tulle.dev/inject").cloned()
    }

    #[tokio::test]
    async fn nothing_vanishes_during_a_list_and_what_is_gone_does_after_it() {
        let namespaces = Namespaces::new(None, Metrics::default());
        assert!(namespaces.all().is_none(), "nobody has told yet");
        let (a, b) = (namespace("a", "enabled"), namespace("b", "enabled"));
        let listed = [
            Event::Init,
            Event::InitApply(a),
            Event::InitApply(b),
            Event::InitDone,
        ];
        told(&namespaces, listed.into()).await;
        assert_eq!(namespaces.all().map(|all| all.len()), Some(2));
        let begun = [Event::Init, Event::InitApply(namespace("a", "disabled"))];
        told(&namespaces, begun.into()).await;
        assert_eq!(inject(&namespaces, "a").as_deref(), Some("disabled"));
        assert_eq!(inject(&namespaces, "b").as_deref(), Some("enabled"));
        let whole = [
            Event::Init,
            Event::InitApply(namespace("a", "disabled")),
            Event::InitDone,
        ];
        told(&namespaces, whole.into()).await;
        assert_eq!(inject(&namespaces, "b"), None);
        assert_eq!(namespaces.all().map(|all| all.len()), Some(1));
    }

    #[tokio::test]
    async fn changes_are_followed() {
        let namespaces = Namespaces::new(None, Metrics::default());
        told(&namespaces, vec![Event::Apply(namespace("a", "enabled"))]).await;
        assert_eq!(inject(&namespaces, "a").as_deref(), Some("enabled"));
        told(&namespaces, vec![Event::Delete(namespace("a", "enabled"))]).await;
        assert_eq!(inject(&namespaces, "a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_leaves_what_is_known() {
        let namespaces = Namespaces::new(None, Metrics::default());
        let known = Ok(Event::Apply(namespace("a", "enabled")));
        let broken = || Err(watcher::Error::NoResourceVersion);
        apply(&namespaces, stream::iter([known, broken(), broken()])).await;
        assert_eq!(inject(&namespaces, "a").as_deref(), Some("enabled"));
        assert_eq!(namespaces.metrics.watch_errors.get(), 2);
    }
}
