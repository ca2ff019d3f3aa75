//! The load, in a pod of the client: closed loops, or requests at times that are fixed beforehand.
//!
//! It says `begin` once everything is warm, counts until it says `end` with what it counted, and goes on until its input
//! ends, so that whoever reads clocks at both words reads them under load. Then it waits for the answers that are still to
//! come, and says `sent` with everything that was, counted or not. One thread on a core of its own. A request that
//! fails, or that is answered with anything but what is expected, is an error; the first of them are told.

mod kind;
mod pace;
mod talk;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

pub(crate) use kind::Kind;
use pace::Pace;

use crate::cores;

/// Name of this role.
pub(crate) const ROLE: &str = "bench-load";
/// Time to connect and to be at speed.
const WARM: Duration = Duration::from_millis(400);
/// Time for the last requests to end.
const END: Duration = Duration::from_secs(5);
/// How long connections to hold may take to be there.
const HELD: Duration = Duration::from_secs(120);

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) kind: Kind,
    /// `HOST:PORT`.
    pub(crate) address: String,
    pub(crate) window: Duration,
    /// Requests a second, if they come at fixed times: with the seed of these.
    pub(crate) rate: Option<(f64, u64)>,
    /// Where to run.
    pub(crate) cores: Option<Vec<usize>>,
}

/// What was counted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// Requests, round trips, connections or MiB.
    pub(crate) units: f64,
    pub(crate) seconds: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// The first things that went wrong.
    pub(crate) errors: Vec<String>,
}

/// Everything that was sent, from the first to the last.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) requests: u64,
    pub(crate) connections: u64,
}

/// What all connections share.
struct Tally {
    /// Nothing new is to be sent.
    over: Cell<bool>,
    /// When that which counts began.
    since: Cell<Option<Instant>>,
    pace: Option<Pace>,
    units: Cell<f64>,
    sent: Cell<Sent>,
    /// Turns that were taken and not answered.
    open: Cell<usize>,
    closed: Notify,
    /// Connections that are held.
    held: Cell<usize>,
    latency: RefCell<Histogram<u64>>,
    errors: RefCell<Vec<String>>,
}

impl Tally {
    /// Waits for the turn to send; the time from which the answer's is counted.
    async fn turn(&self) -> Instant {
        if self.over.get() {
            std::future::pending().await
        }
        let turn = match &self.pace {
            None => Instant::now(),
            Some(pace) => pace.turn().await,
        };
        self.open.set(self.open.get() + 1);
        turn
    }

    fn sends_request(&self) {
        let mut sent = self.sent.get();
        sent.requests += 1;
        self.sent.set(sent);
    }

    fn opens_connection(&self) {
        let mut sent = self.sent.get();
        sent.connections += 1;
        self.sent.set(sent);
    }

    /// Waits until every turn is answered.
    async fn answered(&self) {
        while self.open.get() > 0 {
            self.closed.notified().await;
        }
    }

    /// Counts what has come.
    fn add(&self, units: f64, since: Instant) {
        self.open.set(self.open.get() - 1);
        self.closed.notify_one();
        if let Some(pace) = &self.pace {
            pace.answered();
        }
        if self.since.get().is_some_and(|begin| since < begin) {
            return;
        }
        self.units.set(self.units.get() + units);
        let nanoseconds = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.latency.borrow_mut().saturating_record(nanoseconds);
    }

    fn error(&self, error: &anyhow::Error) {
        self.errors.borrow_mut().push(format!("{error:#}"));
    }

    /// The first things that went wrong.
    fn first_errors(&self) -> Vec<String> {
        self.errors.borrow().iter().take(3).cloned().collect()
    }

    fn counted(&self, seconds: f64) -> Counted {
        let latency = self.latency.borrow();
        Counted {
            units: self.units.get(),
            seconds,
            p50_ms: latency.value_at_quantile(0.5) as f64 / 1e6,
            p99_ms: latency.value_at_quantile(0.99) as f64 / 1e6,
            errors: self.first_errors(),
        }
    }
}

/// Runs the role. Its argument is an [`Order`].
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [order] = arguments else {
        anyhow::bail!("usage: {ROLE} ORDER");
    };
    let order: Order = serde_json::from_str(order)?;
    match &order.cores {
        Some(cores) => cores::stay(cores)?,
        None => cores::roam()?,
    }
    cores::raise_descriptors()?;
    cores::prefer_self();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, load(order))
}

async fn load(order: Order) -> anyhow::Result<()> {
    let pace = order.rate.map(|(rate, seed)| Pace::new(rate, seed));
    let tally = Rc::new(Tally {
        over: Cell::new(false),
        since: Cell::new(None),
        pace,
        units: Cell::new(0.0),
        sent: Cell::default(),
        open: Cell::new(0),
        closed: Notify::new(),
        held: Cell::new(0),
        latency: RefCell::new(Histogram::new_with_max(60_000_000_000, 3)?),
        errors: RefCell::default(),
    });
    let kind = order.kind;
    for _ in 0..kind.connections() {
        let (tally, address) = (tally.clone(), order.address.clone());
        if kind == Kind::Held {
            // One after the other: a flood of them is another measurement.
            if let Err(error) = talk::hold(&tally, &address).await {
                tally.error(&error);
                break;
            }
            continue;
        }
        spawn_local(async move {
            let Err(error) = talk::connection(kind, &tally, &address).await;
            tally.error(&error);
        });
    }
    if tally.pace.is_some() {
        let tally = tally.clone();
        spawn_local(async move {
            if let Some(pace) = &tally.pace
                && let Err(error) = pace.run().await
            {
                tally.error(&error);
            }
        });
    }
    measure(&tally, order.window).await?;
    // Requests end before their connections do: so many streams reset at once look like an attack.
    tally.over.set(true);
    let answered = timeout(END, tally.answered()).await;
    // One that failed after the word is told nowhere else.
    ensure!(
        answered.is_ok(),
        "{} of the last requests are not answered; what went wrong: {:?}",
        tally.open.get(),
        tally.first_errors()
    );
    println!("sent {}", serde_json::to_string(&tally.sent.get())?);
    std::process::exit(0)
}

/// Says both words, with what came between them, and goes on until the input ends.
async fn measure(tally: &Tally, window: Duration) -> anyhow::Result<()> {
    sleep(WARM).await;
    println!("begin");
    let began = Instant::now();
    tally.latency.borrow_mut().reset();
    tally.units.set(0.0);
    if tally.pace.is_some() {
        tally.since.set(Some(began));
    }
    sleep(window).await;
    let seconds = began.elapsed().as_secs_f64();
    if let Some(pace) = &tally.pace {
        // Whose time has come is answered, however late.
        pace.stop();
        if timeout(HELD, pace.drained()).await.is_err() {
            tally.error(&anyhow::anyhow!("requests are not answered"));
        }
    }
    if tally.held.get() > 0 {
        tally.units.set(tally.held.get() as f64);
    }
    println!("end {}", serde_json::to_string(&tally.counted(seconds))?);
    // Until the clocks have been read; this thread has a load to go on with.
    let (ended, input) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.send(())
    });
    input.await.context("the input cannot be read")
}
