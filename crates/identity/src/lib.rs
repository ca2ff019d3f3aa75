//! SPIFFE ids, SVIDs, issuing, verification and the CA client.

pub mod spiffe;

pub use spiffe::SpiffeId;
