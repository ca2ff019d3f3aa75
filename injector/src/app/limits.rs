//! What clients of the injector may make grow.

use std::time::Duration;

use tulle_runtime::env::parse_duration;

use crate::MAX_REVIEW;
use crate::webhook::Bounds;

/// What clients may make grow. Memory follows: a review that is computed may take 16 times its bytes.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections for reviews. For one more, an idle one of the address that has most is closed.
    #[arg(long, value_name = "NUMBER", default_value_t = 512, value_parser = number)]
    pub max_connections: usize,

    /// Requests at a time that are read, wait, are reviewed or have an answer that is not taken yet, half of them from one
    /// address; 429 for more.
    #[arg(long, value_name = "NUMBER", default_value_t = 1024, value_parser = number)]
    pub max_requests: usize,

    /// Bytes of these or of their answers together, half of them from one address; 429 for more.
    #[arg(long, value_name = "BYTES", default_value_t = 8 * MAX_REVIEW, value_parser = bytes)]
    pub max_request_bytes: usize,

    /// Reviews that are computed at a time.
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = number)]
    pub max_reviews: usize,

    /// How long a request may wait to be reviewed, if its client waits so long (API servers say it by `?timeout=`); then 503.
    #[arg(long, value_name = "DURATION", default_value = "24s", value_parser = parse_duration)]
    pub queue_timeout: Duration,

    /// How long a handshake, a head, a body or the taking of an answer may take.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub client_timeout: Duration,

    /// Connections of operators, kubelet and Prometheus; one more ends the oldest.
    #[arg(long, value_name = "NUMBER", default_value_t = tulle_runtime::admin::CONNECTIONS, value_parser = number)]
    pub max_admin_connections: usize,
}

impl LimitArgs {
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            connections: self.max_connections,
            requests: self.max_requests,
            bytes: self.max_request_bytes,
            reviews: self.max_reviews,
            turn: self.queue_timeout,
            receive: self.client_timeout,
        }
    }
}

/// So many that a semaphore can count them.
const MOST: usize = 1 << 20;

fn number(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=MOST) => Ok(number),
        _ => Err(format!("write a number, at least 1 and at most {MOST}")),
    }
}

fn bytes(text: &str) -> Result<usize, String> {
    let least = 2 * MAX_REVIEW;
    match text.parse() {
        Ok(bytes) if bytes >= least => Ok(bytes),
        _ => Err(format!(
            "write a number of bytes, at least {least}: that one address can have the largest review"
        )),
    }
}
