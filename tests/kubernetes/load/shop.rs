//! An application that knows nothing of the mesh, and its clients.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_cluster::Cluster;
use tulle_tests::eventually;
use tulle_tests::kubernetes::Namespace;

use super::generators::{Generators, Total};

/// How long pods may take to come and go, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// Three servers of HTTP/1.1 and gRPC that take a moment for each request, so that some are always in flight.
pub(crate) const SERVERS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  replicas: 3
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 15
      containers:
      - name: web
        image: tulle.test/tulle:1
        args: [app, serve, --http, "8080", --grpc, "9000", --name, web, --latency, 20ms]
        ports: [{ name: http, containerPort: 8080 }, { name: grpc, containerPort: 9000 }]
        readinessProbe: { httpGet: { path: /ready, port: http }, periodSeconds: 1 }
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: { matchLabels: { app: web } }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec:
  selector: { app: web }
  ports: [{ name: http, port: 80, targetPort: http }, { name: grpc, port: 9000, targetPort: grpc }]
"#;

/// A client of both at once.
pub(crate) const CLIENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: client, labels: { load: client } }
spec:
  selector: { matchLabels: { app: client } }
  template:
    metadata: { labels: { app: client, load: client } }
    spec:
      nodeSelector: { kubernetes.io/hostname: node0 }
      terminationGracePeriodSeconds: 15
      containers:
      - name: http
        image: tulle.test/tulle:1
        args: [app, load, --url, "http://web/", --rate, "40", --timeout, 20s]
      - name: grpc
        image: tulle.test/tulle:1
        args: [app, load, --url, "grpc://web:9000", --rate, "40", --timeout, 20s]
"#;

/// Servers and clients in a namespace of their own, under load.
pub(crate) struct Shop<'a> {
    pub(crate) namespace: Namespace<'a>,
    pub(crate) load: Generators,
}

impl<'a> Shop<'a> {
    /// Opens it where Tulle is installed, and waits until the load is steady.
    pub(crate) async fn open(cluster: &'a Cluster, name: &str) -> anyhow::Result<Self> {
        let namespace =
            Namespace::apply(cluster, name, "tulle.dev/inject=enabled", SERVERS).await?;
        namespace.ask(["apply", "--server-side", "-f", "-"], CLIENT)?;
        let mut load = Generators::default();
        load.steady(&namespace, 2).await?;
        Ok(Self { namespace, load })
    }

    /// What the sidecars of pods that still run say of requests that failed, on the way out or in.
    pub(crate) fn failed(&self) -> anyhow::Result<Vec<Value>> {
        let logs = [
            "logs",
            "--selector=app in (client,web)",
            "--container=tulle-proxy",
            "--tail=-1",
        ];
        let log = self.namespace.ask(logs, "")?;
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let requests = lines.filter(|line| !line["response_flags"].is_null());
        Ok(requests.filter(|it| it["response_flags"] != "-").collect())
    }

    /// Ends the load; what became of the requests over HTTP/1.1, and over gRPC.
    pub(crate) async fn close(self) -> anyhow::Result<(Total, Total)> {
        let mut reasons = BTreeMap::<_, (usize, Value)>::new();
        for request in self.failed()? {
            let reason = format!(
                "{} {}",
                request["response_flags"], request["response_code_details"]
            );
            reasons.entry(reason).or_insert((0, request)).0 += 1;
        }
        let mut totals = self.load.end(&self.namespace).await?;
        let mut take = |name: &str| {
            let total = totals.remove(name);
            total.with_context(|| format!("there was no load over {name}"))
        };
        let (http, grpc) = (take("http")?, take("grpc")?);
        eprintln!("http: {http}\ngrpc: {grpc}");
        for (reason, (count, first)) in reasons {
            eprintln!("{count} times {reason}, first {first}");
        }
        Ok((http, grpc))
    }

    /// Waits until a Deployment is what it should be, and nothing is left of what it was.
    pub(crate) async fn settled(&mut self, deployment: &str) -> anyhow::Result<()> {
        let (namespace, load) = (&self.namespace, &mut self.load);
        let end = std::time::Instant::now() + SOON;
        loop {
            load.follow(namespace)?;
            match settled(namespace, deployment) {
                Ok(()) => return Ok(()),
                Err(error) if std::time::Instant::now() > end => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// The images of the sidecars, in order.
    pub(crate) fn sidecars(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.namespace.get("pods")?;
        let init = pods
            .iter()
            .filter_map(|pod| pod["spec"]["initContainers"].as_array());
        let sidecars = init.flatten().filter(|it| it["name"] == "tulle-proxy");
        let images = sidecars.filter_map(|it| it["image"].as_str());
        let mut images: Vec<_> = images.map(str::to_owned).collect();
        images.sort();
        Ok(images)
    }

    /// Names of the servers that are not about to end.
    pub(crate) fn servers(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.namespace.get("pods")?;
        let own = pods.iter().filter(|pod| {
            let meta = &pod["metadata"];
            meta["labels"]["app"] == "web" && meta["deletionTimestamp"].is_null()
        });
        let names = own.filter_map(|pod| pod["metadata"]["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }
}

/// Fails unless a Deployment is what it should be and its old pods are gone.
pub(crate) fn settled(namespace: &Namespace<'_>, deployment: &str) -> anyhow::Result<()> {
    let objects = namespace.get("deployments,pods")?;
    let named = |it: &&Value| it["kind"] == "Deployment" && it["metadata"]["name"] == deployment;
    let object = objects.iter().find(named);
    let object = object.with_context(|| format!("there is no Deployment {deployment}"))?;
    let (status, wanted) = (&object["status"], &object["spec"]["replicas"]);
    let current = status["observedGeneration"] == object["metadata"]["generation"];
    let mut counts = ["readyReplicas", "updatedReplicas", "replicas"].iter();
    let all = counts.all(|count| status[count].as_u64().unwrap_or(0) == *wanted);
    ensure!(current && all, "{deployment} is not there yet: {status}");
    let pods = objects.iter().filter(|it| it["kind"] == "Pod");
    let mut own = pods.filter(|it| it["metadata"]["labels"]["app"] == deployment);
    let ending = own.find(|it| !it["metadata"]["deletionTimestamp"].is_null());
    ensure!(
        ending.is_none(),
        "pods of {deployment} are ending: {ending:?}"
    );
    Ok(())
}

/// As [`settled`], waiting for it.
pub(crate) async fn settle(namespace: &Namespace<'_>, deployment: &str) -> anyhow::Result<()> {
    eventually(SOON, async || settled(namespace, deployment)).await
}
