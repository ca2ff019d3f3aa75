//! Which connections may outlive a peer that does not read.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tulle_identity::SpiffeId;

use super::*;
use crate::config::Endpoint;
use crate::config::cluster::{EndpointState, Health, PeerIdentity};
use crate::upstream::Pools;

fn target(address: SocketAddr, reach: Reach, meshed: bool) -> Target {
    let peer = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/reviews").unwrap();
    let endpoint = Endpoint {
        address,
        weight: 1,
        health: Health::Healthy,
        mtls: meshed.then(|| Arc::new(PeerIdentity(Box::new([peer])))),
        foreign: false,
        workload: Arc::default(),
        state: Arc::new(EndpointState::default()),
    };
    let cluster = Pools::default().app().clone();
    Target {
        reach,
        ..Target::endpoint(cluster, Arc::new(endpoint))
    }
}

#[tokio::test]
async fn only_a_sidecar_that_speaks_http2_must_not_pause() {
    use HttpVersion::{Http1, Http2};
    use Reach::{App, Out};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for (peer, reach, meshed, version, breaks, probed) in [
        ("sidecar, HTTP/2", Out, true, Http2, true, true),
        ("sidecar, HTTP/1", Out, true, Http1, false, true),
        ("plain peer, HTTP/2", Out, false, Http2, false, true),
        ("plain peer, HTTP/1", Out, false, Http1, false, true),
        ("own app, HTTP/2", App, false, Http2, false, false),
        ("own app, HTTP/1", App, false, Http1, false, false),
    ] {
        let tcp = TcpStream::connect(address).await.unwrap();
        expect_life(&tcp, &target(address, reach, meshed), version).unwrap();
        let socket = SockRef::from(&tcp);
        let timeout = socket.tcp_user_timeout().unwrap();
        assert_eq!(timeout, breaks.then_some(USER_TIMEOUT), "{peer}");
        assert_eq!(socket.keepalive().unwrap(), probed, "{peer}");
        if probed {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE.0, "{peer}");
        }
    }
}
