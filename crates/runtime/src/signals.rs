//! Signals that end the program.

use std::future::pending;

use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM or SIGINT and returns the name of the one that came. Its handlers are in place after the first
/// poll and stay there: a second signal does not kill the process, so a drain must have a deadline.
pub async fn shutdown() -> &'static str {
    tokio::select! {
        // Whichever comes first; if both have, either name will do.
        () = received(SignalKind::terminate(), "SIGTERM") => "SIGTERM",
        () = received(SignalKind::interrupt(), "SIGINT") => "SIGINT",
    }
}

async fn received(kind: SignalKind, name: &'static str) {
    let received = match signal(kind) {
        Ok(mut signals) => signals.recv().await,
        Err(error) => {
            tracing::error!(%error, signal = name, "cannot handle the signal; its default action stays");
            None
        }
    };
    if received.is_none() {
        pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_names_the_signal_that_came() {
        let mut shutdown = Box::pin(shutdown());
        // The first poll puts the handler in place.
        tokio::select! {
            biased;
            name = &mut shutdown => panic!("{name} before anybody sent it"),
            () = tokio::task::yield_now() => {}
        }
        let status = std::process::Command::new("kill")
            .args(["-TERM", &std::process::id().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
        assert_eq!(shutdown.await, "SIGTERM");
    }
}
