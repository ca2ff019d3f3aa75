//! Follows the objects of one resource: lists them, watches what changes, and begins again when it has to.
//!
//! A list streams in as a watch where the API server can do that, else it comes in pages. A watch that breaks is resumed where
//! it was; only where that is refused everything is listed anew. A watch is a short one, so that one in which nothing happens
//! is known from an API server that hangs: it ends. Failures are counted, told and waited after here, so that
//! whoever follows sees none of them. Objects that are not in a list are nobody's business until it is complete.
//!
//! The events of a watch are in the order of their versions, those that a list streams in by are in none. One that is older than
//! what a watch has told of comes twice or late: were it heard, an object that is gone since would be back until the next list.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use kube::Client;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::failure::Failure;
use super::health::Health;
use super::wire::{self, Bookmark, From, Line, Lines, Page, Resource};

/// How long a watch may last that begins with a list.
const LIST: (Duration, Duration) = (Duration::from_secs(240), Duration::from_secs(290));
/// Objects of a page, and of what is told of a streaming list at once.
const PAGE: u32 = 500;
/// A watch that ends sooner, without a word, has failed.
const AT_ONCE: Duration = Duration::from_secs(1);
/// So many times in a row a watch may be refused before everything is listed anew.
const REFUSALS: u32 = 3;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// Until a question is answered, or a streaming list goes on.
    pub(super) answer: Duration,
    /// Until a watch begins.
    pub(super) begin: Duration,
    /// How long a watch lasts, at least and at most.
    pub(super) lasts: (Duration, Duration),
    /// How much later it ends.
    pub(super) grace: Duration,
    /// After the first failure, and at most.
    pub(super) pause: (Duration, Duration),
    /// How long a kind of routes is waited for that cannot be listed, while everything else is there.
    pub(super) patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            begin: Duration::from_secs(10),
            lasts: (Duration::from_secs(20), Duration::from_secs(25)),
            grace: Duration::from_secs(5),
            pause: (Duration::from_millis(200), Duration::from_secs(10)),
            patience: Duration::from_secs(30),
        }
    }
}

/// What was learnt.
#[derive(Debug)]
pub(super) enum Happened<T> {
    /// A list begins; what was found by one before that was not completed does not count.
    Begun,
    /// These are in the list.
    Found(Vec<T>),
    /// The list is complete.
    Complete,
    /// It is new, or looks like this now.
    Changed(T),
    /// It is gone; this is what it looked like.
    Gone(T),
}

/// An object that was read.
#[derive(Debug)]
pub(super) struct Read<T> {
    /// Its `resourceVersion`.
    pub(super) version: Option<String>,
    pub(super) item: T,
}

/// Reads the text of an object.
pub(super) type Reader<T> = Box<dyn Fn(&str) -> Read<T> + Send + Sync>;

/// The objects of a resource, followed.
pub(super) struct Watch<T> {
    client: Client,
    resource: Resource,
    read: Reader<T>,
    settings: Settings,
    health: Health,
    stage: Stage<T>,
    /// Everything up to here is known.
    version: String,
    /// Whether the API server can stream a list, as far as is known.
    streams: bool,
    /// Whether the last list broke off that streamed: the next one comes in pages.
    broke_off: bool,
    /// Whether a list may come in pages.
    pages: bool,
    /// How many times in a row a watch was refused.
    refusals: u32,
    /// Until then nothing is asked.
    pause: Option<Instant>,
    ready: VecDeque<Happened<T>>,
}

enum Stage<T> {
    /// Everything has to be listed.
    Unlisted,
    /// The next page has to be asked for.
    Paging(Option<String>),
    /// A list streams in; these were not told yet.
    Streaming(Lines, Vec<T>),
    /// A watch has to begin.
    Listed,
    /// It has begun.
    Watching {
        lines: Lines,
        begun: Instant,
        ends: Ends,
        /// Whether anything came.
        spoke: bool,
    },
}

/// Who ends a watch.
#[derive(Clone, Copy)]
enum Ends {
    /// The API server, by then.
    There(Instant),
    /// We, then: it began with a list, which takes as long as it takes.
    Here(Instant),
}

impl<T> Watch<T> {
    pub(super) fn new(
        client: Client,
        resource: Resource,
        read: Reader<T>,
        settings: Settings,
        health: Health,
    ) -> Self {
        Self {
            client,
            resource,
            read,
            settings,
            health,
            stage: Stage::Unlisted,
            version: String::new(),
            streams: true,
            broke_off: false,
            pages: true,
            refusals: 0,
            pause: None,
            ready: VecDeque::new(),
        }
    }

    /// The next thing that is learnt, however long that takes. Cancel-safe.
    pub(super) async fn next(&mut self) -> Happened<T> {
        loop {
            if let Some(happened) = self.ready.pop_front() {
                return happened;
            }
            if let Some(end) = self.pause {
                sleep_until(end).await;
                self.pause = None;
            }
            let step = match &self.stage {
                Stage::Unlisted => self.list().await,
                Stage::Paging(_) => self.page().await,
                Stage::Streaming(..) => self.stream().await,
                Stage::Listed => self.resume().await,
                Stage::Watching { .. } => self.follow().await,
            };
            if let Err(failure) = step {
                self.failed(&failure);
            }
        }
    }

    /// Begins a list.
    async fn list(&mut self) -> Result<(), Failure> {
        if !self.streams || self.broke_off {
            self.ready.push_back(Happened::Begun);
            self.stage = Stage::Paging(None);
            return Ok(());
        }
        let (client, resource) = (&self.client, &self.resource);
        let time = between(LIST);
        let lines = wire::watch(client, resource, From::Everything, time);
        match within(self.settings.answer, lines).await {
            Ok(lines) => {
                self.ready.push_back(Happened::Begun);
                self.stage = Stage::Streaming(lines, Vec::new());
                Ok(())
            }
            Err(failure) if failure.is_unsupported() => {
                self.do_not_stream(&failure);
                self.streams = false;
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    fn do_not_stream(&self, failure: &Failure) {
        tracing::debug!(resource.type = %self.resource.path, error = %failure, "lists do not stream here; they come in pages");
    }

    /// Takes a page of a list.
    async fn page(&mut self) -> Result<(), Failure> {
        let token = match &self.stage {
            Stage::Paging(token) => token.clone(),
            _ => None,
        };
        let limit = self.pages.then_some(PAGE);
        let answer = wire::list(&self.client, &self.resource, limit, token);
        let text = within(self.settings.answer, answer).await?;
        let page: Page<'_> = serde_json::from_slice(&text).map_err(Failure::Malformed)?;
        let items = page.items.unwrap_or_default();
        let found: Vec<T> = items
            .into_iter()
            .map(|item| (self.read)(item.get()).item)
            .collect();
        self.health.contact();
        if !found.is_empty() {
            self.ready.push_back(Happened::Found(found));
        }
        let filled = |text: &String| !text.is_empty();
        match (page.metadata.token, page.metadata.resource_version) {
            (Some(token), _) if filled(&token) => self.stage = Stage::Paging(Some(token)),
            (_, Some(version)) if filled(&version) => self.complete(version),
            _ => return Err(Failure::Unversioned),
        }
        Ok(())
    }

    /// Takes an object of a streaming list.
    async fn stream(&mut self) -> Result<(), Failure> {
        let Stage::Streaming(lines, found) = &mut self.stage else {
            return Ok(());
        };
        let line = within(self.settings.answer, lines.next()).await?;
        let Some(text) = line else {
            return Err(Failure::Ended);
        };
        let line = parse(&text)?;
        self.health.contact();
        match &*line.r#type {
            "ADDED" | "MODIFIED" => found.push((self.read)(line.object.get()).item),
            "ERROR" => {
                let failure = wire::error_of(line.object);
                if !found.is_empty() || !failure.is_inability() {
                    return Err(failure);
                }
                // As one says that knows how, and has an etcd that does not.
                self.do_not_stream(&failure);
                self.broke_off = true;
                self.stage = Stage::Unlisted;
                return Ok(());
            }
            "BOOKMARK" => {
                let bookmark: Bookmark =
                    serde_json::from_str(line.object.get()).map_err(Failure::Malformed)?;
                if bookmark.metadata.ends_list() {
                    let Stage::Streaming(lines, found) =
                        std::mem::replace(&mut self.stage, Stage::Listed)
                    else {
                        return Ok(());
                    };
                    if !found.is_empty() {
                        self.ready.push_back(Happened::Found(found));
                    }
                    self.complete(bookmark.metadata.resource_version);
                    let time = between(self.settings.lasts);
                    self.stage = watching(lines, Ends::Here(Instant::now() + time));
                }
                return Ok(());
            }
            // It was told of before, in this list or an earlier one.
            "DELETED" => {
                let gone = (self.read)(line.object.get()).item;
                let told = std::mem::take(found);
                if !told.is_empty() {
                    self.ready.push_back(Happened::Found(told));
                }
                self.ready.push_back(Happened::Gone(gone));
                return Ok(());
            }
            _ => {}
        }
        if found.len() >= PAGE as usize {
            self.ready.push_back(Happened::Found(std::mem::take(found)));
        }
        Ok(())
    }

    fn complete(&mut self, version: String) {
        self.ready.push_back(Happened::Complete);
        self.health.listed();
        self.version = version;
        self.pages = true;
        self.broke_off = false;
        self.refusals = 0;
        self.stage = Stage::Listed;
    }

    /// Watches from where everything is known.
    async fn resume(&mut self) -> Result<(), Failure> {
        self.health.restarted();
        let (client, resource) = (&self.client, &self.resource);
        let time = between(self.settings.lasts);
        let ends = Ends::There(Instant::now() + time + self.settings.grace);
        let lines = wire::watch(client, resource, From::After(&self.version), time);
        let lines = within(self.settings.begin, lines).await?;
        self.health.begun();
        self.stage = watching(lines, ends);
        Ok(())
    }

    /// Takes an event.
    async fn follow(&mut self) -> Result<(), Failure> {
        let Stage::Watching {
            lines,
            begun,
            ends,
            spoke,
        } = &mut self.stage
        else {
            return Ok(());
        };
        let ended = match *ends {
            Ends::There(end) | Ends::Here(end) => timeout_at(end, lines.next()).await,
        };
        let line = match (ended, *ends) {
            (Ok(line), _) => line?,
            (Err(_), Ends::There(_)) => return Err(Failure::Silent(begun.elapsed())),
            (Err(_), Ends::Here(_)) => {
                self.stage = Stage::Listed;
                return Ok(());
            }
        };
        let Some(text) = line else {
            if !*spoke && begun.elapsed() < AT_ONCE {
                return Err(Failure::Ended);
            }
            self.health.contact();
            self.stage = Stage::Listed;
            return Ok(());
        };
        let line = parse(&text)?;
        if &*line.r#type == "ERROR" {
            return Err(wire::error_of(line.object));
        }
        *spoke = true;
        self.refusals = 0;
        self.health.contact();
        if &*line.r#type == "BOOKMARK" {
            let bookmark: Bookmark =
                serde_json::from_str(line.object.get()).map_err(Failure::Malformed)?;
            let version = bookmark.metadata.resource_version;
            if !self.is_late(&version) {
                self.version = version;
            }
            return Ok(());
        }
        let read = (self.read)(line.object.get());
        if let Some(version) = read.version {
            if self.is_late(&version) {
                return Ok(());
            }
            self.version = version;
        }
        self.ready.push_back(match &*line.r#type {
            "DELETED" => Happened::Gone(read.item),
            _ => Happened::Changed(read.item),
        });
        Ok(())
    }

    /// Whether a watch has told of something newer: versions of a resource grow, whichever of its objects they are of.
    fn is_late(&self, version: &str) -> bool {
        let [new, known] = [version, &self.version].map(|it| it.parse::<u64>().ok());
        matches!((new, known), (Some(new), Some(known)) if new < known)
    }

    /// Where to go on after a failure, and when.
    fn failed(&mut self, failure: &Failure) {
        let again = match &self.stage {
            Stage::Unlisted => true,
            Stage::Paging(token) => {
                // Pages that expire before they are read would do so again.
                self.pages &= !(token.is_some() && failure.is_desync());
                true
            }
            Stage::Streaming(..) => {
                // An API server that does not know the question may send a watch that never says that all is told.
                self.broke_off = true;
                true
            }
            Stage::Listed => {
                let refused = matches!(failure, Failure::Refused { code, .. } if !matches!(code, 401 | 403 | 429));
                self.refusals += u32::from(refused);
                failure.is_desync() || self.refusals >= REFUSALS
            }
            Stage::Watching { .. } => failure.is_desync(),
        };
        let amid = matches!(self.stage, Stage::Watching { .. });
        self.stage = if again {
            Stage::Unlisted
        } else {
            Stage::Listed
        };
        let pause = self.health.failed(failure, amid, self.settings.pause);
        self.pause = Some(Instant::now() + pause);
    }
}

/// A time between two: not all watches of all clients end in one moment.
fn between((least, most): (Duration, Duration)) -> Duration {
    least + (most - least).mul_f64(fastrand::f64())
}

fn watching<T>(lines: Lines, ends: Ends) -> Stage<T> {
    Stage::Watching {
        lines,
        begun: Instant::now(),
        ends,
        spoke: false,
    }
}

fn parse(text: &Bytes) -> Result<Line<'_>, Failure> {
    serde_json::from_slice(text).map_err(Failure::Malformed)
}

async fn within<T>(
    time: Duration,
    answer: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let answer = timeout(time, answer).await;
    answer.unwrap_or(Err(Failure::Silent(time)))
}

/// What happens next to objects that are followed; nothing if there are none.
pub(super) async fn next<T>(watch: &mut Option<Watch<T>>) -> Happened<T> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}
