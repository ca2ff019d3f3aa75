//! Rows that are changed at random, with a seed: what the backend gets must be what a strict reader sees in the bytes
//! that were sent, or less, and never anything else.

use std::time::Duration;

use super::backend::Rest;
use super::message::{self, Message, Parsed};
use super::outcome::Outcome;
use super::row::{Answer, End, Row, Step, row};
use super::rows;
use super::subject::Subject;

/// Changed rows for each seed.
const ITERATIONS: usize = 1_500;
/// How long what no strict reader takes may go without a refusal, until its client leaves.
const UNSURE: Duration = Duration::from_millis(150);
/// What is put in between.
const WORDS: [&str; 20] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    ":",
    ";",
    ",",
    "0\r\n\r\n",
    "\r\n\r\n",
    "chunked",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Host: b\r\n",
    "Connection: close\r\n",
    "\u{e9}",
    "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
];

/// Plays changed rows, and returns what was wrong with them.
pub(crate) async fn run(subject: &Subject, seed: u64) -> anyhow::Result<Vec<String>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let seeds = streams();
    let rows: Vec<Row> = (0..ITERATIONS).map(|_| changed(&seeds, &mut rng)).collect();
    let outcomes = subject.play(&rows).await?;
    let wrong = rows.iter().zip(&outcomes).filter_map(|(row, outcome)| {
        let sent = sent(row);
        let why = judge(&sent, outcome).err()?;
        Some(format!("{:?}: {why}", String::from_utf8_lossy(&sent)))
    });
    Ok(wrong.collect())
}

/// What the rows send, where it is small and not about `HEAD`.
fn streams() -> Vec<Vec<u8>> {
    let rows = rows::all().into_iter().filter(|row| !row.head);
    rows.map(|row| sent(&row))
        .filter(|stream| stream.len() < 1_000)
        .collect()
}

fn sent(row: &Row) -> Vec<u8> {
    let pieces = row.steps.iter().filter_map(|step| match step {
        Step::Send(bytes) => Some(bytes.as_slice()),
        _ => None,
    });
    pieces.collect::<Vec<_>>().concat()
}

fn changed(seeds: &[Vec<u8>], rng: &mut fastrand::Rng) -> Row {
    let mut stream = seeds[rng.usize(..seeds.len())].clone();
    for _ in 0..rng.usize(1..=3) {
        change(&mut stream, seeds, rng);
    }
    let (whole, rest) = message::requests(&stream);
    let mut row = row("a changed row").sends(&stream).ends(End::Left);
    for _ in &whole {
        row = row.gets("200");
        row.answers.push(Answer {
            bytes: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
            ..Answer::default()
        });
    }
    if matches!(rest, Parsed::Garbage(_)) {
        row.lingers = UNSURE;
    }
    row
}

fn change(stream: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut fastrand::Rng) {
    let at = rng.usize(..=stream.len());
    let byte = at.min(stream.len().saturating_sub(1));
    match rng.u8(..8) {
        0 if !stream.is_empty() => drop(stream.remove(byte)),
        1 if !stream.is_empty() => stream[byte] = rng.u8(..),
        2 if !stream.is_empty() => stream.insert(at, stream[byte]),
        3 => stream.truncate(at),
        4 => {
            let other = &seeds[rng.usize(..seeds.len())];
            let from = rng.usize(..=other.len());
            stream.truncate(at);
            stream.extend_from_slice(&other[from..]);
        }
        5 => {
            // A line twice.
            let start = stream[..at].iter().rposition(|byte| *byte == b'\n');
            let start = start.map_or(0, |start| start + 1);
            let end = stream[start..].iter().position(|byte| *byte == b'\n');
            let end = end.map_or(stream.len(), |end| start + end + 1);
            let line = stream[start..end].to_vec();
            stream.splice(end..end, line);
        }
        _ => {
            let word = WORDS[rng.usize(..WORDS.len())];
            stream.splice(at..at, word.bytes());
        }
    }
}

/// Whether the backend got what a strict reader sees in what was sent.
fn judge(sent: &[u8], outcome: &Outcome) -> Result<(), String> {
    let (whole, rest) = message::requests(sent);
    let got = &outcome.record.requests;
    if got.len() > whole.len() {
        return Err(format!("the backend got {} requests: {got:?}", got.len()));
    }
    for (got, sent) in got.iter().zip(&whole) {
        same(got, sent)?;
    }
    let garbage = outcome.record.rests.iter();
    for rest in garbage {
        if let Rest::Garbage(why, bytes) = rest {
            let bytes = String::from_utf8_lossy(bytes);
            return Err(format!("the backend got garbage ({why}): {bytes:?}"));
        }
    }
    let answered = outcome.heard.responses.len();
    if answered < whole.len() && !outcome.heard.closed {
        return Err(format!(
            "only {answered} of {} requests were answered; then {rest:?}",
            whole.len()
        ));
    }
    Ok(())
}

fn same(got: &Message, sent: &Message) -> Result<(), String> {
    let (method, target) = sent.request_line().split_once(' ').unwrap_or_default();
    let (authority, path) = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let slash = if path.starts_with('/') { "" } else { "/" };
            (Some(authority.to_owned()), format!("{slash}{path}"))
        }
        _ => (None, target.to_owned()),
    };
    let line = format!("{method} {path}");
    if got.request_line() != line || got.body != sent.body {
        return Err(format!("the backend got {got:?} for {sent:?}"));
    }
    let host = authority.or_else(|| sent.field("host"));
    if host.is_some() && got.field("host") != host {
        return Err(format!("the backend got another host: {got:?}"));
    }
    Ok(())
}
