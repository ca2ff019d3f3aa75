//! Bodies that are far larger than what anybody may hold: they pass both sidecars in both directions, and memory stays flat.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};
use tulle_runtime::names::containers;
use tulle_tests::{Arena, Mesh, app};

use crate::place::Place;

tulle_tests::cases! {
    bodies_of_256_megabytes_pass_both_ways_in_flat_memory ["alone"];
}

const BODY: usize = 256 << 20;
const PIECE: usize = 64 << 10;
/// How much a sidecar may need beside what it has, and how long everything may take.
pub(crate) const GROWTH: u64 = 24 << 10;
const PATIENCE: Duration = Duration::from_secs(100);
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  \
    ports: [{name: http, port: 8080, targetPort: 8080}]";

async fn bodies_of_256_megabytes_pass_both_ways_in_flat_memory(mesh: &Mesh) -> anyhow::Result<()> {
    let manifests = app("web") + app("client") + SERVICE;
    let arena = mesh.apply("bodies-large", manifests).await?;
    let address = arena.exec("client", ["getent", "ahostsv4", "web"]).await?;
    let address = address.ok()?;
    let address = address.split_whitespace().next().context("no address")?;
    let web = SocketAddr::new(address.parse()?, 8080);
    let listener = Place::of(&arena, "web")?.listen(8080)?;
    let client = Place::of(&arena, "client")?;
    let before = [
        memory(&arena, "client", "VmRSS")?,
        memory(&arena, "web", "VmRSS")?,
    ];
    let passed = timeout(PATIENCE, async {
        let serving = async { serve(listener.accept().await?.0).await };
        tokio::try_join!(serving, exchange(client.connect(web).await?))
    });
    passed.await.context("the bodies did not pass in time")??;
    let after = [
        memory(&arena, "client", "VmHWM")?,
        memory(&arena, "web", "VmHWM")?,
    ];
    for (before, after) in before.into_iter().zip(after) {
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
pub(crate) fn memory(arena: &Arena<'_>, app: &str, line: &str) -> anyhow::Result<u64> {
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
