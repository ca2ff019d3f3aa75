//! The gRPC face of discovery.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tulle_xds_proto::parts::Bounded;

use super::intake::{Held, Intake};
use super::refused::Refused;
use super::variant::{Delta, Full, Variant};
use super::{Discovery, Peer, session};

/// Bytes of the longest request for what a part of it may count for: a name, or of a message the sixteenth part.
const BYTES_A_PART: usize = 4;

/// What serves both variants. Not what is generated: its codec makes of a request whatever there is in it.
#[derive(Clone, Debug)]
pub(crate) struct Server(Discovery);

impl Discovery {
    /// The service, to be added to a server whose connections carry a [`Peer`].
    pub(crate) fn service(&self) -> Intake<Server> {
        let longest = self.0.limits.request_bytes;
        let (reached, slack) = (self.0.reached.clone(), self.0.slack.clone());
        Intake::new(Server(self.clone()), longest, reached, slack)
    }
}

impl Server {
    async fn answer<V: Variant>(self, request: http::Request<Body>) -> http::Response<Body> {
        let longest = self.0.0.limits.request_bytes;
        let codec = Bounded::<V::Response, V::Request>::new(&[], longest / BYTES_A_PART);
        let mut server = Grpc::new(codec).max_decoding_message_size(longest);
        server
            .streaming(Open::<V>(self.0, PhantomData), request)
            .await
    }
}

impl Service<http::Request<Body>> for Server {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let server = self.clone();
        match request.uri().path() {
            Full::PATH => server.answer::<Full>(request).map(Ok).boxed(),
            Delta::PATH => server.answer::<Delta>(request).map(Ok).boxed(),
            _ => ready(Ok(Status::unimplemented("only ADS is served").into_http())).boxed(),
        }
    }
}

impl NamedService for Server {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

/// What tonic calls for each stream.
struct Open<V>(Discovery, PhantomData<fn(V)>);

impl<V: Variant> StreamingService<V::Request> for Open<V> {
    type Response = V::Response;
    type ResponseStream = Responses<V>;
    type Future = Ready<Result<Response<Responses<V>>, Status>>;

    fn call(&mut self, request: Request<Streaming<V::Request>>) -> Self::Future {
        ready(self.0.open::<V>(request))
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
            self.0.metrics.refused(Refused::NoSvid);
            let status = Status::unauthenticated(
                "a client certificate of the mesh is required for discovery",
            );
            session::tell_ended(self, &peer, &status);
            return Err(status);
        }
        // One response in the channel, one in the transport: that is all a slow client can pile up.
        let (responses, stream) = mpsc::channel(1);
        let held = request.extensions().get::<Held>().cloned();
        let held = held.unwrap_or_default();
        let session =
            session::serve::<V>(self.clone(), peer, request.into_inner(), held, responses);
        self.0.tasks.spawn_connection("discovery", session);
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }
}
