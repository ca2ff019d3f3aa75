//! Pods that are always or never of the mesh, whatever their namespace says.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_tests::kubernetes::install;
use tulle_tests::kubernetes::{Namespace, Program};
use tulle_tests::{Kubernetes, eventually};

tulle_tests::cases! { in Kubernetes:
    pods_that_are_always_of_the_mesh_are_so_as_long_as_the_values_say ["alone"];
}

/// How long the webhooks may take to have their roots.
const SOON: Duration = Duration::from_secs(30);
const CONFIGURATION: &str = "mutatingwebhookconfiguration/tulle-injector";
const ALWAYS: &str = r#"injector.alwaysInject=[{"matchLabels":{"app":"build"}}]"#;

/// A pod that the values can select.
fn pod(name: &str) -> String {
    format!(
        "{{ apiVersion: v1, kind: Pod, metadata: {{ name: {name}, labels: {{ app: build }} }}, spec: {{ \
         terminationGracePeriodSeconds: 1, containers: [{{ name: build, image: 'tulle.test/tulle:1', \
         args: [app, serve, --http, '8080', --name, build] }}] }} }}"
    )
}

/// Names of the webhooks, and who manages fields of their configuration.
fn configuration(kubernetes: &Kubernetes) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let get = ["get", CONFIGURATION, "--show-managed-fields", "-o", "json"];
    let found: Value = serde_json::from_str(&kubernetes.cluster.ask(get, "")?)?;
    let texts = |list: &Value, field: &str| {
        let texts = list.as_array().into_iter().flatten();
        let texts = texts.filter_map(|it| it[field].as_str().map(str::to_owned));
        texts.collect::<Vec<_>>()
    };
    let managers = texts(&found["metadata"]["managedFields"], "manager");
    Ok((texts(&found["webhooks"], "name"), managers))
}

fn injected(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<bool> {
    let get = ["get", "pod", pod, "-o", "json"];
    let found: Value = serde_json::from_str(&namespace.ask(get, "")?)?;
    let containers = found["spec"]["initContainers"].as_array();
    Ok(containers
        .into_iter()
        .flatten()
        .any(|it| it["name"] == "tulle-proxy"))
}

async fn pods_that_are_always_of_the_mesh_are_so_as_long_as_the_values_say(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let cluster = &kubernetes.cluster;
    let program = Program::new()?;
    let (before, _) = configuration(kubernetes)?;
    install::apply(&program, cluster, &[ALWAYS]).await?;
    let builds = Namespace::apply(cluster, "builds", "", &pod("selected")).await?;
    ensure!(injected(&builds, "selected")?, "it is to be injected");
    // The roots are filled in without a claim to the fields, or no entry could be taken out.
    let managers = eventually(SOON, async || {
        let (_, managers) = configuration(kubernetes)?;
        ensure!(
            !managers.iter().any(|it| it == "tulle-control"),
            "{managers:?}"
        );
        Ok(managers)
    });
    ensure!(!managers.await?.is_empty(), "whoever installs it is one");
    let back = install::apply(&program, cluster, &[]).await;
    back.context("taking the selector out of the values")?;
    let (after, _) = configuration(kubernetes)?;
    ensure!(after == before, "{after:?} instead of {before:?}");
    builds.ask(["apply", "--server-side", "-f", "-"], &pod("forgotten"))?;
    ensure!(!injected(&builds, "forgotten")?, "nothing selects it");
    Ok(())
}
