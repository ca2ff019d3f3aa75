//! A stream to the control plane: how it is opened, what it waits for beside words, and why it ended.

use std::future::pending;

use futures_util::Stream;
use http::uri::PathAndQuery;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use tulle_xds_proto::parts::Bounded;
use tulle_xds_proto::{POD_FINISHED, POD_TRAILER};

use super::super::tracker::MAX_RESOURCES;

/// Bytes of one response.
const MAX_RESPONSE: usize = 16 * 1024 * 1024;
/// What its parts may count for, without what is in its resources: as many as are kept, named and removed.
const MAX_PARTS: usize = 64 * MAX_RESOURCES;
/// Where in a response the content of a resource is: resource, Any, value. The tracker looks at that.
const CONTENT: &[u32] = &[2, 2, 2];
/// What is called.
const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// When to leave a channel, and the next one.
pub(super) struct Renewal {
    pub(super) due: watch::Receiver<u64>,
    pub(super) connect: Box<dyn Fn() -> Option<Channel> + Send>,
}

/// Why a stream ended.
pub(super) enum End {
    Lost(Status),
    /// Its connection has been replaced.
    Renewed,
    /// This sidecar is all that is left of its pod.
    Finished,
}

/// What a stream waits for beside words.
pub(super) enum Due {
    /// It may go on: what was held back may be said or heard now.
    Pace,
    /// Nothing has come on it at all.
    Silence,
    /// It is old.
    Age,
}

/// Opens a stream. Not with the client that is generated: its codec makes of a response whatever there is in it.
pub(super) async fn open(
    channel: Channel,
    outgoing: impl Stream<Item = DeltaDiscoveryRequest> + Send + 'static,
) -> Result<Streaming<DeltaDiscoveryResponse>, Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_RESPONSE);
    let ready = client.ready().await;
    ready.map_err(|error| Status::unknown(format!("service was not ready: {error}")))?;
    let (path, codec) = (
        PathAndQuery::from_static(METHOD),
        Bounded::new(CONTENT, MAX_PARTS),
    );
    let opened = client.streaming(Request::new(outgoing), path, codec).await;
    opened.map(tonic::Response::into_inner)
}

/// Waits for a moment, or for ever.
pub(super) async fn at(moment: Option<Instant>) {
    match moment {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// Waits for what is due first.
pub(super) async fn due(pace: Option<Instant>, silent: Option<Instant>, old: Instant) -> Due {
    let (mut at, mut due) = (old, Due::Age);
    if let Some(silent) = silent.filter(|silent| *silent < at) {
        (at, due) = (silent, Due::Silence);
    }
    if let Some(pace) = pace.filter(|pace| *pace < at) {
        (at, due) = (pace, Due::Pace);
    }
    sleep_until(at).await;
    due
}

/// Waits for the next channel.
pub(super) async fn renew(renewal: &mut Option<Renewal>) -> Channel {
    let Some(renewal) = renewal else {
        return pending().await;
    };
    loop {
        if renewal.due.changed().await.is_err() {
            return pending().await;
        }
        if let Some(channel) = (renewal.connect)() {
            return channel;
        }
    }
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal")
            .field("due", &self.due)
            .finish_non_exhaustive()
    }
}

/// Why a stream is over whose last word this is.
pub(super) fn ended(last: Option<Result<DeltaDiscoveryResponse, Status>>) -> Status {
    match last {
        Some(Err(status)) => status,
        Some(Ok(_)) | None => Status::unavailable("the control plane closed the stream"),
    }
}

/// Whether a stream ended because the pod has finished.
pub(super) fn is_pod_finished(end: &Status) -> bool {
    let said = end.metadata().get(POD_TRAILER);
    said.is_some_and(|said| said == POD_FINISHED)
}
