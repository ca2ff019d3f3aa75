//! Who is who: SPIFFE ids, SVIDs, issuing, verification, TLS configurations and the client of the CA.
//!
//! In travel order: an id is parsed ([`spiffe`]), a key and a CSR are made ([`key`]), the CA issues ([`issue`]), the
//! chain becomes an [`Svid`], peers verify it against a [`TrustBundle`] ([`verify`]), and a live [`Identity`] turns both
//! into rustls configurations that follow a rotation. [`ca_client`] keeps an identity fresh. Private keys are zeroized
//! when dropped, never printed, and leave this crate only as the file that the owner asked to write.

pub mod bundle;
pub mod ca_client;
pub mod error;
mod file;
pub mod identity;
pub mod issue;
pub mod key;
mod pem;
pub mod spiffe;
pub mod svid;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod verify;
mod workload;

pub use bundle::TrustBundle;
pub use ca_client::{CaClientConfig, control_channel, require_memory};
pub use error::Error;
pub use identity::{Current, Identity};
pub use issue::{CsrPolicy, IssueRequest, Issued, Issuer, Root};
pub use key::PrivateKey;
pub use spiffe::{ParseIdError, SpiffeId, TrustDomain};
pub use svid::Svid;
pub use tls::{ClientAuth, mesh_server_name};
pub use verify::{VerifyError, peer_id, refusal};
pub use workload::workload_id;
