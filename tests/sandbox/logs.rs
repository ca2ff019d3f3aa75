//! A sidecar whose log nobody reads: that is no reason for a request to wait.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use tulle_runtime::env::Env;
use tulle_runtime::names::variables;
use tulle_tests::{Mesh, app, eventually};

use crate::behaved::Behaved;

tulle_tests::cases! {
    a_log_that_nobody_reads_holds_up_no_request;
}

/// Name of the role.
pub(crate) const ROLE: &str = "noise";
/// Where the sidecars have such a log.
const NAMESPACE: &str = "unread";
/// Set for the sidecar itself, which must not be prepared again.
const PREPARED: &str = "TULLE_TEST_UNREAD";
/// Every frame is told of, so that there is more than can wait.
const FILTER: &str = "info,h2=debug,tulle_proxy=debug";
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the role: `noise HOST:PORT NUMBER` sends so many requests that are refused, each on a connection of its own.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [target, number] = arguments else {
        bail!("{ROLE} HOST:PORT NUMBER");
    };
    for _ in 0..number.parse()? {
        let mut tcp = TcpStream::connect(target)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nBad Name: x\r\n\r\n")?;
        let mut answer = [0; 12];
        tcp.read_exact(&mut answer).context("no answer")?;
        ensure!(answer == *b"HTTP/1.1 400", "{answer:?}");
    }
    Ok(())
}

/// Prepares this process and becomes the sidecar; `None`: it is an ordinary one.
pub(crate) fn sidecar() -> Option<anyhow::Result<()>> {
    let env = Env::process();
    let here = env.text(variables::POD_NAMESPACE)? == NAMESPACE;
    (here && env.text(PREPARED).is_none()).then(unread)
}

/// Becomes a sidecar that logs to a pipe which is full, and whose other end is open.
fn unread() -> anyhow::Result<()> {
    let (reader, writer) = std::io::pipe()?;
    fcntl(&reader, FcntlArg::F_SETFD(FdFlag::empty()))?;
    std::mem::forget(reader);
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut log = File::from(OwnedFd::from(writer));
    let full = loop {
        if let Err(error) = log.write(&[b'\n'; 4_096]) {
            break error;
        }
    };
    ensure!(full.kind() == ErrorKind::WouldBlock, "{full}");
    fcntl(&log, FcntlArg::F_SETFL(OFlag::empty()))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("tulle").args(["proxy", "run"]);
    command
        .env(PREPARED, "yes")
        .env(variables::LOG, FILTER)
        .stderr(log);
    Err(command.exec()).context("the sidecar cannot be started")
}

async fn a_log_that_nobody_reads_holds_up_no_request(mesh: &Mesh) -> anyhow::Result<()> {
    let stranger = app("stranger").annotate("tulle.dev/inject", "disabled");
    let pods = app("web").http(8080) + app("client") + stranger;
    let arena = mesh.apply(NAMESPACE, pods).await?;
    let behaved = Behaved::begin(&arena, 40).await?.begun().await?;
    for who in ["client", "stranger"] {
        let argv = ["tulle", ROLE, "web:8080", "600"];
        arena.exec(who, argv).await?.ok()?;
    }
    // There was more to tell than can wait, and there is still.
    for pod in ["client", "web"] {
        eventually(Duration::from_secs(60), async || {
            let metrics = arena.metrics(pod).await?;
            let dropped = metrics.sum("tulle_log_lines_dropped_total", &[]);
            ensure!(dropped > 0.0, "{pod} has dropped no line");
            let reason = [("reason", "malformed_http")];
            let refused = metrics.sum("tulle_downstream_connections_refused_total", &reason);
            ensure!(refused == 600.0, "{pod} has refused {refused}");
            Ok(())
        })
        .await?;
    }
    behaved.end(100).await
}
