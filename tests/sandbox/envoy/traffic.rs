//! What Envoy does with requests, beside what our own sidecar does with the same ones.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tulle_tests::{Arena, Mesh, app, eventually};

use super::DEADLINE;
use super::pod::{DELTA, FULL, all_accepted, with_envoy};

tulle_tests::cases! {
    requests_are_balanced_and_follow_the_endpoints ["envoy", "curl"];
    routes_are_followed_as_by_our_sidecar ["envoy", "curl"];
    failures_are_retried_as_by_our_sidecar ["envoy", "curl"];
    an_endpoint_that_cannot_be_reached_is_left_out ["envoy", "curl"];
}

async fn requests_are_balanced_and_follow_the_endpoints(mesh: &Mesh) -> anyhow::Result<()> {
    let web = app("web").http(8080).replicas(3).yaml();
    let manifests = web + &with_envoy(app("client"), FULL)?;
    let arena = mesh.apply("envoy-balance", manifests).await?;
    let url = "http://web:8080/";
    let summary = arena.load("client", url, 150, 2.0, &[]).await?;
    ensure!(
        summary.failed == 0 && summary.pods.len() == 3,
        "{summary:?}"
    );
    ensure!(
        summary.pods.values().all(|share| *share >= 60),
        "a pod has less than a fifth of 300: {summary:?}"
    );
    let load = arena.start_load("client", url, 50, 4.0, &[])?;
    arena.edit(|text| text.replace("\"replicas\":3", "\"replicas\":1"))?;
    let summary = load.summary().await?;
    ensure!(
        summary.failed == 0,
        "pods went and requests failed: {summary:?}"
    );
    let pods = async |wanted: usize| {
        eventually(DEADLINE, async || {
            let summary = arena.load("client", url, 100, 0.2, &[]).await?;
            ensure!(
                summary.failed == 0 && summary.pods.len() == wanted,
                "{summary:?}"
            );
            Ok(())
        })
        .await
    };
    pods(1).await?;
    arena.edit(|text| text.replacen("\"replicas\":1", "\"replicas\":2", 1))?;
    arena.wait_ready().await?;
    pods(2).await?;
    all_accepted(&arena, "client").await
}

const ROUTE: &str = r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: shop, port: 8080 }]
  rules:
  - matches:
    - { path: { type: Exact, value: /exact } }
    - { path: { type: PathPrefix, value: /prefix } }
    - { path: { type: RegularExpression, value: "/r[0-9]+" } }
    - { path: { type: PathPrefix, value: /any }, headers: [{ name: x-lane, value: next }] }
    - { path: { type: PathPrefix, value: /any }, queryParams: [{ name: lane, value: next }] }
    - { path: { type: PathPrefix, value: /any }, method: DELETE }
    backendRefs: [{ name: next, port: 8080 }]
  - matches: [{ path: { type: PathPrefix, value: /any } }]
    backendRefs: [{ name: shop, port: 8080 }]
  - matches: [{ path: { type: PathPrefix, value: /split } }]
    backendRefs: [{ name: shop, port: 8080, weight: 3 }, { name: next, port: 8080, weight: 1 }]
  - matches: [{ path: { type: PathPrefix, value: /old } }]
    filters:
    - type: URLRewrite
      urlRewrite: { hostname: inner.example, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new } }
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: x-set, value: "100%" }], add: [{ name: x-add, value: two }], remove: [x-gone] }
    - type: ResponseHeaderModifier
      responseHeaderModifier: { add: [{ name: x-answer, value: three }] }
    backendRefs: [{ name: shop, port: 8080 }]
  - matches: [{ path: { type: PathPrefix, value: /root } }]
    filters:
    - { type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }
    backendRefs: [{ name: shop, port: 8080 }]
  - matches: [{ path: { type: PathPrefix, value: /moved } }]
    filters:
    - { type: RequestRedirect, requestRedirect: { hostname: elsewhere.example, statusCode: 301 } }
  - matches: [{ path: { type: PathPrefix, value: /nowhere } }]
    backendRefs: [{ name: nobody, port: 8080 }]
  - matches: [{ path: { type: PathPrefix, value: /slow } }]
    timeouts: { request: 300ms }
    backendRefs: [{ name: shop, port: 8080 }]
"#;

const CALLS: [&[&str]; 20] = [
    &["/exact"],
    &["/exact/more"],
    &["/prefix/a"],
    &["/prefixed"],
    &["/r12"],
    &["/r12x"],
    &["/any"],
    &["/any", "--header", "x-lane:next"],
    &["/any", "--header", "x-lane:other"],
    &["/any?lane=next"],
    &["/any?lane=nextish"],
    &["/any", "--method", "DELETE"],
    &["/any", "--method", "POST", "--data", "some"],
    &[
        "/old/a?b=c",
        "--header",
        "x-gone:here",
        "--header",
        "x-set:zero",
    ],
    &["/root"],
    &["/root/a/b"],
    &["/moved/a?b=c"],
    &["/nowhere"],
    &["/slow?latency=5s", "--method", "POST"],
    &["/slow?latency=1ms"],
];

async fn routes_are_followed_as_by_our_sidecar(mesh: &Mesh) -> anyhow::Result<()> {
    let backends = app("shop").http(8080) + app("next").version("v2").http(8080) + app("mine");
    let theirs = with_envoy(app("theirs"), DELTA)?;
    let arena = mesh
        .apply(
            "envoy-routes",
            backends.as_ref().to_owned() + &theirs + ROUTE,
        )
        .await?;
    for client in ["mine", "theirs"] {
        eventually(DEADLINE, async || {
            let answer = call(&arena, client, CALLS[0]).await?;
            ensure!(answer["version"] == "v2", "{client}: {answer}");
            Ok(())
        })
        .await?;
    }
    for arguments in CALLS {
        let [ours, envoys] = [
            call(&arena, "mine", arguments).await?,
            call(&arena, "theirs", arguments).await?,
        ];
        ensure!(ours == envoys, "{arguments:?}: ours {ours}, Envoy {envoys}");
    }
    for client in ["mine", "theirs"] {
        let split = "http://shop:8080/split";
        let summary = arena.load(client, split, 200, 2.0, &["--http2"]).await?;
        let next = summary.versions.get("v2").copied().unwrap_or_default();
        // A quarter of 400, and five standard deviations.
        ensure!(
            summary.failed == 0 && (57..=143).contains(&next),
            "{client}: {summary:?}"
        );
    }
    all_accepted(&arena, "theirs").await
}

/// What is the same whichever sidecar a call goes through.
async fn call(arena: &Arena<'_>, client: &str, arguments: &[&str]) -> anyhow::Result<Value> {
    let url = format!("http://shop:8080{}", arguments[0]);
    let arguments: Vec<&str> = [&*url]
        .into_iter()
        .chain(arguments[1..].iter().copied())
        .collect();
    let answer = arena.app_call(client, &arguments).await?;
    let (head, body) = (&answer["headers"], &answer["body"]);
    let seen = &body["headers"];
    Ok(json!({
        "status": answer["status"],
        "location": head["location"],
        "answer": head["x-answer"],
        "name": body["name"],
        "version": body["version"],
        "method": body["method"],
        "path": body["path"],
        "query": body["query"],
        "host": seen["host"],
        "set": seen["x-set"],
        "add": seen["x-add"],
        "gone": seen["x-gone"],
    }))
}

async fn failures_are_retried_as_by_our_sidecar(mesh: &Mesh) -> anyhow::Result<()> {
    // In each Service one pod is good, and the other fails in a way of its own.
    let failing = ["--fail-status", "503", "--fail-probability", "1"];
    let failing = app("failing").part_of("web").http(8080).arguments(&failing);
    let pods = app("web").http(8080)
        + failing
        + app("shop").http(8080)
        + app("deaf").part_of("shop")
        + app("store").http(8080)
        + app("mine");
    let mute = with_envoy(app("mute").part_of("store"), FULL)?;
    let theirs = with_envoy(app("theirs"), FULL)?;
    let arena = mesh
        .apply("envoy-retries", pods.as_ref().to_owned() + &mute + &theirs)
        .await?;
    for client in ["mine", "theirs"] {
        let post = ["--method", "POST", "--body-size", "10"];
        // An answer that says that it failed: tried again if the method is idempotent.
        let (answered, most) = load(&arena, client, "web", &[], ["web", "failing"]).await?;
        ensure!(
            answered == 60 && (2..=3).contains(&most),
            "{client} GET: {answered} of 60, {most} times"
        );
        let (answered, most) = load(&arena, client, "web", &post, ["web", "failing"]).await?;
        ensure!(
            answered < 60 && answered > 0 && most == 1,
            "{client} POST: {answered} of 60, {most} times"
        );
        // No app was reached, behind our sidecar or behind Envoy: tried again whatever the method.
        for service in ["shop", "store"] {
            let (answered, most) = load(&arena, client, service, &post, [service, service]).await?;
            ensure!(
                answered == 60 && most == 1,
                "{client} POST to {service}: {answered} of 60, {most} times"
            );
        }
    }
    let log = super::pod::access_log(&arena, "mute")?;
    ensure!(
        log.iter().any(|line| line["response_flags"] == "UF"),
        "nobody called the pod without an app: {log:?}"
    );
    Ok(())
}

/// Sends 60 requests; how many were answered well, and how often the apps of these pods got one of them at most.
async fn load(
    arena: &Arena<'_>,
    client: &str,
    service: &str,
    options: &[&str],
    pods: [&str; 2],
) -> anyhow::Result<(u64, u64)> {
    let prefix = format!("{client}-{service}-{}", options.len());
    let options = [options, &["--id-prefix", &prefix]].concat();
    let url = format!("http://{service}:8080/");
    let summary = arena.load(client, &url, 20, 3.0, &options).await?;
    ensure!(summary.sent == 60, "{summary:?}");
    let mut received = BTreeMap::<String, u64>::new();
    let counts = format!("http://127.0.0.1:8080/counts?prefix={prefix}");
    let pods: std::collections::BTreeSet<_> = pods.into_iter().collect();
    for pod in pods {
        let answer = arena.app_call(pod, &[&counts]).await?;
        let body = answer["body"]["counts"]
            .as_object()
            .with_context(|| answer.to_string())?;
        for (id, count) in body {
            *received.entry(id.clone()).or_default() += count.as_u64().unwrap_or_default();
        }
    }
    Ok((summary.ok, received.into_values().max().unwrap_or_default()))
}

async fn an_endpoint_that_cannot_be_reached_is_left_out(mesh: &Mesh) -> anyhow::Result<()> {
    let manifests = app("web").http(8080).yaml() + &with_envoy(app("theirs"), FULL)?;
    let arena = mesh.apply("envoy-outlier", manifests).await?;
    // Documentation addresses (RFC 5737) are nobody's.
    let good = arena.pod("web")?.ips.v4;
    arena.add(format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: mixed}}\nspec: {{ports: [{{name: http, port: 8080}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: mixed, labels: {{kubernetes.io/service-name: mixed}}}}\naddressType: IPv4\n\
         ports: [{{name: http, port: 8080}}]\n\
         endpoints: [{{addresses: [{good}]}}, {{addresses: [192.0.2.1]}}]\n"
    ))?;
    let call = ["http://mixed:8080/"];
    eventually(DEADLINE, async || {
        let answer = arena.app_call("theirs", &call).await?;
        ensure!(answer["status"] == 200, "{answer}");
        Ok(())
    })
    .await?;
    let labels = [(
        "envoy_cluster_name",
        "outbound|8080||mixed_envoy-outlier_svc_cluster_local",
    )];
    eventually(DEADLINE * 2, async || {
        let answer = arena.app_call("theirs", &call).await?;
        ensure!(answer["status"] == 200, "{answer}");
        let stats = super::pod::stats(&arena, "theirs").await?;
        let name =
            "envoy_cluster_outlier_detection_ejections_enforced_consecutive_local_origin_failure";
        let ejections = stats.sum(name, &labels);
        ensure!(ejections >= 1.0, "nothing was ejected");
        Ok(())
    })
    .await
}
