//! The backend: it records every byte that reaches it, reads it strictly, and answers as a row says.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};

use super::message::{self, Message, Parsed};
use super::row::Answer;

/// How long the proxy may take to see that an idle connection has ended.
const PARTING: Duration = Duration::from_secs(3);

/// What one port of the backend got during a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// Whole requests, in the order of their ends.
    pub(crate) requests: Vec<Message>,
    /// What came besides, of each connection.
    pub(crate) rests: Vec<Rest>,
    /// Heads that were complete.
    pub(crate) heads: usize,
    /// Connections that did not end although the backend had ended its side.
    pub(crate) stuck: usize,
}

/// What a connection ended with that was no whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// The beginning of one.
    Part(Vec<u8>),
    /// What no strict reader takes.
    Garbage(&'static str, Vec<u8>),
    /// Bytes after a switch of protocols.
    Tunnel(Vec<u8>),
}

/// A port of the backend, used by one row at a time.
#[derive(Clone, Debug)]
pub(crate) struct Lane(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    row: Mutex<Current>,
    /// Changes with every row, which ends the connections of the one before.
    rows: watch::Sender<u64>,
    /// Changes whenever something has come.
    news: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Current {
    record: Record,
    answers: Vec<Answer>,
    answered: usize,
    open: usize,
}

impl Lane {
    /// Serves a port, on a task of `tasks`.
    pub(crate) fn serve(listener: TcpListener, tasks: &mut JoinSet<()>) -> Self {
        let lane = Self(Arc::new(Shared {
            row: Mutex::default(),
            rows: watch::Sender::new(0),
            news: watch::Sender::new(0),
        }));
        let accepting = lane.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let _ = tcp.set_nodelay(true);
                accepting.0.row.lock().open += 1;
                connections.spawn(accepting.clone().connection(tcp));
                while connections.try_join_next().is_some() {}
            }
        });
        lane
    }

    /// Begins a row.
    pub(crate) fn begin(&self, answers: &[Answer]) {
        let mut row = self.0.row.lock();
        row.record = Record::default();
        row.answers = answers.to_vec();
        row.answered = 0;
    }

    /// Waits until so many heads have come.
    pub(crate) async fn reached(&self, heads: usize) {
        let mut news = self.0.news.subscribe();
        while self.0.row.lock().record.heads < heads {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends the row: every connection ends, and what it brought to its end is in the record.
    pub(crate) async fn end(&self) -> Record {
        let mut news = self.0.news.subscribe();
        while self.0.row.lock().open > 0 {
            // One that was accepted just now may not have heard it the first time.
            self.0.rows.send_modify(|row| *row += 1);
            let _ = timeout(PARTING / 100, news.changed()).await;
        }
        std::mem::take(&mut self.0.row.lock().record)
    }

    async fn connection(self, mut tcp: TcpStream) {
        let mut row = self.0.rows.subscribe();
        let mut seen = Seen::default();
        let mut piece = vec![0; 64 * 1024];
        loop {
            tokio::select! {
                biased;
                read = tcp.read(&mut piece) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(length) => seen.bytes.extend_from_slice(&piece[..length]),
                },
                _ = row.changed() => break,
            }
            if self.answer(&mut tcp, &mut seen).await {
                break;
            }
            self.tell();
        }
        let _ = tcp.shutdown().await;
        let drained = timeout(PARTING, async {
            while let Ok(length @ 1..) = tcp.read(&mut piece).await {
                seen.bytes.extend_from_slice(&piece[..length]);
            }
        })
        .await;
        {
            let mut row = self.0.row.lock();
            row.record.stuck += usize::from(drained.is_err());
            seen.finish(&mut row.record);
            row.open -= 1;
        }
        self.tell();
    }

    fn tell(&self) {
        self.0.news.send_modify(|news| *news = news.wrapping_add(1));
    }

    /// Answers the requests that have come. True: the connection is to be closed.
    async fn answer(&self, tcp: &mut TcpStream, seen: &mut Seen) -> bool {
        while !seen.tunnel {
            let parsed = message::request(&seen.bytes);
            let has_head = matches!(parsed, Parsed::Whole(..) | Parsed::Part(Some(_)));
            if has_head && !std::mem::replace(&mut seen.head, true) {
                self.0.row.lock().record.heads += 1;
            }
            let answer = {
                let mut row = self.0.row.lock();
                let answer = row.answers.get(row.answered);
                let early = answer.is_some_and(|answer| answer.early);
                let due = match parsed {
                    Parsed::Whole(message, length) => {
                        row.record.requests.push(message);
                        seen.bytes.drain(..length);
                        seen.head = false;
                        !std::mem::take(&mut seen.answered)
                    }
                    Parsed::Part(Some(_)) if early && !seen.answered => {
                        seen.answered = true;
                        true
                    }
                    // Whoever sends that on learns soon that nobody takes it.
                    Parsed::Garbage(_) => return true,
                    Parsed::Part(_) => return false,
                };
                due.then(|| {
                    row.answered += 1;
                    row.answers
                        .get(row.answered - 1)
                        .cloned()
                        .unwrap_or_else(usual)
                })
            };
            let Some(answer) = answer else { continue };
            seen.tunnel = answer.bytes.starts_with(b"HTTP/1.1 101 ");
            if seen.tunnel && !seen.bytes.is_empty() {
                let early = Rest::Garbage("data before the switch", seen.bytes.clone());
                self.0.row.lock().record.rests.push(early);
            }
            if tcp.write_all(&answer.bytes).await.is_err() || answer.closes {
                return true;
            }
        }
        false
    }
}

fn usual() -> Answer {
    Answer {
        bytes: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
        ..Answer::default()
    }
}

/// What a connection has brought and is no whole request yet.
#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    head: bool,
    answered: bool,
    tunnel: bool,
}

impl Seen {
    fn finish(self, record: &mut Record) {
        if self.tunnel {
            if !self.bytes.is_empty() {
                record.rests.push(Rest::Tunnel(self.bytes));
            }
            return;
        }
        let (requests, rest) = message::requests(&self.bytes);
        let taken = requests.len();
        record.requests.extend(requests);
        match rest {
            Parsed::Garbage(why) => record.rests.push(Rest::Garbage(why, self.bytes)),
            Parsed::Part(_) if !self.bytes.is_empty() && taken == 0 => {
                record.rests.push(Rest::Part(self.bytes));
            }
            _ => {}
        }
    }
}
