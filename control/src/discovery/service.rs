//! The gRPC face of discovery.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tulle_xds_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use super::intake::Intake;
use super::variant::{Delta, Full, Variant};
use super::{Discovery, Peer, session};

impl Discovery {
    /// The service, to be added to a server whose connections carry a [`Peer`].
    pub(crate) fn service(&self) -> Intake<AggregatedDiscoveryServiceServer<Self>> {
        let longest = self.0.limits.request_bytes;
        let service = AggregatedDiscoveryServiceServer::new(self.clone());
        let service = service.max_decoding_message_size(longest);
        Intake::new(service, longest, self.0.reached.clone())
    }
}

type Responses<V> = BoxStream<'static, Result<<V as Variant>::Response, Status>>;

impl Discovery {
    fn open<V: Variant>(
        &self,
        request: Request<Streaming<V::Request>>,
    ) -> Result<Response<Responses<V>>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("this connection has no peer"))?;
        peer.within_its_share()?;
        if peer.id.is_none() {
            self.0.metrics.refused("no_svid");
            return Err(Status::unauthenticated(
                "a client certificate of the mesh is required for discovery",
            ));
        }
        // One response in the channel, one in the transport: that is all a slow client can pile up.
        let (responses, stream) = mpsc::channel(1);
        let session = session::serve::<V>(self.clone(), peer, request.into_inner(), responses);
        self.0.tasks.spawn_connection("discovery", session);
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.open::<Full>(request)
    }

    type DeltaAggregatedResourcesStream =
        BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.open::<Delta>(request)
    }
}
