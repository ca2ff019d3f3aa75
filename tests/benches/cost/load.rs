//! The load: closed loops over connections that stay, in a pod of the client.
//!
//! It says `begin` once everything is warm, counts until it says `end` with what it counted, and goes on until its input
//! ends, so that whoever reads clocks at both words reads them under load.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};

use crate::serve::{self, BODY, BULK, ECHO};
use tulle_proxy::upstream::LocalExecutor;

/// Name of this role.
pub(crate) const ROLE: &str = "bench-load";
/// Connections of HTTP/1.1 and of opaque ping-pong.
const CONNECTIONS: usize = 32;
/// Connections of HTTP/2, and streams on each.
const STREAMS: (usize, usize) = (4, 16);
/// Connections that carry bytes in bulk.
const BULKS: usize = 2;
/// Time to connect and to be at speed.
const WARM: Duration = Duration::from_millis(400);
/// Time for the last requests to end.
const END: Duration = Duration::from_millis(100);

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Http1,
    Http2,
    Echo,
    Bulk,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::Echo, Self::Bulk];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Echo => "echo",
            Self::Bulk => "bulk",
        }
    }

    /// What it is, and in which unit it is counted.
    pub(crate) fn describe(self) -> (String, &'static str) {
        let (connections, streams) = STREAMS;
        match self {
            Self::Http1 => (
                format!("HTTP/1.1 keep-alive, {CONNECTIONS} connections, 1 KiB"),
                "request",
            ),
            Self::Http2 => (
                format!(
                    "HTTP/2, like unary gRPC, {connections} connections of {streams} streams, 1 KiB"
                ),
                "request",
            ),
            Self::Echo => (
                format!("opaque TCP, there and back, {CONNECTIONS} connections, 64 B"),
                "round trip",
            ),
            Self::Bulk => (format!("opaque TCP, one way, {BULKS} connections"), "MiB"),
        }
    }

    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Http1 => serve::HTTP1,
            Self::Http2 => serve::HTTP2,
            Self::Echo | Self::Bulk => serve::TCP,
        }
    }
}

/// What was counted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// Requests, round trips or MiB.
    pub(crate) units: f64,
    pub(crate) seconds: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// The first things that went wrong.
    pub(crate) errors: Vec<String>,
}

struct Tally {
    /// Nothing new is to be sent.
    over: Cell<bool>,
    units: Cell<f64>,
    latency: RefCell<Histogram<u64>>,
    errors: RefCell<Vec<String>>,
}

impl Tally {
    /// Counts what has come, and holds the caller back when it is over.
    async fn add(&self, units: f64, since: Option<Instant>) {
        self.units.set(self.units.get() + units);
        if let Some(since) = since {
            let nanoseconds = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.latency.borrow_mut().saturating_record(nanoseconds);
        }
        if self.over.get() {
            std::future::pending().await
        }
    }
}

/// Runs the role: `KIND HOST:PORT WINDOW_MS`.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [kind, address, window] = arguments else {
        anyhow::bail!("usage: {ROLE} KIND HOST:PORT WINDOW_MS");
    };
    let kind = Kind::ALL.into_iter().find(|known| known.name() == kind);
    let kind = kind.context("no such kind of load")?;
    let window = Duration::from_millis(window.parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, load(kind, address.clone(), window))
}

async fn load(kind: Kind, address: String, window: Duration) -> anyhow::Result<()> {
    let tally = Rc::new(Tally {
        over: Cell::new(false),
        units: Cell::new(0.0),
        latency: RefCell::new(Histogram::new_with_max(60_000_000_000, 3)?),
        errors: RefCell::default(),
    });
    let connections = match kind {
        Kind::Http1 | Kind::Echo => CONNECTIONS,
        Kind::Http2 => STREAMS.0,
        Kind::Bulk => BULKS,
    };
    for _ in 0..connections {
        let (tally, address) = (tally.clone(), address.clone());
        spawn_local(async move {
            let Err(error) = connection(kind, &tally, &address).await;
            tally.errors.borrow_mut().push(format!("{error:#}"));
        });
    }
    sleep(WARM).await;
    println!("begin");
    let (began, before) = (Instant::now(), tally.units.get());
    tally.latency.borrow_mut().reset();
    sleep(window).await;
    let counted = Counted {
        units: tally.units.get() - before,
        seconds: began.elapsed().as_secs_f64(),
        p50_ms: tally.latency.borrow().value_at_quantile(0.5) as f64 / 1e6,
        p99_ms: tally.latency.borrow().value_at_quantile(0.99) as f64 / 1e6,
        errors: tally.errors.borrow().iter().take(3).cloned().collect(),
    };
    println!("end {}", serde_json::to_string(&counted)?);
    // Until the clocks have been read; this thread has a load to go on with.
    let (ended, input) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.send(())
    });
    input.await.context("the input cannot be read")?;
    // Requests end before their connections do: so many streams reset at once look like an attack.
    tally.over.set(true);
    sleep(END).await;
    std::process::exit(0)
}

async fn connection(
    kind: Kind,
    tally: &Rc<Tally>,
    address: &str,
) -> anyhow::Result<std::convert::Infallible> {
    let tcp = TcpStream::connect(address).await.context("connect")?;
    tcp.set_nodelay(true)?;
    match kind {
        Kind::Http1 => over_http1(tally, tcp).await,
        Kind::Http2 => over_http2(tally, tcp).await,
        Kind::Echo => over_echo(tally, tcp).await,
        Kind::Bulk => over_bulk(tally, tcp).await,
    }
}

async fn over_http1(tally: &Tally, tcp: TcpStream) -> anyhow::Result<std::convert::Infallible> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
    spawn_local(connection);
    loop {
        let began = Instant::now();
        sender.ready().await?;
        let request = Request::get("/").header(HOST, "server");
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?);
        take(response.await?, false).await?;
        tally.add(1.0, Some(began)).await;
    }
}

async fn over_http2(tally: &Rc<Tally>, tcp: TcpStream) -> anyhow::Result<std::convert::Infallible> {
    let (sender, connection) = http2::handshake(LocalExecutor, TokioIo::new(tcp)).await?;
    spawn_local(connection);
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..STREAMS.1 {
        streams.spawn_local(stream(tally.clone(), sender.clone()));
    }
    match streams.join_next().await {
        Some(ended) => ended?,
        None => anyhow::bail!("no stream"),
    }
}

async fn stream(
    tally: Rc<Tally>,
    mut sender: http2::SendRequest<Full<Bytes>>,
) -> anyhow::Result<std::convert::Infallible> {
    loop {
        let began = Instant::now();
        let request = Request::post("http://server/bench.Echo/Unary")
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers");
        let message = Bytes::from_static(&[0, 0, 0, 0, 3, b'a', b'b', b'c']);
        sender.ready().await?;
        let response = sender
            .send_request(request.body(Full::new(message))?)
            .await?;
        take(response, true).await?;
        tally.add(1.0, Some(began)).await;
    }
}

/// Reads an answer to its end, and makes sure that it is the one expected.
async fn take(response: Response<Incoming>, trailers: bool) -> anyhow::Result<()> {
    let status = response.status();
    let (mut body, mut length, mut ended) = (response.into_body(), 0, !trailers);
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        ended |= frame.is_trailers();
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    ensure!(status.is_success(), "status {status}");
    ensure!(length == BODY, "a body of {length} bytes");
    ensure!(ended, "no trailers");
    Ok(())
}

async fn over_echo(tally: &Tally, mut tcp: TcpStream) -> anyhow::Result<std::convert::Infallible> {
    let (sent, mut received) = ([ECHO; 64], [0; 64]);
    loop {
        let began = Instant::now();
        tcp.write_all(&sent).await?;
        tcp.read_exact(&mut received).await?;
        ensure!(sent == received, "other bytes came back");
        tally.add(1.0, Some(began)).await;
    }
}

async fn over_bulk(tally: &Tally, mut tcp: TcpStream) -> anyhow::Result<std::convert::Infallible> {
    tcp.write_all(&[BULK]).await?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = tcp.read(&mut buffer).await?;
        ensure!(read > 0, "the server closed");
        tally.add(read as f64 / f64::from(1 << 20), None).await;
    }
}
