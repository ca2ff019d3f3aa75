//! An API server that is written by hand, for tests of what a real one cannot be made to do.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower_service::Service;

/// A client of one that has such objects at paths, and no others.
pub(super) fn api_server<A>(objects: A) -> Client
where
    A: Fn(&str) -> Option<Value> + Clone + Send + 'static,
{
    Client::new(HandWritten(objects), "default")
}

#[derive(Clone)]
struct HandWritten<A>(A);

impl<A> Service<Request<Body>> for HandWritten<A>
where
    A: Fn(&str) -> Option<Value>,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (status, body) = match (self.0)(request.uri().path()) {
            Some(object) => (200, object),
            None => {
                let none = json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 });
                (404, none)
            }
        };
        let answer = Response::builder().status(status);
        let answer = answer.body(Full::from(body.to_string()));
        ready(Ok(answer.expect("it has a status and a body")))
    }
}
