//! How worlds are published: one writer, any number of readers, nothing lost and nothing queued.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Event, MeshSettings, ObjectRef, World};

/// The reading side; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

/// The writing side; there is one.
#[derive(Debug)]
pub struct StoreWriter {
    shared: Arc<Shared>,
}

/// A new world, and the objects that differ from the world of the update before.
#[derive(Clone, Debug)]
pub struct Update {
    /// The newest world.
    pub world: Arc<World>,
    /// What changed since the reader's last update. Empty when only `synced` changed.
    pub changed: BTreeSet<ObjectRef>,
}

/// The updates of one reader. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Updates {
    slot: Arc<Slot>,
}

#[derive(Debug)]
struct Shared {
    world: ArcSwap<World>,
    /// One slot a reader; the lock also orders publishing and subscribing.
    readers: Mutex<Vec<Weak<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    pending: Mutex<Pending>,
    ready: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    update: Option<Update>,
    closed: bool,
}

impl Store {
    /// An empty, unsynced store and its writer.
    #[must_use]
    pub fn new(mesh: MeshSettings) -> (Self, StoreWriter) {
        let world = ArcSwap::from_pointee(World::new(mesh));
        let shared = Arc::new(Shared {
            world,
            readers: Mutex::default(),
        });
        (
            Self {
                shared: shared.clone(),
            },
            StoreWriter { shared },
        )
    }

    /// The newest world.
    #[must_use]
    pub fn world(&self) -> Arc<World> {
        self.shared.world.load_full()
    }

    /// The current world, and every update after it.
    #[must_use]
    pub fn subscribe(&self) -> (Arc<World>, Updates) {
        let mut readers = self.shared.readers.lock();
        let slot = Arc::new(Slot::default());
        readers.push(Arc::downgrade(&slot));
        (self.shared.world.load_full(), Updates { slot })
    }
}

impl Updates {
    /// The next update, or `None` once the writer is gone. Cancel-safe. What was published while nobody waited arrives
    /// as one update.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            let ready = self.slot.ready.notified();
            {
                let mut pending = self.slot.pending.lock();
                if let Some(update) = pending.update.take() {
                    return Some(update);
                }
                if pending.closed {
                    return None;
                }
            }
            ready.await;
        }
    }
}

impl StoreWriter {
    /// Takes in what a source has to say and publishes a world, unless nothing changed by it.
    pub fn apply(&mut self, events: Vec<Event>) {
        let mut world = (*self.shared.world.load_full()).clone();
        let changed: BTreeSet<ObjectRef> = events
            .into_iter()
            .filter_map(|event| world.apply(event))
            .collect();
        if !changed.is_empty() {
            self.publish(world, changed);
        }
    }

    /// Says that everything that existed at the start has been taken in: from now on what is not there does not exist.
    pub fn set_synced(&mut self) {
        let current = self.shared.world.load_full();
        if !current.synced() {
            let mut world = (*current).clone();
            world.set_synced();
            self.publish(world, BTreeSet::new());
        }
    }

    fn publish(&self, world: World, changed: BTreeSet<ObjectRef>) {
        let world = Arc::new(world);
        let mut readers = self.shared.readers.lock();
        self.shared.world.store(world.clone());
        readers.retain(|reader| {
            let Some(slot) = reader.upgrade() else {
                return false;
            };
            let mut pending = slot.pending.lock();
            let merged = pending.update.get_or_insert_with(|| Update {
                world: world.clone(),
                changed: BTreeSet::new(),
            });
            merged.world = world.clone();
            merged.changed.extend(changed.iter().cloned());
            drop(pending);
            slot.ready.notify_one();
            true
        });
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        for slot in self.shared.readers.lock().iter().filter_map(Weak::upgrade) {
            slot.pending.lock().closed = true;
            slot.ready.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Kind, Namespace, Object};

    fn namespace(name: &str) -> Event {
        Event::Apply(Object::Namespace(Namespace::new(name)))
    }

    #[tokio::test]
    async fn a_reader_that_was_away_gets_all_changes_in_one_update() {
        let (store, mut writer) = Store::new(MeshSettings::default());
        let (_, mut updates) = store.subscribe();
        writer.apply(vec![namespace("a")]);
        writer.apply(vec![namespace("b")]);
        let update = updates.next().await.expect("two changes");
        assert_eq!(update.changed.len(), 2);
        assert_eq!(update.world.generation(Kind::Namespace), 2);
        drop(writer);
        assert!(
            updates.next().await.is_none(),
            "nothing twice, and the end is seen"
        );
    }

    #[tokio::test]
    async fn what_changes_nothing_is_not_published() {
        let (store, mut writer) = Store::new(MeshSettings::default());
        writer.apply(vec![namespace("a")]);
        let (_, mut updates) = store.subscribe();
        writer.apply(vec![namespace("a")]);
        writer.set_synced();
        let update = updates.next().await.expect("synced");
        assert!(update.changed.is_empty() && update.world.synced());
    }
}
