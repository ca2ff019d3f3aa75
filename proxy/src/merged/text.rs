//! The two text formats of metrics: what a scraper can read, which names are in it, and the sidecar's part in either.
//!
//! A scraper that cannot read one line keeps nothing of an answer, so the app's part is read whole before it is passed on,
//! as strictly as Prometheus reads it. Sources: the OpenMetrics 1.0 specification
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), and Prometheus' own text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

mod line;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use http::HeaderValue;
use tulle_runtime::metrics;

use super::{Failed, Failure};
use line::Line;

/// What ends OpenMetrics.
const END: &str = "# EOF";

/// A format of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics.
    OpenMetrics,
    /// Prometheus' own, which has no end.
    Text,
}

impl Format {
    /// That of a content type. What names none of the two is read as text, as scrapers always did.
    pub(super) fn of(content_type: &str) -> Self {
        let essence = content_type.split(';').next().unwrap_or_default();
        if essence
            .trim()
            .eq_ignore_ascii_case("application/openmetrics-text")
        {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::OpenMetrics => metrics::CONTENT_TYPE,
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        })
    }

    /// Ends a body of this format.
    pub(super) fn end(self, body: &mut Vec<u8>) {
        if self == Self::OpenMetrics {
            body.extend_from_slice(END.as_bytes());
            body.push(b'\n');
        }
    }
}

/// OpenMetrics without what ends it; what has no end is as it was.
pub(super) fn without_end(body: &str) -> &str {
    let trimmed = body.strip_suffix('\n').unwrap_or(body);
    match trimmed.strip_suffix(END) {
        Some(before) if before.is_empty() || before.ends_with('\n') => before,
        _ => body,
    }
}

/// The sidecar's part, which has no end yet, with the app's behind it.
pub(super) fn join(
    mut own: Vec<u8>,
    app: &[u8],
    format: Format,
    quoted: bool,
) -> Result<Vec<u8>, Failed> {
    let malformed = |why: String| (Failure::Malformed, why);
    let app = std::str::from_utf8(app).map_err(|error| malformed(error.to_string()))?;
    let app = match format {
        Format::Text => app,
        Format::OpenMetrics => {
            let before = without_end(app);
            if before.len() == app.len() {
                return Err(malformed("it does not end with # EOF".to_owned()));
            }
            before
        }
    };
    let theirs = names(app, format, quoted).map_err(malformed)?;
    let mut ours = std::str::from_utf8(&own).unwrap_or_default();
    ours = ours.strip_suffix('\n').unwrap_or(ours);
    // Ours is made so that it can be read.
    let ours = names(ours, format, true).map_err(malformed)?;
    if let Some(name) = ours.iter().filter(|name| theirs.contains(*name)).min() {
        return Err((Failure::Clash, format!("both have a metric named {name}")));
    }
    drop(ours);
    own.reserve(app.len() + END.len() + 2);
    own.extend_from_slice(app.as_bytes());
    if !app.is_empty() && !app.ends_with('\n') {
        own.push(b'\n');
    }
    format.end(&mut own);
    Ok(own)
}

/// The names of all families and samples, if every line can be read.
fn names(body: &str, format: Format, quoted: bool) -> Result<HashSet<&str>, String> {
    let mut names = HashSet::new();
    let body = body.strip_suffix('\n').unwrap_or(body);
    if body.is_empty() {
        return Ok(names);
    }
    for (index, line) in body.split('\n').enumerate() {
        let read = Line::read(line, format, quoted);
        // Not what it says: that may be anything.
        let read = read.map_err(|why| format!("line {}: {why}", index + 1))?;
        names.extend(read.name());
    }
    Ok(names)
}

/// OpenMetrics of the sidecar as Prometheus' own format, in which a counter is named by its only sample, and exemplars and
/// units are none.
pub(super) fn to_text(own: &str) -> String {
    let own = without_end(own);
    let read = |line| Line::read(line, Format::OpenMetrics, true).ok();
    let kinds: HashMap<&str, &str> = own
        .lines()
        .filter_map(|line| match read(line)? {
            Line::Kind { name, kind } => Some((name, kind)),
            _ => None,
        })
        .collect();
    let suffix = |name| match kinds.get(name) {
        Some(&"counter") => "_total",
        Some(&"info") => "_info",
        _ => "",
    };
    let mut text = String::with_capacity(own.len());
    for line in own.lines().filter_map(read) {
        // Writing to a String cannot fail.
        let _ = match line {
            Line::Help { name, help } => {
                let help = help.replace("\\\"", "\"");
                writeln!(text, "# HELP {name}{} {help}", suffix(name))
            }
            Line::Kind { name, kind } => {
                let kind = match kind {
                    "info" | "stateset" => "gauge",
                    "unknown" | "gaugehistogram" => "untyped",
                    kind => kind,
                };
                writeln!(text, "# TYPE {name}{} {kind}", suffix(name))
            }
            Line::Sample { series, value, .. } => writeln!(text, "{series} {value}"),
            Line::Unit { .. } | Line::Nothing => Ok(()),
        };
    }
    text
}

#[cfg(test)]
mod tests;
