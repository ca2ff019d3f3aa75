//! The sandbox as a whole, in real namespaces. Where the machine does not permit them it says SKIP, or fails if
//! `TULLE_TEST_REQUIRE` names `netns` or `all`.

#[path = "node/life.rs"]
mod life;

use std::error::Error as StdError;
use std::fs;
use std::path::Path;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use tulle_sandbox::{
    Error, GATEWAY_V4, Node, ObjectKey, Options, PodView, Sandbox, What, enter_node,
};

const DEADLINE: Duration = Duration::from_secs(30);

const MANIFESTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: settings, namespace: shop }
data: { GREETING: hello }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  selector: { app: web }
  ipFamilyPolicy: PreferDualStack
  ports: [{ name: http, port: 80, targetPort: http }]
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 2
      initContainers:
      - name: page
        command: [sh, -c, "hostname > /run/secrets/www/index.html"]
        volumeMounts: [{ name: www, mountPath: /var/run/secrets/www }]
      containers:
      - name: web
        command: [python3, -m, http.server, --bind, "::", --directory, /run/secrets/www, "8080"]
        ports: [{ name: http, containerPort: 8080 }]
        readinessProbe: { httpGet: { port: http, path: /index.html }, periodSeconds: 1 }
        volumeMounts: [{ name: www, mountPath: /var/run/secrets/www }]
      volumes: [{ name: www, emptyDir: {} }]
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: shop }
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: helper
    restartPolicy: Always
    command: [sh, -c, "trap 'echo helper ends; exit 0' TERM; while :; do sleep 0.05; done"]
    startupProbe: { exec: { command: ["true"] }, periodSeconds: 1 }
  containers:
  - name: client
    command: [sh, -c, "echo $(GREETING) from $(IP); trap 'exit 0' TERM; while :; do sleep 0.05; done"]
    env:
    - { name: GREETING, valueFrom: { configMapKeyRef: { name: settings, key: GREETING } } }
    - { name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
    volumeMounts: [{ name: token, mountPath: /var/run/secrets/tulle }]
  volumes:
  - name: token
    projected: { sources: [{ serviceAccountToken: { path: token, audience: tulle-ca } }] }
"#;

fn main() {
    let node = match enter_node() {
        Ok(node) => node,
        Err(error) if not_permitted(&error) => return,
        Err(_) => std::process::exit(1),
    };
    let arguments = Arguments::from_args();
    let trial = Trial::test("manifests_become_pods_that_reach_each_other", move || {
        run(node)
    });
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

/// Says SKIP; false if the machine is required to permit it.
fn not_permitted(error: &Error) -> bool {
    let cause = error
        .source()
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    println!("SKIP netns: {error}{cause}");
    let required = std::env::var_os("TULLE_TEST_REQUIRE").unwrap_or_default();
    !required
        .to_string_lossy()
        .split(',')
        .any(|word| matches!(word.trim(), "all" | "netns"))
}

fn run(node: Node) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("shop.yaml"), MANIFESTS)?;
        let started = Sandbox::start(node, Options::default(), directory.path()).await;
        let sandbox = match started {
            Err(error) if error.is_denied() && not_permitted(&error) => return Ok(()),
            started => started?,
        };
        let result = story(&sandbox, directory.path()).await;
        if result.is_err() {
            eprintln!("{:#?}", sandbox.pods());
        }
        result.map_err(|failure| Failed::from(failure.to_string()))
    })
}

type Story = Result<(), Box<dyn StdError>>;

async fn story(sandbox: &Sandbox, directory: &Path) -> Story {
    sandbox.wait_ready(DEADLINE).await?;
    let client = ObjectKey::new("shop", "client");
    pods_are_set_up_as_their_manifests_say(sandbox, &client).await?;
    services_are_found_and_balanced(sandbox, &client).await?;
    the_gateway_keeps_its_hardware_address(sandbox, &client).await?;
    failures_are_healed(sandbox).await?;
    changes_are_followed(sandbox, directory, &client).await?;
    life::containers_live_as_in_kubernetes(sandbox).await?;
    the_end_waits_for_the_pods(sandbox).await
}

async fn shell(
    sandbox: &Sandbox,
    pod: &ObjectKey,
    script: &str,
) -> Result<String, Box<dyn StdError>> {
    let output = sandbox.exec(pod, None, ["sh", "-c", script]).await?;
    let text = String::from_utf8(output.stdout)?;
    if output.status == 0 {
        return Ok(text.trim().to_owned());
    }
    Err(format!(
        "{script}: status {}, {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    )
    .into())
}

async fn pods_are_set_up_as_their_manifests_say(sandbox: &Sandbox, client: &ObjectKey) -> Story {
    let ip = sandbox
        .pods()
        .iter()
        .find(|pod| pod.key == *client)
        .map(|pod| pod.ips.v4.to_string());
    let log = String::from_utf8(sandbox.logs(client, None)?)?;
    assert_eq!(log.trim(), format!("hello from {}", ip.unwrap_or_default()));
    assert_eq!(shell(sandbox, client, "hostname").await?, "client");
    let token = shell(sandbox, client, "cat /var/run/secrets/tulle/token").await?;
    assert_eq!(token.split('.').count(), 3, "a JWT");
    assert_eq!(
        shell(sandbox, client, "ls /run/tulle").await?,
        "",
        "the node's files are out of sight"
    );
    assert!(
        shell(sandbox, client, "unshare -n true").await.is_err(),
        "root in a pod is no administrator"
    );
    let failed = sandbox.exec(client, None, ["no-such-program"]).await?;
    assert_eq!(failed.status, 126);
    Ok(())
}

async fn services_are_found_and_balanced(sandbox: &Sandbox, client: &ObjectKey) -> Story {
    let capture = sandbox.capture()?;
    for (family, address) in [
        ("AF_INET", "web"),
        ("AF_INET6", "web.shop.svc.cluster.local"),
    ] {
        let script = format!(
            "python3 -c \"import socket, urllib.request\nf = socket.{family}\n\
             ip = socket.getaddrinfo('{address}', 80, f, socket.SOCK_STREAM)[0][4][0]\n\
             host = '[' + ip + ']' if f == socket.AF_INET6 else ip\n\
             names = {{urllib.request.urlopen('http://' + host + '/index.html').read() for _ in range(40)}}\n\
             print(len(names))\""
        );
        assert_eq!(shell(sandbox, client, &script).await?, "2", "{family}");
    }
    capture.settle().await;
    assert!(
        capture.contains(b"GET /index.html"),
        "{} frames",
        capture.frames()
    );
    assert!(!capture.contains(b"no such bytes"));
    let unknown = "python3 -c \"import socket; socket.getaddrinfo('nobody', 80)\"";
    assert!(shell(sandbox, client, unknown).await.is_err());
    let web = web(sandbox).remove(0);
    let itself = "python3 -c \"import urllib.request as u; [u.urlopen('http://web/index.html', timeout=2).read() for _ in range(20)]\"";
    shell(sandbox, &web.key, itself).await?;
    Ok(())
}

/// A bridge without one of its own has the lowest of its ports', which come and go with the pods; whoever knows the old
/// one is cut off until it asks again.
async fn the_gateway_keeps_its_hardware_address(sandbox: &Sandbox, client: &ObjectKey) -> Story {
    let neighbours = shell(sandbox, client, "cat /proc/net/arp").await?;
    let gateway = neighbours
        .lines()
        .find(|line| line.starts_with(&format!("{GATEWAY_V4} ")));
    assert!(
        gateway.is_some_and(|line| line.contains(" 02:54:55:4c:4c:45 ")),
        "{neighbours}"
    );
    Ok(())
}

fn web(sandbox: &Sandbox) -> Vec<PodView> {
    sandbox
        .pods()
        .into_iter()
        .filter(|pod| pod.key.name.starts_with("web-") && !pod.terminating)
        .collect()
}

async fn failures_are_healed(sandbox: &Sandbox) -> Story {
    let victim = web(sandbox).remove(0).key;
    sandbox.kill_pod(&victim)?;
    let restarted = |pods: &[PodView]| {
        let pod = pods.iter().find(|pod| pod.key == victim);
        pod.is_some_and(|pod| {
            pod.ready && pod.container("web").is_some_and(|web| web.restarts == 1)
        })
    };
    sandbox.wait_until(DEADLINE, restarted).await?;
    sandbox.delete_pod(&victim, None)?;
    // What is ready now is its successor: nobody is shown the pods from before the deletion.
    sandbox.wait_ready(DEADLINE).await?;
    assert_eq!(web(sandbox).len(), 2);
    assert!(
        web(sandbox)
            .iter()
            .all(|pod| pod.key != victim && pod.ready)
    );
    sandbox
        .wait_until(DEADLINE, |pods| pods.iter().all(|pod| pod.key != victim))
        .await?;
    Ok(())
}

async fn changes_are_followed(sandbox: &Sandbox, directory: &Path, client: &ObjectKey) -> Story {
    let deployment = ObjectKey::new("shop", "web");
    sandbox.scale(&deployment, 3)?;
    sandbox.wait_ready(DEADLINE).await?;
    assert_eq!(web(sandbox).iter().filter(|pod| pod.ready).count(), 3);
    sandbox.apply("bad", "apiVersion: v1\nkind: Pod\nmetadata: { name: db }\nspec: { containers: [{ name: db, image: postgres }] }\n")?;
    let refused = sandbox.wait_ready(DEADLINE).await;
    let problem = refused.err().map(|error| error.to_string());
    assert!(
        problem.is_some_and(|text| text.contains("default/db") && text.contains("postgres")),
        "what cannot run is an error at once"
    );
    sandbox.remove("bad")?;
    sandbox.wait_ready(DEADLINE).await?;
    let file = directory.join("shop.yaml");
    fs::rename(&file, directory.join("shop.yaml.away"))?;
    sandbox.wait_until(DEADLINE, <[PodView]>::is_empty).await?;
    assert!(sandbox.logs(client, None).is_err());
    fs::rename(directory.join("shop.yaml.away"), &file)?;
    Ok(sandbox.wait_ready(DEADLINE).await?)
}

/// The manifests still ask for pods, and yet none is left and none has come.
async fn the_end_waits_for_the_pods(sandbox: &Sandbox) -> Story {
    assert!(!sandbox.pods().is_empty());
    let mut events = sandbox.events();
    sandbox.clone().shutdown(Duration::from_secs(1)).await;
    assert_eq!(sandbox.pods(), []);
    while let Ok(event) = events.try_recv() {
        assert_ne!(event.what, What::Created, "{event}");
    }
    Ok(())
}
