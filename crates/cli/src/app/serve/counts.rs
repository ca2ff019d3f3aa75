//! How often a request with an id was received: proof that nothing was sent twice, and nothing lost.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Ids that are kept; those beyond are not counted, so that no client can fill the memory.
const MAX_IDS: usize = 1_000_000;
/// Longest id that is kept.
const MAX_LENGTH: usize = 128;

/// Counters by id.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<BTreeMap<String, u32>>);

impl Counts {
    pub(super) fn add(&self, id: &str) {
        let mut counts = self.0.lock();
        if let Some(count) = counts.get_mut(id) {
            *count = count.saturating_add(1);
        } else if counts.len() < MAX_IDS && id.len() <= MAX_LENGTH {
            counts.insert(id.to_owned(), 1);
        }
    }

    pub(super) fn get(&self, id: &str) -> u32 {
        self.0.lock().get(id).copied().unwrap_or(0)
    }

    /// All ids that begin with `prefix`.
    pub(super) fn with_prefix(&self, prefix: &str) -> BTreeMap<String, u32> {
        let counts = self.0.lock();
        let from = counts.range(prefix.to_owned()..);
        from.take_while(|(id, _)| id.starts_with(prefix))
            .map(|(id, count)| (id.clone(), *count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_id_and_listed_by_prefix() {
        let counts = Counts::default();
        for id in ["a-1", "a-2", "a-1", "b-1"] {
            counts.add(id);
        }
        assert_eq!((counts.get("a-1"), counts.get("c")), (2, 0));
        assert_eq!(counts.with_prefix("a-").len(), 2);
        counts.add(&"x".repeat(MAX_LENGTH + 1));
        assert_eq!(counts.with_prefix("").len(), 3);
    }
}
