//! What a review costs: `cargo bench -p tulle-injector --bench webhook [-- --quick]`.
//!
//! The injector is a process of its own, with its certificate from a CA that is written by hand; reviews come over one
//! connection of HTTP/2, as from an API server. Latency is measured at 100 reviews a second in an open loop, each from
//! when it was due; memory is what the process has resident after 10,000 and after 100,000 reviews. It fails where a target is
//! missed.

#[path = "../../tests/injector/ca.rs"]
mod ca;
#[path = "../../tests/injector/stand_in.rs"]
mod stand_in;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tulle_injector::Injector;
use tulle_runtime::names::INJECTOR_DNS_NAME;
use tulle_runtime::tasks::Tasks;

use ca::Ca;

/// First argument of the process that is the injector; its CA and folder follow.
const SERVE: &str = "serve";
const TOKEN: &str = "bench";
/// Reviews a second.
const RATE: u32 = 100;
/// The most that all but one in a hundred may take.
const P99: Duration = Duration::from_millis(10);
/// The most by which memory may grow.
const GROWTH: f64 = 0.05;
/// Reviews under way while memory is filled.
const AT_ONCE: usize = 8;
/// How long the injector may take to begin.
const BEGIN: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<ExitCode> {
    tulle_runtime::allocator::keep_little();
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, ca, folder, ..] = words.as_slice()
        && serve == SERVE
    {
        return serve_reviews(ca.parse()?, Path::new(folder));
    }
    let quick = words.iter().any(|word| word == "--quick");
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(measure(quick))
}

/// The injector, until it is killed.
fn serve_reviews(ca: SocketAddr, folder: &Path) -> anyhow::Result<ExitCode> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let args = stand_in::args(ca, folder);
        let injector = Injector::start(args, stand_in::client()).await?;
        println!("{}", injector.webhook_address());
        std::future::pending::<()>().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// The process, which ends with this one.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    fn start(ca: SocketAddr, folder: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([SERVE, &ca.to_string(), &folder.display().to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("it has an output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().context("it says where it listens")?;
        Ok(Self { child, address })
    }

    /// Bytes that it has in memory.
    fn resident(&self) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|rest| rest.split_whitespace().next());
        let kibibytes: f64 = kibibytes.context("VmRSS")?.parse()?;
        Ok(kibibytes * 1024.0)
    }
}

type Sender = SendRequest<Full<Bytes>>;

async fn connect(ca: &Ca, server: &Server, tasks: &Tasks) -> anyhow::Result<Sender> {
    let stream = TcpStream::connect(server.address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(INJECTOR_DNS_NAME)?;
    let tls = TlsConnector::from(stand_in::trusting(ca.bundle(), b"h2")).connect(name, stream);
    // Until it has a certificate, connections wait.
    let tls = tokio::time::timeout(BEGIN, tls).await??;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
    tasks.spawn_connection("client", async move {
        drop(connection.await);
    });
    Ok(sender)
}

async fn ask(mut sender: Sender, body: Bytes) -> anyhow::Result<Value> {
    let request = Request::post(format!("https://{INJECTOR_DNS_NAME}/inject?timeout=10s"))
        .header("content-type", "application/json")
        .body(Full::new(body))?;
    let answer = sender.send_request(request).await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(serde_json::from_slice(&body)?)
}

async fn injected(sender: Sender, body: Bytes) -> anyhow::Result<()> {
    let answer = ask(sender, body).await?;
    ensure!(answer["response"]["patch"].is_string(), "{answer}");
    Ok(())
}

async fn measure(quick: bool) -> anyhow::Result<ExitCode> {
    let (ca, tasks) = (Ca::new(TOKEN), Tasks::new());
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("token"), TOKEN)?;
    std::fs::write(folder.path().join("root.pem"), ca.bundle().to_pem())?;
    let server = Server::start(ca.serve(&tasks).await, folder.path())?;
    let sender = connect(&ca, &server, &tasks).await?;
    let body = Bytes::from(review().to_string());
    let size = body.len();
    let (seconds, first, last) = if quick {
        (2, 1_000, 3_000)
    } else {
        (30, 10_000, 100_000)
    };
    for _ in 0..RATE {
        injected(sender.clone(), body.clone()).await?;
    }
    let mut took = open_loop(&sender, &body, RATE * seconds).await?;
    took.sort_unstable();
    let at = |part: f64| took[((took.len() as f64 * part) as usize).min(took.len() - 1)];
    let (p50, p99, most) = (at(0.5), at(0.99), at(1.0));
    println!(
        "{RATE} reviews/s of {size} bytes for {seconds} s: p50 {p50:?}, p99 {p99:?}, most {most:?}"
    );
    closed_loop(&sender, &body, first).await?;
    let before = server.resident()?;
    let begun = Instant::now();
    closed_loop(&sender, &body, last - first).await?;
    let rate = (last - first) as f64 / begun.elapsed().as_secs_f64();
    let after = server.resident()?;
    let growth = after / before - 1.0;
    println!(
        "memory after {first} reviews {:.1} MiB, after {last} {:.1} MiB: {:+.1} % ({rate:.0} reviews/s)",
        before / f64::from(1 << 20),
        after / f64::from(1 << 20),
        growth * 100.0,
    );
    let mut missed = false;
    let mut target = |name: &str, met: bool| {
        println!("{} {name}", if met { "met   " } else { "MISSED" });
        missed |= !met;
    };
    target(&format!("p99 is at most {P99:?}"), p99 <= P99);
    target(
        &format!("memory grows by at most {} %", GROWTH * 100.0),
        growth <= GROWTH,
    );
    Ok(if missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// How long each took, from when it was due.
async fn open_loop(sender: &Sender, body: &Bytes, count: u32) -> anyhow::Result<Vec<Duration>> {
    let begun = Instant::now();
    let mut under_way = FuturesUnordered::new();
    let mut took = Vec::new();
    for number in 0..count {
        let due = begun + Duration::from_secs(1) / RATE * number;
        loop {
            tokio::select! {
                biased;
                Some(done) = under_way.next(), if !under_way.is_empty() => took.push(done),
                () = tokio::time::sleep_until(due) => break,
            }
        }
        let (sender, body) = (sender.clone(), body.clone());
        under_way.push(async move {
            injected(sender, body).await?;
            anyhow::Ok(due.elapsed())
        });
    }
    while let Some(done) = under_way.next().await {
        took.push(done);
    }
    took.into_iter().collect()
}

async fn closed_loop(sender: &Sender, body: &Bytes, count: usize) -> anyhow::Result<()> {
    let mut under_way = FuturesUnordered::new();
    for _ in 0..count {
        if under_way.len() >= AT_ONCE {
            under_way.next().await.unwrap_or(Ok(()))?;
        }
        under_way.push(injected(sender.clone(), body.clone()));
    }
    while let Some(done) = under_way.next().await {
        done?;
    }
    Ok(())
}

/// A pod of a Deployment as the API server sends it, with what it fills in.
fn review() -> Value {
    let container = |name: &str| {
        json!({
            "name": name,
            "image": format!("registry.example/{name}:1"),
            "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
            "env": (0..10).map(|number| json!({ "name": format!("VAR_{number}"), "value": "value" })).collect::<Vec<_>>(),
            "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
            "volumeMounts": [{ "name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true }],
            "readinessProbe": { "httpGet": { "path": "/ready", "port": "http", "scheme": "HTTP" }, "timeoutSeconds": 1 },
            "livenessProbe": { "tcpSocket": { "port": 8080 }, "timeoutSeconds": 1 },
            "terminationMessagePath": "/dev/termination-log",
            "imagePullPolicy": "IfNotPresent",
        })
    };
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d5c8f7b9", "uid": "u", "controller": true,
    });
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller" },
            "object": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "generateName": "web-5d5c8f7b9-",
                    "namespace": "shop",
                    "labels": { "app": "web", "pod-template-hash": "5d5c8f7b9" },
                    "ownerReferences": [owner],
                },
                "spec": {
                    "containers": [container("web"), container("log")],
                    "initContainers": [{ "name": "migrate", "image": "registry.example/migrate:1" }],
                    "volumes": [{ "name": "token", "projected": { "sources": [] } }],
                    "serviceAccountName": "web",
                    "restartPolicy": "Always",
                    "terminationGracePeriodSeconds": 30,
                },
            },
            "dryRun": false,
        },
    })
}
