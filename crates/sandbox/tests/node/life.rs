//! How containers live: their order, their probes, their restarts and their end.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tulle_sandbox::{ObjectKey, PodView, Sandbox};

use super::{DEADLINE, Story, shell};

/// Pods that write what happens to them into OUT, a directory of the test's.
const MANIFESTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: words, namespace: life }
data: { first: one, second: two }
---
apiVersion: v1
kind: Pod
metadata: { name: ordered, namespace: life, labels: { app: ordered } }
spec:
  restartPolicy: Never
  initContainers:
  - name: first
    command: [sh, -c, "sleep 0.2; echo first >> /run/secrets/out/order"]
    volumeMounts: [{ name: out, mountPath: /run/secrets/out }]
  - name: second
    command: [sh, -c, "echo second >> /run/secrets/out/order"]
    volumeMounts: [{ name: out, mountPath: /run/secrets/out }]
  containers:
  - name: app
    command: [sh, -c, "echo app $(NAME) $(LABEL) >> /run/secrets/out/order; cat /run/secrets/words/* >> /run/secrets/out/order"]
    env:
    - { name: NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
    - { name: LABEL, valueFrom: { fieldRef: { fieldPath: "metadata.labels['app']" } } }
    volumeMounts:
    - { name: out, mountPath: /run/secrets/out }
    - { name: words, mountPath: /run/secrets/words }
  volumes:
  - { name: out, hostPath: { path: OUT } }
  - { name: words, configMap: { name: words, items: [{ key: second, path: word }] } }
---
apiVersion: v1
kind: Pod
metadata: { name: stuck, namespace: life }
spec:
  restartPolicy: Never
  initContainers: [{ name: bad, command: ["false"] }]
  containers:
  - name: app
    command: [sh, -c, "echo started >> /run/secrets/out/stuck"]
    volumeMounts: [{ name: out, mountPath: /run/secrets/out }]
  volumes: [{ name: out, hostPath: { path: OUT } }]
---
apiVersion: v1
kind: Pod
metadata: { name: looping, namespace: life }
spec:
  containers: [{ name: app, command: [sh, -c, "exit 3"] }]
---
apiVersion: v1
kind: Pod
metadata: { name: probed, namespace: life }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: file
    command: [sh, -c, "touch /run/secrets/state/alive; exec sleep 1000"]
    readinessProbe: { exec: { command: [test, -e, /run/secrets/state/ready] }, periodSeconds: 1, failureThreshold: 1 }
    livenessProbe: { exec: { command: [test, -e, /run/secrets/state/alive] }, periodSeconds: 1, failureThreshold: 2 }
    volumeMounts: [{ name: state, mountPath: /run/secrets/state }]
  - name: port
    command: [python3, -m, http.server, --bind, "::", "9000"]
    readinessProbe: { tcpSocket: { port: 9000 }, periodSeconds: 1 }
  volumes: [{ name: state, emptyDir: {} }]
---
apiVersion: v1
kind: Pod
metadata: { name: stubborn, namespace: life }
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: app
    command: [sh, -c, "trap 'echo term >> /run/secrets/out/end' TERM; while :; do sleep 0.05; done"]
    lifecycle: { preStop: { exec: { command: [sh, -c, "echo hook >> /run/secrets/out/end"] } } }
    volumeMounts: [{ name: out, mountPath: /run/secrets/out }]
  volumes: [{ name: out, hostPath: { path: OUT } }]
"#;

/// Brings the pods up beside whatever runs, looks at each, and takes them away.
pub(super) async fn containers_live_as_in_kubernetes(sandbox: &Sandbox) -> Story {
    let out = tempfile::tempdir()?;
    let manifests = MANIFESTS.replace("OUT", &out.path().display().to_string());
    sandbox.apply("life", &manifests)?;
    init_containers_run_in_order_and_before_the_app(sandbox, out.path()).await?;
    a_failing_container_waits_longer_each_time(sandbox).await?;
    probes_decide_about_traffic_and_life(sandbox).await?;
    the_end_is_a_hook_then_sigterm_then_sigkill(sandbox, out.path()).await?;
    sandbox.remove("life")?;
    let gone = |pods: &[PodView]| pods.iter().all(|pod| pod.key.namespace != "life");
    Ok(sandbox.wait_until(DEADLINE, gone).await?)
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("life", name)
}

/// Waits until a pod is as it should be.
async fn until(sandbox: &Sandbox, name: &str, wanted: impl Fn(&PodView) -> bool) -> Story {
    let found = |pods: &[PodView]| {
        let pod = pods.iter().find(|pod| pod.key == key(name));
        pod.is_some_and(&wanted)
    };
    Ok(sandbox.wait_until(DEADLINE, found).await?)
}

async fn init_containers_run_in_order_and_before_the_app(sandbox: &Sandbox, out: &Path) -> Story {
    until(sandbox, "ordered", |pod| pod.phase == "Succeeded").await?;
    let order = fs::read_to_string(out.join("order"))?;
    assert_eq!(
        order.split_whitespace().collect::<Vec<_>>(),
        ["first", "second", "app", "ordered", "ordered", "two"],
        "with values from fields, and the one key that is mounted"
    );
    until(sandbox, "stuck", |pod| pod.phase == "Failed").await?;
    assert!(!out.join("stuck").exists(), "its app was never started");
    Ok(())
}

async fn a_failing_container_waits_longer_each_time(sandbox: &Sandbox) -> Story {
    // The first restart is at once; then 500 ms, 1 s, 2 s and so on.
    let longer = ["2s", "4s", "8s", "16s", "30s"];
    until(sandbox, "looping", |pod| {
        pod.container("app").is_some_and(|app| {
            let message = app.message.as_deref().unwrap_or_default();
            app.state == "CrashLoopBackOff"
                && app.exit_code == Some(3)
                && app.restarts >= 3
                && longer
                    .iter()
                    .any(|delay| message.ends_with(&format!(" in {delay}")))
                && !pod.ready
        })
    })
    .await
}

async fn probes_decide_about_traffic_and_life(sandbox: &Sandbox) -> Story {
    let container = |pod: &PodView, name: &str, ready: bool, restarts: u32| {
        let found = pod.container(name);
        found.is_some_and(|it| it.pid.is_some() && it.ready == ready && it.restarts == restarts)
    };
    until(sandbox, "probed", |pod| {
        container(pod, "port", true, 0) && container(pod, "file", false, 0) && !pod.ready
    })
    .await?;
    let probed = key("probed");
    shell(sandbox, &probed, "touch /run/secrets/state/ready").await?;
    until(sandbox, "probed", |pod| pod.ready).await?;
    shell(sandbox, &probed, "rm /run/secrets/state/ready").await?;
    until(sandbox, "probed", |pod| {
        !pod.ready && container(pod, "file", false, 0)
    })
    .await?;
    // The volume outlives the container, and so does the other one.
    shell(
        sandbox,
        &probed,
        "touch /run/secrets/state/ready; rm /run/secrets/state/alive",
    )
    .await?;
    until(sandbox, "probed", |pod| {
        pod.ready && container(pod, "file", true, 1) && container(pod, "port", true, 0)
    })
    .await
}

async fn the_end_is_a_hook_then_sigterm_then_sigkill(sandbox: &Sandbox, out: &Path) -> Story {
    until(sandbox, "stubborn", |pod| pod.ready).await?;
    let began = Instant::now();
    // The manifest goes, so that nobody starts it again.
    let file = out.join("end");
    sandbox.delete_pod(&key("stubborn"), None)?;
    until(sandbox, "stubborn", |pod| pod.terminating).await?;
    while fs::read_to_string(&file).unwrap_or_default() != "hook\nterm\n" {
        assert!(
            began.elapsed() < DEADLINE,
            "the hook comes before the signal"
        );
        tokio::task::yield_now().await;
    }
    until(sandbox, "stubborn", |pod| !pod.terminating).await?;
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(20),
        "all of its grace period and no more: {took:?}"
    );
    Ok(())
}
