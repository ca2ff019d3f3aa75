//! The wire: Envoy v3 API types, the services that carry them, and the few messages that are Tulle's own.
//!
//! Rooms that speak xDS import protobuf types from here and from nowhere else, so that there is one `Any`, one
//! `Duration` and one place to change the source of the types. `resource` knows the xDS resource types: type URL,
//! push order and the wildcard rule; `parts` how much a message from elsewhere may become when it is read.

pub mod parts;
pub mod resource;

pub use envoy_types::pb::envoy;
pub use envoy_types::pb::google;
pub use prost;
pub use resource::{ResourceType, pack, unpack};

/// Tulle's own messages.
pub mod tulle {
    /// Version 1.
    pub mod v1 {
        #![expect(missing_docs, reason = "generated; documented in proto/")]
        tonic::include_proto!("tulle.v1");
    }
}

/// Istio's APIs that Tulle speaks on the wire.
pub mod istio {
    /// `istio.v1.auth`: the certificate service.
    pub mod auth {
        #![expect(
            missing_docs,
            unused_qualifications,
            reason = "generated; documented in proto/"
        )]
        tonic::include_proto!("istio.v1.auth");
    }
    /// `istio.workload`: workload metadata by address.
    pub mod workload {
        #![expect(missing_docs, reason = "generated; documented in proto/")]
        tonic::include_proto!("istio.workload");
    }
}

/// By which a sidecar's node says, among its `client_features`, that it ends when it is told that its pod has finished.
pub const ENDS_WITH_POD: &str = "tulle.dev/ends-with-pod";
/// In the trailers of a discovery stream: what has become of the client's pod.
pub const POD_TRAILER: &str = "tulle-pod";
/// The value of [`POD_TRAILER`] that says that all but its sidecar has ended for good.
pub const POD_FINISHED: &str = "finished";
/// Name of the typed filter metadata that carries [`tulle::v1::Endpoint`] on an endpoint.
pub const ENDPOINT_METADATA: &str = "tulle.dev";
