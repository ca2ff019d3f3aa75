//! Tulle, installed by Helm as a person would: what comes, what stays, and who may change it.

use std::time::Duration;

use anyhow::ensure;
use tulle_cluster::Cluster;
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::kubernetes::{Namespace, Program};
use tulle_tests::{Kubernetes, Ran, eventually, gate};

tulle_tests::cases! { in Kubernetes:
    a_release_is_installed_upgraded_by_helm_alone_and_uninstalled ["helm"];
}

/// How long parts may take to come, on a busy machine.
const SOON: Duration = Duration::from_secs(90);
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/charts/tulle");

/// A pod that is in the mesh.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: one }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: one
    image: tulle.test/tulle:1
    args: [app, serve, --http, "8080", --name, one]
"#;

/// Namespaces that can be in the mesh, and that cannot.
const LEVELS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: is-baseline, labels: { pod-security.kubernetes.io/enforce: baseline } }
---
apiVersion: v1
kind: Namespace
metadata: { name: is-restricted, labels: { pod-security.kubernetes.io/enforce: restricted } }
---
apiVersion: v1
kind: Namespace
metadata: { name: is-open, labels: { pod-security.kubernetes.io/enforce: privileged } }
"#;

async fn a_release_is_installed_upgraded_by_helm_alone_and_uninstalled(
    _: &Kubernetes,
) -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    let program = Program::new()?;
    install::load(&program, &cluster)?;
    cluster.ask(["apply", "-f", "-"], LEVELS)?;
    let small = ["control.replicas=1"];
    let install = ["--create-namespace"];
    let notes = helm(&cluster, &program, "install", &install, &small)?.ok()?;
    ensure!(
        notes.contains("WARNING: is-baseline, is-restricted: ") && !notes.contains("is-open"),
        "{notes}"
    );
    eventually(SOON, async || install::serves(&cluster)).await?;
    let shop = Namespace::apply(&cluster, "shop", "tulle.dev/inject=enabled", POD).await?;
    let pod = shop.get("pods")?[0].to_string();
    ensure!(pod.contains("tulle-proxy"), "{pod}");

    // It is Helm's to change.
    let refused = program.run(&cluster, &["upgrade", "--yes"])?;
    ensure!(
        refused.status == 2
            && refused
                .stderr
                .contains("release tulle in namespace tulle-system")
            && refused.stderr.contains("helm upgrade"),
        "{refused}"
    );
    // None of what runs goes when autoscaling takes over; there are two injectors, and it asks for one at least.
    let scaled = [
        "control.replicas=1",
        "injector.autoscaling.enabled=true",
        "injector.autoscaling.minReplicas=1",
    ];
    let replicas = [
        "get",
        "-n",
        SYSTEM,
        "deployment/tulle-injector",
        "-o",
        "jsonpath={.spec.replicas}",
    ];
    for _ in 0..2 {
        helm(&cluster, &program, "upgrade", &[], &scaled)?.ok()?;
        ensure!(cluster.ask(replicas, "")? == "2");
    }
    // Nor does anything that somebody else has scaled.
    let scale = [
        "scale",
        "-n",
        SYSTEM,
        "deployment/tulle-injector",
        "--replicas=3",
    ];
    cluster.ask(scale, "")?;
    helm(&cluster, &program, "upgrade", &[], &scaled)?.ok()?;
    ensure!(cluster.ask(replicas, "")? == "3");

    // What control planes have written is nobody's release.
    command(&cluster, &["uninstall", "tulle", "--namespace", SYSTEM])?.ok()?;
    let left = program.run(&cluster, &["uninstall"])?.ok()?;
    for name in ["tulle-ca ", "tulle-ca-root", "tulle-control"] {
        ensure!(
            format!("{left} ").replace('\n', " ").contains(name),
            "{name}: {left}"
        );
    }
    ensure!(
        !left.contains("Deployment") && !left.contains("Webhook"),
        "{left}"
    );
    let forced = ["uninstall", "--yes", "--purge", "--force"];
    program.run(&cluster, &forced)?.ok()?;
    let nothing = program.run(&cluster, &["uninstall"])?;
    ensure!(nothing.stderr.contains("Nothing of Tulle"), "{nothing}");
    Ok(())
}

/// Runs `helm install` or `upgrade` with the images of this build.
fn helm(
    cluster: &Cluster,
    program: &Program,
    verb: &str,
    options: &[&str],
    values: &[&str],
) -> anyhow::Result<Ran> {
    let images = program.image_values();
    // Helm's own way of saying that `1` is text.
    let images: Vec<_> = images.iter().map(|it| it.replace('"', "")).collect();
    let images = images.iter().flat_map(|it| ["--set-string", it.as_str()]);
    let values = values.iter().flat_map(|it| ["--set", it]);
    let arguments: Vec<_> = [verb, "tulle", CHART, "--namespace", SYSTEM]
        .into_iter()
        .chain(options.iter().copied())
        .chain(images)
        .chain(values)
        .collect();
    command(cluster, &arguments)
}

fn command(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Ran> {
    let mut command = cluster.control().on_network(gate::built("helm"));
    command
        .args(arguments)
        .env("KUBECONFIG", cluster.kubeconfig());
    Ok(command.output()?.into())
}
