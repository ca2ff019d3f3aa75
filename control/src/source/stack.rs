//! A thread with stack enough to read any manifest.

use parking_lot::Mutex;

/// A manifest may be nested as deep as the parser allows, at some 32 KiB a level without optimization.
const STACK: usize = 16 << 20;

/// Does it on such a thread.
pub(super) fn deep<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    // Shared, so that it is still here if there is no thread for it.
    let work = Mutex::new(Some(work));
    let run = || work.lock().take().map(|work| work());
    let done = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("source".to_owned())
            .stack_size(STACK);
        match thread.spawn_scoped(scope, run) {
            Ok(thread) => thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => {
                tracing::warn!(%error, "no thread to read manifests with; they are read without");
                run()
            }
        }
    });
    done.expect("taken once: by the thread, or if there is none by this one")
}
