//! Pods that are told to end: by a rollout, by scaling, one after the other.

use anyhow::ensure;
use tulle_tests::Kubernetes;

use super::shop::Shop;

tulle_tests::cases! { in Kubernetes:
    rolling_restarts_of_both_ends_lose_nothing ["alone"];
    scaling_up_and_down_loses_nothing ["alone"];
    row_49_servers_ended_again_and_again_lose_nothing ["alone", "soak"];
}

async fn rolling_restarts_of_both_ends_lose_nothing(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let mut shop = Shop::open(&kubernetes.cluster, "rolled").await?;
    for deployment in ["web", "client", "web"] {
        let restart = ["rollout", "restart", "deployment", deployment];
        shop.namespace.ask(restart, "")?;
        shop.settled(deployment).await?;
    }
    let namespace = &shop.namespace;
    shop.load.steady(namespace, 4).await?;
    let (http, grpc) = shop.close().await?;
    http.lost_nothing()?;
    grpc.lost_nothing()?;
    ensure!(http.ended == 2 && grpc.ended == 2, "{http}; {grpc}");
    for total in [&http, &grpc] {
        ensure!(
            total.pods.len() == 9,
            "not every server was of use: {:?}",
            total.pods
        );
    }
    Ok(())
}

async fn scaling_up_and_down_loses_nothing(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let mut shop = Shop::open(&kubernetes.cluster, "scaled").await?;
    for replicas in ["2", "5", "2", "5", "2"] {
        let replicas = format!("--replicas={replicas}");
        shop.namespace
            .ask(["scale", "deployment", "web", &replicas], "")?;
        shop.settled("web").await?;
    }
    let (http, grpc) = shop.close().await?;
    http.lost_nothing()?;
    grpc.lost_nothing()
}

async fn row_49_servers_ended_again_and_again_lose_nothing(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let mut shop = Shop::open(&kubernetes.cluster, "ended").await?;
    // One after the other.
    for number in 0..50 {
        let servers = shop.servers()?;
        let server = &servers[number % servers.len()];
        shop.namespace.ask(["delete", "pod", server], "")?;
        shop.settled("web").await?;
    }
    let (http, grpc) = shop.close().await?;
    http.lost_nothing()?;
    grpc.lost_nothing()
}
