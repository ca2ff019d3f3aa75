//! What `tulle check` finds, and that it finds nothing where all is well.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tulle_tests::kubernetes::install::{self, SYSTEM};
use tulle_tests::kubernetes::{Namespace, Program};
use tulle_tests::{Kubernetes, Ran, eventually};

use crate::operators::WEB;
use parts::what_keeps_sidecars_from_starting_and_from_the_control_plane_is_found;
use unmade::pods_that_are_not_made_for_no_sidecars_sake_are_a_warning_until_they_are;

mod parts;
mod policies;
mod unmade;

tulle_tests::cases! { in Kubernetes:
    what_is_wrong_is_found_and_has_a_remedy ["alone"];
    what_is_asked_for_in_vain_is_found;
    a_quota_that_keeps_sidecars_out_is_found_until_they_meet_it;
    a_limit_range_that_keeps_sidecars_out_is_found_until_they_meet_it;
    pods_that_are_not_made_for_no_sidecars_sake_are_a_warning_until_they_are;
    a_sidecar_that_is_not_connected_is_found;
    what_keeps_sidecars_from_starting_and_from_the_control_plane_is_found ["alone"];
    what_a_viewer_may_not_see_is_unknown_with_the_right_that_it_takes;
}

/// How long the mesh may take to know of a change.
const SOON: Duration = Duration::from_secs(30);

/// What `tulle check` says of everything.
pub(crate) fn findings(kubernetes: &Kubernetes) -> anyhow::Result<Vec<Value>> {
    findings_of(kubernetes, &[])
}

/// What it says with such options.
fn findings_of(kubernetes: &Kubernetes, options: &[&str]) -> anyhow::Result<Vec<Value>> {
    let run = kubernetes.tulle(&[&["check", "--output", "json"], options].concat())?;
    serde_json::from_str(&run.stdout).with_context(|| run.to_string())
}

async fn what_is_wrong_is_found_and_has_a_remedy(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let said = kubernetes.tulle(&["check", "--pre"])?.ok()?;
    ensure!(said.contains("ok       permissions"), "{said}");
    ensure!(said.contains("pod security"), "{said}");
    let bare = kubernetes.apply("uninjected", WEB).await?;
    let label = |label: &str| {
        kubernetes.cluster.ask(
            ["label", "namespace", "uninjected", "--overwrite", label],
            "",
        )
    };
    label("tulle.dev/inject=enabled")?;
    let found = eventually(SOON, async || {
        // Sidecars of other tests come and go.
        let found = findings(kubernetes)?;
        ensure!(found.iter().all(|it| it["level"] != "error"), "{found:?}");
        Ok(found)
    })
    .await?;
    for (subject, words) in [
        ("webhook tulle-injector", "reaches it, and it injects"),
        (
            "certificate of tulle-injector (",
            "verifies against the caBundle; ends in",
        ),
        ("clocks of nodes", "agree with the API server's"),
        ("objects", "can be used"),
    ] {
        let told = found.iter().any(|it| {
            let text = |field: &str| it[field].as_str().unwrap_or_default();
            text("level") == "ok"
                && text("subject").starts_with(subject)
                && text("state").contains(words)
        });
        ensure!(told, "{subject}: {found:?}");
    }
    let missing = found
        .iter()
        .find(|it| it["subject"] == "namespace uninjected");
    let missing = missing.context("the pod without a sidecar is not found")?;
    ensure!(
        missing["level"] == "warning" && missing["state"] == "1 pods have no sidecar: one",
        "{missing}"
    );
    label("pod-security.kubernetes.io/enforce=baseline")?;
    let run = kubernetes.tulle(&["check"])?;
    ensure!(
        run.status == 1
            && run
                .stdout
                .contains("enforces the pod security level baseline"),
        "{run}"
    );
    policies::are_judged_by_what_is_in_force(kubernetes, &bare).await?;
    drop(bare);
    // A control plane that does not run is named, with where to look.
    let scale = |replicas: &str| {
        kubernetes.cluster.ask(
            ["scale", "-n", SYSTEM, "deployment/tulle-injector", replicas],
            "",
        )
    };
    scale("--replicas=0")?;
    let down = eventually(SOON, async || {
        let found = findings(kubernetes)?;
        let called = found
            .iter()
            .find(|it| it["subject"] == "webhook tulle-injector");
        let called = called.context("the webhook is not tried")?;
        let why = called["state"].as_str().unwrap_or_default();
        ensure!(
            called["level"] == "error" && why.contains("failed calling webhook"),
            "{called}"
        );
        let injector = found
            .into_iter()
            .find(|it| it["subject"] == "tulle-injector");
        let injector = injector.context("the injector is not looked at")?;
        ensure!(
            injector["state"] == "0 of 0 replicas are ready",
            "{injector}"
        );
        Ok(injector)
    })
    .await;
    let waited = kubernetes.tulle(&["check", "--wait=1s"]);
    scale("--replicas=2")?;
    let again = kubernetes.tulle(&["check", "--wait=1m"]);
    eventually(SOON, async || install::serves(&kubernetes.cluster)).await?;
    let (waited, again, down) = (waited?, again?, down?);
    ensure!(waited.status == 1, "{waited}");
    again.ok()?;
    ensure!(
        down["level"] == "error" && down["remedy"].is_string(),
        "{down}"
    );
    Ok(())
}

/// A workload whose pods say of their sidecars what nobody reads.
const LOUD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: loud }
spec:
  replicas: 2
  selector: { matchLabels: { app: loud } }
  template:
    metadata:
      labels: { app: loud, tulle.dev/inject: WORD }
      annotations: { tulle.dev/proxy-log-level: loud, tulle.dev/exlude-inbound-ports: "9000" }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: none, image: "tulle.test/pause:1" }]
"#;

async fn what_is_asked_for_in_vain_is_found(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let plain = LOUD.replace("tulle.dev/inject: WORD", "says: nothing");
    let (heard, unheard) = (
        LOUD.replace("WORD", "enabled"),
        LOUD.replace("WORD", "\"yes\""),
    );
    let apply = async |name, label, text: &str| {
        Namespace::apply(&kubernetes.cluster, name, label, text).await
    };
    let says_true = apply("says-true", "tulle.dev/inject=true", &plain).await?;
    let says_nosuch = apply("says-nosuch", "tulle.dev/rev=nosuch", &plain).await?;
    // Such pods are refused, which nobody hears but their ReplicaSet.
    let refused = unheard.replace("{ name: loud }", "{ name: refused }");
    says_true.ask(["apply", "-f", "-"], &refused)?;
    let loud = apply("is-loud", "tulle.dev/inject=enabled", &heard).await?;
    let _well = apply("is-well", "tulle.dev/rev=default", WEB).await?;
    for (namespace, subject, level, state, remedy) in [
        (
            "says-true",
            "namespace says-true",
            "warning",
            "tulle.dev/inject=\"true\"",
            "tulle.dev/inject=enabled",
        ),
        (
            "says-true",
            "says-true/deployment/refused",
            "error",
            "label tulle.dev/inject has the value \"yes\"",
            "in its pod template",
        ),
        (
            "says-nosuch",
            "namespace says-nosuch",
            "error",
            "tulle.dev/rev=nosuch",
            "(default)",
        ),
        (
            "is-loud",
            "is-loud/deployment/loud",
            "warning",
            "tulle.dev/proxy-log-level has the value \"loud\"",
            "in its pod template",
        ),
        (
            "is-loud",
            "is-loud/deployment/loud",
            "warning",
            "tulle.dev/exlude-inbound-ports is not known",
            "in its pod template",
        ),
    ] {
        eventually(SOON, async || {
            let found = findings_of(kubernetes, &["-n", namespace])?;
            let told = found.iter().filter(|it| {
                let text = |field: &str| it[field].as_str().unwrap_or_default();
                text("level") == level
                    && text("subject") == subject
                    && text("state").contains(state)
                    && text("remedy").contains(remedy)
            });
            ensure!(told.count() == 1, "{subject} {state}: {found:?}");
            Ok(())
        })
        .await?;
    }
    drop((says_true, says_nosuch));
    // Once for all pods of a workload, and nothing of others.
    let found = findings_of(kubernetes, &["-n", "is-loud"])?;
    let told = found
        .iter()
        .filter(|it| it["subject"].to_string().contains("is-loud"));
    ensure!(told.count() == 2, "{found:?}");
    drop(loud);
    let found = findings_of(kubernetes, &["-n", "is-well"])?;
    ensure!(found.iter().all(|it| it["level"] == "ok"), "{found:?}");
    Ok(())
}

/// Counts what sidecars do not have unless somebody says so.
const QUOTA: &str = r#"
apiVersion: v1
kind: ResourceQuota
metadata: { name: counted }
spec: { hard: { limits.cpu: "8" } }
"#;

/// A workload that meets it, without a sidecar.
const COUNTED: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: none, image: "tulle.test/pause:1", resources: { limits: { cpu: 100m } } }]
"#;

async fn a_quota_that_keeps_sidecars_out_is_found_until_they_meet_it(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let hindrance = Hindrance {
        namespace: "is-counted",
        workload: COUNTED,
        rule: QUOTA,
        told: [
            (
                "namespace is-counted",
                "its ResourceQuota counted counts limits.cpu",
                "--set proxy.cpuLimit",
            ),
            (
                "is-counted/deployment/web",
                "must specify limits.cpu for: tulle-capture,tulle-proxy",
                "",
            ),
        ],
        remedy: json!({ "tulle.dev/proxy-cpu-limit": "200m" }),
    };
    hindrance.is_found_until_it_is_met(kubernetes).await
}

/// Wants more of each container than sidecars ask for.
const RANGE: &str = r#"
apiVersion: v1
kind: LimitRange
metadata: { name: wide }
spec: { limits: [{ type: Container, min: { cpu: 50m, memory: 32Mi } }] }
"#;

async fn a_limit_range_that_keeps_sidecars_out_is_found_until_they_meet_it(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let hindrance = Hindrance {
        namespace: "is-limited",
        workload: &COUNTED.replace("{ cpu: 100m }", "{ cpu: 100m, memory: 64Mi }"),
        rule: RANGE,
        told: [
            (
                "namespace is-limited",
                "its LimitRange wide requires a request of at least 50m of cpu for each container, and sidecars have 10m",
                "--set proxy.cpuRequest=50m --set proxy.memoryRequest=32Mi",
            ),
            (
                "is-limited/deployment/web",
                "per Container is ",
                "what the message says",
            ),
        ],
        remedy: json!({ "tulle.dev/proxy-cpu-request": "50m", "tulle.dev/proxy-memory-request": "32Mi" }),
    };
    hindrance.is_found_until_it_is_met(kubernetes).await
}

/// A rule of a namespace that no pod with a sidecar meets, unless its annotations say more.
struct Hindrance<'a> {
    namespace: &'a str,
    workload: &'a str,
    rule: &'a str,
    /// Subject, state and remedy of the findings, or parts of these.
    told: [(&'a str, &'a str, &'a str); 2],
    /// The annotations with which pods meet it.
    remedy: Value,
}

impl Hindrance<'_> {
    async fn is_found_until_it_is_met(&self, kubernetes: &Kubernetes) -> anyhow::Result<()> {
        let kubernetes = kubernetes.meshed().await?;
        let namespace = kubernetes
            .apply_meshed(self.namespace, self.workload)
            .await?;
        namespace.ask(["apply", "-f", "-"], self.rule)?;
        namespace.ask(["delete", "pod", "--all"], "")?;
        let errors = || -> anyhow::Result<Vec<Value>> {
            let mut found = findings_of(kubernetes, &["-n", self.namespace])?;
            found.retain(|it| it["level"] == "error");
            Ok(found)
        };
        eventually(SOON, async || {
            let found = errors()?;
            for (subject, state, remedy) in self.told {
                let told = found.iter().any(|it| {
                    let text = |field: &str| it[field].as_str().unwrap_or_default();
                    text("subject") == subject
                        && text("state").contains(state)
                        && text("remedy").contains(remedy)
                });
                ensure!(told, "{subject}: {found:?}");
            }
            Ok(())
        })
        .await?;
        let template = json!({ "metadata": { "annotations": self.remedy } });
        let patch = json!({ "spec": { "template": template } }).to_string();
        namespace.ask(["patch", "deployment/web", "-p", &patch], "")?;
        eventually(SOON, async || {
            let found = errors()?;
            ensure!(found.is_empty(), "{found:?}");
            Ok(())
        })
        .await
    }
}

/// A pod that is called by mTLS, and asks the control plane for nothing: as one whose sidecar hangs or is cut off.
const CUT_OFF: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: one, labels: { tulle.dev/inject: disabled, tulle.dev/proxied: "true" } }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: none, image: "tulle.test/pause:1" }]
"#;

async fn a_sidecar_that_is_not_connected_is_found(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    /// The time that a sidecar has to connect, and what may be on a busy machine.
    const A_MINUTE: Duration = Duration::from_secs(120);
    let kubernetes = kubernetes.meshed().await?;
    let cut_off = kubernetes.apply_meshed("is-cut-off", CUT_OFF).await?;
    let well = kubernetes.apply_meshed("is-connected", WEB).await?;
    let found = |namespace: &str| -> anyhow::Result<Option<Value>> {
        let found = findings_of(kubernetes, &["-n", namespace])?;
        Ok(found.into_iter().find(|it| it["subject"] == "sidecars"))
    };
    let told = eventually(A_MINUTE, async || {
        found("is-cut-off")?.context("nobody tells of it")
    })
    .await?;
    let text = |field: &str| told[field].as_str().unwrap_or_default();
    ensure!(
        text("level") == "warning"
            && text("state").contains("1 are not connected")
            && text("state").ends_with(": is-cut-off/one")
            && text("remedy").contains("kubectl -n is-cut-off logs one"),
        "{told}"
    );
    let none = found("is-connected")?;
    ensure!(none.is_none(), "{none:?}");
    for (namespace, status, words) in [
        ("is-cut-off", 1, "not connected"),
        ("is-connected", 0, "tulle-control-"),
    ] {
        let said = kubernetes.tulle(&["status", "-n", namespace])?;
        let row = said.stdout.lines().find(|it| it.starts_with(namespace));
        let row = row.with_context(|| said.to_string())?;
        ensure!(said.status == status && row.contains(words), "{said}");
    }
    // One that has run for as long is asked for its certificate.
    for (subject, state) in [
        ("certificates of sidecars", "1 of 1 were asked"),
        ("namespaces of injectors", "injectors follow them"),
    ] {
        eventually(A_MINUTE, async || {
            let found = findings_of(kubernetes, &["-n", "is-connected"])?;
            let told = found.iter().find(|it| it["subject"] == subject);
            let told = told.with_context(|| format!("{subject}: {found:?}"))?;
            let said = told["state"].as_str().unwrap_or_default();
            ensure!(told["level"] == "ok" && said.contains(state), "{told}");
            Ok(())
        })
        .await?;
    }
    drop((cut_off, well));
    Ok(())
}

/// Somebody who may see what is in namespaces, but no Secrets, and nothing of the cluster itself.
const VIEWER: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: viewer }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view }
subjects: [{ apiGroup: rbac.authorization.k8s.io, kind: User, name: viewer }]
"#;

async fn what_a_viewer_may_not_see_is_unknown_with_the_right_that_it_takes(
    kubernetes: &Kubernetes,
) -> anyhow::Result<()> {
    let kubernetes = kubernetes.meshed().await?;
    let cluster = &kubernetes.cluster;
    cluster.ask(["apply", "-f", "-"], VIEWER)?;
    let text = std::fs::read_to_string(cluster.kubeconfig())?;
    let mut config: Value = serde_saphyr::from_str(&text)?;
    config["users"][0]["user"]["as"] = json!("viewer");
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config.to_string())?;
    let program = Program::new()?;
    let tulle = |arguments: &[&str]| -> anyhow::Result<Ran> {
        let mut command = program.command(cluster);
        command.env("KUBECONFIG", file.path()).args(arguments);
        Ok(command.output()?.into())
    };
    let _well = kubernetes.apply_meshed("is-viewed", WEB).await?;
    let checked = tulle(&["check", "-n", "is-viewed"])?;
    ensure!(checked.status == 3, "{checked}");
    for words in [
        "ok       tulle-control ",
        "ok       workloads ",
        "unknown  control plane (",
        "create pods/portforward in namespace tulle-system",
        "kubectl auth can-i list mutatingwebhookconfigurations.admissionregistration.k8s.io",
    ] {
        ensure!(checked.stdout.contains(words), "{words}: {checked}");
    }
    ensure!(
        !checked.stdout.contains("\nerror") && !checked.stdout.contains("`tulle check`"),
        "{checked}"
    );
    for (arguments, status, words) in [
        (
            &["status"][..],
            2,
            "kubectl auth can-i create pods --subresource=portforward -n tulle-system",
        ),
        (
            &["proxy", "certs", "is-viewed/one"],
            1,
            "kubectl auth can-i create pods --subresource=portforward -n is-viewed",
        ),
        (&["upgrade"], 2, "kubectl auth can-i "),
        (&["uninstall"], 3, "you have no right to list secrets"),
    ] {
        let refused = tulle(arguments)?;
        ensure!(
            refused.status == status && refused.stderr.contains(words),
            "{arguments:?}: {refused}"
        );
        ensure!(!refused.stderr.contains("`tulle check`"), "{refused}");
    }
    cluster.ask(["delete", "-f", "-"], VIEWER)?;
    Ok(())
}
