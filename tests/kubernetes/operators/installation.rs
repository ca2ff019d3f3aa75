//! How an installation changes and goes, and what of others stays.

use anyhow::ensure;
use serde_json::Value;
use tulle_cluster::Cluster;
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::kubernetes::{Namespace, Program};
use tulle_tests::{Kubernetes, eventually};

use super::{SOON, WEB};

pub(super) async fn an_installation_goes_without_a_trace(_: &Kubernetes) -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    let before = everything(&cluster)?;
    let program = Program::new()?;
    install::install(&cluster, &["control.replicas=1"]).await?;
    let namespace = Namespace::apply(&cluster, "shop", "tulle.dev/inject=enabled", WEB).await?;
    let bundle = namespace.ask(["get", "configmap", "tulle-ca-root"], "");
    ensure!(bundle.is_ok(), "{bundle:?}");
    // That some kinds cannot be listed, because whoever serves them is away, stops nobody.
    cluster.ask(["apply", "-f", "-"], AWAY)?;
    is_changed_as_was_shown(&program, &cluster)?;
    is_listed_and_goes_by_force_alone(&program, &cluster, &namespace)?;
    cluster.ask(["delete", "-f", "-"], AWAY)?;
    drop(namespace);
    eventually(SOON, async || {
        let left = everything(&cluster)?;
        let left: Vec<_> = left.iter().filter(|it| !before.contains(it)).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    })
    .await?;
    let nothing = program.run(&cluster, &["uninstall"])?;
    ensure!(
        nothing.status == 0 && nothing.stderr.contains("Nothing of Tulle"),
        "{nothing}"
    );
    Ok(())
}

/// Fails unless what other values would change is shown, and changed only then; and nothing is where they are the same.
fn is_changed_as_was_shown(program: &Program, cluster: &Cluster) -> anyhow::Result<()> {
    // What would change is shown, and nothing is changed by that.
    let values = [
        "--set",
        "image.registry=tulle.test",
        "--set",
        "image.tag=\"1\"",
        "--set",
        "image.pullPolicy=Never",
    ];
    let upgrade = [&["upgrade", "--set", "control.replicas=1"], &values[..]].concat();
    let same = program.run(cluster, &upgrade)?;
    ensure!(
        same.status == 0 && same.stderr.contains("Nothing would change"),
        "{same}"
    );
    let other = [
        &upgrade[..],
        &[
            "--set",
            "control.log=debug",
            "--set",
            "injector.disruptionBudget=false",
            "--set",
            "injector.autoscaling.enabled=true",
            "--set",
            "injector.autoscaling.minReplicas=1",
        ],
    ]
    .concat();
    let shown = program.run(cluster, &other)?;
    ensure!(
        shown.status == 1 && shown.stdout.contains("+         - --log=debug"),
        "{shown}"
    );
    ensure!(
        shown
            .stdout
            .contains("PodDisruptionBudget tulle-system/tulle-injector (deleted)"),
        "{shown}"
    );
    let again = program.run(cluster, &other)?;
    ensure!(again.status == 1 && again.stdout == shown.stdout, "{again}");
    let json = program.run(cluster, &[&other[..], &["--output", "json"]].concat())?;
    let changes: Vec<Value> = serde_json::from_str(&json.stdout)?;
    let budget = changes
        .iter()
        .find(|it| it["kind"] == "PodDisruptionBudget");
    ensure!(
        json.status == 1 && budget.is_some_and(|it| it["change"] == "delete"),
        "{json}"
    );
    let failed = program.run(cluster, &["upgrade", "--set", "no.such=value"])?;
    ensure!(failed.status == 2, "{failed}");
    let done = program.run(cluster, &[&other[..], &["--yes"]].concat())?;
    ensure!(done.status == 0, "{done}");
    // As many as there were, until autoscaling has them be more.
    let replicas = "jsonpath={.spec.replicas}";
    let get = [
        "get",
        "-n",
        SYSTEM,
        "deployment/tulle-injector",
        "-o",
        replicas,
    ];
    ensure!(cluster.ask(get, "")? == "2");
    let same = program.run(cluster, &other)?;
    ensure!(
        same.status == 0 && same.stderr.contains("Nothing would change"),
        "{same}"
    );
    Ok(())
}

/// Fails unless all of it is listed, and goes although a pod has a sidecar only where somebody insists.
fn is_listed_and_goes_by_force_alone(
    program: &Program,
    cluster: &Cluster,
    namespace: &Namespace<'_>,
) -> anyhow::Result<()> {
    let listed = program.run(cluster, &["uninstall"])?;
    ensure!(
        listed.status == 3
            && listed.stderr.contains("Nothing was deleted")
            && listed.stderr.contains("kinds of away.example"),
        "{listed}"
    );
    ensure!(
        listed.stdout.contains("tulle-ca-root") && !listed.stdout.contains("CustomResource"),
        "{listed}"
    );
    // Pods that live by the control plane are in the way, whatever became of their label.
    namespace.ask(["label", "pod", "one", "tulle.dev/proxied-"], "")?;
    let refused = program.run(cluster, &["uninstall", "--yes", "--purge"])?;
    ensure!(
        refused.status == 1
            && refused
                .stderr
                .contains("1 pods still have a sidecar: shop/one;")
            && refused.stderr.contains("--force"),
        "{refused}"
    );
    let kept = [
        "get",
        "-n",
        SYSTEM,
        "secret/tulle-ca",
        "deployment/tulle-control",
    ];
    cluster.ask(kept, "")?;
    let force = ["uninstall", "--yes", "--purge", "--force"];
    let deleted = program.run(cluster, &force)?;
    ensure!(
        deleted.status == 3 && deleted.stderr.contains("something may be left"),
        "{deleted}"
    );
    Ok(())
}

/// What is left of an installation, one object of it Helm's, and what somebody keeps beside it.
const LEFT: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: tulle-system, labels: { app.kubernetes.io/part-of: tulle } }
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: ours
  namespace: tulle-system
  labels: { app.kubernetes.io/part-of: tulle }
  annotations: { meta.helm.sh/release-name: mesh, meta.helm.sh/release-namespace: infra }
---
apiVersion: v1
kind: Secret
metadata: { name: mine, namespace: tulle-system }
---
apiVersion: v1
kind: Pod
metadata: { name: alone, namespace: tulle-system }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: none, image: "tulle.test/pause:1" }]
"#;

pub(super) async fn others_and_helm_keep_what_is_theirs_until_somebody_insists(
    _: &Kubernetes,
) -> anyhow::Result<()> {
    let cluster = Cluster::start(1)?;
    let program = Program::new()?;
    let nobody = program.run(&cluster, &["uninstall", "--revision", "next"])?;
    ensure!(
        nobody.status == 0
            && nobody
                .stderr
                .contains("Nothing of Tulle is in this cluster."),
        "{nobody}"
    );
    let create = || eventually(SOON, async || cluster.ask(["apply", "-f", "-"], LEFT));
    create().await?;
    let no_revision = program.run(&cluster, &["uninstall", "--revision", "next"])?;
    ensure!(
        no_revision.status == 1
            && no_revision
                .stderr
                .contains("no revision next, nor any other"),
        "{no_revision}"
    );
    let others = "Pod alone, Secret mine";
    let listed = program.run(&cluster, &["uninstall"])?;
    ensure!(
        listed.status == 0
            && listed
                .stderr
                .contains(&format!("is not of Tulle: {others};"))
            && listed
                .stderr
                .contains("`helm uninstall mesh -n infra` first"),
        "{listed}"
    );
    let refused = program.run(&cluster, &["uninstall", "--yes"])?;
    ensure!(
        refused.status == 1
            && refused
                .stderr
                .contains("`helm uninstall mesh -n infra` first"),
        "{refused}"
    );
    let annotate = [
        "annotate",
        "-n",
        SYSTEM,
        "configmap/ours",
        "meta.helm.sh/release-name-",
    ];
    cluster.ask(annotate, "")?;
    let stays = program.run(&cluster, &["uninstall", "--yes"])?;
    ensure!(
        stays.status == 3
            && stays.stderr.contains("1 objects deleted.")
            && stays
                .stderr
                .contains(&format!("Namespace {SYSTEM} is still there"))
            && stays.stderr.contains(others),
        "{stays}"
    );
    cluster.ask(["get", "secret/mine", "pod/alone", "-n", SYSTEM], "")?;
    cluster.ask(["delete", "secret/mine", "pod/alone", "-n", SYSTEM], "")?;
    program.run(&cluster, &["uninstall", "--yes"])?.ok()?;
    create().await?;
    program
        .run(&cluster, &["uninstall", "--yes", "--force"])?
        .ok()?;
    let gone = cluster.ask(["get", "namespace", SYSTEM], "");
    ensure!(gone.is_err(), "{gone:?}");
    Ok(())
}

/// Kinds that are served by somebody who is not there.
const AWAY: &str = r#"
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: { name: v1.away.example }
spec:
  group: away.example
  version: v1
  groupPriorityMinimum: 1000
  versionPriority: 10
  insecureSkipTLSVerify: true
  service: { namespace: default, name: nobody }
"#;

/// The names of all objects of all kinds that stay, but for what the cluster itself writes as it goes.
fn everything(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let kinds = cluster.ask(["api-resources", "--verbs=list,delete", "-o", "name"], "")?;
    let changing = [
        "events",
        "events.events.k8s.io",
        "leases.coordination.k8s.io",
    ];
    let kinds: Vec<_> = kinds
        .lines()
        .filter(|kind| !changing.contains(kind))
        .collect();
    let list = ["get", &kinds.join(","), "-A", "-o", "name"].map(str::to_owned);
    let mut names: Vec<_> = cluster
        .ask(list.iter().map(String::as_str), "")?
        .lines()
        .map(str::to_owned)
        .collect();
    let ours = cluster.ask(["get", "leases", "-n", SYSTEM, "-o", "name"], "")?;
    names.extend(ours.lines().map(str::to_owned));
    Ok(names)
}
