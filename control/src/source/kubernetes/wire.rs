//! Questions to the API server and the shape of its answers; objects stay the text that they are.
//!
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/>

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::RETRY_AFTER;
use http_body_util::{BodyExt as _, Limited};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::Request;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::failure::Failure;

/// Largest event; an object of etcd has 1.5 MiB at most.
const LONGEST_LINE: usize = 16 << 20;
/// As much of an answer that is an error is read.
const LONGEST_ERROR: usize = 64 << 10;
/// As much of it is told.
const TOLD: usize = 300;

/// Objects that can be listed and watched together.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    /// Path of the collection, of all namespaces.
    pub(super) path: String,
    /// Which of them, by field.
    pub(super) selector: Option<&'static str>,
    /// Their metadata is enough.
    pub(super) metadata_only: bool,
}

impl Resource {
    /// A resource with its group, version and plural name.
    pub(super) fn new(group: &str, version: &str, plural: &str) -> Self {
        let root = if group.is_empty() { "/api" } else { "/apis/" };
        Self {
            path: format!("{root}{group}/{version}/{plural}"),
            selector: None,
            metadata_only: false,
        }
    }
}

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: PageMetadata,
    /// `null` if there are none.
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// Where a page is in its list.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMetadata {
    pub(super) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(super) token: Option<String>,
}

/// An event of a watch.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    pub(super) r#type: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// An object without substance, for its version.
#[derive(Deserialize)]
pub(super) struct Bookmark {
    pub(super) metadata: BookmarkMetadata,
}

/// What a bookmark says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BookmarkMetadata {
    pub(super) resource_version: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl BookmarkMetadata {
    /// Whether everything that existed at the start has been said.
    pub(super) fn ends_list(&self) -> bool {
        let mark = self.annotations.get("k8s.io/initial-events-end");
        mark.is_some_and(|it| it == "true")
    }
}

/// `Status`, as in answers and events that are errors.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    code: u16,
    message: String,
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Details {
    retry_after_seconds: Option<u64>,
}

/// Asks for a page of a list as it is now, and gives its text.
pub(super) async fn list(
    client: &Client,
    resource: &Resource,
    limit: Option<u32>,
    token: Option<String>,
) -> Result<Bytes, Failure> {
    let parameters = ListParams {
        field_selector: resource.selector.map(str::to_owned),
        limit,
        continue_token: token,
        ..ListParams::default()
    };
    let request = Request::new(&resource.path);
    let request = if resource.metadata_only {
        request.list_metadata(&parameters)
    } else {
        request.list(&parameters)
    };
    let body = ask(client, request).await?;
    let broken = |error| Failure::Broken(Box::new(error));
    Ok(body.collect().await.map_err(broken)?.to_bytes())
}

/// What a watch begins with.
#[derive(Clone, Copy, Debug)]
pub(super) enum From<'a> {
    /// All that exists, as it is now.
    Everything,
    /// What happened after a version.
    After(&'a str),
}

/// Begins a watch that the API server ends after a time.
pub(super) async fn watch(
    client: &Client,
    resource: &Resource,
    from: From<'_>,
    time: Duration,
) -> Result<Lines, Failure> {
    let parameters = WatchParams {
        label_selector: None,
        field_selector: resource.selector.map(str::to_owned),
        timeout: u32::try_from(time.as_secs()).ok(),
        bookmarks: true,
        send_initial_events: matches!(from, From::Everything),
    };
    // No version at all asks for what etcd has; 0 would take what a cache may have had long ago.
    let version = match from {
        From::Everything => "",
        From::After(version) => version,
    };
    let request = Request::new(&resource.path);
    let request = if resource.metadata_only {
        request.watch_metadata(&parameters, version)
    } else {
        request.watch(&parameters, version)
    };
    Ok(Lines {
        body: ask(client, request).await?,
        buffer: BytesMut::new(),
        searched: 0,
    })
}

async fn ask(
    client: &Client,
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<Body, Failure> {
    let unreachable = |error| Failure::Unreachable(Box::new(error));
    let request = request.map_err(|error| unreachable(kube::Error::BuildRequest(error)))?;
    let answer = client.send(request.map(Body::from)).await;
    let (head, body) = answer.map_err(unreachable)?.into_parts();
    if head.status.is_success() {
        return Ok(body);
    }
    let seconds = head.headers.get(RETRY_AFTER);
    let seconds = seconds.and_then(|it| it.to_str().ok()?.parse().ok());
    // Whatever can be had of it: the code counts.
    let text = match Limited::new(body, LONGEST_ERROR).collect().await {
        Ok(text) => text.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let mut status = serde_json::from_slice(&text).unwrap_or_else(|_| Status {
        message: String::from_utf8_lossy(&text).into_owned(),
        ..Status::default()
    });
    status.code = head.status.as_u16();
    status.details.retry_after_seconds = status.details.retry_after_seconds.or(seconds);
    Err(refused(status))
}

/// The failure that an event is.
pub(super) fn error_of(object: &RawValue) -> Failure {
    match serde_json::from_str(object.get()) {
        Ok(status) => refused(status),
        Err(error) => Failure::Malformed(error),
    }
}

fn refused(status: Status) -> Failure {
    let message = status.message.trim();
    let end = message.char_indices().nth(TOLD).map(|(end, _)| end);
    Failure::Refused {
        code: status.code,
        message: message[..end.unwrap_or(message.len())].to_owned(),
        retry_after: status.details.retry_after_seconds.map(Duration::from_secs),
    }
}

/// The events of a watch, line by line.
pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// So many bytes of the buffer hold no end of a line.
    searched: usize,
}

impl Lines {
    /// The next line, `None` at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let rest = &self.buffer[self.searched..];
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + end).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.searched > LONGEST_LINE {
                return Err(Failure::TooLong(LONGEST_LINE));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.buffer.extend_from_slice(&data);
                }
                Some(Err(error)) => return Err(Failure::Broken(Box::new(error))),
                // What is left of a line was cut off.
                None => return Ok(None),
            }
        }
    }
}
