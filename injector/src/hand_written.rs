//! An API server that is written by hand, for tests of what a real one cannot be made to do.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use kube::Client;
use kube::client::Body;
use tower_service::Service;

pub(crate) type Answer = Response<Full<Bytes>>;

/// A client of one that answers so.
pub(crate) fn api_server<F>(answer: impl Fn(Request<Body>) -> F + Clone + Send + 'static) -> Client
where
    F: Future<Output = Answer> + Send + 'static,
{
    Client::new(HandWritten(answer), "default")
}

#[derive(Clone)]
struct HandWritten<A>(A);

impl<A, F> Service<Request<Body>> for HandWritten<A>
where
    A: Fn(Request<Body>) -> F,
    F: Future<Output = Answer> + Send + 'static,
{
    type Response = Answer;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Answer>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = (self.0)(request);
        Box::pin(async move { Ok(answer.await) })
    }
}
