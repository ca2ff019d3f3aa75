//! How opaque connections end, in every order and at both ends, through two sidecars.

use super::*;

/// What one end does: says something and closes its side, or resets the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closes,
    Resets,
}

const SIZE: usize = 200_000;

fn bytes(seed: u8) -> Vec<u8> {
    (0..SIZE).map(|i| (i % 251) as u8 ^ seed).collect()
}

/// Says everything and ends: gives back what it can still listen to.
async fn speak(mut tcp: TcpStream, what: &[u8], end: End) -> Option<TcpStream> {
    tcp.write_all(what).await.unwrap();
    match end {
        End::Closes => {
            tcp.shutdown().await.unwrap();
            Some(tcp)
        }
        End::Resets => {
            reset(&tcp);
            None
        }
    }
}

/// Everything that comes, and whether it ends in peace.
async fn listen_to(tcp: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut seen = Vec::new();
    let peace = tcp.read_to_end(&mut seen).await.is_ok();
    (seen, peace)
}

/// An app that takes one connection and hands it out.
async fn one() -> (SocketAddr, tokio::sync::oneshot::Receiver<TcpStream>) {
    let (listener, address) = listen().await;
    let (give, take) = tokio::sync::oneshot::channel();
    tokio::task::spawn_local(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let _ = give.send(tcp);
    });
    (address, take)
}

#[tokio::test]
async fn row_27_whoever_ends_first_both_get_every_byte_or_learn_that_they_did_not() {
    local(async {
        for client_first in [true, false] {
            for (first, second) in [
                (End::Closes, End::Closes),
                (End::Closes, End::Resets),
                (End::Resets, End::Closes),
            ] {
                let what = format!("client first: {client_first}, {first:?} then {second:?}");
                let (app, taken) = one().await;
                let mesh = mesh(&Ca::new(), app, false, Some("redis")).await;
                let mut client = mesh.client;
                // Opaque bytes flow once the client has said something.
                client.write_all(b"!").await.unwrap();
                let mut server = taken.await.unwrap();
                server.read_exact(&mut [0; 1]).await.unwrap();
                let (one, mut other) = if client_first {
                    (client, server)
                } else {
                    (server, client)
                };
                let (said, answer) = (bytes(1), bytes(2));
                let hearing = async {
                    let heard = listen_to(&mut other).await;
                    if first == End::Closes {
                        let left = speak(other, &answer, second).await;
                        drop(left);
                    }
                    heard
                };
                let speaking = async {
                    let one = speak(one, &said, first).await;
                    match one {
                        Some(mut one) => Some(listen_to(&mut one).await),
                        None => None,
                    }
                };
                let (heard, answered) = tokio::join!(hearing, speaking);
                assert_eq!(heard.1, first == End::Closes, "{what}");
                assert!(said.starts_with(&heard.0), "{what}");
                assert!(
                    first == End::Resets || heard.0 == said,
                    "{what}: bytes are missing"
                );
                if let Some((bytes, peace)) = answered {
                    assert!(answer.starts_with(&bytes), "{what}");
                    if second == End::Closes {
                        assert!(peace && bytes == answer, "{what}: bytes are missing");
                    }
                }
            }
        }
    })
    .await;
}
