//! What became of a row, and whether it is what the row says.

use super::backend::{Record, Rest};
use super::client::Heard;
use super::row::{End, Expected, Row};

/// What a subject made of a row.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) record: Record,
    pub(crate) heard: Heard,
}

impl Outcome {
    /// What matters of it in a line: statuses, then the requests that the backend got. All refusals are alike, and so
    /// are all forms of one target.
    pub(crate) fn summary(&self) -> String {
        let statuses = self
            .heard
            .responses
            .iter()
            .map(|response| response.status());
        let requests = self.record.requests.iter();
        summary(
            statuses.collect(),
            requests
                .map(|request| (request.request_line(), request.body.as_slice()))
                .collect(),
        )
    }

    /// How it differs from what the row says of our own proxies.
    pub(crate) fn compare(&self, row: &Row) -> Result<(), String> {
        let Self { record, heard } = self;
        let mut requests = record.requests.clone();
        if heard.probed
            && requests
                .last()
                .is_some_and(|last| last.request_line() == "GET /probe")
        {
            requests.pop();
        }
        let starts = requests
            .iter()
            .map(|request| request.request_line().to_owned());
        all(
            "the backend",
            &row.sees,
            starts.collect(),
            requests.iter().collect(),
        )?;
        let statuses = heard
            .responses
            .iter()
            .map(|response| response.status().to_string());
        all(
            "the client",
            &row.gets,
            statuses.collect(),
            heard.responses.iter().collect(),
        )?;
        self.compare_rests(row)?;
        self.compare_end(row)
    }

    fn compare_rests(&self, row: &Row) -> Result<(), String> {
        let mut parts = usize::from(row.partial);
        for rest in &self.record.rests {
            match rest {
                Rest::Part(_) if parts > 0 => parts -= 1,
                Rest::Tunnel(bytes) if is_expected(row, bytes) => {}
                other => return Err(format!("the backend got besides: {}", shown(other))),
            }
        }
        if self.record.stuck > 0 {
            return Err("a connection to the backend did not end".to_owned());
        }
        Ok(())
    }

    fn compare_end(&self, row: &Row) -> Result<(), String> {
        let heard = &self.heard;
        let rest = String::from_utf8_lossy(&heard.rest);
        let wrong = match row.end {
            End::Open if !heard.probed => "the connection does not go on",
            End::Closed if heard.reset => "the connection was reset",
            End::Closed if !heard.closed || heard.probed => "the connection was not closed",
            End::Tunnel { client, .. } if rest == client => return Ok(()),
            End::Cut if heard.closed && rest.starts_with("HTTP/1.1 200 ") => return Ok(()),
            End::Cut => "the answer was not cut short",
            End::Left => return Ok(()),
            _ if heard.rest.is_empty() => return Ok(()),
            _ => "something came after the last response",
        };
        Err(format!("{wrong}; rest {rest:.200?}"))
    }
}

/// The summary that a row expects of whoever agrees.
pub(crate) fn expected(row: &Row) -> String {
    summary(
        row.gets.iter().map(Expected::status).collect(),
        row.sees.iter().map(Expected::essence).collect(),
    )
}

fn summary(statuses: Vec<u16>, requests: Vec<(&str, &[u8])>) -> String {
    let statuses: Vec<_> = statuses
        .into_iter()
        .map(|status| match status {
            400..500 | 501 | 505 => "refused".to_owned(),
            500..600 => "failed".to_owned(),
            other => other.to_string(),
        })
        .collect();
    let requests = requests.into_iter().map(|(line, body)| {
        let line = if line.len() > 60 { "(long)" } else { line };
        match body.len() {
            0 => format!(" | {line}"),
            1..=40 => format!(" | {line} {:?}", String::from_utf8_lossy(body)),
            length => format!(" | {line} ({length} bytes)"),
        }
    });
    statuses.join(",") + &requests.collect::<String>()
}

fn all(
    who: &str,
    expected: &[Expected],
    starts: Vec<String>,
    messages: Vec<&super::message::Message>,
) -> Result<(), String> {
    for ((expected, start), message) in expected.iter().zip(&starts).zip(messages) {
        expected
            .compare(start, message)
            .map_err(|why| format!("{who}: {why}"))?;
    }
    if expected.len() != starts.len() {
        return Err(format!(
            "{who} got {starts:?}, expected {} of them",
            expected.len()
        ));
    }
    Ok(())
}

/// Whether the backend of a row is to get these bytes of another protocol.
fn is_expected(row: &Row, bytes: &[u8]) -> bool {
    matches!(&row.end, End::Tunnel { backend, .. } if bytes == backend.as_bytes())
}

fn shown(rest: &Rest) -> String {
    match rest {
        Rest::Part(bytes) => format!("a part {:.300?}", String::from_utf8_lossy(bytes)),
        Rest::Garbage(why, bytes) => {
            format!("garbage ({why}) {:.300?}", String::from_utf8_lossy(bytes))
        }
        Rest::Tunnel(bytes) => format!("a tunnel {:.300?}", String::from_utf8_lossy(bytes)),
    }
}
