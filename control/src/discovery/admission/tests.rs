//! What a stream costs that is let in, that is denied, and that is gone before that is known.

use std::sync::Weak;
use std::time::Duration;

use futures_util::{StreamExt as _, poll, stream};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::*;
use crate::app::tests::harness::pod;
use crate::discovery::intake::Held;
use crate::discovery::variant::Delta;
use crate::discovery::{Limits, session};
use crate::limit::Reached;
use crate::store::{Event, MeshSettings, Object, Store};

/// Two denied streams at once, and one in a minute or so; and whatever pod is not there is waited for longer than that.
fn discovery() -> Discovery {
    let (store, mut writer) = Store::new(MeshSettings::default());
    let own = pod("shop", "web-1", "web", [10, 0, 0, 1]);
    writer.apply(vec![Event::Apply(Object::Pod(own))]);
    writer.set_synced();
    let mut registry = Registry::default();
    let reached = Reached::register(&mut registry);
    let limits = Limits {
        names_a_second: 1,
        names_at_once: 100,
        pod_wait: Duration::from_secs(3600),
        ..Limits::default()
    };
    let (tasks, ending) = (Tasks::new(), CancellationToken::new());
    Discovery::new(&store, limits, &mut registry, reached, tasks, ending).0
}

fn web() -> Peer {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").expect("an id");
    Peer {
        address: ([10, 0, 0, 1], 4711).into(),
        id: Some(id),
        over: None,
        stranger: Weak::new(),
    }
}

fn node(pod: &str) -> Node {
    Node {
        id: format!("sidecar~10.0.0.1~{pod}.shop~shop.svc.cluster.local"),
        ..Node::default()
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_wait_until_it_is_denied_has_been_denied_all_the_same() {
    let (discovery, peer) = (discovery(), web());
    // Whoever is let in has been denied nothing.
    for _ in 0..10 {
        let admitted = discovery.admit(&peer, Some(&node("web-1"))).await;
        admitted.expect("its own pod");
    }
    let nobody = node("web-9");
    for _ in 0..3 {
        let admitted = std::pin::pin!(discovery.admit(&peer, Some(&nobody)));
        assert!(poll!(admitted).is_pending());
    }
    let status = discovery.admit(&peer, Some(&nobody)).await;
    let status = status.expect_err("too many");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_its_client_has_left_waits_for_no_pod() {
    let (responses, answered) = mpsc::channel(1);
    let request = DeltaDiscoveryRequest {
        node: Some(node("web-9")),
        ..DeltaDiscoveryRequest::default()
    };
    let requests = stream::iter([Ok(request)]).chain(stream::pending());
    let served = session::serve::<Delta>(discovery(), web(), requests, Held::default(), responses);
    let mut served = std::pin::pin!(served);
    assert!(poll!(&mut served).is_pending());
    let began = Instant::now();
    drop(answered);
    served.await;
    assert_eq!(began.elapsed(), Duration::ZERO);
}
