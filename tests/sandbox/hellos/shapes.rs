//! ClientHellos towards a sidecar's inbound listener, from a pod outside the mesh.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion,
};
use tulle_runtime::names::labels;
use tulle_tests::{Arena, Mesh, app};

use crate::behaved::Behaved;
use crate::place::Place;
use crate::process::Process;

tulle_tests::cases! {
    row_29_tls_1_3_is_spoken_and_nothing_before_it;
    row_29_data_before_the_handshake_ends_is_nobody_s;
    row_29_hellos_without_end_are_given_up_in_bounded_memory_and_time;
}

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
/// The alert `protocol_version`.
const PROTOCOL_VERSION: u8 = 70;
/// Longer than anybody may take for a hello.
const PATIENCE: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;
const STRICT: &str = "apiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: { name: strict }\n\
    spec: { selector: { matchLabels: { app: closed } }, mtls: { mode: STRICT } }";

/// `web` takes plaintext too, `closed` takes only TLS.
async fn arena<'a>(mesh: &'a Mesh, name: &str) -> anyhow::Result<Arena<'a>> {
    let stranger = app("stranger").label(labels::INJECT, "disabled");
    let manifests = app("web").http(8080) + app("closed").http(8080) + app("client") + stranger;
    mesh.apply(name, manifests + STRICT).await
}

async fn connect(arena: &Arena<'_>, to: &str) -> anyhow::Result<TcpStream> {
    let to = SocketAddr::new(arena.pod(to)?.ips.v4.into(), 8080);
    Place::of(arena, "stranger")?.connect(to).await
}

/// The ClientHello of a client that is no sidecar.
fn hello(version: &'static SupportedProtocolVersion, alpn: &str) -> anyhow::Result<Vec<u8>> {
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.into()];
    let name = ServerName::try_from("web")?;
    let mut connection = ClientConnection::new(Arc::new(config), name)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// A message of the handshake in records of so many bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let pieces = message.chunks(size);
    pieces
        .flat_map(|piece| {
            let length = (piece.len() as u16).to_be_bytes();
            [&[HANDSHAKE, 3, 1, length[0], length[1]], piece].concat()
        })
        .collect()
}

/// The first record that comes back: its kind, and its last byte.
async fn first(tcp: &mut TcpStream) -> anyhow::Result<(u8, u8)> {
    let reading = async {
        let mut head = [0; 5];
        tcp.read_exact(&mut head).await?;
        let mut payload = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        tcp.read_exact(&mut payload).await?;
        anyhow::Ok((head[0], *payload.last().context("an empty record")?))
    };
    timeout(PATIENCE, reading).await.context("no answer")?
}

async fn row_29_tls_1_3_is_spoken_and_nothing_before_it(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = arena(mesh, "hello-versions").await?;
    for (to, alpn) in [
        ("web", "tulle-http1"),
        ("closed", "tulle-h2"),
        ("closed", "h2"),
    ] {
        let old = hello(&TLS12, alpn)?;
        for bytes in [old.clone(), records(&old[5..], 50)] {
            let mut tcp = connect(&arena, to).await?;
            tcp.write_all(&bytes).await?;
            let answer = first(&mut tcp).await?;
            ensure!(
                answer == (ALERT, PROTOCOL_VERSION),
                "{to}, {alpn}: {answer:?}"
            );
            let closed = timeout(PATIENCE, tcp.read_to_end(&mut Vec::new())).await;
            ensure!(closed.is_ok(), "{to}, {alpn}: it stays open");
        }
        let new = hello(&TLS13, alpn)?;
        for bytes in [new.clone(), records(&new[5..], 50)] {
            let mut tcp = connect(&arena, to).await?;
            tcp.write_all(&bytes).await?;
            let (kind, _) = first(&mut tcp).await?;
            ensure!(kind == HANDSHAKE, "{to}, {alpn}: {kind}");
        }
    }
    Ok(())
}

/// Adds `early_data` to a hello, and says at once what it would be about.
fn with_early_data(hello: &[u8]) -> Vec<u8> {
    let extension = [0, 42, 0, 0];
    let mut message = [&hello[5..], &extension].concat();
    // Length of the session id, of the cipher suites and of the compression methods.
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(message[at]);
    at += 2 + usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    at += 1 + usize::from(message[at]);
    let extensions = u16::from_be_bytes([message[at], message[at + 1]]) + 4;
    message[at..at + 2].copy_from_slice(&extensions.to_be_bytes());
    let length = (message.len() as u32 - 4).to_be_bytes();
    message[1..4].copy_from_slice(&length[1..]);
    let request = b"GET /early HTTP/1.1\r\nhost: web\r\n\r\n";
    let early = [
        &[APPLICATION_DATA, 3, 3, 0, request.len() as u8],
        &request[..],
    ]
    .concat();
    [records(&message, 1 << 14), early].concat()
}

async fn row_29_data_before_the_handshake_ends_is_nobody_s(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = arena(mesh, "hello-early").await?;
    for (to, alpn) in [("web", "tulle-http1"), ("closed", "http/1.1")] {
        let bytes = with_early_data(&hello(&TLS13, alpn)?);
        let mut tcp = connect(&arena, to).await?;
        tcp.write_all(&bytes).await?;
        let mut seen = Vec::new();
        let closed = timeout(PATIENCE, tcp.read_to_end(&mut seen)).await;
        ensure!(closed.is_ok(), "{to}: it stays open");
        ensure!(
            seen.first() == Some(&HANDSHAKE),
            "{to}: the hello was not read: {seen:?}"
        );
        let log = arena.access_log(to)?;
        ensure!(log.is_empty(), "{to}: something was served: {log:?}");
    }
    Ok(())
}

async fn row_29_hellos_without_end_are_given_up_in_bounded_memory_and_time(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    const EACH: usize = 40;
    let arena = arena(mesh, "hello-endless").await?;
    let behaved = Behaved::begin(&arena, 20).await?;
    // A message of 60,000 bytes, and one that says that it is larger than any hello; in all of their length, or just begun.
    let message = |length: usize| {
        let announced = (length as u32).to_be_bytes();
        let mut message = vec![1, announced[1], announced[2], announced[3]];
        message.resize(4 + length, 0);
        message
    };
    let (large, larger) = (message(60_000), message(100_000));
    let ways = [
        records(&large, 1_000),
        records(&large, 1_000)[..20_000].to_vec(),
        records(&larger, 1_000),
        // A byte a record, of which little fits into what is looked at.
        records(&large, 1)[..30_000].to_vec(),
        // A whole one, and then nothing of what has to follow.
        hello(&TLS13, "tulle-http1")?,
    ];
    // Where nothing but TLS is taken, nobody waits for a client that may have nothing to say.
    let silence = Vec::new();
    for to in ["closed", "web"] {
        let sidecar = Process::of(&arena, to)?;
        let (memory, cpu) = (sidecar.memory()?, sidecar.cpu()?);
        let begun = Instant::now();
        let mut attacks = tokio::task::JoinSet::new();
        let silent = (to == "closed").then_some(&silence);
        for bytes in ways.iter().chain(silent) {
            for _ in 0..EACH {
                let (mut tcp, bytes) = (connect(&arena, to).await?, bytes.clone());
                attacks.spawn(async move {
                    // In pieces as they come from afar; it may be refused in the middle.
                    for piece in bytes.chunks(1_400) {
                        if tcp.write_all(piece).await.is_err() {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                    timeout(PATIENCE, tcp.read_to_end(&mut Vec::new()))
                        .await
                        .is_ok()
                });
            }
        }
        let mut most = 0;
        while let Some(closed) = attacks.join_next().await {
            ensure!(closed?, "{to}: a hello without end is still waited for");
            most = most.max(sidecar.memory()?.saturating_sub(memory));
        }
        let (took, cpu) = (begun.elapsed(), sidecar.cpu()? - cpu);
        ensure!(took < PATIENCE, "{to}: {took:?}");
        ensure!(most < 24 * MIB, "{to}: {most} bytes");
        ensure!(cpu < Duration::from_secs(2), "{to}: {cpu:?} of CPU");
        sidecar.lives(&arena, to)?;
    }
    behaved.end(40).await
}
