//! Interim answers (1xx) of an app that the test speaks for: for endless ones their own request gets 502, the sidecar says
//! whose they were, and nobody else who shares the connection loses anything; of a few nobody hears.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tulle_runtime::names::containers;
use tulle_tests::{Mesh, eventually};

use crate::bodies::head;
use crate::ends::Pair;

tulle_tests::cases! {
    endless_interim_answers_on_http1_end_their_connection_and_a_few_are_nothing;
    endless_interim_answers_on_http2_end_their_stream_and_a_few_are_nothing;
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Not to be sent again by whoever gets 502.
const POST: &[u8] = b"POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n\r\n";
const HINT: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
const FEW: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn endless_interim_answers_on_http1_end_their_connection_and_a_few_are_nothing(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "interim-http1", "http").await?;
    let serving = async {
        let mut tcp = pair.listener.accept().await?.0;
        head(&mut tcp).await?;
        // Until the sidecar breaks the connection.
        while tcp.write_all(HINT).await.is_ok() {}
        let mut tcp = pair.listener.accept().await?.0;
        head(&mut tcp).await?;
        tcp.write_all(&[FEW, OK].concat()).await?;
        anyhow::Ok(tcp)
    };
    let calling = async {
        let mut tcp = pair.connect().await?;
        let mut answers = Vec::new();
        for _ in 0..2 {
            tcp.write_all(POST).await?;
            answers.push(answer(&mut tcp).await?);
        }
        anyhow::Ok(answers)
    };
    let both = timeout(PATIENCE, async { tokio::try_join!(serving, calling) });
    let (_app, answers) = both.await.context("it takes too long")??;
    ensure!(answers[0].starts_with("HTTP/1.1 502 "), "{answers:?}");
    ensure!(answers[1].starts_with("HTTP/1.1 200 "), "{answers:?}");
    is_told(&pair).await
}

/// The next message on a connection, whatever its status.
async fn answer(tcp: &mut TcpStream) -> anyhow::Result<String> {
    let head = head(tcp).await?;
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let mut body = vec![0; length.map_or("0", |(_, length)| length).parse()?];
    tcp.read_exact(&mut body).await?;
    Ok(head)
}

async fn endless_interim_answers_on_http2_end_their_stream_and_a_few_are_nothing(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "interim-http2", "http2").await?;
    let mut tasks = JoinSet::new();
    let both = async {
        let (sender, connection) = h2::client::handshake(pair.connect().await?).await?;
        tasks.spawn(async move {
            // It ends with the test.
            let _ = connection.await;
        });
        let held = send(&sender).await?;
        let mut app = App::accept(pair.listener.accept().await?.0).await?;
        let first = app.asked().await?;
        let flooded = send(&sender).await?;
        let second = app.asked().await?;
        let sent = app.flood(second).await?;
        ensure!(flooded.await?.status() == StatusCode::BAD_GATEWAY);
        app.answer(first, 0).await?;
        ensure!(held.await?.status() == StatusCode::OK, "another was lost");
        let few = send(&sender).await?;
        let third = app.asked().await?;
        app.answer(third, 3).await?;
        ensure!(few.await?.status() == StatusCode::OK);
        Ok(sent)
    };
    let sent = timeout(PATIENCE, both)
        .await
        .context("it takes too long")??;
    ensure!(sent > 17, "{sent} interim answers are not endless");
    is_told(&pair).await
}

async fn send(sender: &SendRequest<Bytes>) -> anyhow::Result<h2::client::ResponseFuture> {
    let request = Request::post("http://web:8080/").body(())?;
    let mut sender = sender.clone().ready().await?;
    Ok(sender.send_request(request, true)?.0)
}

/// The app's sidecar has failed one request, has counted that, and has said once whose fault it was.
async fn is_told(pair: &Pair<'_>) -> anyhow::Result<()> {
    let arena = &pair.arena;
    eventually(PATIENCE, async || {
        let log = arena.access_log("web")?;
        let failed: Vec<_> = log
            .iter()
            .filter(|line| line["response_code"] == 502)
            .collect();
        let [failed] = failed[..] else {
            bail!("not one failed: {log:?}");
        };
        ensure!(failed["response_flags"] == "UPE", "{failed}");
        let metrics = arena.metrics("web").await?;
        let labels = [("limit", "interim"), ("listener", "inbound")];
        let counted = metrics.sum("tulle_limits_reached_total", &labels);
        ensure!(counted == 1.0, "counted {counted}");
        let log = arena.logs("web", Some(containers::PROXY))?;
        let mut lines = log
            .lines()
            .filter(|line| line.contains("a limit was reached"));
        let (line, more) = (lines.next().context("no line says so")?, lines.next());
        ensure!(more.is_none(), "{line} {more:?}");
        let app = format!("{}:8080", arena.pod("web")?.ips.v4);
        ensure!(line.contains("interim") && line.contains(&app), "{line}");
        Ok(())
    })
    .await
}

/// An app that speaks HTTP/2 frame by frame.
struct App {
    writer: OwnedWriteHalf,
    heard: watch::Receiver<Heard>,
    /// The stream that it was asked on before.
    before: u32,
    _reading: JoinSet<()>,
}

/// The last stream that a request came on, and the last that was reset.
#[derive(Clone, Copy, Default)]
struct Heard {
    asked: u32,
    reset: u32,
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl App {
    async fn accept(mut tcp: TcpStream) -> anyhow::Result<Self> {
        tcp.read_exact(&mut [0; 24]).await?;
        let (reader, mut writer) = tcp.into_split();
        writer.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        let (tell, heard) = watch::channel(Heard::default());
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            // It ends with the connection.
            let _ = read(reader, tell).await;
        });
        Ok(Self {
            writer,
            heard,
            before: 0,
            _reading: reading,
        })
    }

    /// The stream of the next request.
    async fn asked(&mut self) -> anyhow::Result<u32> {
        let before = self.before;
        let heard = self.heard.wait_for(|heard| heard.asked > before);
        self.before = heard.await?.asked;
        Ok(self.before)
    }

    /// Sends interim answers until their stream is reset. How many those are.
    async fn flood(&mut self, stream: u32) -> anyhow::Result<usize> {
        let mut sent = 0;
        while self.heard.borrow().reset != stream {
            self.writer.write_all(&interim(stream).repeat(10)).await?;
            sent += 10;
        }
        // What is still under way when it hears of that.
        self.writer.write_all(&interim(stream).repeat(100)).await?;
        Ok(sent)
    }

    /// Answers, after so many interim answers.
    async fn answer(&mut self, stream: u32, after: usize) -> anyhow::Result<()> {
        let answer = frame(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88]);
        let all = [interim(stream).repeat(after), answer].concat();
        Ok(self.writer.write_all(&all).await?)
    }
}

/// `:status: 103`.
fn interim(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, b"\x08\x03103")
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

async fn read(mut reader: OwnedReadHalf, tell: watch::Sender<Heard>) -> anyhow::Result<()> {
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head).await?;
        let [a, b, c, kind, _, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        reader.read_exact(&mut vec![0; length as usize]).await?;
        let stream = u32::from_be_bytes(stream);
        tell.send_modify(|heard| match kind {
            HEADERS => heard.asked = stream,
            RST_STREAM => heard.reset = stream,
            _ => {}
        });
    }
}
