//! Clusters beside each other, on the same machine with the same names and addresses.

use anyhow::ensure;
use tulle_cluster::Cluster;
use tulle_tests::Kubernetes;
use tulle_tests::kubernetes::Namespace;

tulle_tests::cases! { in Kubernetes:
    another_cluster_comes_and_goes_unnoticed;
}

/// Both clusters have this image.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: same }
spec:
  terminationGracePeriodSeconds: 1
  nodeName: node0
  containers: [{ name: same, image: "tulle.test/pause:1" }]
"#;

async fn another_cluster_comes_and_goes_unnoticed(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let here = kubernetes.apply("same", POD).await?;
    let uid = here.get("pods")?[0]["metadata"]["uid"].clone();
    let other = Cluster::start(1)?;
    ensure!(other.folder() != kubernetes.cluster.folder());
    let nodes = other.ask(["get", "nodes", "-o", "name"], "")?;
    ensure!(nodes == "node/node0\n", "{nodes}");
    {
        let there = Namespace::apply(&other, "same", "", POD).await?;
        ensure!(
            there.get("pods")?[0]["metadata"]["uid"] != uid,
            "one pod for both"
        );
    }
    let folder = other.folder().to_owned();
    drop(other);
    ensure!(!folder.exists(), "{} is left", folder.display());
    let pods = here.get("pods")?;
    let status = &pods[0]["status"]["containerStatuses"][0];
    ensure!(pods[0]["metadata"]["uid"] == uid, "{pods:?}");
    ensure!(
        status["ready"] == true && status["restartCount"] == 0,
        "{status}"
    );
    for node in kubernetes.cluster.nodes() {
        let condition = "--for=condition=Ready";
        let node = format!("node/{}", node.name());
        kubernetes
            .cluster
            .ask(["wait", condition, &node, "--timeout=0"], "")?;
    }
    Ok(())
}
