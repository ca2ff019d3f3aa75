//! What clients of the control plane may make grow, as an operator sets it.

use std::num::NonZeroU32;

use crate::app::listener::Bounds;
use crate::discovery::Limits;

const CONNECTIONS: NonZeroU32 = NonZeroU32::new(16_384).unwrap();
const ANONYMOUS: NonZeroU32 = NonZeroU32::new(1024).unwrap();
const STREAMS_PER_POD: NonZeroU32 = NonZeroU32::new(16).unwrap();
const SUBSCRIPTIONS: NonZeroU32 = NonZeroU32::new(10_000).unwrap();

/// Limits on clients. Each is counted when it is reached: `tulle_control_limits_reached_total` for connections,
/// `tulle_xds_refused_streams_total` for streams and subscriptions.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections at a time; more wait in the kernel.
    #[arg(long, value_name = "NUMBER", default_value_t = CONNECTIONS)]
    pub max_connections: NonZeroU32,

    /// Of these, connections without a client certificate, each good for one certificate request; more are closed.
    #[arg(long, value_name = "NUMBER", default_value_t = ANONYMOUS)]
    pub max_anonymous_connections: NonZeroU32,

    /// Discovery streams that a pod may have open; more are refused.
    #[arg(long, value_name = "NUMBER", default_value_t = STREAMS_PER_POD)]
    pub max_streams_per_pod: NonZeroU32,

    /// Names of one type that a discovery stream may subscribe to, with 128 bytes each on average; one with more is ended.
    #[arg(long, value_name = "NUMBER", default_value_t = SUBSCRIPTIONS)]
    pub max_subscriptions: NonZeroU32,
}

impl Default for LimitArgs {
    fn default() -> Self {
        Self {
            max_connections: CONNECTIONS,
            max_anonymous_connections: ANONYMOUS,
            max_streams_per_pod: STREAMS_PER_POD,
            max_subscriptions: SUBSCRIPTIONS,
        }
    }
}

impl LimitArgs {
    /// All limits, with those that nobody sets.
    pub(crate) fn limits(&self) -> Limits {
        let number = |number: NonZeroU32| usize::try_from(number.get()).unwrap_or(usize::MAX);
        Limits {
            subscriptions: number(self.max_subscriptions),
            streams_per_pod: number(self.max_streams_per_pod),
            connections: Bounds {
                connections: number(self.max_connections),
                anonymous: number(self.max_anonymous_connections),
                ..Bounds::default()
            },
            ..Limits::default()
        }
    }
}
