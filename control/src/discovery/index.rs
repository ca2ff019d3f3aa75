//! Which stream wants which resource, and how it hears that one changed.
//!
//! A stream has a [`Mailbox`], a set of names that changed since it last looked: telling it twice costs nothing, and a
//! stream that does not look keeps one entry a name. The [`Index`] leads from what a resource is about to the mailboxes
//! of its subscribers, so that a change reaches those whom it concerns, and looks at nobody else. Who wants all of a type
//! is told the names that are about what changed: what that costs does not depend on how much there is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;
use tulle_xds_proto::ResourceType;

use super::resource::Name;
use crate::store::MeshSettings;
use crate::translate::{ClientKind, ProxyView, Reach, Subject};

/// Names that one stream looks after before others have their turn.
const A_TURN: usize = 256;

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
    /// Types of which a wildcard subscriber should list everything again: anything may differ.
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
    /// What it is in the index for, so that leaving costs what it watched, and not what everybody does.
    watched: Mutex<HashMap<ResourceType, HashSet<Name>>>,
}

impl Mailbox {
    pub(crate) fn new(id: StreamId, view: Arc<ProxyView>) -> Arc<Self> {
        Arc::new(Self {
            id,
            view: RwLock::new(view),
            news: Mutex::default(),
            bell: Notify::new(),
            watched: Mutex::default(),
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

/// From what a resource is about to its subscribers.
#[derive(Debug)]
pub(crate) struct Index {
    mesh: MeshSettings,
    shelves: RwLock<HashMap<ResourceType, Shelf>>,
}

/// A change of the world, as far as it decides who hears of it.
pub(crate) trait Change {
    /// How far it reaches among the resources of a type.
    fn reach(&self, kind: ResourceType) -> Reach;
    /// Whether a resource with a subject may differ for a view.
    fn touches(&self, kind: ResourceType, subject: &Subject, view: &ProxyView) -> bool;
    /// Names about a subject that were or are among all of a type for a view.
    fn names(&self, kind: ResourceType, subject: &Subject, view: &ProxyView) -> Vec<Name>;
}

type Subscribers = HashMap<StreamId, Arc<Mailbox>>;

/// The subscribers of one type.
#[derive(Debug, Default)]
struct Shelf {
    /// By subject first, so that a change costs what it concerns, and not what there is.
    named: HashMap<Subject, HashMap<Name, Subscribers>>,
    wildcard: Subscribers,
}

impl Index {
    /// Without subscribers.
    pub(crate) fn new(mesh: MeshSettings) -> Self {
        Self {
            mesh,
            shelves: RwLock::default(),
        }
    }

    /// From now on this stream hears of changes under these names.
    pub(crate) fn watch(
        &self,
        kind: ResourceType,
        names: impl IntoIterator<Item = Name>,
        mailbox: &Arc<Mailbox>,
    ) {
        self.in_turns(kind, names, mailbox, |shelf, watched, name, subject| {
            watched.insert(name.clone());
            let named = shelf.named.entry(subject).or_default();
            let subscribers = named.entry(name).or_default();
            subscribers.insert(mailbox.id, mailbox.clone());
        });
    }

    /// It no longer wants to.
    pub(crate) fn unwatch(
        &self,
        kind: ResourceType,
        names: impl IntoIterator<Item = Name>,
        mailbox: &Mailbox,
    ) {
        self.in_turns(kind, names, mailbox, |shelf, watched, name, subject| {
            watched.remove(&name);
            let Some(named) = shelf.named.get_mut(&subject) else {
                return;
            };
            if let Some(subscribers) = named.get_mut(&name) {
                subscribers.remove(&mailbox.id);
                if subscribers.is_empty() {
                    named.remove(&name);
                }
            }
            if named.is_empty() {
                shelf.named.remove(&subject);
            }
        });
    }

    /// Does something for each of the names; others may come between if there are many.
    fn in_turns(
        &self,
        kind: ResourceType,
        names: impl IntoIterator<Item = Name>,
        mailbox: &Mailbox,
        mut each: impl FnMut(&mut Shelf, &mut HashSet<Name>, Name, Subject),
    ) {
        let view = mailbox.view();
        let mut names = names.into_iter().peekable();
        while names.peek().is_some() {
            let mut shelves = self.shelves.write();
            let shelf = shelves.entry(kind).or_default();
            let mut watched = mailbox.watched.lock();
            let watched = watched.entry(kind).or_default();
            for name in names.by_ref().take(A_TURN) {
                let subject = Subject::of(&self.mesh, kind, &name, &view);
                each(shelf, watched, name, subject);
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
        let watched = std::mem::take(&mut *mailbox.watched.lock());
        for (kind, names) in watched {
            self.unwatch(kind, names, mailbox);
        }
        for shelf in self.shelves.write().values_mut() {
            shelf.wildcard.remove(&mailbox.id);
        }
    }

    /// Tells the streams whom a change at `at` may concern. Returns how many streams that were.
    pub(crate) fn tell(&self, change: &impl Change, at: Instant) -> usize {
        let shelves = self.shelves.read();
        let mut told = Told::at(at);
        for (kind, shelf) in shelves.iter() {
            let mut look = |subject: &Subject, named: &HashMap<Name, Subscribers>| {
                for (name, subscribers) in named {
                    let concerned = |mailbox: &&Arc<Mailbox>| {
                        change.touches(*kind, subject, &mailbox.view.read())
                    };
                    for mailbox in subscribers.values().filter(concerned) {
                        told.changed(mailbox, (*kind, name.clone()));
                    }
                }
            };
            match change.reach(*kind) {
                Reach::Nothing => {}
                Reach::Everything => {
                    for (subject, named) in &shelf.named {
                        look(subject, named);
                    }
                    for mailbox in shelf.wildcard.values() {
                        told.relist(mailbox, *kind);
                    }
                }
                Reach::Subjects(subjects) => {
                    for subject in &subjects {
                        if let Some(named) = shelf.named.get(subject) {
                            look(subject, named);
                        }
                    }
                    tell_of_all(&shelf.wildcard, change, *kind, &subjects, &mut told);
                }
            }
        }
        told.ring()
    }

    /// Tells the streams that want the resource of a name that depends on nothing in the world.
    pub(crate) fn tell_of(&self, kind: ResourceType, name: &str, at: Instant) {
        let shelves = self.shelves.read();
        let named = shelves
            .get(&kind)
            .and_then(|shelf| shelf.named.get(&Subject::Nothing))
            .and_then(|named| named.get_key_value(name));
        let mut told = Told::at(at);
        if let Some((name, subscribers)) = named {
            for mailbox in subscribers.values() {
                told.changed(mailbox, (kind, name.clone()));
            }
        }
        told.ring();
    }

    /// How many names have a subscriber.
    #[cfg(test)]
    pub(crate) fn names(&self) -> usize {
        self.shelves
            .read()
            .values()
            .flat_map(|shelf| shelf.named.values())
            .map(HashMap::len)
            .sum()
    }
}

/// Tells who wants all of a type the names that are about the subjects of a change.
fn tell_of_all(
    wildcard: &Subscribers,
    change: &impl Change,
    kind: ResourceType,
    subjects: &[Subject],
    told: &mut Told,
) {
    for subject in subjects {
        // Alike for all clients of a kind, but for the one that the subject itself is.
        let mut alike: HashMap<ClientKind, Vec<Name>> = HashMap::new();
        for mailbox in wildcard.values() {
            let view = mailbox.view();
            if !change.touches(kind, subject, &view) {
                continue;
            }
            let is_own = matches!((subject, &view.pod), (Subject::Pod(it), Some(own)) if it == own);
            let own = is_own.then(|| change.names(kind, subject, &view));
            let names = own.as_ref().unwrap_or_else(|| {
                let of_kind = || change.names(kind, subject, &ProxyView::of_kind(view.kind));
                alike.entry(view.kind).or_insert_with(of_kind)
            });
            for name in names {
                told.changed(mailbox, (kind, name.clone()));
            }
        }
    }
}

/// Whom a change was told, before their bells ring.
struct Told {
    at: Instant,
    mailboxes: Subscribers,
}

impl Told {
    fn at(at: Instant) -> Self {
        Self {
            at,
            mailboxes: HashMap::new(),
        }
    }

    fn changed(&mut self, mailbox: &Arc<Mailbox>, key: Key) {
        mailbox.news.lock().changed.entry(key).or_insert(self.at);
        self.mailboxes.insert(mailbox.id, mailbox.clone());
    }

    fn relist(&mut self, mailbox: &Arc<Mailbox>, kind: ResourceType) {
        mailbox.news.lock().relist.entry(kind).or_insert(self.at);
        self.mailboxes.insert(mailbox.id, mailbox.clone());
    }

    /// Rung once everything is in the boxes, so that a stream sees one update as one.
    fn ring(self) -> usize {
        for mailbox in self.mailboxes.values() {
            mailbox.bell.notify_one();
        }
        self.mailboxes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ObjectKey;

    const X: &str = "outbound|80||x.shop.svc.cluster.local";
    const Y: &str = "outbound|80||y.shop.svc.cluster.local";

    fn index() -> Index {
        Index::new(MeshSettings::default())
    }

    fn mailbox(id: u64) -> Arc<Mailbox> {
        let view = ProxyView {
            pod: Some(ObjectKey::new("shop", format!("pod-{id}"))),
            ..ProxyView::of_kind(ClientKind::Tulle)
        };
        Mailbox::new(StreamId(id), Arc::new(view))
    }

    fn subject() -> Subject {
        Subject::Service(ObjectKey::new("shop", "x"))
    }

    /// A change of these subjects of one type, or of everything; it counts what it is asked.
    struct Changed {
        kind: Option<ResourceType>,
        subjects: Option<Vec<Subject>>,
        asked: std::cell::Cell<usize>,
    }

    impl Changed {
        fn of(kind: ResourceType, subject: Subject) -> Self {
            Self {
                kind: Some(kind),
                subjects: Some(vec![subject]),
                asked: std::cell::Cell::new(0),
            }
        }
    }

    impl Change for Changed {
        fn reach(&self, kind: ResourceType) -> Reach {
            match &self.subjects {
                Some(subjects) if self.kind.is_none_or(|it| it == kind) => {
                    Reach::Subjects(subjects.clone())
                }
                Some(_) => Reach::Nothing,
                None => Reach::Everything,
            }
        }

        fn touches(&self, _: ResourceType, subject: &Subject, _: &ProxyView) -> bool {
            self.asked.set(self.asked.get() + 1);
            let named = self.subjects.as_ref();
            named.is_none_or(|named| named.contains(subject))
        }

        fn names(&self, _: ResourceType, subject: &Subject, view: &ProxyView) -> Vec<Name> {
            match subject {
                Subject::Service(key) => {
                    vec![format!("outbound|80||{}.shop.svc.cluster.local", key.name).into()]
                }
                Subject::Pod(key) if view.pod.as_ref() == Some(key) => vec!["inbound".into()],
                _ => Vec::new(),
            }
        }
    }

    /// Tells that the cluster of Service `x` changed.
    fn tell(index: &Index) -> usize {
        index.tell(
            &Changed::of(ResourceType::Cluster, subject()),
            Instant::now(),
        )
    }

    #[test]
    fn only_subscribers_hear_of_a_change() {
        let index = index();
        let [cluster, other, endpoints, all] = [1, 2, 3, 4].map(mailbox);
        index.watch(ResourceType::Cluster, [X.into(), Y.into()], &cluster);
        index.watch(ResourceType::Cluster, [Y.into()], &other);
        index.watch(ResourceType::Endpoints, [X.into()], &endpoints);
        index.watch_all(ResourceType::Cluster, &all);
        assert_eq!(tell(&index), 2);
        let news = cluster.take();
        assert_eq!(
            news.changed.into_keys().collect::<Vec<_>>(),
            [(ResourceType::Cluster, X.into())]
        );
        let news = all.take();
        assert!(news.relist.is_empty());
        assert_eq!(
            news.changed.into_keys().collect::<Vec<_>>(),
            [(ResourceType::Cluster, X.into())]
        );
        assert!(other.take().changed.is_empty());
        assert!(endpoints.take().changed.is_empty());
    }

    #[test]
    fn subscribers_of_other_things_are_not_even_looked_at() {
        let index = index();
        for id in 0..1000 {
            let name = format!("outbound|80||s{id}.shop.svc.cluster.local");
            index.watch(ResourceType::Endpoints, [name.into()], &mailbox(id));
            index.watch(ResourceType::Listener, ["inbound".into()], &mailbox(id));
        }
        let told = |change: Changed| (index.tell(&change, Instant::now()), change.asked.get());
        let s7 = || Subject::Service(ObjectKey::new("shop", "s7"));
        let everything = Changed {
            subjects: None,
            ..Changed::of(ResourceType::Endpoints, s7())
        };
        let nothing = Changed::of(ResourceType::Address, s7());
        assert_eq!(told(Changed::of(ResourceType::Endpoints, s7())), (1, 1));
        assert_eq!(told(everything), (1000, 2000));
        assert_eq!(told(nothing), (0, 0));
    }

    #[test]
    fn who_wants_all_hears_the_names_of_what_changed_and_lists_all_only_if_all_may_differ() {
        let index = index();
        let [mine, other] = [1, 2].map(mailbox);
        for mailbox in [&mine, &other] {
            index.watch_all(ResourceType::Listener, mailbox);
            index.watch_all(ResourceType::Cluster, mailbox);
        }
        let changed = |mailbox: &Mailbox| {
            let news = mailbox.take();
            let names = news.changed.into_keys().map(|(_, name)| name.to_string());
            (names.collect::<Vec<_>>(), news.relist.len())
        };
        let own = Changed::of(
            ResourceType::Listener,
            Subject::Pod(ObjectKey::new("shop", "pod-1")),
        );
        assert_eq!(index.tell(&own, Instant::now()), 1);
        assert_eq!(changed(&mine), (vec!["inbound".to_owned()], 0));
        assert_eq!(changed(&other), (vec![], 0));
        assert_eq!(tell(&index), 2);
        assert_eq!(changed(&other), (vec![X.to_owned()], 0));
        let everything = Changed {
            subjects: None,
            ..Changed::of(ResourceType::Cluster, subject())
        };
        assert_eq!(index.tell(&everything, Instant::now()), 2);
        assert_eq!(changed(&other), (vec![], 2));
    }

    #[test]
    fn one_pods_inbound_is_no_other_pods() {
        let index = index();
        let [mine, other] = [1, 2].map(mailbox);
        for mailbox in [&mine, &other] {
            index.watch(ResourceType::Listener, ["inbound".into()], mailbox);
        }
        let subject = Subject::Pod(ObjectKey::new("shop", "pod-1"));
        let change = Changed::of(ResourceType::Listener, subject);
        assert_eq!(index.tell(&change, Instant::now()), 1);
        assert_eq!(mine.take().changed.len(), 1);
        assert!(other.take().changed.is_empty());
    }

    #[test]
    fn what_depends_on_nothing_in_the_world_is_told_by_name() {
        let index = index();
        let [roots, other] = [1, 2].map(mailbox);
        index.watch(ResourceType::Secret, ["ROOTCA".into()], &roots);
        index.watch(ResourceType::Secret, ["default".into()], &other);
        index.tell_of(ResourceType::Secret, "ROOTCA", Instant::now());
        assert_eq!(roots.take().changed.len(), 1);
        assert!(other.take().changed.is_empty());
    }

    #[test]
    fn nobody_is_told_after_leaving() {
        let leaving: [fn(&Index, &Mailbox); 2] = [
            |index, mailbox| {
                let names = [X.into(), Y.into(), "never".into()];
                index.unwatch(ResourceType::Cluster, names, mailbox);
                index.unwatch_all(ResourceType::Cluster, mailbox);
            },
            |index, mailbox| index.leave(mailbox),
        ];
        for leave in leaving {
            let index = index();
            let mailbox = mailbox(1);
            index.watch(ResourceType::Cluster, [X.into(), Y.into()], &mailbox);
            index.watch_all(ResourceType::Cluster, &mailbox);
            assert_eq!(tell(&index), 1);
            leave(&index, &mailbox);
            assert_eq!(tell(&index), 0);
            assert_eq!(
                index.names(),
                0,
                "an index does not remember names that nobody wants"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_does_not_look_keeps_one_entry_and_the_first_moment() {
        let index = index();
        let mailbox = mailbox(1);
        index.watch(ResourceType::Cluster, [X.into()], &mailbox);
        let first = Instant::now();
        for _ in 0..1000 {
            tell(&index);
            tokio::time::advance(std::time::Duration::from_millis(1)).await;
        }
        mailbox.rung().await;
        assert_eq!(
            mailbox.take().changed,
            HashMap::from([((ResourceType::Cluster, X.into()), first)])
        );
    }
}
