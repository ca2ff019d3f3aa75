//! What a connection of each kind says, and what it makes sure of.

use std::convert::Infallible;
use std::rc::Rc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tulle_proxy::upstream::LocalExecutor;

use super::kind::STREAMS;
use super::{Kind, Tally};
use crate::serve::{BODY, BULK, ECHO};

/// A gRPC message of 1 KiB with its head.
static MESSAGE: [u8; 5 + BODY] = {
    let mut message = [b'x'; 5 + BODY];
    let [_, _, high, low] = (BODY as u32).to_be_bytes();
    (message[0], message[1], message[2]) = (0, 0, 0);
    (message[3], message[4]) = (high, low);
    message
};

/// Sends and receives until something goes wrong.
pub(super) async fn connection(
    kind: Kind,
    tally: &Rc<Tally>,
    address: &str,
) -> anyhow::Result<Infallible> {
    match kind {
        Kind::Http1 => over_http1(tally, connect(tally, address).await?).await,
        Kind::Http2 | Kind::Grpc => over_http2(kind, tally, connect(tally, address).await?).await,
        Kind::Echo => over_echo(tally, connect(tally, address).await?).await,
        Kind::Bulk => over_bulk(tally, connect(tally, address).await?).await,
        Kind::Connect => loop {
            let turn = tally.turn().await;
            let mut tcp = connect(tally, address).await?;
            there_and_back(&mut tcp).await?;
            tally.add(1.0, turn);
        },
        Kind::Held => loop {
            hold(tally, address).await?;
        },
    }
}

/// Opens a connection that stays for as long as this process.
pub(super) async fn hold(tally: &Rc<Tally>, address: &str) -> anyhow::Result<()> {
    let mut tcp = connect(tally, address).await?;
    there_and_back(&mut tcp).await?;
    tally.held.set(tally.held.get() + 1);
    let tally = tally.clone();
    spawn_local(async move {
        let ended = tcp.read(&mut [0]).await;
        tally.held.set(tally.held.get() - 1);
        tally.error(&anyhow::anyhow!("a held connection ended: {ended:?}"));
    });
    Ok(())
}

async fn connect(tally: &Tally, address: &str) -> anyhow::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await.context("connect")?;
    tally.opens_connection();
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

async fn over_http1(tally: &Tally, tcp: TcpStream) -> anyhow::Result<Infallible> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
    spawn_local(connection);
    loop {
        let turn = tally.turn().await;
        sender.ready().await?;
        tally.sends_request();
        let request = Request::get("/").header(HOST, "server");
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?);
        take(response.await?, BODY, false).await?;
        tally.add(1.0, turn);
    }
}

async fn over_http2(kind: Kind, tally: &Rc<Tally>, tcp: TcpStream) -> anyhow::Result<Infallible> {
    let (sender, connection) = http2::handshake(LocalExecutor, TokioIo::new(tcp)).await?;
    spawn_local(connection);
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..STREAMS.1 {
        streams.spawn_local(stream(kind, tally.clone(), sender.clone()));
    }
    match streams.join_next().await {
        Some(ended) => ended?,
        None => anyhow::bail!("no stream"),
    }
}

async fn stream(
    kind: Kind,
    tally: Rc<Tally>,
    mut sender: http2::SendRequest<Full<Bytes>>,
) -> anyhow::Result<Infallible> {
    let rpc = kind == Kind::Grpc;
    loop {
        let turn = tally.turn().await;
        let (request, message) = if rpc {
            let request = Request::post("http://server/bench.Echo/Unary")
                .header(CONTENT_TYPE, "application/grpc")
                .header(TE, "trailers");
            (request, Bytes::from_static(&MESSAGE))
        } else {
            (Request::get("http://server/"), Bytes::new())
        };
        sender.ready().await?;
        tally.sends_request();
        let response = sender.send_request(request.body(Full::new(message))?);
        let length = if rpc { MESSAGE.len() } else { BODY };
        take(response.await?, length, rpc).await?;
        tally.add(1.0, turn);
    }
}

/// Reads an answer to its end, and makes sure that it is the one expected.
async fn take(response: Response<Incoming>, expected: usize, rpc: bool) -> anyhow::Result<()> {
    let status = response.status();
    let (mut body, mut length, mut ended) = (response.into_body(), 0, !rpc);
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let trailers = frame.trailers_ref();
        ended |= trailers.is_some_and(|trailers| trailers["grpc-status"] == "0");
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    ensure!(status.is_success(), "status {status}");
    ensure!(length == expected, "a body of {length} bytes");
    ensure!(ended, "no good end of the call");
    Ok(())
}

async fn over_echo(tally: &Tally, mut tcp: TcpStream) -> anyhow::Result<Infallible> {
    loop {
        let turn = tally.turn().await;
        there_and_back(&mut tcp).await?;
        tally.add(1.0, turn);
    }
}

async fn there_and_back(tcp: &mut TcpStream) -> anyhow::Result<()> {
    let (sent, mut received) = ([ECHO; 64], [0; 64]);
    tcp.write_all(&sent).await?;
    tcp.read_exact(&mut received).await?;
    ensure!(sent == received, "other bytes came back");
    Ok(())
}

async fn over_bulk(tally: &Tally, mut tcp: TcpStream) -> anyhow::Result<Infallible> {
    tcp.write_all(&[BULK]).await?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let turn = tally.turn().await;
        let read = tcp.read(&mut buffer).await?;
        ensure!(read > 0, "the server closed");
        tally.add(read as f64 / f64::from(1 << 20), turn);
    }
}
