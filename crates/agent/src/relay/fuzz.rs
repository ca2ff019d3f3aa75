//! The relay's gate without a connection, for fuzz targets.

use std::fmt;

use bytes::Bytes;
use tonic::Status;
use tulle_runtime::drain;

use super::{Method, Metrics, Relay};

/// Decides whose first requests are relayed.
pub struct Gate(Relay);

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    /// Of the pod with this node id, without its kind.
    #[must_use]
    pub fn new(node: &str) -> Self {
        let connect = Box::new(|| unreachable!("nothing is relayed"));
        let (_, watch) = drain::channel();
        Self(Relay::new(
            node.to_owned(),
            1,
            connect,
            Metrics::default(),
            watch,
        ))
    }

    /// Whether a stream that begins with this request is relayed.
    ///
    /// # Errors
    /// What its client is told.
    pub fn admit(&self, full: bool, first: &[u8]) -> Result<(), Status> {
        let method = if full { Method::Full } else { Method::Delta };
        self.0.check(method, None, &Bytes::copy_from_slice(first))
    }
}
