//! The client of a row: it sends the row's bytes, hears everything that comes back, and tells how it ended.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};

use super::backend::Lane;
use super::message::{self, Message, Parsed};
use super::row::{End, Row, Step};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// What shows that a connection goes on.
const PROBE: &[u8] = b"GET /probe HTTP/1.1\r\nHost: probe\r\n\r\n";

/// What a client got.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Whole responses, interim ones included, the probe's not.
    pub(crate) responses: Vec<Message>,
    /// What is left after them.
    pub(crate) rest: Vec<u8>,
    /// Whether the proxy closed the connection.
    pub(crate) closed: bool,
    /// Whether it did so with a reset.
    pub(crate) reset: bool,
    /// Whether the probe was answered.
    pub(crate) probed: bool,
}

/// Plays a row's client against a proxy of ours, or an oracle.
pub(crate) async fn play(row: &Row, tcp: TcpStream, lane: &Lane, ours: bool) -> Heard {
    let mut client = Client {
        tcp,
        bytes: Vec::new(),
        ended: None,
        head: row.head,
    };
    for step in &row.steps {
        match step {
            Step::Send(bytes) => client.send(bytes).await,
            Step::Reaches(heads) => {
                let _ = timeout(PATIENCE, lane.reached(*heads)).await;
            }
            Step::Hears(heads) => client.until(|client| client.heads() >= *heads).await,
            Step::Finish => {
                let _ = client.tcp.shutdown().await;
            }
        }
    }
    let expected = row.gets.len();
    let finals = row
        .gets
        .iter()
        .filter(|response| Message::is_final(response.status()));
    let finals = finals.count();
    // Who gets an interim answer that the row does not speak of still waits for the last one.
    client
        .until(|client| {
            let responses = client.responses().0;
            let last = responses
                .iter()
                .filter(|response| Message::is_final(response.status()));
            responses.len() >= expected && last.count() >= finals
        })
        .await;
    if !row.lingers.is_zero() {
        let more = client.until(|client| client.responses().0.len() > expected);
        let _ = timeout(row.lingers, more).await;
    }
    let mut probed = false;
    let responses = client.responses().0;
    // After a switch the probe would be the other protocol's.
    let answered = responses.len() == expected && responses.iter().all(|it| it.status() != 101);
    match row.end {
        // An oracle that has not answered all yet would answer the probe no sooner.
        End::Open | End::Closed if ours || answered => {
            client.send(PROBE).await;
            let more = expected + 1;
            client
                .until(|client| client.responses().0.len() >= more)
                .await;
            let (responses, _) = client.responses();
            probed = responses.get(expected).is_some_and(|own| own.body == b"ok");
        }
        End::Tunnel { client: bytes, .. } => {
            client
                .until(|client| client.responses().1.len() >= bytes.len())
                .await;
        }
        End::Cut => client.until(|client| client.ended.is_some()).await,
        _ => {}
    }
    let (mut responses, rest) = client.responses();
    if probed {
        responses.truncate(expected);
    }
    Heard {
        rest: rest.to_vec(),
        responses,
        closed: client.ended.is_some(),
        reset: client.ended == Some(Ended::Reset),
        probed,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Closed,
    Reset,
}

struct Client {
    tcp: TcpStream,
    bytes: Vec<u8>,
    ended: Option<Ended>,
    head: bool,
}

impl Client {
    /// Sends bytes, and hears meanwhile; a proxy that has closed takes no more.
    async fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.ended.is_none() {
            let (mut reading, mut writing) = self.tcp.split();
            let sent = tokio::select! {
                read = reading.read_buf(&mut self.bytes) => {
                    self.hear(read);
                    continue;
                }
                sent = timeout(PATIENCE, writing.write(bytes)) => sent,
            };
            match sent {
                Ok(Ok(length)) => bytes = &bytes[length..],
                Ok(Err(_)) | Err(_) => {
                    // What was said before the end can still be read.
                    return self.until(|client| client.ended.is_some()).await;
                }
            }
        }
    }

    fn hear(&mut self, read: io::Result<usize>) {
        match read {
            Ok(0) => self.ended = Some(Ended::Closed),
            Ok(_) => {}
            Err(_) => self.ended = Some(Ended::Reset),
        }
    }

    /// Hears until something holds, or the end.
    async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        let hearing = async {
            while self.ended.is_none() && !holds(self) {
                let read = self.tcp.read_buf(&mut self.bytes).await;
                self.hear(read);
            }
        };
        let _ = timeout(PATIENCE, hearing).await;
    }

    fn heads(&self) -> usize {
        let ends = self.bytes.windows(4);
        ends.filter(|window| window == b"\r\n\r\n").count()
    }

    fn responses(&self) -> (Vec<Message>, &[u8]) {
        let mut all = Vec::new();
        let mut rest = self.bytes.as_slice();
        let ended = self.ended == Some(Ended::Closed);
        while let Parsed::Whole(message, length) = message::response(rest, self.head, ended) {
            rest = &rest[length..];
            let switched = message.status() == 101;
            all.push(message);
            if switched {
                break;
            }
        }
        (all, rest)
    }
}
