//! From one build of Tulle to the next and back, while an application is under load.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_cluster::Cluster;
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::kubernetes::{Namespace, Program};
use tulle_tests::{Kubernetes, eventually};

use super::shop::{SOON, Shop};

tulle_tests::cases! { in Kubernetes:
    row_51_builds_are_changed_and_mixed_both_ways_and_nothing_is_lost ["alone", "previous"];
}

/// The namespace of the application.
const NAMESPACE: &str = "upgraded";
/// Who has no sidecar.
const STRANGER: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: stranger }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: app, image: "tulle.test/tulle:1", args: [app, serve, --http, "8080"] }]
"#;

const STRICT: &str = r#"
apiVersion: tulle.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: all }
spec: { mtls: { mode: STRICT } }
"#;

/// The parts in turn, each step under load: control plane and injector, servers, clients, and control plane and injector back,
/// with sidecars that are newer than these. After each step, sidecars of either build follow what the control plane says.
async fn row_51_builds_are_changed_and_mixed_both_ways_and_nothing_is_lost(
    _: &Kubernetes,
) -> anyhow::Result<()> {
    let cluster = &Cluster::start(2)?;
    let (old, new) = (Program::previous()?, Program::new()?);
    install::load(&old, cluster)?;
    install::load(&new, cluster)?;
    install::apply(&old, cluster, &[]).await?;
    let stranger = Namespace::apply(cluster, "stranger", "", STRANGER).await?;
    let mut shop = Shop::open(cluster, NAMESPACE).await?;
    let sidecars = shop.sidecars()?;
    ensure!(
        sidecars == vec![old.image("tulle-proxy"); 4],
        "{sidecars:?}"
    );
    follows(cluster, &mut shop, &stranger, 4).await?;

    // Old sidecars, new parts.
    change(cluster, &new).await?;
    follows(cluster, &mut shop, &stranger, 5).await?;
    // A client of the old build with servers of both, and of the new one.
    restart(&mut shop, "web").await?;
    follows(cluster, &mut shop, &stranger, 4).await?;
    restart(&mut shop, "client").await?;
    let sidecars = shop.sidecars()?;
    ensure!(
        sidecars == vec![new.image("tulle-proxy"); 5],
        "{sidecars:?}"
    );

    // New sidecars, old parts, and one more change of both: a server of the old build for clients of the new one.
    change(cluster, &old).await?;
    follows(cluster, &mut shop, &stranger, 5).await?;
    change(cluster, &new).await?;
    follows(cluster, &mut shop, &stranger, 3).await?;
    let (http, grpc) = shop.close().await?;
    http.lost_nothing()?;
    grpc.lost_nothing()
}

/// Has another build instead, as a person would: with its own `tulle upgrade`.
async fn change(cluster: &Cluster, to: &Program) -> anyhow::Result<()> {
    eprintln!("changing to {}", to.image("tulle"));
    let images = to.image_values();
    let mut arguments = vec!["upgrade", "--yes"];
    for value in &images {
        arguments.extend(["--set", value]);
    }
    to.run(cluster, &arguments)?.ok()?;
    let image = to.image("tulle");
    eventually(SOON, async || {
        install::serves(cluster)?;
        let pods = ["get", "pods", "-n", SYSTEM, "-o", "json"];
        let pods: Value = serde_json::from_str(&cluster.ask(pods, "")?)?;
        for pod in pods["items"].as_array().context("a list")? {
            let found = &pod["spec"]["containers"][0]["image"];
            ensure!(*found == *image, "there is still a pod of {found}");
        }
        Ok(())
    })
    .await
}

async fn restart(shop: &mut Shop<'_>, deployment: &str) -> anyhow::Result<()> {
    let restart = ["rollout", "restart", "deployment", deployment];
    shop.namespace.ask(restart, "")?;
    shop.settled(deployment).await
}

/// Fails unless sidecars do what they are told now: endpoints that come and go are used, and a policy holds while it is there.
async fn follows(
    cluster: &Cluster,
    shop: &mut Shop<'_>,
    stranger: &Namespace<'_>,
    servers: usize,
) -> anyhow::Result<()> {
    let replicas = format!("--replicas={servers}");
    let scale = ["scale", "deployment", "web", &replicas];
    shop.namespace.ask(scale, "")?;
    shop.settled("web").await?;
    let mut names = shop.servers()?;
    names.sort();
    eventually(SOON, async || {
        let answered = answered(&shop.namespace)?;
        ensure!(answered == names, "{answered:?}, not {names:?}, are of use");
        Ok(())
    })
    .await?;
    let pods = shop.namespace.get("pods")?;
    let servers = |pod: &&Value| pod["metadata"]["labels"]["app"] == "web";
    let addresses = pods.iter().filter(servers);
    let addresses: Vec<_> = addresses
        .filter_map(|pod| pod["status"]["podIP"].as_str())
        .collect();
    let calls = |all: bool| {
        for address in &addresses {
            let url = format!("http://{address}:8080/");
            let call = ["/usr/local/bin/tulle", "app", "call", &url];
            let called = stranger.exec("stranger", &call, "")?;
            ensure!((called.status == 0) == all, "{address}: {called}");
        }
        Ok(())
    };
    eventually(SOON, async || calls(true)).await?;
    shop.namespace
        .ask(["apply", "--server-side", "-f", "-"], STRICT)?;
    eventually(SOON, async || calls(false))
        .await
        .context("STRICT")?;
    shop.namespace
        .ask(["delete", "peerauthentication", "all"], "")?;
    eventually(SOON, async || calls(true)).await?;
    let synced = async || {
        let status = Program::new()?.run(cluster, &["status", "-n", NAMESPACE])?;
        let table = status.ok()?;
        let rows = table.lines().filter(|line| line.contains(NAMESPACE));
        let rows: Vec<_> = rows.collect();
        let all = rows.iter().all(|row| row.contains(" SYNCED "));
        ensure!(all && rows.len() > addresses.len(), "{table}");
        Ok(())
    };
    eventually(SOON, synced).await
}

/// Who answers clients, by name, in order.
fn answered(namespace: &Namespace<'_>) -> anyhow::Result<Vec<String>> {
    let load = ["/usr/local/bin/tulle", "app", "load", "--url=http://web/"];
    let load = [&load[..], &["--rate=100", "--duration=1s"]].concat();
    let said = namespace.exec("deployment/client", &load, "")?.ok()?;
    let last = said.lines().last().context("it says something")?;
    let last: Value = serde_json::from_str(last)?;
    let pods = last["pods"].as_object().context("pods in its summary")?;
    Ok(pods.keys().cloned().collect())
}
