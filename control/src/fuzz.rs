//! Entrances for the fuzz targets (`tests/fuzz`) to parsers that no other crate may call.
//!
//! Only with the feature `fuzz`, which no program has.

pub use crate::ca::fuzz::CaState;
pub use crate::discovery::fuzz::{Conversation, Told};

use std::sync::Arc;

use crate::ca::{Caller, JwksReview, TokenError};
use crate::source::Problem;
use crate::store::{Event, MeshSettings};

/// What the text of a manifest file says, and what is wrong with it.
#[must_use]
pub fn manifest(text: &str, json: bool) -> (Vec<Event>, Vec<Problem>) {
    crate::source::read(text, json)
}

/// Who a token says the caller is, by the keys of a JWKS document.
///
/// # Errors
/// As [`TokenReview`](crate::ca::TokenReview).
pub fn token(review: &JwksReview, jwks: &[u8], token: &str) -> Result<Caller, TokenError> {
    review.check_with(jwks, token)
}

/// Service (namespace and name) and port that the target of a gRPC channel means to a client of this namespace.
#[must_use]
pub fn grpc_target(
    mesh: &MeshSettings,
    namespace: &Arc<str>,
    target: &str,
) -> Option<(String, String, u16)> {
    crate::translate::grpc_target(mesh, namespace, target)
}

/// Pod and namespace of a `node.id` in a cluster of this domain.
#[must_use]
pub fn node_id(id: &str, domain: &str) -> Option<(String, String)> {
    let node = crate::discovery::node_id(id, domain)?;
    Some((node.pod, node.namespace))
}
