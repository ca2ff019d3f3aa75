//! The workers' threads: each accepts from every listener and serves what it accepted until the end.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};
use tulle_runtime::backoff::Backoff;
use tulle_runtime::drain::DrainWatch;
use tulle_runtime::tasks::essential;

use crate::conn::Direction;
use crate::net::{Acceptor, Captured};
use crate::overload::{Admitted, Haste, Overload, Place, Victim};
use crate::telemetry::{Limit, Who};
use crate::worker::{Handles, Worker};
use crate::{inbound, outbound, verified};

/// Stack of a worker's thread. Futures live on the heap; what is left are call chains, TLS handshakes the deepest.
pub(super) const STACK: usize = 512 * 1024;
/// How long there must have been no connection before a draining worker stops accepting: peers learn of the end of
/// this pod only after a while, and the app may still want to say goodbye to somebody.
const QUIET: Duration = Duration::from_secs(1);
/// First pause after an accept that failed for want of a resource, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Stands for a peer before there was any.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
const LOOK: Duration = Duration::from_millis(50);

/// Starts the workers. They end by themselves after a drain has begun and the last connection is gone, or when it is over.
pub(super) fn start(
    handles: Handles,
    outbound: Vec<std::net::TcpListener>,
    inbound: Vec<std::net::TcpListener>,
) -> anyhow::Result<()> {
    for number in 0..handles.settings.workers {
        let share = |listeners: &[std::net::TcpListener]| -> std::io::Result<Vec<_>> {
            listeners
                .iter()
                .map(std::net::TcpListener::try_clone)
                .collect()
        };
        let thread = Thread {
            handles: handles.clone(),
            outbound: share(&outbound).context("could not share the listeners")?,
            inbound: share(&inbound).context("could not share the listeners")?,
        };
        std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .stack_size(STACK)
            .spawn(move || thread.run())
            .context("could not start a worker thread")?;
    }
    Ok(())
}

struct Thread {
    handles: Handles,
    outbound: Vec<std::net::TcpListener>,
    inbound: Vec<std::net::TcpListener>,
}

impl Thread {
    fn run(self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.unwrap_or_else(|error| {
            tracing::error!(%error, "could not start a worker; raise the limit of open files");
            tulle_runtime::trace::exit(1)
        });
        let local = LocalSet::new();
        runtime.block_on(local.run_until(self.serve()));
        // Whatever is left is past its deadline or has nobody to talk to; dropping it closes it, and resets what would look
        // whole otherwise. The end of the process would not.
    }

    async fn serve(self) {
        let worker = Rc::new(Worker::new(self.handles.clone()));
        let drain = self.handles.drain.clone();
        let overload = worker.overload.clone();
        let lines = worker.clone();
        spawn_local(essential("access-log", async move {
            lines.telemetry.hand_over_lines().await;
        }));
        for (direction, listeners) in [
            (Direction::Outbound, self.outbound),
            (Direction::Inbound, self.inbound),
        ] {
            for listener in listeners {
                let (open, metrics) = (overload.count(direction), worker.connections.clone());
                match Acceptor::new(listener, direction, open.clone(), metrics) {
                    Ok(acceptor) => {
                        let accepting = accept(acceptor, direction, worker.clone());
                        spawn_local(essential("accept", accepting));
                    }
                    Err(error) => {
                        tracing::error!(%error, "could not accept connections; raise the limit of open files");
                        tulle_runtime::trace::exit(1)
                    }
                }
            }
        }
        spawn_local(essential("give-up", give_up(worker.clone())));
        spawn_local(essential("verified", verified::watch(worker.clone())));
        quiet(&drain, &overload).await;
    }
}

/// Accepts for as long as the worker lives, whenever there is room.
async fn accept(acceptor: Acceptor, direction: Direction, worker: Rc<Worker>) {
    let mut last = NOBODY;
    let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
    loop {
        let tell = |limit, what: &dyn Display| {
            let who = Who {
                address: last,
                id: None,
            };
            let limits = &worker.limits;
            limits.reached(
                limit,
                direction,
                who,
                format_args!("{what}; this was the last one"),
            );
        };
        let full = |limit| tell(limit, &"no connection is accepted until there is room");
        worker.overload.admit(direction, full).await;
        match acceptor.next().await {
            Ok(captured) => {
                last = captured.peer;
                backoff.reset();
                let place = (worker.newest.place(), worker.overload.accepted());
                let serving = serve(captured, direction, worker.clone(), place);
                let task = spawn_local(serving).abort_handle();
                worker.newest.serves(task, direction, last);
            }
            Err(error) => {
                tell(Limit::Files, &error);
                sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Gives streams and connections up whenever nothing else helps, for as long as the worker lives.
async fn give_up(worker: Rc<Worker>) {
    loop {
        worker.overload.must_give_up().await;
        let haste = worker.overload.haste();
        let tell = |direction, address, what: &str| {
            let who = Who { address, id: None };
            worker.limits.reached(Limit::Memory, direction, who, what);
        };
        let mut any = worker.newest.give_up_streams(haste, |direction, address| {
            let what = "an answer is given up that its client does not take";
            tell(direction, address, what);
        });
        // Their exchanges tell of it.
        any |= worker.uploads.give_up(haste);
        if haste > Haste::Little {
            any |= worker
                .newest
                .give_up_connections(any, |victim, direction, address| {
                    let what = match victim {
                        Victim::Unread => "a connection is given up whose client does not read",
                        Victim::Newest => "a connection is given up, of those that came last",
                    };
                    tell(direction, address, what);
                });
        }
        worker.overload.has_given_up(any);
    }
}

/// Serves one connection. Its panic, should there be one, is its own end and nobody else's.
async fn serve(
    captured: Captured,
    direction: Direction,
    worker: Rc<Worker>,
    _place: (Place, Admitted),
) {
    let metrics = worker.connections.clone();
    let peer = captured.peer;
    let serving = async {
        match direction {
            Direction::Inbound => inbound::serve(captured, worker).await,
            Direction::Outbound => outbound::serve(captured, worker).await,
        }
    };
    if AssertUnwindSafe(serving).catch_unwind().await.is_err() {
        tracing::error!(client.addr = %peer, direction = direction.name(), "a connection's task panicked");
        metrics.panicked(direction);
    }
}

/// Resolves once a drain has begun and there has been no connection for a while, or its deadline has passed.
async fn quiet(drain: &DrainWatch, overload: &Overload) {
    drain.draining().await;
    let mut since = Instant::now();
    let quiet = async {
        while since.elapsed() < QUIET {
            sleep(LOOK).await;
            if !overload.is_quiet() {
                since = Instant::now();
            }
        }
    };
    tokio::select! {
        biased;
        () = quiet => {}
        () = drain.over() => {}
    }
}

#[cfg(test)]
mod tests;
