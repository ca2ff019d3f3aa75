//! The control plane as the mesh's own clients use it.

use std::path::PathBuf;
use std::time::Duration;

use tulle_identity::ca_client::{self, CaClientConfig};
use tulle_identity::{Identity, SpiffeId, TrustBundle, control_channel};
use tulle_runtime::names::CONTROL_DNS_NAME;
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::ResourceType;

use super::harness::*;

const IP: [u8; 4] = [10, 0, 0, 1];

/// Starts the CA client of pod `shop/web-1`.
async fn identity(plane: &Plane, tasks: &Tasks) -> Identity {
    let token_file: PathBuf = plane.dir().join("token");
    std::fs::write(
        &token_file,
        plane.tokens.token("shop", "web", "web-1", "u1"),
    )
    .expect("writable");
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").expect("an id");
    let config = CaClientConfig {
        token_file,
        bundle_file: plane.dir().join("bundle/root.pem"),
        state_dir: None,
        ..CaClientConfig::new(plane.control.xds_address().to_string(), id)
    };
    ca_client::start(config, ca_client::Metrics::default(), tasks)
        .await
        .expect("no state directory")
}

#[tokio::test]
async fn a_sidecars_client_gets_its_identity_and_its_configuration() {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    let tasks = Tasks::new();
    let identity = identity(&plane, &tasks).await;
    let address = plane.control.xds_address().to_string();
    let channel = control_channel(&address, CONTROL_DNS_NAME, identity, None).expect("an address");
    let mut proxy = Proxy::open(channel, Some(node(&node_id("shop", "web-1", IP))))
        .await
        .expect("let in");
    proxy.subscribe(ResourceType::Listener, &["inbound"]).await;
    assert_eq!(
        proxy.take().await,
        ("LDS", vec!["inbound".to_owned()], vec![])
    );
    tasks.cancel();
}

#[tokio::test]
async fn a_sidecars_client_follows_a_root_rotation() {
    let quick = |args: &mut crate::app::Args| {
        args.leaf_ttl = Duration::from_secs(4);
        args.root_propagation = Duration::from_millis(1500);
    };
    let mut plane = Plane::start_with(limits(), quick).await;
    plane.pod("shop", "web-1", "web", IP);
    let tasks = Tasks::new();
    let identity = identity(&plane, &tasks).await;
    let before = identity.current().bundle().roots()[0].clone();
    plane.admin_post("/ca/rotate-root").await;
    let mut changed = identity.changed();
    // Until a certificate of the new root is in use, with the old one still trusted.
    let followed = async {
        loop {
            let current = identity.current();
            current.check().expect("at every moment it holds");
            if let [old, new] = current.bundle().roots() {
                assert_eq!(*old, before);
                let alone = TrustBundle::new([new.clone()]).expect("a root");
                if Identity::new(current.svid().clone(), alone)
                    .current()
                    .check()
                    .is_ok()
                {
                    return;
                }
            }
            changed.changed().await.expect("the client lives");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), followed)
        .await
        .expect("it follows");
    tasks.cancel();
}
