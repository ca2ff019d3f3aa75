//! An API server written by hand, because no real one can be made to behave as badly as tests need.
//!
//! It knows nothing: every request waits until the test answers it, with whatever it likes.

use std::collections::VecDeque;
use std::time::Duration;

use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::platform::follow;

/// How long a test waits for a request that must come.
const SOON: Duration = Duration::from_secs(20);

/// The server.
pub(super) struct ApiServer {
    listener: TcpListener,
    /// Requests that came while the test waited for others.
    waiting: VecDeque<Asked>,
}

/// A request that waits for its answer. Dropped, its connection is closed without one.
pub(super) struct Asked {
    /// Path and query.
    pub(super) target: String,
    /// What it accepts.
    pub(super) accept: String,
    stream: TcpStream,
}

/// An answer that goes on until it is ended. Dropped, it breaks off.
pub(super) struct Stream(TcpStream);

impl ApiServer {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        Self {
            listener: listener.expect("a port"),
            waiting: VecDeque::new(),
        }
    }

    /// A client of it.
    pub(super) fn client(&self) -> Client {
        let address = self.listener.local_addr().expect("it listens");
        let address = format!("http://{address}").parse().expect("a good address");
        follow::client(Config::new(address)).expect("nothing to misread")
    }

    /// The next request, of whatever kind.
    pub(super) async fn asked(&mut self) -> Asked {
        match self.waiting.pop_front() {
            Some(asked) => asked,
            None => self.accept().await,
        }
    }

    /// The next request with a path that begins so; others wait.
    pub(super) async fn asked_for(&mut self, path: &str) -> Asked {
        let of = |asked: &Asked| asked.target.starts_with(path);
        if let Some(index) = self.waiting.iter().position(of) {
            return self.waiting.remove(index).expect("it is there");
        }
        loop {
            let asked = self.accept().await;
            if of(&asked) {
                return asked;
            }
            self.waiting.push_back(asked);
        }
    }

    async fn accept(&self) -> Asked {
        let accepted = async {
            loop {
                let (stream, _) = self.listener.accept().await.expect("a connection");
                if let Some(asked) = Asked::read(stream).await {
                    return asked;
                }
            }
        };
        timeout(SOON, accepted).await.expect("a request in time")
    }
}

impl Asked {
    async fn read(mut stream: TcpStream) -> Option<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            // A client that has second thoughts closes.
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).expect("text");
        let target = head.split(' ').nth(1).expect("a target").to_owned();
        let accept = head.lines().find_map(|line| line.strip_prefix("accept: "));
        Some(Self {
            target,
            accept: accept.unwrap_or_default().to_owned(),
            stream,
        })
    }

    /// The value of a parameter; empty if it is not there.
    pub(super) fn parameter(&self, name: &str) -> &str {
        let (_, query) = self.target.split_once('?').unwrap_or_default();
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|pair| pair.0 == name).map_or("", |pair| pair.1)
    }

    /// Whether it asks for a list that streams.
    pub(super) fn is_streaming_list(&self) -> bool {
        self.parameter("sendInitialEvents") == "true"
    }

    /// Whether it asks for what happens after a version.
    pub(super) fn is_watch_from(&self, version: &str) -> bool {
        let watch = self.parameter("watch") == "true" && !self.is_streaming_list();
        watch && self.parameter("resourceVersion") == version
    }

    /// Whether it asks for a list, in pages or not.
    pub(super) fn is_list(&self) -> bool {
        self.parameter("watch").is_empty()
    }

    /// Answers with a status and a text.
    pub(super) async fn answer(mut self, status: u16, text: &str) {
        let answer = format!(
            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        );
        // Nobody may be there to read it any more.
        let _ = self.stream.write_all(answer.as_bytes()).await;
    }

    /// Answers with an error as an API server writes it.
    pub(super) async fn refuse(self, code: u16) {
        let status = status(code).to_string();
        self.answer(code, &status).await;
    }

    /// Answers with a page of a list, of which there is more if there is a token.
    pub(super) async fn page(self, version: &str, token: &str, items: &[Value]) {
        let metadata = json!({ "resourceVersion": version, "continue": token });
        let list = json!({ "kind": "List", "metadata": metadata, "items": items });
        self.answer(200, &list.to_string()).await;
    }

    /// Begins an answer that goes on.
    pub(super) async fn begin(mut self) -> Stream {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        let written = self.stream.write_all(head.as_bytes()).await;
        written.expect("somebody listens");
        Stream(self.stream)
    }
}

impl Stream {
    /// Sends an event.
    pub(super) async fn event(&mut self, kind: &str, object: &Value) {
        let event = json!({ "type": kind, "object": object });
        self.text(&format!("{event}\n")).await;
    }

    /// Sends what is no event.
    pub(super) async fn text(&mut self, text: &str) {
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        // Nobody may be there to read it any more.
        let _ = self.0.write_all(chunk.as_bytes()).await;
    }

    /// Says that the list is complete.
    pub(super) async fn complete(&mut self, version: &str) {
        let annotations = json!({ "k8s.io/initial-events-end": "true" });
        let metadata = json!({ "resourceVersion": version, "annotations": annotations });
        self.event("BOOKMARK", &json!({ "metadata": metadata }))
            .await;
    }

    /// Says where it is.
    pub(super) async fn bookmark(&mut self, version: &str) {
        let metadata = json!({ "resourceVersion": version });
        self.event("BOOKMARK", &json!({ "metadata": metadata }))
            .await;
    }

    /// Sends an error, as API servers do in the middle of a watch.
    pub(super) async fn error(&mut self, code: u16) {
        self.event("ERROR", &status(code)).await;
    }

    /// Ends it in good order.
    pub(super) async fn end(mut self) {
        let _ = self.0.write_all(b"0\r\n\r\n").await;
    }
}

fn status(code: u16) -> Value {
    json!({ "kind": "Status", "status": "Failure", "code": code, "message": "by hand" })
}
