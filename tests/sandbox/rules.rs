//! What manifests rule: routes, policies, timeouts, and what happens where nothing fits. Both outcomes of each.

use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use tulle_tests::{Arena, Mesh, app, eventually};

tulle_tests::cases! {
    a_route_picks_by_path_header_query_and_method;
    a_route_rewrites_redirects_and_changes_headers;
    a_request_that_takes_too_long_is_answered_504;
    a_service_without_endpoints_is_answered_503;
    strict_refuses_plaintext_and_permissive_takes_it;
    a_broken_document_is_reported_and_the_rest_goes_on;
}

const DEADLINE: Duration = Duration::from_secs(10);

/// An HTTPRoute on Service `shop`, with these rules.
fn route(rules: &str) -> String {
    format!(
        r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: shop }}
spec:
  parentRefs: [{{ group: "", kind: Service, name: shop, port: 8080 }}]
  rules:
{rules}
"#
    )
}

fn two_versions(rules: &str) -> String {
    let manifests = app("shop").http(8080) + app("next").version("v2").http(8080) + app("client");
    format!("{}{}", manifests.as_ref(), route(rules))
}

/// Calls until the answer is as wanted: a route takes its time to arrive.
async fn answered(
    arena: &Arena<'_>,
    call: &[&str],
    wanted: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    eventually(DEADLINE, async || {
        let answer = arena.app_call("client", call).await?;
        ensure!(wanted(&answer), "{answer}");
        Ok(answer)
    })
    .await
}

/// The client's access log has lines with a flag, at least so many: it is written after the answer.
async fn logged(arena: &Arena<'_>, flag: &str, at_least: usize) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let log = arena.access_log("client")?;
        let flags: Vec<_> = log.iter().map(|line| &line["response_flags"]).collect();
        let found = flags.iter().filter(|found| **found == flag).count();
        ensure!(found >= at_least, "{found} of {at_least} {flag}: {flags:?}");
        Ok(())
    })
    .await
}

async fn a_route_picks_by_path_header_query_and_method(mesh: &Mesh) -> anyhow::Result<()> {
    let rules = r#"
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
"#;
    let arena = mesh.apply("rules-match", two_versions(rules)).await?;
    answered(&arena, &["http://shop:8080/exact"], |answer| {
        answer["body"]["version"] == "v2"
    })
    .await?;
    let calls: [(&[&str], Value); 10] = [
        (&["http://shop:8080/prefix/a"], "v2".into()),
        (&["http://shop:8080/r12"], "v2".into()),
        (
            &["http://shop:8080/any", "--header", "x-lane:next"],
            "v2".into(),
        ),
        (&["http://shop:8080/any?lane=next"], "v2".into()),
        (&["http://shop:8080/any", "--method", "DELETE"], "v2".into()),
        (
            &["http://shop:8080/any", "--header", "x-lane:other"],
            "v1".into(),
        ),
        (&["http://shop:8080/any?lane=nextish"], "v1".into()),
        // What no rule matches is 404, whatever the Service has.
        (&["http://shop:8080/exact/more"], Value::Null),
        (&["http://shop:8080/prefixed"], Value::Null),
        (&["http://shop:8080/r12x"], Value::Null),
    ];
    for (call, version) in calls {
        let answer = arena.app_call("client", call).await?;
        let status = if version.is_null() { 404 } else { 200 };
        ensure!(
            answer["status"] == status && answer["body"]["version"] == version,
            "{call:?}: {answer}"
        );
    }
    logged(&arena, "NR", 3).await
}

async fn a_route_rewrites_redirects_and_changes_headers(mesh: &Mesh) -> anyhow::Result<()> {
    let rules = r#"
  - matches: [{ path: { type: PathPrefix, value: /old } }]
    filters:
    - type: URLRewrite
      urlRewrite: { hostname: inner.example, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new } }
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: x-set, value: one }], add: [{ name: x-add, value: two }], remove: [x-gone] }
    - type: ResponseHeaderModifier
      responseHeaderModifier: { add: [{ name: x-answer, value: three }] }
    backendRefs: [{ name: shop, port: 8080 }]
  - matches: [{ path: { type: PathPrefix, value: /moved } }]
    filters:
    - type: RequestRedirect
      requestRedirect: { hostname: elsewhere.example, statusCode: 301 }
"#;
    let arena = mesh.apply("rules-filters", two_versions(rules)).await?;
    let call = [
        "http://shop:8080/old/a?b=c",
        "--header",
        "x-gone:here",
        "--header",
        "x-set:zero",
    ];
    let answer = answered(&arena, &call, |answer| answer["body"]["path"] == "/new/a").await?;
    let seen = &answer["body"]["headers"];
    ensure!(answer["body"]["query"] == "b=c", "{answer}");
    ensure!(
        seen["host"] == "inner.example" && seen["x-set"] == "one" && seen["x-add"] == "two",
        "{answer}"
    );
    ensure!(
        seen["x-gone"].is_null() && answer["headers"]["x-answer"] == "three",
        "{answer}"
    );
    let answer = arena
        .app_call("client", &["http://shop:8080/moved/a?b=c"])
        .await?;
    ensure!(answer["status"] == 301, "{answer}");
    let location = answer["headers"]["location"].as_str().unwrap_or_default();
    ensure!(
        location.starts_with("http://elsewhere.example") && location.ends_with("/moved/a?b=c"),
        "{answer}"
    );
    Ok(())
}

async fn a_request_that_takes_too_long_is_answered_504(mesh: &Mesh) -> anyhow::Result<()> {
    let rules = r#"
  - timeouts: { request: 300ms }
    backendRefs: [{ name: shop, port: 8080 }]
"#;
    let arena = mesh.apply("rules-timeout", two_versions(rules)).await?;
    let slow = ["http://shop:8080/?latency=5s", "--method", "POST"];
    answered(&arena, &slow, |answer| answer["status"] == 504).await?;
    let quick = arena
        .app_call("client", &["http://shop:8080/?latency=1ms"])
        .await?;
    ensure!(quick["status"] == 200, "{quick}");
    logged(&arena, "UT", 1).await
}

async fn a_service_without_endpoints_is_answered_503(mesh: &Mesh) -> anyhow::Result<()> {
    let nobody = r#"
---
apiVersion: v1
kind: Service
metadata: { name: nobody }
spec: { selector: { app: nobody }, ports: [{ name: http, port: 8080 }] }
"#;
    let manifests = app("client") + app("shop").http(8080);
    let arena = mesh
        .apply("rules-empty", format!("{}{nobody}", manifests.as_ref()))
        .await?;
    let answer = answered(&arena, &["http://nobody:8080/"], |answer| {
        answer["status"] == 503
    })
    .await?;
    ensure!(
        !answer["headers"]["x-tulle-failed-hop"].is_null(),
        "{answer}"
    );
    logged(&arena, "UH", 1).await?;
    let other = arena.app_call("client", &["http://shop:8080/"]).await?;
    ensure!(other["status"] == 200, "{other}");
    Ok(())
}

async fn strict_refuses_plaintext_and_permissive_takes_it(mesh: &Mesh) -> anyhow::Result<()> {
    let policy = r#"
---
apiVersion: tulle.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: default }
spec: { mtls: { mode: STRICT } }
"#;
    let outsider = app("outsider").annotate("tulle.dev/inject", "disabled");
    let manifests = app("shop").http(8080) + app("client") + outsider;
    let arena = mesh
        .apply("rules-strict", format!("{}{policy}", manifests.as_ref()))
        .await?;
    ensure!(
        arena.pod("outsider")?.container("tulle-proxy").is_none(),
        "the outsider has a sidecar"
    );
    let refused = async || {
        let answer = arena.app_call("outsider", &["http://shop:8080/"]).await;
        ensure!(
            answer
                .as_ref()
                .map_or(true, |answer| answer["status"] != 200),
            "{answer:?}"
        );
        Ok(())
    };
    eventually(DEADLINE, refused).await?;
    let meshed = arena.app_call("client", &["http://shop:8080/"]).await?;
    ensure!(meshed["status"] == 200, "{meshed}");
    arena.edit(|text| text.replace("STRICT", "PERMISSIVE"))?;
    eventually(DEADLINE, async || {
        let answer = arena.app_call("outsider", &["http://shop:8080/"]).await?;
        ensure!(answer["status"] == 200, "{answer}");
        Ok(())
    })
    .await?;
    arena.edit(|text| text.replace("PERMISSIVE", "STRICT"))?;
    eventually(DEADLINE, refused).await
}

async fn a_broken_document_is_reported_and_the_rest_goes_on(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("rules-broken", app("shop").http(8080) + app("client"))
        .await?;
    arena.add(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: broken }\nspec:\n  parentRefs: [{ group: \"\", kind: Service, name: shop }]\n  rules:\n  - matches: [{ path: { type: RegularExpression, value: \"(\" } }]\n",
    )?;
    eventually(DEADLINE, async || {
        let report = mesh.control_admin("/debug/source").await?.to_string();
        ensure!(
            report.contains("rules-broken") && report.contains("broken") && report.contains("path"),
            "{report}"
        );
        Ok(())
    })
    .await?;
    let answer = arena.app_call("client", &["http://shop:8080/"]).await?;
    ensure!(answer["status"] == 200, "{answer}");
    Ok(())
}
