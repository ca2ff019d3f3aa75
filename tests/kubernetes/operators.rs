//! What the command line says of a cluster, and does to it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::kubernetes::{Namespace, Program};
use tulle_tests::{Kubernetes, eventually};

use crate::check::findings;
use installation::{
    an_installation_goes_without_a_trace,
    others_and_helm_keep_what_is_theirs_until_somebody_insists,
};

mod installation;

tulle_tests::cases! { in Kubernetes:
    proxies_are_listed_and_looked_into;
    an_installation_goes_without_a_trace;
    others_and_helm_keep_what_is_theirs_until_somebody_insists;
    a_second_revision_serves_its_namespaces_beside_the_first ["alone"];
    network_policies_and_autoscalers_are_valid_by_schema_only;
}

/// How long the mesh may take to know of a change.
const SOON: Duration = Duration::from_secs(30);

/// A pod that listens, and its Service.
pub(crate) const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: one, labels: { app: web } }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: tulle.test/tulle:1
    args: [app, serve, --http, "8080", --name, web]
    ports: [{ name: http, containerPort: 8080 }]
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ name: http, port: 80, targetPort: http }] }
"#;

async fn proxies_are_listed_and_looked_into(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let shop = kubernetes.apply_meshed("looked-into", WEB).await?;
    let call = ["/usr/local/bin/tulle", "app", "call", "http://web/"];
    eventually(SOON, async || shop.exec("one", &call, "")?.ok()).await?;
    let table = eventually(SOON, async || {
        let table = kubernetes.tulle(&["status", "-n", "looked-into"])?.ok()?;
        ensure!(
            table.contains("SYNCED") && !table.contains("STALE"),
            "{table}"
        );
        Ok(table)
    })
    .await?;
    let row = table
        .lines()
        .find(|line| line.starts_with("looked-into/one "));
    let row = row.with_context(|| format!("no row in {table}"))?;
    ensure!(
        row.contains(" tulle ") && row.contains("tulle-control-"),
        "{row}"
    );
    let json = kubernetes
        .tulle(&["status", "-n", "looked-into", "--output", "json"])?
        .ok()?;
    let proxies: Value = serde_json::from_str(&json)?;
    ensure!(
        proxies[0]["identity"] == "spiffe://cluster.local/ns/looked-into/sa/default",
        "{json}"
    );
    for (what, words) in [
        (
            "endpoints",
            &[
                "outbound|80||web.looked-into.svc.cluster.local",
                "mTLS",
                "healthy",
            ][..],
        ),
        (
            "clusters",
            &["outbound|80||web.looked-into.svc.cluster.local"],
        ),
        (
            "routes",
            &["forward outbound|80||web.looked-into.svc.cluster.local"],
        ),
        (
            "certs",
            &[
                "spiffe://cluster.local/ns/looked-into/sa/default",
                "valid",
                "root",
            ],
        ),
        ("config", &["\"inbound\"", "\"outbound\""]),
    ] {
        let said = kubernetes
            .tulle(&["proxy", what, "looked-into/one"])?
            .ok()?;
        for word in words {
            ensure!(said.contains(word), "{word} is not in {what}: {said}");
        }
        let yaml = kubernetes
            .tulle(&["proxy", what, "one", "-n", "looked-into", "-o", "yaml"])?
            .ok()?;
        let _: Value = serde_saphyr::from_str(&yaml)?;
    }
    let nobody = kubernetes.tulle(&["proxy", "certs", "looked-into/nobody"])?;
    ensure!(
        nobody.status == 1
            && nobody.stderr.contains("no such pod: looked-into/nobody")
            && nobody.stderr.contains("kubectl get pods -n looked-into"),
        "{nobody}"
    );
    Ok(())
}

async fn a_second_revision_serves_its_namespaces_beside_the_first(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let cluster = &kubernetes.cluster;
    let next = ["revision=next", "control.replicas=1", "injector.replicas=1"];
    let apply = ["apply", "--server-side", "-f", "-"];
    cluster.ask(apply, &Program::new()?.manifests(&next)?)?;
    eventually(SOON, async || install::serves(cluster)).await?;
    let pods = |namespace: &Namespace<'_>| -> anyhow::Result<String> {
        Ok(namespace.get("pods")?[0].to_string())
    };
    let old = kubernetes.apply_meshed("stays", WEB).await?;
    let new = Namespace::apply(cluster, "moves", "tulle.dev/rev=next", WEB).await?;
    let (of_old, of_new) = (pods(&old)?, pods(&new)?);
    ensure!(
        of_old.contains("tulle-control.tulle-system.svc.cluster.local.:15012"),
        "{of_old}"
    );
    ensure!(
        of_new.contains("tulle-control-next.tulle-system.svc.cluster.local.:15012"),
        "{of_new}"
    );
    ensure!(of_new.contains(r#""tulle.dev/rev":"next""#), "{of_new}");
    // They are of one mesh.
    for (from, url) in [(&old, "http://web.moves/"), (&new, "http://web.stays/")] {
        let call = ["/usr/local/bin/tulle", "app", "call", url, "--json"];
        let answer = eventually(SOON, async || from.exec("one", &call, "")?.ok()).await?;
        ensure!(answer.contains("spiffe://cluster.local/ns/"), "{answer}");
    }
    let status = kubernetes.tulle(&["status", "-n", "moves"])?.ok()?;
    ensure!(status.contains("tulle-control-next-"), "{status}");
    // Whichever of both is elected keeps the webhooks of both true, and nobody else's.
    for (webhook, expected) in [("tulle-injector-next", true), ("somebody-elses", false)] {
        for control in ["tulle-control", "tulle-control-next"] {
            let whose = format!("--as=system:serviceaccount:{SYSTEM}:{control}");
            let what = format!("mutatingwebhookconfigurations/{webhook}");
            let can = cluster.ask(["auth", "can-i", "patch", &what, &whose], "");
            ensure!(can.is_ok() == expected, "{control} {webhook}: {can:?}");
        }
    }
    claimed_twice(kubernetes)?;
    tried_each_for_itself(kubernetes).await?;
    heard_although_one_is_silent(kubernetes).await?;
    goes_by_itself(kubernetes, new).await?;
    let again = ["/usr/local/bin/tulle", "app", "call", "http://web/"];
    eventually(SOON, async || old.exec("one", &again, "")?.ok()).await?;
    Ok(())
}

/// Fails unless revision next goes once nobody needs it, and another one neither before it nor after it.
async fn goes_by_itself(kubernetes: &Kubernetes, new: Namespace<'_>) -> anyhow::Result<()> {
    let cluster = &kubernetes.cluster;
    let nosuch = kubernetes.tulle(&["uninstall", "--revision", "nosuch"])?;
    ensure!(
        nosuch.status == 1
            && nosuch
                .stderr
                .contains("there is no revision nosuch; there are: default, next"),
        "{nosuch}"
    );
    let uninstall = ["uninstall", "--revision", "next", "--yes"];
    let refused = kubernetes.tulle(&uninstall)?;
    ensure!(
        refused.status == 1
            && refused
                .stderr
                .contains("1 pods still have a sidecar: moves/one;"),
        "{refused}"
    );
    // As who would have pods later.
    cluster.ask(["create", "namespace", "empty"], "")?;
    let label = |label: &str| {
        let label = ["label", "namespace", "empty", "--overwrite", label];
        cluster.ask(label, "")
    };
    label("tulle.dev/rev=next")?;
    drop(new);
    let asked = eventually(SOON, async || {
        let asked = kubernetes.tulle(&uninstall)?;
        ensure!(!asked.stderr.contains("still have a sidecar"), "{asked}");
        Ok(asked)
    })
    .await?;
    for words in [
        "1 namespaces ask for revision next, and new pods there would start without a sidecar: empty",
        "kubectl label namespace empty tulle.dev/rev=default --overwrite",
    ] {
        ensure!(asked.status == 1 && asked.stderr.contains(words), "{asked}");
    }
    let listed = kubernetes.tulle(&uninstall[..3])?;
    ensure!(
        listed.status == 0 && listed.stderr.contains("tulle.dev/rev=default --overwrite"),
        "{listed}"
    );
    label("tulle.dev/rev=default")?;
    let gone = eventually(SOON, async || kubernetes.tulle(&uninstall)?.ok()).await?;
    ensure!(
        gone.contains("tulle-control-next") && !gone.contains(" tulle-control\n"),
        "{gone}"
    );
    cluster.ask(["delete", "namespace", "empty"], "")?;
    eventually(SOON, async || install::serves(cluster)).await?;
    let last = ["uninstall", "--revision", "default", "--force", "--yes"];
    for (arguments, status) in [(&last[..3], 0), (&last, 1)] {
        let said = kubernetes.tulle(arguments)?;
        ensure!(
            said.status == status && said.stderr.contains("it is the last one"),
            "{said}"
        );
    }
    install::serves(cluster)
}

/// Fails unless two who claim the same namespaces are found, and each with its own is not.
fn claimed_twice(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let claims = || -> anyhow::Result<Option<Value>> {
        let found = findings(kubernetes)?;
        Ok(found.into_iter().find(|it| it["subject"] == "webhooks"))
    };
    let none = claims()?;
    ensure!(none.is_none(), "{none:?}");
    let cluster = &kubernetes.cluster;
    let get = [
        "get",
        "mutatingwebhookconfiguration",
        "tulle-injector-next",
        "-o",
        "json",
    ];
    let mut other: Value = serde_json::from_str(&cluster.ask(get, "")?)?;
    let labels = other["metadata"]["labels"].take();
    other["metadata"] = json!({ "name": "tulle-injector-twice", "labels": labels });
    cluster.ask(["create", "-f", "-"], &other.to_string())?;
    let twice = claims();
    let delete = [
        "delete",
        "mutatingwebhookconfiguration",
        "tulle-injector-twice",
    ];
    cluster.ask(delete, "")?;
    let twice = twice?.context("two claim the same, and nobody says so")?;
    let state = twice["state"].as_str().unwrap_or_default();
    ensure!(
        twice["level"] == "error"
            && state.contains("tulle-injector-next")
            && state.contains("tulle-injector-twice")
            && twice["remedy"].is_string(),
        "{twice}"
    );
    Ok(())
}

/// A webhook of somebody who labels all that he installs as ours.
const STRANGE: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: { name: tulle-dashboards, labels: { app.kubernetes.io/part-of: tulle } }
webhooks:
- name: dashboards.example.org
  admissionReviewVersions: [v1]
  sideEffects: None
  clientConfig: { service: { namespace: default, name: dashboards } }
  rules: [{ apiGroups: [example.org], apiVersions: [v1], operations: [CREATE], resources: [dashboards] }]
"#;

/// Fails unless an injector that does not run is found though another one injects all pods of namespace default, and webhooks that
/// are not ours are left alone.
async fn tried_each_for_itself(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let cluster = &kubernetes.cluster;
    let label = |label: &str| cluster.ask(["label", "namespace", "default", label], "");
    let scale = |count: &str| {
        let scale = ["scale", "-n", SYSTEM, "deployment/tulle-injector", count];
        cluster.ask(scale, "")
    };
    let level = |expected: &str| -> anyhow::Result<()> {
        let found = findings(kubernetes)?;
        for (subject, expected) in [
            ("webhook tulle-injector", Some(expected)),
            ("webhook tulle-injector-next", Some("ok")),
            ("webhook tulle-dashboards", None),
        ] {
            let told = found.iter().find(|it| it["subject"] == subject);
            let level = told.and_then(|it| it["level"].as_str());
            ensure!(level == expected, "{subject}: {found:?}");
        }
        Ok(())
    };
    label("tulle.dev/rev=next")?;
    cluster.ask(["apply", "-f", "-"], STRANGE)?;
    let well = eventually(SOON, async || level("ok")).await;
    scale("--replicas=0")?;
    let away = eventually(SOON, async || level("error")).await;
    scale("--replicas=2")?;
    label("tulle.dev/rev-")?;
    cluster.ask(["delete", "-f", "-"], STRANGE)?;
    well?;
    away?;
    eventually(SOON, async || install::serves(cluster)).await
}

/// A replica of the control plane that runs and says nothing.
const SILENT: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: tulle-control-silent
  labels: { app.kubernetes.io/part-of: tulle, app.kubernetes.io/name: tulle-control-silent }
spec:
  terminationGracePeriodSeconds: 1
  securityContext: { runAsNonRoot: true, runAsUser: 1000, seccompProfile: { type: RuntimeDefault } }
  containers:
  - name: silent
    image: tulle.test/pause:1
    securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: [ALL] } }
"#;

/// Fails unless what the other replicas say is shown.
async fn heard_although_one_is_silent(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let ask = |arguments: &[&str], input: &str| {
        let own = ["-n", SYSTEM];
        kubernetes
            .cluster
            .ask(own.iter().chain(arguments).copied(), input)
    };
    ask(&["apply", "-f", "-"], SILENT)?;
    let said = eventually(SOON, async || {
        let said = kubernetes.tulle(&["status", "-n", "moves"])?;
        ensure!(said.status == 1, "{said}");
        Ok(said)
    })
    .await;
    let found = findings(kubernetes);
    ask(&["delete", "pod", "tulle-control-silent"], "")?;
    let (said, found) = (said?, found?);
    for (subject, level) in [
        ("control plane (tulle-control-silent)", "error"),
        ("proxies", "ok"),
        ("objects", "ok"),
    ] {
        let told = found.iter().filter(|it| it["subject"] == subject);
        ensure!(told.clone().count() == 1, "{subject}: {found:?}");
        ensure!(
            told.clone().all(|it| it["level"] == level),
            "{subject}: {found:?}"
        );
    }
    ensure!(
        said.stdout.contains("moves/one ")
            && said
                .stderr
                .contains("tulle-control-silent does not say which proxies it has"),
        "{said}"
    );
    Ok(())
}

async fn network_policies_and_autoscalers_are_valid_by_schema_only(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let scaled = [
        "control.autoscaling.enabled=true",
        "injector.autoscaling.enabled=true",
    ];
    let manifests = Program::new()?.manifests(&scaled)?;
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&manifests)?;
    let kinds = ["NetworkPolicy", "HorizontalPodAutoscaler"];
    objects.retain(|it| kinds.iter().any(|kind| it["kind"] == *kind));
    ensure!(objects.len() == 4, "{objects:?}");
    for mut object in objects {
        let try_it = |object: &Value| {
            let manager = "--field-manager=kubectl-tries";
            let apply = [
                "apply",
                "--server-side",
                "--dry-run=server",
                manager,
                "-f",
                "-",
            ];
            kubernetes.cluster.ask(apply, &object.to_string())
        };
        try_it(&object)?;
        object["spec"]["nonsense"] = json!(true);
        ensure!(try_it(&object).is_err(), "anything is valid");
    }
    Ok(())
}
