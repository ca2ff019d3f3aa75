//! Small pieces of bodies that wait to be taken.
//!
//! A DATA frame costs whoever keeps it far more than its few bytes, which are all that its window counts. So h2 ends a
//! connection on which too many small ones wait, whosever they are, and with it the requests of everybody else who shares
//! it. [`Pieces`] counts as h2 does, or more, but never less; when half of what h2 allows is reached, reading stops until
//! whoever runs the connection has taken what waits. What nobody watches is not counted against anything.
//!
//! A frame costs a load and a store here, and so does taking a small piece.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

/// A frame with fewer bytes than that is small, and owes the rest.
const SMALL: u32 = 256;

/// What small pieces owe, on one connection. It is used by one thread.
#[derive(Debug)]
pub struct Pieces {
    owed: AtomicU32,
    /// More than that is too much.
    most: AtomicU32,
    /// Nothing is read until somebody has looked.
    stopped: AtomicBool,
    stops: Notify,
    /// What reads the connection, while it has stopped.
    reader: AtomicWaker,
}

impl Default for Pieces {
    fn default() -> Self {
        Self {
            owed: AtomicU32::new(0),
            most: AtomicU32::new(u32::MAX),
            stopped: AtomicBool::new(false),
            stops: Notify::new(),
            reader: AtomicWaker::new(),
        }
    }
}

impl Pieces {
    /// From now on somebody waits for [`Pieces::stop`], and calls [`Pieces::go_on`] then. h2 bounds them by the connection's
    /// window.
    pub fn watch(&self, connection_window: u32) {
        self.most.store(connection_window / 4, Relaxed);
    }

    /// A frame has come with so many bytes of a body: its padding is none, here as in h2. h2 does not count one that ends its
    /// stream; here it counts until it is taken.
    #[inline]
    pub(super) fn arrived(&self, length: usize) {
        // A frame's length has 24 bits.
        let length = length as u32;
        let owed = self.owed.load(Relaxed);
        let owed = match length {
            0 => return,
            1..SMALL => owed.saturating_add(SMALL - length),
            // Large ones make up for small ones.
            _ => owed.saturating_sub(length - SMALL),
        };
        self.owed.store(owed, Relaxed);
        if owed > self.most.load(Relaxed) && !self.stopped.swap(true, Relaxed) {
            self.stops.notify_one();
        }
    }

    /// A piece of a body was taken.
    #[inline]
    pub fn taken(&self, length: usize) {
        if length > 0 && length < SMALL as usize {
            let owed = self.owed.load(Relaxed);
            let owed = owed.saturating_sub(SMALL - length as u32);
            self.owed.store(owed, Relaxed);
        }
    }

    /// Whether so few are owed that reading may go on.
    #[must_use]
    pub fn are_few(&self) -> bool {
        self.owed.load(Relaxed) <= self.most.load(Relaxed) / 2
    }

    /// Whether there are too many, so that reading has stopped.
    #[inline]
    #[must_use]
    pub fn are_too_many(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    /// Reading has stopped: whoever reads is woken when it goes on.
    #[cold]
    pub(super) fn wait(&self, reader: &Waker) {
        self.reader.register(reader);
    }

    /// Calls whoever waits for [`Pieces::stop`] for another reason.
    pub(super) fn call(&self) {
        self.stops.notify_one();
    }

    /// Resolves when there are too many, and reading has stopped; or when there is something else to see to.
    pub async fn stop(&self) {
        self.stops.notified().await;
    }

    /// All that waited has been taken: reading goes on. False: there are still so many that h2 will end the connection
    /// before long. That is what the library never gives back: it counts pieces of streams that have ended here.
    pub fn go_on(&self) -> bool {
        let most = self.most.load(Relaxed);
        let few = self.owed.load(Relaxed) <= most / 2;
        if !few {
            // Its peer will have heard of it before they are so many again; that is half of what h2 allows.
            self.most.store(u32::MAX, Relaxed);
        }
        self.stopped.store(false, Relaxed);
        self.reader.wake();
        few
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// How many of these come before reading stops.
    fn until_stopped(pieces: &Pieces, length: usize) -> usize {
        (0..1_000_000)
            .take_while(|_| {
                pieces.arrived(length);
                !pieces.are_too_many()
            })
            .count()
    }

    #[test]
    fn small_ones_stop_reading_at_half_of_what_h2_allows() {
        for (length, owes) in [(1, 255), (200, 56)] {
            let pieces = Pieces::default();
            pieces.watch(1 << 20);
            let count = until_stopped(&pieces, length);
            assert_eq!(count, (1 << 18) / owes, "{length}");
            assert!(pieces.stop().now_or_never().is_some());
        }
    }

    #[test]
    fn what_is_taken_owes_nothing() {
        let pieces = Pieces::default();
        pieces.watch(1 << 20);
        for _ in 0..100_000 {
            pieces.arrived(10);
            pieces.taken(10);
        }
        assert!(!pieces.are_too_many());
        until_stopped(&pieces, 10);
        for _ in 0..2_000 {
            pieces.taken(10);
        }
        assert!(pieces.go_on() && !pieces.are_too_many());
    }

    #[test]
    fn large_ones_make_up_for_small_ones_and_empty_ones_are_none() {
        let pieces = Pieces::default();
        pieces.watch(1 << 20);
        for _ in 0..100_000 {
            pieces.arrived(1);
            pieces.arrived(0);
            pieces.arrived(600);
        }
        assert!(!pieces.are_too_many());
    }

    #[test]
    fn what_stays_owed_is_told() {
        let pieces = Pieces::default();
        pieces.watch(1 << 20);
        until_stopped(&pieces, 1);
        assert!(!pieces.go_on(), "nothing was taken");
        assert_eq!(until_stopped(&pieces, 1), 1_000_000, "once");
    }

    #[test]
    fn nothing_stops_where_nobody_watches() {
        assert_eq!(until_stopped(&Pieces::default(), 1), 1_000_000);
    }
}
