//! Which stream wants which resource, and how it hears that one changed.
//!
//! A stream has a [`Mailbox`], a set of names that changed since it last looked: telling it twice costs nothing, and a
//! stream that does not look keeps one entry a name. The [`Index`] leads from a name to the mailboxes of its
//! subscribers, so that a change reaches those whom it concerns and nobody else.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;
use tulle_xds_proto::ResourceType;

use super::resource::Name;
use crate::translate::ProxyView;

/// A resource, whoever asks for it.
pub(crate) type Key = (ResourceType, Name);

/// Identifies a stream in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) u64);

/// What a stream has to look at again.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Resources that may differ, with the moment of the first change of each.
    pub(crate) changed: HashMap<Key, Instant>,
    /// Types of which a wildcard subscriber should list everything again.
    pub(crate) relist: HashMap<ResourceType, Instant>,
    /// Its own pod, or the pod's node, is not what it was.
    pub(crate) pod: bool,
}

/// Where a stream's news waits for it.
#[derive(Debug)]
pub(crate) struct Mailbox {
    id: StreamId,
    view: RwLock<Arc<ProxyView>>,
    news: Mutex<News>,
    bell: Notify,
}

impl Mailbox {
    pub(crate) fn new(id: StreamId, view: Arc<ProxyView>) -> Arc<Self> {
        Arc::new(Self {
            id,
            view: RwLock::new(view),
            news: Mutex::default(),
            bell: Notify::new(),
        })
    }

    /// Whose it is.
    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    /// How its client sees the world.
    pub(crate) fn view(&self) -> Arc<ProxyView> {
        self.view.read().clone()
    }

    /// From now on its client sees the world differently.
    pub(crate) fn set_view(&self, view: Arc<ProxyView>) {
        *self.view.write() = view;
    }

    /// Takes what has come in.
    pub(crate) fn take(&self) -> News {
        std::mem::take(&mut self.news.lock())
    }

    /// Waits until there may be something to take.
    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }

    /// Says that its pod is not what it was.
    pub(crate) fn pod_changed(&self) {
        self.news.lock().pod = true;
        self.bell.notify_one();
    }
}

/// From names to subscribers.
#[derive(Debug, Default)]
pub(crate) struct Index {
    shelves: RwLock<HashMap<ResourceType, Shelf>>,
}

type Subscribers = HashMap<StreamId, Arc<Mailbox>>;

#[derive(Debug, Default)]
struct Shelf {
    named: HashMap<Name, Subscribers>,
    wildcard: Subscribers,
}

impl Index {
    /// From now on this stream hears of changes under these names.
    pub(crate) fn watch(
        &self,
        kind: ResourceType,
        names: impl IntoIterator<Item = Name>,
        mailbox: &Arc<Mailbox>,
    ) {
        let mut shelves = self.shelves.write();
        let shelf = shelves.entry(kind).or_default();
        for name in names {
            shelf
                .named
                .entry(name)
                .or_default()
                .insert(mailbox.id, mailbox.clone());
        }
    }

    /// It no longer wants to.
    pub(crate) fn unwatch(
        &self,
        kind: ResourceType,
        names: impl IntoIterator<Item = Name>,
        mailbox: &Mailbox,
    ) {
        let mut shelves = self.shelves.write();
        let shelf = shelves.entry(kind).or_default();
        for name in names {
            if let Some(subscribers) = shelf.named.get_mut(&name) {
                subscribers.remove(&mailbox.id);
                if subscribers.is_empty() {
                    shelf.named.remove(&name);
                }
            }
        }
    }

    /// From now on this stream hears of every change of this type.
    pub(crate) fn watch_all(&self, kind: ResourceType, mailbox: &Arc<Mailbox>) {
        self.shelves
            .write()
            .entry(kind)
            .or_default()
            .wildcard
            .insert(mailbox.id, mailbox.clone());
    }

    /// It no longer wants to.
    pub(crate) fn unwatch_all(&self, kind: ResourceType, mailbox: &Mailbox) {
        if let Some(shelf) = self.shelves.write().get_mut(&kind) {
            shelf.wildcard.remove(&mailbox.id);
        }
    }

    /// The stream ends: it wants nothing any more.
    pub(crate) fn leave(&self, mailbox: &Mailbox) {
        for shelf in self.shelves.write().values_mut() {
            shelf.wildcard.remove(&mailbox.id);
            shelf.named.retain(|_, subscribers| {
                subscribers.remove(&mailbox.id);
                !subscribers.is_empty()
            });
        }
    }

    /// Tells the streams whom a change at `at` may concern: `kinds` says of which types anything may differ, `touches`
    /// whether a resource may differ for a view. Returns how many streams that were.
    pub(crate) fn tell(
        &self,
        kinds: impl Fn(ResourceType) -> bool,
        touches: impl Fn(ResourceType, &str, &ProxyView) -> bool,
        at: Instant,
    ) -> usize {
        let shelves = self.shelves.read();
        let mut told: Subscribers = HashMap::new();
        for (kind, shelf) in shelves.iter().filter(|(kind, _)| kinds(**kind)) {
            for mailbox in shelf.wildcard.values() {
                mailbox.news.lock().relist.entry(*kind).or_insert(at);
                told.insert(mailbox.id, mailbox.clone());
            }
            for (name, subscribers) in &shelf.named {
                for mailbox in subscribers
                    .values()
                    .filter(|mailbox| touches(*kind, name, &mailbox.view.read()))
                {
                    mailbox
                        .news
                        .lock()
                        .changed
                        .entry((*kind, name.clone()))
                        .or_insert(at);
                    told.insert(mailbox.id, mailbox.clone());
                }
            }
        }
        // Rung once everything is in the box, so that a stream sees one update as one.
        for mailbox in told.values() {
            mailbox.bell.notify_one();
        }
        told.len()
    }

    /// How many names have a subscriber.
    #[cfg(test)]
    pub(crate) fn names(&self) -> usize {
        self.shelves
            .read()
            .values()
            .map(|shelf| shelf.named.len())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::ClientKind;

    fn mailbox(id: u64) -> Arc<Mailbox> {
        let view = ProxyView {
            kind: ClientKind::Tulle,
            namespace: None,
            pod: None,
            node: None,
            zone: None,
        };
        Mailbox::new(StreamId(id), Arc::new(view))
    }

    /// Tells that cluster `x` changed.
    fn tell(index: &Index) -> usize {
        index.tell(
            |kind| kind == ResourceType::Cluster,
            |_, name, _| name == "x",
            Instant::now(),
        )
    }

    #[test]
    fn only_subscribers_hear_of_a_change() {
        let index = Index::default();
        let [cluster, other, endpoints, all] = [1, 2, 3, 4].map(mailbox);
        index.watch(ResourceType::Cluster, ["x".into(), "y".into()], &cluster);
        index.watch(ResourceType::Cluster, ["y".into()], &other);
        index.watch(ResourceType::Endpoints, ["x".into()], &endpoints);
        index.watch_all(ResourceType::Cluster, &all);
        assert_eq!(tell(&index), 2);
        let news = cluster.take();
        assert_eq!(
            news.changed.into_keys().collect::<Vec<_>>(),
            [(ResourceType::Cluster, "x".into())]
        );
        assert_eq!(
            all.take().relist.into_keys().collect::<Vec<_>>(),
            [ResourceType::Cluster]
        );
        assert!(other.take().changed.is_empty());
        assert!(endpoints.take().changed.is_empty());
    }

    #[test]
    fn nobody_is_told_after_leaving() {
        let index = Index::default();
        let mailbox = mailbox(1);
        index.watch(ResourceType::Cluster, ["x".into(), "y".into()], &mailbox);
        index.watch_all(ResourceType::Cluster, &mailbox);
        index.unwatch(
            ResourceType::Cluster,
            ["x".into(), "y".into(), "never".into()],
            &mailbox,
        );
        index.unwatch_all(ResourceType::Cluster, &mailbox);
        assert_eq!(tell(&index), 0);
        assert_eq!(
            index.names(),
            0,
            "an index does not remember names that nobody wants"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_does_not_look_keeps_one_entry_and_the_first_moment() {
        let index = Index::default();
        let mailbox = mailbox(1);
        index.watch(ResourceType::Cluster, ["x".into()], &mailbox);
        let first = Instant::now();
        for _ in 0..1000 {
            tell(&index);
            tokio::time::advance(std::time::Duration::from_millis(1)).await;
        }
        mailbox.rung().await;
        assert_eq!(
            mailbox.take().changed,
            HashMap::from([((ResourceType::Cluster, "x".into()), first)])
        );
    }
}
