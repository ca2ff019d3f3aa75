//! A request: whether it is a review, its body, its turn, and its answer.
//!
//! A pod whose review does not have its turn in time is refused, and whoever made it backs off: so a request waits nearly as
//! long as its client does. API servers say how long that is: <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#timeouts>.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connections::Open;
use super::room::Place;
use super::{Unserved, Webhook};
use crate::events::Complaint;
use crate::namespaces::Asked;
use crate::review::{failure, too_large};
use crate::warning::in_a_line;
use crate::{MAX_REVIEW, Namespace, Refusal, Reviewed, SkipReason, Verdict};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use tulle_runtime::env::parse_duration;

/// Where reviews are taken.
pub(super) const PATH: &str = "/inject";
/// What they are.
pub(super) const MEDIA_TYPE: &str = "application/json";

type Answer = Response<Full<Bytes>>;

/// A body that was read, or what it would have been.
enum Read {
    Review(Bytes),
    TooLarge(usize),
}

/// An answer, which has the room of its request until its client has taken it.
struct Answered {
    body: Vec<u8>,
    _place: Option<Place>,
    _since: Arc<tokio::time::Instant>,
}

impl AsRef<[u8]> for Answered {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// What a review goes by.
enum Lookup {
    /// What the watch has told of the namespace.
    Known,
    /// What the API server said just now.
    Found(Namespace),
    /// Nothing that can be relied on.
    Unknown,
}

impl Webhook {
    /// Answers one request. What is wrong with it is its answer.
    pub(super) async fn answer(
        self: Arc<Self>,
        client: SocketAddr,
        open: &Open,
        request: Request<Incoming>,
    ) -> Answer {
        let begun = Instant::now();
        let _in_flight = self.metrics.in_flight();
        match self.review(client, request).await {
            Ok((reviewed, place)) => {
                self.metrics.reviewed(reviewed.verdict, begun.elapsed());
                self.tell(client, &reviewed);
                self.warn(client, &reviewed);
                let answered = Answered {
                    body: reviewed.response,
                    _place: place,
                    _since: open.answered(),
                };
                answer(reviewed.status, Bytes::from_owner(answered))
            }
            Err(why) => {
                self.metrics.refused(why);
                self.tell_unserved(client, why);
                let (status, reason) = why.status();
                let status = status.as_u16();
                let mut answer = answer(status, failure(status, reason, &why.message()).into());
                let headers = answer.headers_mut();
                match why {
                    Unserved::Method => {
                        headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
                    }
                    Unserved::Overload | Unserved::Busy => {
                        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                    }
                    _ => {}
                }
                answer
            }
        }
    }

    async fn review(
        &self,
        client: SocketAddr,
        request: Request<Incoming>,
    ) -> Result<(Reviewed, Option<Place>), Unserved> {
        check(&request)?;
        let turn = self.bounds.turn.min(patience(&request));
        let mut place = self
            .room
            .take(client.ip().to_canonical())
            .ok_or(Unserved::Overload)?;
        let read = read(request.into_body(), &mut place);
        let read = tokio::time::timeout(self.bounds.receive, read);
        let body = match read.await.map_err(|_| Unserved::Slow)?? {
            Read::Review(body) => body,
            Read::TooLarge(bytes) => return Ok((too_large(bytes), None)),
        };
        let (reviewed, mut place) = self.compute(body, place, turn).await?;
        if !place.fit(reviewed.response.len()) {
            return Err(Unserved::Overload);
        }
        Ok((reviewed, Some(place)))
    }

    /// Reviews, and once more if the API server says something else of the namespace than its watch has told: it chooses by
    /// labels of this moment whom it asks, so what seems not to be ours most likely is. If it does not say, nobody knows, and
    /// the pod has to be tried again: it would run without the sidecar that somebody relies on.
    async fn compute(
        &self,
        body: Bytes,
        place: Place,
        turn: Duration,
    ) -> Result<(Reviewed, Place), Unserved> {
        let begun = Instant::now();
        let known = self.in_turn(&body, place, turn, Lookup::Known);
        let (reviewed, looked_up, place) = known.await?;
        let unsure = matches!(
            reviewed.verdict,
            Verdict::Refused(Refusal::UnknownNamespace)
                | Verdict::Skipped(SkipReason::NotSelected | SkipReason::OtherRevision)
        );
        let Some(name) = looked_up.filter(|_| unsure) else {
            return Ok((reviewed, place));
        };
        let asked = match self.namespaces.ask(&name).await {
            Asked::Found(found) if self.namespaces.known(&name).as_ref() != Some(&found) => {
                Lookup::Found(found)
            }
            Asked::Unanswered => Lookup::Unknown,
            Asked::Found(_) | Asked::Absent => return Ok((reviewed, place)),
        };
        let left = turn.saturating_sub(begun.elapsed());
        let (reviewed, _, place) = self.in_turn(&body, place, left, asked).await?;
        Ok((reviewed, place))
    }

    /// Reviews on a thread that is there for that, when it is this one's turn, and says which namespace was looked up. Its
    /// room goes with it, and is given back when that is done if nobody waits any more.
    async fn in_turn(
        &self,
        body: &Bytes,
        place: Place,
        turn: Duration,
        lookup: Lookup,
    ) -> Result<(Reviewed, Option<String>, Place), Unserved> {
        let turn = tokio::time::timeout(turn, self.turns.clone().acquire_owned());
        let Ok(Ok(turn)) = turn.await else {
            return Err(Unserved::Busy);
        };
        let body = body.clone();
        let (reviewer, namespaces) = (self.reviewer.clone(), self.namespaces.clone());
        let reviewing = tokio::task::spawn_blocking(move || {
            let mut looked_up = None;
            let reviewed = reviewer.review(&body, |name| {
                looked_up = Some(name.to_owned());
                match lookup {
                    Lookup::Known => namespaces.known(name),
                    Lookup::Found(found) => Some(found),
                    Lookup::Unknown => None,
                }
            });
            drop(turn);
            (reviewed, looked_up, place)
        });
        // It ends early only if the process does, or by a panic, of which the review has none.
        reviewing.await.map_err(|_| Unserved::Busy)
    }

    fn tell(&self, client: SocketAddr, reviewed: &Reviewed) {
        let (verdict, reason) = reviewed.verdict.names();
        let (pod, dry_run) = (reviewed.pod.as_deref(), reviewed.dry_run);
        match reviewed.verdict {
            Verdict::Injected(_) | Verdict::Skipped(_) => {
                tracing::debug!(client.addr = %client, pod, verdict, reason, dry_run, "pod reviewed");
            }
            Verdict::Refused(_) => {
                if let Some(left_out) = self.refused_told.pass() {
                    tracing::info!(
                        client.addr = %client, pod, reason, dry_run, left_out, why = reviewed.message,
                        "pod refused"
                    );
                }
            }
            Verdict::Malformed(_) => {
                if let Some(left_out) = self.malformed_told.pass(&(), client.ip()) {
                    tracing::warn!(
                        client.addr = %client, reason, left_out, why = reviewed.message,
                        "a request is no review"
                    );
                }
            }
        }
    }

    /// Says what its author was warned of, who may be a controller, where the author of a workload looks.
    fn warn(&self, client: SocketAddr, reviewed: &Reviewed) {
        let (Some(pod), false) = (&reviewed.pod, reviewed.warnings.is_empty()) else {
            return;
        };
        for warning in &reviewed.warnings {
            self.metrics.warned(warning.reason);
        }
        if let Some(left_out) = self.warned_told.pass() {
            tracing::info!(
                client.addr = %client,
                pod,
                dry_run = reviewed.dry_run,
                left_out,
                why = in_a_line(&reviewed.warnings),
                "pod let in with a warning"
            );
        }
        if let Some(complaint) = Complaint::of(reviewed) {
            self.teller.tell(complaint);
        }
    }

    fn tell_unserved(&self, client: SocketAddr, why: Unserved) {
        let Some(left_out) = self.told.pass(&why, client.ip()) else {
            return;
        };
        let reason = why.name();
        if why.is_ours() {
            tracing::warn!(client.addr = %client, reason, left_out, message = why.message(), "request not reviewed");
        } else {
            tracing::info!(client.addr = %client, reason, left_out, "request not reviewed");
        }
    }
}

/// Whether it can be a review, before anything of it is read.
fn check<B>(request: &Request<B>) -> Result<(), Unserved> {
    if request.uri().path() != PATH {
        return Err(Unserved::Path);
    }
    if request.method() != Method::POST {
        return Err(Unserved::Method);
    }
    if !is_json(request.headers()) || request.headers().contains_key(header::CONTENT_ENCODING) {
        return Err(Unserved::MediaType);
    }
    Ok(())
}

/// How long a request may wait for its turn by what its client says: there has to be time for the answer, too.
fn patience<B>(request: &Request<B>) -> Duration {
    let said = request
        .uri()
        .query()
        .into_iter()
        .flat_map(|it| it.split('&'));
    let mut said = said.filter_map(|pair| parse_duration(pair.strip_prefix("timeout=")?).ok());
    said.next().map_or(Duration::MAX, |waits| waits / 5 * 4)
}

fn is_json(headers: &HeaderMap) -> bool {
    let named = headers.get(header::CONTENT_TYPE);
    let named = named.and_then(|value| value.to_str().ok());
    let essence = named.and_then(|value| value.split(';').next());
    essence.is_some_and(|it| it.trim().eq_ignore_ascii_case(MEDIA_TYPE))
}

/// Reads a body for as long as it can be a review and there is room for it.
async fn read<B>(body: B, place: &mut Place) -> Result<Read, Unserved>
where
    B: Body<Data = Bytes> + Unpin,
{
    let announced = body.size_hint().lower();
    if announced > MAX_REVIEW as u64 {
        return Ok(Read::TooLarge(
            usize::try_from(announced).unwrap_or(usize::MAX),
        ));
    }
    let mut body = body;
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Unserved::Gone)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if all.len() + data.len() > MAX_REVIEW {
            return Ok(Read::TooLarge(all.len() + data.len()));
        }
        if !place.grow(data.len()) {
            return Err(Unserved::Overload);
        }
        all.extend_from_slice(&data);
    }
    Ok(Read::Review(all.freeze()))
}

fn answer(status: u16, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() =
        http::StatusCode::from_u16(status).expect("statuses of ours are three digits");
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    answer
}
