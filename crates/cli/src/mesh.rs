//! The control plane, the sidecars and the load of a mesh in the sandbox: what `tulle demo`, `tulle sandbox up` and the
//! end-to-end tests have in common.

mod load;
pub(crate) mod verdict;

use std::time::Duration;

use tulle_injector::InjectorConfig;
use tulle_runtime::names::ports;
use tulle_sandbox::{Error, GATEWAY_V4, HostProcess, Sandbox};

pub use load::{Latency, Load, Summary};

/// Name of the control plane's process on the node.
pub(crate) const CONTROL: &str = "control";
/// How long a sidecar may drain: short, so that nobody waits for the end of a sandbox.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a new root is only trusted before it signs. Every sidecar of a sandbox is on this machine.
const ROOT_PROPAGATION: &str = "3s";

/// Settings of the sidecars.
#[must_use]
pub fn injector() -> InjectorConfig {
    InjectorConfig {
        control_address: format!("{GATEWAY_V4}:{}", ports::XDS),
        drain_deadline: Some(DRAIN),
        // There is no kubelet that would run it.
        start_hook: false,
        ..InjectorConfig::default()
    }
}

/// Starts the control plane on the node, with `leaf_ttl` as the life of a certificate if it is not to be the usual one.
///
/// # Errors
/// If its log cannot be written.
pub fn start_control(sandbox: &Sandbox, leaf_ttl: Option<&str>) -> Result<HostProcess, Error> {
    let mut argv = vec!["tulle".to_owned(), "control".to_owned()];
    let mut option = |name: &str, value: String| argv.extend([name.to_owned(), value]);
    for source in sandbox.sources() {
        option("--source", source.display().to_string());
    }
    option("--state-dir", "/run/tulle/control".to_owned());
    option("--bundle-dir", sandbox.bundles().display().to_string());
    option("--jwks", sandbox.jwks().display().to_string());
    option("--token-issuer", tulle_sandbox::ISSUER.to_owned());
    option("--root-propagation", ROOT_PROPAGATION.to_owned());
    if let Some(ttl) = leaf_ttl {
        option("--leaf-ttl", ttl.to_owned());
    }
    sandbox.spawn_host(CONTROL, argv, [])
}
