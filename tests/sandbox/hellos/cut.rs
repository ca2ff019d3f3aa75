//! A peer that closes its connection without the word that TLS has for it: what came is no whole answer.

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tulle_identity::{ClientAuth, Identity};
use tulle_runtime::names::alpn;
use tulle_tests::{Mesh, app, eventually};

use crate::certificate::svid;
use crate::mole::{PORT, burrow};
use crate::place::Place;

tulle_tests::cases! {
    row_29_an_answer_whose_tls_is_cut_is_not_whole;
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nall of it?";

/// Answers each request with a body that ends with its connection: every other one in peace.
async fn answer(listener: &TcpListener, identity: &Identity) -> anyhow::Result<()> {
    let mut says_goodbye = true;
    loop {
        let (tcp, _) = listener.accept().await?;
        let config = identity.load().server(ClientAuth::Required, &[alpn::HTTP1]);
        let Ok(mut tls) = TlsAcceptor::from(config).accept(tcp).await else {
            // Its client has no time left, and comes again.
            continue;
        };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tls.read_u8().await?);
        }
        tls.write_all(ANSWER).await?;
        tls.flush().await?;
        if says_goodbye {
            tls.shutdown().await?;
        }
        says_goodbye = !says_goodbye;
    }
}

async fn row_29_an_answer_whose_tls_is_cut_is_not_whole(mesh: &Mesh) -> anyhow::Result<()> {
    let namespace = "hello-cut";
    let (pod, service) = burrow("burrow");
    let manifests = pod + app("client") + service.as_str();
    let arena = mesh.apply(namespace, manifests).await?;
    let (svid, bundle) = svid(&format!("spiffe://cluster.local/ns/{namespace}/sa/burrow"))?;
    let identity = Identity::new(svid, bundle);
    let listener = Place::of(&arena, "burrow")?.listen(PORT)?;
    let calling = async {
        let url = format!("http://burrow:{PORT}/");
        for whole in [true, false, true, false] {
            let answer = arena
                .app_call("client", &[&url, "--method", "POST"])
                .await?;
            if whole {
                ensure!(answer["status"] == 200, "{answer}");
                ensure!(answer["body"] == "all of it?", "{answer}");
            } else {
                // Why there is no answer, in words.
                ensure!(answer.is_string(), "it looks whole: {answer}");
            }
        }
        eventually(std::time::Duration::from_secs(10), async || {
            let log = arena.access_log("client")?;
            let flags: Vec<_> = log
                .iter()
                .filter_map(|line| line["response_flags"].as_str())
                .collect();
            ensure!(flags == ["-", "UC", "-", "UC"], "{log:?}");
            Ok(())
        })
        .await
    };
    tokio::select! {
        called = calling => called,
        failed = answer(&listener, &identity) => failed.context("the peer is gone"),
    }
}
