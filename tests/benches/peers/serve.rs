//! The server's app: as little as can be answered, on a port for each protocol.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use tulle_proxy::upstream::LocalExecutor;

use crate::cores;

/// Name of this role.
pub(crate) const ROLE: &str = "bench-serve";
pub(crate) const HTTP1: u16 = 8080;
pub(crate) const HTTP2: u16 = 8082;
pub(crate) const GRPC: u16 = 9090;
pub(crate) const TCP: u16 = 7000;
/// Bytes of an answer.
pub(crate) const BODY: usize = 1024;
/// First byte of a connection whose bytes come back.
pub(crate) const ECHO: u8 = b'e';
/// First byte of a connection on which the server sends for ever.
pub(crate) const BULK: u8 = b'b';

pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let any = Ipv4Addr::UNSPECIFIED;
        cores::raise_descriptors()?;
        cores::prefer_self();
        let one = TcpListener::bind((any, HTTP1)).await?;
        let two = TcpListener::bind((any, HTTP2)).await?;
        let rpc = TcpListener::bind((any, GRPC)).await?;
        let tcp = TcpListener::bind((any, TCP)).await?;
        loop {
            // How a connection ends is the client's to judge.
            tokio::select! {
                accepted = one.accept() => {
                    let served = http1::Builder::new().serve_connection(io(accepted?.0)?, service_fn(answer));
                    spawn_local(async { drop(served.await) });
                }
                accepted = two.accept() => {
                    let served = http2::Builder::new(LocalExecutor)
                        .serve_connection(io(accepted?.0)?, service_fn(answer));
                    spawn_local(async { drop(served.await) });
                }
                accepted = rpc.accept() => {
                    let served = http2::Builder::new(LocalExecutor)
                        .serve_connection(io(accepted?.0)?, service_fn(answer_rpc));
                    spawn_local(async { drop(served.await) });
                }
                accepted = tcp.accept() => {
                    let stream = accepted?.0;
                    stream.set_nodelay(true)?;
                    spawn_local(async { drop(opaque(stream).await) });
                }
            }
        }
    })
}

fn io(stream: TcpStream) -> std::io::Result<TokioIo<TcpStream>> {
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(&[b'x'; BODY]))))
}

/// Gives a call its message back.
async fn answer_rpc(
    mut request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, hyper::Error> {
    let mut message = Bytes::new();
    while let Some(frame) = request.body_mut().frame().await {
        match frame?.into_data() {
            Ok(data) if message.is_empty() => message = data,
            Ok(data) => message = [message, data].concat().into(),
            Err(_trailers) => {}
        }
    }
    let status = (
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    );
    let trailers = HeaderMap::from_iter([status]);
    let body = Full::new(message);
    let mut response = Response::new(body.with_trailers(async { Some(Ok(trailers)) }));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    Ok(response)
}

async fn opaque(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        match buffer.first() {
            _ if read == 0 => return Ok(()),
            Some(&BULK) => loop {
                stream.write_all(&buffer).await?;
            },
            _ => stream.write_all(&buffer[..read]).await?,
        }
    }
}
