//! How tunnels end, on real sockets, through one sidecar and through two: what is cut looks whole to nobody.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, spawn_local};

use super::harness::*;
use super::inbound::pair;
use crate::conn::HttpVersion::Http1;
use crate::conn::{Direction, Downstream, Security};
use crate::io::{IoStream, Transport};
use crate::net::reset;
use crate::settings::Settings;
use crate::telemetry::Limit;

/// Who ends a tunnel before both ends have said all they had to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Nobody,
    App,
    Client,
    /// The task of the connection ends, as when memory is short.
    Sidecar,
    Idle,
}

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nwelcome";

/// Connects to a sidecar; also, the task that serves the connection.
pub(super) async fn connect(sidecar: &Sidecar, downstream: Downstream) -> (TcpStream, AbortHandle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let io = IoStream::Plain(Transport::new(accepted.unwrap().0));
    let worker = Rc::clone(&sidecar.worker);
    let serving = async move { drop(crate::http::serve(worker, downstream, io, Http1).await) };
    (client.unwrap(), spawn_local(serving).abort_handle())
}

/// A tunnel between a client and an app that listens.
async fn tunnel(
    sidecar: &Sidecar,
    downstream: Downstream,
    app: TcpListener,
) -> (TcpStream, TcpStream, AbortHandle) {
    let (mut client, task) = connect(sidecar, downstream).await;
    client.write_all(REQUEST).await.unwrap();
    let (mut app, _) = app.accept().await.unwrap();
    let head = read_head(&mut app).await;
    assert!(head.contains("upgrade: websocket\r\n"), "{head}");
    app.write_all(SWITCH).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    client.read_exact(&mut [0; 7]).await.unwrap();
    client.write_all(b"thanks").await.unwrap();
    app.read_exact(&mut [0; 6]).await.unwrap();
    (client, app, task)
}

/// What comes, if it ends in peace.
async fn heard(mut tcp: TcpStream) -> Option<String> {
    let mut heard = String::new();
    tcp.read_to_string(&mut heard).await.ok().map(|_| heard)
}

/// Cuts a tunnel, and compares what both ends hear.
async fn judge(sidecar: &Sidecar, downstream: Downstream, app: TcpListener, cut: Cut, what: &str) {
    let (mut client, mut app, task) = tunnel(sidecar, downstream, app).await;
    client.write_all(b"from the client").await.unwrap();
    app.write_all(b"from the app").await.unwrap();
    match cut {
        Cut::Nobody => {
            client.shutdown().await.unwrap();
            app.shutdown().await.unwrap();
            let (app, client) = tokio::join!(heard(app), heard(client));
            assert_eq!(app.as_deref(), Some("from the client"), "{what}");
            assert_eq!(client.as_deref(), Some("from the app"), "{what}");
        }
        Cut::App => {
            reset(&app);
            drop(app);
            assert_eq!(heard(client).await, None, "{what}");
        }
        Cut::Client => {
            reset(&client);
            drop(client);
            assert_eq!(heard(app).await, None, "{what}");
        }
        Cut::Sidecar | Cut::Idle => {
            let mut half = [0; 12];
            client.read_exact(&mut half).await.unwrap();
            app.read_exact(&mut [0; 15]).await.unwrap();
            if cut == Cut::Sidecar {
                task.abort();
            }
            let ends = tokio::join!(heard(app), heard(client));
            assert_eq!(ends, (None, None), "{what}");
        }
    }
}

fn idle(cut: Cut) -> Settings {
    let mut settings = Settings::default();
    if cut == Cut::Idle {
        settings.patience.tcp_idle = Duration::from_millis(200);
    }
    settings
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn a_tunnel_that_is_cut_looks_whole_to_nobody() {
    run(async {
        for cut in [Cut::Nobody, Cut::App, Cut::Client, Cut::Sidecar, Cut::Idle] {
            let (app, address) = listen().await;
            let alone = Sidecar::with_settings(inbound(true), idle(cut));
            let downstream = Downstream {
                direction: Direction::Inbound,
                peer: CLIENT.into(),
                original_dst: address,
                security: Security::Plaintext,
                sni: None,
            };
            judge(&alone, downstream, app, cut, &format!("{cut:?}, one")).await;
            let closed = alone.worker.limits.count(Limit::Idle, Direction::Inbound);
            assert_eq!(closed, u64::from(cut == Cut::Idle), "{cut:?}");

            let (app, address) = listen().await;
            let (mut client, _server) = pair(address).await;
            if cut == Cut::Idle {
                let identity = client.worker.identity.clone();
                let snapshot = (*client.writer.current()).clone();
                client = Sidecar::build(snapshot, identity, idle(cut));
            }
            let downstream = client.downstream(SERVICE.into());
            judge(&client, downstream, app, cut, &format!("{cut:?}, two")).await;
            let closed = client.worker.limits.count(Limit::Idle, Direction::Outbound);
            assert_eq!(closed, u64::from(cut == Cut::Idle), "{cut:?}");
        }
    });
}
