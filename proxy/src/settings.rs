//! What the operator decided when the sidecar was started; it never changes afterwards.

use std::time::Duration;

/// Settings of the data path.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of workers.
    pub workers: usize,
    /// How long a drain may take.
    pub drain_deadline: Duration,
    /// Mark for the proxy's own sockets, where it cannot have a uid of its own.
    pub socket_mark: Option<u32>,
    /// Whether connections to destinations that the control plane did not answer for pass through unencrypted.
    pub passthrough_undiscovered: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 1,
            drain_deadline: Duration::from_secs(25),
            socket_mark: None,
            passthrough_undiscovered: false,
        }
    }
}
