//! The hash map of the hot path.
//!
//! Its hash is several times quicker than the standard one and no defence against keys that were chosen to collide: only
//! for maps whose keys come from the control plane, or which are bounded.

use std::collections::HashMap;

/// A map with a quick hash; made by `Map::default()`.
pub type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
