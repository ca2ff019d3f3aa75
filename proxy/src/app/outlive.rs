//! When the sidecar begins to end: at once, or, as an ordinary container, only after the app.
//!
//! Kubernetes ends a native sidecar after all other containers, but tells ordinary ones at the same time, while the
//! app's preStop hook still runs and endpoints everywhere still name the pod. So an ordinary one goes on as if nothing
//! had been said until nobody else listens in the pod, the only thing of the app's that it can see. Of an app that
//! never listened it cannot know the end, nor of one of several containers, of which another may have listened: such a one
//! has the mesh until the deadline is near.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind};
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tulle_runtime::names::ports;

use crate::settings::Outlive;

/// The tables of TCP sockets of this network namespace (proc(5)).
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// State of a socket that listens, `TCP_LISTEN` of the kernel.
const LISTENS: &str = "0A";
/// Where the sidecar itself listens.
const OWN: [u16; 5] = [
    ports::OUTBOUND,
    ports::INBOUND,
    ports::ADMIN,
    ports::METRICS,
    ports::READINESS,
];
/// How often is looked whether an app listens by now, and whether it still does.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(100));
/// How long nobody may have listened: an app closes its listener before its last acts.
const GONE: Duration = Duration::from_secs(1);
/// Most that is left of the deadline for the drain.
const DRAIN: Duration = Duration::from_secs(3);

/// What can be seen of the app.
pub(super) struct App {
    tables: Vec<PathBuf>,
    /// Whether it has listened anywhere.
    listened: bool,
    /// Whether its end shows by that.
    shows: bool,
}

impl App {
    /// That of the pod that this process is in, if it is to be outlived.
    pub(super) fn of_this_pod(outlive: Outlive) -> Option<Self> {
        (outlive != Outlive::No).then(|| Self {
            tables: TABLES.map(PathBuf::from).into(),
            listened: false,
            shows: outlive == Outlive::Listeners,
        })
    }

    /// Sees whether it listens, for as long as nobody asks for more.
    async fn watch<T>(&mut self) -> T {
        while !self.listens() {
            sleep(LOOK.0).await;
        }
        std::future::pending().await
    }

    /// Resolves when an app that has listened does no longer.
    async fn over(&mut self) {
        if !self.shows {
            return std::future::pending().await;
        }
        let mut since = Instant::now();
        while !self.listened || since.elapsed() < GONE {
            if self.listens() {
                since = Instant::now();
            }
            sleep(LOOK.1).await;
        }
    }

    fn listens(&mut self) -> bool {
        let any = self.tables.iter().any(|table| {
            File::open(table)
                .and_then(|table| any_listens(BufReader::new(table)))
                .unwrap_or_else(|error| {
                    // Without IPv6 there is no table of it. What cannot be read is no proof of an end.
                    error.kind() != ErrorKind::NotFound && self.listened
                })
        });
        self.listened |= any;
        any
    }
}

/// Whether anybody but the sidecar listens. The kernel names those that listen before all connections (`tcp_get_idx`), so
/// the latter, which may be thousands, need not be read.
fn any_listens(table: impl io::BufRead) -> io::Result<bool> {
    for line in table.lines().skip(1) {
        let line = line?;
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        if state != Some(LISTENS) {
            break;
        }
        let port = local.and_then(|address| address.rsplit_once(':'));
        let port = port.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        if port.is_some_and(|port| !OWN.contains(&port)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Resolves when the sidecar is to drain, with the reason and what is left of the deadline.
///
/// An operator, or the control plane of a pod that has finished, dismisses it at once. After a signal it goes on for as
/// long as there is an app to wait for.
pub(super) async fn end(
    app: Option<App>,
    mut signal: Pin<&mut impl Future<Output = &'static str>>,
    mut dismissed: Pin<&mut impl Future<Output = &'static str>>,
    deadline: Duration,
) -> (&'static str, Duration) {
    let mut app = app;
    let watching = async {
        match &mut app {
            Some(app) => app.watch().await,
            None => std::future::pending().await,
        }
    };
    let told = tokio::select! {
        biased;
        why = &mut dismissed => return (why, deadline),
        why = &mut signal => why,
        never = watching => never,
    };
    let Some(mut app) = app else {
        return (told, deadline);
    };
    let begun = Instant::now();
    tracing::info!(why = told, "told to end; going on until the app has");
    let most = deadline.saturating_sub(DRAIN.min(deadline / 4));
    let why = tokio::select! {
        biased;
        why = &mut dismissed => why,
        () = app.over() => "the app no longer listens",
        () = sleep(most) => "the deadline is near",
    };
    (why, deadline.saturating_sub(begun.elapsed()))
}

#[cfg(test)]
mod tests;
