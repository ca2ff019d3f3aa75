//! A delta ADS server on bare HTTP/2 over mutual TLS, which a test may make say anything at all: it knows frames, and
//! nothing of what is right. Each stream of a client comes to the test as a [`Stream`].

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tulle_identity::{ClientAuth, Identity};
use tulle_runtime::tasks::Tasks;
use tulle_sandbox::GATEWAY_V4;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use tulle_xds_proto::prost::Message as _;

use crate::certificate::svid;

/// Longer than a client waits before it comes back.
const PATIENCE: Duration = Duration::from_secs(10);

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manners {
    /// Streams come to the test.
    Good,
    /// Nothing is said after TCP's handshake, not even TLS.
    Mute,
    /// Streams are accepted, and then nothing.
    Silent,
    /// Streams get their headers and are reset.
    Reset,
    /// Streams get their headers, and the connection a GOAWAY.
    Leave,
    /// Streams get what is no gRPC.
    Nonsense,
}

/// The server.
pub(super) struct Hostile {
    address: String,
    streams: mpsc::UnboundedReceiver<Stream>,
    shared: Arc<Shared>,
    _tasks: Tasks,
}

struct Shared {
    manners: Mutex<Manners>,
    identity: Identity,
    connections: AtomicUsize,
    opened: AtomicUsize,
    forsaken: Notify,
    streams: mpsc::UnboundedSender<Stream>,
}

impl Hostile {
    /// Who it proves to be.
    pub(super) const ID: &str = "spiffe://cluster.local/ns/infra/sa/hostile";

    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((GATEWAY_V4, 0)).await?;
        let address = listener.local_addr()?.to_string();
        let (svid, bundle) = svid(Self::ID)?;
        let (sender, streams) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            manners: Mutex::new(Manners::Good),
            identity: Identity::new(svid, bundle),
            connections: AtomicUsize::new(0),
            opened: AtomicUsize::new(0),
            forsaken: Notify::new(),
            streams: sender,
        });
        let tasks = Tasks::new();
        let accepting = shared.clone();
        let running = tasks.cancelled();
        tasks.spawn("hostile", async move {
            let mut connections = tokio::task::JoinSet::new();
            let serving = async {
                while let Ok((tcp, _)) = listener.accept().await {
                    accepting.connections.fetch_add(1, Ordering::Relaxed);
                    let shared = accepting.clone();
                    connections.spawn(async move {
                        tokio::select! {
                            () = serve(tcp, shared.clone()) => {}
                            () = shared.forsaken.notified() => {}
                        }
                    });
                }
            };
            tokio::select! {
                () = serving => {}
                () = running => {}
            }
        });
        Ok(Self {
            address,
            streams,
            shared,
            _tasks: tasks,
        })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Changes how the connections and streams that come next are treated.
    pub(super) fn behave(&self, manners: Manners) {
        *self.shared.manners.lock() = manners;
    }

    /// Closes all connections.
    pub(super) fn forsake(&self) {
        self.shared.forsaken.notify_waiters();
    }

    /// Connections and streams so far.
    pub(super) fn counts(&self) -> [usize; 2] {
        [&self.shared.connections, &self.shared.opened].map(|count| count.load(Ordering::Relaxed))
    }

    /// The newest stream of the client; waits for the next if there is none.
    pub(super) async fn stream(&mut self) -> anyhow::Result<Stream> {
        let mut stream = timeout(PATIENCE, self.streams.recv())
            .await
            .context("no client comes")?
            .context("the server has ended")?;
        while let Ok(newer) = self.streams.try_recv() {
            stream = newer;
        }
        Ok(stream)
    }
}

async fn serve(tcp: TcpStream, shared: Arc<Shared>) {
    if *shared.manners.lock() == Manners::Mute {
        // The client hangs up.
        let _ = tcp.readable().await;
        tokio::time::sleep(PATIENCE).await;
        return;
    }
    let tls = shared
        .identity
        .load()
        .server(ClientAuth::Required, &[b"h2"]);
    let Ok(tls) = TlsAcceptor::from(tls).accept(tcp).await else {
        return;
    };
    let Ok(mut connection) = h2::server::handshake(tls).await else {
        return;
    };
    let mut held = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        shared.opened.fetch_add(1, Ordering::Relaxed);
        let manners = *shared.manners.lock();
        if manners == Manners::Silent {
            held.push((request, respond));
            continue;
        }
        let Ok(mut send) = open(&mut respond) else {
            return;
        };
        match manners {
            Manners::Good | Manners::Mute | Manners::Silent => {
                let stream = Stream {
                    received: request.into_body(),
                    buffer: BytesMut::new(),
                    send,
                    nonces: 0,
                    asked: HashSet::new(),
                };
                drop(shared.streams.send(stream));
            }
            Manners::Reset => send.send_reset(Reason::INTERNAL_ERROR),
            Manners::Leave => connection.graceful_shutdown(),
            Manners::Nonsense => drop(send.send_data(Bytes::from_static(b"\x07nonsense"), true)),
        }
    }
}

/// Sends the head of the answer.
fn open(respond: &mut SendResponse<Bytes>) -> Result<SendStream<Bytes>, h2::Error> {
    let head = http::Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .expect("a head");
    respond.send_response(head, false)
}

/// One stream of a client.
pub(super) struct Stream {
    received: RecvStream,
    buffer: BytesMut,
    send: SendStream<Bytes>,
    nonces: u32,
    /// Types that the client has asked for.
    asked: HashSet<String>,
}

impl Stream {
    /// Waits until the client has asked for a type.
    pub(super) async fn asked(&mut self, kind: ResourceType) -> anyhow::Result<()> {
        while !self.asked.contains(kind.type_url()) {
            self.request().await?;
        }
        Ok(())
    }

    /// What the client says next.
    pub(super) async fn request(&mut self) -> anyhow::Result<DeltaDiscoveryRequest> {
        loop {
            if let Some((_, message)) =
                self.buffer.split_first_chunk::<5>().filter(|(head, rest)| {
                    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                    rest.len() >= length
                })
            {
                let length = u32::from_be_bytes(self.buffer[1..5].try_into()?) as usize;
                let request = DeltaDiscoveryRequest::decode(&message[..length])?;
                self.buffer.advance(5 + length);
                self.asked.insert(request.type_url.clone());
                return Ok(request);
            }
            let data = timeout(PATIENCE, self.received.data()).await;
            let data = data.context("the client says nothing")?;
            let data = data.context("the client has ended the stream")??;
            self.received.flow_control().release_capacity(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
    }

    /// The answer to the response of a nonce: the reason of a NACK, or nothing.
    pub(super) async fn answer(&mut self, nonce: &str) -> anyhow::Result<Option<String>> {
        loop {
            let request = self.request().await?;
            if request.response_nonce == nonce {
                return Ok(request.error_detail.map(|status| status.message));
            }
        }
    }

    /// Sends a response with the next nonce, which is returned.
    pub(super) async fn send(
        &mut self,
        mut response: DeltaDiscoveryResponse,
    ) -> anyhow::Result<String> {
        self.nonces += 1;
        response.nonce = format!("n{}", self.nonces);
        self.send_as_is(&response).await?;
        Ok(response.nonce)
    }

    /// Sends a response and insists on an ACK.
    pub(super) async fn accepted(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> anyhow::Result<()> {
        let nonce = self.send(response).await?;
        let refused = self.answer(&nonce).await?;
        ensure!(refused.is_none(), "{refused:?}");
        Ok(())
    }

    /// Sends a response and insists on a NACK; returns its reason.
    pub(super) async fn refused(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> anyhow::Result<String> {
        let nonce = self.send(response).await?;
        self.answer(&nonce).await?.context("it was accepted")
    }

    pub(super) async fn send_as_is(
        &mut self,
        response: &DeltaDiscoveryResponse,
    ) -> anyhow::Result<()> {
        self.send_message(&response.encode_to_vec()).await
    }

    /// Sends any bytes as a message of gRPC.
    pub(super) async fn send_message(&mut self, message: &[u8]) -> anyhow::Result<()> {
        let mut framed = vec![0];
        framed.extend(u32::try_from(message.len())?.to_be_bytes());
        framed.extend(message);
        self.send_raw(framed.into()).await
    }

    /// Sends any bytes as data of HTTP/2, as fast as the client takes them.
    pub(super) async fn send_raw(&mut self, mut bytes: Bytes) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            self.send.reserve_capacity(bytes.len().min(64 * 1024));
            let capacity = timeout(
                PATIENCE,
                std::future::poll_fn(|context| self.send.poll_capacity(context)),
            );
            let Some(capacity) = capacity.await.context("the client takes nothing")? else {
                bail!("the stream is closed");
            };
            let part = bytes.split_to(capacity?.min(bytes.len()));
            self.send.send_data(part, false)?;
        }
        Ok(())
    }

    /// Ends the stream with a status of gRPC.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("14"));
        Ok(self.send.send_trailers(trailers)?)
    }
}
