//! The control plane follows a cluster: what it knows of it, seen through its admin address.

mod control;
mod ill;

use std::time::Duration;

use anyhow::ensure;
use tulle_cluster::Cluster;
use tulle_tests::{Kubernetes, eventually};

use control::Control;
use ill::row_55_an_api_server_that_hangs_or_answers_429_takes_nothing_away;

tulle_tests::cases! { in Kubernetes:
    services_and_their_endpoints_come_and_go;
    routes_and_policies_are_followed_with_their_definitions;
    row_55_nothing_vanishes_while_the_api_server_is_away_nor_when_it_has_forgotten;
    row_55_an_api_server_that_hangs_or_answers_429_takes_nothing_away;
}

/// How long the cluster and the control plane may take for a change, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Two pods and their Service.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: app, image: "tulle.test/pause:1" }]
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ name: http, port: 80 }] }
"#;

/// The definition of tulle.dev.
const POLICIES: &str =
    include_str!("../../deploy/charts/tulle/crds/peerauthentications.tulle.dev.yaml");

async fn services_and_their_endpoints_come_and_go(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let control = Control::start(&kubernetes.cluster).await?;
    let namespace = kubernetes.apply("followed", WEB).await?;
    control.sees_ready("followed/web", Some(2)).await?;
    namespace.ask(["scale", "deployment/web", "--replicas=1"], "")?;
    control.sees_ready("followed/web", Some(1)).await?;
    namespace.ask(["delete", "service", "web"], "")?;
    control.sees_ready("followed/web", None).await?;
    let problems = control.debug("source")?;
    ensure!(problems["problems"] == serde_json::json!([]), "{problems}");
    Ok(())
}

/// A definition that takes anything for a spec.
fn anything(kind: &str, plural: &str, served: &[&str]) -> String {
    let singular = kind.to_lowercase();
    let mut versions = String::new();
    for (index, version) in served.iter().enumerate() {
        let storage = index == 0;
        versions += &format!(
            "  - {{ name: {version}, served: true, storage: {storage}, schema: {{ openAPIV3Schema: {{ type: object, \
             x-kubernetes-preserve-unknown-fields: true }} }} }}\n"
        );
    }
    format!(
        "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {plural}.gateway.networking.k8s.io
  annotations: {{ api-approved.kubernetes.io: \"unapproved, a test\" }}
spec:
  group: gateway.networking.k8s.io
  scope: Namespaced
  names: {{ kind: {kind}, listKind: {kind}List, plural: {plural}, singular: {singular} }}
  versions:
{versions}"
    )
}

fn route(kind: &str, version: &str, name: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}
kind: {kind}
metadata: {{ name: {name}, namespace: default }}
spec: {{ parentRefs: [{{ group: \"\", kind: Service, name: web }}], rules: {rules} }}
"
    )
}

/// Makes definitions and waits until they are served.
fn define(cluster: &Cluster, definition: &str) -> anyhow::Result<()> {
    cluster.ask(["apply", "--server-side", "-f", "-"], definition)?;
    let condition = "--for=condition=Established";
    cluster.ask(["wait", condition, "-f", "-", "--timeout=60s"], definition)?;
    Ok(())
}

async fn routes_and_policies_are_followed_with_their_definitions(
    _: &Kubernetes,
) -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    let control = Control::start(&cluster).await?;
    let create = ["create", "-f", "-"];

    define(
        &cluster,
        &anything("HTTPRoute", "httproutes", &["v1", "v1beta1"]),
    )?;
    define(
        &cluster,
        &anything("GRPCRoute", "grpcroutes", &["v1alpha2"]),
    )?;
    eventually(SOON, async || {
        cluster.ask(create, &route("HTTPRoute", "v1", "a", "[{}]"))
    })
    .await?;
    eventually(SOON, async || {
        cluster.ask(create, &route("GRPCRoute", "v1alpha2", "b", "[{}]"))
    })
    .await?;
    control.sees("routes", 2).await?;

    cluster.ask(create, &route("HTTPRoute", "v1", "bad", "none"))?;
    eventually(SOON, async || {
        let problems = control.debug("source")?["problems"].take();
        let object = &problems[0]["object"];
        ensure!(object == "HTTPRoute default/bad", "{problems}");
        ensure!(problems[0]["field"] == "spec.rules", "{problems}");
        Ok(())
    })
    .await?;
    control.sees("routes", 2).await?;

    // What the definition does not serve any more is read in the version that is left.
    define(&cluster, &anything("HTTPRoute", "httproutes", &["v1"]))?;
    cluster.ask(["delete", "httproute", "bad"], "")?;
    eventually(SOON, async || {
        let problems = control.debug("source")?;
        ensure!(problems["problems"] == serde_json::json!([]), "{problems}");
        Ok(())
    })
    .await?;
    control.sees("routes", 2).await?;
    let gone = "httproutes.gateway.networking.k8s.io";
    cluster.ask(["delete", "customresourcedefinition", gone], "")?;
    control.sees("routes", 1).await?;

    policies(&cluster, &control).await
}

/// The definition of policies takes what can be used, and nothing else.
async fn policies(cluster: &Cluster, control: &Control) -> anyhow::Result<()> {
    define(cluster, POLICIES)?;
    let policy = |spec: &str| {
        format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{ name: p, namespace: default }}\nspec: {spec}\n"
        )
    };
    let bad = [
        ("{ mtls: { mode: strict } }", "STRICT"),
        ("{ mtsl: {} }", "mtsl"),
        (
            "{ selector: { matchLabels: { a: b } }, targetRefs: [{ kind: Service, name: a }] }",
            "use one of the two",
        ),
        (
            "{ portLevelMtls: { \"80\": { mode: STRICT } } }",
            "add selector or targetRefs",
        ),
        (
            "{ selector: { matchLabels: { a: b } }, portLevelMtls: { \"65536\": { mode: STRICT } } }",
            "1 to 65535",
        ),
        (
            "{ selector: { matchLabels: { a: b } }, portLevelMtls: { http: { mode: STRICT } } }",
            "1 to 65535",
        ),
        (
            "{ targetRefs: [{ kind: Pod, name: a }] }",
            "use kind Service",
        ),
    ];
    let apply = ["apply", "--server-side", "-f", "-"];
    for (spec, word) in bad {
        // It may take a moment until its first user is served.
        eventually(SOON, async || {
            let Err(refused) = cluster.ask(apply, &policy(spec)) else {
                anyhow::bail!("{spec} is taken");
            };
            let refused = format!("{refused:#}");
            ensure!(refused.contains(word), "{spec}: {refused}");
            Ok(())
        })
        .await?;
    }
    let good = [
        "{}",
        "{ mtls: { mode: STRICT } }",
        "{ selector: { matchLabels: { a: b } }, portLevelMtls: { \"80\": { mode: DISABLE }, \"65535\": {} } }",
        "{ targetRefs: [{ group: \"\", kind: Service, name: a }], portLevelMtls: { \"1\": {} } }",
    ];
    let generation =
        || anyhow::Ok(control.debug("world")?["generations"]["PeerAuthentication"].take());
    for (changes, spec) in good.iter().enumerate() {
        cluster.ask(apply, &policy(spec))?;
        eventually(SOON, async || {
            let seen = generation()?;
            ensure!(seen == changes + 1, "{seen}");
            Ok(())
        })
        .await?;
    }
    let shown = cluster.ask(["get", "peerauthentications"], "")?;
    ensure!(shown.contains("MODE") && shown.contains("AGE"), "{shown}");
    Ok(())
}

async fn row_55_nothing_vanishes_while_the_api_server_is_away_nor_when_it_has_forgotten(
    _: &Kubernetes,
) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    let control = Control::start(&cluster).await?;
    cluster.ask(["create", "namespace", "kept"], "")?;
    let apply = ["--namespace=kept", "apply", "--server-side", "-f", "-"];
    cluster.ask(apply, WEB)?;
    control.sees_ready("kept/web", Some(2)).await?;
    // Each change of what it knows counts, so that nothing can go and come back unseen.
    let changes = || {
        let generations = control.debug("world")?["generations"].take();
        anyhow::Ok(["Service", "EndpointSlice", "Pod"].map(|kind| generations[kind].to_string()))
    };

    cluster.kill_api_server()?;
    eventually(SOON, async || {
        let failures = control.failures("EndpointSlice", "")?;
        ensure!(failures >= 5, "{failures} failures");
        Ok(())
    })
    .await?;
    let before = changes()?;
    let problems = control.debug("source")?["problems"].take();
    let told = problems.as_array().into_iter().flatten();
    let mut told = told.filter_map(|it| it["resource"].as_str());
    ensure!(
        told.any(|it| it == "endpointslices.discovery.k8s.io"),
        "{problems}"
    );
    ensure!(control.is_ready()?, "it serves what it knows");

    cluster.forget()?;
    cluster.start_api_server()?;
    eventually(SOON, async || {
        let problems = control.debug("source")?;
        ensure!(problems["problems"] == serde_json::json!([]), "{problems}");
        Ok(())
    })
    .await?;
    for kind in ["Service", "EndpointSlice", "Pod"] {
        let forgotten = control.failures(kind, "expired")?;
        ensure!(forgotten >= 1, "{kind} was not listed anew");
    }
    let after = changes()?;
    ensure!(before == after, "{before:?} became {after:?}");
    ensure!(control.ready_pods("kept/web")? == Some(2));
    cluster.ask(
        [
            "--namespace=kept",
            "scale",
            "deployment/web",
            "--replicas=1",
        ],
        "",
    )?;
    control.sees_ready("kept/web", Some(1)).await
}
