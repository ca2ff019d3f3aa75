//! What became of a row, and whether it is what the row says.

use super::backend::{Record, Rest};
use super::client::Heard;
use super::message::Message;
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
        summary(
            statuses.collect(),
            self.requests()
                .iter()
                .map(|request| (request.request_line(), request.body.as_slice()))
                .collect(),
        )
    }

    /// The row's own requests that the backend got.
    fn requests(&self) -> &[Message] {
        match self.record.requests.split_last() {
            Some((last, own)) if self.heard.probed && last.request_line() == "GET /probe" => own,
            _ => &self.record.requests,
        }
    }

    /// What a summary does not say: each status, whether the client's connection goes on, and the fields of each request
    /// that say where it goes, where it ends, and what belongs to its hop.
    pub(crate) fn details(&self, row: &Row) -> String {
        let statuses = self.heard.responses.iter();
        let statuses: Vec<_> = statuses.map(|it| it.status().to_string()).collect();
        let end = match row.end {
            End::Open | End::Closed if self.heard.probed => " open",
            End::Open | End::Closed if self.heard.closed => " closed",
            End::Open | End::Closed => " silent",
            End::Tunnel { .. } | End::Cut | End::Left => "",
        };
        let requests = self.requests().iter();
        let requests = requests.map(|request| format!(" | {}", fields(request)));
        statuses.join(",") + end + &requests.collect::<String>()
    }

    /// How it differs from what the row says of our own proxies.
    pub(crate) fn compare(&self, row: &Row) -> Result<(), String> {
        let Self { heard, .. } = self;
        let requests = self.requests();
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

/// What of a request's fields matters to whoever reads it, and the names of the others that its client sent.
fn fields(request: &Message) -> String {
    const WITH_VALUES: [&str; 5] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
    ];
    const MOST: usize = 8;
    let said = WITH_VALUES.iter().filter_map(|name| {
        Some(format!(
            "{name}: {}",
            request.field(name)?.to_ascii_lowercase()
        ))
    });
    let mut others: Vec<_> = request
        .fields
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .filter(|name| !WITH_VALUES.contains(&name.as_str()) && !is_a_proxy_s(name))
        .collect();
    others.sort_unstable();
    others.dedup();
    if others.len() > MOST {
        others = vec![format!("{} others", others.len())];
    }
    let said: Vec<_> = said.chain(others).collect();
    let said = said.join(", ");
    if said.len() > 200 {
        return format!("{said:.60}...");
    }
    said
}

/// Whether a proxy adds it, each in its way.
fn is_a_proxy_s(name: &str) -> bool {
    let begins = ["x-forwarded-", "x-envoy-"];
    begins.iter().any(|begin| name.starts_with(begin)) || name == "x-request-id"
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
    messages: Vec<&Message>,
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
