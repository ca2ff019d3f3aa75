//! Starts sidecars in the place of one, inside its container, and takes the time.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use tulle_runtime::names::{files, ports};
use tulle_tests::thin;

use crate::systems::System;
use crate::{again, cores, envoy};

/// Name of this role.
pub(crate) const ROLE: &str = "bench-start";
/// Starts of each kind.
pub(crate) const NUMBER: usize = 10;
/// Where the sidecars' own processes do nothing, of each system that is started.
pub(crate) const PLACES: [(System, &str); 4] = [
    (System::Tulle, "starts"),
    (System::Envoy, "starts-envoy"),
    (System::Linkerd, "starts-linkerd"),
    (System::Ztunnel, "starts-ztunnel"),
];
/// Between two looks.
const LOOK: Duration = Duration::from_micros(500);
/// How long to look.
const LOST: Duration = Duration::from_secs(10);

/// The manifests of a place: a pod whose app never starts.
pub(crate) fn manifests(namespace: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{tulle.dev/inject: enabled}}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: server, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: alone, namespace: {namespace}}}
spec:
  serviceAccountName: server
  containers:
    - name: app
      image: ghcr.io/tulle-mesh/tulle
      args: [app, serve, --bind, 127.0.0.1, --tcp, '1']
"
    )
}

/// Milliseconds of starts of new pods' sidecars, and of sidecars that find what the one before them left.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Starts {
    pub(crate) new: Vec<f64>,
    pub(crate) again: Vec<f64>,
}

/// Runs the role: `NAMESPACE`.
pub(crate) fn run(namespace: &str) -> anyhow::Result<()> {
    let place = PLACES.iter().find(|(_, place)| *place == namespace);
    let (system, _) = place.context("nothing is started there")?;
    // The sidecars start anywhere, not where the harness keeps to.
    cores::roam()?;
    let mut measured = Starts::default();
    for _ in 0..NUMBER {
        match system {
            // A file says everything to it: it asks nobody, so it knows no first start.
            System::Envoy => {
                wait(envoy::is_prepared)?;
                measured.again.push(start(envoy::again(), *system)?);
            }
            // They keep nothing: each start is as the first.
            System::Linkerd | System::Ztunnel => {
                wait(again::is_written)?;
                measured.new.push(start(again::command()?, *system)?);
            }
            _ => {
                for entry in std::fs::read_dir(files::STATE_DIR)? {
                    std::fs::remove_file(entry?.path())?;
                }
                for times in [&mut measured.new, &mut measured.again] {
                    let mut sidecar = Command::new(thin::place());
                    sidecar.arg("run");
                    times.push(start(sidecar, *system)?);
                }
            }
        }
    }
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Milliseconds until it is ready.
fn start(mut sidecar: Command, system: System) -> anyhow::Result<f64> {
    let began = Instant::now();
    let sidecar = sidecar.stdout(Stdio::null()).stderr(Stdio::null());
    let sidecar = sidecar.spawn().context("the sidecar cannot be started")?;
    let mut sidecar = Ended(sidecar);
    wait(|| {
        let running = sidecar.0.try_wait().is_ok_and(|status| status.is_none());
        !running || ready(system)
    })?;
    let time = began.elapsed();
    ensure!(sidecar.0.try_wait()?.is_none(), "it ended");
    Ok(time.as_secs_f64() * 1000.0)
}

pub(crate) fn wait(mut until: impl FnMut() -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    while !until() {
        ensure!(began.elapsed() < LOST, "it is not ready after {LOST:?}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn ready(system: System) -> bool {
    let (port, path) = match system {
        System::Ztunnel => (ports::READINESS, "/healthz/ready"),
        _ => (ports::ADMIN, "/ready"),
    };
    let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n");
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer.starts_with("HTTP/1.1 200 "))
    };
    ask().unwrap_or(false)
}

/// A process that ends with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
