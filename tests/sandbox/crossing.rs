//! Two large bodies that cross each other: a request and its answer at the same time on one connection. Both arrive byte for
//! byte, and neither sidecar holds more than it may.

use std::future::ready;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use fastrand::Rng;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::Duration;
use tulle_tests::{Mesh, scaled};

use crate::bodies::{head, in_flat_memory};
use crate::ends::Pair;

tulle_tests::cases! {
    large_bodies_cross_on_a_connection_of_http1 ["alone"];
    large_bodies_cross_on_a_connection_of_http2 ["alone"];
}

const PIECE: usize = 64 << 10;
/// What the bodies are made from: each byte of them is another one's in the other direction.
const REQUEST: u64 = 1;
const ANSWER: u64 = 2;
/// How long everything may take.
const PATIENCE: Duration = Duration::from_secs(600);

fn size() -> usize {
    scaled(48 << 20, 1 << 30)
}

/// A body as it should be, piece by piece.
struct Body {
    source: Rng,
    left: usize,
    piece: Vec<u8>,
    at: usize,
}

impl Body {
    fn new(seed: u64) -> Self {
        Self {
            source: Rng::with_seed(seed),
            left: size(),
            piece: Vec::new(),
            at: 0,
        }
    }

    /// The rest of the piece that has been begun, or the next one; empty at the end.
    fn next(&mut self) -> &[u8] {
        if self.at == self.piece.len() {
            self.piece.resize(self.left.min(PIECE), 0);
            self.source.fill(&mut self.piece);
            self.left -= self.piece.len();
            self.at = 0;
        }
        &self.piece[self.at..]
    }

    /// These bytes came next.
    fn came(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            let expected = self.next();
            ensure!(!expected.is_empty(), "{} bytes too many", bytes.len());
            let length = expected.len().min(bytes.len());
            let same = expected[..length] == bytes[..length];
            ensure!(same, "other bytes before the last {}", self.left);
            self.at += length;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    fn is_over(&mut self) -> bool {
        self.next().is_empty()
    }
}

async fn large_bodies_cross_on_a_connection_of_http1(mesh: &Mesh) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "crossing-one", "http").await?;
    let both = async {
        let serving = async {
            let mut tcp = pair.listener.accept().await?.0;
            let said = head(&mut tcp).await?;
            ensure!(said.starts_with("POST / HTTP/1.1\r\n"), "{said}");
            let length = size();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            tcp.write_all(answer.as_bytes()).await?;
            let (read, write) = tcp.into_split();
            let all = Notify::new();
            let taking = async {
                let read = takes(read, REQUEST).await?;
                all.notify_one();
                anyhow::Ok(read)
            };
            tokio::try_join!(sends(write, ANSWER, all.notified()), taking)
        };
        let calling = async {
            let mut tcp = pair.connect().await?;
            let length = size();
            let request =
                format!("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n");
            tcp.write_all(request.as_bytes()).await?;
            let said = head(&mut tcp).await?;
            ensure!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
            // The answer has begun, and not a byte of the request's body has gone.
            let (read, write) = tcp.into_split();
            tokio::try_join!(sends(write, REQUEST, ready(())), takes(read, ANSWER))
        };
        tokio::try_join!(serving, calling)?;
        Ok(())
    };
    in_flat_memory(&pair.arena, PATIENCE, both).await
}

/// Its last piece waits for something: an answer that is over before its request has been taken ends that too.
async fn sends<W: AsyncWrite + Unpin>(
    mut write: W,
    seed: u64,
    last: impl Future<Output = ()>,
) -> anyhow::Result<W> {
    let (mut body, mut last) = (Body::new(seed), Some(last));
    while !body.is_over() {
        if body.left == 0
            && let Some(last) = last.take()
        {
            last.await;
        }
        let length = body.next().len();
        write.write_all(body.next()).await?;
        body.at += length;
    }
    // Whoever holds it does not end it yet.
    Ok(write)
}

async fn takes<R: AsyncRead + Unpin>(mut read: R, seed: u64) -> anyhow::Result<R> {
    let (mut body, mut piece) = (Body::new(seed), vec![0; PIECE]);
    while !body.is_over() {
        let length = read.read(&mut piece).await?;
        ensure!(length > 0, "it ended {} bytes too early", body.left);
        body.came(&piece[..length])?;
    }
    Ok(read)
}

async fn large_bodies_cross_on_a_connection_of_http2(mesh: &Mesh) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "crossing-two", "http2").await?;
    let both = async {
        let serving = async {
            let tcp = pair.listener.accept().await?.0;
            let mut connection = h2::server::handshake(tcp).await?;
            let accepted = connection.accept().await.context("no request")?;
            let (request, mut respond) = accepted?;
            let send = respond.send_response(Response::new(()), false)?;
            let all = Notify::new();
            let taking = async {
                receives(request.into_body(), REQUEST).await?;
                all.notify_one();
                anyhow::Ok(())
            };
            let exchange = async {
                tokio::try_join!(gives(send, ANSWER, all.notified()), taking)?;
                anyhow::Ok(())
            };
            tokio::select! {
                exchanged = exchange => exchanged?,
                ended = connection.accept() => bail!("the app is left: {:?}", ended.map(|it| it.is_ok())),
            }
            // What was written last still has to go.
            connection.graceful_shutdown();
            while connection.accept().await.is_some() {}
            Ok(())
        };
        let calling = async {
            let (mut sender, connection) = h2::client::handshake(pair.connect().await?).await?;
            let request = Request::post("http://web/").body(())?;
            let (answer, send) = sender.send_request(request, false)?;
            let exchange = async {
                // The answer begins, and not a byte of the request's body has gone.
                let answer = answer.await?;
                ensure!(answer.status() == 200, "{}", answer.status());
                tokio::try_join!(
                    gives(send, REQUEST, ready(())),
                    receives(answer.into_body(), ANSWER)
                )?;
                Ok(())
            };
            tokio::select! {
                exchanged = exchange => exchanged,
                ended = connection => bail!("the client is left: {ended:?}"),
            }
        };
        tokio::try_join!(serving, calling)?;
        Ok(())
    };
    in_flat_memory(&pair.arena, PATIENCE, both).await
}

/// As [`sends`].
async fn gives(
    mut send: SendStream<Bytes>,
    seed: u64,
    last: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (mut body, mut last) = (Body::new(seed), Some(last));
    while !body.is_over() {
        if body.left == 0
            && let Some(last) = last.take()
        {
            last.await;
        }
        send.reserve_capacity(body.next().len());
        let room = std::future::poll_fn(|context| send.poll_capacity(context)).await;
        let room = room.context("nobody takes it")??;
        let next = body.next();
        let piece = Bytes::copy_from_slice(&next[..room.min(next.len())]);
        body.at += piece.len();
        send.send_data(piece, false)?;
    }
    Ok(send.send_data(Bytes::new(), true)?)
}

async fn receives(mut stream: RecvStream, seed: u64) -> anyhow::Result<()> {
    let mut body = Body::new(seed);
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        body.came(&piece)?;
        stream.flow_control().release_capacity(piece.len())?;
    }
    ensure!(body.is_over(), "it ended {} bytes too early", body.left);
    Ok(())
}
