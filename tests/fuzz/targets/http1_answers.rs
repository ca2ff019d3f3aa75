//! What an HTTP/1 server answers.
//!
//! The first byte says in what pieces the rest comes, which is what the server says. The library's client reads it twice: by
//! itself, and behind what counts interim answers. Both see the same answer, unless there are too many interim ones before
//! it: then no more of them get through than there may be, and no answer.

#![no_main]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex,
};
use tulle_proxy::io::Answers;
use tulle_runtime::limits::MAX_INTERIM;

/// What came of an answer: its status and its body, `None` if it was cut.
type Answer = (u16, Option<Bytes>);

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
}

tulle_fuzz::target!(|data: &[u8]| {
    let Some((pieces, said)) = data.split_first() else {
        return;
    };
    let size = usize::from(*pieces) + 1;
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (plain, interim) = ask(said, size, |io| (io, || ())).await;
            let counted = |io| {
                let (answers, asked) = Answers::new(io);
                (answers, move || asked.again())
            };
            let (followed, passed) = ask(said, size, counted).await;
            assert!(
                passed <= MAX_INTERIM,
                "{passed} interim answers got through"
            );
            if interim > MAX_INTERIM {
                assert_eq!(followed, None, "{interim} interim answers");
            } else {
                assert_eq!(followed, plain);
            }
            // What is broken may break before those that came with it are seen.
            assert!(passed == interim || followed.is_none());
        });
    });
});

/// What a client makes of what a server says, and how many interim answers it has seen.
async fn ask<I, A>(
    said: &[u8],
    size: usize,
    follow: impl FnOnce(DuplexStream) -> (I, A),
) -> (Option<Answer>, u32)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: FnOnce(),
{
    let (client, mut server) = duplex(size.max(64));
    let (io, again) = follow(client);
    let interim = Arc::new(AtomicU32::new(0));
    let serving = async {
        let mut head = [0; 18];
        // A client that has given up is not spoken to.
        let _ = server.read_exact(&mut head).await;
        for piece in said.chunks(size) {
            if server.write_all(piece).await.is_err() {
                break;
            }
        }
        drop(server);
    };
    let counter = interim.clone();
    let asking = async move {
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.ok()?;
        let mut request = Request::new(Empty::<Bytes>::new());
        hyper::ext::on_informational(&mut request, move |_| {
            counter.fetch_add(1, Relaxed);
        });
        again();
        let answering = async {
            let (head, body) = sender.send_request(request).await.ok()?.into_parts();
            let body = body.collect().await.ok().map(|body| body.to_bytes());
            Some((head.status.as_u16(), body))
        };
        let driving = async {
            // How it ends, its answer tells.
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            biased;
            answer = answering => answer,
            () = driving => None,
        }
    };
    let (answer, ()) = tokio::join!(asking, serving);
    (answer, interim.load(Relaxed))
}
