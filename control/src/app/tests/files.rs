//! The whole control plane over a directory of manifests, as `tulle control` runs it.

use std::path::Path;

use tulle_xds_proto::ResourceType;

use super::harness::*;
use crate::app::Control;

pub(super) const CLUSTER: &str = "outbound|80||api.shop.svc.cluster.local";

pub(super) fn put(dir: &Path, name: &str, text: &str) {
    let temporary = dir.join(format!(".{name}"));
    std::fs::write(&temporary, text).expect("writable");
    std::fs::rename(temporary, dir.join(name)).expect("the same directory");
}

pub(super) fn slice(address: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: api-1, namespace: shop, labels: {{ kubernetes.io/service-name: api }} }}
addressType: IPv4
ports: [{{ name: http, port: 8080, protocol: TCP }}]
endpoints: [{{ addresses: [{address}], conditions: {{ ready: true }} }}]
"
    )
}

pub(super) const SHOP: &str = "apiVersion: v1
kind: Pod
metadata: { name: web-1, namespace: shop }
spec: { serviceAccountName: web, containers: [{ name: app, image: app }] }
status: { podIP: 10.0.0.1, podIPs: [{ ip: 10.0.0.1 }] }
---
apiVersion: v1
kind: Service
metadata: { name: api, namespace: shop }
spec: { clusterIP: 10.1.0.1, clusterIPs: [10.1.0.1], ports: [{ name: http, port: 80 }] }
";

#[tokio::test]
async fn a_changed_file_reaches_its_subscribers_and_a_broken_one_is_shown() {
    // Another control plane lends its directories and clients; both have the same root.
    let lender = Plane::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    put(dir.path(), "shop.yaml", SHOP);
    put(dir.path(), "slice.yaml", &slice("10.0.1.1"));
    let mut args = lender.args();
    args.source = vec![dir.path().to_owned()];
    let control = Control::start(args).await.expect("it starts");
    let channel = lender
        .channel_to(control.xds_address(), Some(lender.svid("shop", "web")))
        .await;
    let node = node(&node_id("shop", "web-1", [10, 0, 0, 1]));
    let mut proxy = Proxy::open(channel.expect("it listens"), Some(node))
        .await
        .expect("let in");
    proxy.subscribe(ResourceType::Endpoints, &[CLUSTER]).await;
    assert_eq!(
        proxy.take().await,
        ("EDS", vec![CLUSTER.to_owned()], vec![])
    );
    put(dir.path(), "slice.yaml", &slice("10.0.1.2"));
    assert_eq!(
        proxy.take().await,
        ("EDS", vec![CLUSTER.to_owned()], vec![])
    );
    put(
        dir.path(),
        "slice.yaml",
        "kind: EndpointSlice\nendpoints: 7\n",
    );
    loop {
        let shown = get(control.admin_address(), "/debug/source").await;
        if shown.contains("slice.yaml") {
            break;
        }
        tokio::task::yield_now().await;
    }
    proxy.expect_silence().await;
    let metrics = get(control.admin_address(), "/metrics").await;
    assert!(metrics.contains("tulle_source_problems 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_missing_source_is_named_with_the_way_out() {
    let lender = Plane::start().await;
    let mut args = lender.args();
    args.source = vec!["/nowhere/at/all".into()];
    let error = format!(
        "{:#}",
        Control::start(args).await.expect_err("no such directory")
    );
    assert!(
        error.contains("/nowhere/at/all") && error.contains("--source"),
        "{error}"
    );
}
