//! The door of the CA: who may ask now, and how long a request may take, its body included.
//!
//! It stands before anything of a message is read. A client is an address, with the identity that its certificate proves if it
//! shows one: those without a certificate share what their address (of IPv6 its /64) may ask for.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tulle_identity::SpiffeId;
use tulle_runtime::gate::Gate;

use super::Metrics;
use super::failure::Failure;
use crate::discovery::Peer;
use crate::limit::{Kept, Pace, Reached, network};

/// How much a client may ask of the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Requests {
    /// In a second, on average.
    pub(crate) a_second: u32,
    /// At once.
    pub(crate) at_once: u32,
    /// How long one may take.
    pub(crate) deadline: Duration,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            a_second: 16,
            at_once: 256,
            deadline: Duration::from_secs(10),
        }
    }
}

/// Those who ask.
#[derive(Debug)]
pub(super) struct Clients {
    requests: Requests,
    all: Kept<(IpAddr, Option<SpiffeId>), Client>,
    /// Lines about what anybody asked for in vain.
    refusals_told: Gate,
    /// Lines about what anybody got.
    issued_told: Gate,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Client {
    pace: Pace,
    /// Lines about what it asked for in vain.
    refusals_told: Gate,
    /// Lines about what it got.
    issued_told: Gate,
}

impl Clients {
    pub(super) fn new(requests: Requests) -> Self {
        Self {
            requests,
            all: Kept::default(),
            refusals_told: Gate::wide(),
            issued_told: Gate::wide(),
        }
    }

    /// Whether there may be a line about a request in vain; if so, how many were left out.
    pub(super) fn tells_refusal(&self, client: &Client) -> Option<u64> {
        client.refusals_told.pass_within(&self.refusals_told)
    }

    /// The same about one that was granted.
    pub(super) fn tells_issued(&self, client: &Client) -> Option<u64> {
        client.issued_told.pass_within(&self.issued_told)
    }

    pub(super) fn of(&self, peer: &Peer) -> Arc<Client> {
        let address = peer.address.ip();
        let address = match peer.id {
            Some(_) => address.to_canonical(),
            None => network(address),
        };
        let who = (address, peer.id.clone());
        let Requests {
            a_second, at_once, ..
        } = self.requests;
        let make = || Client {
            pace: Pace::new(a_second, at_once),
            refusals_told: Gate::default(),
            issued_told: Gate::default(),
        };
        self.all.of(&who, make, |client| !client.pace.is_even())
    }
}

/// Whether the service has heard of a request: of what cannot be read it does not.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicBool>);

impl Heard {
    /// It has.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The door before a service whose connections carry a [`Peer`].
#[derive(Clone, Debug)]
pub(crate) struct Door<S> {
    pub(super) service: S,
    pub(super) clients: Arc<Clients>,
    pub(super) metrics: Metrics,
    pub(super) reached: Reached,
}

impl<S> Door<S> {
    /// Lets one more request of a client in, or says why not.
    fn pass(&self, peer: &Peer, client: &Client) -> Result<(), Status> {
        self.metrics.requested();
        peer.within_its_share()?;
        let Some(until) = client.pace.waits_until() else {
            client.pace.spend(1);
            peer.spoke();
            return Ok(());
        };
        self.metrics.failed(Failure::Pace);
        self.reached.count("certificates");
        self.tell(peer, client, "it asks for more certificates than it may");
        let left = (until - Instant::now()).as_secs_f64();
        Err(Status::resource_exhausted(format!(
            "this client asks for more certificates than it may; ask again in {left:.1} s"
        )))
    }

    fn tell(&self, peer: &Peer, client: &Client, reason: &str) {
        if let Some(left_out) = self.clients.tells_refusal(client) {
            let id = peer.id.as_ref().map(ToString::to_string);
            tracing::warn!(client.addr = %peer.address, client.id = id, reason, left_out, "certificate request refused");
        }
    }

    /// What came could not be read, as its answer says.
    fn unread(&self, peer: &Peer, client: &Client, answer: &http::Response<Body>) {
        self.metrics.failed(Failure::BadMessage);
        let status = Status::from_header_map(answer.headers());
        let why = status.map(|status| format!("{:?}: {}", status.code(), status.message()));
        self.tell(peer, client, &why.unwrap_or_default());
    }

    fn late(&self, peer: &Peer, client: &Client) -> Status {
        self.metrics.failed(Failure::Deadline);
        self.reached.count("certificate_deadline");
        self.tell(peer, client, "it took too long, its message included");
        Status::deadline_exceeded("the request took too long")
    }
}

impl<S> Service<http::Request<Body>> for Door<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone,
    S: Send + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            let status = Status::internal("this connection has no peer");
            return ready(Ok(status.into_http())).boxed();
        };
        let client = self.clients.of(&peer);
        if let Err(status) = self.pass(&peer, &client) {
            return ready(Ok(status.into_http())).boxed();
        }
        let heard = Heard::default();
        request.extensions_mut().insert(heard.clone());
        let answer = self.service.call(request);
        let (deadline, door) = (self.clients.requests.deadline, self.clone());
        async move {
            let Ok(Ok(answer)) = tokio::time::timeout(deadline, answer).await else {
                return Ok(door.late(&peer, &client).into_http());
            };
            if !heard.0.load(Ordering::Relaxed) {
                door.unread(&peer, &client, &answer);
            }
            Ok(answer)
        }
        .boxed()
    }
}

impl<S: NamedService> NamedService for Door<S> {
    const NAME: &'static str = S::NAME;
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;

    fn peer(address: &str, id: Option<&str>) -> Peer {
        Peer {
            address: (address.parse::<IpAddr>().expect("an address"), 4711).into(),
            id: id.map(|id| SpiffeId::parse(id).expect("an id")),
            over: None,
            stranger: Weak::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_one_network_are_one_client_unless_they_show_who_they_are() {
        let clients = Clients::new(Requests::default());
        let web = Some("spiffe://cluster.local/ns/shop/sa/web");
        for (one, other, id, same) in [
            ("2001:db8::1", "2001:db8::2", None, true),
            ("2001:db8::1", "2001:db8:0:1::1", None, false),
            ("2001:db8::1", "2001:db8::2", web, false),
            ("10.0.0.1", "10.0.0.2", None, false),
        ] {
            let (first, second) = (clients.of(&peer(one, id)), clients.of(&peer(other, id)));
            assert_eq!(Arc::ptr_eq(&first, &second), same, "{one} {other} {id:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_clients_together_write_few_lines_and_the_last_says_how_many_are_missing() {
        let clients = Clients::new(Requests::default());
        let mut lines = Vec::new();
        for i in 0..1000_u32 {
            let address = std::net::Ipv4Addr::from(i).to_string();
            let client = clients.of(&peer(&address, None));
            lines.extend((0..10).filter_map(|_| clients.tells_refusal(&client)));
        }
        assert!((40..100).contains(&lines.len()), "{} lines", lines.len());
        tokio::time::advance(Duration::from_secs(60)).await;
        let client = clients.of(&peer("10.0.0.1", None));
        lines.extend(clients.tells_refusal(&client));
        // Five of each client's ten went so far; it says itself what it has left out when it speaks again.
        let told: u64 = lines.iter().sum::<u64>() + lines.len() as u64;
        assert_eq!(told, 5 * 1000 + 1);
        assert_eq!(clients.tells_issued(&client), Some(0), "another kind");
    }
}
