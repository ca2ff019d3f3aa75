//! The stand-in beside the proxy: a process that answers its questions on loopback, and the kubelet's for it.
//!
//! Every answer is one message, after which the stream stays open, as of a control plane in which nothing changes.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context as _, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{self, StreamExt as _};
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use linkerd2_proxy_api::outbound::TrafficSpec;
use linkerd2_proxy_api::{destination, inbound, outbound};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::{LocalSet, spawn_local};
use tulle_proxy::upstream::LocalExecutor;
use tulle_runtime::env::Env;
use tulle_runtime::names::{files, ports};

use super::{SERVER, answers, authority, local, place};
use crate::bare::PEER;
use crate::starts;
use crate::systems::CLIENT;
use crate::who::Who;

/// Name of this role.
pub(crate) const ROLE: &str = "bench-linkerd";
/// Where policies and destinations are asked for.
pub(super) const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8086);

/// Where the certificate is asked for. It is there once everything else is.
pub(super) fn socket() -> PathBuf {
    Path::new(files::STATE_DIR).join("spiffe.sock")
}

/// Starts it; it ends with this process. Comes back when it answers.
pub(super) fn start() -> anyhow::Result<()> {
    // What one before it has left would be taken for its own.
    if socket().exists() {
        std::fs::remove_file(socket())?;
    }
    let mut stand_in = Command::new("/proc/self/exe")
        .arg0("tulle")
        .arg(ROLE)
        .spawn()
        .context("there is no stand-in")?;
    starts::wait(|| socket().exists() || stand_in.try_wait().is_ok_and(|ended| ended.is_some()))?;
    ensure!(socket().exists(), "the stand-in ended");
    Ok(())
}

/// Runs the role.
pub(crate) fn run() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, serve())
}

async fn serve() -> anyhow::Result<()> {
    let who = Who::read(Env::process())?;
    // The probe needs one of the others' CA.
    let _identity = who.identity().await?;
    let stand_in = Rc::new(StandIn { who });
    let control = TcpListener::bind(SocketAddr::from(ADDRESS)).await?;
    let readiness = TcpListener::bind((Ipv4Addr::UNSPECIFIED, ports::READINESS)).await?;
    // Bound under another name, so that whoever sees it can connect.
    let new = socket().with_extension("new");
    let workload = UnixListener::bind(&new)?;
    std::fs::rename(new, socket())?;
    loop {
        tokio::select! {
            accepted = control.accept() => stand_in.clone().answer(accepted?.0),
            accepted = workload.accept() => stand_in.clone().answer(accepted?.0),
            accepted = readiness.accept() => {
                let service = service_fn(|_| async { Ok::<_, Infallible>(ready().await) });
                let served = http1::Builder::new().serve_connection(TokioIo::new(accepted?.0), service);
                spawn_local(async { drop(served.await) });
            }
        }
    }
}

/// What the proxy says of itself at another place than where the kubelet asks.
async fn ready() -> Response<Empty<Bytes>> {
    let ask = async {
        let mut stream = TcpStream::connect(local(ports::ADMIN)).await?;
        stream
            .write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with("HTTP/1.1 200 "))
    };
    let mut response = Response::new(Empty::new());
    if !ask.await.unwrap_or(false) {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

struct StandIn {
    who: Who,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl StandIn {
    fn answer(self: Rc<Self>, io: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let service = service_fn(move |request| {
            let stand_in = self.clone();
            async move { Ok::<_, Infallible>(stand_in.respond(request).await) }
        });
        let served = http2::Builder::new(LocalExecutor).serve_connection(TokioIo::new(io), service);
        spawn_local(async { drop(served.await) });
    }

    async fn respond(&self, request: Request<Incoming>) -> Answer {
        let method = request.uri().path().to_owned();
        match self.message(&method, request.into_body()).await {
            Ok(message) => {
                let first = stream::iter([Ok(Frame::data(framed(&message)))]);
                grpc(
                    StreamBody::new(first.chain(stream::pending())).boxed_unsync(),
                    None,
                )
            }
            Err(error) => {
                eprintln!("{method}: {error:#}");
                // Not found: nothing is known of what is not of this benchmark.
                grpc(Empty::new().boxed_unsync(), Some("5"))
            }
        }
    }

    /// The only message of an answer.
    async fn message(&self, method: &str, body: Incoming) -> anyhow::Result<Vec<u8>> {
        let body = body.collect().await?.to_bytes();
        let asked = body.get(5..).context("no message")?;
        Ok(match method {
            "/SpiffeWorkloadAPI/FetchX509SVID" => self.certificate()?.encode_to_vec(),
            "/io.linkerd.proxy.inbound.InboundServerPolicies/WatchPort" => {
                let port = inbound::PortSpec::decode(asked)?.port.try_into()?;
                answers::inbound(port, &self.who.id(CLIENT)?).encode_to_vec()
            }
            "/io.linkerd.proxy.outbound.OutboundPolicies/Watch" => {
                answers::outbound(target(TrafficSpec::decode(asked)?)?).encode_to_vec()
            }
            "/io.linkerd.proxy.destination.Destination/GetProfile" => {
                let path = destination::GetDestination::decode(asked)?.path;
                answers::profile(port(&path)?).encode_to_vec()
            }
            "/io.linkerd.proxy.destination.Destination/Get" => {
                let path = destination::GetDestination::decode(asked)?.path;
                let server: Ipv4Addr = std::fs::read_to_string(place(SERVER))?.parse()?;
                let server = SocketAddr::from((server, port(&path)?));
                answers::endpoints(server, &self.who.id(PEER)?).encode_to_vec()
            }
            _ => bail!("an unknown method"),
        })
    }

    fn certificate(&self) -> anyhow::Result<X509SvidResponse> {
        let id = self.who.id(&self.who.account)?;
        let issued = authority::issue(&id)?;
        Ok(X509SvidResponse {
            svids: vec![X509Svid {
                spiffe_id: id.to_string(),
                chain: issued.leaf,
                key: issued.pkcs8,
                bundle: authority::root()?.to_vec(),
            }],
        })
    }
}

/// The port that traffic is for, if it is one of the server's.
fn target(spec: TrafficSpec) -> anyhow::Result<u16> {
    match spec.target {
        Some(outbound::traffic_spec::Target::Addr(address)) => Ok(address.port.try_into()?),
        Some(outbound::traffic_spec::Target::Authority(name)) => port(&name),
        None => bail!("no target"),
    }
}

fn port(path: &str) -> anyhow::Result<u16> {
    let (_, port) = path
        .rsplit_once(':')
        .with_context(|| format!("no port in {path}"))?;
    Ok(port.parse()?)
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

fn grpc(body: UnsyncBoxBody<Bytes, Infallible>, status: Option<&'static str>) -> Answer {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        http::HeaderValue::from_static("application/grpc"),
    );
    if let Some(status) = status {
        headers.insert("grpc-status", http::HeaderValue::from_static(status));
    }
    response
}

/// `X509SVIDResponse` of SPIFFE's Workload API, what is used of it.
#[derive(Clone, PartialEq, Message)]
struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<X509Svid>,
}

/// `X509SVID`.
#[derive(Clone, PartialEq, Message)]
struct X509Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    chain: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}
