//! Sidecars whose clocks are wrong, and a control plane whose clock is: real processes under libfaketime, which the others do
//! not share.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tulle_cli::mesh;
use tulle_injector::{Namespace, inject_document};
use tulle_runtime::names::containers;
use tulle_tests::manifests::App;
use tulle_tests::{Arena, Mesh, app, eventually};

use crate::process::Process;
use crate::rotation::restart;

tulle_tests::cases! {
    row_46_clocks_five_minutes_apart_and_a_step_of_an_hour_cost_nothing ["faketime"];
    row_46_a_control_plane_whose_clock_is_wrong_costs_nothing ["alone", "faketime"];
}

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// What a busy loop would use up many times over.
const LOOK: Duration = Duration::from_secs(4);
/// How long a clock needs to be what its file says.
const SET: Duration = Duration::from_secs(2);

/// What processes under libfaketime share: a semaphore and some memory. The first of them is root and the next, in the
/// same container, is not, so they are made beforehand and opened to everybody.
struct Clock {
    shared: String,
    keeper: Child,
}

impl Clock {
    fn start() -> anyhow::Result<Self> {
        let mut keeper = Command::new("faketime")
            .args(["-f", "+0", "sh", "-c", "echo $FAKETIME_SHARED; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut shared = String::new();
        let output = keeper.stdout.take().context("it has an output")?;
        BufReader::new(output).read_line(&mut shared)?;
        let clock = Self {
            shared: shared.trim().to_owned(),
            keeper,
        };
        let (semaphore, memory) = clock.shared.split_once(' ').context("two names")?;
        for file in [
            format!("/dev/shm/sem.{}", &semaphore[1..]),
            format!("/dev/shm{memory}"),
        ] {
            std::fs::set_permissions(&file, Permissions::from_mode(0o666)).context(file)?;
        }
        Ok(clock)
    }

    /// What a process needs to live by the time in a file, as libfaketime writes it: `-5m`.
    fn variables<'a>(&'a self, file: &'a str) -> [(&'static str, &'a str); 5] {
        [
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_SHARED", &self.shared),
            ("FAKETIME_TIMESTAMP_FILE", file),
            // The file is looked at every second; what only measures how long something took is left alone.
            ("FAKETIME_CACHE_DURATION", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // Without its input it ends, and cleans up.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// An app whose sidecar lives by the time in a file.
fn with_clock(namespace: &str, app: &App, clock: &Clock, file: &Path) -> anyhow::Result<String> {
    let namespace = Namespace::enabled(namespace);
    let mut text = String::new();
    for document in app
        .yaml()
        .split("---\n")
        .filter(|text| !text.trim().is_empty())
    {
        let document: Value = serde_json::from_str(document)?;
        let mut injected = inject_document(document, &namespace, &mesh::injector())?.document;
        if injected["kind"] == "Deployment" {
            let inits = injected["spec"]["template"]["spec"]["initContainers"].as_array_mut();
            let mut inits = inits.context("it is injected")?.iter_mut();
            let sidecar = inits.find(|container| container["name"] == containers::PROXY);
            let variables = sidecar.context("a sidecar")?["env"].as_array_mut();
            let variables = variables.context("it has variables")?;
            for (name, value) in clock.variables(&file.display().to_string()) {
                variables.push(json!({ "name": name, "value": value }));
            }
        }
        text.push_str(&format!("---\n{injected}\n"));
    }
    Ok(text)
}

async fn both_call(arena: &Arena<'_>) -> anyhow::Result<()> {
    for (from, to) in [
        ("behind", "ahead"),
        ("ahead", "behind"),
        ("right", "behind"),
        ("right", "ahead"),
        ("ahead", "right"),
        ("behind", "right"),
    ] {
        let answer = arena
            .app_call(from, &[&format!("http://{to}:8080/")])
            .await?;
        ensure!(answer["status"] == 200, "{from} to {to}: {answer}");
        let client = &answer["body"]["headers"]["x-forwarded-client-cert"];
        let is_mtls = client
            .as_str()
            .is_some_and(|client| client.contains("URI=spiffe://"));
        ensure!(is_mtls, "{from} to {to}: {answer}");
    }
    Ok(())
}

/// Certificates that a sidecar got, and attempts that failed.
async fn certificates(arena: &Arena<'_>, app: &str) -> anyhow::Result<[f64; 2]> {
    let metrics = arena.metrics(app).await?;
    let count = |name: &str| metrics.sum(&format!("tulle_certificate_{name}_total"), &[]);
    Ok([count("rotations"), count("failures")])
}

async fn row_46_clocks_five_minutes_apart_and_a_step_of_an_hour_cost_nothing(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    // The sidecar's user reads it.
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
    let [behind, ahead] = ["behind", "ahead"].map(|name| directory.path().join(name));
    std::fs::write(&behind, "-5m")?;
    std::fs::write(&ahead, "+5m")?;
    let namespace = "clock-skew";
    let clock = Clock::start()?;
    let manifests = [
        with_clock(namespace, &app("behind").http(8080), &clock, &behind)?,
        with_clock(namespace, &app("ahead").http(8080), &clock, &ahead)?,
        app("right").http(8080).yaml(),
    ];
    let arena = mesh.apply(namespace, manifests.concat()).await?;
    // The clocks are wrong indeed.
    let log = arena.logs("behind", Some(containers::PROXY))?;
    let right = arena.logs("right", Some(containers::PROXY))?;
    ensure!(first_time(&log) != first_time(&right), "{log}\n{right}");
    both_call(&arena).await?;
    for app in ["behind", "ahead"] {
        let counts = certificates(&arena, app).await?;
        ensure!(counts == [1.0, 0.0], "{app}: {counts:?}");
    }

    // An hour on: nothing is due, nothing breaks.
    std::fs::write(&ahead, "+65m")?;
    tokio::time::sleep(LOOK).await;
    both_call(&arena).await?;
    let counts = certificates(&arena, "ahead").await?;
    ensure!(counts == [1.0, 0.0], "{counts:?}");

    // Past half of the certificate's life: it is renewed, and although the new one seems as old to this clock, once.
    std::fs::write(&ahead, "+14h")?;
    eventually(Duration::from_secs(10), async || {
        let counts = certificates(&arena, "ahead").await?;
        ensure!(counts == [2.0, 0.0], "{counts:?}");
        Ok(())
    })
    .await?;
    tokio::time::sleep(LOOK).await;
    let counts = certificates(&arena, "ahead").await?;
    ensure!(counts == [2.0, 0.0], "again and again: {counts:?}");
    both_call(&arena).await?;

    // And back where it should be.
    std::fs::write(&ahead, "+0")?;
    tokio::time::sleep(LOOK).await;
    both_call(&arena).await?;
    let counts = certificates(&arena, "ahead").await?;
    ensure!(counts == [2.0, 0.0], "{counts:?}");
    Ok(())
}

async fn row_46_a_control_plane_whose_clock_is_wrong_costs_nothing(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("time");
    let (time, clock) = (file.display().to_string(), Clock::start()?);
    let set = |offset: &str| std::fs::write(&file, offset);
    set("+0")?;
    restart(mesh, &clock.variables(&time)).await?;
    let outcome = Box::pin(while_wrong(mesh, set)).await;
    restart(mesh, &[]).await?;
    outcome
}

async fn while_wrong(mesh: &Mesh, set: impl Fn(&str) -> std::io::Result<()>) -> anyhow::Result<()> {
    let arena = mesh
        .apply("control-skew", app("right").http(8080) + app("client"))
        .await?;
    let patience = ["--timeout", "30s"];
    let load = arena.start_load("client", "http://right:8080/", 20, 600.0, &patience)?;
    // Five minutes ahead or behind, its certificates and its word on tokens are good all the same: pods come and are served.
    let now = begin(&arena, "right").await?;
    for (offset, name) in [("+5m", "fast"), ("-5m", "late")] {
        set(offset)?;
        tokio::time::sleep(SET).await;
        arena.add(app(name).http(8080).yaml())?;
        arena.wait_ready().await?;
        mutual(&arena, name, "right").await?;
        let then = begin(&arena, name).await?;
        ensure!(now[..16] != then[..16], "the clock was right: {then}");
    }
    // Far behind, and an hour ahead at once: whoever is there goes on and hears of everything. Whoever comes waits
    // until his token and his certificate are valid, and does not ask again and again.
    let control = Process::with_id(mesh.control.pid().context("it runs")?);
    for (offset, name) in [("-10m", "slow"), ("+1h", "far")] {
        set(offset)?;
        tokio::time::sleep(SET).await;
        let before = control.cpu()?;
        arena.add(app(name).http(8080).yaml())?;
        tokio::time::sleep(2 * LOOK).await;
        let cpu = control.cpu()? - before;
        ensure!(
            cpu < LOOK / 2,
            "{offset}: the control plane is busy: {cpu:?}"
        );
        for app in ["right", "client", "fast", "late"] {
            let counts = certificates(&arena, app).await?;
            ensure!(counts == [1.0, 0.0], "{offset}: {app}: {counts:?}");
        }
        mutual(&arena, "fast", "right").await?;
        waits(&arena, name).with_context(|| offset.to_owned())?;
        // Right again, and it is served.
        set("+0")?;
        arena.wait_ready().await?;
        mutual(&arena, "fast", name).await?;
    }
    let summary = load.stop().await?;
    let lost = summary.failed > 0 || summary.ok != summary.sent || summary.ok < 100;
    ensure!(!lost, "requests were lost: {}", summary.line());
    Ok(())
}

/// One calls another over mutual TLS.
async fn mutual(arena: &Arena<'_>, from: &str, to: &str) -> anyhow::Result<()> {
    let url = format!("http://{to}:8080/");
    let answer = arena.app_call(from, &[&url]).await?;
    let client = answer["body"]["headers"]["x-forwarded-client-cert"].as_str();
    let own = format!("/ns/{}/sa/{from}", arena.namespace());
    let is_own = client.is_some_and(|client| client.contains(&own));
    ensure!(is_own, "{from} to {to}: {answer}");
    Ok(())
}

/// When the certificate of a sidecar begins.
async fn begin(arena: &Arena<'_>, pod: &str) -> anyhow::Result<String> {
    let certificate = arena.admin(pod, "/certs").await?;
    let begin = certificate["not_before"].as_str().context("no beginning")?;
    Ok(begin.to_owned())
}

/// A pod waits for its certificate, and has asked for one now and then.
fn waits(arena: &Arena<'_>, app: &str) -> anyhow::Result<()> {
    let pods = arena.pods();
    let pod = pods.iter().find(|pod| pod.key.name.starts_with(app));
    let pod = pod.context("there is no such pod")?;
    ensure!(!pod.ready, "the clock was right");
    let log = arena
        .mesh()
        .sandbox
        .logs(&pod.key, Some(containers::PROXY))?;
    let log = String::from_utf8_lossy(&log);
    let attempts = log.matches("no certificate yet").count();
    ensure!((1..=20).contains(&attempts), "{attempts} attempts: {log}");
    Ok(())
}

/// The minute of the first line.
fn first_time(log: &str) -> Option<&str> {
    let start = log.find("T")?;
    log.get(start..start + 6)
}
