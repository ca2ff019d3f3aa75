//! The way back: responses of the control plane, and what a stream holds for as long as it lasts.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt as _};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tulle_runtime::drain::DrainWatch;

/// A stream's place among the streams, its right to keep the process alive, and its count.
pub(super) struct Held {
    _place: OwnedSemaphorePermit,
    _drain: DrainWatch,
    streams: Gauge,
}

impl Held {
    pub(super) fn new(place: OwnedSemaphorePermit, drain: DrainWatch, streams: &Gauge) -> Self {
        streams.inc();
        Self {
            _place: place,
            _drain: drain,
            streams: streams.clone(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.streams.dec();
    }
}

/// Responses on their way to the client.
pub(super) struct Relayed {
    responses: BoxStream<'static, Result<Bytes, Status>>,
    _held: Option<Held>,
}

impl Relayed {
    pub(super) fn new(
        responses: impl Stream<Item = Result<Bytes, Status>> + Send + 'static,
        held: Held,
    ) -> Self {
        Self {
            responses: responses.boxed(),
            _held: Some(held),
        }
    }

    /// For a client that asked nothing.
    pub(super) fn empty() -> Self {
        Self {
            responses: futures_util::stream::empty().boxed(),
            _held: None,
        }
    }
}

impl Stream for Relayed {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.responses.poll_next_unpin(cx)
    }
}
