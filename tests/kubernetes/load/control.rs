//! Parts of the mesh come and go; what runs already does not notice.

use anyhow::{Context as _, ensure};
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::{Kubernetes, eventually};

use super::shop::{SOON, Shop};

tulle_tests::cases! { in Kubernetes:
    a_rollout_of_the_control_plane_loses_nothing ["alone"];
    row_43_and_52_without_control_plane_and_injector_nothing_is_lost_and_only_meshed_pods_wait ["alone"];
}

/// The parts.
const PARTS: [&str; 2] = ["deployment/tulle-control", "deployment/tulle-injector"];

/// A pod of the mesh's namespaces and of others.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: another, labels: { app: another } }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: app, image: "tulle.test/pause:1" }]
"#;

async fn a_rollout_of_the_control_plane_loses_nothing(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let mut shop = Shop::open(&kubernetes.cluster, "plane-rolled").await?;
    let restart = ["rollout", "restart", "-n", SYSTEM];
    kubernetes
        .cluster
        .ask(restart.into_iter().chain(PARTS), "")?;
    // Pods are wanted while there are old parts and new ones.
    let scale = ["scale", "deployment", "web", "--replicas=5"];
    shop.namespace.ask(scale, "")?;
    shop.settled("web").await?;
    eventually(SOON, async || install::serves(&kubernetes.cluster)).await?;
    let restart = ["rollout", "restart", "deployment", "web"];
    shop.namespace.ask(restart, "")?;
    shop.settled("web").await?;
    let (http, grpc) = shop.close().await?;
    http.lost_nothing()?;
    grpc.lost_nothing()?;
    // New ones are told of: three, two more, and five instead.
    ensure!(
        http.pods.len() == 10,
        "not every server was of use: {:?}",
        http.pods
    );
    Ok(())
}

async fn row_43_and_52_without_control_plane_and_injector_nothing_is_lost_and_only_meshed_pods_wait(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let mut shop = Shop::open(&kubernetes.cluster, "plane-gone").await?;
    let outcome = without(kubernetes, &shop).await;
    // Others need it too, whatever has become of this.
    scale(kubernetes, 2)?;
    eventually(SOON, async || install::serves(&kubernetes.cluster)).await?;
    outcome?;
    // The longer it was in vain, the longer Kubernetes waits until it tries again, unless something changes.
    let again = ["annotate", "replicasets", "--all", "tulle.test/again=now"];
    shop.namespace.ask(again, "")?;
    shop.settled("web").await?;
    shop.namespace.ask(["apply", "-f", "-"], POD)?;
    let another = ["get", "pod", "another", "-o", "json"];
    let another = shop.namespace.ask(another, "")?;
    ensure!(another.contains("tulle-proxy"), "{another}");
    let (http, grpc) = shop.close().await?;
    http.lost_nothing()?;
    grpc.lost_nothing()?;
    ensure!(
        http.pods.len() == 4,
        "the new server was of no use: {:?}",
        http.pods
    );
    Ok(())
}

fn scale(kubernetes: &Kubernetes, replicas: usize) -> anyhow::Result<String> {
    let replicas = format!("--replicas={replicas}");
    let scale = ["scale", "-n", SYSTEM, &replicas];
    kubernetes.cluster.ask(scale.into_iter().chain(PARTS), "")
}

/// What there is while both parts are away.
async fn without(kubernetes: &Kubernetes, shop: &Shop<'_>) -> anyhow::Result<()> {
    let cluster = &kubernetes.cluster;
    scale(kubernetes, 0)?;
    eventually(SOON, async || {
        let pods = cluster.ask(["get", "pods", "-n", SYSTEM, "-o", "name"], "")?;
        ensure!(pods.is_empty(), "there are still {pods}");
        Ok(())
    })
    .await?;

    // As soon as the Service has no endpoints, the answer is prompt.
    let refused = shop.namespace.ask(["apply", "-f", "-"], POD);
    let refused = refused
        .err()
        .context("the pod was taken without a sidecar")?;
    let refused = format!("{refused:#}");
    eprintln!("refused: {refused}");
    for words in ["failed calling webhook", "tulle-injector.tulle-system.svc"] {
        ensure!(refused.contains(words), "{words} is not in {refused}");
    }
    let outside = kubernetes.apply("plane-outside", POD).await?;
    ensure!(outside.get("pods")?.len() == 1, "it is there");
    let system = ["-n", "kube-system"];
    let apply = ["apply", "-f", "-"];
    cluster.ask(system.into_iter().chain(apply), POD)?;
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod/another",
        "--timeout=60s",
    ];
    let ready = cluster.ask(system.into_iter().chain(ready), "");
    let delete = ["delete", "pod", "another", "--wait=false"];
    cluster.ask(system.into_iter().chain(delete), "")?;
    ready?;

    // Nobody tells clients of this. It comes last, because the longer Kubernetes has tried in vain to put another in its
    // place, the longer it waits.
    let servers = shop.servers()?;
    let ended = servers.first().context("there are servers")?;
    let delete = ["delete", "pod", ended];
    shop.namespace.ask(delete, "").map(drop)
}
