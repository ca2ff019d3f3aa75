//! Sets of objects by something that several of them may share.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use super::ObjectKey;

/// Keys of objects by a property of theirs. Shared between worlds until one of them changes it.
#[derive(Clone, Debug)]
pub(super) struct Index<P>(Arc<HashMap<P, BTreeSet<ObjectKey>>>);

impl<P> Default for Index<P> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<P: Clone + Eq + Hash> Index<P> {
    /// The objects that have the property, in the order of their keys.
    pub(super) fn get<'a>(
        &'a self,
        property: &P,
    ) -> impl Iterator<Item = &'a ObjectKey> + use<'a, P> {
        self.0.get(property).into_iter().flatten()
    }

    /// Replaces the properties of an object; the map is copied only if they differ.
    pub(super) fn replace(&mut self, key: &ObjectKey, before: &[P], after: &[P]) {
        if before == after {
            return;
        }
        let map = Arc::make_mut(&mut self.0);
        for property in before {
            if let Some(keys) = map.get_mut(property) {
                keys.remove(key);
                if keys.is_empty() {
                    map.remove(property);
                }
            }
        }
        for property in after {
            map.entry(property.clone()).or_default().insert(key.clone());
        }
    }
}
