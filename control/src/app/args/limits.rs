//! What clients of the control plane may make grow, as an operator sets it.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use tulle_runtime::env::parse_duration;
use tulle_runtime::names::agent;

use crate::app::listener::{Bounds, Grace};
use crate::ca::Requests;
use crate::discovery::Limits;

const CONNECTIONS: NonZeroU32 = NonZeroU32::new(16_384).unwrap();
const ANONYMOUS: NonZeroU32 = NonZeroU32::new(1024).unwrap();
const OF_CLIENT: NonZeroU32 = NonZeroU32::new(1024).unwrap();
const ANONYMOUS_OF_ADDRESS: NonZeroU32 = NonZeroU32::new(128).unwrap();
const HANDSHAKES: NonZeroU32 = NonZeroU32::new(1024).unwrap();
const HANDSHAKES_OF_ADDRESS: NonZeroU32 = NonZeroU32::new(256).unwrap();
const ADMIN_CONNECTIONS: NonZeroU32 = NonZeroU32::new(64).unwrap();
const CONTROL_FRAMES: NonZeroU32 = NonZeroU32::new(1000).unwrap();
const NAMES_A_SECOND: NonZeroU32 = NonZeroU32::new(2_000).unwrap();
const NAMES_AT_ONCE: NonZeroU32 = NonZeroU32::new(50_000).unwrap();
const CERTIFICATES_A_SECOND: NonZeroU32 = NonZeroU32::new(16).unwrap();
const CERTIFICATES_AT_ONCE: NonZeroU32 = NonZeroU32::new(256).unwrap();
const STREAMS_PER_POD: NonZeroU32 = NonZeroU32::new(agent::STREAMS).unwrap();
const SUBSCRIPTIONS: NonZeroU32 = NonZeroU32::new(10_000).unwrap();
const REQUEST_BYTES: NonZeroU32 = NonZeroU32::new(4 << 20).unwrap();
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);
/// What makes sense for any of them: time for a round trip, and an end.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Limits on clients. Each is counted when it is reached: `tulle_control_limits_reached_total` for connections, their frames
/// and pace, `tulle_xds_refused_streams_total` for streams and subscriptions. A client is an address and an identity.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections at a time; more wait in the kernel.
    #[arg(long, value_name = "NUMBER", default_value_t = CONNECTIONS)]
    pub max_connections: NonZeroU32,

    /// Of these, connections without a client certificate, each good for one certificate request; more are closed.
    #[arg(long, value_name = "NUMBER", default_value_t = ANONYMOUS)]
    pub max_anonymous_connections: NonZeroU32,

    /// Connections of one client; more are refused, as they are for an identity that has half of all connections.
    #[arg(long, value_name = "NUMBER", default_value_t = OF_CLIENT)]
    pub max_connections_per_client: NonZeroU32,

    /// Connections without a client certificate from one address; more are closed.
    #[arg(long, value_name = "NUMBER", default_value_t = ANONYMOUS_OF_ADDRESS)]
    pub max_anonymous_connections_per_address: NonZeroU32,

    /// TLS handshakes at a time; for one more, the oldest of the address that has most is given up.
    #[arg(long, value_name = "NUMBER", default_value_t = HANDSHAKES)]
    pub max_handshakes: NonZeroU32,

    /// TLS handshakes at a time with one address; for one more, its oldest is given up, or the new one closed while all are new.
    #[arg(long, value_name = "NUMBER", default_value_t = HANDSHAKES_OF_ADDRESS)]
    pub max_handshakes_per_address: NonZeroU32,

    /// Control frames of HTTP/2 (PING, SETTINGS and such) on a connection beyond what its messages need, and a tenth of
    /// that in a second; one with more is ended.
    #[arg(long, value_name = "NUMBER", default_value_t = CONTROL_FRAMES)]
    pub max_control_frames: NonZeroU32,

    /// Connections at the admin address; one more ends the oldest.
    #[arg(long, value_name = "NUMBER", default_value_t = ADMIN_CONNECTIONS)]
    pub max_admin_connections: NonZeroU32,

    /// Names that a client may ask for in a second on average, `*` counting as all there are; more requests wait.
    #[arg(long, value_name = "NUMBER", default_value_t = NAMES_A_SECOND)]
    pub max_names_per_second: NonZeroU32,

    /// Names that a client may ask for at once before they do, or eight times all there are if that is more.
    #[arg(long, value_name = "NUMBER", default_value_t = NAMES_AT_ONCE)]
    pub max_names_at_once: NonZeroU32,

    /// Certificates that a client may ask for in a second on average, whether it gets them or not; more are refused.
    #[arg(long, value_name = "NUMBER", default_value_t = CERTIFICATES_A_SECOND)]
    pub max_certificates_per_second: NonZeroU32,

    /// Certificates that a client may ask for at once before they are.
    #[arg(long, value_name = "NUMBER", default_value_t = CERTIFICATES_AT_ONCE)]
    pub max_certificates_at_once: NonZeroU32,

    /// Discovery streams that a pod may have open; more are refused.
    #[arg(long, value_name = "NUMBER", default_value_t = STREAMS_PER_POD)]
    pub max_streams_per_pod: NonZeroU32,

    /// Names of one type that a discovery stream may subscribe to, with 128 bytes each on average; one with more is ended.
    #[arg(long, value_name = "NUMBER", default_value_t = SUBSCRIPTIONS)]
    pub max_subscriptions: NonZeroU32,

    /// Bytes of a discovery request; a stream with a longer one is ended. All the names of `--max-subscriptions` fit.
    #[arg(long, value_name = "NUMBER", default_value_t = REQUEST_BYTES)]
    pub max_request_bytes: NonZeroU32,

    /// How long a client may take for each thing that it has to do first: its TLS handshake, the first request of a discovery
    /// stream, and a request for a certificate with all that belongs to it.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = timeout)]
    pub client_timeout: Duration,

    /// How long a client may take nothing of what waits for it; then its connection is ended.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = timeout)]
    pub unread_timeout: Duration,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text)?;
    if TIMEOUTS.contains(&timeout) {
        return Ok(timeout);
    }
    let (shortest, longest) = (TIMEOUTS.start(), TIMEOUTS.end());
    Err(format!("expected {shortest:?} to {longest:?}"))
}

impl Default for LimitArgs {
    fn default() -> Self {
        Self {
            max_connections: CONNECTIONS,
            max_anonymous_connections: ANONYMOUS,
            max_connections_per_client: OF_CLIENT,
            max_anonymous_connections_per_address: ANONYMOUS_OF_ADDRESS,
            max_handshakes: HANDSHAKES,
            max_handshakes_per_address: HANDSHAKES_OF_ADDRESS,
            max_control_frames: CONTROL_FRAMES,
            max_admin_connections: ADMIN_CONNECTIONS,
            max_names_per_second: NAMES_A_SECOND,
            max_names_at_once: NAMES_AT_ONCE,
            max_certificates_per_second: CERTIFICATES_A_SECOND,
            max_certificates_at_once: CERTIFICATES_AT_ONCE,
            max_streams_per_pod: STREAMS_PER_POD,
            max_subscriptions: SUBSCRIPTIONS,
            max_request_bytes: REQUEST_BYTES,
            client_timeout: CLIENT_TIMEOUT,
            unread_timeout: UNREAD_TIMEOUT,
        }
    }
}

impl LimitArgs {
    /// All limits, with those that nobody sets.
    pub(crate) fn limits(&self) -> Limits {
        let number = |number: NonZeroU32| usize::try_from(number.get()).unwrap_or(usize::MAX);
        let others = Bounds::default();
        Limits {
            subscriptions: number(self.max_subscriptions),
            names_a_second: self.max_names_per_second.get(),
            names_at_once: self.max_names_at_once.get(),
            streams_per_pod: number(self.max_streams_per_pod),
            request_bytes: number(self.max_request_bytes),
            first_request: self.client_timeout,
            connections: Bounds {
                connections: number(self.max_connections),
                anonymous: number(self.max_anonymous_connections),
                of_client: number(self.max_connections_per_client),
                of_identity: number(self.max_connections).div_ceil(2),
                anonymous_of_address: number(self.max_anonymous_connections_per_address),
                handshakes: number(self.max_handshakes),
                handshakes_of_address: number(self.max_handshakes_per_address),
                control_frames: self.max_control_frames.get(),
                handshake: self.client_timeout,
                // A request, and as long again for what comes before and after it.
                anonymous_life: self.client_timeout * 3,
                anonymous_grace: Grace {
                    spoke: self.client_timeout,
                    ..others.anonymous_grace
                },
                unread: self.unread_timeout,
                ..others
            },
            admin_connections: number(self.max_admin_connections),
            certificates: Requests {
                a_second: self.max_certificates_per_second.get(),
                at_once: self.max_certificates_at_once.get(),
                deadline: self.client_timeout,
            },
            ..Limits::default()
        }
    }
}
