//! Connections of a client, with reuse and without retries.
//!
//! A request that the connection hands back unsent because the server had already closed it goes out on a new
//! connection: it was never on the wire, so that is its first attempt. Anything else is reported as it happened.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tonic::body::Body;
use tower_service::Service;
use tulle_runtime::tasks::Tasks;

use crate::app::target::Target;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("connect")]
    Connect(#[source] std::io::Error),
    #[error("handshake")]
    Handshake(#[source] hyper::Error),
    #[error("request")]
    Request(#[source] hyper::Error),
}

/// Opens a TCP connection.
pub(crate) async fn connect(target: &Target) -> Result<TcpStream, ClientError> {
    let stream = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .map_err(ClientError::Connect)?;
    stream.set_nodelay(true).map_err(ClientError::Connect)?;
    Ok(stream)
}

/// The connections to one target. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct HttpClient {
    target: Arc<Target>,
    tasks: Tasks,
    http2: bool,
    reuse: bool,
    idle: Arc<Mutex<Vec<http1::SendRequest<Body>>>>,
    shared: Arc<tokio::sync::Mutex<Option<http2::SendRequest<Body>>>>,
}

/// An answer, and the HTTP/1 connection to give back once its body has been read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    connection: Option<http1::SendRequest<Body>>,
}

impl HttpClient {
    pub(crate) fn new(target: Arc<Target>, tasks: Tasks, http2: bool, reuse: bool) -> Self {
        Self {
            target,
            tasks,
            http2,
            reuse,
            idle: Arc::default(),
            shared: Arc::default(),
        }
    }

    pub(crate) async fn send(&self, mut request: Request<Body>) -> Result<Answer, ClientError> {
        loop {
            let (sent, connection, reused) = if self.http2 {
                let (mut connection, reused) = self.http2().await?;
                (connection.try_send_request(request).await, None, reused)
            } else {
                let (mut connection, reused) = self.http1().await?;
                (
                    connection.try_send_request(request).await,
                    Some(connection),
                    reused,
                )
            };
            match sent {
                Ok(response) => {
                    return Ok(Answer {
                        response,
                        connection,
                    });
                }
                Err(error) => request = unsent(error, reused)?,
            }
        }
    }

    /// Lets the next request use the connection of an answer whose body has been read.
    pub(crate) async fn give_back(&self, connection: Option<http1::SendRequest<Body>>) {
        if let Some(mut connection) = connection.filter(|_| self.reuse)
            && connection.ready().await.is_ok()
        {
            self.idle.lock().push(connection);
        }
    }

    async fn http1(&self) -> Result<(http1::SendRequest<Body>, bool), ClientError> {
        loop {
            let idle = self.idle.lock().pop();
            match idle {
                Some(connection) if connection.is_ready() => return Ok((connection, true)),
                Some(_) => {}
                None => break,
            }
        }
        let io = TokioIo::new(connect(&self.target).await?);
        let (sender, connection) = http1::handshake(io).await.map_err(ClientError::Handshake)?;
        self.drive(connection.with_upgrades());
        Ok((sender, false))
    }

    async fn http2(&self) -> Result<(http2::SendRequest<Body>, bool), ClientError> {
        let mut shared = self.shared.lock().await;
        if let Some(sender) = shared
            .as_ref()
            .filter(|sender| self.reuse && !sender.is_closed())
        {
            return Ok((sender.clone(), true));
        }
        let io = TokioIo::new(connect(&self.target).await?);
        let executor = TokioExecutor::new();
        let (sender, connection) = http2::handshake(executor, io)
            .await
            .map_err(ClientError::Handshake)?;
        self.drive(connection);
        *shared = self.reuse.then(|| sender.clone());
        Ok((sender, false))
    }

    /// How a connection ends shows in its requests.
    fn drive(&self, connection: impl Future<Output = hyper::Result<()>> + Send + 'static) {
        self.tasks
            .spawn_connection("client", async { drop(connection.await) });
    }
}

impl Answer {
    pub(crate) fn into_parts(self) -> (Response<Incoming>, Option<http1::SendRequest<Body>>) {
        (self.response, self.connection)
    }
}

/// The request, if it was never sent because a reused connection had ended.
fn unsent(
    mut error: TrySendError<Request<Body>>,
    reused: bool,
) -> Result<Request<Body>, ClientError> {
    match error.take_message().filter(|_| reused) {
        Some(request) => Ok(request),
        None => Err(ClientError::Request(error.into_error())),
    }
}

/// For generated gRPC clients.
impl Service<Request<Body>> for HttpClient {
    type Response = Response<Incoming>;
    type Error = ClientError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { Ok(client.send(request).await?.response) })
    }
}
