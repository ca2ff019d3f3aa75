//! Room for requests, and for the bytes of their bodies: taken at once or not at all, so that nobody waits for a slow client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Bounds;

/// One address may have one part in so many of requests, and of bytes.
const SHARE: usize = 2;

/// How much is taken.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    requests: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct All {
    total: Taken,
    clients: HashMap<IpAddr, Taken>,
}

/// What there is room for. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Room {
    requests: usize,
    bytes: usize,
    all: Arc<Mutex<All>>,
}

/// The room that a request has, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Room,
    client: IpAddr,
    bytes: usize,
}

impl Room {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            requests: bounds.requests,
            bytes: bounds.bytes,
            all: Arc::default(),
        }
    }

    /// Room for one more request of a client; `None`: there is none.
    pub(super) fn take(&self, client: IpAddr) -> Option<Place> {
        let mut all = self.all.lock();
        let own = all.clients.get(&client).copied().unwrap_or_default();
        let share = (self.requests / SHARE).max(1);
        if all.total.requests >= self.requests || own.requests >= share {
            return None;
        }
        all.total.requests += 1;
        all.clients.entry(client).or_default().requests += 1;
        Some(Place {
            room: self.clone(),
            client,
            bytes: 0,
        })
    }
}

impl Place {
    /// Whether there is room for so many more bytes, which are its own then.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let mut all = self.room.all.lock();
        let own = all.clients.get(&self.client).map_or(0, |own| own.bytes);
        let share = self.room.bytes / SHARE;
        if all.total.bytes + bytes > self.room.bytes || own + bytes > share {
            return false;
        }
        all.total.bytes += bytes;
        all.clients.entry(self.client).or_default().bytes += bytes;
        self.bytes += bytes;
        true
    }

    /// Whether there is room for so many bytes in place of those that it has.
    pub(super) fn fit(&mut self, bytes: usize) -> bool {
        self.grow(bytes.saturating_sub(self.bytes))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.room.all.lock();
        all.total.requests -= 1;
        all.total.bytes -= self.bytes;
        if let Some(own) = all.clients.get_mut(&self.client) {
            own.requests -= 1;
            own.bytes -= self.bytes;
            if own.requests == 0 {
                all.clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    fn room(requests: usize, bytes: usize) -> Room {
        Room::new(Bounds {
            connections: 1,
            requests,
            bytes,
            reviews: 1,
            turn: Duration::ZERO,
            receive: Duration::ZERO,
        })
    }

    fn client(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn one_address_has_no_more_than_its_share_of_the_requests() {
        let room = room(4, 100);
        let taken = [room.take(client(1)), room.take(client(1))];
        assert!(taken.iter().all(Option::is_some));
        assert!(room.take(client(1)).is_none(), "half is two");
        assert!(room.take(client(2)).is_some());
        drop(taken);
        assert!(
            room.take(client(1)).is_some(),
            "what ended gave its place back"
        );
    }

    #[test]
    fn all_addresses_have_no_more_than_there_is() {
        let room = room(2, 100);
        let _taken = [room.take(client(1)), room.take(client(2))];
        assert!(room.take(client(3)).is_none());
    }

    #[test]
    fn bytes_are_shared_and_given_back() {
        let room = room(9, 100);
        let mut first = room.take(client(1)).expect("room");
        let mut second = room.take(client(2)).expect("room");
        assert!(first.grow(50));
        assert!(!first.grow(1), "half is fifty");
        assert!(second.grow(50));
        assert!(second.fit(50), "it has them");
        assert!(!second.fit(51));
        let mut third = room.take(client(3)).expect("room");
        assert!(!third.grow(1), "nothing is left");
        drop(first);
        assert!(third.grow(50));
        drop((second, third));
        let all = room.all.lock();
        assert_eq!((all.total.requests, all.total.bytes), (0, 0));
        assert!(all.clients.is_empty());
    }
}
