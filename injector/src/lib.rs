//! Sidecar injection: decide and patch.
