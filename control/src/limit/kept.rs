//! What is remembered of somebody for as long as it is needed, of however many.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// As many are kept without a look at whether they are needed.
const FEW: usize = 1024;

/// One of a thing for each.
#[derive(Debug)]
pub(crate) struct Kept<K, V>(Mutex<All<K, V>>);

#[derive(Debug)]
struct All<K, V> {
    kept: HashMap<K, Arc<V>>,
    /// With so many they are looked through.
    many: usize,
}

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(Mutex::new(All {
            kept: HashMap::new(),
            many: FEW,
        }))
    }
}

impl<K: Clone + Eq + Hash, V> Kept<K, V> {
    /// What there is of somebody, or is made now. One that somebody holds stays, and so does one that is needed.
    pub(crate) fn of(
        &self,
        whose: &K,
        make: impl FnOnce() -> V,
        is_needed: impl Fn(&V) -> bool,
    ) -> Arc<V> {
        let mut all = self.0.lock();
        if let Some(kept) = all.kept.get(whose) {
            return kept.clone();
        }
        if all.kept.len() >= all.many {
            // Whoever holds one got it under this lock, so that a count of one stays one.
            all.kept
                .retain(|_, kept| Arc::strong_count(kept) > 1 || is_needed(kept));
            all.many = FEW.max(all.kept.len() * 2);
        }
        let made = Arc::new(make());
        all.kept.insert(whose.clone(), made.clone());
        made
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.lock().kept.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_or_needed_stays_and_the_rest_goes_before_there_are_too_many() {
        let kept = Kept::default();
        let of = |who: usize| kept.of(&who, || who, |it| *it == 7);
        let held = of(3);
        (4..10 * FEW).for_each(|who| drop(of(who)));
        assert!(kept.len() <= FEW, "{}", kept.len());
        let is_the_same = |who: usize| *kept.of(&who, || 0, |_| true) == who;
        assert!(is_the_same(3) && is_the_same(7) && !is_the_same(4));
        drop(held);
    }
}
