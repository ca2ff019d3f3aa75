//! gRPC: the echo service, and the standard health service.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio_stream::wrappers::WatchStream;
use tonic::body::Body;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Code, Status, Streaming};
use tower_service::Service;

use super::App;
use crate::app::pb::echo::echo_server::{Echo, EchoServer};
use crate::app::pb::echo::{EchoReply, EchoRequest};
use crate::app::pb::health::health_check_response::ServingStatus;
use crate::app::pb::health::health_server::{Health, HealthServer};
use crate::app::pb::health::{HealthCheckRequest, HealthCheckResponse};

/// Name of the echo service, as its health is asked for.
const ECHO: &str = "tulle.app.v1.Echo";

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The services, by path.
#[derive(Debug, Clone)]
pub(super) struct Services {
    echo: EchoServer<Responder>,
    health: HealthServer<Responder>,
}

#[derive(Debug)]
struct Responder(Arc<App>);

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

impl Services {
    pub(super) fn new(app: Arc<App>) -> Self {
        let responder = Arc::new(Responder(app));
        Self {
            echo: EchoServer::from_arc(responder.clone()),
            health: HealthServer::from_arc(responder),
        }
    }

    pub(super) async fn call(
        mut self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        request.extensions_mut().insert(Peer(peer));
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        let answer = match service {
            ECHO => self.echo.call(request).await,
            "grpc.health.v1.Health" => self.health.call(request).await,
            _ => Ok(Status::unimplemented(format!("no service {service} here")).into_http()),
        };
        let Ok(response) = answer;
        response
    }
}

impl Responder {
    /// Counts, waits and fails as asked.
    async fn accept(&self, request: &EchoRequest) -> Result<(), Status> {
        if !request.id.is_empty() {
            self.0.counts.add(&request.id);
        }
        let behaviour = self.0.behaviour.read().clone();
        let latency = behaviour.latency + Duration::from_millis(request.latency_ms.into());
        tokio::time::sleep(latency).await;
        if behaviour.fails() {
            return Err(Status::unavailable("failing, as this app was told"));
        }
        match i32::try_from(request.status).unwrap_or(i32::MAX) {
            0 => Ok(()),
            code => Err(Status::new(
                Code::from_i32(code),
                "failing, as the request asked",
            )),
        }
    }

    fn reply(&self, request: &EchoRequest, context: &Context, index: u32) -> EchoReply {
        EchoReply {
            message: request.message.clone(),
            payload: request.payload.clone(),
            name: self.0.name.clone(),
            version: self.0.version.clone(),
            pod: self.0.pod.clone(),
            peer: context.peer.clone(),
            index,
            metadata: context.metadata.clone(),
        }
    }
}

/// What all answers of a call have in common.
#[derive(Debug, Clone)]
struct Context {
    peer: String,
    metadata: Vec<String>,
}

impl Context {
    fn of<T>(request: &tonic::Request<T>) -> Self {
        let peer = request
            .extensions()
            .get::<Peer>()
            .map(|peer| peer.0.to_string());
        Self {
            peer: peer.unwrap_or_default(),
            metadata: listed(request.metadata()),
        }
    }
}

fn listed(metadata: &MetadataMap) -> Vec<String> {
    let lines = metadata.iter().filter_map(|pair| match pair {
        KeyAndValueRef::Ascii(name, value) => Some(format!("{name}: {}", value.to_str().ok()?)),
        KeyAndValueRef::Binary(..) => None,
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}

#[tonic::async_trait]
impl Echo for Responder {
    async fn unary(
        &self,
        request: tonic::Request<EchoRequest>,
    ) -> Result<tonic::Response<EchoReply>, Status> {
        let context = Context::of(&request);
        self.accept(request.get_ref()).await?;
        Ok(tonic::Response::new(self.reply(
            request.get_ref(),
            &context,
            0,
        )))
    }

    type ServerStreamStream = Replies<EchoReply>;

    async fn server_stream(
        &self,
        request: tonic::Request<EchoRequest>,
    ) -> Result<tonic::Response<Self::ServerStreamStream>, Status> {
        let context = Context::of(&request);
        let request = request.into_inner();
        self.accept(&request).await?;
        let (responder, count) = (Self(self.0.clone()), request.count.max(1));
        let interval = Duration::from_millis(request.interval_ms.into());
        let replies = stream::iter(0..count).then(move |index| {
            let reply = responder.reply(&request, &context, index);
            async move {
                if index > 0 {
                    tokio::time::sleep(interval).await;
                }
                Ok(reply)
            }
        });
        Ok(tonic::Response::new(Box::pin(replies)))
    }

    type BidiStream = Replies<EchoReply>;

    async fn bidi(
        &self,
        request: tonic::Request<Streaming<EchoRequest>>,
    ) -> Result<tonic::Response<Self::BidiStream>, Status> {
        let context = Context::of(&request);
        let responder = Arc::new(Self(self.0.clone()));
        let replies = request
            .into_inner()
            .enumerate()
            .then(move |(index, request)| {
                let (responder, context) = (responder.clone(), context.clone());
                async move {
                    let request = request?;
                    responder.accept(&request).await?;
                    Ok(responder.reply(
                        &request,
                        &context,
                        u32::try_from(index).unwrap_or(u32::MAX),
                    ))
                }
            });
        Ok(tonic::Response::new(Box::pin(replies)))
    }
}

fn health(ready: bool) -> HealthCheckResponse {
    let status = if ready {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for Responder {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        match request.get_ref().service.as_str() {
            "" | ECHO => Ok(tonic::Response::new(health(*self.0.ready.borrow()))),
            other => Err(Status::not_found(format!("no service {other} here"))),
        }
    }

    type WatchStream = Replies<HealthCheckResponse>;

    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let known = matches!(request.get_ref().service.as_str(), "" | ECHO);
        let changes: Self::WatchStream = if known {
            Box::pin(WatchStream::new(self.0.ready.subscribe()).map(|ready| Ok(health(ready))))
        } else {
            let unknown = HealthCheckResponse {
                status: ServingStatus::ServiceUnknown.into(),
            };
            // The protocol asks for an answer and an open stream, not for an error.
            Box::pin(stream::iter([Ok(unknown)]).chain(stream::pending()))
        };
        Ok(tonic::Response::new(changes))
    }
}
