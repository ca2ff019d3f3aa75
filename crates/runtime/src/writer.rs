//! A thread that writes lines, and the bounded queue in front of it: for the access log, and for the log of a program.
//!
//! Whoever has lines hands them over and goes on. What does not fit, because nobody reads the other end or a disk is slow,
//! is dropped and counted. What was handed over is written in that order, and is lost only where the process ends without
//! [`Writer::flush`].

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

/// What a batch occupies beside its bytes, at least.
const EACH: usize = 64;

/// A handle on the thread; it ends with the last one.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: Sender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Bytes that wait for the thread, and with how many no more may come.
    waiting: AtomicUsize,
    most: usize,
    /// Lines that did not fit, or could not be written.
    dropped: Counter,
}

#[derive(Debug)]
enum Job {
    /// So many lines.
    Write(Vec<u8>, u64),
    /// Everything before it is written when this is answered.
    Flush(SyncSender<()>),
}

impl Writer {
    /// Starts the thread. About `most` bytes wait for it. When lines are written again after some were dropped, `gap` is
    /// told how many those were, in the thread.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn new(
        name: &str,
        to: impl Write + Send + 'static,
        most: usize,
        gap: impl Fn(u64) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (writer, jobs) = Self::unattended(most);
        let shared = writer.shared.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(128 * 1024)
            .spawn(move || run(to, &jobs, &shared, gap))?;
        Ok(writer)
    }

    /// What `fill` hands over, without a thread: for fuzz targets.
    #[cfg(feature = "fuzz")]
    pub fn collect(fill: impl FnOnce(Self)) -> Vec<u8> {
        let (writer, jobs) = Self::unattended(usize::MAX);
        fill(writer);
        let batch = |job| match job {
            Job::Write(batch, _) => batch,
            Job::Flush(_) => Vec::new(),
        };
        jobs.iter().flat_map(batch).collect()
    }

    fn unattended(most: usize) -> (Self, Receiver<Job>) {
        let (queue, jobs) = channel();
        let shared = Arc::new(Shared {
            waiting: AtomicUsize::new(0),
            most,
            dropped: Counter::default(),
        });
        (Self { queue, shared }, jobs)
    }

    /// Hands so many lines over, or drops them if the thread is too far behind.
    pub fn write(&self, batch: Vec<u8>, lines: u64) {
        let weight = weight(&batch);
        // Who comes at the same moment may exceed it by one batch each.
        let fits = self.shared.waiting.load(Relaxed) < self.shared.most;
        if fits {
            self.shared.waiting.fetch_add(weight, Relaxed);
        }
        if !fits || self.queue.send(Job::Write(batch, lines)).is_err() {
            self.shared.dropped.inc_by(lines);
        }
    }

    /// Waits until everything handed over before is written, but no longer than `patience`; who hands over more meanwhile
    /// is not waited for.
    pub fn flush(&self, patience: Duration) {
        let until = Instant::now() + patience;
        // Twice: what is told of lines that were dropped may stand behind the first time.
        for _ in 0..2 {
            let (done, written) = sync_channel(1);
            if self.queue.send(Job::Flush(done)).is_ok() {
                // Too late, or the thread is gone: there is nothing more to be done.
                let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// Counts lines that were dropped, to be registered.
    #[must_use]
    pub fn dropped(&self) -> &Counter {
        &self.shared.dropped
    }
}

/// What a batch takes in memory, full or not.
fn weight(batch: &Vec<u8>) -> usize {
    batch.capacity() + EACH
}

fn run(mut to: impl Write, jobs: &Receiver<Job>, shared: &Shared, gap: impl Fn(u64)) {
    let mut told = 0;
    for job in jobs {
        let (batch, lines) = match job {
            Job::Write(batch, lines) => (batch, lines),
            Job::Flush(done) => {
                // Whoever asked may be gone.
                let _ = done.send(());
                continue;
            }
        };
        shared.waiting.fetch_sub(weight(&batch), Relaxed);
        // A log that nobody takes must not end the program: what cannot be written is gone.
        if to.write_all(&batch).and_then(|()| to.flush()).is_err() {
            shared.dropped.inc_by(lines);
            continue;
        }
        // Not while it is full, when a line about it would not fit either, or would be one of many.
        let dropped = shared.dropped.get();
        if dropped > told && shared.waiting.load(Relaxed) < shared.most / 2 {
            gap(dropped - told);
            told = dropped;
        }
    }
}

#[cfg(test)]
mod tests;
