//! One answer for Prometheus: the sidecar's metrics, and those of its app behind them.
//!
//! Under STRICT nobody but a peer of the mesh reaches the app's own port, so the injector sends Prometheus here and says
//! where the app's metrics are. They are fetched when Prometheus asks, on the way that inbound traffic has, and passed on only
//! if the whole answer is one that a scraper can read: otherwise it is the sidecar's part alone, and a counter says why.
//! What is held for that is bounded over all who ask, however slowly they read.

mod accept;
mod fetch;
mod text;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tulle_runtime::admin::{Answer, text as answer_text};
use tulle_runtime::metrics;

use crate::admin::AppProbes;
use accept::Wanted;
use text::Format;

/// Header in which Prometheus says after how many seconds it gives up.
const SCRAPE_TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";
/// How long the app has where the client does not say how long it waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// As long as the app may ever have: a connection of the metrics server lives for a minute.
const MOST_PATIENCE: Duration = Duration::from_secs(45);
/// What is left of the client's time for the answer itself: a tenth.
const MARGIN: f64 = 0.9;
/// Answers of the longest kind that may be held at a time.
const LARGEST: usize = 2;

/// Where the app's metrics are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    port: u16,
    target: PathAndQuery,
    https: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    port: u16,
    path: String,
    scheme: String,
}

/// Why this says nowhere.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It has another shape.
    #[error("not where metrics are ({0})")]
    Json(#[from] serde_json::Error),
    /// Nobody can ask for the path.
    #[error("{0:?} is no path that can be asked for")]
    Path(String),
    /// There is no such scheme.
    #[error("{0:?} is neither http nor https")]
    Scheme(String),
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(json: &str) -> Result<Self, SourceError> {
        let Said { port, path, scheme } = serde_json::from_str(json)?;
        let target = path.parse::<PathAndQuery>().ok();
        let target = target.filter(|_| path.starts_with('/'));
        Ok(Self {
            port,
            target: target.ok_or(SourceError::Path(path))?,
            https: match scheme.as_str() {
                "http" => false,
                "https" => true,
                _ => return Err(SourceError::Scheme(scheme)),
            },
        })
    }
}

tulle_runtime::named! {
    /// Why the app's metrics are not in an answer.
    pub enum Failure {
        /// There is no room for more of them at a time.
        Busy = "busy",
        /// The app does not accept connections.
        Connect = "connect",
        /// It did not answer in time.
        Timeout = "timeout",
        /// It does not speak HTTP there, or broke off.
        Http = "http",
        /// It answered another status than 200.
        Status = "status",
        /// It has more to say than is passed on.
        Size = "size",
        /// It is of another format than the client reads.
        Format = "format",
        /// No scraper could read it.
        Malformed = "malformed",
        /// It has a metric of the sidecar's name.
        Clash = "clash",
    }
}

/// Why, with what its author should know.
type Failed = (Failure, String);

/// Failures by reason.
#[derive(Clone, Debug, Default)]
pub struct Failures(Family<Reason, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Failures {
    /// Registers the counter.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let failures = Self::default();
        let about = "Scrapes that were answered without the app's own metrics";
        registry.register("app_metrics_failures", about, failures.0.clone());
        failures
    }

    fn count(&self, failure: Failure) {
        let reason = failure.name();
        self.0.get_or_create(&Reason { reason }).inc();
    }
}

/// What answers Prometheus.
#[derive(Debug)]
pub struct Merged {
    source: Option<Source>,
    failures: Failures,
    /// Bytes of answers with the app's metrics in them that may be held at a time.
    room: Arc<Semaphore>,
    most: usize,
    /// Why the last answer was without the app's metrics.
    told: Mutex<Option<Failure>>,
}

/// An answer, and the room that it takes until it is sent.
struct Held {
    answer: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

impl Merged {
    /// With the app's metrics if there are any, of at most so many bytes.
    #[must_use]
    pub fn new(source: Option<Source>, failures: Failures, most: usize) -> Self {
        Self {
            source,
            failures,
            room: Arc::new(Semaphore::new(most.saturating_mul(LARGEST))),
            most,
            told: Mutex::new(None),
        }
    }

    /// Answers one scrape.
    pub async fn answer(
        &self,
        registry: &Registry,
        headers: &HeaderMap,
        app: &AppProbes,
    ) -> Answer {
        let wanted = Wanted::read(headers);
        if let Some(source) = &self.source {
            let merged = self.merge(source, registry, headers, &wanted, app).await;
            self.tell(source, merged.as_ref().err());
            match merged {
                Ok(answer) => return answer,
                Err((failure, _)) => self.failures.count(failure),
            }
        }
        let format = wanted.preferred();
        let mut own = own_part(registry, format);
        format.end(&mut own);
        answer(own.into(), format.content_type())
    }

    async fn merge(
        &self,
        source: &Source,
        registry: &Registry,
        headers: &HeaderMap,
        wanted: &Wanted,
        app: &AppProbes,
    ) -> Result<Answer, Failed> {
        let patience = patience(headers);
        let deadline = Instant::now() + patience;
        let whole = u32::try_from(self.most).unwrap_or(u32::MAX);
        let room = timeout_at(deadline, self.room.clone().acquire_many_owned(whole));
        let Ok(Ok(mut room)) = room.await else {
            return Err((Failure::Busy, "others are being answered".to_owned()));
        };
        let asked = fetch::Asked {
            source,
            headers,
            wanted,
            patience,
        };
        let fetched = timeout_at(deadline, Box::pin(asked.of(app, self.most))).await;
        let late = |_| (Failure::Timeout, format!("no answer within {patience:?}"));
        let fetched = fetched.map_err(late)??;
        let format = fetched.format;
        let own = own_part(registry, format);
        let answered = text::join(own, &fetched.body, format, fetched.quoted)?;
        // The rest is for others, who may read faster than this one.
        let spare = room.num_permits().saturating_sub(answered.len());
        drop(room.split(spare));
        let content_type = fetched.content_type.unwrap_or(format.content_type());
        let held = Held {
            answer: answered,
            _room: room,
        };
        Ok(answer(Bytes::from_owner(held), content_type))
    }

    /// Says when the app's metrics begin to be missing, or are missing for another reason, and when they are back.
    fn tell(&self, source: &Source, failed: Option<&Failed>) {
        let now = failed.map(|(failure, _)| *failure);
        let before = std::mem::replace(&mut *self.told.lock(), now);
        if before == now {
            return;
        }
        let (port, path) = (source.port, source.target.path());
        match failed {
            Some((failure, why)) => tracing::warn!(
                port,
                path,
                reason = failure.name(),
                why,
                "Prometheus gets the sidecar's metrics without those of the app"
            ),
            None => tracing::info!(port, path, "Prometheus gets the app's metrics again"),
        }
    }
}

/// How long the app may take, so that its client still gets an answer.
fn patience(headers: &HeaderMap) -> Duration {
    let said = headers
        .get(SCRAPE_TIMEOUT)
        .and_then(|value| value.to_str().ok());
    let seconds = said.and_then(|said| said.trim().parse::<f64>().ok());
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds * MARGIN).ok())
        .map_or(PATIENCE, |said| said.min(MOST_PATIENCE))
}

/// The sidecar's metrics, without what ends them.
fn own_part(registry: &Registry, format: Format) -> Vec<u8> {
    let own = metrics::encode(registry);
    match format {
        Format::OpenMetrics => text::without_end(&own).as_bytes().to_vec(),
        Format::Text => text::to_text(&own).into_bytes(),
    }
}

fn answer(body: Bytes, content_type: HeaderValue) -> Answer {
    let mut answer = answer_text(StatusCode::OK, body);
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    answer
}

#[cfg(test)]
mod tests;
