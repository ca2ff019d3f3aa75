//! What a caller can ask of one answer, and what the process does unasked.

use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use tulle_runtime::env::parse_duration;

use crate::app::headers::KNOB_PREFIX;

/// Largest body that is made up for a caller.
const MAX_SIZE: usize = 256 * 1024 * 1024;
/// Most pieces of such a body.
const MAX_CHUNKS: usize = 10_000;

/// How to answer one request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Knobs {
    pub(super) latency: Duration,
    /// Status with which a request fails, unless it is to be aborted.
    pub(super) status: u16,
    pub(super) probability: f64,
    pub(super) size: Option<usize>,
    pub(super) chunks: usize,
    pub(super) interval: Duration,
    pub(super) trailer: Option<(HeaderName, HeaderValue)>,
    pub(super) close: bool,
    pub(super) abort: bool,
    pub(super) early: bool,
    pub(super) ready: Option<bool>,
    pub(super) id: Option<String>,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            status: 503,
            probability: 0.0,
            size: None,
            chunks: 1,
            interval: Duration::ZERO,
            trailer: None,
            close: false,
            abort: false,
            early: false,
            ready: None,
            id: None,
        }
    }
}

impl Knobs {
    /// The process's behaviour as changed by the headers and then by the query of a request. An error names the knob,
    /// its value and what would be right.
    pub(super) fn of_request(behaviour: &Self, parts: &Parts) -> Result<Self, String> {
        let from_headers = parts.headers.iter().filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix(KNOB_PREFIX)?;
            Some((
                name.to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            ))
        });
        let pairs: Vec<_> = from_headers.chain(query(parts)).collect();
        let mut knobs = behaviour.clone();
        if pairs
            .iter()
            .any(|(name, _)| name == "status" || name == "abort")
        {
            knobs.probability = 1.0;
        }
        for (name, value) in &pairs {
            knobs
                .turn(name, value)
                .map_err(|problem| format!("knob {name} has the value {value:?}: {problem}\n"))?;
        }
        Ok(knobs)
    }

    fn turn(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "latency" => self.latency = parse_duration(value)?,
            "interval" => self.interval = parse_duration(value)?,
            "probability" => self.probability = probability(value)?,
            "status" => self.status = number(value, 200, 599)?,
            "size" => self.size = Some(number(value, 0, MAX_SIZE)?),
            "chunks" => self.chunks = number(value, 1, MAX_CHUNKS)?,
            "close" => self.close = boolean(value)?,
            "abort" => self.abort = boolean(value)?,
            "early" => self.early = boolean(value)?,
            "ready" => self.ready = Some(boolean(value)?),
            "id" => self.id = Some(value.to_owned()),
            "trailer" => {
                let pair = value.split_once(':');
                let parsed = pair.and_then(|(name, value)| {
                    Some((name.parse().ok()?, value.trim().parse().ok()?))
                });
                self.trailer = Some(parsed.ok_or("expected NAME:VALUE")?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether this request is one of those that fail.
    pub(super) fn fails(&self) -> bool {
        self.probability > 0.0 && fastrand::f64() < self.probability
    }
}

/// The decoded query, pair by pair.
pub(super) fn query(parts: &Parts) -> impl Iterator<Item = (String, String)> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty());
    pairs.map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// Reads a number from 0 to 1.
pub(super) fn probability(value: &str) -> Result<f64, String> {
    let parsed = value
        .parse()
        .ok()
        .filter(|number| (0.0..=1.0).contains(number));
    parsed.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

fn number<T>(value: &str, least: T, most: T) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let parsed = value
        .parse()
        .ok()
        .filter(|number| *number >= least && *number <= most);
    parsed.ok_or_else(|| format!("expected a whole number from {least} to {most}"))
}

fn boolean(value: &str) -> Result<bool, String> {
    value
        .parse()
        .map_err(|_| "expected true or false".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knobs(query: &str, header: Option<(&str, &str)>) -> Result<Knobs, String> {
        let mut request = http::Request::builder().uri(format!("/?{query}"));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        Knobs::of_request(&Knobs::default(), &parts)
    }

    #[test]
    fn a_request_turns_knobs_by_query_and_header() {
        let knobs = knobs(
            "latency=5ms&size=3&trailer=a%3Ab&other=1",
            Some(("x-tulle-app-status", "500")),
        );
        let knobs = knobs.expect("valid");
        assert_eq!(
            (knobs.latency, knobs.size, knobs.status),
            (Duration::from_millis(5), Some(3), 500)
        );
        assert!(knobs.fails() && knobs.trailer.is_some());
    }

    #[test]
    fn without_knobs_nothing_fails() {
        assert!(!knobs("", None).expect("valid").fails());
    }

    #[test]
    fn bad_knobs_are_refused_by_name_value_and_remedy() {
        for query in [
            "latency=5",
            "status=100",
            "probability=2",
            "size=-1",
            "chunks=0",
            "close=yes",
            "trailer=a",
        ] {
            let error = knobs(query, None).expect_err(query);
            let (name, value) = query.split_once('=').expect("a pair");
            assert!(
                error.contains(name) && error.contains(value) && error.contains("expected"),
                "{error}"
            );
        }
    }
}
