//! Which connections may outlive a peer that does not read.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tulle_identity::SpiffeId;

use super::*;
use crate::config::Endpoint;
use crate::config::cluster::{EndpointState, Health, PeerIdentity};
use crate::upstream::Pools;

/// Who an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Sidecar,
    /// An app that ends mTLS itself.
    Foreign,
    Plain,
    OwnApp,
}
use Peer::{Foreign, OwnApp, Plain, Sidecar};

fn target(address: SocketAddr, who: Peer) -> Target {
    let peer = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/reviews").unwrap();
    let endpoint = Endpoint {
        address,
        weight: 1,
        health: Health::Healthy,
        mtls: matches!(who, Sidecar | Foreign).then(|| Arc::new(PeerIdentity(Box::new([peer])))),
        foreign: who == Foreign,
        workload: Arc::default(),
        state: Arc::new(EndpointState::default()),
    };
    let cluster = Pools::default().app().clone();
    Target {
        reach: if who == OwnApp {
            Reach::App
        } else {
            Reach::Out
        },
        ..Target::endpoint(cluster, Arc::new(endpoint))
    }
}

#[tokio::test]
async fn only_who_speaks_http2_must_not_pause_and_a_sidecar_least() {
    use HttpVersion::{Http1, Http2};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (brief, long) = PATIENCE;
    for (peer, version, breaks, probed) in [
        (Sidecar, Http2, Some(brief), true),
        (Sidecar, Http1, None, true),
        (Foreign, Http2, Some(long), true),
        (Foreign, Http1, None, true),
        (Plain, Http2, Some(long), true),
        (Plain, Http1, None, true),
        (OwnApp, Http2, None, false),
        (OwnApp, Http1, None, false),
    ] {
        let tcp = TcpStream::connect(address).await.unwrap();
        expect_life(&tcp, &target(address, peer), version).unwrap();
        let socket = SockRef::from(&tcp);
        let timeout = socket.tcp_user_timeout().unwrap();
        assert_eq!(timeout, breaks, "{peer:?}");
        assert_eq!(socket.keepalive().unwrap(), probed, "{peer:?}");
        if probed {
            let time = socket.tcp_keepalive_time().unwrap();
            assert_eq!(time, KEEPALIVE.0, "{peer:?}");
        }
    }
}

#[test]
fn only_sidecars_are_sent_pings() {
    for peer in [Sidecar, Foreign, Plain, OwnApp] {
        let target = target(([10, 0, 0, 1], 80).into(), peer);
        assert_eq!(target.is_sidecar(), peer == Sidecar, "{peer:?}");
    }
}
