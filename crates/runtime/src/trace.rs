//! Logs: one subscriber a process, on standard error, with a filter that can be changed while it runs.
//!
//! A command that ends soon writes its lines itself ([`init`]). A program that serves must not wait for whoever reads them:
//! it hands them to a thread, which drops what does not fit and says so ([`serve`]); they are written at its end, and at a
//! panic, too.

mod sink;

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::env;
use sink::Sink;
pub use sink::{Written, exit, last_word, register};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people; coloured on a terminal only.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The filter does not parse.
    #[error(
        "bad log filter {filter:?}: use directives such as `info` or `info,tulle_proxy::xds=debug`"
    )]
    Filter {
        /// As given.
        filter: String,
        /// What the parser said.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process has a subscriber already.
    #[error("logging is set up twice in one process")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
    /// The subscriber is gone.
    #[error("logging has ended")]
    Ended(#[source] reload::Error),
    /// There can be no thread for it.
    #[error("could not start the thread that writes the log")]
    Thread(#[source] std::io::Error),
    /// The format is none of ours.
    #[error("unknown log format {0:?}: use `text` or `json`")]
    Format(String),
}

/// Changes the filter of a running process.
#[derive(Clone)]
pub struct TraceHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Sets up logging for a command: each line is written before it goes on. `filter` is a comma-separated list of directives,
/// as in `RUST_LOG`.
///
/// # Errors
/// If the filter does not parse or logging is set up already.
pub fn init(filter: &str, format: Format) -> Result<TraceHandle, TraceError> {
    set_up(filter, format, Sink::direct())
}

/// Sets up logging for a program that serves, as [`init`] does for a command: it does not wait for its lines to be written
/// until [`Written`] is dropped.
///
/// # Errors
/// If the filter does not parse, logging is set up already, or there can be no thread.
pub fn serve(filter: &str, format: Format) -> Result<(TraceHandle, Written), TraceError> {
    let sink = Sink::queued().map_err(TraceError::Thread)?;
    let written = sink.written();
    let handle = set_up(filter, format, sink)?;
    written.take_panics();
    Ok((handle, written))
}

fn set_up(filter: &str, format: Format, sink: Sink) -> Result<TraceHandle, TraceError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(sink);
    let lines = match format {
        Format::Text => lines
            .with_ansi(std::io::stderr().is_terminal() && !env::no_color())
            .boxed(),
        Format::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(TraceError::Twice)?;
    Ok(TraceHandle { filter: handle })
}

impl TraceHandle {
    /// Replaces the filter.
    ///
    /// # Errors
    /// If it does not parse; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), TraceError> {
        self.filter
            .reload(parse(filter)?)
            .map_err(TraceError::Ended)
    }

    /// The current filter, as directives.
    #[must_use]
    pub fn filter(&self) -> String {
        self.filter
            .with_current(EnvFilter::to_string)
            .unwrap_or_default()
    }
}

impl fmt::Debug for TraceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceHandle")
            .field("filter", &self.filter())
            .finish()
    }
}

impl FromStr for Format {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(TraceError::Format(other.to_owned())),
        }
    }
}

/// Takes a log filter as it is, so that a bad one is refused with the other arguments.
///
/// # Errors
/// If it does not parse.
pub fn filter(text: &str) -> Result<String, TraceError> {
    parse(text).map(|_| text.to_owned())
}

fn parse(filter: &str) -> Result<EnvFilter, TraceError> {
    // A space after a comma would be a part of the name behind it, which nothing has then.
    let directives: Vec<_> = filter.split(',').map(str::trim).collect();
    // `EnvFilter::builder().parse` takes its directives strictly; nothing is read from the environment.
    EnvFilter::builder()
        .with_regex(false)
        .parse(directives.join(","))
        .map_err(|source| TraceError::Filter {
            filter: filter.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        for good in ["info", "warn,tulle_proxy::xds=debug", "off"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["loud=very", "info,x=notalevel", "a=b=c"] {
            let error = parse(bad).expect_err(bad).to_string();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn spaces_between_directives_mean_nothing() {
        let filter = |text| parse(text).expect(text).to_string();
        assert_eq!(filter("info, tulle=debug"), filter("info,tulle=debug"));
        assert_eq!(filter(" warn ,off"), filter("warn,off"));
    }

    #[test]
    fn the_filter_of_a_running_process_changes_and_a_bad_one_leaves_the_old() {
        let handle = init("error", Format::Json).expect("the only one in this process");
        handle
            .set_filter("info,tulle=debug")
            .expect("a good filter");
        assert!(handle.set_filter("a=b=c").is_err());
        assert!(handle.filter().contains("tulle=debug"), "{handle:?}");
        assert!(matches!(
            init("error", Format::Text),
            Err(TraceError::Twice(_))
        ));
    }

    #[test]
    fn formats() {
        assert_eq!("json".parse::<Format>().ok(), Some(Format::Json));
        assert_eq!("text".parse::<Format>().ok(), Some(Format::Text));
        assert!("xml".parse::<Format>().is_err());
    }
}
