//! What a watch has shown. What is gone is gone only when a new list is complete.

use std::collections::BTreeMap;

use kube::runtime::watcher::Event;

/// Objects by key, and whether all of them are known.
#[derive(Debug)]
pub(super) struct Listed<K, V> {
    now: BTreeMap<K, V>,
    /// A list that is being read.
    coming: BTreeMap<K, V>,
    complete: bool,
}

impl<K, V> Default for Listed<K, V> {
    fn default() -> Self {
        Self {
            now: BTreeMap::new(),
            coming: BTreeMap::new(),
            complete: false,
        }
    }
}

impl<K: Ord + Clone, V: Clone> Listed<K, V> {
    /// Takes in what has happened; `read` says what is kept of an object, and under which key.
    pub(super) fn take<T>(&mut self, event: Event<T>, read: impl FnOnce(T) -> (K, V)) {
        match event {
            Event::Init => self.coming.clear(),
            Event::InitApply(object) => {
                let (key, value) = read(object);
                self.coming.insert(key, value);
            }
            Event::InitDone => {
                self.now = std::mem::take(&mut self.coming);
                self.complete = true;
            }
            Event::Apply(object) => {
                let (key, value) = read(object);
                self.now.insert(key, value);
            }
            Event::Delete(object) => {
                self.now.remove(&read(object).0);
            }
        }
    }

    /// Whether all are known.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.now.get(key)
    }

    pub(super) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.now.get_mut(key)
    }

    /// What we have written ourselves.
    pub(super) fn put(&mut self, key: K, value: V) {
        self.now.insert(key, value);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.now.iter()
    }
}
