//! Entrances for the fuzz targets (`tests/fuzz`) to parsers that no other crate may call.
//!
//! Only with the feature `fuzz`, which no program has.

pub use crate::relay::fuzz::Gate;
