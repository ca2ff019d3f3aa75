//! The open connections: for one more than there is room for, an idle one of the address that has most has to go.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Open {
    client: IpAddr,
    /// Requests that are answered now. A connection that has none makes room for another.
    pub(super) busy: AtomicUsize,
    /// It has to go.
    pub(super) given_up: CancellationToken,
    /// Since when answers wait to be taken, the oldest first.
    answers: Mutex<VecDeque<Weak<Instant>>>,
}

/// Counts a request while it is answered.
#[derive(Debug)]
pub(super) struct Busy(Arc<Open>);

impl Open {
    pub(super) fn request(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Relaxed);
        Busy(self.clone())
    }

    /// What an answer holds until its client has taken it.
    pub(super) fn answered(&self) -> Arc<Instant> {
        let since = Arc::new(Instant::now());
        let mut answers = self.answers.lock();
        while answers.front().is_some_and(|it| it.strong_count() == 0) {
            answers.pop_front();
        }
        answers.push_back(Arc::downgrade(&since));
        since
    }

    /// Resolves when an answer has waited for so long, or for up to twice as long.
    pub(super) async fn untaken(&self, most: Duration) {
        loop {
            tokio::time::sleep(most).await;
            let oldest = self.answers.lock().iter().find_map(Weak::upgrade);
            if oldest.is_some_and(|since| since.elapsed() >= most) {
                return;
            }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Relaxed);
    }
}

/// Those that are open, the oldest first.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    open: Vec<Arc<Open>>,
}

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            open: Vec::new(),
        }
    }

    /// A place for one more; `None`: all others of the address that has most are at work, or that is the newcomer's own.
    pub(super) fn take(&mut self, client: IpAddr) -> Option<Arc<Open>> {
        // Whoever serves a connection holds the other reference.
        self.open.retain(|open| Arc::strong_count(open) > 1);
        if self.open.len() >= self.most {
            let going = self.going()?;
            let going = self.open.remove(going);
            going.given_up.cancel();
        }
        let open = Arc::new(Open {
            client,
            busy: AtomicUsize::new(0),
            given_up: CancellationToken::new(),
            answers: Mutex::default(),
        });
        self.open.push(open.clone());
        Some(open)
    }

    /// The oldest idle one of the address that has most of these.
    fn going(&self) -> Option<usize> {
        let mut idle: HashMap<IpAddr, (usize, usize)> = HashMap::new();
        for (index, open) in self.open.iter().enumerate() {
            if open.busy.load(Relaxed) == 0 {
                idle.entry(open.client).or_insert((0, index)).0 += 1;
            }
        }
        let most = idle
            .into_values()
            .max_by_key(|(count, oldest)| (*count, usize::MAX - oldest));
        most.map(|(_, oldest)| oldest)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn for_one_more_the_oldest_idle_one_of_the_address_that_has_most_goes() {
        let mut connections = Connections::new(3);
        let first = connections.take(client(1)).expect("room");
        let second = connections.take(client(2)).expect("room");
        let third = connections.take(client(2)).expect("room");
        let fourth = connections.take(client(3)).expect("one goes for it");
        let gone = [&first, &second, &third, &fourth].map(|open| open.given_up.is_cancelled());
        assert_eq!(gone, [false, true, false, false]);
    }

    #[test]
    fn one_that_is_at_work_stays() {
        let mut connections = Connections::new(1);
        let first = connections.take(client(1)).expect("room");
        let busy = first.request();
        assert!(connections.take(client(2)).is_none());
        drop(busy);
        assert!(connections.take(client(2)).is_some());
        assert!(first.given_up.is_cancelled());
    }

    #[test]
    fn one_that_has_ended_takes_no_room() {
        let mut connections = Connections::new(1);
        let first = connections.take(client(1)).expect("room");
        let busy = first.request();
        drop((first, busy));
        assert!(connections.take(client(2)).is_some());
    }
}
