//! Who is believed by the inbound side: hellos of every kind, and roots that come and go.

use std::cell::Cell;

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tulle_identity::TrustBundle;
use tulle_runtime::env::Env;

use super::*;
use crate::verified;

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
/// The alert `protocol_version`.
const PROTOCOL_VERSION: u8 = 70;

/// The ClientHello of a client that is no sidecar.
fn hello(versions: &[&'static rustls::SupportedProtocolVersion], alpn: &[&[u8]]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from("redis.shop").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same message in records of so many bytes.
fn fragmented(hello: &[u8], size: usize) -> Vec<u8> {
    let pieces = hello[5..].chunks(size);
    pieces
        .flat_map(|piece| {
            let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE, 3, 1, length[0], length[1]], piece].concat()
        })
        .collect()
}

/// What a STRICT server's sidecar says to these bytes first; empty: it closes.
async fn answer(bytes: &[u8]) -> Vec<u8> {
    let mesh = mesh(&Ca::new(), greeter().await, false, None).await;
    let mut tcp = TcpStream::connect(mesh.server_address).await.unwrap();
    let _ = tcp.write_all(bytes).await;
    let mut seen = [0; 7];
    match tcp.read_exact(&mut seen).await {
        Ok(_) => seen.to_vec(),
        Err(_) => Vec::new(),
    }
}

#[tokio::test]
async fn row_29_only_tls_1_3_is_spoken_and_hellos_may_come_in_pieces() {
    local(async {
        for alpn in [&b"tulle-http1"[..], b"h2"] {
            let old = answer(&hello(&[&TLS12], &[alpn])).await;
            assert_eq!((old[0], old[6]), (ALERT, PROTOCOL_VERSION), "{old:?}");
            let new = hello(&[&TLS13], &[alpn]);
            assert_eq!(answer(&new).await[0], HANDSHAKE);
            for size in [1_000, 100] {
                let pieces = fragmented(&new, size);
                assert_eq!(answer(&pieces).await[0], HANDSHAKE, "{size}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn row_29_a_hello_without_end_is_given_up() {
    local(async {
        // It announces 64 KiB, in records of 1,000 bytes.
        let mut endless = vec![1, 1, 0, 0];
        endless.resize(70_000, 0);
        let endless = fragmented(&[&[0; 5][..], &endless].concat(), 1_000);
        // All of it at once, or a little of it and then nothing.
        for length in [endless.len(), 3_000] {
            let begun = tokio::time::Instant::now();
            assert_eq!(answer(&endless[..length]).await, b"", "{length}");
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{:?}",
                begun.elapsed()
            );
        }
    })
    .await;
}

#[test]
fn row_29_nothing_is_resumed_and_no_early_data_is_taken() {
    let identity = Ca::new().identity("redis");
    let current = identity.current();
    for config in [current.mesh_server(), current.foreign_server()] {
        assert_eq!(config.max_early_data_size, 0);
        assert_eq!(config.send_tls13_tickets, 0);
        assert!(!config.session_storage.can_cache());
    }
}

impl Ca {
    fn svid(&self, account: &str) -> tulle_identity::Svid {
        self.0.issue_svid(&IssueRequest::new(&id(account))).unwrap()
    }

    /// These roots, and this one's.
    fn and(&self, other: &Self) -> TrustBundle {
        let root = other.0.bundle().roots()[0].clone();
        self.0.bundle().with(root).unwrap()
    }
}

/// The app greets: whoever reads that was let in.
async fn greets(tcp: &mut TcpStream) -> bool {
    tcp.read_exact(&mut [0; 15]).await.is_ok()
}

#[tokio::test]
async fn row_32_roots_and_leaves_rotate_under_load_and_no_connection_fails() {
    local(async {
        let first = Ca::new();
        let mesh = mesh(&first, greeter().await, false, Some("redis")).await;
        let sides = [&mesh.client_side, &mesh.server_side].map(|side| side.worker.identity.clone());
        tokio::task::spawn_local(verified::watch(mesh.server_side.worker.clone()));
        let (listener, address) = listen().await;
        capture(
            listener,
            SERVICE,
            Direction::Outbound,
            mesh.client_side.worker.clone(),
        );
        let (served, failed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for _ in 0..4 {
            let (served, failed) = (served.clone(), failed.clone());
            tokio::task::spawn_local(async move {
                loop {
                    let mut client = TcpStream::connect(address).await.unwrap();
                    let count = if greets(&mut client).await {
                        &served
                    } else {
                        &failed
                    };
                    count.set(count.get() + 1);
                }
            });
        }
        let some = async || {
            let until = served.get() + 12;
            while served.get() < until && failed.get() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let mut old = first;
        let full = Env::process().text("TULLE_TEST_SCALE") == Some("full");
        for round in 0..if full { 2_000 } else { 10 } {
            let new = Ca::new();
            for side in &sides {
                side.trust(old.and(&new));
            }
            some().await;
            for (side, account) in sides.iter().zip(["web", "redis"]) {
                side.rotate(new.svid(account)).unwrap();
            }
            some().await;
            for side in &sides {
                side.trust(new.0.bundle().clone());
            }
            some().await;
            assert_eq!(failed.get(), 0, "round {round}, after {}", served.get());
            old = new;
        }
    })
    .await;
}

#[tokio::test]
async fn row_32_peers_of_a_removed_root_are_refused_and_their_connections_end() {
    local(async {
        let (old, new) = (Ca::new(), Ca::new());
        let mut mesh = mesh(&old, greeter().await, false, Some("redis")).await;
        let server = mesh.server_side.worker.identity.clone();
        tokio::task::spawn_local(verified::watch(mesh.server_side.worker.clone()));
        assert!(greets(&mut mesh.client).await);
        let echoes = async |client: &mut TcpStream| {
            client.write_all(b"still here").await.is_ok()
                && client.read_exact(&mut [0; 10]).await.is_ok()
        };
        server.trust(old.and(&new));
        server.rotate(new.svid("redis")).unwrap();
        assert!(echoes(&mut mesh.client).await, "its root is still trusted");
        server.trust(new.0.bundle().clone());
        let mut rest = Vec::new();
        let _ = mesh.client.read_to_end(&mut rest).await;
        assert!(!echoes(&mut mesh.client).await, "the connection has ended");
        let connections = &mesh.server_side.worker.connections;
        assert_eq!(
            connections.refused(Direction::Inbound, "distrusted_root"),
            1
        );

        // It believes the server, but is not believed.
        mesh.client_side.worker.identity.trust(old.and(&new));
        let (listener, address) = listen().await;
        capture(
            listener,
            SERVICE,
            Direction::Outbound,
            mesh.client_side.worker.clone(),
        );
        let mut again = TcpStream::connect(address).await.unwrap();
        assert!(!greets(&mut again).await);
    })
    .await;
}
