//! An API server that is written by hand, because a real one cannot be made to misbehave at the right moment. It knows objects by
//! their path, `resourceVersion`, watches and as much of server-side apply as is asked of it here.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use http_body::Frame;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower_service::Service;

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// There is never an answer.
    Hangs,
    /// This is the answer.
    Answers(u16),
    /// The connection breaks.
    Breaks,
    /// What is asked is done, and then there is never an answer.
    DoesAndHangs,
}

type Reviewer = Box<dyn Fn(&Value) -> Value + Send>;

#[derive(Default)]
struct Shared {
    objects: BTreeMap<String, Value>,
    version: u64,
    faults: Vec<(String, Fault)>,
    calls: Vec<String>,
    watches: Vec<(Selection, mpsc::UnboundedSender<Bytes>)>,
    reviewer: Option<Reviewer>,
}

/// The server. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Mutex<Shared>>);

/// Which objects a collection's path and query mean.
struct Selection {
    prefix: String,
    plural: String,
    name: Option<String>,
}

impl Selection {
    fn new(path: &str, query: &str) -> Self {
        let (prefix, plural) = path.rsplit_once('/').expect("a path");
        let name = query.split('&').find_map(|part| {
            let value = part.strip_prefix("fieldSelector=")?;
            value.strip_prefix("metadata.name%3D").map(str::to_owned)
        });
        Self {
            prefix: prefix.to_owned(),
            plural: plural.to_owned(),
            name,
        }
    }

    fn has(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix(&self.prefix) else {
            return false;
        };
        let parts: Vec<_> = rest.trim_start_matches('/').split('/').collect();
        let ([plural, name] | ["namespaces", _, plural, name]) = parts[..] else {
            return false;
        };
        plural == self.plural && self.name.as_deref().is_none_or(|wanted| wanted == name)
    }
}

impl ApiServer {
    /// A client of it.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.clone(), "default")
    }

    /// The next call whose method and path contain this goes wrong.
    pub(crate) fn fault(&self, of: &str, fault: Fault) {
        self.0.lock().faults.push((of.to_owned(), fault));
    }

    /// Nothing goes wrong any more.
    pub(crate) fn heal(&self) {
        self.0.lock().faults.clear();
    }

    /// Judges tokens.
    pub(crate) fn reviewer(&self, judge: impl Fn(&Value) -> Value + Send + 'static) {
        self.0.lock().reviewer = Some(Box::new(judge));
    }

    /// How many calls had a method and path that contain this.
    pub(crate) fn calls(&self, of: &str) -> usize {
        let shared = self.0.lock();
        shared.calls.iter().filter(|call| call.contains(of)).count()
    }

    /// An object.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().objects.get(path).cloned()
    }

    /// Puts an object there, whatever there was.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.0.lock().store(path, object);
    }

    /// Takes an object away.
    pub(crate) fn remove(&self, path: &str) {
        self.0.lock().remove(path);
    }
}

impl Shared {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let name = path.rsplit('/').next().expect("a name");
        object["metadata"]["name"] = name.into();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if let ["", _, "v1", "namespaces", namespace, ..]
        | ["", _, _, "v1", "namespaces", namespace, ..] = path.split('/').collect::<Vec<_>>()[..]
            && path.matches('/').count() > 4
        {
            object["metadata"]["namespace"] = namespace.into();
        }
        let known = self.objects.insert(path.to_owned(), object.clone());
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        self.tell(path, kind, &object);
        object
    }

    fn remove(&mut self, path: &str) -> Option<Value> {
        let object = self.objects.remove(path)?;
        self.version += 1;
        self.tell(path, "DELETED", &object);
        Some(object)
    }

    fn tell(&mut self, path: &str, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({ "type": kind, "object": object }));
        self.watches.retain(|(selection, watch)| {
            !selection.has(path) || watch.send(line.clone().into()).is_ok()
        });
    }

    fn answer(&mut self, method: &Method, path: &str, query: &str, body: &[u8]) -> (u16, Value) {
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        if path.ends_with("/tokenreviews") {
            let review = self.reviewer.as_ref().expect("a reviewer");
            return (201, json!({ "spec": {}, "status": review(&sent["spec"]) }));
        }
        let name = sent["metadata"]["name"].as_str().unwrap_or_default();
        let created = format!("{path}/{name}");
        let known = self.objects.get(path).cloned();
        match method.as_str() {
            "GET" if known.is_some() => (200, known.unwrap_or_default()),
            "GET" if is_collection(path) => {
                let selection = Selection::new(path, query);
                let items = self.objects.iter().filter(|(path, _)| selection.has(path));
                let items: Vec<_> = items.map(|(_, object)| object).collect();
                let version = self.version.to_string();
                (
                    200,
                    json!({ "metadata": { "resourceVersion": version }, "items": items }),
                )
            }
            "POST" if self.objects.contains_key(&created) => status(409),
            "POST" => (201, self.store(&created, sent)),
            "PUT" => match known {
                None => status(404),
                Some(known)
                    if known["metadata"]["resourceVersion"]
                        != sent["metadata"]["resourceVersion"] =>
                {
                    status(409)
                }
                Some(_) => (200, self.store(path, sent)),
            },
            "PATCH" if path.ends_with("/status") => {
                self.patch_status(path.trim_end_matches("/status"), &sent)
            }
            "PATCH" => {
                let before = known.unwrap_or_default();
                let mut after = before.clone();
                merge(&mut after, sent);
                if after == before {
                    return (200, after);
                }
                (200, self.store(path, after))
            }
            "DELETE" => self
                .remove(path)
                .map_or(status(404), |object| (200, object)),
            _ => status(404),
        }
    }

    /// A merge patch of a status, in the version of the object that it names.
    fn patch_status(&mut self, path: &str, sent: &Value) -> (u16, Value) {
        let Some(mut object) = self.objects.get(path).cloned() else {
            return status(404);
        };
        if object["metadata"]["resourceVersion"] != sent["metadata"]["resourceVersion"] {
            return status(409);
        }
        object["status"] = sent["status"].clone();
        (200, self.store(path, object))
    }

    /// The lines of a watch, which goes on until it is dropped.
    fn watch(&mut self, path: &str, query: &str) -> Answer {
        let (watch, lines) = mpsc::unbounded_channel();
        self.watches.push((Selection::new(path, query), watch));
        Answer {
            lines,
            whole: false,
        }
    }
}

fn is_collection(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    [
        "secrets",
        "configmaps",
        "leases",
        "namespaces",
        "mutatingwebhookconfigurations",
    ]
    .contains(&last)
}

fn status(code: u16) -> (u16, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "",
    };
    let message = format!("hand-written answer {code}");
    (
        code,
        json!({ "kind": "Status", "status": "Failure", "code": code, "message": message, "reason": reason }),
    )
}

/// Puts one object's fields over another's; lists of named things by name.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) => {
            for value in from {
                match into.iter_mut().find(|it| it["name"] == value["name"]) {
                    Some(known) => merge(known, value),
                    None => into.push(value),
                }
            }
        }
        (into, from) => *into = from,
    }
}

/// A body: one text, or the lines of a watch.
pub(crate) struct Answer {
    lines: mpsc::UnboundedReceiver<Bytes>,
    whole: bool,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let line = self.lines.poll_recv(context);
        line.map(|line| line.map(|line| Ok(Frame::data(line))))
    }

    fn is_end_stream(&self) -> bool {
        self.whole && self.lines.is_empty()
    }
}

fn whole(value: &Value) -> Answer {
    let (sender, lines) = mpsc::unbounded_channel();
    sender.send(value.to_string().into()).expect("it is open");
    Answer { lines, whole: true }
}

impl Service<Request<Body>> for ApiServer {
    type Response = Response<Answer>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Response<Answer>, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.map_err(std::io::Error::other)?;
            let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
            let call = format!("{} {path}", head.method);
            let fault = {
                let mut shared = server.0.lock();
                let fault = shared.faults.iter().position(|(of, _)| call.contains(of));
                shared.calls.push(call);
                fault.map(|index| shared.faults.remove(index).1)
            };
            let (code, answer) = match fault {
                Some(Fault::Hangs) => return std::future::pending().await,
                Some(Fault::Breaks) => return Err(std::io::ErrorKind::ConnectionReset.into()),
                Some(Fault::DoesAndHangs) => {
                    server.0.lock().answer(&head.method, path, query, &body);
                    return std::future::pending().await;
                }
                Some(Fault::Answers(code)) => {
                    let (code, value) = status(code);
                    (code, whole(&value))
                }
                None if query.contains("watch=true") => (200, server.0.lock().watch(path, query)),
                None => {
                    let (code, value) = server.0.lock().answer(&head.method, path, query, &body);
                    (code, whole(&value))
                }
            };
            let response = Response::builder().status(code).body(answer);
            Ok(response.expect("a status is all it has"))
        })
    }
}
