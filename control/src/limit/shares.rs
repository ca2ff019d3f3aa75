//! Who has how many of something that there is a limited number of.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// How many each has. Clones count together.
#[derive(Debug)]
pub(crate) struct Shares<K>(Arc<Mutex<HashMap<K, usize>>>);

/// One of them, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Eq + Hash> {
    all: Shares<K>,
    whose: K,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// One more for somebody who has fewer than `most`.
    pub(crate) fn take(&self, whose: K, most: usize) -> Option<Share<K>> {
        let mut all = self.0.lock();
        let has = all.get(&whose).copied().unwrap_or(0);
        if has >= most {
            return None;
        }
        all.insert(whose.clone(), has + 1);
        Some(Share {
            all: self.clone(),
            whose,
        })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(has) = all.get_mut(&self.whose) {
            *has -= 1;
            if *has == 0 {
                all.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_his_own_share_and_leaves_nothing_behind() {
        let shares = Shares::default();
        let first = shares.take("a", 2).expect("one");
        let second = shares.take("a", 2).expect("two");
        assert!(shares.take("a", 2).is_none());
        let other = shares.take("b", 2).expect("another's");
        drop(first);
        let third = shares.take("a", 2).expect("one was given back");
        drop((second, third, other));
        assert!(shares.0.lock().is_empty());
    }
}
