//! An edit that cannot be used: what was in force stays in force, also when every replica has restarted, until a better one comes.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_cluster::Cluster;
use tulle_tests::kubernetes::Namespace;
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::{Kubernetes, eventually};

use super::{APPLY, CONTROLLER, SOON, entries};
use crate::conformance;

/// What all that the control plane writes is found by.
const OURS: &str = "app.kubernetes.io/part-of=tulle";

/// A server that says its name, and its Service.
fn server(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ app: {name} }} }}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: tulle.test/tulle:1
    args: [app, serve, --http, \"8080\", --name, said-{name}]
---
apiVersion: v1
kind: Service
metadata: {{ name: {name} }}
spec: {{ selector: {{ app: {name} }}, ports: [{{ name: http, port: 80, targetPort: 8080 }}] }}
---
"
    )
}

fn client(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{ name: {name} }}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{ name: client, image: \"tulle.test/tulle:1\", args: [app, serve, --http, \"8080\", --name, {name}] }}]
"
    )
}

/// A route of Service `first` to another one; with a filter that is not supported if that is none.
fn route(backend: Option<&str>) -> String {
    let rule = match backend {
        Some(backend) => format!("backendRefs: [{{ name: {backend}, port: 80 }}]"),
        None => "filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: first, port: 80 } } }]".to_owned(),
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: first }}
spec:
  parentRefs: [{{ group: \"\", kind: Service, name: first }}]
  rules: [{{ {rule} }}]
"
    )
}

pub(super) async fn what_an_edit_has_broken_outlives_every_replica(
    _: &Kubernetes,
) -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    conformance::define(&cluster)?;
    install::install(&cluster, &[]).await?;
    let servers: String = ["first", "second", "third"].map(server).concat();
    let inject = "tulle.dev/inject=enabled";
    let shop = Namespace::apply(&cluster, "shop", inject, &(servers + &client("early"))).await?;
    shop.ask(APPLY, &route(Some("second")))?;
    answers(&shop, "early", "said-second").await?;

    shop.ask(APPLY, &route(None))?;
    eventually(SOON, async || {
        is_told(&cluster, "generation 1 stays in force")
    })
    .await?;
    ensure!(stored(&shop)?.len() == 1, "{:?}", stored(&shop)?);
    restart(&cluster).await?;
    // It has no other replica's word for anything.
    shop.ask(APPLY, &client("late"))?;
    answers(&shop, "late", "said-second").await?;
    is_told(&cluster, "generation 1 stays in force")?;

    shop.ask(APPLY, &route(Some("third")))?;
    for client in ["early", "late"] {
        answers(&shop, client, "said-third").await?;
    }
    eventually(SOON, async || nothing_is_stored(&shop)).await?;

    shop.ask(APPLY, &route(None))?;
    eventually(SOON, async || {
        is_told(&cluster, "generation 3 stays in force")
    })
    .await?;
    shop.ask(["delete", "httproute", "first"], "")?;
    answers(&shop, "late", "said-first").await?;
    eventually(SOON, async || nothing_is_stored(&shop)).await
}

/// Ends every replica at once, and waits for others.
async fn restart(cluster: &Cluster) -> anyhow::Result<()> {
    let control = "app.kubernetes.io/name=tulle-control";
    let delete = ["delete", "pods", "-n", SYSTEM, "-l", control];
    let deleted = cluster.ask(delete, "")?;
    ensure!(deleted.lines().count() == 2, "{deleted}");
    eventually(SOON, async || install::serves(cluster)).await
}

/// Waits until a client of Service `first` is answered by that server.
async fn answers(shop: &Namespace<'_>, client: &str, server: &str) -> anyhow::Result<()> {
    let argv = [
        "/usr/local/bin/tulle",
        "app",
        "call",
        "http://first/",
        "--json",
    ];
    let answered = eventually(SOON, async || {
        let said = shop.exec(client, &argv, "")?.ok()?;
        ensure!(said.contains(server), "{said}");
        Ok(())
    });
    answered
        .await
        .with_context(|| format!("{server} for {client}"))
}

/// Fails unless the route's status says that of what cannot be used.
fn is_told(cluster: &Cluster, words: &str) -> anyhow::Result<()> {
    let entries = entries(cluster, "httproute/first", "shop")?;
    let mut ours = entries
        .iter()
        .filter(|it| it["controllerName"] == CONTROLLER);
    let condition = &ours.next().context("it has no entry of ours")?["conditions"][0];
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(message.ends_with(words), "{condition}");
    Ok(())
}

fn stored(shop: &Namespace<'_>) -> anyhow::Result<Vec<Value>> {
    let list = ["get", "configsnapshots", "-l", OURS, "-o", "json"];
    let mut list: Value = serde_json::from_str(&shop.ask(list, "")?)?;
    Ok(serde_json::from_value(list["items"].take())?)
}

fn nothing_is_stored(shop: &Namespace<'_>) -> anyhow::Result<()> {
    let stored = stored(shop)?;
    ensure!(stored.is_empty(), "{stored:?}");
    Ok(())
}
