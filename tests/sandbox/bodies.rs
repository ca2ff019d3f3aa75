//! Bodies that are far larger than what anybody may hold: they pass both sidecars in both directions, and memory stays flat.

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};
use tulle_runtime::names::containers;
use tulle_tests::{Arena, Mesh};

use crate::ends::Pair;

tulle_tests::cases! {
    bodies_of_256_megabytes_pass_both_ways_in_flat_memory ["alone"];
}

const BODY: usize = 256 << 20;
const PIECE: usize = 64 << 10;
/// How much a sidecar may need beside what it has, and how long everything may take.
const GROWTH: u64 = 24 << 10;
const PATIENCE: Duration = Duration::from_secs(100);

async fn bodies_of_256_megabytes_pass_both_ways_in_flat_memory(mesh: &Mesh) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "bodies-large", "http").await?;
    let both = async {
        let serving = async { serve(pair.listener.accept().await?.0).await };
        let calling = async { exchange(pair.connect().await?).await };
        tokio::try_join!(serving, calling)?;
        Ok(())
    };
    in_flat_memory(&pair.arena, PATIENCE, both).await
}

/// Has bodies pass between the apps `client` and `web` in time, while neither sidecar's memory grows.
pub(crate) async fn in_flat_memory(
    arena: &Arena<'_>,
    patience: Duration,
    bodies: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let memory = |line| {
        let (client, web) = (memory(arena, "client", line)?, memory(arena, "web", line)?);
        anyhow::Ok([client, web])
    };
    let before = memory("VmRSS")?;
    let passed = timeout(patience, bodies).await;
    passed.context("the bodies did not pass in time")??;
    for (before, after) in before.into_iter().zip(memory("VmHWM")?) {
        ensure!(after < before + GROWTH, "{before} KB became {after} KB");
    }
    Ok(())
}

/// Takes a body by its length, and answers with one in chunks.
async fn serve(mut tcp: TcpStream) -> anyhow::Result<()> {
    let head = head(&mut tcp).await?;
    ensure!(head.starts_with("POST / HTTP/1.1\r\n"), "{head}");
    swallow(&mut tcp, BODY).await?;
    tcp.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await?;
    let piece = [format!("{PIECE:x}\r\n").as_bytes(), &[b'x'; PIECE], b"\r\n"].concat();
    for _ in 0..BODY / PIECE {
        tcp.write_all(&piece).await?;
    }
    tcp.write_all(b"0\r\n\r\n").await?;
    Ok(())
}

/// Sends a body, and reads the answer to its end.
async fn exchange(mut tcp: TcpStream) -> anyhow::Result<()> {
    let request = format!(
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {BODY}\r\nconnection: close\r\n\r\n"
    );
    tcp.write_all(request.as_bytes()).await?;
    let piece = vec![b'x'; PIECE];
    for _ in 0..BODY / PIECE {
        tcp.write_all(&piece).await?;
    }
    let head = head(&mut tcp).await?;
    ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let mut piece = vec![0; PIECE];
    let (mut data, mut last) = (0, Vec::new());
    loop {
        let length = tcp.read(&mut piece).await?;
        if length == 0 {
            break;
        }
        data += piece[..length].iter().filter(|byte| **byte == b'x').count();
        last.extend_from_slice(&piece[..length]);
        last.drain(..last.len().saturating_sub(5));
    }
    ensure!(
        data == BODY && last == b"0\r\n\r\n",
        "{data} bytes came, at last {last:?}"
    );
    Ok(())
}

pub(crate) async fn head(tcp: &mut TcpStream) -> anyhow::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}

async fn swallow(tcp: &mut TcpStream, mut left: usize) -> anyhow::Result<()> {
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let room = left.min(PIECE);
        let length = tcp.read(&mut piece[..room]).await?;
        ensure!(length > 0, "the body ended {left} bytes too early");
        left -= length;
    }
    Ok(())
}

/// A line of what the kernel says of a sidecar's memory, in kilobytes.
fn memory(arena: &Arena<'_>, app: &str, line: &str) -> anyhow::Result<u64> {
    let pod = arena.pod(app)?;
    let sidecar = pod.container(containers::PROXY).and_then(|it| it.pid);
    let pid = sidecar.with_context(|| format!("{app} has no sidecar"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let said = status
        .lines()
        .find_map(|said| said.strip_prefix(line)?.strip_prefix(':'));
    let number = said.and_then(|said| said.split_whitespace().next());
    Ok(number.context("the kernel does not say")?.parse()?)
}
