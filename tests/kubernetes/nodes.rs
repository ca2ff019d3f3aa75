//! Nodes, as the API server sees them.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_tests::Kubernetes;

tulle_tests::cases! { in Kubernetes:
    two_nodes_are_ready_with_addresses_of_both_families;
}

async fn two_nodes_are_ready_with_addresses_of_both_families(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let said = kubernetes.cluster.ask(["get", "nodes", "-o", "json"], "")?;
    let list: Value = serde_json::from_str(&said)?;
    let nodes = list["items"].as_array().context("a list")?;
    ensure!(nodes.len() == 2, "{said}");
    for (number, node) in nodes.iter().enumerate() {
        let status = &node["status"];
        let named = |list: &str, kind: &str, value: &str| {
            let items = status[list].as_array().into_iter().flatten();
            items
                .filter(|it| it["type"] == kind)
                .filter_map(|it| it[value].as_str())
                .collect::<Vec<_>>()
        };
        ensure!(
            node["metadata"]["name"] == format!("node{number}"),
            "{node}"
        );
        ensure!(named("conditions", "Ready", "status") == ["True"], "{node}");
        let host = 10 + number;
        let expected = [format!("10.90.0.{host}"), format!("fd90::{host:x}")];
        ensure!(
            named("addresses", "InternalIP", "address") == expected,
            "{node}"
        );
        let version = status["nodeInfo"]["kubeletVersion"].as_str();
        ensure!(version.is_some_and(|it| it.starts_with("v1.")), "{node}");
    }
    Ok(())
}
