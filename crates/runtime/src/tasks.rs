//! Tasks that have an owner.
//!
//! [`Tasks`] is the only place that spawns onto the runtime: it gives a task its span, its cancellation and its panic
//! policy, and waits for all of them in the end. The panic of an infrastructure task ends the process, because a
//! program that has silently lost its config client or its accept loop is worse than one that restarts; the panic of a
//! connection's task ends that connection and is counted.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Exit status after the panic of an infrastructure task (`EX_SOFTWARE`).
pub const PANIC_EXIT_STATUS: i32 = 70;

/// The tasks of a program, or of a part of it. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    cancel: CancellationToken,
    tracker: TaskTracker,
    panics: Arc<AtomicU64>,
}

impl Tasks {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs an infrastructure task: it should end when [`Tasks::cancelled`] resolves, and its panic ends the process.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker
            .spawn(essential(name, task).instrument(tracing::info_span!("task", name)));
    }

    /// As [`Tasks::spawn`], of a task that may end anywhere: it is dropped when [`Tasks::cancelled`] resolves.
    pub fn spawn_until_cancelled(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let cancelled = self.cancelled();
        self.spawn(name, async move {
            tokio::select! {
                biased;
                () = cancelled => {}
                () = task => {}
            }
        });
    }

    /// Runs the task of one connection or stream: its panic ends only that, and is counted.
    pub fn spawn_connection(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let panics = self.panics.clone();
        let guarded = async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    task = name,
                    "a connection's task panicked; only that connection ends"
                );
            }
        };
        self.tracker
            .spawn(guarded.instrument(tracing::info_span!("connection", name)));
    }

    /// How many connections' tasks have panicked so far.
    #[must_use]
    pub fn connection_panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Resolves when the tasks are asked to end.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.cancel.clone().cancelled_owned()
    }

    /// Asks the tasks to end, without waiting for it.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Asks the tasks to end and waits until they have (true), or the deadline has passed (false).
    pub async fn shutdown(self, deadline: Duration) -> bool {
        self.cancel.cancel();
        self.tracker.close();
        let ended = tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_ok();
        if !ended {
            tracing::warn!(
                tasks = self.tracker.len(),
                "tasks still run at the deadline; they are cut off"
            );
        }
        ended
    }
}

/// Runs an infrastructure task of a thread that has a runtime of its own: its panic ends the process.
pub async fn essential<T>(name: &'static str, task: impl Future<Output = T>) -> T {
    // Caught in the task itself: a runtime that is dropped by a panic elsewhere drops its tasks, and that is not theirs.
    AssertUnwindSafe(task)
        .catch_unwind()
        .await
        .unwrap_or_else(|_| {
            tracing::error!(
                task = name,
                "an infrastructure task panicked; the process ends"
            );
            crate::trace::exit(PANIC_EXIT_STATUS)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_tasks_that_end_when_asked() {
        let tasks = Tasks::new();
        tasks.spawn("obedient", tasks.cancelled());
        assert!(tasks.shutdown(DEADLINE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_gives_up_on_a_task_that_does_not_end() {
        let tasks = Tasks::new();
        tasks.spawn("stubborn", std::future::pending());
        assert!(!tasks.shutdown(DEADLINE).await);
    }

    #[tokio::test]
    async fn the_panic_of_a_connection_is_counted_and_others_live_on() {
        let tasks = Tasks::new();
        tasks.spawn("other", tasks.cancelled());
        tasks.spawn_connection("broken", async { panic!("expected by the test") });
        while tasks.connection_panics() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(tasks.shutdown(DEADLINE).await);
    }

    #[test]
    fn a_panic_elsewhere_that_drops_the_tasks_is_not_theirs() {
        let tasks = Tasks::new();
        let inner = tasks.clone();
        let panicked = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                inner.spawn("innocent", std::future::pending());
                inner.spawn_connection("innocent", std::future::pending());
                tokio::task::yield_now().await;
                panic!("expected by the test");
            });
        });
        assert!(panicked.join().is_err());
        assert_eq!(tasks.connection_panics(), 0);
    }

    /// Set for the child process of the test below.
    const CHILD: &str = "TULLE_TEST_PANICKING_TASK";

    #[test]
    fn the_panic_of_an_infrastructure_task_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                Tasks::new().spawn("broken", async { panic!("expected by the test") });
                std::future::pending::<()>().await;
            });
        }
        let child = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args([
                "--exact",
                "tasks::tests::the_panic_of_an_infrastructure_task_ends_the_process",
            ])
            .env(CHILD, "1")
            .output()
            .expect("the child runs");
        assert_eq!(child.status.code(), Some(PANIC_EXIT_STATUS));
    }
}
