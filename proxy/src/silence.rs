//! Ends connections whose peer is gone without a word. The kernel would repeat itself for a quarter of an hour, and no client would
//! ever hear of it.
//!
//! A peer that is there acknowledges what comes, and closes its window where it does not read. `TCP_USER_TIMEOUT` takes that for a
//! peer that is gone, so it is for connections alone that are always read (see [`upstream`](crate::upstream)). All are looked at
//! here. One that acknowledges nothing for a moment makes the sidecar find out whether the endpoint can still be connected to, and
//! nobody else goes there meanwhile. If it cannot, the connection is broken; without an endpoint to ask, or where it answers all the
//! same, it is given more time.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::{spawn_local, yield_now};
use tokio::time::{Instant, sleep};

use crate::config::{Cluster, Endpoint};
use crate::io::{IoStream, Probe};
use crate::scout::{self, Means};
use crate::worker::Worker;

/// How often connections are looked at, and how many in one go.
const INTERVAL: Duration = Duration::from_millis(500);
const BATCH: usize = 128;
/// How long a peer has been seen to acknowledge nothing when the sidecar asks whether its endpoint is there.
const SUSPECTED: Duration = Duration::from_millis(500);
/// How long another sidecar may acknowledge nothing in any case, and anybody else; on a connection that is always read, also how long
/// its window may be closed.
pub(crate) const PATIENCE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(20));

/// The connections of one worker whose peers may pause.
#[derive(Debug, Default)]
pub struct Silence {
    watched: Rc<RefCell<Vec<Watched>>>,
    /// Whether a task looks at them.
    tended: Rc<Cell<bool>>,
}

#[derive(Debug)]
struct Watched {
    probe: Probe,
    patience: Duration,
    /// The endpoint that it goes to, and the name of its cluster.
    endpoint: Option<(Arc<str>, Arc<Endpoint>)>,
    /// When it was seen first that nothing is acknowledged.
    since: Option<Instant>,
    suspected: bool,
}

impl Silence {
    /// Looks at a connection from now on, until it is closed.
    pub(crate) fn watch(
        &self,
        worker: &Worker,
        io: &mut IoStream,
        endpoint: Option<(&Cluster, &Arc<Endpoint>)>,
    ) {
        // Where there is no descriptor left for it, it is the kernel's.
        let Ok(probe) = io.probe() else {
            return;
        };
        let (sidecar, other) = PATIENCE;
        let is_sidecar = endpoint.is_some_and(|(_, it)| it.is_sidecar());
        self.watched.borrow_mut().push(Watched {
            probe,
            patience: if is_sidecar { sidecar } else { other },
            endpoint: endpoint.map(|(of, it)| (of.name.clone(), it.clone())),
            since: None,
            suspected: false,
        });
        if !self.tended.replace(true) {
            let (watched, tended) = (Rc::downgrade(&self.watched), self.tended.clone());
            spawn_local(tend(watched, tended, Means::of(worker)));
        }
    }
}

/// Looks at connections again and again, until there are none.
async fn tend(watched: Weak<RefCell<Vec<Watched>>>, tended: Rc<Cell<bool>>, means: Means) {
    loop {
        sleep(INTERVAL).await;
        let mut next = Some(0);
        while let Some(at) = next {
            let Some(watched) = watched.upgrade() else {
                return;
            };
            next = look(&mut watched.borrow_mut(), at, &means);
            if watched.borrow().is_empty() {
                watched.take();
                tended.set(false);
                return;
            }
            yield_now().await;
        }
    }
}

/// Looks at some, from a position on; where to go on, if there are more.
fn look(all: &mut Vec<Watched>, mut at: usize, means: &Means) -> Option<usize> {
    for _ in 0..BATCH {
        if all.get_mut(at)?.look(means) {
            at += 1;
        } else {
            all.swap_remove(at);
        }
    }
    Some(at)
}

impl Watched {
    /// Whether there will be anything to look at the next time.
    fn look(&mut self, means: &Means) -> bool {
        let Some(unheard) = self.probe.unheard() else {
            return false;
        };
        if unheard.is_zero() {
            (self.since, self.suspected) = (None, false);
            return true;
        }
        // It may have had nothing to say before.
        let seen = self.since.get_or_insert_with(Instant::now).elapsed();
        let silent = unheard.min(seen);
        let endpoint = self.endpoint.as_ref().map(|(_, it)| it);
        let confirmed = self.suspected && endpoint.is_some_and(|it| it.state.silent.load(Relaxed));
        if silent >= self.patience || silent >= SUSPECTED && confirmed {
            let server = endpoint.map(|it| it.address);
            tracing::debug!(server.addr = ?server, ?silent, "a connection is broken whose peer acknowledges nothing");
            self.probe.break_off();
            return false;
        }
        if silent >= SUSPECTED
            && !std::mem::replace(&mut self.suspected, true)
            && let Some((cluster, endpoint)) = &self.endpoint
        {
            scout::unanswered(means, cluster, endpoint);
        }
        true
    }
}
