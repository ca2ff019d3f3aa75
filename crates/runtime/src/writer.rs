//! The thread that writes the access log, and the bounded queue in front of it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// A handle on the thread; it ends with the last one.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    queue: SyncSender<Job>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Job {
    Write(Vec<u8>),
    /// Everything before it is written when this is answered.
    Flush(SyncSender<()>),
}

impl Writer {
    /// Starts the thread. Up to `waiting` batches wait for it.
    pub(super) fn new(to: impl Write + Send + 'static, waiting: usize) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel(waiting);
        std::thread::Builder::new()
            .name("access-log".into())
            .stack_size(128 * 1024)
            .spawn(move || run(to, &jobs))?;
        Ok(Self {
            queue,
            dropped: Arc::default(),
        })
    }

    /// What `fill` hands over, without a thread: for fuzz targets.
    #[cfg(feature = "fuzz")]
    pub(super) fn collect(fill: impl FnOnce(Self)) -> Vec<u8> {
        let (queue, jobs) = sync_channel(64);
        fill(Self {
            queue,
            dropped: Arc::default(),
        });
        let batch = |job| match job {
            Job::Write(batch) => batch,
            Job::Flush(_) => Vec::new(),
        };
        jobs.iter().flat_map(batch).collect()
    }

    /// Hands a batch of lines over, or drops it if the thread is too far behind.
    pub(super) fn write(&self, batch: Vec<u8>, lines: u64) {
        if self.queue.try_send(Job::Write(batch)).is_err() {
            self.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }

    /// Waits until everything handed over before is written, but no longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let (done, written) = sync_channel(1);
        let until = std::time::Instant::now() + patience;
        let mut job = Job::Flush(done);
        while let Err(TrySendError::Full(back)) = self.queue.try_send(job) {
            if std::time::Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
            job = back;
        }
        let left = until.saturating_duration_since(std::time::Instant::now());
        // Too late, or the thread is gone: the process ends either way.
        let _ = written.recv_timeout(left);
    }

    pub(super) fn dropped_lines(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn run(mut to: impl Write, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        // A log that nobody takes must not end the sidecar: what cannot be written is gone.
        match job {
            Job::Write(batch) => drop(to.write_all(&batch).and_then(|()| to.flush())),
            Job::Flush(done) => drop(done.send(())),
        }
    }
}
